"""Building a latency table: every part of a search space, measured in context on one runtime.

All skeletons are measured together (`search.measure`: interleaved, drift divided out), and each entry is a difference
of two of them (`search.skeletons`). The whole nets that audit the table are measured among them: a machine that
changes its speed changes it for both, and that does not pass for an error of the table. A candidate that the runtime
cannot build is left out of the space, and the table says so.

Where a transition between two stages has many pairs of widths, a grid of them is measured and the rest lies on the
bilinear surface through it, marked as interpolated.
"""

from __future__ import annotations

import datetime
import hashlib
import itertools
import json
import math
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.interpolate import RegularGridInterpolator

from search.bench import Bench, Timed, speed_of
from search.latency_table import Entry, LatencyTable, LeftOut, Protocol, RuntimeName
from search.measure import (
    SAMPLE_MS,
    SETTLE_CALLS,
    SETTLE_MS,
    VISIT_MS,
    Clock,
    Machine,
    Progress,
    Rounds,
    Timing,
    machine,
    most_redone,
)
from search.net_building import CannotBuild
from search.parts import LatencyKey, keys
from search.runtimes import Runtime
from search.skeletons import Recipe, Skeleton, lone_blocks, recipes
from search.table_journal import Journal
from supernet.architecture import Architecture
from supernet.schema import UserError, canonical
from supernet.space import SearchSpace

SETTLING_COPIES = 4  # by how much an entry at or below zero is measured again with more copies
SETTLING_REFERENCES = 8  # nets that are measured again beside it, and tell the machine's speed
PAIRS = 64  # most pairs of widths that are measured per transition between two stages
SMALLEST_MS = 1e-6  # what a part counts as that cannot be told from nothing


def required_keys(space: SearchSpace) -> set[LatencyKey]:
    """Every part that an architecture of the space can have."""
    return {recipe.key for recipe in recipes(space, copies=1)}


def table_nets(space: SearchSpace, *, copies: int, pairs: int = PAIRS) -> list[Skeleton]:
    """The nets that `build_table` builds and measures, and `table_of` needs the timings of."""
    return _Recipes.of(space, copies=copies, pairs=pairs).skeletons


def table_of(
    space: SearchSpace,
    timings: Mapping[Skeleton, Timing],
    *,
    condition: Condition,
    protocol: Protocol,
    pairs: int = PAIRS,
    left_out: tuple[LeftOut, ...] = (),
) -> LatencyTable:
    """The table that follows from timings of all `table_nets`, taken elsewhere; nothing is measured.

    The space is that without what was `left_out`.

    What came out at or below zero counts as a tiny positive number and is not settled. Raises `KeyError` for a net
    without a timing.
    """
    found = _Recipes.of(space, copies=protocol.copies, pairs=pairs)
    goal = protocol.standard_error_percent / 100
    values = _with_unsettled(found, _solve(found.measured, timings), goal, space)
    return _table(space, found, values, condition, protocol, left_out)


