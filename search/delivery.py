"""Closing the loop: a model is delivered only when the whole net, measured, is within its budget."""

from __future__ import annotations

from collections.abc import Callable

from search.slimming import BudgetMissed, BudgetUnreachable
from supernet import Architecture
from supernet.schema import Record


class DeliveryRound(Record):
    """One try: the budget that was asked of the table, and what the whole net measured; null where nothing measures."""

    asked_ms: float
    digest: str
    predicted_ms: float
    measured_ms: float | None


class Delivery(Record):
    """An architecture within its budget, by measurement where there is one, and the rounds that it took."""

    budget_ms: float
    architecture: Architecture
    rounds: tuple[DeliveryRound, ...]

    @property
    def measured_ms(self) -> float | None:
        """The measured latency of the delivered net."""
        return self.rounds[-1].measured_ms


def deliver(
    *,
    budget_ms: float,
    margin: float,
    solve: Callable[[float], Architecture],
    predict_ms: Callable[[Architecture], float],
    measure_ms: Callable[[Architecture], float] | None,
    ask_at_most_ms: float | None = None,
    max_rounds: int = 8,
) -> Delivery:
    """Solve, measure the whole net, correct the table by the measured ratio, and solve again until it fits.

    `solve(asked_ms)` gives an architecture predicted within `asked_ms`; correcting every prediction by a ratio is
    the same as asking for the budget divided by it. The net must measure within (1 - margin) of the budget, so that
    the day's drift does not push it over. `ask_at_most_ms` starts lower, after an earlier net was too slow. Without
    `measure_ms` the first net is delivered: its prediction is all there is. Raises `BudgetUnreachable` when the space
    is exhausted, and `BudgetMissed`, which is one, when the rounds are.
    """
    goal_ms = (1.0 - margin) * budget_ms
    asked_ms = goal_ms if ask_at_most_ms is None else min(goal_ms, ask_at_most_ms)
    rounds: list[DeliveryRound] = []
    measured: dict[str, float] = {}
    while len(rounds) < max_rounds:
        try:
            architecture = solve(asked_ms)
        except BudgetUnreachable as reason:  # of what was asked of the table; say it of the budget
            raise BudgetUnreachable(budget_ms, reason.smallest_ms * budget_ms / asked_ms) from None
        key, predicted_ms = architecture.digest, predict_ms(architecture)
        if measure_ms is None:
            only = DeliveryRound(asked_ms=asked_ms, digest=key, predicted_ms=predicted_ms, measured_ms=None)
            return Delivery(budget_ms=budget_ms, architecture=architecture, rounds=(only,))
        if key not in measured:
            measured[key] = measure_ms(architecture)
        rounds.append(
            DeliveryRound(asked_ms=asked_ms, digest=key, predicted_ms=predicted_ms, measured_ms=measured[key])
        )
        if measured[key] <= goal_ms:
            return Delivery(budget_ms=budget_ms, architecture=architecture, rounds=tuple(rounds))
        # The corrected table says predicted * ratio; ask for less than this net in any case.
        asked_ms = min(goal_ms * predicted_ms / measured[key], predicted_ms * (1 - 1e-9))
    raise BudgetMissed(budget_ms, min(measured.values()), rounds=len(rounds))
