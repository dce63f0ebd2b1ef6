"""Scores: held-out accuracy of an inherited subnet with its statistics re-fitted, counted once an architecture."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.artifacts import RunFolder
from experiments.console import Screen
from experiments.run import Run
from experiments.scoring import Fixed, Scorer, discretization_gap
from supernet import Sample, SearchSpace, Supernet, UserError, inherit
from train.augment import AugmentConfig
from train.data import ImageData
from train.evaluation import accuracy_of_batches, refit_batchnorm
from train.splits import batches, evaluation_batches

MakeScorer = Callable[..., Scorer]


@pytest.fixture(scope="module")
def run(_finished: Path) -> Run:
    folder = RunFolder(_finished)
    return Run(folder.config, folder, Screen(), command="")


@pytest.fixture(scope="module")
def supernet(run: Run) -> Supernet:
    """The trained supernet of the tiny experiment."""
    return run.supernet


@pytest.fixture(scope="module")
def data(run: Run) -> ImageData:
    return run.data


@pytest.fixture(scope="module")
def space(supernet: Supernet) -> SearchSpace:
    return supernet.space


@pytest.fixture
def scorer(supernet: Supernet, data: ImageData) -> MakeScorer:
    """Makes a scorer of 64 images in batches of 32, after 64 images to re-fit on."""

    def make(**options: Any) -> Scorer:
        defaults = {"refit_images": 64, "score_images": 64, "batch_size": 32, "precision": "fp32", "cache": None}
        return Scorer(supernet, data, **{**defaults, **options})

    return make


def test_scores_taken_side_by_side_are_those_taken_one_by_one(
    scorer: MakeScorer, space: SearchSpace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(4)
    nets = [space.random(generator) for _ in range(9)]
    alone, together = scorer(cache=tmp_path / "alone.jsonl"), scorer(cache=tmp_path / "together.jsonl", at_once=3)
    one_by_one = [alone(net) for net in nets]
    together(nets[0])
    together.ahead([*nets, nets[3]])
    monkeypatch.setattr(together, "of", lambda model: pytest.fail("scored again"))
    assert [together(net) for net in nets] == one_by_one
    assert (tmp_path / "together.jsonl").read_bytes() == (tmp_path / "alone.jsonl").read_bytes()


def test_a_score_is_the_accuracy_of_the_heir_on_held_out_images_with_refitted_statistics(
    scorer: MakeScorer, supernet: Supernet, data: ImageData, space: SearchSpace
) -> None:
    still = batches(data.train, 32, epoch=0, seed=0, augment=AugmentConfig())
    refit = [batch for _, batch in zip(range(2), still, strict=False)]
    held_out = [batch for _, batch in zip(range(2), evaluation_batches(data.score, 32), strict=False)]
    scores = []
    for seed in range(5):
        architecture = space.random(torch.Generator().manual_seed(seed))
        model = inherit(supernet, architecture)
        refit_batchnorm(model, refit, precision="fp32")
        expected = accuracy_of_batches(model, held_out, precision="fp32")
        assert expected.total == 64
        scores.append(scorer()(architecture))
        assert scores[-1] == expected.percent
    assert len(set(scores)) > 1


@pytest.mark.parametrize("score_images", [1, 32, 40, 10_000, None])
def test_so_many_images_are_scored_and_no_more_than_there_are(
    scorer: MakeScorer, data: ImageData, score_images: int | None
) -> None:
    made = scorer(score_images=score_images)
    counted = sum(len(labels) for _, labels in made.images)
    assert counted == min(len(data.score), score_images or len(data.score))
    first = torch.cat([images for images, _ in made.images])
    whole = torch.cat([images for images, _ in evaluation_batches(data.score, 32)])
    assert torch.equal(first, whole[:counted])


@pytest.mark.parametrize(("refit_images", "expected"), [(1, [1]), (64, [32, 32]), (65, [21, 21, 21]), (10**6, None)])
def test_statistics_are_fitted_on_as_many_training_images_in_equal_batches(
    scorer: MakeScorer, data: ImageData, refit_images: int, expected: list[int] | None
) -> None:
    made = scorer(refit_images=refit_images)
    sizes = [len(labels) for _, labels in made.refit]
    if expected is None:
        assert len(set(sizes)) == 1
        assert sizes[0] <= 32
        assert len(data.train) - sum(sizes) < len(sizes)
    else:
        assert sizes == expected

    def rows(images: torch.Tensor) -> set[tuple[float, ...]]:
        return {tuple(row) for row in images.flatten(1).tolist()}

    training = rows(torch.cat([images for images, _ in evaluation_batches(data.train, 256)]))
    assert rows(torch.cat([images for images, _ in made.refit])) <= training


def test_scoring_leaves_the_supernet_as_it_was(scorer: MakeScorer, supernet: Supernet, space: SearchSpace) -> None:
    before = copy.deepcopy(supernet.state_dict())
    scorer()(space.scaled(0.5))
    assert all(torch.equal(tensor, before[name]) for name, tensor in supernet.state_dict().items())


def test_an_architecture_is_scored_once(
    scorer: MakeScorer, space: SearchSpace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "scores.jsonl"
    first = scorer(cache=cache)
    scores = [first(space.largest), first(space.smallest), first(space.largest)]
    lines = [json.loads(line) for line in cache.read_text().splitlines()]
    assert lines == [
        {"digest": space.largest.digest, "accuracy_percent": scores[0]},
        {"digest": space.smallest.digest, "accuracy_percent": scores[1]},
    ]

    def never(*_: object, **__: object) -> None:
        raise AssertionError("scored again")

    monkeypatch.setattr("experiments.scoring.inherit", never)
    assert scores[2] == scores[0]
    again = scorer(cache=cache)  # a search that goes on
    assert [again(space.largest), again(space.smallest)] == scores[:2]


def test_a_loss_is_the_cross_entropy_of_the_scored_images_and_counts_the_accuracy_too(
    scorer: MakeScorer, supernet: Supernet, space: SearchSpace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = scorer(cache=tmp_path / "scores.jsonl")
    accuracy, loss = scorer()(space.largest), made.loss(space.largest)
    heir = inherit(supernet, space.largest)
    refit_batchnorm(heir, made.refit, precision="fp32")
    images, labels = (torch.cat(parts) for parts in zip(*made.images, strict=True))
    with torch.no_grad():
        assert loss == pytest.approx(float(torch.nn.functional.cross_entropy(heir(images), labels)), rel=1e-4)
    made(space.smallest)
    monkeypatch.setattr("experiments.scoring.inherit", lambda *_: pytest.fail("scored again"))
    for each in (made, scorer(cache=tmp_path / "scores.jsonl")):
        assert (each(space.largest), each.loss(space.largest)) == (accuracy, loss)
    monkeypatch.undo()
    again = scorer(cache=tmp_path / "scores.jsonl")
    assert list(again.losses) == [space.largest.digest]
    assert again.loss(space.smallest) > 0  # whose accuracy alone was known


def test_the_last_line_of_a_killed_search_is_dropped_and_scored_again(
    scorer: MakeScorer, space: SearchSpace, tmp_path: Path
) -> None:
    cache = tmp_path / "scores.jsonl"
    first = scorer(cache=cache)
    scores = [first(space.largest), first(space.smallest)]
    whole = cache.read_text()
    cache.write_text(whole[:-9])
    again = scorer(cache=cache)
    assert list(again.known) == [space.largest.digest]
    assert [again(space.largest), again(space.smallest)] == scores
    assert cache.read_text() == whole


@pytest.mark.parametrize(
    "line", ["{", '{"digest": "a"}', '{"digest": "a", "accuracy_percent": "high"}', "[]", '{"accuracy_percent": 1}']
)
def test_a_damaged_line_is_refused_with_what_to_do(scorer: MakeScorer, tmp_path: Path, line: str) -> None:
    cache = tmp_path / "scores.jsonl"
    cache.write_text(f'{line}\n{{"digest": "b", "accuracy_percent": 1.0}}\n')
    with pytest.raises(UserError, match=r"scores\.jsonl: a line is damaged; delete the file"):
        scorer(cache=cache)


def test_a_mixture_of_certain_paths_has_no_discretization_gap(
    scorer: MakeScorer, supernet: Supernet, data: ImageData
) -> None:
    certain = copy.deepcopy(supernet)
    with torch.no_grad():
        for alpha in certain.alpha_parameters():
            alpha.copy_(torch.tensor([50.0, *[0.0] * (len(alpha) - 1)]))
    gap = discretization_gap(certain, scorer(), temperature=1.0)
    assert gap.gap_points == 0.0
    assert gap.soft_accuracy_percent == gap.hard_accuracy_percent
    assert gap.mean_dropped_probability == pytest.approx(0.0, abs=1e-6)


def test_the_gap_is_between_the_mixture_and_its_most_probable_path(scorer: MakeScorer, supernet: Supernet) -> None:
    undecided, made = copy.deepcopy(supernet), scorer()
    with torch.no_grad():
        for alpha in undecided.alpha_parameters():
            alpha.copy_(torch.linspace(0.3, 0.0, len(alpha)))  # the first is the most probable, barely
    gap = discretization_gap(undecided, made, temperature=0.5)
    probabilities = tuple((alpha.detach() / 0.5).softmax(dim=0) for alpha in undecided.alpha_parameters())
    widths = undecided.largest_widths
    soft = made.of(Fixed(undecided, Sample(widths, probabilities, chosen=None)))
    hard = made.of(Fixed(undecided, Sample(widths, probabilities, chosen=(0,) * len(probabilities))))
    assert (gap.soft_accuracy_percent, gap.hard_accuracy_percent) == (soft, hard)
    assert gap.gap_points == soft - hard
    dropped = [1 - float(p.max()) for p in probabilities]
    assert gap.mean_dropped_probability == pytest.approx(sum(dropped) / len(dropped))
