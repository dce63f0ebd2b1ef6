"""torch.fx, torch.export, ONNX and torch.compile take every published model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from supernet import MetaFormer, create_model, list_models
from supernet.onnx_export import export_onnx, onnx_parity

Small = Callable[[str], MetaFormer]
SMALLEST = ("efficientformerv2_s0", "caformer_s18")  # of convolutions and attention, and of MetaFormer's blocks
NAMES = [pytest.param(name, marks=() if name in SMALLEST else pytest.mark.long, id=name) for name in list_models()]
FREE = ("convformer_s18", "caformer_s18", "poolformer_s12")  # nothing in them is made for one size


@pytest.fixture
def small(drawn: Callable[..., Any]) -> Callable[[str], MetaFormer]:
    """A published model at 64 px, its norms, scales, biases and tables drawn anew."""

    def build(name: str) -> MetaFormer:
        torch.manual_seed(0)
        model: MetaFormer = drawn(create_model(name, resolution_px=64, num_classes=5))
        return model

    return build


def images(batch: int = 2, height: int = 64, width: int = 64) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", NAMES)
def test_symbolic_trace_before_any_forward_keeps_sizes_dynamic(name: str, small: Small) -> None:
    model = small(name)
    traced = torch.fx.symbolic_trace(model)
    with torch.no_grad():
        for batch in (1, 3):
            torch.testing.assert_close(traced(images(batch)), model(images(batch)), rtol=1e-4, atol=1e-4)
        if name in FREE:
            torch.testing.assert_close(traced(images(1, 96, 128)), model(images(1, 96, 128)))


@pytest.mark.parametrize("name", ["efficientformer_l1", "caformer_s18"])
def test_a_training_model_with_drop_path_is_traced_too(name: str) -> None:
    model = create_model(name, resolution_px=64, num_classes=5, drop_path_rate=0.3).train()
    traced = torch.fx.symbolic_trace(model)
    torch.manual_seed(0)
    first = traced(images())
    torch.manual_seed(0)
    torch.testing.assert_close(model(images()), first)
    assert not torch.equal(torch.stack(list(traced(images()))), torch.stack(list(first)))  # drawn anew


@pytest.mark.parametrize("name", NAMES)
def test_torch_export_with_a_dynamic_batch(name: str, small: Small) -> None:
    model = small(name)
    program = torch.export.export(model, (images(2),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    with torch.no_grad():
        torch.testing.assert_close(program.module()(images(3)), model(images(3)))


@pytest.mark.parametrize("name", NAMES)
def test_onnx_runtime_computes_the_same_for_any_batch(name: str, small: Small, tmp_path: Path) -> None:
    model = small(name)
    export_onnx(model, tmp_path / "model.onnx", in_channels=3, resolution_px=(64, 64))
    for batch in (1, 3):
        assert onnx_parity(model, tmp_path / "model.onnx", images(batch)).max_relative < 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_torch_compile_finds_no_graph_break(name: str, small: Small) -> None:
    torch._dynamo.reset()
    explained = torch._dynamo.explain(small(name))(images())
    assert explained.graph_break_count == 0, explained.break_reasons
    assert explained.graph_count == 1