def build_table(
    space: SearchSpace,
    runtime: Runtime,
    *,
    batch_size: int,
    rounds: int,
    copies: int,
    seed: int,
    standard_error_percent: float = 1.0,
    most_seconds: float,
    whole_nets: Callable[[SearchSpace], Sequence[Architecture]] = lambda space: (),
    warmup: int = 3,
    pairs: int = PAIRS,
    processes: int = 1,
    journal: Journal | None = None,
    progress: Progress | None = None,
    clock: Clock = time.perf_counter_ns,
) -> tuple[LatencyTable, dict[Architecture, Timing]]:
    """Measure every part of the space on a runtime, in ms per inference of `batch_size` images, and whole nets of it.

    `rounds` visits each net that often (30 timed calls or more in all), `copies` is how many more times a block is in
    the one net than in the other (at most the depth of its stage), `pairs` the most pairs of widths measured per
    transition between two stages. After the rounds, entries whose standard error is above `standard_error_percent` of
    them (and above a tenth of that of the largest net) are measured on, and the whole nets with them, for as many
    rounds again, until there are none and the whole nets are known to as much. Once `most_seconds` have passed since
    the beginning, at least half of them with measuring, there are no more rounds, the first
    `search.measure.HURRIED_ROUNDS` aside; a tenth of that is added for what came out at or below zero. `seed`
    orders the nets, `processes` build them. `whole_nets` is asked for nets of the space without the candidates that
    the runtime cannot build (`LatencyTable.left_out`). `progress` is called with (steps done, steps), first one
    step a block that is tried, then one a net built and one a round and net; each time that nets are measured on,
    it begins anew.

    Rounds are kept in the `journal`, and those that a table of the very same had measured there before count: the table
    goes on where it was stopped, and `most_seconds` are those of all its rounds.

    Raises `UserError`, with the runtime's words, if it cannot build what the space cannot do without.
    """
    generator = torch.Generator().manual_seed(seed)
    journal = Journal(clock=clock) if journal is None else journal
    condition = Condition(
        runtime=RuntimeName(name=runtime.name, version=runtime.version),
        precision=runtime.precision,
        threads=runtime.threads,
        batch_size=batch_size,
        machine=machine(),
        date=datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    )
    settings = [rounds, copies, seed, standard_error_percent, most_seconds, warmup, pairs]
    journal.open(_identity(space, condition, settings))
    bench = Bench(
        runtime,
        batch_size,
        rounds,
        warmup,
        generator,
        clock,
        1e9 * most_seconds,
        processes,
        journal,
        journal.measured_ns,
    )
    if journal.left_out is None:
        journal.tried(refused_candidates(space, bench.tried, progress))
    left_out = journal.left_out or ()
    space = without_refused(space, left_out)
    found = _Recipes.of(space, copies=copies, pairs=pairs)
    measured, skeletons = found.measured, found.skeletons
    wholes = list(dict.fromkeys(whole_nets(space)))
    timings, seen = bench.measure([*skeletons, *wholes], progress)
    goal = standard_error_percent / 100
    while journal.holds("loose") or clock() < bench.until_ns:
        loose = _loose(measured, _solve(measured, timings), goal, space)
        if not loose and all(timings[net].standard_error_ms <= goal * timings[net].median_ms for net in wholes):
            break
        nets: list[Timed] = [*_skeletons(_with_parts_before(loose, measured)), *wholes]
        seen = _measure_on(timings, seen, nets, bench, progress)
    values = _settle(measured, timings, replace(bench, most_ns=1e8 * most_seconds, spent_ns=0.0))
    values = _with_unsettled(found, values, goal, space)
    protocol = Protocol(
        rounds=seen.done,
        standard_error_percent=standard_error_percent,
        most_seconds=most_seconds,
        warmup=warmup,
        copies=copies,
        settle=SETTLE_CALLS,
        settle_ms=SETTLE_MS,
        nets=len(skeletons),
        seed=seed,
        redone=seen.redone,
        most_redone=most_redone(seen.done),
        drift=(round(seen.fastest, 4), round(seen.slowest, 4)),
    )
    table = _table(space, found, values, condition, protocol, left_out)
    return table, {net: timings[net] for net in wholes}


def refused_candidates(
    space: SearchSpace,
    tried: Callable[[Sequence[Skeleton]], Iterable[CannotBuild | None]],
    progress: Progress | None = None,
) -> tuple[LeftOut, ...]:
    """The candidates that the runtime cannot build, at the first width where it shows.

    `tried` says of each net why it is refused, if it is.
    """
    todo: dict[Skeleton, list[tuple[int, str]]] = {}
    for stage, candidate, net in lone_blocks(space):
        todo.setdefault(net, []).append((stage, candidate.name))
    refused: dict[tuple[int, str], LeftOut] = {}
    for done, (places, error) in enumerate(zip(todo.values(), tried(list(todo)), strict=True), start=1):
        if error is not None:
            for stage, name in places:
                refused.setdefault((stage, name), LeftOut(stage=stage, candidate=name, reason=error.reason))
        if progress is not None:
            progress(done, len(todo))
    return tuple(refused.values())


