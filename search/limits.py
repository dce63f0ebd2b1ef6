"""Limits: what an architecture may take at most of milliseconds, sizes and memory, each by its parts.

Everything that adds up over the parts of a net can be limited: milliseconds on several devices, parameters, MACs. So
can what grows with such a sum beyond a threshold, as latency does with weights and maps that no longer fit into a
cache, and what the largest part decides, as memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from search.latency_table import LatencyTable
from search.parts import LatencyKey, keys
from search.slimming import Unreachable, rounded_up
from supernet import Architecture

SLACK = 1e-12  # of a limit: what sums of the same numbers in another order may differ by


@dataclass(frozen=True)
class Beyond:
    """`each` for every unit by which the sum of `of` over the parts of a net exceeds `above`; neither is negative."""

    of: Callable[[LatencyKey], float]
    above: float
    each: float

    def used(self, architecture: Architecture) -> float:
        """What an architecture takes."""
        return self.each * max(0.0, sum(self.of(key) for key in keys(architecture)) - self.above)


@dataclass(frozen=True)
class Limit:
    """At most `at_most` for `constant`, the sum of `of` over the parts of a net, and `beyond`; `name` has the unit."""

    name: str
    of: Callable[[LatencyKey], float]
    at_most: float
    constant: float = 0.0
    beyond: Beyond | None = None

    def used(self, architecture: Architecture) -> float:
        """What an architecture takes of it."""
        beyond = 0.0 if self.beyond is None else self.beyond.used(architecture)
        return self.constant + sum(self.of(key) for key in keys(architecture)) + beyond

    def allows(self, value: float) -> bool:
        """Whether a value is within the limit, but for rounding."""
        return value <= self.at_most + SLACK * abs(self.at_most)


@dataclass(frozen=True)
class PartLimit:
    """At most `at_most` for `of` in every single part of a net; `name` has the unit."""

    name: str
    of: Callable[[LatencyKey], float]
    at_most: float

    def used(self, architecture: Architecture) -> float:
        """What an architecture's largest part takes of it."""
        return max(self.of(key) for key in keys(architecture))

    def allows(self, value: float) -> bool:
        """Whether a value is within the limit."""
        return value <= self.at_most


AnyLimit = Limit | PartLimit


def latency_limit(table: LatencyTable, at_most_ms: float, *, name: str = "ms") -> Limit:
    """At most so many ms by a table's prediction."""
    correction, beyond = table.correction, None
    if correction.crowding is not None:
        crowding = correction.crowding
        beyond = Beyond(lambda key: table.crowds(key) / 1e6, crowding.above_millions, crowding.ms_per_million)
    return Limit(name, of=table.part_ms, at_most=at_most_ms, constant=correction.constant_ms, beyond=beyond)


class LimitsUnreachable(Unreachable):
    """No architecture of the space is within the limits; `smallest` is the least that each alone can be brought to."""

    def __init__(self, limits: Sequence[AnyLimit], smallest: dict[str, float]) -> None:
        missed = [limit for limit in limits if not limit.allows(smallest[limit.name])]
        said = [
            f"{limit.name} at most {limit.at_most:g} (smallest: {rounded_up(smallest[limit.name])})" for limit in missed
        ]
        together = [f"{limit.name} at most {limit.at_most:g}" for limit in limits]
        super().__init__(
            f"no architecture of the space has {' and '.join(said)}"
            if said
            else f"no architecture of the space has {' and '.join(together)} at once"
        )
        self.smallest = smallest
