"""The supernet: a choice is an argument, a hard sample is one path, and nothing needs resetting."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from supernet.candidate import Candidate
from supernet.elastic import Elastic
from supernet.inherit import inherit
from supernet.schema import UserError, parse
from supernet.space import SearchSpace
from supernet.supernet import Sample, Supernet

Randomized = Callable[..., nn.Module]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def calls_of(supernet: Supernet) -> list[tuple[int, str]]:
    """Position and name of every candidate's module that is called from now on."""
    calls: list[tuple[int, str]] = []
    for index, metapath in enumerate(supernet.metapaths):
        for name, module in metapath.candidates.items():  # type: ignore[union-attr,operator]
            module.register_forward_pre_hook(lambda *_, call=(index, name): calls.append(call))
    return calls


def names_of(space: SearchSpace, index: int) -> list[str]:
    stage, _ = space.positions[index]
    return [candidate.name for candidate in space.candidates(stage)]


def one_hot(sample: Sample, space: SearchSpace) -> Sample:
    """The soft sample that gives all the weight to the chosen candidates."""
    assert sample.chosen is not None
    probabilities = tuple(
        nn.functional.one_hot(torch.tensor(chosen), len(names_of(space, index))).float()
        for index, chosen in enumerate(sample.chosen)
    )
    return Sample(sample.widths, probabilities, chosen=None)


@pytest.mark.parametrize("gradients", [False, True])
def test_a_hard_sample_calls_one_candidate_a_position_and_no_other_gets_a_gradient(
    supernet: Supernet, space: SearchSpace, images: Tensor, gradients: bool
) -> None:
    calls = calls_of(supernet)
    for seed in range(5):
        calls.clear()
        supernet.zero_grad(set_to_none=True)
        with torch.set_grad_enabled(gradients):
            sample = supernet.sample(
                supernet.random_widths(generator(seed)),
                mixing="hard",
                noise="gumbel",
                temperature=1.0,
                generator=generator(seed),
            )
            logits: Any = supernet(images, sample)
        assert sample.chosen is not None
        chosen = [(index, names_of(space, index)[k]) for index, k in enumerate(sample.chosen)]
        assert calls == [(index, name) for index, name in chosen if name != "identity"]
        if gradients:
            logits.sum().backward()
            touched = {
                (int(name.split(".")[1]), name.split(".")[3])
                for name, parameter in supernet.named_parameters()
                if parameter.grad is not None and ".candidates." in name
            }
            assert touched == set(calls)
            assert all(alpha.grad is not None for alpha in supernet.alpha_parameters())


def test_a_soft_sample_calls_every_candidate(supernet: Supernet, images: Tensor) -> None:
    calls = calls_of(supernet)
    sample = supernet.sample(
        supernet.largest_widths, mixing="soft", noise="none", temperature=1.0, generator=generator()
    )
    assert sample.chosen is None
    supernet(images, sample)
    assert Counter(calls) == Counter(
        (index, name)
        for index, metapath in enumerate(supernet.metapaths)
        for name in metapath.names  # type: ignore[union-attr]
        if name != "identity"
    )


def test_the_candidate_of_a_hard_sample_is_the_most_probable_one(supernet: Supernet) -> None:
    sample = supernet.sample(
        supernet.largest_widths, mixing="hard", noise="uniform", temperature=0.5, generator=generator(3)
    )
    assert sample.chosen == tuple(int(p.argmax()) for p in sample.probabilities)


