"""Scores of untrained nets, against what they mean on nets small enough to count."""

from __future__ import annotations

import math

import pytest
import torch

from experiments import zero_cost
from experiments.zero_cost import LOWEST, naswot, synflow
from supernet import Architecture, MetaFormer, SearchSpace
from supernet.schema import parse


@pytest.fixture
def space() -> SearchSpace:
    candidates = [{"type": "conv", "mlp_ratio": 1, "activation": "relu"}, "identity"]
    stages = [{"depth": 2, "width_channels": {"smallest": 8, "largest": 24}, "candidates": candidates}]
    data = {"granularity": 8, "in_channels": 3, "resolution_px": [8, 8], "num_classes": 10, "stages": stages}
    return parse(SearchSpace, data | {"head_norm": "identity"}, source="the test")


@pytest.fixture
def net(space: SearchSpace) -> Architecture:
    return space.largest


def test_naswot_counts_activations_that_differ_between_images(net: Architecture) -> None:
    images = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    found = naswot(net, images, seed=0)
    model = zero_cost._fresh(net, seed=0)
    signs: list[torch.Tensor] = []
    for module in model.modules():
        if isinstance(module, torch.nn.ReLU):
            module.register_forward_pre_hook(lambda _, inputs: signs.append(inputs[0].flatten(1) > 0))
    with torch.no_grad():
        model.train()(images)
    codes = torch.cat(signs, dim=1)
    alike = [[int((one == other).sum()) for other in codes] for one in codes]
    assert alike[0][0] == codes.shape[1] > alike[0][1]
    assert found == pytest.approx(float(torch.logdet(torch.tensor(alike, dtype=torch.float64))), rel=1e-6)


def test_images_that_are_all_the_same_have_the_lowest_naswot(net: Architecture) -> None:
    same = torch.ones(4, 3, 8, 8)
    assert naswot(net, same, seed=0) == LOWEST or naswot(net, same, seed=0) < naswot(
        net, torch.randn(4, 3, 8, 8), seed=0
    )


def test_synflow_is_the_same_whatever_the_signs_of_the_weights(
    net: Architecture, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = synflow(net, seed=0)
    fresh = zero_cost._fresh

    def negated(architecture: Architecture, *, seed: int) -> MetaFormer:
        model = fresh(architecture, seed=seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.neg_()
        return model

    monkeypatch.setattr(zero_cost, "_fresh", negated)
    assert synflow(net, seed=0) == before


def test_synflow_doubles_where_the_last_weights_do(net: Architecture, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = zero_cost._fresh

    def without_biases(factor: float) -> float:
        def made(architecture: Architecture, *, seed: int) -> MetaFormer:
            model = fresh(architecture, seed=seed)
            linear = [module for module in model.modules() if isinstance(module, torch.nn.Linear)][-1]
            with torch.no_grad():
                linear.weight.mul_(factor)
                if linear.bias is not None:
                    linear.bias.zero_()
            return model

        monkeypatch.setattr(zero_cost, "_fresh", made)
        return synflow(net, seed=0)

    assert without_biases(2.0) - without_biases(1.0) == pytest.approx(math.log(2), rel=1e-6)


def test_a_larger_net_has_more_flow_and_scores_are_repeatable(space: SearchSpace) -> None:
    assert synflow(space.largest, seed=0) > synflow(space.smallest, seed=0)
    assert synflow(space.largest, seed=0) == synflow(space.largest, seed=0)
    assert synflow(space.largest, seed=0) != synflow(space.largest, seed=1)
