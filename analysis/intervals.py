"""Means and differences of a few trainings with the intervals that their number allows: Student's and Welch's t."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

Bounds = tuple[float, float]


def t_interval(values: Sequence[float]) -> Bounds | None:
    """The 95 % interval of the mean of independent values; None with fewer than two."""
    if len(values) < 2:
        return None
    reach = float(stats.t.ppf(0.975, len(values) - 1)) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return float(np.mean(values)) - reach, float(np.mean(values)) + reach


def paired_interval(first: Sequence[float], second: Sequence[float]) -> Bounds | None:
    """The 95 % interval of the mean of first - second, pair by pair."""
    return t_interval([a - b for a, b in zip(first, second, strict=True)])


def welch_interval(first: Sequence[float], second: Sequence[float]) -> Bounds | None:
    """The 95 % interval of mean(first) - mean(second), of unpaired values of any two spreads; None with fewer than two.

    Degrees of freedom are Welch and Satterthwaite's.
    """
    if min(len(first), len(second)) < 2:
        return None
    difference = float(np.mean(first)) - float(np.mean(second))
    errors = [float(np.var(values, ddof=1)) / len(values) for values in (first, second)]
    if sum(errors) == 0:
        return difference, difference
    freedom = sum(errors) ** 2 / sum(e**2 / (len(v) - 1) for e, v in zip(errors, (first, second), strict=True))
    reach = float(stats.t.ppf(0.975, freedom)) * math.sqrt(sum(errors))
    return difference - reach, difference + reach


def widest(bounds: Mapping[str, Bounds | None]) -> tuple[Bounds | None, str | None]:
    """The widest of several intervals and its name, those that are None left out."""
    known = {name: interval for name, interval in bounds.items() if interval is not None}
    if not known:
        return None, None
    name = max(known, key=lambda each: known[each][1] - known[each][0])
    return known[name], name
