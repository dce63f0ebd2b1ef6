"""Front: architectures that were scored, of which each budget has its best."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from search.slimming import BudgetUnreachable
from supernet import Architecture


class Scored(NamedTuple):
    """An architecture, its score in percent and its predicted latency in ms."""

    architecture: Architecture
    percent: float
    latency_ms: float


@dataclass(frozen=True)
class Front:
    """What a search scored, in the order in which it did; those that no other beats are the front itself."""

    scored: tuple[Scored, ...]

    def at(self, budget_ms: float) -> Scored | None:
        """The best-scored within a latency, of equal ones the faster; None where there is none."""
        within = [found for found in self.scored if found.latency_ms <= budget_ms]
        return max(within, key=_rank, default=None)

    def within(self, budget_ms: float) -> Architecture:
        """The architecture that is there `at` a budget. Raises `BudgetUnreachable`."""
        best = self.at(budget_ms)
        if best is None:
            least_ms = min((found.latency_ms for found in self.scored), default=budget_ms)
            raise BudgetUnreachable(budget_ms, least_ms, of="the fastest architecture that was scored")
        return best.architecture


def _rank(found: Scored) -> tuple[float, float, str]:
    return found.percent, -found.latency_ms, found.architecture.digest
