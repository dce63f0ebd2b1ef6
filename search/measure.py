"""The only clock in the project: how long nets take on this machine, in milliseconds.

A net is a zero-argument callable that runs one inference. All nets of one measurement are interleaved: every round
visits all of them in a fresh random order, so that whatever makes the machine slower for a while hits all alike. Each
round's drift (the median over the nets of its time against that net's own median) is then divided out. All nets
together are the reference: the drift by a single reference net would carry the whole noise of that net's sample, the
median over n nets about 1.25 / sqrt(n) of it. A round in which the nets did not slow down alike was disturbed; it is
thrown away and measured again (`worst_disturbed`, of the script that measures on other devices). A visit begins with
untimed calls for `SETTLE_MS`, until a call takes what it takes in the steady state of a deployed model, and a sample
during which the system gave the core to another process is taken again.
"""

from __future__ import annotations

import gc
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

if sys.platform != "win32":
    import resource

from search.bundle_script import worst_disturbed
from supernet.schema import Record

Key = TypeVar("Key")
Net = Callable[[], object]
Clock = Callable[[], int]  # nanoseconds
Progress = Callable[[int, int], None]  # done, total

SETTLE_CALLS = 1  # untimed calls at the start of every visit, at least ...
SETTLE_MS = 10.0  # ... and so long: on an AVX2 core a 1 ms net takes 4 % more after 5 ms than after 10 (LOG.md)
SAMPLE_MS = 0.2  # nets shorter than this are timed over several calls, above the clock's noise
VISIT_MS = 5.0  # what a visit spends at least on timed calls: one call of 1.5 ms is twice as uncertain as four (LOG.md)
RETAKES = 8  # how often a sample is taken again during which the system gave the core to another process
CLEAN_ROUNDS = 5  # with fewer rounds without interruption, all rounds count
HURRIED_ROUNDS = 5  # so many there are, however little time is left
INSTRUCTION_SETS = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile")  # x86's
GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
NORMAL_SD = 1.4826  # standard deviations in the median distance to the median, of a normal distribution
NORMAL_MEDIAN = math.sqrt(math.pi / 2)  # the median's standard error over the mean's
DRIFT_NETS = 5  # with fewer nets a round's drift cannot be told from their own spread


@dataclass(frozen=True)
class Timing:
    """What one net took: samples in ms, in the order of the rounds, drift divided out; `runs` counts timed calls.

    There is one sample per round, but none for a round in which the net was interrupted again and again.
    """

    samples_ms: tuple[float, ...]
    runs: int

    @property
    def median_ms(self) -> float:
        """The median over the rounds: what the project reports, never the mean."""
        return statistics.median(self.samples_ms)

    @property
    def standard_error_ms(self) -> float:
        """How far the median is from that of endless rounds: from the median distance to it, as for normal noise."""
        if len(self.samples_ms) < 2:
            return math.inf
        distance = float(np.median(np.abs(np.array(self.samples_ms) - self.median_ms)))
        return NORMAL_SD * distance * NORMAL_MEDIAN / math.sqrt(len(self.samples_ms))

    def scaled(self, speed: float) -> Timing:
        """With each sample multiplied by `speed`."""
        return Timing(tuple(speed * sample for sample in self.samples_ms), runs=self.runs)

    def joined(self, later: Timing, *, speed: float) -> Timing:
        """With the samples of a later measurement, each multiplied by `speed`."""
        return Timing((*self.samples_ms, *later.scaled(speed).samples_ms), runs=self.runs + later.runs)

    @property
    def p10_ms(self) -> float:
        """The 10th percentile over the rounds."""
        return float(np.percentile(self.samples_ms, 10))

    @property
    def p90_ms(self) -> float:
        """The 90th percentile over the rounds."""
        return float(np.percentile(self.samples_ms, 90))


@dataclass(frozen=True)
class Rounds:
    """What the rounds of a measurement were like.

    `redone` were thrown away and measured again; `dropped` were thrown away with no time left to measure them again;
    `fastest` and `slowest` are the smallest and the largest factor by which the nets of one round took longer than in
    the median round, which is divided out. `done` counts those that are left, where several measurements were joined
    that of the shortest.
    """

    done: int = 0
    redone: int = 0
    dropped: int = 0
    fastest: float = 1.0
    slowest: float = 1.0

    def joined(self, later: Rounds, *, speed: float) -> Rounds:
        """With those of a later measurement, whose times are multiplied by `speed`."""
        return Rounds(
            done=min(self.done, later.done) or max(self.done, later.done),
            redone=self.redone + later.redone,
            dropped=self.dropped + later.dropped,
            fastest=min(self.fastest, later.fastest / speed),
            slowest=max(self.slowest, later.slowest / speed),
        )


