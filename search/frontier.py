"""Greedy slimming over the whole frontier: every legal single action is scored at every step.

The rule of EfficientFormerV2's search (arXiv:2212.08059; facts: EfficientFormer section 3.2): the least accuracy drop
per gain, where the gain is milliseconds saved, or what the Mobile Efficiency Score rises by. It needs no importance,
and scores as many architectures a step as there are actions.
"""

from __future__ import annotations

from collections.abc import Callable

from search.actions import (
    ChangeCandidate,
    DropFirst3D,
    NarrowStage,
    SkipPath,
    SlimmingAction,
    can_drop_token_block,
    narrower_width,
    other_candidates,
    skippable,
)
from search.efficiency import MobileEfficiency
from search.slimming import Latencies, Score, descend
from search.trajectory import Step, Trajectory
from supernet import Architecture, SearchSpace


def slim_frontier(
    space: SearchSpace,
    *,
    table: Latencies,
    score: Score,
    budget_ms: float,
    efficiency: MobileEfficiency | None,
    progress: Callable[[Step], None] = lambda step: None,
) -> Trajectory:
    """Slim from the largest architecture until the predicted latency is within the budget.

    At each step all of `legal_actions` that save time are scored, and the one of the smallest accuracy drop in points
    per gain is taken: per millisecond without an `efficiency`, otherwise per point of that score, and then an action
    must raise it too. Larger budgets lie on the way: `Trajectory.at(budget_ms)`.

    Raises `BudgetUnreachable`, before any scoring where the fastest architecture already is too slow, and `WalkEnded`,
    which is one, where no action leads to a net within the budget.
    """
    return descend(
        space,
        groups=lambda architecture: [[action] for action in legal_actions(space, architecture)],
        table=table,
        score=score,
        budget_ms=budget_ms,
        efficiency=efficiency,
        progress=progress,
    )


def legal_actions(space: SearchSpace, architecture: Architecture) -> list[SlimmingAction]:
    """Every single action that an architecture allows, in the order of the net.

    Those are: a MetaPath skipped, the first token block dropped, a stage narrowed by one width, and a block changed to
    another candidate on the same kind of input. Whether a change is to a cheaper one, the table knows.
    """
    actions: list[SlimmingAction] = [SkipPath(stage=s, block=b) for s, b in skippable(space, architecture)]
    if can_drop_token_block(space, architecture):
        actions.append(DropFirst3D())
    for stage in range(1, len(space.stages) + 1):
        width = narrower_width(space, architecture, stage)
        if width is not None:
            actions.append(NarrowStage(stage=stage, width_channels=width))
    for stage, block in space.positions:
        names = other_candidates(space, architecture, stage, block)
        actions += [ChangeCandidate(stage=stage, block=block, candidate=name) for name in names]
    return actions