def without_refused(space: SearchSpace, left_out: Sequence[LeftOut]) -> SearchSpace:
    """The space without what the runtime cannot build. Raises `UserError` where that is no space."""
    try:
        return space.without((one.stage, one.candidate) for one in left_out)
    except UserError as error:
        reasons = "; ".join(f"stage {one.stage}: {one.reason}" for one in left_out)
        raise UserError(f"{reasons}; {error}; take other candidates, or another runtime") from None


@dataclass(frozen=True)
class Condition:
    """Where and how nets were timed: what every number of a table stands for."""

    runtime: RuntimeName
    precision: str
    threads: int
    batch_size: int
    machine: Machine
    date: str


def _identity(space: SearchSpace, condition: Condition, settings: Sequence[float]) -> str:
    """The digest of all that what is measured for a table depends on, the nets' own code aside."""
    machine_there = condition.machine
    content = [
        canonical(space),
        str(condition.runtime),
        condition.precision,
        condition.threads,
        condition.batch_size,
        machine_there.described,
        machine_there.cores,
        *(SETTLE_CALLS, SETTLE_MS, SAMPLE_MS, VISIT_MS),
        *settings,
    ]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


class _Recipes(NamedTuple):
    """All parts of a space: those that are measured, and those between them."""

    todo: list[Recipe]
    measured: list[Recipe]
    between: list[Recipe]

    @classmethod
    def of(cls, space: SearchSpace, *, copies: int, pairs: int) -> _Recipes:
        todo = _distinct(recipes(space, copies=copies))
        return cls(todo, *_split_pairs(todo, most=pairs))

    @property
    def skeletons(self) -> list[Skeleton]:
        return _skeletons(self.measured)


def _with_unsettled(
    found: _Recipes, values: dict[LatencyKey, _Value], goal: float, space: SearchSpace
) -> dict[LatencyKey, _Value]:
    """The same values, with those marked whose standard error is above the goal, or that are at or below zero."""
    unsettled = {recipe.key for recipe in _loose(found.measured, values, goal, space)}
    unsettled |= {key for key, value in values.items() if value.median_ms <= SMALLEST_MS}
    return values | {key: replace(values[key], settled=False) for key in unsettled}


def _table(
    space: SearchSpace,
    found: _Recipes,
    values: dict[LatencyKey, _Value],
    condition: Condition,
    protocol: Protocol,
    left_out: tuple[LeftOut, ...] = (),
) -> LatencyTable:
    values = values | _interpolate(found.between, found.measured, values)
    return LatencyTable(
        runtime=condition.runtime,
        precision=condition.precision,
        threads=condition.threads,
        batch_size=condition.batch_size,
        resolution_px=space.resolution_px,
        machine=condition.machine,
        date=condition.date,
        protocol=protocol,
        left_out=left_out,
        entries=tuple(values[recipe.key].entry(recipe.key) for recipe in found.todo),
    )


@dataclass(frozen=True)
class _Value:
    """A difference of timings, in ms: of their medians, how far its 10th and 90th percentile are from it, its error."""

    median_ms: float
    below_ms: float
    above_ms: float
    error_ms: float
    runs: int
    settled: bool = True
    interpolated: bool = False

    def entry(self, key: LatencyKey) -> Entry:
        return Entry(
            part=key.part,
            spec=json.loads(key.spec),
            layout=key.layout,
            in_channels=key.in_channels,
            out_channels=key.out_channels,
            grid=key.grid,
            median_ms=max(SMALLEST_MS, round(self.median_ms, 7)),
            p10_ms=round(self.median_ms - self.below_ms, 7),
            p90_ms=round(self.median_ms + self.above_ms, 7),
            standard_error_ms=round(self.error_ms, 7) if math.isfinite(self.error_ms) else None,
            runs=self.runs,
            settled=self.settled,
            interpolated=self.interpolated,
        )


