"""What any search must beat: uniform scaling of depth and width, and a random architecture, at the same latency."""

from __future__ import annotations

import torch

from search.slimming import BudgetUnreachable, Latencies, check_reachable
from supernet import Architecture, SearchSpace


def uniform_scaling(space: SearchSpace, *, table: Latencies, budget_ms: float, factors: int = 401) -> Architecture:
    """The slowest uniformly scaled architecture within the budget: one factor for depths, widths and token blocks.

    `factors` values from 0 to 1 are tried. Raises `BudgetUnreachable` if even the smallest is too slow.
    """
    candidates = (space.scaled(index / (factors - 1)) for index in range(factors))
    scaled = {architecture.digest: architecture for architecture in candidates}
    within = [(ms, a) for ms, a in ((table.latency_ms(a), a) for a in scaled.values()) if ms <= budget_ms]
    if not within:
        raise BudgetUnreachable(budget_ms, min(table.latency_ms(a) for a in scaled.values()))
    return max(within, key=lambda pair: pair[0])[1]


def random_architecture(
    space: SearchSpace,
    *,
    table: Latencies,
    budget_ms: float,
    generator: torch.Generator,
    tolerance: float = 0.03,
    tries: int = 5000,
) -> Architecture:
    """The first random architecture predicted within `tolerance` below the budget; after `tries`, the closest below.

    Raises `BudgetUnreachable` if none is below.
    """
    check_reachable(space, table=table, budget_ms=budget_ms)
    closest, closest_ms = space.smallest, table.latency_ms(space.smallest)
    for _ in range(tries):
        architecture = space.random(generator)
        latency_ms = table.latency_ms(architecture)
        if closest_ms < latency_ms <= budget_ms:
            closest, closest_ms = architecture, latency_ms
            if latency_ms >= (1 - tolerance) * budget_ms:
                break
    return closest