class Machine(Record):
    """Where something was measured; `cores` are those this process may use.

    `processor` tells those of one name apart: family, model and the instruction sets that nets run on. `governor` is
    what sets the clock's frequency. Both are empty in files of before they were noted down, and where the system does
    not tell.
    """

    cpu: str
    cores: int
    memory_gb: float
    system: str
    processor: str = ""
    governor: str = ""

    def same_processor(self, other: Machine) -> bool:
        """Whether both have the same processor, as far as both of them tell."""
        told = self.processor and other.processor
        return self.cpu == other.cpu and (not told or self.processor == other.processor)

    @property
    def described(self) -> str:
        """The processor's name with what tells it from others of that name."""
        return f"{self.cpu} ({self.processor})" if self.processor else self.cpu

    @property
    def slug(self) -> str:
        """The processor's name in lower case letters, digits and hyphens, for file names."""
        return "-".join("".join(c if c.isalnum() else " " for c in self.cpu.lower()).split()) or "unknown-cpu"


def machine() -> Machine:
    """The machine that this process runs on; memory is 0.0 where the system does not tell."""
    cpuinfo = Path("/proc/cpuinfo")
    told = _first_processor(cpuinfo.read_text()) if cpuinfo.is_file() else {}
    cpu = told.get("model name") or platform.processor() or platform.machine()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    known = hasattr(os, "sysconf") and {"SC_PAGE_SIZE", "SC_PHYS_PAGES"} <= set(os.sysconf_names)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if known else 0
    return Machine(
        cpu=cpu,
        cores=cores,
        memory_gb=round(memory / 2**30, 1),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        processor=_processor(told),
        governor=GOVERNOR.read_text().strip() if GOVERNOR.is_file() else "",
    )


def _first_processor(cpuinfo: str) -> dict[str, str]:
    """What Linux tells about the first processor."""
    lines = (line.partition(":") for line in cpuinfo.partition("\n\n")[0].splitlines())
    return {name.strip(): value.strip() for name, _, value in lines}


def _processor(told: Mapping[str, str]) -> str:
    """Family, model and instruction sets of a processor: what two of one name can differ in."""
    if "cpu family" not in told or "model" not in told:
        return ""
    flags = set(told.get("flags", "").split())
    sets = [name for name in INSTRUCTION_SETS if name in flags]
    return ", ".join((f"family {told['cpu family']} model {told['model']}", *sets))


def stopwatch_seconds(work: Callable[[], object], *, clock: Clock = time.perf_counter_ns) -> float:
    """How long one call takes, once, in seconds: for estimates, not for results."""
    start = clock()
    work()
    return (clock() - start) / 1e9


def most_redone(rounds: int) -> int:
    """How many disturbed rounds of a measurement of so many are thrown away and measured again, at most."""
    return rounds // 2


