"""LatencyTable: measured milliseconds of every part an architecture can have, on one runtime of one device.

Data only: an entry a part (`search.parts`), and the corrected sum of an architecture's parts. The table knows its
condition, and its file is named after it, so that a table of one device can never silently justify a claim about
another. How it is measured: `search.table_building`.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, JsonValue, model_validator

from search.correction import Correction
from search.measure import Machine
from search.parts import LatencyKey, Part, canonical_spec, keys, kind_of, numbers_of, parameters_of
from supernet.architecture import Architecture
from supernet.block_types import Positive
from supernet.schema import Record, UserError, load, save
from supernet.space import SearchSpace


class RuntimeName(Record):
    """The library that executed, and its version."""

    name: str
    version: str


class Protocol(Record):
    """How the table was measured: rounds over all nets (at first), warm-up calls, further copies of a block at most.

    A visit begins with `settle` untimed calls or more, until `settle_ms` have passed (0: older tables).

    After the rounds, nets are measured on, for as many rounds again and again or for `most_seconds`, until the standard
    error of every entry is at most `standard_error_percent` of it, or a tenth of that of the largest net, and that of
    every whole net too. Of the rounds of each measurement at most `most_redone` were thrown away because they were
    disturbed, and measured again; in all it was `redone`, and `dropped` were disturbed and do not count. `drift` is the
    smallest and the largest factor of a round against the first measurement's median round, which is divided out (None
    where it was not noted down).
    """

    rounds: Positive
    standard_error_percent: Annotated[float, Field(gt=0)] = 1.0
    most_seconds: Annotated[float, Field(ge=0)] = 0.0
    warmup: Positive
    copies: Positive
    settle: int
    settle_ms: Annotated[float, Field(ge=0)] = 0.0
    nets: int
    seed: int
    most_redone: Annotated[int, Field(ge=0)] = 0
    redone: Annotated[int, Field(ge=0)] = 0
    dropped: Annotated[int, Field(ge=0)] = 0
    drift: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] | None = None


class Entry(Record):
    """The latency of one part; percentiles and standard error are those of the difference it was measured as, per copy.

    `settled` is False where the standard error stayed above what was asked for (`Protocol`), or the difference at or
    below zero, until the time was over; in the latter case the part counts as a tiny positive number. A single round
    tells no standard error. `interpolated` marks downsamplings that were not measured but lie between measured ones;
    they are settled where those are.
    """

    part: Part
    spec: dict[str, JsonValue]
    layout: Literal["map", "tokens"]
    in_channels: Positive
    out_channels: Positive
    grid: tuple[Positive, Positive]
    median_ms: Annotated[float, Field(gt=0)]
    p10_ms: float
    p90_ms: float
    standard_error_ms: Annotated[float, Field(ge=0)] | None = None
    runs: int
    settled: bool = True
    interpolated: bool = False

    @property
    def key(self) -> LatencyKey:
        """What this entry is looked up by."""
        spec = canonical_spec(self.part, json.dumps(self.spec, sort_keys=True, separators=(",", ":")))
        return LatencyKey(self.part, spec, self.layout, self.in_channels, self.out_channels, self.grid)


class LeftOut(Record):
    """A candidate of a stage (numbered from 1) that the runtime cannot build, and the reason; no net may have it."""

    stage: Positive
    candidate: str
    reason: str


class UnmeasuredBlock(UserError):
    """A part that the table does not have: latency is never guessed."""

    def __init__(self, key: LatencyKey, environment: str) -> None:
        super().__init__(f"not in the latency table of {environment}: {key}; measure a table of this space")
        self.key = key


class LatencyTable(Record):
    """Measured parts of one runtime on one device, and the latency of any architecture made of them.

    Predictions are for whole inferences of `batch_size` images, in ms. `held_out_error_percent` is the mean absolute
    error of such a correction on whole nets that it was not fitted to (None where there were too few).
    """

    added_later: ClassVar[frozenset[str]] = frozenset({"held_out_error_percent"})

    schema_version: Literal[1] = 1
    runtime: RuntimeName
    precision: str
    threads: Positive
    batch_size: Positive
    resolution_px: tuple[Positive, Positive]
    machine: Machine
    date: str
    protocol: Protocol
    correction: Correction = Correction()
    held_out_error_percent: float | None = None
    left_out: tuple[LeftOut, ...] = ()
    entries: tuple[Entry, ...]

    @model_validator(mode="after")
    def _distinct(self) -> LatencyTable:
        repeated = [key for key, count in Counter(entry.key for entry in self.entries).items() if count > 1]
        if repeated:
            raise ValueError(f"entries: measured twice: {repeated[0]}")
        return self

    @cached_property
    def _milliseconds(self) -> dict[LatencyKey, float]:
        return {entry.key: entry.median_ms for entry in self.entries}

    @cached_property
    def _standard_errors_ms(self) -> dict[LatencyKey, float]:
        return {e.key: math.inf if e.standard_error_ms is None else e.standard_error_ms for e in self.entries}

    @cached_property
    def _between(self) -> frozenset[LatencyKey]:
        return frozenset(entry.key for entry in self.entries if entry.interpolated)

    @cached_property
    def _corrected_ms(self) -> dict[LatencyKey, float]:
        return {key: self.correction.factor(kind_of(key)) * ms for key, ms in self._milliseconds.items()}

    @cached_property
    def _fastest(self) -> dict[str, Architecture]:
        return {}

    @property
    def environment(self) -> str:
        """The condition of every number in the table, in words."""
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        return (
            f"{self.runtime.name} {self.runtime.version} on {self.machine.cpu}"
            f" ({self.precision}, batch {self.batch_size}, {threads})"
        )

    @property
    def file_name(self) -> str:
        """The condition as a file name: latency-<runtime>-<device>-<dtype>-b<batch>-t<threads>.json."""
        device = self.machine.slug
        return f"latency-{self.runtime.name}-{device}-{self.precision}-b{self.batch_size}-t{self.threads}.json"

    def ms(self, key: LatencyKey) -> float:
        """The measured latency of a part, uncorrected. Raises `UnmeasuredBlock`."""
        return self._found(self._milliseconds, key)

    def part_ms(self, key: LatencyKey) -> float:
        """What a part adds to a prediction: its latency, corrected. Raises `UnmeasuredBlock`."""
        return self._found(self._corrected_ms, key)

    def latency_ms(self, architecture: Architecture) -> float:
        """The predicted latency of a whole net: the corrected sum of its parts. Raises `UnmeasuredBlock`."""
        parts = keys(architecture)
        crowding = self.correction.crowding
        crowding_ms = 0.0 if crowding is None else crowding.ms(sum(map(self.crowds, parts)))
        return self.correction.constant_ms + sum(map(self.part_ms, parts)) + crowding_ms

    def parts_between(self, architecture: Architecture) -> int:
        """How many of a net's parts were not measured but lie between measured ones (`Entry.interpolated`)."""
        return sum(key in self._between for key in keys(architecture))

    def check_resolution(self, resolution_px: tuple[int, int], *, source: object) -> None:
        """Raise `UserError`, which begins with `source`, unless the table is of images of this height and width."""
        if self.resolution_px != resolution_px:
            there, here = ("x".join(map(str, size)) for size in (self.resolution_px, resolution_px))
            raise UserError(f"{source}: is of {there} pixels, but the experiment has {here}")

    def fastest(self, space: SearchSpace) -> Architecture:
        """The architecture of a space that is predicted fastest: the smallest one, unless another is faster.

        Solved for once a space. Raises `UnmeasuredBlock` for any part of the space that the table lacks.
        """
        from search.exact import least  # which knows tables
        from search.limits import latency_limit

        if space.digest not in self._fastest:
            found, smallest = least(space, latency_limit(self, math.inf)), space.smallest
            faster = self.latency_ms(found) < self.latency_ms(smallest)
            self._fastest[space.digest] = found if faster else smallest
        return self._fastest[space.digest]

    def crowds(self, key: LatencyKey) -> int:
        """What of a part the correction's crowding counts."""
        crowding = self.correction.crowding
        if crowding is not None and crowding.of == "numbers":
            return numbers_of(key, batch_size=self.batch_size)
        return parameters_of(key)

    def standard_error_ms(self, architecture: Architecture) -> float:
        """The standard error of a prediction, as far as it comes from those of the parts. Raises `UnmeasuredBlock`."""
        squares = [
            (count * self.correction.factor(kind_of(key)) * self._found(self._standard_errors_ms, key)) ** 2
            for key, count in Counter(keys(architecture)).items()
        ]
        return math.sqrt(sum(squares))

    def kinds_ms(self, architecture: Architecture) -> dict[str, float]:
        """The measured ms of a net's parts, uncorrected, summed over each kind. Raises `UnmeasuredBlock`."""
        sums: dict[str, float] = {}
        for key in keys(architecture):
            kind = kind_of(key)
            sums[kind] = sums.get(kind, 0.0) + self.ms(key)
        return sums

    def _found(self, values: Mapping[LatencyKey, float], key: LatencyKey) -> float:
        try:
            return values[key]
        except KeyError:
            raise UnmeasuredBlock(key, self.environment) from None

    def runnable(self, space: SearchSpace) -> SearchSpace:
        """The space without the candidates that the table's runtime cannot build."""
        return space.without((one.stage, one.candidate) for one in self.left_out)

    def corrected(self, correction: Correction, *, held_out_error_percent: float | None = None) -> LatencyTable:
        """This table with another correction in the place of its own."""
        fields: dict[str, Any] = {name: getattr(self, name) for name in type(self).model_fields}
        changed = {"correction": correction, "held_out_error_percent": held_out_error_percent}
        return LatencyTable(**fields | changed)

    @classmethod
    def load(cls, path: Path | str) -> LatencyTable:
        """Read a table. Raises `UserError` for anything wrong with the file."""
        return load(cls, path)

    def save(self, path: Path | str) -> None:
        """Write the table as JSON or YAML, by suffix."""
        save(self, path)
