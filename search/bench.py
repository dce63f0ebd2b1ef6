"""Bench: many nets on one runtime, built and timed in chunks that fit into memory, all at the speed of the first."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field

import torch

from search.measure import Clock, Net, Progress, Rounds, Timing, machine, measure, timings_in
from search.net_building import Built, CannotBuild, building
from search.runtimes import Runtime
from search.skeletons import Skeleton
from search.table_journal import Journal, Purpose
from supernet.architecture import Architecture
from supernet.schema import digest

CHUNK_NETS = 600  # nets held in memory and measured together
CHUNK_BYTES = 2e9  # of all nets of a chunk, at least ...
CHUNK_OF_MEMORY = 0.15  # ... or this share of the memory: a runtime holds some weights twice

Timed = Skeleton | Architecture


def bytes_at_once() -> float:
    """The weights of the nets that this machine's memory may hold at once to be measured together."""
    return max(CHUNK_BYTES, CHUNK_OF_MEMORY * machine().memory_gb * 2**30)


@dataclass
class Bench:
    """What all measurements of one table have in common; `built` keeps nets that are measured on, a chunk of them.

    So many `processes` build nets; measuring, there is this one alone. It ends, if it can, `most_ns` after the bench
    was made; where nets take long to build it ends later, because half of `most_ns` is for measuring. What the
    `journal` holds is not measured again, and before an interruption `spent_ns` went by.
    """

    runtime: Runtime
    batch_size: int
    rounds: int
    warmup: int
    generator: torch.Generator
    clock: Clock
    most_ns: float
    processes: int = 1
    journal: Journal = field(default_factory=Journal)
    spent_ns: float = 0.0
    began_ns: float = field(init=False)
    building_ns: float = field(default=0.0, init=False)
    built: dict[Timed, Net] = field(default_factory=dict)
    kept_bytes: int = 0
    chunk_bytes: float = field(default_factory=bytes_at_once)

    def __post_init__(self) -> None:
        self.began_ns = self.clock() - self.spent_ns

    @property
    def until_ns(self) -> float:
        """When measuring shall have ended, by the clock; later after more has been built."""
        return self.began_ns + max(self.most_ns, self.building_ns + self.most_ns / 2)

    def measure(
        self, todo: Sequence[Timed], progress: Progress | None = None, *, purpose: Purpose = "all"
    ) -> tuple[dict[Timed, Timing], Rounds]:
        """Time nets in chunks that fit into memory; the first net is in every chunk and links their speeds.

        Raises `CannotBuild`.
        """
        reference, remaining = todo[0], deque(dict.fromkeys(todo))
        timings: dict[Timed, Timing] = {}
        rounds = Rounds()
        tally = _Tally(progress, total=(1 + self.rounds) * len(todo))  # each net is built once, and visited every round
        while remaining:
            found, of_chunk = self._chunk(reference, remaining, tally, purpose)
            speed = timings[reference].median_ms / found[reference].median_ms if timings else 1.0
            rounds = rounds.joined(of_chunk, speed=speed)
            for net in found.keys() - timings.keys():
                timings[net] = found[net].scaled(speed)
        return timings, rounds

    def _chunk(
        self, reference: Timed, remaining: deque[Timed], tally: _Tally, purpose: Purpose
    ) -> tuple[dict[Timed, Timing], Rounds]:
        """Measure the reference and nets from the front of `remaining`: those of the journal, or as many as fit."""
        names = {digest(net): net for net in (reference, *remaining)}
        log = self.journal.begun(purpose, names)
        seen: list[Rounds] = []
        if log is None:
            chunk = self._build_chunk(reference, remaining, tally)
            log = self.journal.new(purpose, [digest(net) for net in chunk])
        else:
            nets = [names[name] for name in log.nets]
            _take_out(remaining, nets)
            if log.complete:
                tally.add((1 + self.rounds) * len(nets))
                found = dict(zip(nets, timings_in(log, seen=seen.append), strict=True))
                return found, seen.pop()
            chunk = self._build_chunk(reference, deque(nets), tally, all_of_them=True)
        share = len(chunk) / (len(chunk) + len(remaining))  # of the time that is left
        self.journal.start_lap()
        found = measure(
            chunk,
            rounds=self.rounds,
            warmup=self.warmup,
            until_ns=self.clock() + share * (self.until_ns - self.clock()),
            generator=self.generator,
            clock=self.clock,
            progress=tally.a_round_of(len(chunk)),
            seen=seen.append,
            log=log,
        )
        log.end()
        return found, seen.pop()

    def tried(self, nets: Sequence[Timed]) -> Iterator[CannotBuild | None]:
        """Build each net and say why the runtime refuses it, if it does; what it takes is kept for the measurement."""
        made = building(nets, self.runtime, batch_size=self.batch_size, processes=self.processes)
        for net, make in zip(nets, made, strict=True):
            error = None
            try:
                self._keep(net, self._timed(make))
            except CannotBuild as refused:
                error = refused
            yield error

    def _timed(self, make: Callable[[], Built]) -> Built:
        began_ns = self.clock()
        try:
            return make()
        finally:
            self.building_ns += self.clock() - began_ns

    def _keep(self, net: Timed, built: Built) -> None:
        if len(self.built) < CHUNK_NETS and self.kept_bytes + built.size_bytes <= self.chunk_bytes:
            self.built[net] = built.net
            self.kept_bytes += built.size_bytes

    def _build_chunk(
        self, reference: Timed, remaining: deque[Timed], tally: _Tally, *, all_of_them: bool = False
    ) -> dict[Timed, Net]:
        """Build the reference and as many nets as fit, or all of them, taken from the front of `remaining`."""
        most_nets, most_bytes = (math.inf, math.inf) if all_of_them else (CHUNK_NETS, self.chunk_bytes)
        nets: dict[Timed, Net] = {}
        loaded = 0
        new = [net for net in dict.fromkeys((reference, *remaining)) if net not in self.built]
        with closing(building(new, self.runtime, batch_size=self.batch_size, processes=self.processes)) as made:
            while remaining and len(nets) < most_nets and loaded < most_bytes:
                for net in dict.fromkeys((reference, remaining.popleft())):
                    if net in nets:
                        continue
                    if net in self.built:
                        nets[net] = self.built[net]
                        continue
                    built = self._timed(lambda: next(made)())
                    nets[net] = built.net
                    loaded += built.size_bytes
                    self._keep(net, built)
                tally.add(1)
        return nets


def _take_out(remaining: deque[Timed], nets: Sequence[Timed]) -> None:
    """Remove these nets, as far as they are in it."""
    gone = set(nets)
    left = [net for net in remaining if net not in gone]
    remaining.clear()
    remaining.extend(left)


class _Tally:
    """How much of all work is done; the net that links the chunks comes once more with each, and may exceed it."""

    def __init__(self, progress: Progress | None, *, total: int) -> None:
        self.progress, self.total, self.done = progress, total, 0

    def add(self, done: int) -> None:
        self.done = min(self.total, self.done + done)
        if self.progress is not None:
            self.progress(self.done, self.total)

    def a_round_of(self, nets: int) -> Progress:
        """The progress of a measurement, in each of whose rounds so many nets are visited."""
        before = 0

        def progress(done: int, rounds: int) -> None:
            nonlocal before
            self.add(nets * (done - before))
            before = done

        return progress
