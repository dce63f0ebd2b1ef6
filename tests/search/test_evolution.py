"""Evolution and random search: legal architectures, repeatable, resumable, shared by workers, better than chance."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from search.evolution import decoded, encoded, evolve
from search.front import Front, Scored
from search.random_search import random_search
from search.slimming import BudgetUnreachable
from supernet.architecture import Architecture
from supernet.block_types import Identity
from supernet.space import SearchSpace, WidthRange


def score(architecture: Architecture) -> float:
    """Wide late stages and early blocks are worth most; what is worth something costs something (`SizeTable`)."""
    total = 0.0
    for number, stage in enumerate(architecture.stages, start=1):
        total += 0.02 * number * stage.width_channels
        total += sum(
            3.0 / (number + position) for position, b in enumerate(stage.blocks) if not isinstance(b, Identity)
        )
    return total


class PowerCut(BaseException):
    """Ends a search as a signal does."""


@pytest.fixture
def search(space: SearchSpace, table: Any) -> Callable[..., list[Scored]]:
    """Evolves with a few trials; options change it."""

    def evolved(**options: Any) -> list[Scored]:
        settings = {"table": table, "score": score, "most_ms": 4.5, "trials": 24, "population": 8, "seed": 0}
        return list(evolve(space, **settings | options).scored)

    return evolved


def test_an_architecture_survives_its_encoding(space: SearchSpace) -> None:
    generator = torch.Generator().manual_seed(0)
    for net in (space.largest, space.smallest, *(space.random(generator) for _ in range(50))):
        assert decoded(space, encoded(space, net)) == net


def test_any_parameters_stand_for_a_legal_architecture(space: SearchSpace) -> None:
    generator = torch.Generator().manual_seed(0)
    repaired = 0
    for _ in range(200):
        params: dict[str, Any] = {}
        for number in range(1, len(space.stages) + 1):
            params[f"width {number}"] = int(torch.randint(len(space.widths(number)), (), generator=generator))
        for stage, block in space.positions:
            names = [candidate.name for candidate in space.candidates(stage)]
            params[f"block {stage}.{block}"] = names[int(torch.randint(len(names), (), generator=generator))]
        net = decoded(space, params)
        space.check(net)
        repaired += encoded(space, net) != params
    assert 0 < repaired < 200  # a token block before a map block


@pytest.mark.parametrize("sampler", ["nsga2", "nsga3", "tpe"])
def test_the_same_seed_gives_the_same_trials_and_another_gives_others(
    search: Callable[..., list[Scored]], sampler: str
) -> None:
    first = search(sampler=sampler)
    assert len(first) == 24
    assert search(sampler=sampler) == first
    assert search(sampler=sampler, seed=1) != first


@pytest.mark.parametrize(
    "cut", [1, pytest.param(5, marks=pytest.mark.long), pytest.param(8, marks=pytest.mark.long), 13]
)
def test_an_interrupted_search_goes_on_to_the_same_trials(
    search: Callable[..., list[Scored]], tmp_path: Path, cut: int
) -> None:
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    scored: list[Architecture] = []

    def interrupted(architecture: Architecture) -> float:
        scored.append(architecture)
        if len(scored) == cut:
            raise PowerCut
        return score(architecture)

    with pytest.raises(PowerCut):
        search(score=interrupted, storage=storage)
    again: list[Architecture] = []

    def counted(architecture: Architecture) -> float:
        again.append(architecture)
        return score(architecture)

    whole = search()
    assert search(score=counted, storage=storage) == whole
    assert len(again) == 24 - (cut - 1)
    assert search(score=counted, storage=storage) == whole  # and a finished one is not searched again
    assert len(again) == 24 - (cut - 1)


def test_evolution_finds_better_ones_than_as_many_random_architectures(space: SearchSpace, table: Any) -> None:
    stages = tuple(
        stage.model_copy(update={"depth": 5, "width_channels": WidthRange(smallest=16, largest=160)})
        for stage in space.stages
    )
    large = space.model_copy(update={"stages": stages})
    found, drawn = [], []
    for seed in range(3):
        front = evolve(large, table=table, score=score, most_ms=5.0, trials=150, population=20, seed=seed)
        found.append(score(front.within(5.0)))
        generator = torch.Generator().manual_seed(seed)
        nets = [large.random(generator) for _ in range(150)]
        drawn.append(max(score(net) for net in nets if table.latency_ms(net) <= 5.0))
    assert min(found) > max(drawn)


def test_what_is_delivered_is_within_the_budget_and_the_best_there(search: Callable[..., list[Scored]]) -> None:
    scored = search()
    for budget_ms in (2.5, 3.5, 4.5):
        best = Front(tuple(scored)).within(budget_ms)
        (found,) = {one for one in scored if one.architecture == best}
        assert found.latency_ms <= budget_ms
        assert found.percent == max(one.percent for one in scored if one.latency_ms <= budget_ms)


def test_a_budget_below_the_smallest_is_refused_before_anything_is_scored(
    space: SearchSpace, table: Any, search: Callable[..., list[Scored]]
) -> None:
    def never(architecture: Architecture) -> float:
        raise AssertionError

    too_little = 0.9 * table.latency_ms(space.smallest)
    with pytest.raises(BudgetUnreachable):
        search(score=never, most_ms=too_little)
    with pytest.raises(BudgetUnreachable):
        random_search(
            space, table=table, score=never, budget_ms=too_little, trials=3, generator=torch.Generator().manual_seed(0)
        )
    with pytest.raises(BudgetUnreachable, match="out of reach"):
        Front(tuple(search())).within(too_little)


def test_random_search_scores_so_many_different_ones_close_below_the_budget(space: SearchSpace, table: Any) -> None:
    seen: list[Architecture] = []

    def counted(architecture: Architecture) -> float:
        seen.append(architecture)
        return score(architecture)

    found = [
        random_search(
            space,
            table=table,
            score=counted,
            budget_ms=4.0,
            trials=15,
            generator=torch.Generator().manual_seed(seed),
            tolerance=0.1,
        ).scored
        for seed in (0, 0, 1)
    ]
    assert found[0] == found[1] != found[2]
    assert len(seen) == 45
    assert len({one.architecture for one in found[0]}) == 15
    assert all(3.6 <= one.latency_ms <= 4.0 for one in found[0])
