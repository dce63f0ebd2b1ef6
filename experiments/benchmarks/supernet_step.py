"""Benchmark: a supernet's training step against the step of its largest single architecture, in time and peak memory.

    python -m experiments.benchmarks.supernet_step

The steps compared, all on one batch of noise of the same size and with the same optimizer and precision:

- `largest`: the largest architecture as a standalone model;
- `hard_largest`: a hard step whose path is that same architecture: what hard mode itself costs;
- `alpha`: a step of the alphas on that same path; `hard_with_alphas` is `hard_largest` and its share of such a step;
- `hard`: a hard step at the largest widths on a path drawn from equal probabilities, as early in a training; such a
  path skips positions, so it is smaller than the largest architecture;
- `soft`: a step of the mixture of all candidates at the largest widths;
- `sandwich`: the hard step of the experiment's own recipe, several widths on one batch.

Time: every round takes one step of each, in random order, in one process; a ratio is that of two steps of one round.
Memory: each in a process of its own; the peak above what the process held before it built a model. On a CPU that is
resident memory, on CUDA allocated memory. Before they are measured, supernets have taken steps until every weight has
its optimizer state. Resident memory grows with the first steps, since the allocator keeps pieces, so a peak is that of
many steps (seen: 422 MB after one step of a model, 545 after 15, 564 after 30, 556 after 60).
"""

from __future__ import annotations

import argparse
import datetime
import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from experiments.artifacts import Environment, environment
from experiments.benchmarks.interleaved import interleaved_seconds
from experiments.benchmarks.peak_memory import peak_bytes
from experiments.benchmarks.training_steps import CASES, ROOM, STEPS, Case, make_step
from experiments.console import Screen
from experiments.run import chosen_device
from search.measure import machine
from supernet import Supernet, cost
from supernet.schema import Record, save
from train.recipe import resolved_precision

WARMUP_STEPS = 3


class Spread(Record):
    """Median, 10th and 90th percentile over the rounds."""

    median: float
    p10: float
    p90: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of some numbers, to six digits."""
        p10, median, p90 = (float(f"{value:.6g}") for value in np.percentile(values, (10, 50, 90)))
        return cls(median=median, p10=p10, p90=p90)


class StepTime(Record):
    """What a step took, and its ratio to the largest architecture's step of the same round."""

    step: str
    seconds: Spread
    ratio: Spread


class StepMemory(Record):
    """The peak above what the process held before it built a model, and its ratio to the largest architecture's."""

    step: str
    peak_mb: float
    ratio: float


class SpaceResult(Record):
    """The figures of one space; `hard_with_alphas` is (weight step + alpha step / `alpha_every`) over the largest's."""

    space: str
    resolution_px: tuple[int, int]
    batch_size: int
    alpha_every: int
    sandwich_widths: int
    largest_parameters: int
    largest_macs: int
    supernet_parameters: int
    times: tuple[StepTime, ...]
    hard_with_alphas: Spread
    memory: tuple[StepMemory, ...]


class SupernetStepRecord(Record):
    """All figures and the conditions they hold under; `memory_kind` says what was counted."""

    schema_version: Literal[1] = 1
    date: str
    device: str
    precision: str
    memory_kind: Literal["resident", "cuda allocated"]
    rounds: int
    warmup_steps: int
    memory_steps: int
    environment: Environment
    spaces: tuple[SpaceResult, ...]


def time_steps(case: Case, device: torch.device, *, rounds: int, warmup: int) -> dict[str, list[float]]:
    """Seconds of every kind of step, one a round."""
    steps = {name: make_step(name, case, device) for name in STEPS}
    return interleaved_seconds(steps, rounds=rounds, warmup=warmup)


def ratios(seconds: Sequence[float], reference: Sequence[float]) -> list[float]:
    """Round by round, so that a slow minute of the machine cancels out."""
    return [mine / its for mine, its in zip(seconds, reference, strict=True)]


def step_peak_bytes(name: str, case: Case, device: torch.device, *, steps: int) -> int:
    """The most memory that steps of this kind need, above what the process holds before it builds a model."""

    def work() -> None:
        step = make_step(name, case, device)
        for _ in range(steps):
            step()

    return peak_bytes(work, device)


def child_peak_bytes(name: str, case_name: str, device: torch.device, *, steps: int) -> int:
    """`step_peak_bytes`, measured by a child process. Raises `RuntimeError` with the child's last words if it fails."""
    options = ["--child", case_name, name, "--memory-steps", str(steps), "--device", device.type]
    command = [sys.executable, "-m", "experiments.benchmarks.supernet_step", *options]
    child = subprocess.run(command, cwd=ROOM.parent, capture_output=True, text=True, check=False)
    if child.returncode:
        raise RuntimeError(f"{shlex.join(command)} failed: {child.stderr.strip()[-500:]}")
    return int(json.loads(child.stdout.splitlines()[-1])["peak_bytes"])


