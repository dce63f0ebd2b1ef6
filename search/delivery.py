"""Closing the loop: a model is delivered only when the whole net, measured, is within its budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from search.slimming import BudgetMissed, BudgetUnreachable, Unreachable, WalkEnded
from supernet import Architecture
from supernet.schema import Record

LESS = 1e-5  # of a prediction: so much less is asked for after a net that was too slow; solvers miss a limit by 1e-6


class DeliveryRound(Record):
    """One try: the budget that was asked of the table, and what the whole net measured; null where nothing measures."""

    asked_ms: float
    digest: str
    predicted_ms: float
    measured_ms: float | None


class Delivery(Record):
    """An architecture within its budget, by measurement where there is one, and the rounds that it took.

    `shortfall` says why it is faster than it had to be, where it measures more than `slack` below the budget.
    """

    budget_ms: float
    architecture: Architecture
    rounds: tuple[DeliveryRound, ...]
    shortfall: str | None = None

    @property
    def delivered(self) -> DeliveryRound:
        """The round that found the architecture."""
        return next(round_ for round_ in self.rounds if round_.digest == self.architecture.digest)

    @property
    def measured_ms(self) -> float | None:
        """The measured latency of the delivered net."""
        return self.delivered.measured_ms


def deliver(
    *,
    budget_ms: float,
    margin: float,
    solve: Callable[[float], Architecture],
    predict_ms: Callable[[Architecture], float],
    measure_ms: Callable[[Architecture], float] | None,
    slack: float = 1.0,
    ask_at_most_ms: float | None = None,
    max_rounds: int = 8,
) -> Delivery:
    """Solve, measure the whole net, correct the table by the measured ratio, and solve again until it fits.

    `solve(asked_ms)` gives an architecture predicted within `asked_ms`; correcting every prediction by a ratio is
    the same as asking for the budget divided by it. The net must measure within (1 - margin) of the budget, so that
    the day's drift does not push it over. One that measures more than `slack` of that below it leaves room, so more is
    asked for, as long as it leads to another net; the slowest that fits is delivered. `ask_at_most_ms` starts lower,
    after an earlier net was too slow. Without `measure_ms` the first net is delivered: its prediction is all there is.
    Raises `BudgetUnreachable` when the space is exhausted, `BudgetMissed`, which is one, when the rounds are, and what
    `solve` raises of its own.
    """
    goal_ms = (1.0 - margin) * budget_ms
    ceiling_ms = math.inf if ask_at_most_ms is None else ask_at_most_ms  # below what is known to be too slow
    asked_ms = min(goal_ms, ceiling_ms)
    rounds: list[DeliveryRound] = []
    fitting: dict[str, Architecture] = {}
    while len(rounds) < max_rounds:
        try:
            architecture = solve(asked_ms)
        except Unreachable as reason:
            if fitting:
                break
            if not isinstance(reason, BudgetUnreachable):
                raise
            # that was said of what was asked of the table; say it of the budget
            smallest_ms = reason.smallest_ms * budget_ms / asked_ms
            if isinstance(reason, WalkEnded):
                raise WalkEnded(budget_ms, smallest_ms) from None
            raise BudgetUnreachable(budget_ms, smallest_ms, of=reason.of) from None
        key, predicted_ms = architecture.digest, predict_ms(architecture)
        known = next((round_ for round_ in rounds if round_.digest == key), None)
        if known is not None and fitting:
            break  # there is no net between one that fits and one that does not
        measured_ms = None
        if measure_ms is not None:
            measured_ms = measure_ms(architecture) if known is None else known.measured_ms
        rounds.append(DeliveryRound(asked_ms=asked_ms, digest=key, predicted_ms=predicted_ms, measured_ms=measured_ms))
        if measured_ms is None:
            return Delivery(budget_ms=budget_ms, architecture=architecture, rounds=tuple(rounds))
        corrected_ms = goal_ms * predicted_ms / measured_ms
        if measured_ms > goal_ms:  # ask for less than this net in any case
            ceiling_ms = min(ceiling_ms, predicted_ms * (1 - LESS))
        else:
            fitting[key] = architecture
            if measured_ms >= (1.0 - slack) * goal_ms:
                break
        asked_ms = min(corrected_ms, ceiling_ms)
    if not fitting:
        raise BudgetMissed(budget_ms, min(round_.measured_ms or math.inf for round_ in rounds), rounds=len(rounds))
    slowest = max((round_ for round_ in rounds if round_.digest in fitting), key=lambda round_: round_.measured_ms or 0)
    shortfall, measured_ms = None, slowest.measured_ms or 0.0
    if measured_ms < (1.0 - slack) * budget_ms:
        why = f"a margin of {100 * margin:g} % is kept free, and up to {100 * slack:g} % of the rest"
        if measured_ms < (1.0 - slack) * goal_ms:
            why = _above(rounds, goal_ms, asked_ms, used_up=len(rounds) == max_rounds)
        shortfall = f"{100 * (1 - measured_ms / budget_ms):.1f} % below the budget: {why}"
    return Delivery(
        budget_ms=budget_ms, architecture=fitting[slowest.digest], rounds=tuple(rounds), shortfall=shortfall
    )


def _above(rounds: Sequence[DeliveryRound], goal_ms: float, asked_ms: float, *, used_up: bool) -> str:
    """What a method gave above the net that is delivered, when last it was asked for nets of up to `asked_ms`."""
    too_slow = [ms for round_ in rounds if (ms := round_.measured_ms or 0.0) > goal_ms]
    if too_slow:
        return f"the next slower net that the method gave measures {min(too_slow):.4g} ms"
    if used_up:
        return f"there were no more than {len(rounds)} rounds"
    return f"the method gives no slower net that is predicted to take at most {asked_ms:.4g} ms"