def measure(
    nets: Mapping[Key, Net],
    *,
    rounds: int,
    warmup: int,
    generator: torch.Generator,
    min_runs: int = 30,
    until_ns: float = math.inf,
    progress: Progress | None = None,
    seen: Callable[[Rounds], None] | None = None,
    log: RoundLog | None = None,
    threads: int | None = None,
    clock: Clock = time.perf_counter_ns,
) -> dict[Key, Timing]:
    """Time all nets, interleaved, with at least `min_runs` timed calls each.

    Torch runs in inference mode meanwhile, and on so many `threads`, if given, unless a net sees to that itself.
    `warmup` calls of every net come first, untimed but for the choice of how many calls make a sample. After
    `HURRIED_ROUNDS` there is none that would end after `until_ns` by the clock, and then there may be fewer calls.
    `progress` is called with (rounds done, rounds), those that are redone left out, `seen` with what the rounds were
    like, and `clock` gives nanoseconds. What is in the `log` is not measured again. Raises `ValueError` for rounds or
    warmup below 1.
    """
    if rounds < 1 or warmup < 1:
        raise ValueError(f"rounds and warmup must be 1 or more (got {rounds} and {warmup})")
    keys, log = list(nets), RoundLog() if log is None else log
    before = len(log.columns) + log.redone
    with _no_garbage_collection(), torch.inference_mode(), torch_threads(threads):
        plans = [_plan(nets[key], rounds=rounds, warmup=warmup, min_runs=min_runs, clock=clock) for key in keys]
        if log.plans:  # all rounds are alike, also those before an interruption
            plans = log.plans
        else:
            log.begin(plans)

        def visit(wanted: np.ndarray) -> np.ndarray:
            """A round: for every net its clean and its whole time in ms; nan for those that are not wanted."""
            column = np.full((len(keys), 2), np.nan)
            for index in torch.randperm(len(keys), generator=generator).tolist():
                if wanted[index]:
                    column[index] = _visit(nets[keys[index]], plans[index], clock)
            return column

        every, start = np.ones(len(keys), dtype=bool), clock()

        def time_left() -> bool:
            """Whether another round ends in time, if it takes as long as those before."""
            visits = len(log.columns) + log.redone - before
            took = (clock() - start) / max(1, visits)
            return len(log.columns) < HURRIED_ROUNDS or clock() + took <= until_ns

        while not log.redone and not log.repairs and log.rounds < rounds and time_left():
            log.add_round(visit(every))
            if progress is not None:
                progress(log.rounds, rounds)
        done = log.rounds
        if progress is not None and (done < rounds or before):
            progress(rounds, rounds)
        while not log.repairs and log.redone < most_redone(done) and time_left():
            if (worst := worst_disturbed(np.stack(log.columns, 1)[:, :, 1])) is None:
                break
            log.replace_round(worst, visit(every))
        while log.repairs < done and (lacking := _lacking(log, min_runs)).any() and time_left():
            log.add_repair(visit(lacking))
    return dict(zip(keys, timings_in(log, min_runs=min_runs, seen=seen), strict=True))


class RoundLog:
    """The rounds of one measurement as they are measured, in memory; a subclass keeps them where they outlast a stop.

    `plans` says how each net is visited, `columns` holds for every round the clean and the whole time of each net, in
    ms (nan where there is none): first `rounds` of them with all nets, of which `redone` stand in the place of a
    disturbed one, then `repairs` with those nets that were interrupted too often.
    """

    def __init__(self) -> None:
        self.plans: list[VisitPlan] = []
        self.columns: list[np.ndarray] = []
        self.rounds = self.redone = self.repairs = 0

    def begin(self, plans: list[VisitPlan]) -> None:
        """Nets are visited like this from now on."""
        self.plans = plans

    def add_round(self, column: np.ndarray) -> None:
        """A round more."""
        self.columns.append(column)
        self.rounds += 1

    def replace_round(self, index: int, column: np.ndarray) -> None:
        """Another round in the place of a disturbed one."""
        self.columns[index] = column
        self.redone += 1

    def add_repair(self, column: np.ndarray) -> None:
        """A visit of some nets alone."""
        self.columns.append(column)
        self.repairs += 1


def timings_in(log: RoundLog, *, min_runs: int = 30, seen: Callable[[Rounds], None] | None = None) -> list[Timing]:
    """The timing of every net of a finished measurement; `seen` is called with what its rounds were like."""
    columns = _undisturbed(log)
    clean_ms, all_ms = np.moveaxis(np.stack(columns, axis=1), 2, 0)
    sufficient = _clean_rounds(columns) >= np.minimum(_enough(log, min_runs), CLEAN_ROUNDS)
    times_ms = np.where(sufficient[:, None], clean_ms, all_ms)
    if seen is not None:
        dropped = len(log.columns) - len(columns)
        seen(rounds_of(times_ms, done=log.rounds - dropped, redone=log.redone, dropped=dropped))
    return timings_of(times_ms, runs=[plan.runs for plan in log.plans])


def _undisturbed(log: RoundLog) -> list[np.ndarray]:
    """The columns without those of disturbed rounds that were not measured again."""
    rounds = log.columns[: log.rounds]
    kept = undisturbed(np.stack(rounds, axis=1)[:, :, 1])
    return [rounds[index] for index in kept] + log.columns[log.rounds :]