def _distinct(found: Iterable[Recipe]) -> list[Recipe]:
    """One recipe a key: two stages of equal width and grid share their parts."""
    return list({recipe.key: recipe for recipe in found}.values())


def _skeletons(found: Iterable[Recipe]) -> list[Skeleton]:
    return list(dict.fromkeys(net for recipe in found for net in (recipe.plus, recipe.minus) if net is not None))


def _solve(found: Iterable[Recipe], timings: Mapping[Any, Timing]) -> dict[LatencyKey, _Value]:
    """The parts, in the order of the recipes: each needs only parts before it."""
    values: dict[LatencyKey, _Value] = {}
    for recipe in found:
        values[recipe.key] = _difference(recipe, timings, values)
    return values


def _difference(recipe: Recipe, timings: Mapping[Any, Timing], values: dict[LatencyKey, _Value]) -> _Value:
    """A recipe's value: the difference of the medians; spreads add up as those of independent measurements do."""
    plus = timings[recipe.plus]
    median_ms, below_ms, above_ms = plus.median_ms, plus.median_ms - plus.p10_ms, plus.p90_ms - plus.median_ms
    error_ms = plus.standard_error_ms
    if recipe.minus is not None:
        minus = timings[recipe.minus]
        median_ms -= minus.median_ms
        below_ms = math.hypot(below_ms, minus.p90_ms - minus.median_ms)
        above_ms = math.hypot(above_ms, minus.median_ms - minus.p10_ms)
        error_ms = math.hypot(error_ms, minus.standard_error_ms)
    for key in recipe.minus_keys:
        median_ms -= values[key].median_ms
        error_ms = math.hypot(error_ms, values[key].error_ms)
    copies = recipe.copies
    return _Value(median_ms / copies, below_ms / copies, above_ms / copies, error_ms / copies, plus.runs)


def _loose(measured: list[Recipe], values: dict[LatencyKey, _Value], goal: float, space: SearchSpace) -> list[Recipe]:
    """The recipes whose value is not known to the goal, nor to a tenth of the goal of the largest net."""
    largest_ms = sum(values[key].median_ms for key in keys(space.largest) if key in values)
    return [
        recipe
        for recipe in measured
        if values[recipe.key].error_ms > goal * max(values[recipe.key].median_ms, 0.1 * largest_ms)
    ]


def _with_parts_before(loose: list[Recipe], measured: list[Recipe]) -> list[Recipe]:
    """These recipes and those of the parts that they subtract, whose errors are in theirs."""
    by_key = {recipe.key: recipe for recipe in measured}
    found: dict[LatencyKey, Recipe] = {}
    todo = list(loose)
    while todo:
        recipe = todo.pop()
        found[recipe.key] = recipe
        todo += [by_key[key] for key in recipe.minus_keys if key not in found]
    return list(found.values())


def _measure_on(
    timings: dict[Timed, Timing], seen: Rounds, nets: Sequence[Timed], bench: Bench, progress: Progress | None
) -> Rounds:
    """Add another measurement of some nets to the timings, at the speed that the machine had for the first.

    Returns what its rounds were like, joined with those before (`seen`).
    """
    later, rounds = bench.measure(nets, progress, purpose="loose")
    speed = speed_of(timings, later)
    for net, found in later.items():
        timings[net] = timings[net].joined(found, speed=speed)
    return replace(seen.joined(rounds, speed=speed), done=seen.done)


