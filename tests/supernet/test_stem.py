"""Stem and downsampling that convolve before they shrink, as closed forms and inside of whole models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from supernet.architecture import Downsampling, Stem
from supernet.inherit import inherit
from supernet.onnx_export import export_onnx, onnx_parity
from supernet.schema import parse
from supernet.space import SearchSpace
from supernet.stem import DownsamplingModule, StemModule
from supernet.supernet import Supernet

Randomized = Callable[..., nn.Module]


def tensor(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def convolved(x: Tensor, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> Tensor:
    y = F.conv2d(x, conv.weight, conv.bias, padding=1)
    return F.relu(F.batch_norm(y, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps))


def maximum(x: Tensor, stride: int) -> Tensor:
    """The maximum of every stride x stride pixels, row by row; fewer at the far edges."""
    height, width = x.shape[2:]
    rows = [
        torch.stack([x[:, :, i : i + stride, j : j + stride].amax(dim=(2, 3)) for j in range(0, width, stride)], dim=-1)
        for i in range(0, height, stride)
    ]
    return torch.stack(rows, dim=2)


@pytest.mark.parametrize(("grid", "stride"), [((6, 8), 2), ((5, 7), 2), ((7, 7), 3)])
def test_a_pooled_downsampling_is_its_formula(grid: tuple[int, int], stride: int, randomized: Randomized) -> None:
    module: Any = randomized(
        DownsamplingModule(Downsampling(stride=stride, pooling="max"), in_channels=4, out_channels=6)
    ).eval()
    x = tensor(2, 4, *grid)
    torch.testing.assert_close(module(x), maximum(convolved(x, module.conv, module.norm), stride))


@pytest.mark.parametrize("strides", [(1, 2), (2, 1), (2, 2)])
def test_a_pooled_stem_is_its_formula(strides: tuple[int, int], randomized: Randomized) -> None:
    stem = Stem(width_channels=8, hidden_channels=4, strides=strides, pooling="max")
    module: Any = randomized(StemModule(stem, in_channels=3)).eval()
    x = tensor(2, 3, 9, 12)
    y = maximum(convolved(x, module.conv1, module.norm1), strides[0])
    torch.testing.assert_close(module(x), maximum(convolved(y, module.conv2, module.norm2), strides[1]))


def test_a_pooled_space_keeps_its_grids_and_its_parity(
    space: SearchSpace, randomized: Randomized, tmp_path: Path
) -> None:
    data = space.model_dump(mode="json") | {
        "resolution_px": [13, 19],
        "stem": {"strides": [1, 2], "pooling": "max"},
        "downsampling_pooling": "max",
    }
    pooled = parse(SearchSpace, data, source="the test")
    supernet: Any = randomized(Supernet(pooled)).eval()
    model = inherit(supernet, pooled.largest).eval()
    images = tensor(2, 2, 13, 19)
    with torch.no_grad():
        x = model.stem(images)
        for stage, grid in zip(model.stages[:1], pooled.largest.grids, strict=False):
            x = stage(x)  # type: ignore[operator]
            assert tuple(x.shape[2:]) == grid
        assert float((supernet(images, pooled.largest) - model(images)).abs().max()) == 0.0
    export_onnx(model, tmp_path / "model.onnx", in_channels=2, resolution_px=(13, 19))
    assert onnx_parity(model, tmp_path / "model.onnx", images).max_relative < 1e-4
