"""Contributions: measured one choice at a time, summed, and corrected by whole architectures."""

from __future__ import annotations

import random

import pytest
import torch

from search.contributions import removal_contributions
from supernet import Architecture, SearchSpace
from tests.search.test_exact import SHAPES, drawn, every_architecture, space


@pytest.mark.parametrize("name", [name for name in SHAPES if name != "tokens before maps"])
def test_a_score_that_adds_up_is_found_exactly(name: str) -> None:
    searched = space(name)
    truth = drawn(searched, 0)
    found = removal_contributions(searched, lambda net: truth.percent(searched, net))
    for net in every_architecture(searched):
        assert found.percent(searched, net) == pytest.approx(truth.percent(searched, net))
    assert found.largest_percent == pytest.approx(truth.percent(searched, searched.largest))


def test_only_legal_architectures_are_scored() -> None:
    searched = space("tokens before maps")
    seen: list[Architecture] = []

    def score(net: Architecture) -> float:
        searched.check(net)
        seen.append(net)
        return 0.0

    removal_contributions(searched, score)
    assert seen[0] == searched.largest


def interacting(searched: SearchSpace, net: Architecture) -> float:
    """Contributions, and something that every pair of kept blocks adds, which no sum knows."""
    return drawn(searched, 0).percent(searched, net) + 0.5 * net.depth**2


def test_scored_architectures_correct_what_does_not_add_up() -> None:
    searched = space("maps")
    prior = removal_contributions(searched, lambda net: interacting(searched, net))
    nets = list(every_architecture(searched))
    random.Random(0).shuffle(nets)
    corrected = prior.corrected(searched, {net: interacting(searched, net) for net in nets[:20]})

    def error(contributions: object) -> float:
        off = [contributions.percent(searched, net) - interacting(searched, net) for net in nets[20:]]  # type: ignore[attr-defined]
        return float(torch.tensor(off).square().mean())

    assert error(corrected) < 0.5 * error(prior)


def test_a_weaker_hold_follows_the_scores_more_closely() -> None:
    searched = space("maps")
    prior, net = drawn(searched, 0), searched.smallest
    wanted = prior.percent(searched, net) + 3.0
    errors = [
        abs(prior.corrected(searched, {net: wanted}, strength=strength).percent(searched, net) - wanted)
        for strength in (10.0, 1.0, 0.01)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.02


def test_no_scores_correct_nothing() -> None:
    searched = space("maps")
    assert drawn(searched, 0).corrected(searched, {}) == drawn(searched, 0)
