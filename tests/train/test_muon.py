"""Muon: matrices are orthogonalized, the rest is AdamW's."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from train.checkpoint import optimizer_tensors, restore_optimizer
from train.muon import is_matrix, orthogonalized
from train.recipe import RecipeConfig, make_optimizer

CONFIG = RecipeConfig(epochs=2, batch_size=8, learning_rate=1e-2, weight_decay=0.1, optimizer="muon")
MATRICES = ("0.weight", "2.weight", "6.weight")


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 8, 1, bias=False),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )


def step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    optimizer.zero_grad()
    model(images).square().mean().backward()
    optimizer.step()


def optimizer_of(model: nn.Module, **changes: Any) -> torch.optim.Optimizer:
    return make_optimizer(model.named_parameters(), CONFIG.model_copy(update=changes))


@pytest.mark.parametrize("shape", [(16, 16), (8, 200), (200, 8)])
def test_singular_values_become_nearly_one_and_directions_stay(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    found = left.mT @ orthogonalized(matrix) @ right.mT
    assert ((found.diagonal() > 0.6) & (found.diagonal() < 1.25))[values > 0.02 * values[0]].all()
    assert (found - found.diagonal().diag()).abs().max() < 1e-3


def test_the_gram_matrix_gives_what_the_textbook_iteration_does() -> None:
    matrix = torch.randn(12, 90, generator=torch.Generator().manual_seed(1))
    expected = matrix / matrix.norm()
    for _ in range(5):
        gram = expected @ expected.mT
        expected = 3.4445 * expected + (-4.7750 * gram + 2.0315 * gram @ gram) @ expected
    torch.testing.assert_close(orthogonalized(matrix), expected, rtol=1e-3, atol=1e-4)


def test_a_matrix_of_zeros_is_no_step() -> None:
    assert torch.equal(orthogonalized(torch.zeros(3, 5)), torch.zeros(3, 5))


def test_matrices_are_the_weights_between_several_channels() -> None:
    assert tuple(name for name, parameter in net().named_parameters() if is_matrix(parameter)) == MATRICES


def test_what_is_no_matrix_takes_adamws_step() -> None:
    ours, theirs = net(), net()
    step(ours, optimizer_of(ours), seed=0)
    step(theirs, optimizer_of(theirs, optimizer="adamw"), seed=0)
    others = dict(theirs.named_parameters())
    same = [name for name, parameter in ours.named_parameters() if torch.allclose(parameter, others[name], atol=1e-7)]
    assert set(others) - set(same) == set(MATRICES)


def test_a_matrix_steps_as_far_as_adamw_would() -> None:
    model = net()
    before = copy.deepcopy(model.state_dict())
    step(model, optimizer_of(model, weight_decay=0.0), seed=0)
    moved = model.state_dict()["2.weight"] - before["2.weight"]
    assert float(moved.square().mean().sqrt()) == pytest.approx(0.2 * CONFIG.learning_rate, rel=0.3)


def test_weights_decay() -> None:
    model, undecayed = net(), net()
    step(model, optimizer_of(model), seed=0)
    step(undecayed, optimizer_of(undecayed, weight_decay=0.0), seed=0)
    start, with_decay, without = (m.state_dict()["2.weight"] for m in (net(), model, undecayed))
    torch.testing.assert_close(without - with_decay, CONFIG.learning_rate * 0.1 * start, rtol=1e-3, atol=1e-6)


def test_the_memory_layout_changes_nothing() -> None:
    plain = net()
    last = net().to(memory_format=torch.channels_last)
    for model in (plain, last):
        optimizer = optimizer_of(model)
        for seed in range(3):
            step(model, optimizer, seed)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(last.state_dict()[name], value, rtol=1e-3, atol=1e-5)
    assert next(last.parameters()).is_contiguous(memory_format=torch.channels_last)


def test_a_restored_optimizer_goes_on_in_the_same_steps() -> None:
    model = net()
    optimizer = optimizer_of(model)
    step(model, optimizer, 0)
    kept: dict[str, Tensor] = {name: t.clone() for name, t in optimizer_tensors(optimizer, "o").items()}
    other = copy.deepcopy(model)
    restored = optimizer_of(other)
    restore_optimizer(restored, kept, "o")
    step(model, optimizer, 1)
    step(other, restored, 1)
    for name, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name


def test_a_parameter_without_a_gradient_stays() -> None:
    model = net()
    before = copy.deepcopy(model.state_dict())
    optimizer = optimizer_of(model)
    model[6].weight.requires_grad_(False)
    step(model, optimizer, 0)
    assert torch.equal(model.state_dict()["6.weight"], before["6.weight"])
    assert not torch.equal(model.state_dict()["2.weight"], before["2.weight"])
