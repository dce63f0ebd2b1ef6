"""Random search at equal cost: what every search must beat."""

from __future__ import annotations

from collections.abc import Callable

import torch

from search.front import Front, Scored
from search.slimming import Latencies, Score, check_reachable, scores_of
from supernet import Architecture, SearchSpace

DRAWS_A_NET = 200  # for each net that is scored, at most ...
KNOWN_A_NET = 20  # ... and until so many in a row were drawn before: a small space has no others
TOLERANCE = 0.05  # how far below the budget the nets are, as a share of it


def random_search(
    space: SearchSpace,
    *,
    table: Latencies,
    score: Score,
    budget_ms: float,
    trials: int,
    generator: torch.Generator,
    tolerance: float = TOLERANCE,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Front:
    """Score `trials` different random architectures predicted within `tolerance` below the budget.

    Where the space has not that many there, they are the slowest of those drawn within the budget. Raises
    `BudgetUnreachable` if none is below.
    """
    reached = check_reachable(space, table=table, budget_ms=budget_ms)
    drawn: dict[Architecture, float] = {reached: table.latency_ms(reached)}
    near = known = 0
    for _ in range(DRAWS_A_NET * trials):
        if near >= trials or known >= KNOWN_A_NET * trials:
            break
        architecture = space.random(generator)
        known += 1
        if architecture not in drawn:
            known = 0
            drawn[architecture] = table.latency_ms(architecture)
            near += (1 - tolerance) * budget_ms <= drawn[architecture] <= budget_ms
    slowest = sorted(
        ((net, ms) for net, ms in drawn.items() if ms <= budget_ms), key=lambda found: (-found[1], found[0].digest)
    )
    scored = []
    taken = slowest[:trials]
    for (net, ms), percent in zip(taken, scores_of(score, [net for net, _ in taken]), strict=True):
        scored.append(Scored(net, percent, ms))
        progress(len(scored), len(taken))
    return Front(tuple(scored))
