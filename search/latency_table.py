"""LatencyTable: measured milliseconds of every part an architecture can have, on one runtime of one device.

Data only: what a part is (`LatencyKey`), which parts an architecture has (`keys`), and their sum. The table knows its
condition, and its file is named after it, so that a table of one device can never silently justify a claim about
another. How it is measured: `search.table_building`.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, JsonValue, TypeAdapter, model_validator

from search.measure import Machine
from supernet.architecture import AnyDownsampling, AnyStem, Architecture, Head
from supernet.block_types import AnyBlock, Identity, Positive
from supernet.schema import Record, UserError, canonical, load, save
from supernet.space import SearchSpace

Part = Literal["stem", "block", "reshape", "downsampling", "head"]
Grid = tuple[int, int]


class LatencyKey(NamedTuple):
    """One part of a net with its sizes: what latency is looked up by.

    `spec` is the canonical JSON of the part's record (`Stem`, `Block`, `Downsampling`, `Head`) with all sizes in it.
    `grid` is the height and width of the part's input. A "reshape" is the way from a map to tokens and back, once for
    each time that a stage changes to token blocks. `layout` is what a block works on, and what a head is given.
    """

    part: Part
    spec: str
    layout: Literal["map", "tokens"]
    in_channels: int
    out_channels: int
    grid: Grid

    def __str__(self) -> str:
        sizes = f"{self.in_channels} to {self.out_channels} channels at {self.grid[0]}x{self.grid[1]}"
        return f"{self.part} {self.spec} ({self.layout}, {sizes})"


@lru_cache(maxsize=65536)  # a search asks for the same parts over and over
def key_of(
    part: Part,
    record: Record | None,
    *,
    in_channels: int,
    out_channels: int,
    grid: Grid,
    layout: Literal["map", "tokens"] = "map",
) -> LatencyKey:
    """The key of a part; `record` is None for a reshape, which has no options."""
    spec = "{}" if record is None else canonical(record)
    return LatencyKey(part, spec, layout, in_channels, out_channels, grid)


def keys(architecture: Architecture) -> list[LatencyKey]:
    """The parts of an architecture in the order they run; skipped positions cost nothing and have none."""
    stem, width = architecture.stem, architecture.stem.width_channels
    found = [
        key_of("stem", stem, in_channels=architecture.in_channels, out_channels=width, grid=architecture.resolution_px)
    ]
    grid = stem.grid(architecture.resolution_px)
    layout: Literal["map", "tokens"] = "map"
    for stage in architecture.stages:
        if stage.downsampling is not None:
            found.append(
                key_of(
                    "downsampling",
                    stage.downsampling,
                    in_channels=width,
                    out_channels=stage.width_channels,
                    grid=grid,
                )
            )
            grid = stage.grid(grid)
        width, layout = stage.width_channels, "map"
        for block in stage.blocks:
            if isinstance(block, Identity):
                continue
            if block.layout == "tokens" and layout == "map":
                found.append(reshape_key(width, grid))
            layout = block.layout
            found.append(key_of("block", block, in_channels=width, out_channels=width, grid=grid, layout=block.layout))
    classes = architecture.head.num_classes
    found.append(key_of("head", architecture.head, in_channels=width, out_channels=classes, grid=grid, layout=layout))
    return found


def reshape_key(width_channels: int, grid: Grid) -> LatencyKey:
    """The key of the way from a map of this size to tokens and back."""
    return key_of("reshape", None, in_channels=width_channels, out_channels=width_channels, grid=grid)


class RuntimeName(Record):
    """The library that executed, and its version."""

    name: str
    version: str


class Protocol(Record):
    """How the table was measured: rounds over all nets, warm-up calls, further copies of a block at most, settling.

    After the rounds, nets are measured on, as often as all again or for `most_seconds`, until every entry's standard
    error is at most `standard_error_percent` of it, or a tenth of that of the largest net. Of the rounds of each
    measurement at most `most_redone` were thrown away because they were disturbed, and measured again; in all it was
    `redone`. `drift` is the smallest and the largest factor of a round against the first measurement's median round,
    which is divided out (None where it was not noted down).
    """

    rounds: Positive
    standard_error_percent: Annotated[float, Field(gt=0)] = 1.0
    most_seconds: Annotated[float, Field(ge=0)] = 0.0
    warmup: Positive
    copies: Positive
    settle: int
    nets: int
    seed: int
    most_redone: Annotated[int, Field(ge=0)] = 0
    redone: Annotated[int, Field(ge=0)] = 0
    drift: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] | None = None


class Entry(Record):
    """The latency of one part; percentiles and standard error are those of the difference it was measured as, per copy.

    `settled` is False where the standard error stayed above what was asked for (`Protocol`), or the difference at or
    below zero, until the time was over; in the latter case the part counts as a tiny positive number. A single round
    tells no standard error. `interpolated` marks downsamplings that were not measured but lie between measured ones.
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
        spec = _canonical_spec(self.part, json.dumps(self.spec, sort_keys=True, separators=(",", ":")))
        return LatencyKey(self.part, spec, self.layout, self.in_channels, self.out_channels, self.grid)