@pytest.mark.parametrize("seed", range(6))
def test_all_the_weight_on_one_candidate_makes_soft_and_hard_samples_equal(
    supernet: Supernet, space: SearchSpace, images: Tensor, seed: int
) -> None:
    hard = supernet.uniform_sample(supernet.random_widths(generator(seed)), generator(seed))
    with torch.no_grad():
        torch.testing.assert_close(supernet(images, one_hot(hard, space)), supernet(images, hard), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("seed", range(6))
def test_a_hard_sample_of_a_legal_architecture_equals_that_architecture(
    supernet: Supernet, space: SearchSpace, images: Tensor, seed: int
) -> None:
    architecture = space.random(generator(seed))
    flat = [candidate.name for chosen in space.choices(architecture) for candidate in chosen]
    chosen = tuple(names_of(space, index).index(name) for index, name in enumerate(flat))
    widths = tuple(stage.width_channels for stage in architecture.stages)
    sample = Sample(widths, supernet.uniform_sample(widths, generator()).probabilities, chosen)
    with torch.no_grad():
        torch.testing.assert_close(supernet(images, sample), supernet(images, architecture), rtol=1e-4, atol=1e-5)


def test_running_one_architecture_changes_nothing_about_another(
    supernet: Supernet, space: SearchSpace, images: Tensor
) -> None:
    before = {name: tensor.clone() for name, tensor in supernet.state_dict().items()}
    architectures = [space.largest, space.smallest, *(space.random(generator(seed)) for seed in range(4))]
    with torch.no_grad():
        first = [supernet(images, architecture) for architecture in architectures]
        again = [supernet(images, architecture) for architecture in reversed(architectures)][::-1]
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    assert all(torch.equal(tensor, before[name]) for name, tensor in supernet.state_dict().items())
    assert list(before) == list(supernet.state_dict())  # what narrow calls are run with is no part of the weights


def test_narrow_paths_follow_the_mode_of_the_supernet(supernet: Supernet, space: SearchSpace, images: Tensor) -> None:
    mean = supernet.stem.full.get_buffer("norm1.running_mean")
    with torch.no_grad():
        expected = supernet(images, space.smallest)
        supernet.train()(images, space.smallest)
        statistics = mean.clone()
        found = supernet.eval()(images, space.smallest)
        assert torch.equal(mean, statistics)
    assert not torch.allclose(found, expected)  # the statistics moved while training, and count afterwards


def test_alphas_and_weights_divide_the_parameters_between_them(supernet: Supernet, space: SearchSpace) -> None:
    alphas, weights = list(supernet.alpha_parameters()), list(supernet.weight_parameters())
    assert {id(p) for p in alphas} | {id(p) for p in weights} == {id(p) for p in supernet.parameters()}
    assert len(alphas) + len(weights) == len(list(supernet.parameters()))
    assert [len(alpha) for alpha in alphas] == [len(space.candidates(stage)) for stage, _ in space.positions]


def test_random_widths_are_legal_and_all_of_them_occur(supernet: Supernet, space: SearchSpace) -> None:
    shared = generator()
    drawn = [supernet.random_widths(shared) for _ in range(100)]
    for index, widths in enumerate(zip(*drawn, strict=True)):
        assert set(widths) == set(space.widths(index + 1))
    assert supernet.largest_widths == (24, 32, 40)
    assert supernet.smallest_widths == (8, 8, 16)


def test_a_uniform_sample_draws_every_candidate_alike_and_moves_no_alpha(supernet: Supernet, images: Tensor) -> None:
    shared = generator()
    chosen = [supernet.uniform_sample(supernet.largest_widths, shared).chosen or () for _ in range(600)]
    for position in zip(*chosen, strict=True):
        assert all(150 < count < 250 for count in Counter(position).values())
        assert len(set(position)) == 3
    logits: Any = supernet(images, supernet.uniform_sample(supernet.smallest_widths, shared))
    logits.sum().backward()
    assert all(alpha.grad is None for alpha in supernet.alpha_parameters())


def test_samples_are_a_function_of_the_generator(supernet: Supernet) -> None:
    def chosen(seed: int) -> list[tuple[int, ...] | None]:
        shared = generator(seed)
        return [
            supernet.sample(
                supernet.largest_widths, mixing="hard", noise="gumbel", temperature=1.0, generator=shared
            ).chosen
            for _ in range(10)
        ]

    assert chosen(0) == chosen(0)
    assert chosen(0) != chosen(1)


def test_an_architecture_of_another_space_is_refused(supernet: Supernet, space: SearchSpace, images: Tensor) -> None:
    wider = space.stages[0].model_copy(update={"candidates": (Candidate.model_validate({"type": "mb4d"}),)})
    other = space.model_copy(update={"stages": (wider, *space.stages[1:])})
    with pytest.raises(UserError, match="stage 1, block 1: mb4d with these sizes is no candidate"):
        supernet(images, other.largest)


def test_a_distillation_head_gives_a_pair_in_training_and_the_average_otherwise(
    space: SearchSpace, images: Tensor, randomized: Randomized
) -> None:
    two_headed = parse(SearchSpace, space.model_dump(mode="json") | {"distillation_head": True}, source="x")
    net: Any = randomized(Supernet(two_headed)).eval()
    with torch.no_grad():
        torch.testing.assert_close(
            net(images, two_headed.smallest),
            inherit(net, two_headed.smallest)(images),
            rtol=1e-4,
            atol=1e-5,
        )
        assert [logits.shape for logits in net.train()(images, two_headed.smallest)] == [(3, 5), (3, 5)]


def test_every_part_of_the_supernet_but_the_alphas_is_elastic(supernet: Supernet) -> None:
    inside = {
        id(parameter)
        for module in supernet.modules()
        if isinstance(module, Elastic)
        for parameter in module.parameters()
    }
    assert {id(weight) for weight in supernet.weight_parameters()} == inside


def test_a_copy_of_a_used_supernet_is_independent_of_it(supernet: Supernet, space: SearchSpace, images: Tensor) -> None:
    with torch.no_grad():
        expected = supernet(images, space.smallest)
        other = copy.deepcopy(supernet)
        for parameter in other.parameters():
            parameter.zero_()
        assert torch.equal(supernet(images, space.smallest), expected)
        assert not torch.equal(other(images, space.smallest), expected)
