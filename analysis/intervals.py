"""Means and differences of a few trainings with the intervals that their number allows: Student's and Welch's t."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

Bounds = tuple[float, float]


def t_interval(values: Sequence[float]) -> Bounds | None:
    """The 95 % interval of the mean of independent values; None with fewer than two."""
    return strata_interval([[values]])


def paired_interval(first: Sequence[float], second: Sequence[float]) -> Bounds | None:
    """The 95 % interval of the mean of first - second, pair by pair."""
    return t_interval(paired(first, second))


def paired(first: Sequence[float], second: Sequence[float]) -> list[float]:
    """The differences first - second, pair by pair."""
    return [a - b for a, b in zip(first, second, strict=True)]


def welch_interval(first: Sequence[float], second: Sequence[float]) -> Bounds | None:
    """The 95 % interval of mean(first) - mean(second), of unpaired values of any two spreads; None with fewer than two.

    Degrees of freedom are Welch and Satterthwaite's.
    """
    return strata_interval([[first, second]])


def strata_interval(strata: Sequence[Sequence[Sequence[float]]]) -> Bounds | None:
    """The 95 % interval of a mean over strata that are given, not drawn: only what varies within them counts.

    Each stratum is one sample, for its mean, or two, for the mean of the first minus that of the second; None if a
    sample has fewer than two values. Degrees of freedom are Welch and Satterthwaite's over all samples: of one stratum
    this is Student's or Welch's interval.
    """
    samples = [sample for stratum in strata for sample in stratum]
    if not samples or min(len(sample) for sample in samples) < 2:
        return None
    middle = float(np.mean([np.mean(first) - (np.mean(rest[0]) if rest else 0.0) for first, *rest in strata]))
    errors = [float(np.var(sample, ddof=1)) / len(sample) for sample in samples]
    if sum(errors) == 0:
        return middle, middle
    freedom = sum(errors) ** 2 / sum(e**2 / (len(sample) - 1) for e, sample in zip(errors, samples, strict=True))
    reach = float(stats.t.ppf(0.975, freedom)) * math.sqrt(sum(errors)) / len(strata)
    return middle - reach, middle + reach


def together(strata: Sequence[Sequence[Sequence[float]]]) -> Bounds | None:
    """The same where the values of one place, those of one seed, go together in all strata: of their means over strata.

    None where the strata have samples of different lengths.
    """
    if not strata or len({tuple(len(sample) for sample in stratum) for stratum in strata}) > 1:
        return None
    return strata_interval([[np.mean(samples, axis=0).tolist() for samples in zip(*strata, strict=True)]])


def widest(bounds: Mapping[str, Bounds | None]) -> tuple[Bounds | None, str | None]:
    """The widest of several intervals and its name, those that are None left out."""
    known = {name: interval for name, interval in bounds.items() if interval is not None}
    if not known:
        return None, None
    name = max(known, key=lambda each: known[each][1] - known[each][0])
    return known[name], name
