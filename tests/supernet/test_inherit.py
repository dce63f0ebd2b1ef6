"""Parity, the central test: the supernet restricted to an architecture equals the standalone model that inherits."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from supernet.architecture import Architecture
from supernet.candidate import Candidate
from supernet.elastic import leading
from supernet.inherit import inherit
from supernet.layers import DropPath
from supernet.metaformer import MetaFormer
from supernet.schema import UserError
from supernet.space import SearchSpace
from supernet.supernet import Supernet


def random_architectures(space: SearchSpace, count: int) -> list[Architecture]:
    generator = torch.Generator().manual_seed(11)
    return [space.largest, space.smallest, *(space.random(generator) for _ in range(count))]


def parts(supernet: Any, model: Any) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Every full module of the supernet that the model's architecture uses, beside the model's own."""
    yield supernet.stem.full, model.stem
    yield supernet.head.full, model.head
    choices = supernet.space.choices(model.architecture)
    for metapath, (stage, block) in zip(supernet.metapaths, supernet.space.positions, strict=True):
        if block == 1 and stage > 1:
            yield supernet.downsamplings[stage - 2].full, model.stages[stage - 1].downsampling
        candidate = choices[stage - 1][block - 1]
        if not candidate.is_identity:
            yield metapath.candidates[candidate.name].full, model.stages[stage - 1].blocks[block - 1]


def tensors(module: nn.Module) -> dict[str, Tensor]:
    return dict(module.named_parameters()) | dict(module.named_buffers())


def assert_same_state(supernet: Supernet, model: MetaFormer) -> None:
    """Every tensor of the model is the leading slice of the supernet's."""
    for full, part in parts(supernet, model):
        wide = tensors(full)
        for name, tensor in tensors(part).items():
            torch.testing.assert_close(leading(wide[name], tensor.shape), tensor, rtol=1e-4, atol=1e-5)


def test_a_supernet_restricted_to_an_architecture_equals_its_subnet(
    supernet: Supernet, space: SearchSpace, images: Tensor
) -> None:
    logits = []
    for architecture in random_architectures(space, 25):
        with torch.no_grad():
            restricted, standalone = supernet(images, architecture), inherit(supernet, architecture)(images)
        torch.testing.assert_close(restricted, standalone, rtol=1e-4, atol=1e-5)
        logits.append(standalone)
    # and the test could fail: other architectures give other logits
    for index, one in enumerate(logits):
        assert sum(torch.allclose(one, other, rtol=1e-3, atol=1e-3) for other in logits[:index]) == 0


def test_in_training_mode_too_logits_and_running_statistics_are_equal(
    supernet: Supernet, space: SearchSpace, images: Tensor
) -> None:
    for architecture in random_architectures(space, 8):
        net = copy.deepcopy(supernet)
        model = inherit(net, architecture).train()
        with torch.no_grad():
            torch.testing.assert_close(net.train()(images, architecture), model(images), rtol=1e-3, atol=1e-4)
        assert_same_state(net, model)


def test_gradients_are_equal_and_nothing_else_of_the_supernet_gets_one(
    supernet: Supernet, space: SearchSpace, images: Tensor
) -> None:
    weights = torch.randn(3, 5, generator=torch.Generator().manual_seed(4))
    for architecture in random_architectures(space, 6):
        supernet.zero_grad(set_to_none=True)
        model = inherit(supernet, architecture)
        (supernet(images, architecture) * weights).sum().backward()
        (model(images) * weights).sum().backward()
        reached = set()
        for full, part in parts(supernet, model):
            wide = dict(full.named_parameters())
            for name, parameter in part.named_parameters():
                expected, found = parameter.grad, wide[name].grad
                assert expected is not None
                assert found is not None
                scale = float(expected.abs().max()) + 1e-6
                inner = leading(found, parameter.shape)
                torch.testing.assert_close(inner / scale, expected / scale, rtol=1e-3, atol=1e-4)
                assert int((found != 0).sum()) == int((inner != 0).sum())  # zero outside of the slice
                reached.add(id(wide[name]))
        others = [p.grad for p in supernet.parameters() if id(p) not in reached]
        assert all(gradient is None for gradient in others)


def test_inherited_weights_are_copies(supernet: Supernet, space: SearchSpace, images: Tensor) -> None:
    model = inherit(supernet, space.largest)
    assert not model.training
    with torch.no_grad():
        before = supernet(images, space.largest)
        for parameter in model.parameters():
            parameter.add_(1.0)
        assert torch.equal(supernet(images, space.largest), before)
    assert_same_state(supernet, inherit(supernet, space.largest))


def test_an_heir_has_the_drop_path_asked_for(supernet: Supernet, space: SearchSpace) -> None:
    heir = inherit(supernet, space.largest, drop_path_rate=0.3)
    assert max(part.probability for part in heir.modules() if isinstance(part, DropPath)) == pytest.approx(0.3)


def test_an_architecture_of_another_space_has_nothing_to_inherit(supernet: Supernet, space: SearchSpace) -> None:
    stage = space.stages[0].model_copy(update={"candidates": (Candidate.model_validate("separable_conv"),)})
    other = space.model_copy(update={"stages": (stage, *space.stages[1:])})
    with pytest.raises(UserError, match="stage 1, block 1: separable_conv"):
        inherit(supernet, other.largest)