def result_of(case: Case, seconds: dict[str, list[float]], peaks: dict[str, int]) -> SpaceResult:
    """The figures of one space, from the seconds of its rounds and its peaks in bytes."""
    size, reference = cost(case.space.largest), seconds["largest"]
    with torch.device("meta"):
        supernet_parameters = sum(parameter.numel() for parameter in Supernet(case.space).parameters())
    every = case.config.alpha.every
    amortized = [
        weight + alpha / every for weight, alpha in zip(seconds["hard_largest"], seconds["alpha"], strict=True)
    ]
    return SpaceResult(
        space=case.name,
        resolution_px=case.space.resolution_px,
        batch_size=case.config.batch_size,
        alpha_every=every,
        sandwich_widths=2 + case.config.widths.random,
        largest_parameters=size.parameters,
        largest_macs=size.macs,
        supernet_parameters=supernet_parameters,
        times=tuple(
            StepTime(step=name, seconds=Spread.of(values), ratio=Spread.of(ratios(values, reference)))
            for name, values in seconds.items()
        ),
        hard_with_alphas=Spread.of(ratios(amortized, reference)),
        memory=tuple(
            StepMemory(step=name, peak_mb=round(peak / 2**20, 1), ratio=round(peak / peaks["largest"], 4))
            for name, peak in peaks.items()
        ),
    )


def print_result(result: SpaceResult, screen: Screen) -> None:
    """One table a space."""
    peaks = {entry.step: entry for entry in result.memory}
    rows = [
        [
            entry.step,
            f"{1000 * entry.seconds.median:.0f}",
            f"{entry.ratio.median:.2f} ({entry.ratio.p10:.2f} to {entry.ratio.p90:.2f})",
            f"{peaks[entry.step].peak_mb:.0f}",
            f"{peaks[entry.step].ratio:.2f}",
        ]
        for entry in result.times
    ]
    size = f"{result.largest_macs / 1e6:.0f} M MACs, batch {result.batch_size}"
    screen.table(f"{result.space} ({size})", ["step", "ms", "of largest", "peak MB", "of largest"], rows)
    both = result.hard_with_alphas
    screen.line(
        f"hard_largest with an alpha step every {result.alpha_every}: {both.median:.2f} of largest"
        f" ({both.p10:.2f} to {both.p90:.2f})"
    )


def record_path(device: torch.device, precision: str, *, threads: int) -> Path:
    """Where a result belongs: the condition is the file's name."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else machine().slug
    slug = "-".join("".join(c if c.isalnum() else " " for c in name.lower()).split())
    return ROOM / "records" / f"supernet-step-{slug}-{precision}-t{threads}.json"


def run(
    names: Sequence[str], device: torch.device, *, rounds: int, memory_steps: int, screen: Screen
) -> list[SpaceResult]:
    """Measure these spaces, memory first, while this process is still small."""
    peaks: dict[str, dict[str, int]] = {}
    for name in names:
        peaks[name] = {}
        for step in STEPS:
            peaks[name][step] = child_peak_bytes(step, name, device, steps=memory_steps)
            screen.line(f"{name}, {step}: peak {peaks[name][step] / 2**20:.0f} MB")
    results = []
    for name in names:
        case = CASES[name]()
        results.append(result_of(case, time_steps(case, device, rounds=rounds, warmup=WARMUP_STEPS), peaks[name]))
        print_result(results[-1], screen)
    return results


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks.supernet_step", description=_SUMMARY)
    parser.add_argument("--spaces", nargs="+", choices=CASES, default=list(CASES), help="default: all")
    parser.add_argument("--rounds", type=int, default=20, help="timed steps of each kind (default: 20)")
    parser.add_argument("--memory-steps", type=int, default=30, help="steps of each kind for a peak (default: 30)")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--out", type=Path, help="default: experiments/records/, named after the condition")
    parser.add_argument("--child", nargs=2, metavar=("SPACE", "STEP"), help=argparse.SUPPRESS)
    return parser.parse_args(words)


_SUMMARY = "A supernet's training step against the step of its largest single architecture, in time and peak memory."


def main(words: Sequence[str] | None = None) -> None:
    """Measure, print, and write the record."""
    arguments = _arguments(words)
    device = chosen_device(arguments.device)
    if arguments.child:
        name, step = arguments.child
        peak = step_peak_bytes(step, CASES[name](), device, steps=arguments.memory_steps)
        print(json.dumps({"peak_bytes": peak}))
        return
    screen = Screen()
    precisions = {resolved_precision(CASES[name]().config.precision, device) for name in arguments.spaces}
    (precision,) = precisions
    threads = torch.get_num_threads()
    results = run(arguments.spaces, device, rounds=arguments.rounds, memory_steps=arguments.memory_steps, screen=screen)
    command = shlex.join(["python", "-m", "experiments.benchmarks.supernet_step", *(words or sys.argv[1:])])
    record = SupernetStepRecord(
        date=datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        precision=precision,
        memory_kind="cuda allocated" if device.type == "cuda" else "resident",
        rounds=arguments.rounds,
        warmup_steps=WARMUP_STEPS,
        memory_steps=arguments.memory_steps,
        environment=environment(threads=threads, command=command),
        spaces=tuple(results),
    )
    path = arguments.out or record_path(device, precision, threads=threads)
    save(record, path)
    screen.line(f"Written: {path}")


if __name__ == "__main__":
    main()
