"""The journal of a table that is being measured: every round as it ends, so that an interrupted table goes on.

A file of JSON lines that is only ever appended to. What the last stop cut short is left out; a journal of another
space, runtime, protocol or machine is not read at all, and neither is what follows a line that is none of it.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError

from search.latency_table import LeftOut
from search.measure import Clock, RoundLog, VisitPlan
from supernet.block_types import Positive
from supernet.schema import Record, UserError, write_atomically

Purpose = Literal["all", "loose", "settling"]  # what a measurement of a table is for
Milliseconds = Annotated[float, Field(gt=0)]


class _Opened(Record):
    """The first line: the digest of all that the measured times depend on."""

    schema_version: Literal[1] = 1
    table: str


class _Tried(Record):
    """The runtime has built every candidate, or refused it."""

    left_out: tuple[LeftOut, ...]


class _Begun(Record):
    """A measurement of these nets begins, each visited with so many untimed calls, calls and samples."""

    purpose: Purpose
    nets: Annotated[tuple[str, ...], Field(min_length=1)]
    plans: tuple[tuple[Positive, Positive, Positive], ...]


class _Round(Record):
    """The times of all nets in one round, without (null) and with interruptions, and how long it took.

    `at` is the round that it replaces, `repair` says that only some nets were visited.
    """

    clean_ms: tuple[Milliseconds | None, ...]
    all_ms: tuple[Milliseconds | None, ...]
    seconds: Annotated[float, Field(ge=0)]
    at: Annotated[int, Field(ge=0)] | None = None
    repair: bool = False


class _Ended(Record):
    """The last measurement that began has all its rounds."""

    ended: Literal[True]


_LINES: TypeAdapter[_Opened | _Tried | _Begun | _Round | _Ended] = TypeAdapter(
    _Opened | _Tried | _Begun | _Round | _Ended
)


class Measurement(RoundLog):
    """One measurement in a journal; `complete` once it has all its rounds."""

    def __init__(self, purpose: Purpose, nets: Sequence[str], journal: Journal) -> None:
        super().__init__()
        self.purpose, self.nets, self.journal = purpose, tuple(nets), journal
        self.complete = False

    def begin(self, plans: list[VisitPlan]) -> None:
        super().begin(plans)
        self.journal.start_lap()
        shown = tuple((plan.settle, plan.calls, plan.samples) for plan in plans)
        self.journal.write(_Begun(purpose=self.purpose, nets=self.nets, plans=shown))

    def add_round(self, column: np.ndarray) -> None:
        super().add_round(column)
        self.journal.write(self._round(column))

    def replace_round(self, index: int, column: np.ndarray) -> None:
        super().replace_round(index, column)
        self.journal.write(self._round(column, at=index))

    def add_repair(self, column: np.ndarray) -> None:
        super().add_repair(column)
        self.journal.write(self._round(column, repair=True))

    def end(self) -> None:
        """There are no more rounds."""
        self.complete = True
        self.journal.write(_Ended(ended=True))

    def _round(self, column: np.ndarray, **fields: Any) -> _Round:
        clean_ms, all_ms = (tuple(ms if math.isfinite(ms) else None for ms in side) for side in column.T.tolist())
        return _Round(clean_ms=clean_ms, all_ms=all_ms, seconds=self.journal.lap(), **fields)

    def read(self, line: _Round) -> None:
        """Take over a round from the file. Raises `ValueError` for one that cannot be of these nets."""
        column = np.array([line.clean_ms, line.all_ms], dtype=float).T
        if len(column) != len(self.nets) or not (line.repair or np.isfinite(column[:, 1]).all()):
            raise ValueError("a round of other nets")
        if line.repair:
            super().add_repair(column)
        elif line.at is None:
            super().add_round(column)
        elif line.at < self.rounds:
            super().replace_round(line.at, column)
        else:
            raise ValueError("a round in the place of none")


class Journal:
    """The measurements of a table, in the order in which they are asked for; without a path in memory alone.

    `told` gets a line for people when there is something to go on with. `left_out` is what `tried` was told (None if
    nothing was), `measured_ns` how long the rounds in the file took.
    """

    def __init__(
        self,
        path: Path | None = None,
        *,
        told: Callable[[str], None] = lambda line: None,
        clock: Clock = time.perf_counter_ns,
    ) -> None:
        self.path, self.told, self.clock = path, told, clock
        self.left_out: tuple[LeftOut, ...] | None = None
        self.measured_ns = 0.0
        self._table = ""
        self._kept: list[Measurement] = []
        self._asked = 0
        self._lap_ns = clock()

    def open(self, table: str) -> None:
        """Read what there is of this table, and make the file ready for more.

        Raises `UserError` where the machine does not let it be read or written.
        """
        self._table = table
        if self.path is None:
            return
        try:
            content = self.path.read_bytes() if self.path.exists() else b""
            good = self._read(content)
            if good < len(content) or not good:
                self._cut(content[:good])
        except OSError as error:
            raise self._unwritable(error) from error
        if rounds := sum(measurement.rounds for measurement in self._kept):
            self.told(f"going on after {rounds} rounds that were measured before")
        elif not good and content:
            self.told("what was measured before is of another machine, runtime or protocol, and does not count")

    def tried(self, left_out: tuple[LeftOut, ...]) -> None:
        """The runtime refuses these candidates, and has built all others."""
        self.left_out = left_out
        self.write(_Tried(left_out=left_out))

    def holds(self, purpose: Purpose) -> bool:
        """Whether the next measurement that was begun before is for this."""
        return self._asked < len(self._kept) and self._kept[self._asked].purpose == purpose

    def begun(self, purpose: Purpose, nets: Collection[str]) -> Measurement | None:
        """The next measurement, if it was begun before, for this, of the first of these nets and of none but these.

        One that is for something else, and whatever came after it, does not count, and is taken out of the file.
        """
        if self._asked == len(self._kept):
            return None
        found = self._kept[self._asked]
        if found.purpose != purpose or found.nets[0] != next(iter(nets)) or not set(found.nets) <= set(nets):
            self._forget()
            return None
        self._asked += 1
        return found

    def new(self, purpose: Purpose, nets: Sequence[str]) -> Measurement:
        """The next measurement, of these nets, that was not begun before."""
        measurement = Measurement(purpose, nets, self)
        self._kept.append(measurement)
        self._asked += 1
        return measurement

    def start_lap(self) -> None:
        """Rounds begin now."""
        self._lap_ns = self.clock()

    def lap(self) -> float:
        """Seconds since the last round."""
        before, self._lap_ns = self._lap_ns, self.clock()
        return (self._lap_ns - before) / 1e9

    def write(self, line: Record) -> None:
        """Append a line. Raises `UserError` where the machine does not let it."""
        if self.path is None:
            return
        try:
            with self.path.open("ab") as file:
                file.write(_encoded(line))
        except OSError as error:
            raise self._unwritable(error) from error

    def _read(self, content: bytes) -> int:
        """Take over the lines of this table that are whole and make sense; returns where they end."""
        end = 0
        for number, text in enumerate(content.splitlines(keepends=True)):
            try:
                line = _LINES.validate_json(text, strict=True) if text.endswith(b"\n") else None
                if line is None or (number == 0) != isinstance(line, _Opened):
                    break
                self._take(line)
            except (ValidationError, ValueError):
                break
            end += len(text)
        return end

    def _take(self, line: _Opened | _Tried | _Begun | _Round | _Ended) -> None:
        if isinstance(line, _Opened):
            if line.table != self._table:
                raise ValueError("another table")
        elif isinstance(line, _Tried):
            self.left_out = line.left_out
        elif isinstance(line, _Begun):
            if len(line.plans) != len(line.nets) or (self._kept and not self._kept[-1].complete):
                raise ValueError("a measurement in another")
            measurement = Measurement(line.purpose, line.nets, self)
            measurement.plans = [VisitPlan(*plan) for plan in line.plans]
            self._kept.append(measurement)
        elif not self._kept or self._kept[-1].complete:
            raise ValueError("outside of a measurement")
        elif isinstance(line, _Ended):
            if not self._kept[-1].rounds:
                raise ValueError("the end of what was not begun")
            self._kept[-1].complete = True
        else:
            self._kept[-1].read(line)
            self.measured_ns += 1e9 * line.seconds

    def _forget(self) -> None:
        """Take the measurements that were not asked for out of the file."""
        begun, kept = 0, bytearray()
        del self._kept[self._asked :]
        if self.path is None:
            return
        try:
            for text in self.path.read_bytes().splitlines(keepends=True):
                begun += isinstance(_LINES.validate_json(text, strict=True), _Begun)
                if begun > self._asked:
                    break
                kept += text
            self._cut(bytes(kept))
        except OSError as error:
            raise self._unwritable(error) from error

    def _cut(self, content: bytes) -> None:
        """Make this the whole file; without any content, that of a journal in which there is nothing yet."""
        assert self.path is not None
        write_atomically(self.path, content or _encoded(_Opened(table=self._table)))

    def _unwritable(self, error: OSError) -> UserError:
        return UserError(f"{self.path}: cannot be read or written ({error.strerror})")


def _encoded(line: Record) -> bytes:
    return json.dumps(line.model_dump(mode="json"), separators=(",", ":"), allow_nan=False).encode() + b"\n"
