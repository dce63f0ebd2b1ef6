"""Baselines: the largest uniform scaling and a random architecture within a budget, and none above it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from search.baselines import random_architecture, uniform_scaling
from search.slimming import BudgetUnreachable
from supernet.space import SearchSpace


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def budgets(space: SearchSpace, table: Any) -> list[float]:
    smallest, largest = table.latency_ms(space.scaled(0.0)), table.latency_ms(space.largest)
    return [smallest + share * (largest - smallest) for share in (0.0, 0.2, 0.45, 0.7, 0.99, 1.0, 1.5)]


def test_uniform_scaling_is_the_slowest_scaled_architecture_within_the_budget(space: SearchSpace, table: Any) -> None:
    scaled = {a.digest: table.latency_ms(a) for a in (space.scaled(percent / 400) for percent in range(401))}
    for budget_ms in budgets(space, table):
        found = uniform_scaling(space, table=table, budget_ms=budget_ms)
        assert found.digest in scaled
        assert table.latency_ms(found) == max(ms for ms in scaled.values() if ms <= budget_ms)


def test_uniform_scaling_to_a_budget_above_the_largest_is_the_largest(space: SearchSpace, table: Any) -> None:
    assert uniform_scaling(space, table=table, budget_ms=100.0) == space.largest


def test_a_budget_below_every_scaled_architecture_is_refused_with_the_smallest(space: SearchSpace, table: Any) -> None:
    # the smallest architecture of the space skips every block, a scaled one keeps one a stage
    smallest_ms = table.latency_ms(space.scaled(0.0))
    assert smallest_ms > table.latency_ms(space.smallest)
    with pytest.raises(BudgetUnreachable) as refused:
        uniform_scaling(space, table=table, budget_ms=smallest_ms - 0.01)
    assert refused.value.smallest_ms == smallest_ms


def test_a_random_architecture_is_within_the_budget_and_near_it(space: SearchSpace, table: Any) -> None:
    for seed, budget_ms in enumerate(budgets(space, table)[1:5]):
        found = random_architecture(space, table=table, budget_ms=budget_ms, generator=generator(seed), tolerance=0.05)
        space.check(found)
        assert 0.95 * budget_ms <= table.latency_ms(found) <= budget_ms


def test_a_random_architecture_is_a_function_of_the_generator(space: SearchSpace, table: Any) -> None:
    first, again, other = (
        random_architecture(space, table=table, budget_ms=3.5, generator=generator(seed), tolerance=0.2)
        for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other


def test_after_its_tries_the_closest_below_is_taken(space: SearchSpace, table: Any) -> None:
    budget_ms = 3.5
    drawn, shared = [], generator(5)
    for _ in range(7):
        drawn.append(table.latency_ms(space.random(shared)))
    found = random_architecture(space, table=table, budget_ms=budget_ms, generator=generator(5), tolerance=0.0, tries=7)
    assert table.latency_ms(found) == max(ms for ms in drawn if ms <= budget_ms)
    barely_ms = table.latency_ms(space.smallest)
    nothing_else = random_architecture(space, table=table, budget_ms=barely_ms, generator=generator(0), tries=3)
    assert nothing_else == space.smallest


def test_a_random_architecture_below_the_smallest_is_refused(space: SearchSpace, table: Any) -> None:
    smallest_ms = table.latency_ms(space.smallest)
    with pytest.raises(BudgetUnreachable) as refused:
        random_architecture(space, table=table, budget_ms=smallest_ms - 0.01, generator=generator(0))
    assert refused.value.smallest_ms == smallest_ms
