"""Benchmark: what a Pareto front costs the integer program, for a space whose latency table was measured.

    python -m experiments.benchmarks.exact_front experiments/imagenet_l1.yaml TABLE.json --set data.num_classes=1000

What the choices contribute is drawn at random, falling with what they save: how long a program takes depends on the
space and on how near to each other its architectures are, not on what the numbers mean. Every front is solved to a gap
of zero.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from pathlib import Path
from typing import Any

import numpy as np

from experiments.artifacts import environment
from experiments.console import Screen
from experiments.experiment import load_experiment
from search.contributions import Contributions
from search.exact import solve
from search.latency_table import LatencyTable
from search.limits import AnyLimit, Limit, PartLimit, latency_limit
from search.measure import stopwatch_seconds
from search.parts import macs_of, parameters_of, peak_activations_of_part
from supernet import SearchSpace, cost
from supernet.activation_memory import peak_activations
from supernet.schema import write_atomically
from train.data import count_classes


def drawn(space: SearchSpace, *, seed: int) -> Contributions:
    """Contributions in points: narrower widths and other candidates than the largest net's take off up to 3 each."""
    draw = random.Random(seed)
    largest = space.choices(space.largest)

    def of_widths(number: int) -> tuple[float, ...]:
        return (*sorted(draw.uniform(-3, 0) for _ in space.widths(number)[:-1]), 0.0)

    def of_position(number: int, at: int) -> tuple[float, ...]:
        return tuple(
            0.0 if candidate == largest[number - 1][at] else draw.uniform(-3, 0)
            for candidate in space.candidates(number)
        )

    return Contributions(
        space_digest=space.digest,
        largest_percent=80.0,
        widths=tuple(of_widths(number) for number in range(1, len(space.stages) + 1)),
        blocks=tuple(
            tuple(of_position(number, at) for at in range(stage.depth))
            for number, stage in enumerate(space.stages, start=1)
        ),
    )


def sizes(space: SearchSpace) -> list[AnyLimit]:
    """Three limits more, each in the middle between the smallest and the largest architecture."""
    small, large = cost(space.smallest), cost(space.largest)
    peaks = peak_activations(space.smallest), peak_activations(space.largest)
    return [
        Limit("parameters", parameters_of, (small.parameters + large.parameters) / 2),
        Limit("MACs", macs_of, (small.macs + large.macs) / 2),
        PartLimit("numbers at once", peak_activations_of_part, sum(peaks) / 2),
    ]


def front_seconds(
    space: SearchSpace, table: LatencyTable, *, budgets: int, seed: int, further: list[AnyLimit]
) -> tuple[list[float], float]:
    """Seconds of each budget's program, evenly spread over the latencies, and the largest gap to the bound."""
    contributions = drawn(space, seed=seed)
    smallest_ms, largest_ms = table.latency_ms(space.smallest), table.latency_ms(space.largest)
    seconds, gaps = [], []
    for budget_ms in np.linspace(smallest_ms, largest_ms, budgets + 2)[1:-1].tolist():

        def program(budget_ms: float = budget_ms) -> None:
            optimum = solve(space, contributions, [latency_limit(table, budget_ms), *further])
            gaps.append(optimum.bound_percent - optimum.percent)

        seconds.append(stopwatch_seconds(program))
    return seconds, max(gaps)


def main() -> None:
    """Parse the command line, solve the fronts, print them and write the record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("experiment", type=Path)
    parser.add_argument("table", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE")
    parser.add_argument("--budgets", type=int, default=10)
    parser.add_argument("--fronts", type=int, default=5, help="each with contributions of its own")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    experiment = load_experiment(arguments.experiment, overrides=tuple(arguments.set))
    table = LatencyTable.load(arguments.table)
    space = table.runnable(experiment.search_space(num_classes=count_classes(experiment.data)))
    limits: dict[str, list[AnyLimit]] = {"ms": [], "ms and three sizes": sizes(space)}
    rows, fronts = [], list[dict[str, Any]]()
    for seed in range(arguments.fronts):
        for name, further in limits.items():
            seconds, gap = front_seconds(space, table, budgets=arguments.budgets, seed=seed, further=further)
            fronts.append({"seed": seed, "limits": name, "seconds": seconds, "largest_gap_percent": gap})
            rows.append([name, str(seed), f"{sum(seconds):.2f}", f"{max(seconds):.2f}", f"{gap:.1e}"])
    screen, here = Screen(), environment(threads=1, command="python -m experiments.benchmarks.exact_front")
    screen.table(
        f"{experiment.name}: fronts of {arguments.budgets} budgets",
        ["limits", "seed", "s a front", "slowest s", "gap"],
        rows,
    )
    medians = {
        name: statistics.median(sum(front["seconds"]) for front in fronts if front["limits"] == name) for name in limits
    }
    screen.line(", ".join(f"{name}: {seconds:.2f} s" for name, seconds in medians.items()) + " (median of the fronts)")
    if arguments.out is not None:
        record = {
            "experiment": experiment.name,
            "budgets": arguments.budgets,
            "environment": here.model_dump(mode="json"),
            "median_seconds": medians,
            "fronts": fronts,
        }
        write_atomically(arguments.out, (json.dumps(record, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