def undisturbed(times_ms: np.ndarray) -> list[int]:
    """The rounds, by their columns, that are left without the disturbed ones, which are half of them at most."""
    kept = list(range(times_ms.shape[1]))
    for _ in range(times_ms.shape[1] // 2):
        if (worst := worst_disturbed(times_ms[:, kept])) is None:
            break
        del kept[worst]
    return kept


def _enough(log: RoundLog, min_runs: int) -> np.ndarray:
    """In how many rounds each net should not have been interrupted."""
    return np.array([min(log.rounds, math.ceil(min_runs / plan.runs)) for plan in log.plans])


def _lacking(log: RoundLog, min_runs: int) -> np.ndarray:
    """The nets that were interrupted too often."""
    lacking: np.ndarray = _clean_rounds(log.columns) < _enough(log, min_runs)
    return lacking


def _clean_rounds(columns: Sequence[np.ndarray]) -> np.ndarray:
    """In how many rounds each net was not interrupted."""
    count: np.ndarray = np.isfinite(np.stack(columns, axis=1)[:, :, 0]).sum(axis=1)
    return count


def timings_of(times_ms: np.ndarray, *, runs: Sequence[int]) -> list[Timing]:
    """The timings of nets that were measured in the same rounds, each round's drift divided out.

    `times_ms` has a row a net and a column a round, nan where a net has no sample; `runs` are the calls of a sample.
    """
    times_ms = times_ms / drift_of(times_ms)
    return [
        Timing(tuple(times[np.isfinite(times)].tolist()), runs=int(np.isfinite(times).sum()) * calls)
        for times, calls in zip(times_ms, runs, strict=True)
    ]


@dataclass(frozen=True)
class VisitPlan:
    """How a visit times a net: after `settle` untimed calls the median over `samples`, each the mean over `calls`."""

    settle: int
    calls: int
    samples: int

    @property
    def runs(self) -> int:
        """The timed calls of one visit."""
        return self.calls * self.samples


def _plan(net: Net, *, rounds: int, warmup: int, min_runs: int, clock: Clock) -> VisitPlan:
    fastest_ms = min(_sample(net, 1, clock)[0] for _ in range(warmup))
    fastest_ms = max(fastest_ms, 1e-4)
    calls = math.ceil(SAMPLE_MS / fastest_ms) if fastest_ms < SAMPLE_MS else 1
    samples = max(math.ceil(VISIT_MS / (fastest_ms * calls)), math.ceil(min_runs / (rounds * calls)))
    return VisitPlan(settle=max(SETTLE_CALLS, math.ceil(SETTLE_MS / fastest_ms)), calls=calls, samples=samples)


def _visit(net: Net, plan: VisitPlan, clock: Clock) -> tuple[float, float]:
    """What a net took in ms: by its uninterrupted samples (nan if more than half were not), and by all."""
    for _ in range(plan.settle):
        net()
    samples = [_sample(net, plan.calls, clock) for _ in range(plan.samples)]
    clean = [sample_ms for sample_ms, is_clean in samples if is_clean]
    median_ms = statistics.median(sample_ms for sample_ms, _ in samples)
    return (statistics.median(clean) if 2 * len(clean) >= len(samples) else math.nan), median_ms


def _sample(net: Net, calls: int, clock: Clock) -> tuple[float, bool]:
    """The mean of consecutive calls in ms, and whether nothing interrupted them; else the fastest of the takes."""
    fastest_ms = math.inf
    for _ in range(1 + RETAKES):
        interruptions, start = _interruptions(), clock()
        for _ in range(calls):
            net()
        sample_ms = (clock() - start) / calls / 1e6
        if _interruptions() == interruptions:
            return sample_ms, True
        fastest_ms = min(fastest_ms, sample_ms)
    return fastest_ms, False


def _interruptions() -> int:
    """How often the system has taken the core from this process against its will; always 0 where it does not tell.

    On a shared machine a time slice of another process lasts milliseconds, as long as a whole net: medians alone do
    not survive that (measured with three other processes on two cores, nets of 3 to 8 ms: medians twice as long).
    """
    if sys.platform == "win32":
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def rounds_of(times_ms: np.ndarray, *, done: int, redone: int, dropped: int) -> Rounds:
    """What rounds were like in which nets took these times: a row a net, a column a round."""
    drift = drift_of(times_ms)
    return Rounds(done=done, redone=redone, dropped=dropped, fastest=float(drift.min()), slowest=float(drift.max()))


def drift_of(times_ms: np.ndarray) -> np.ndarray:
    """Each round's factor against the nets' own medians, with a median of 1 over the rounds."""
    relative = times_ms / np.nanmedian(times_ms, axis=1, keepdims=True)
    known = np.isfinite(relative).sum(axis=0) >= DRIFT_NETS
    factors = np.ones(times_ms.shape[1])
    factors[known] = np.nanmedian(relative[:, known], axis=0)
    return factors / np.median(factors)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextmanager
def torch_threads(threads: int | None) -> Iterator[None]:
    """Torch on so many threads meanwhile, or on as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if threads is None else threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