def _settle(measured: list[Recipe], timings: Mapping[Timed, Timing], bench: Bench) -> dict[LatencyKey, _Value]:
    """All values; what comes out at or below zero is measured again, blocks with more copies.

    Nets that were timed before are measured beside it, so that it is brought to the speed of the first measurement;
    what subtracts it follows from the new value.
    """
    values = _solve(measured, timings)
    again = {r.key: _more_copies(r) for r in measured if values[r.key].median_ms <= SMALLEST_MS}
    if not again:
        return values
    before = _skeletons(measured)
    nets = dict.fromkeys([*before[:: math.ceil(len(before) / SETTLING_REFERENCES)], *_skeletons(again.values())])
    later, _ = replace(bench, rounds=3 * bench.rounds).measure(list(nets), purpose="settling")
    speed = speed_of(timings, later)
    later = {net: found.scaled(speed) for net, found in later.items()}
    values = {}
    for recipe in measured:
        new = again.get(recipe.key)
        values[recipe.key] = _difference(new or recipe, later if new else timings, values)
    return values


def _more_copies(recipe: Recipe) -> Recipe:
    if recipe.key.part != "block":
        return recipe
    copies = SETTLING_COPIES * recipe.copies
    stage = recipe.plus.stages[0]
    stage = stage.model_copy(update={"blocks": stage.blocks[:1] * (1 + copies)})
    return replace(recipe, plus=recipe.plus.model_copy(update={"stages": (stage,)}), copies=copies)


def _split_pairs(found: list[Recipe], *, most: int) -> tuple[list[Recipe], list[Recipe]]:
    """The recipes to measure, and the downsamplings to interpolate where a transition has more pairs than `most`."""
    transitions: dict[tuple[str, tuple[int, int]], list[Recipe]] = {}
    for recipe in found:
        if recipe.key.part == "downsampling":
            transitions.setdefault((recipe.key.spec, recipe.key.grid), []).append(recipe)
    between: set[LatencyKey] = set()
    for pairs in transitions.values():
        if len(pairs) > most:
            in_widths = _spread({recipe.key.in_channels for recipe in pairs}, int(most**0.5))
            out_widths = _spread({recipe.key.out_channels for recipe in pairs}, int(most**0.5))
            between |= {
                recipe.key
                for recipe in pairs
                if recipe.key.in_channels not in in_widths or recipe.key.out_channels not in out_widths
            }
    return [r for r in found if r.key not in between], [r for r in found if r.key in between]


def _spread(widths: set[int], count: int) -> set[int]:
    """At most `count` of the widths, evenly spread, both ends among them."""
    ascending = sorted(widths)
    chosen = np.linspace(0, len(ascending) - 1, min(max(2, count), len(ascending))).round().astype(int)
    return {ascending[index] for index in chosen}


def _interpolate(
    between: list[Recipe], measured: list[Recipe], values: dict[LatencyKey, _Value]
) -> dict[LatencyKey, _Value]:
    """Downsamplings between measured pairs of widths, each on the bilinear surface through its four neighbours.

    One is settled where all that it lies between are.
    """
    found: dict[LatencyKey, _Value] = {}
    for transition in dict.fromkeys((recipe.key.spec, recipe.key.grid) for recipe in between):
        known = [r.key for r in measured if r.key.part == "downsampling" and (r.key.spec, r.key.grid) == transition]
        axes = sorted({key.in_channels for key in known}), sorted({key.out_channels for key in known})
        by_widths = {(key.in_channels, key.out_channels): values[key] for key in known}
        surfaces = [
            RegularGridInterpolator(axes, [[getattr(by_widths[a, b], field) for b in axes[1]] for a in axes[0]])
            for field in ("median_ms", "below_ms", "above_ms", "error_ms")
        ]
        for key in (r.key for r in between if (r.key.spec, r.key.grid) == transition):
            median, below, above, error = (float(surface((key.in_channels, key.out_channels))) for surface in surfaces)
            around = itertools.product(_around(axes[0], key.in_channels), _around(axes[1], key.out_channels))
            settled = all(by_widths[widths].settled for widths in around)
            found[key] = _Value(median, below, above, error, runs=0, settled=settled, interpolated=True)
    return found


def _around(ascending: list[int], width: int) -> list[int]:
    """The width itself, if it is one of these, or the two that it lies between."""
    index = bisect_left(ascending, width)
    return [width] if ascending[index] == width else ascending[index - 1 : index + 1]
