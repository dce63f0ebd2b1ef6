"""Agreement: how far two latency tables of one space, measured under one condition, differ.

The later table may be of a machine that was slower throughout; that common factor is divided out. What is left is what
a table that is measured again would answer differently.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from search.latency_table import LatencyTable
from search.parts import LatencyKey
from supernet.architecture import Architecture
from supernet.schema import Record, UserError


class Differences(Record):
    """Absolute differences, the common factor divided out, in percent; each counts with its weight."""

    mean_percent: float
    median_percent: float
    within_3_percent: float
    worst_percent: float


class EntryDifference(Record):
    """One entry in both tables, the second at the speed of the first."""

    entry: str
    first_ms: float
    second_ms: float
    difference_percent: float


class Agreement(Record):
    """Two tables against each other, of which the second took `speed` times as long, the median over whole nets.

    `nets` are predictions of random whole nets, each table with its own correction, `uncorrected` the sums of entries
    alone. `entries` are weighted by what they take in the first table, because those of some microseconds change no
    net; `worst_entry` is the one with the largest difference in ms. `drift` is that of the two tables' rounds, where it
    was noted down.
    """

    schema_version: Literal[1] = 1
    environment: str
    dates: tuple[str, str]
    drift: tuple[tuple[float, float] | None, tuple[float, float] | None]
    speed: float
    num_architectures: int
    nets: Differences
    uncorrected: Differences
    num_entries: int
    entries: Differences
    worst_entry: EntryDifference


def agreement(first: LatencyTable, second: LatencyTable, nets: Sequence[Architecture]) -> Agreement:
    """Compare two tables entry by entry, and by these whole nets.

    Raises `UserError` for tables of two conditions or two spaces, and `ValueError` without nets.
    """
    if not nets:
        raise ValueError("tables are compared by at least one net")
    check_comparable(first, second)
    sums = np.array([[sum(table.kinds_ms(net).values()) for table in (first, second)] for net in nets])
    corrected = np.array([[table.latency_ms(net) for table in (first, second)] for net in nets])
    speed, of_corrected = _speed(sums), _speed(corrected)
    keys = [entry.key for entry in first.entries]
    entries = np.array([[first.ms(key), second.ms(key) / speed] for key in keys])
    worst = int(np.argmax(np.abs(entries[:, 1] - entries[:, 0])))
    return Agreement(
        environment=first.environment,
        dates=(first.date, second.date),
        drift=(first.protocol.drift, second.protocol.drift),
        speed=speed,
        num_architectures=len(nets),
        nets=_differences(corrected / [1.0, of_corrected]),
        uncorrected=_differences(sums / [1.0, speed]),
        num_entries=len(keys),
        entries=_differences(entries, weights=entries[:, 0]),
        worst_entry=EntryDifference(
            entry=str(keys[worst]),
            first_ms=float(entries[worst, 0]),
            second_ms=float(entries[worst, 1]),
            difference_percent=float(100 * (entries[worst, 1] / entries[worst, 0] - 1)),
        ),
    )


def check_comparable(first: LatencyTable, second: LatencyTable) -> None:
    """Raise `UserError`, with what differs, unless both tables are of one condition, one resolution and one space."""
    for table, other in ((first, second), (second, first)):
        conditions = [
            f"{one.environment} at {one.resolution_px[0]}x{one.resolution_px[1]} px" for one in (table, other)
        ]
        if conditions[0] != conditions[1]:
            raise UserError(f"the tables are of two conditions: {conditions[0]}; {conditions[1]}")
        known: set[LatencyKey] = {entry.key for entry in other.entries}
        lacking = [entry.key for entry in table.entries if entry.key not in known]
        if lacking:
            raise UserError(f"the tables are of two spaces: {len(lacking)} entries are in one alone, as {lacking[0]}")


def _speed(ms: np.ndarray) -> float:
    """The median factor from the first to the second column."""
    return math.exp(float(np.median(np.log(ms[:, 1] / ms[:, 0]))))


def _differences(ms: np.ndarray, *, weights: np.ndarray | None = None) -> Differences:
    percent = 100 * np.abs(ms[:, 1] / ms[:, 0] - 1)
    weights = np.ones(len(ms)) if weights is None else weights
    shares = weights / weights.sum()
    order = np.argsort(percent)
    middle = order[int(np.searchsorted(np.cumsum(shares[order]), 0.5 - 1e-9))]
    return Differences(
        mean_percent=float(percent @ shares),
        median_percent=float(percent[middle]),
        within_3_percent=float(100 * shares[percent <= 3].sum()),
        worst_percent=float(percent.max()),
    )
