"""Solving, scoring and correcting in turn."""

from __future__ import annotations

import random

import pytest

from search.contributions import removal_contributions
from search.exact import solve
from search.limits import Limit, LimitsUnreachable
from search.refining import neighbours_of, refined
from supernet import Architecture, SearchSpace
from tests.search.test_exact import SHAPES, drawn, every_architecture, priced, space


class Scores:
    """A score that does not quite add up: every architecture has a part of its own. Counts what it is asked."""

    def __init__(self, searched: SearchSpace, *, interaction: float) -> None:
        self.searched, self.interaction, self.asked = searched, interaction, 0
        self.truth = drawn(searched, 3)

    def __call__(self, net: Architecture) -> float:
        self.asked += 1
        noise = random.Random(net.digest).gauss(0, 1)
        return self.truth.percent(self.searched, net) + self.interaction * noise


def limit_at(searched: SearchSpace, share: float) -> Limit:
    of = priced(searched, 3)
    costs = sorted(Limit("ms", of, 0.0).used(net) for net in every_architecture(searched))
    return Limit("ms", of, costs[int(share * (len(costs) - 1))])


@pytest.mark.parametrize("name", ["maps", "tokens last", "tokens in two stages"])
def test_a_score_that_does_not_add_up_is_searched_better_than_by_its_contributions(name: str) -> None:
    searched = space(name)
    score = Scores(searched, interaction=0.7)
    prior = removal_contributions(searched, score)
    limit = limit_at(searched, 0.5)
    scored: dict[Architecture, float] = {}
    found = refined(searched, prior, score=score, limits=[limit], scored=scored)
    assert limit.allows(limit.used(found))
    assert scored[found] == max(percent for net, percent in scored.items() if limit.allows(limit.used(net)))
    assert scored[found] >= score(solve(searched, prior, [limit]).architecture)
    within = [score(net) for net in every_architecture(searched) if limit.allows(limit.used(net))]
    better = sum(percent > scored[found] for percent in within)
    assert better < 0.1 * len(within)


def test_a_score_that_adds_up_needs_one_round() -> None:
    searched = space("maps")
    score = Scores(searched, interaction=0.0)
    prior = removal_contributions(searched, score)
    score.asked = 0
    limit = limit_at(searched, 0.4)
    found = refined(searched, prior, score=score, limits=[limit], scored={}, neighbours=2)
    assert found == solve(searched, prior, [limit]).architecture
    assert score.asked == 3


def test_what_was_scored_is_not_scored_again() -> None:
    searched = space("maps")
    score = Scores(searched, interaction=1.0)
    prior, limit = removal_contributions(searched, score), limit_at(searched, 0.5)
    scored: dict[Architecture, float] = {}
    first = refined(searched, prior, score=score, limits=[limit], scored=scored)
    score.asked = 0
    assert refined(searched, prior, score=score, limits=[limit], scored=scored, rounds=1) == first
    assert score.asked <= 5


def test_limits_out_of_reach_are_refused() -> None:
    searched = space("maps")
    limits = [Limit("ms", priced(searched, 0), 0.01)]
    with pytest.raises(LimitsUnreachable):
        refined(searched, drawn(searched, 0), score=lambda net: 0.0, limits=limits, scored={})


@pytest.mark.parametrize("name", SHAPES)
def test_neighbours_are_all_legal_architectures_with_one_choice_changed(name: str) -> None:
    searched = space(name)
    nets = {net.digest: net for net in every_architecture(searched)}
    here = searched.largest

    def distance(net: Architecture) -> int:
        widths = [
            abs(searched.widths(n).index(a.width_channels) - searched.widths(n).index(b.width_channels))
            for n, (a, b) in enumerate(zip(net.stages, here.stages, strict=True), start=1)
        ]
        pairs = zip(searched.choices(net), searched.choices(here), strict=True)
        return sum(widths) + sum(a != b for mine, theirs in pairs for a, b in zip(mine, theirs, strict=True))

    found = [net.digest for net in neighbours_of(searched, here)]
    assert sorted(found) == sorted(digest for digest, net in nets.items() if distance(net) == 1)
