"""What any search must beat: uniform scaling of depth and width, and a random architecture, at the same latency."""

from __future__ import annotations

import torch

from search.slimming import BudgetUnreachable, Latencies, check_reachable
from supernet import Architecture, SearchSpace


def uniform_scaling(space: SearchSpace, *, table: Latencies, budget_ms: float) -> Architecture:
    """The slowest uniformly scaled architecture within the budget: one factor for depths, widths and token blocks.

    Raises `BudgetUnreachable` if even the fastest of them is too slow.
    """
    scaled = [(table.latency_ms(architecture), architecture) for architecture in space.uniformly_scaled]
    within = [(ms, architecture) for ms, architecture in scaled if ms <= budget_ms]
    if not within:
        least_ms = min(ms for ms, _ in scaled)
        raise BudgetUnreachable(budget_ms, least_ms, of="the fastest uniformly scaled architecture")
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
    closest = check_reachable(space, table=table, budget_ms=budget_ms)
    closest_ms = table.latency_ms(closest)
    for _ in range(tries):
        architecture = space.random(generator)
        latency_ms = table.latency_ms(architecture)
        if closest_ms < latency_ms <= budget_ms:
            closest, closest_ms = architecture, latency_ms
            if latency_ms >= (1 - tolerance) * budget_ms:
                break
    return closest
