"""Bench: many nets on one runtime, built and timed in chunks that fit into memory, all at the speed of the first."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import TypeVar

import torch

from search.measure import Clock, Net, Progress, Rounds, Timing, machine, measure, timings_in
from search.net_building import Built, CannotBuild, building
from search.runtimes import Runtime
from search.skeletons import Skeleton
from search.table_journal import Journal, Purpose
from supernet.architecture import Architecture
from supernet.schema import digest

LINKS = 8  # nets in every chunk: by the median of their times the chunks are brought to one speed
CHUNK_NETS = 600  # nets held in memory and measured together
CHUNK_BYTES = 2e9  # of all nets of a chunk, at least ...
CHUNK_OF_MEMORY = 0.15  # ... or this share of the memory: a runtime holds some weights twice

Timed = Skeleton | Architecture
KeyT = TypeVar("KeyT", bound=Hashable)


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
        """Time nets in chunks that fit into memory, at the speed of the first; some nets are in all and tell the speed.

        Raises `CannotBuild`.
        """
        links, remaining = todo[:: math.ceil(len(todo) / LINKS)], deque(dict.fromkeys(todo))
        timings: dict[Timed, Timing] = {}
        rounds = Rounds()
        tally = _Tally(progress, total=(1 + self.rounds) * len(todo))  # each net is built once, and visited every round
        while remaining:
            found, of_chunk = self._chunk(links, remaining, tally, purpose)
            speed = speed_of(timings, found)
            rounds = rounds.joined(of_chunk, speed=speed)
            for net in found.keys() - timings.keys():
                timings[net] = found[net].scaled(speed)
        return timings, rounds

    def _chunk(
        self, links: Sequence[Timed], remaining: deque[Timed], tally: _Tally, purpose: Purpose
    ) -> tuple[dict[Timed, Timing], Rounds]:
        """Measure the links and nets from the front of `remaining`: those of the journal, or as many as fit."""
        names = {digest(net): net for net in (*links, *remaining)}
        log = self.journal.begun(purpose, names)
        seen: list[Rounds] = []
        if log is None:
            chunk = self._build_chunk(links, remaining, tally)
            log = self.journal.new(purpose, [digest(net) for net in chunk])
        else:
            nets = [names[name] for name in log.nets]
            _take_out(remaining, nets)
            if log.complete:
                tally.add((1 + self.rounds) * len(nets))
                found = dict(zip(nets, timings_in(log, seen=seen.append), strict=True))
                return found, seen.pop()
            chunk = self._build_chunk(links, deque(nets), tally, all_of_them=True)
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
            threads=self.runtime.threads,
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
        self, links: Sequence[Timed], remaining: deque[Timed], tally: _Tally, *, all_of_them: bool = False
    ) -> dict[Timed, Net]:
        """Build the links and as many nets as fit beside them, one at least, or all, from the front of `remaining`."""
        most_nets, most_bytes = (math.inf, math.inf) if all_of_them else (CHUNK_NETS, self.chunk_bytes)
        nets: dict[Timed, Net] = {}
        loaded = 0
        new = [net for net in dict.fromkeys((*links, *remaining)) if net not in self.built]
        with closing(building(new, self.runtime, batch_size=self.batch_size, processes=self.processes)) as made:

            def add(net: Timed) -> None:
                nonlocal loaded
                if net in nets:
                    return
                if net in self.built:
                    nets[net] = self.built[net]
                    return
                built = self._timed(lambda: next(made)())
                nets[net] = built.net
                loaded += built.size_bytes
                self._keep(net, built)

            for net in links:
                add(net)
            of_links = len(nets)
            while remaining:
                add(remaining.popleft())
                tally.add(1)
                if len(nets) - of_links >= most_nets or loaded >= most_bytes:
                    break
        return nets


def speed_of(before: Mapping[KeyT, Timing], later: Mapping[KeyT, Timing]) -> float:
    """What later times are to be multiplied by to stand at the speed of those before: by the nets that are in both."""
    ratios = [before[net].median_ms / later[net].median_ms for net in later if net in before]
    return statistics.median(ratios) if ratios else 1.0


def _take_out(remaining: deque[Timed], nets: Sequence[Timed]) -> None:
    """Remove these nets, as far as they are in it."""
    gone = set(nets)
    left = [net for net in remaining if net not in gone]
    remaining.clear()
    remaining.extend(left)


class _Tally:
    """How much of all work is done; nets that link the chunks come once more with each, and it may be exceeded."""

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