class LeftOut(Record):
    """A candidate of a stage (numbered from 1) that the runtime cannot build, and the reason; no net may have it."""

    stage: Positive
    candidate: str
    reason: str


_RECORDS: dict[str, TypeAdapter[Any]] = {
    "stem": TypeAdapter(AnyStem),
    "downsampling": TypeAdapter(AnyDownsampling),
    "head": TypeAdapter(Head),
    "block": TypeAdapter(AnyBlock),
}


def record_of(key: LatencyKey) -> Any:
    """The record of a part: stem, downsampling, head or block. Raises `ValueError` for a reshape, which has none."""
    if key.part not in _RECORDS:
        raise ValueError(f"{key.part}: has no record")
    return _RECORDS[key.part].validate_json(key.spec)


@lru_cache(maxsize=65536)
def _canonical_spec(part: Part, spec: str) -> str:
    """The canonical JSON of a part that was written down when its record had fewer or more fields at their defaults."""
    if part not in _RECORDS:
        return spec
    try:
        return canonical(_RECORDS[part].validate_json(spec))
    except ValueError:  # a block of a plugin that is not loaded: no architecture here can ask for it
        return spec


@lru_cache(maxsize=65536)
def kind_of(key: LatencyKey) -> str:
    """What a correction treats alike: a part, or the blocks of one type, on maps of one size ("conv 4x4")."""
    name = json.loads(key.spec)["type"] if key.part == "block" else key.part
    return f"{name} {key.grid[0]}x{key.grid[1]}"


class Correction(Record):
    """A correction of a table, from whole nets: constant_ms + scale * (sum over kinds of scales[kind] * their ms).

    `scales` holds a factor a kind of part (`kind_of`); one that is not in it counts as it was measured.
    """

    constant_ms: Annotated[float, Field(ge=0)] = 0.0
    scale: Annotated[float, Field(gt=0)] = 1.0
    scales: dict[str, Annotated[float, Field(ge=0)]] = {}

    def factor(self, kind: str) -> float:
        """What the ms of this kind of part are multiplied with."""
        return self.scale * self.scales.get(kind, 1.0)

    def of(self, kinds_ms: Mapping[str, float]) -> float:
        """The corrected latency of a net whose parts take so many ms, kind by kind."""
        return self.constant_ms + sum(self.factor(kind) * ms for kind, ms in kinds_ms.items())


class UnmeasuredBlock(UserError):
    """A part that the table does not have: latency is never guessed."""

    def __init__(self, key: LatencyKey, environment: str) -> None:
        super().__init__(f"not in the latency table of {environment}: {key}; measure a table of this space")
        self.key = key


class LatencyTable(Record):
    """Measured parts of one runtime on one device, and the latency of any architecture made of them.

    Predictions are for whole inferences of `batch_size` images, in ms.
    """

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
    def _corrected_ms(self) -> dict[LatencyKey, float]:
        return {key: self.correction.factor(kind_of(key)) * ms for key, ms in self._milliseconds.items()}

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
        return self.correction.constant_ms + sum(self.part_ms(key) for key in keys(architecture))

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

    def corrected(self, correction: Correction) -> LatencyTable:
        """This table with another correction in the place of its own."""
        fields: dict[str, Any] = {name: getattr(self, name) for name in type(self).model_fields}
        return LatencyTable(**fields | {"correction": correction})

    @classmethod
    def load(cls, path: Path | str) -> LatencyTable:
        """Read a table. Raises `UserError` for anything wrong with the file."""
        return load(cls, path)

    def save(self, path: Path | str) -> None:
        """Write the table as JSON or YAML, by suffix."""
        save(self, path)
