"""Correction: what takes the sum of a net's parts to the latency of the whole net, fitted on measured whole nets.

A factor for each kind of part, a constant, and the cost of weights and maps that do not fit into a cache beside all
others: the small nets that parts are measured in fit, a large net does not, and fetches them from further away at every
inference.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, NamedTuple, Protocol

import numpy as np
from pydantic import Field
from scipy.optimize import nnls

from supernet.schema import Record

LEAST_NETS_BY_KIND = 8  # with fewer nets anything but constant and scale would be guessed
HOLDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)  # how strongly the factors are held to the common scale
QUANTILES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)  # of the nets' numbers: where crowding may begin
GAIN = 0.9  # of the squared error without a term, that it must leave at most


Counted = Literal["parameters", "numbers"]


class Crowding(Record):
    """What finds no room in a cache: so many ms for every million numbers of a net above so many.

    Numbers are those of weights and maps (`search.parts.numbers_of`), in older files parameters alone.
    """

    of: Counted = "parameters"
    above_millions: Annotated[float, Field(ge=0)]
    ms_per_million: Annotated[float, Field(ge=0)]

    def ms(self, count: float) -> float:
        """What a net of so many takes longer."""
        return self.ms_per_million * max(0.0, count / 1e6 - self.above_millions)


class Correction(Record):
    """A correction of a table: constant_ms + scale * (sum over kinds of scales[kind] * their ms) + crowding.

    `scales` holds a factor a kind of part (`search.parts.kind_of`); one that is not in it counts as it was measured.
    """

    constant_ms: Annotated[float, Field(ge=0)] = 0.0
    scale: Annotated[float, Field(gt=0)] = 1.0
    scales: dict[str, Annotated[float, Field(ge=0)]] = {}
    crowding: Crowding | None = None

    def factor(self, kind: str) -> float:
        """What the ms of this kind of part are multiplied with."""
        return self.scale * self.scales.get(kind, 1.0)

    def of(self, kinds_ms: Mapping[str, float], *, parameters: float = 0, numbers: float = 0) -> float:
        """The corrected latency of a net of so many whose parts take so many ms, kind by kind."""
        crowding_ms = 0.0
        if self.crowding is not None:
            crowding_ms = self.crowding.ms(numbers if self.crowding.of == "numbers" else parameters)
        return self.constant_ms + sum(self.factor(kind) * ms for kind, ms in kinds_ms.items()) + crowding_ms


class MeasuredNet(Protocol):
    """A whole net: the ms of its parts, kind by kind, the numbers that it moves (0: not known), its latency."""

    @property
    def kinds_ms(self) -> Mapping[str, float]: ...

    @property
    def numbers(self) -> int: ...

    @property
    def measured_ms(self) -> float: ...


def fit_correction(nets: Sequence[MeasuredNet]) -> Correction:
    """The correction with the least squared relative error, all of it at least zero (scipy's nnls).

    Constant and common scale come first. A factor a kind of part, held to the common scale, and crowding are added
    where nets that are left out of the fit say that it is better for them; how strongly the factors are held, and where
    crowding begins, is what serves those nets best. With one net, or nets that are all predicted alike, it is a scale
    alone. Raises `ValueError` without nets.
    """
    if not nets:
        raise ValueError("a correction needs at least one measured net")
    fitted = _Nets.of(nets)
    best = _Form(hold=None, above=None)
    if len(nets) < LEAST_NETS_BY_KIND:
        return fitted.correction(best)
    least = fitted.left_out_error(best)
    holds = HOLDS if len(fitted.kinds) > 1 else ()
    above = sorted({float(at) for at in np.quantile(fitted.millions, QUANTILES)} - {0.0})
    # The simpler forms first, and each further one only where it is clearly better.
    for forms in (
        [_Form(hold=hold, above=None) for hold in holds],
        [_Form(hold=hold, above=at) for hold, at in itertools.product((None, *holds), above)],
    ):
        errors = {form: fitted.left_out_error(form) for form in forms}
        form = min(errors, key=errors.__getitem__, default=best)
        if errors.get(form, math.inf) < GAIN * least:
            best, least = form, errors[form]
    return fitted.correction(best)


class _Form(NamedTuple):
    """What is fitted: factors by kind, held so strongly (None: no factors); crowding above so many million or None."""

    hold: float | None
    above: float | None


class _Nets(NamedTuple):
    """Measured nets as arrays: ms by kind (a row a net), millions of numbers, measured ms."""

    kinds: list[str]
    kinds_ms: np.ndarray
    millions: np.ndarray
    measured_ms: np.ndarray

    @classmethod
    def of(cls, nets: Sequence[MeasuredNet]) -> _Nets:
        kinds = sorted({kind for net in nets for kind in net.kinds_ms})
        return cls(
            kinds,
            np.array([[net.kinds_ms.get(kind, 0.0) for kind in kinds] for net in nets]),
            np.array([net.numbers / 1e6 for net in nets]),
            np.array([net.measured_ms for net in nets]),
        )

    def where(self, chosen: np.ndarray) -> _Nets:
        return self._replace(
            kinds_ms=self.kinds_ms[chosen], millions=self.millions[chosen], measured_ms=self.measured_ms[chosen]
        )

    def correction(self, form: _Form) -> Correction:
        """The fit of this form to all nets."""
        scale, constant_ms, per_million = self._line(form.above)
        scales: dict[str, float] = {}
        if form.hold is not None:
            factors, constant_ms, per_million = self._by_kind(scale, form.hold, form.above)
            scales = {kind: float(factor / scale) for kind, factor in zip(self.kinds, factors, strict=True)}
        crowding = None
        if form.above is not None and per_million > 0:
            crowding = Crowding(of="numbers", above_millions=form.above, ms_per_million=per_million)
        return Correction(constant_ms=constant_ms, scale=scale, scales=scales, crowding=crowding)

    def left_out_error(self, form: _Form) -> float:
        """The mean squared relative error of nets, each predicted by what is fitted on the others."""
        found = []
        for index in range(len(self.measured_ms)):
            correction = self.where(np.arange(len(self.measured_ms)) != index).correction(form)
            kinds_ms = dict(zip(self.kinds, self.kinds_ms[index].tolist(), strict=True))
            predicted_ms = correction.of(kinds_ms, numbers=1e6 * float(self.millions[index]))
            found.append(predicted_ms / float(self.measured_ms[index]) - 1.0)
        return float(np.mean(np.square(found)))

    def _columns(self, above: float | None) -> list[np.ndarray]:
        """Constant and, where it is asked for, crowding, in shares of the measured latency."""
        beyond = [] if above is None else [np.maximum(0.0, self.millions - above) / self.measured_ms]
        return [1.0 / self.measured_ms, *beyond]

    def _line(self, above: float | None) -> tuple[float, float, float]:
        """Common scale, constant ms, ms per million numbers."""
        sums_ms = self.kinds_ms.sum(axis=1)
        if len(np.unique(sums_ms)) == 1:
            return float(np.median(self.measured_ms / sums_ms)), 0.0, 0.0
        solution, _ = nnls(np.column_stack([sums_ms / self.measured_ms, *self._columns(above)]), np.ones(len(sums_ms)))
        if solution[0] <= 0.0:  # predictions that explain nothing: keep their order rather than predict one constant
            return float(np.median(self.measured_ms / sums_ms)), 0.0, 0.0
        scale, constant_ms, *rest = solution.tolist()
        return scale, constant_ms, rest[0] if rest else 0.0

    def _by_kind(self, scale: float, hold: float, above: float | None) -> tuple[np.ndarray, float, float]:
        """Factors, constant, crowding: least squares with a penalty for what a factor's distance from scale changes."""
        shares = self.kinds_ms / self.measured_ms[:, None]
        weight = math.sqrt(hold * len(shares)) * shares.mean(axis=0)  # a kind's share of a typical net's latency
        free = self._columns(above)
        fitted = np.column_stack([shares, *free])
        held = np.column_stack([np.diag(weight), np.zeros((len(weight), len(free)))])
        solution, _ = nnls(np.vstack([fitted, held]), np.concatenate([np.ones(len(shares)), scale * weight]))
        constant_ms, *rest = solution[len(weight) :].tolist()
        return solution[: len(weight)], constant_ms, rest[0] if rest else 0.0
