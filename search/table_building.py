"""Building a latency table: every part of a search space, measured in context on one runtime.

All skeletons are measured together (`search.measure`: interleaved, drift divided out), and each entry is a difference
of two of them (`search.differences`). The whole nets that audit the table are measured among them: a machine that
changes its speed changes it for both, and that does not pass for an error of the table. A candidate that the runtime
cannot build is left out of the space, and the table says so.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from search.bench import Bench, Timed, speed_of
from search.differences import (
    SMALLEST_MS,
    Recipes,
    Value,
    difference,
    interpolate,
    loose_recipes,
    skeletons_of,
    solve,
    with_parts_before,
    with_unsettled,
)
from search.latency_table import LatencyTable, LeftOut, Protocol, RuntimeName
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
from search.parts import LatencyKey
from search.runtimes import Runtime
from search.skeletons import Recipe, Skeleton, lone_blocks, recipes
from search.table_journal import Journal
from supernet.architecture import Architecture
from supernet.schema import UserError, canonical
from supernet.space import SearchSpace

SETTLING_COPIES = 4  # by how much an entry at or below zero is measured again with more copies
SETTLING_REFERENCES = 8  # nets that are measured again beside it, and tell the machine's speed
PAIRS = 16  # most pairs of widths that are measured per transition between two stages: a 4 by 4 grid, because what a
# transition takes is nearly bilinear in its widths (LOG.md)


def required_keys(space: SearchSpace) -> set[LatencyKey]:
    """Every part that an architecture of the space can have."""
    return {recipe.key for recipe in recipes(space, copies=1)}


def table_nets(space: SearchSpace, *, copies: int, pairs: int = PAIRS) -> list[Skeleton]:
    """The nets that `build_table` builds and measures, and `table_of` needs the timings of."""
    return Recipes.of(space, copies=copies, pairs=pairs).skeletons


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
    found = Recipes.of(space, copies=protocol.copies, pairs=pairs)
    goal = protocol.standard_error_percent / 100
    values = with_unsettled(found, solve(found.measured, timings), goal, space)
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
    journal = Journal(clock=clock) if journal is None else journal
    condition = _condition(runtime, batch_size)
    settings = [rounds, copies, seed, standard_error_percent, most_seconds, warmup, pairs]
    journal.open(_identity(space, condition, settings))
    bench = Bench(
        runtime=runtime,
        batch_size=batch_size,
        rounds=rounds,
        warmup=warmup,
        generator=torch.Generator().manual_seed(seed),
        clock=clock,
        most_ns=1e9 * most_seconds,
        processes=processes,
        journal=journal,
        spent_ns=journal.measured_ns,
    )
    if journal.left_out is None:
        journal.tried(refused_candidates(space, bench.tried, progress))
    left_out = journal.left_out or ()
    space = without_refused(space, left_out)
    found = Recipes.of(space, copies=copies, pairs=pairs)
    wholes = list(dict.fromkeys(whole_nets(space)))
    goal = standard_error_percent / 100
    timings, seen = _measured(space, found.measured, wholes, bench, goal=goal, progress=progress)
    values = _settle(found.measured, timings, replace(bench, most_ns=1e8 * most_seconds, spent_ns=0.0))
    values = with_unsettled(found, values, goal, space)
    protocol = Protocol(
        rounds=seen.done,
        standard_error_percent=standard_error_percent,
        most_seconds=most_seconds,
        warmup=warmup,
        copies=copies,
        settle=SETTLE_CALLS,
        settle_ms=SETTLE_MS,
        nets=len(found.skeletons),
        seed=seed,
        redone=seen.redone,
        dropped=seen.dropped,
        most_redone=most_redone(seen.done + seen.dropped),
        drift=(round(seen.fastest, 4), round(seen.slowest, 4)),
    )
    table = _table(space, found, values, condition, protocol, left_out)
    return table, {net: timings[net] for net in wholes}


def _measured(
    space: SearchSpace,
    measured: list[Recipe],
    wholes: list[Architecture],
    bench: Bench,
    *,
    goal: float,
    progress: Progress | None,
) -> tuple[dict[Timed, Timing], Rounds]:
    """Time all nets, then on and on those that are not known to the goal, until the bench's time is over."""
    timings, seen = bench.measure([*skeletons_of(measured), *wholes], progress)
    while bench.journal.holds("loose") or bench.clock() < bench.until_ns:
        loose = loose_recipes(measured, solve(measured, timings), goal, space)
        if not loose and all(timings[net].standard_error_ms <= goal * timings[net].median_ms for net in wholes):
            break
        nets: list[Timed] = [*skeletons_of(with_parts_before(loose, measured)), *wholes]
        seen = _measure_on(timings, seen, nets, bench, progress)
    return timings, seen


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


def _condition(runtime: Runtime, batch_size: int) -> Condition:
    """A runtime on this machine, today."""
    return Condition(
        runtime=RuntimeName(name=runtime.name, version=runtime.version),
        precision=runtime.precision,
        threads=runtime.threads,
        batch_size=batch_size,
        machine=machine(),
        date=datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    )


def _identity(space: SearchSpace, condition: Condition, settings: Sequence[float]) -> str:
    """The digest of all that a table's measurements depend on, the nets' own code aside."""
    content = [
        canonical(space),
        str(condition.runtime),
        condition.precision,
        condition.threads,
        condition.batch_size,
        condition.machine.described,
        condition.machine.cores,
        *(SETTLE_CALLS, SETTLE_MS, SAMPLE_MS, VISIT_MS),
        *settings,
    ]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _table(
    space: SearchSpace,
    found: Recipes,
    values: dict[LatencyKey, Value],
    condition: Condition,
    protocol: Protocol,
    left_out: tuple[LeftOut, ...] = (),
) -> LatencyTable:
    values = values | interpolate(found.between, found.measured, values)
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


def _settle(measured: list[Recipe], timings: Mapping[Timed, Timing], bench: Bench) -> dict[LatencyKey, Value]:
    """All values; what comes out at or below zero is measured again, blocks with more copies.

    Nets that were timed before are measured beside it, so that it is brought to the speed of the first measurement;
    what subtracts it follows from the new value.
    """
    values = solve(measured, timings)
    again = {r.key: _more_copies(r) for r in measured if values[r.key].median_ms <= SMALLEST_MS}
    if not again:
        return values
    before = skeletons_of(measured)
    nets = dict.fromkeys([*before[:: math.ceil(len(before) / SETTLING_REFERENCES)], *skeletons_of(again.values())])
    later, _ = replace(bench, rounds=3 * bench.rounds).measure(list(nets), purpose="settling")
    speed = speed_of(timings, later)
    later = {net: found.scaled(speed) for net, found in later.items()}
    values = {}
    for recipe in measured:
        new = again.get(recipe.key)
        values[recipe.key] = difference(new or recipe, later if new else timings, values)
    return values


def _more_copies(recipe: Recipe) -> Recipe:
    if recipe.key.part != "block":
        return recipe
    copies = SETTLING_COPIES * recipe.copies
    stage = recipe.plus.stages[0]
    stage = stage.model_copy(update={"blocks": stage.blocks[:1] * (1 + copies)})
    return replace(recipe, plus=recipe.plus.model_copy(update={"stages": (stage,)}), copies=copies)
