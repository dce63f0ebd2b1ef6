"""Latency-driven slimming as published: greedy over three actions a step, accuracy drop per millisecond saved.

`descend` is the greedy walk itself, which `search.frontier` takes over other actions and by another gain.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from search.actions import (
    ChangeCandidate,
    DropFirst3D,
    NarrowStage,
    SkipPath,
    SlimmingAction,
    apply,
    can_drop_token_block,
    narrower_width,
    skippable,
)
from search.efficiency import MobileEfficiency
from search.importance import Importance
from search.trajectory import Alternative, Step, Trajectory
from supernet import Architecture, SearchSpace, UserError

Score = Callable[[Architecture], float]
"""Held-out accuracy of an architecture in percent; see `scores_of` for one that can take several at once."""

TOLD_AHEAD = 8  # architectures at most, so that an interruption loses little

Groups = Callable[[Architecture], Iterable[Sequence[SlimmingAction]]]
"""The actions to consider at an architecture; of each group one is scored."""


class Latencies(Protocol):
    """What predicts latency: `search.latency_table.LatencyTable` does."""

    def latency_ms(self, architecture: Architecture) -> float:
        """The predicted latency of a whole model in milliseconds."""
        ...

    def fastest(self, space: SearchSpace) -> Architecture:
        """The architecture of a space that is predicted fastest."""
        ...


def rounded_up(value: float) -> str:
    """A whole number as it is, another one to four digits, never down: what is said to be in reach must be."""
    if value == math.floor(value):
        return f"{value:.0f}"
    digit = 10.0 ** (math.floor(math.log10(abs(value))) - 3)
    return f"{math.ceil(value / digit - 1e-9) * digit:.4g}"


class Unreachable(UserError):
    """No architecture of the space keeps to what was asked for."""


class BudgetUnreachable(Unreachable):
    """The budget is below what the space, or those of its architectures that `of` names, can reach on this device."""

    def __init__(
        self, budget_ms: float, smallest_ms: float, *, of: str = "the fastest architecture of the space"
    ) -> None:
        super().__init__(
            f"budget {budget_ms:g} ms is out of reach: {of} takes"
            f" {rounded_up(smallest_ms)} ms on this device; raise the budget, or allow smaller widths or skipped"
            " blocks"
        )
        self.budget_ms = budget_ms
        self.smallest_ms = smallest_ms
        self.of = of


class WalkEnded(BudgetUnreachable):
    """Greedy slimming ended above the budget, though the space has architectures within it."""

    def __init__(self, budget_ms: float, smallest_ms: float) -> None:
        UserError.__init__(
            self,
            f"budget {budget_ms:g} ms is out of reach of greedy slimming: its way ends at"
            f" {rounded_up(smallest_ms)} ms on this device, though the space has faster architectures; raise the"
            " budget, or search with the method exact",
        )
        self.budget_ms, self.smallest_ms, self.of = budget_ms, smallest_ms, "greedy slimming"


class BudgetMissed(BudgetUnreachable):
    """Nets were found that the table predicts within the budget, and every one of them measured above it."""

    def __init__(self, budget_ms: float, fastest_ms: float, *, rounds: int) -> None:
        UserError.__init__(
            self,
            f"budget {budget_ms:g} ms was missed {rounds} times: the fastest net that was tried measured"
            f" {rounded_up(fastest_ms)} ms, more than the table predicts; measure the table again on an idle"
            " machine, or raise the budget",
        )
        self.budget_ms, self.smallest_ms, self.of = budget_ms, fastest_ms, "the fastest net that was tried"


def scores_of(score: Score, architectures: Sequence[Architecture]) -> Iterator[float]:
    """The scores of architectures, in their order.

    A score with a method `ahead(architectures)` is told of the next few before it is asked for them one by one.
    """
    ahead = getattr(score, "ahead", None)
    for start in range(0, len(architectures), TOLD_AHEAD):
        some = architectures[start : start + TOLD_AHEAD]
        if ahead is not None:
            ahead(some)
        yield from map(score, some)


def check_reachable(space: SearchSpace, *, table: Latencies, budget_ms: float) -> Architecture:
    """An architecture predicted within the budget: the smallest or, where that is not, the fastest.

    Raises `BudgetUnreachable` if even the fastest is not.
    """
    if table.latency_ms(space.smallest) <= budget_ms:
        return space.smallest
    fastest = table.fastest(space)
    if table.latency_ms(fastest) > budget_ms:
        raise BudgetUnreachable(budget_ms, table.latency_ms(fastest))
    return fastest


def slim(
    space: SearchSpace,
    *,
    importance: Importance,
    table: Latencies,
    score: Score,
    budget_ms: float,
    progress: Callable[[Step], None] = lambda step: None,
) -> Trajectory:
    """Slim from the largest architecture until the predicted latency is within the budget.

    At each step three actions are considered: identity at the least important MetaPath, the first token block
    dropped, the least important stage narrowed by one width (facts: EfficientFormer section 4.2; abbreviated there
    DR, MR, WR). Each is scored by its accuracy drop in points per millisecond saved by the table, and the smallest
    is taken. An action that saves nothing gives way to the next least important one of its kind. A stage's
    importance is the sum over the blocks it still has. Larger budgets lie on the way: `Trajectory.at(budget_ms)`.

    Raises `BudgetUnreachable`, before any scoring where the fastest architecture already is too slow, and `WalkEnded`,
    which is one, where these actions do not lead to a net within the budget.
    """

    def groups(architecture: Architecture) -> tuple[list[SlimmingAction], ...]:
        return (
            _skips(space, architecture, importance),
            [DropFirst3D()] if can_drop_token_block(space, architecture) else [],
            _narrowings(space, architecture, importance),
        )

    return descend(
        space, groups=groups, table=table, score=score, budget_ms=budget_ms, efficiency=None, progress=progress
    )


def descend(
    space: SearchSpace,
    *,
    groups: Groups,
    table: Latencies,
    score: Score,
    budget_ms: float,
    efficiency: MobileEfficiency | None,
    progress: Callable[[Step], None],
) -> Trajectory:
    """Take the action that loses least per gain, from the largest architecture on, until the budget is met.

    Of each group the first action that saves time is scored, and that raises the `efficiency` where there is one. The
    gain is the rise of that, or else milliseconds. Where no action saves time, as an uncertain table can have it above
    the smallest architecture, the one that makes the net smaller and is predicted fastest is taken all the same. So
    either latency or size falls with every step, and the walk ends.

    Raises `BudgetUnreachable`, before any scoring where the fastest architecture already is too slow, and `WalkEnded`,
    which is one, where there is no action left.
    """
    check_reachable(space, table=table, budget_ms=budget_ms)
    architecture = space.largest
    steps = [_first_step(architecture, table=table, accuracy_percent=score(architecture))]
    progress(steps[0])
    while steps[-1].latency_ms > budget_ms:
        current = steps[-1]
        options = list(_options(space, current, groups=groups, table=table, efficiency=efficiency))
        if not options:
            rise = _over_the_rise(space, current.architecture, groups=groups, table=table)
            if rise is None:
                raise WalkEnded(budget_ms, min(step.latency_ms for step in steps))
            options = [rise]
        scores = scores_of(score, [option.architecture for option in options])
        offers = [
            (option.at(percent, current), option.architecture) for option, percent in zip(options, scores, strict=True)
        ]
        best = min(offers, key=lambda offer: (offer[0].drop_per_gain or 0.0, offer[0].latency_ms))
        steps.append(_next_step(current, best, [alternative for alternative, _ in offers]))
        progress(steps[-1])
    return Trajectory(steps=tuple(steps))


def _first_step(architecture: Architecture, *, table: Latencies, accuracy_percent: float) -> Step:
    return Step(
        step=0,
        action=None,
        architecture=architecture,
        digest=architecture.digest,
        latency_ms=table.latency_ms(architecture),
        accuracy_percent=accuracy_percent,
        saved_ms=0.0,
        accuracy_drop_points=0.0,
        alternatives=(),
    )


@dataclass(frozen=True)
class _Option:
    """An action that gains something, what it leads to, and what that is predicted to take."""

    action: SlimmingAction
    architecture: Architecture
    latency_ms: float
    mes_gain: float | None

    def at(self, accuracy_percent: float, current: Step) -> Alternative:
        """The option with what it loses against the current step."""
        saved_ms = current.latency_ms - self.latency_ms
        drop_points = current.accuracy_percent - accuracy_percent
        return Alternative(
            action=self.action,
            latency_ms=self.latency_ms,
            saved_ms=saved_ms,
            accuracy_percent=accuracy_percent,
            accuracy_drop_points=drop_points,
            drop_per_ms=drop_points / saved_ms if saved_ms > 0 else None,
            mes_gain=self.mes_gain,
            drop_per_mes=None if self.mes_gain is None else drop_points / self.mes_gain,
            chosen=False,
            reason=None,
        )


def _options(
    space: SearchSpace, current: Step, *, groups: Groups, table: Latencies, efficiency: MobileEfficiency | None
) -> Iterator[_Option]:
    """Of each group the first action that the table says saves time, and the efficiency, if any, gains by."""
    before = None if efficiency is None else efficiency.of(current.architecture, latency_ms=current.latency_ms)
    for actions in groups(current.architecture):
        for action in actions:
            smaller = apply(action, current.architecture, space=space)
            latency_ms, mes_gain = table.latency_ms(smaller), None
            if efficiency is not None and before is not None:
                mes_gain = efficiency.of(smaller, latency_ms=latency_ms) - before
            if latency_ms < current.latency_ms and (mes_gain is None or mes_gain > 0):
                yield _Option(action, smaller, latency_ms, mes_gain)
                break


def _over_the_rise(
    space: SearchSpace, architecture: Architecture, *, groups: Groups, table: Latencies
) -> _Option | None:
    """The action that makes a net smaller and is predicted fastest, though it saves nothing; None at the smallest."""
    shrinking = (a for actions in groups(architecture) for a in actions if not isinstance(a, ChangeCandidate))
    smaller = [(action, apply(action, architecture, space=space)) for action in shrinking]
    options = [_Option(action, net, table.latency_ms(net), mes_gain=None) for action, net in smaller]
    return min(options, key=lambda option: option.latency_ms, default=None)


def _skips(space: SearchSpace, architecture: Architecture, importance: Importance) -> list[SlimmingAction]:
    positions = sorted(skippable(space, architecture), key=lambda position: importance.of(*position))
    return [SkipPath(stage=stage, block=block) for stage, block in positions]


def _narrowings(space: SearchSpace, architecture: Architecture, importance: Importance) -> list[SlimmingAction]:
    def stage_score(stage: int) -> float:
        blocks = enumerate(space.choices(architecture)[stage - 1], start=1)
        scores = [importance.of(stage, block) for block, candidate in blocks if not candidate.is_identity]
        return sum(scores)

    actions: list[SlimmingAction] = []
    for stage in sorted(range(1, len(space.stages) + 1), key=stage_score):
        width = narrower_width(space, architecture, stage)
        if width is not None:
            actions.append(NarrowStage(stage=stage, width_channels=width))
    return actions


def _next_step(current: Step, best: tuple[Alternative, Architecture], alternatives: list[Alternative]) -> Step:
    taken, architecture = best
    unit = "ms" if taken.drop_per_mes is None else "MES"
    record = []
    for alternative in alternatives:
        chosen = alternative is taken
        loses, least = alternative.drop_per_gain, taken.drop_per_gain
        reason = None if chosen else f"loses {loses:+.3g} points per {unit}, not {least:+.3g}"
        record.append(alternative.model_copy(update={"chosen": chosen, "reason": reason}))
    return Step(
        step=current.step + 1,
        action=taken.action,
        architecture=architecture,
        digest=architecture.digest,
        latency_ms=taken.latency_ms,
        accuracy_percent=taken.accuracy_percent,
        saved_ms=taken.saved_ms,
        accuracy_drop_points=taken.accuracy_drop_points,
        alternatives=tuple(record),
    )
