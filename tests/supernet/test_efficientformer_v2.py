"""EfficientFormerV2: exact counts, timm's logits, any resolution, biases that are never stale."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from supernet.convert import load_weights
from supernet.cost import cost
from supernet.model_zoo import create_model, published_architecture
from supernet.schema import UserError

Drawn = Callable[..., Any]

# Parameters, and 10^9 MACs with three digits (facts: EfficientFormer section 2, MetaFormer baselines section 6).
COUNTS = {
    "efficientformerv2_s0": (3_600_256, 0.396),
    "efficientformerv2_s1": (6_185_560, 0.652),
    "efficientformerv2_s2": (12_710_112, 1.247),
    "efficientformerv2_l": (26_322_288, 2.553),
}


def images(height: int, width: int | None = None) -> Tensor:
    return torch.randn(2, 3, height, width or height, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_and_macs_are_the_published_ones(name: str) -> None:
    found = cost(published_architecture(name))
    assert (found.parameters, round(found.macs / 1e9, 3)) == COUNTS[name]


@pytest.mark.parametrize(
    "name", ["efficientformerv2_s0", *(pytest.param(name, marks=pytest.mark.long) for name in list(COUNTS)[1:])]
)
@pytest.mark.parametrize("training", [False, True])
def test_logits_are_timms(name: str, training: bool, drawn: Drawn) -> None:
    reference = drawn(timm.create_model(name, drop_path_rate=0.0)).train(training)
    model = create_model(name)
    assert load_weights(model, reference.state_dict()) == "timm"
    with torch.no_grad():
        expected, logits = reference(images(224)), model.train(training)(images(224))
    if training:  # timm gives the average of both heads unless it is told to distill
        logits = (logits[0] + logits[1]) / 2
    assert (logits - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_gradients_reach_every_parameter(drawn: Drawn) -> None:
    model = drawn(create_model("efficientformerv2_s0", resolution_px=64, num_classes=5)).train()
    first, second = model(images(64))
    (first.square().sum() + second.square().sum()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        if name.endswith("conv.bias") or "token_mixer.k." in name or ".attention.k." in name:
            continue  # behind a batch norm, or the same for all keys: the gradient is 0
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("size", [(64, 64), (96, 160), (97, 65), (225, 31)])
def test_any_size_runs_square_or_not(size: tuple[int, int]) -> None:
    model = create_model("efficientformerv2_s0", resolution_px=size, num_classes=3).eval()
    with torch.no_grad():
        assert model(images(*size)).shape == (2, 3)


def test_the_bias_of_the_downsampling_is_that_of_query_and_key() -> None:
    attention = create_model("efficientformerv2_s0", resolution_px=(80, 112)).stages[3].downsampling.attention
    height, width = 5, 7
    assert attention.attention_biases.shape == (8, height * width)
    assert attention.bias_index.shape == (math.ceil(height / 2) * math.ceil(width / 2), height * width)
    query, key = 4 + 1, 3 * width + 6  # the query at (2, 2) of the map, since 4 of them are in a row; the key at (3, 6)
    assert attention.bias_index[query, key] == abs(2 - 3) * width + abs(2 - 6)


@pytest.mark.parametrize("name", ["efficientformer_l1", "efficientformerv2_s0"])
def test_a_changed_bias_table_counts_at_once_and_in_copies(name: str, drawn: Drawn) -> None:
    model = drawn(create_model(name, resolution_px=64, num_classes=5)).eval()
    with torch.no_grad():
        before = model(images(64))
        twin = copy.deepcopy(model)
        for changed in (model, twin):
            for name, parameter in changed.named_parameters():
                if "attention_biases" in name:
                    parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
        after = model(images(64))
        assert not torch.equal(before, after)
        assert torch.equal(twin(images(64)), after)
        assert torch.equal(model.to(torch.float64).float()(images(64)), after)


def test_weights_load_at_another_resolution_by_offset(drawn: Drawn) -> None:
    large = drawn(create_model("efficientformerv2_s0", resolution_px=(96, 160), num_classes=5))
    small = create_model("efficientformerv2_s0", resolution_px=(64, 128), num_classes=5)
    load_weights(small, large.state_dict(), trained_px=(96, 160))
    kept = large.stages[3].downsampling.attention.attention_biases.reshape(8, 6, 10)[:, :4, :8]
    assert torch.equal(small.stages[3].downsampling.attention.attention_biases.reshape(8, 4, 8), kept)
    kept = large.stages[2].blocks[-1].token_mixer.attention_biases.reshape(8, 3, 5)[:, :2, :4]
    assert torch.equal(small.stages[2].blocks[-1].token_mixer.attention_biases.reshape(8, 2, 4), kept)
    with torch.no_grad():
        assert torch.isfinite(small.eval()(images(64, 128))).all()


def test_a_grid_that_is_not_square_is_not_taken_for_another(drawn: Drawn) -> None:
    wide = drawn(create_model("efficientformer_l1", resolution_px=(96, 128), num_classes=5))
    tall = create_model("efficientformer_l1", resolution_px=(128, 96), num_classes=5)
    load_weights(tall, wide.state_dict(), trained_px=(96, 128))  # 3x4 offsets, and 4x3 of them
    table, found = (m.stages[3].blocks[-1].token_mixer.attention_biases for m in (wide, tall))
    assert not torch.equal(found, table)
    assert torch.allclose(found.reshape(8, 4, 3)[:, 0, 0], table.reshape(8, 3, 4)[:, 0, 0], atol=1e-5)
    before = tall.state_dict()["stem.conv1.weight"].clone()
    square = create_model("efficientformer_l1", resolution_px=160, num_classes=5)
    with pytest.raises(UserError, match="trained_px"):
        load_weights(square, wide.state_dict())
    assert torch.equal(tall.state_dict()["stem.conv1.weight"], before)
