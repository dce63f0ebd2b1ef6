"""Benchmark: how long a visit of a net has to be: until its calls take what they always do, and to be certain enough.

    python -m experiments.benchmarks.settling experiments/imagenette.yaml --set data.num_classes=10

Random nets of an experiment's space, on its table's runtime. Each round visits all nets in random order and times
consecutive calls of each; a call is compared with the last three of the visit. How certain a visit is by the median of
its last calls is seen from the two halves of the rounds, each round's drift divided out. `search.measure.SETTLE_MS` and
`VISIT_MS` are based on it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from experiments.artifacts import environment
from experiments.console import Screen, counted
from experiments.experiment import load_experiment
from search.measure import Clock, Net, Progress, stopwatch_seconds
from search.net_building import build_models
from search.runtimes import runtime
from train.data import count_classes
from train.randomness import generator_for

LAST = 3  # calls that the others are compared with
GROUPS = 4  # of nets, by their latency
Key = TypeVar("Key", bound=Hashable)


def calls_ms(
    nets: Mapping[Key, Net],
    *,
    calls: int,
    rounds: int,
    generator: torch.Generator,
    progress: Progress | None = None,
    clock: Clock = time.perf_counter_ns,
) -> np.ndarray:
    """The ms of every call: rounds, nets, calls of a visit."""
    built = list(nets.values())
    times = np.empty((rounds, len(built), calls))
    for number in range(rounds):
        for index in torch.randperm(len(built), generator=generator).tolist():
            times[number, index] = [1e3 * stopwatch_seconds(built[index], clock=clock) for _ in range(calls)]
        if progress is not None:
            progress(number + 1, rounds)
    return times


def rows_of(times_ms: np.ndarray) -> list[list[str]]:
    """Rows for a table: nets from the fastest to the slowest in groups, their mean ms, every call against the last."""
    median_ms = np.median(times_ms, axis=0)
    settled_ms = median_ms[:, -LAST:].mean(axis=1)
    groups = np.array_split(np.argsort(settled_ms), min(GROUPS, len(settled_ms)))
    return [
        [f"{settled_ms[group].mean():.2f}", *(f"{ratio:.3f}" for ratio in _ratios(median_ms[group], settled_ms[group]))]
        for group in groups
    ]


def _ratios(median_ms: np.ndarray, settled_ms: np.ndarray) -> np.ndarray:
    ratios: np.ndarray = np.median(median_ms / settled_ms[:, None], axis=0)
    return ratios


def certainty_rows(times_ms: np.ndarray) -> list[list[str]]:
    """Rows for a table: how many last calls a visit counts by, and what the two halves of the rounds then differ by."""
    rows = []
    for calls in (1, 2, 4, 8):
        if calls <= times_ms.shape[2] // 2:
            logs = np.log(np.median(times_ms[:, :, -calls:], axis=2))
            logs -= np.median(logs, axis=0)
            logs -= np.median(logs, axis=1, keepdims=True)
            halves = np.median(logs[0::2], axis=0) - np.median(logs[1::2], axis=0)
            rows.append([str(calls), f"{100 * float(np.abs(halves).mean()):.2f}"])
    return rows


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks.settling", description=_SUMMARY)
    parser.add_argument("experiment", type=Path)
    parser.add_argument("--nets", type=int, default=40, help="default: 40")
    parser.add_argument("--rounds", type=int, default=60, help="default: 60")
    parser.add_argument("--calls", type=int, default=16, help="of a net in a row (default: 16)")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="override a field")
    return parser.parse_args(words)


_SUMMARY = "How much longer a net's first calls take after another net has run, and how certain the later ones are."


def main(words: Sequence[str] | None = None) -> None:
    """Measure, and print a row a group of nets with the conditions."""
    arguments, screen = _arguments(words), Screen()
    experiment = load_experiment(arguments.experiment, overrides=tuple(arguments.set))
    table, generator = experiment.table, generator_for(0, "settling")
    device = runtime(table.runtime, threads=table.threads, precision=table.precision)
    space = experiment.search_space(num_classes=count_classes(experiment.data))
    nets = [space.random(generator) for _ in range(arguments.nets)]
    with screen.bar("timing calls in a row") as advance:
        found = calls_ms(
            build_models(nets, device, batch_size=table.batch_size),
            calls=arguments.calls,
            rounds=arguments.rounds,
            generator=generator,
            progress=counted(advance),
        )
    where = environment(threads=table.threads, command="")
    title = f"{device.name} {device.version}, {device.precision}, threads: {table.threads}, {where.machine.described}"
    header = ["ms", *(f"call {number}" for number in range(1, arguments.calls + 1))]
    screen.table(f"{title}, commit {(where.commit or 'unknown')[:7]}", header, rows_of(found))
    screen.table("Last calls of a visit", ["median of", "halves of the rounds differ by, %"], certainty_rows(found))


if __name__ == "__main__":
    main()
