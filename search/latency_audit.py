"""Latency audit: what a table predicts against what whole nets measure, and the correction that follows.

Additivity is reported with its error, never assumed. Beside the error stands what the same nets differ by when they
are measured again, because no prediction can be better than that.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field
from scipy.stats import kendalltau

from search.correction import Correction, fit_correction
from search.latency_table import LatencyTable
from search.measure import Timing
from search.parts import keys, numbers_of, parameters_of
from supernet.architecture import Architecture
from supernet.schema import Record, load, save


class LatencyPair(Record):
    """One whole net: the table's prediction, whole and by kind of part, and the measurement, in ms.

    `numbers` are those of its weights and maps. Files of before they were noted down say nothing of them, nor of
    `parameters` (0).
    """

    digest: str
    architecture: Architecture
    parameters: int = 0
    numbers: int = 0
    predicted_ms: float
    kinds_ms: dict[str, float]
    measured_ms: Annotated[float, Field(gt=0)]
    measured_p10_ms: float
    measured_p90_ms: float
    remeasured_ms: Annotated[float, Field(gt=0)]

    @property
    def error_percent(self) -> float:
        """How far the prediction is above (+) or below (-) the measurement."""
        return 100.0 * (self.predicted_ms / self.measured_ms - 1.0)


class LatencyErrors(Record):
    """Errors of predictions, in percent of the measurement; `kendall_tau` is None where it is not defined."""

    mean_absolute_error_percent: float
    bias_percent: float
    within_5_percent: float
    within_10_percent: float
    worst_percent: float
    kendall_tau: float | None


class HeldOut(LatencyErrors):
    """Errors after a correction that was fitted on the first `fitted` nets and judged on the other `judged` ones."""

    fitted: int
    judged: int
    correction: Correction


class LatencyAudit(LatencyErrors):
    """Predicted against measured latency of whole nets, under the table's condition.

    `remeasurement_percent` is the mean absolute difference between the two halves of the rounds: the floor.
    """

    schema_version: Literal[1] = 1
    runtime: str
    precision: str
    threads: int
    batch_size: int
    pairs: Annotated[tuple[LatencyPair, ...], Field(min_length=1)]
    remeasurement_percent: float
    correction: Correction
    held_out: HeldOut | None

    @classmethod
    def load(cls, path: Path | str) -> LatencyAudit:
        """Read an audit. Raises `UserError` for anything wrong with the file."""
        return load(cls, path)

    def references(self, count: int) -> list[Architecture]:
        """At most `count` of the nets, from the fastest to the slowest at even steps."""
        pairs = sorted(self.pairs, key=lambda pair: pair.measured_ms)
        chosen = np.linspace(0, len(pairs) - 1, min(count, len(pairs))).round().astype(int)
        return [pairs[index].architecture for index in chosen]

    def slowdown(self, timings: Mapping[Architecture, Timing]) -> float:
        """The median factor by which nets of the audit take longer than they took in it: the machine's speed.

        Raises `KeyError` for a net that is none of them and `statistics.StatisticsError` without any.
        """
        then_ms = {pair.architecture: pair.measured_ms for pair in self.pairs}
        return statistics.median(timing.median_ms / then_ms[net] for net, timing in timings.items())

    def save(self, path: Path | str) -> None:
        """Write the audit as JSON or YAML, by suffix."""
        save(self, path)


def audit(table: LatencyTable, timings: Mapping[Architecture, Timing]) -> LatencyAudit:
    """Compare what a table predicts of whole nets with measurements of them, taken together with the table's own.

    `correction` in the result is fitted on all nets, `held_out` on the first half and judged on the second (None with
    fewer than four nets). Raises `UnmeasuredBlock` for a net that the table cannot predict and `ValueError` without
    any net.
    """
    return _summary(table, tuple(pair_of(net, table, timing) for net, timing in timings.items()))


def evenly_spread(values: Sequence[float], count: int) -> list[int]:
    """The indices of at most `count` of the values, as evenly over their range as they come, from the smallest on.

    A correction that is fitted on such nets is better than on those of middling size that chance prefers (LOG.md).
    """
    left = sorted(range(len(values)), key=values.__getitem__)
    chosen: list[int] = []
    for target in np.linspace(values[left[0]], values[left[-1]], min(count, len(left))):
        chosen.append(min(left, key=lambda index: abs(values[index] - target)))
        left.remove(chosen[-1])
    return chosen


def errors(pairs: Sequence[LatencyPair]) -> LatencyErrors:
    """The errors of these predictions."""
    percent = np.array([pair.error_percent for pair in pairs])
    tau = float("nan")
    if len(pairs) > 1:
        tau = kendalltau([pair.predicted_ms for pair in pairs], [pair.measured_ms for pair in pairs]).statistic
    return LatencyErrors(
        mean_absolute_error_percent=float(np.abs(percent).mean()),
        bias_percent=float(percent.mean()),
        within_5_percent=float(100 * (np.abs(percent) <= 5).mean()),
        within_10_percent=float(100 * (np.abs(percent) <= 10).mean()),
        worst_percent=float(np.abs(percent).max()),
        kendall_tau=None if np.isnan(tau) else float(tau),
    )


def pair_of(net: Architecture, table: LatencyTable, timing: Timing, *, speed: float = 1.0) -> LatencyPair:
    """A table's prediction and a measurement, which is multiplied by `speed`."""
    first, second = timing.samples_ms[0::2], timing.samples_ms[1::2] or timing.samples_ms
    return LatencyPair(
        digest=net.digest,
        architecture=net,
        parameters=sum(map(parameters_of, keys(net))),
        numbers=sum(numbers_of(key, batch_size=table.batch_size) for key in keys(net)),
        predicted_ms=table.latency_ms(net),
        kinds_ms=table.kinds_ms(net),
        measured_ms=speed * timing.median_ms,
        measured_p10_ms=speed * timing.p10_ms,
        measured_p90_ms=speed * timing.p90_ms,
        remeasured_ms=speed * float(np.median(second) * timing.median_ms / np.median(first)),
    )


def _summary(table: LatencyTable, pairs: tuple[LatencyPair, ...]) -> LatencyAudit:
    half = len(pairs) // 2
    held_out = None
    if half >= 2:
        correction = fit_correction(pairs[:half])
        judged = [corrected(pair, correction) for pair in pairs[half:]]
        held_out = HeldOut(**errors(judged).model_dump(), fitted=half, judged=len(judged), correction=correction)
    differences = [abs(pair.remeasured_ms / pair.measured_ms - 1.0) for pair in pairs]
    return LatencyAudit(
        **errors(pairs).model_dump(),
        runtime=table.runtime.name,
        precision=table.precision,
        threads=table.threads,
        batch_size=table.batch_size,
        pairs=pairs,
        remeasurement_percent=100.0 * float(np.mean(differences)),
        correction=fit_correction(pairs),
        held_out=held_out,
    )


def corrected(pair: LatencyPair, correction: Correction) -> LatencyPair:
    """The same net, predicted by this correction of the table."""
    predicted_ms = correction.of(pair.kinds_ms, parameters=pair.parameters, numbers=pair.numbers)
    return pair.model_copy(update={"predicted_ms": predicted_ms})
