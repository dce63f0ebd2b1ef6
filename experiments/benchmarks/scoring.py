"""Benchmark: what a score of an architecture costs, one by one on all threads and several side by side.

    python -m experiments.benchmarks.scoring runs/cifar10-mixers

Random architectures of a run that has its supernet, in groups; each group is scored both ways, one after the other in
turn, on the images that the run's search takes. Nothing is kept in the run's folder.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import torch

from experiments.artifacts import RunFolder, environment
from experiments.console import Screen, counted
from experiments.run import Run
from experiments.scoring import Scorer, search_scorer
from search.measure import stopwatch_seconds
from search.slimming import TOLD_AHEAD
from supernet import Architecture, UserError
from supernet.schema import write_atomically
from train.randomness import generator_for


def group_seconds(scorer: Scorer, nets: list[Architecture], *, at_once: int) -> float:
    """The seconds that one score of these takes on average, `at_once` of them at a time; nothing is remembered."""
    scorer.at_once = at_once
    scorer.known.clear()

    def score() -> None:
        scorer.ahead(nets)
        for net in nets:
            scorer(net)

    return stopwatch_seconds(score) / len(nets)


def main() -> None:
    """Parse the command line, score, print the seconds and write the record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--groups", type=int, default=6, help=f"of {TOLD_AHEAD} architectures")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    folder, screen = RunFolder(arguments.run), Screen()
    if not folder.exists or "supernet" not in folder.manifest.stages:
        raise UserError(f"{arguments.run}: holds no finished supernet")
    run = Run(folder.config, folder, screen, command="python -m experiments.benchmarks.scoring")
    torch.set_num_threads(run.threads)
    scorer = search_scorer(run, arguments.run)
    ways = {"one by one": 1, "side by side": scorer.at_once}
    scorer.cache = None
    generator = generator_for(0, "architectures of a benchmark")
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    with screen.bar("scoring") as advance:
        told = counted(advance)
        for group in range(arguments.groups):
            nets = [run.space.random(generator) for _ in range(TOLD_AHEAD)]
            for way in list(ways)[:: 1 if group % 2 else -1]:
                seconds[way].append(group_seconds(scorer, nets, at_once=ways[way]))
            told(group + 1, arguments.groups)
    medians = {way: statistics.median(found) for way, found in seconds.items()}
    ratios = [first / second for first, second in zip(*seconds.values(), strict=True)]
    rows = [
        [
            way,
            str(ways[way]),
            f"{medians[way]:.2f}",
            f"{min(found):.2f} to {max(found):.2f}",
            f"{medians[way] / 0.06:.1f}",
        ]
        for way, found in seconds.items()
    ]
    images = sum(len(labels) for _, labels in (*scorer.refit, *scorer.images))
    screen.table(
        f"{folder.config.name}: scores of {images} images, {run.threads} threads",
        ["way", "at once", "s a score", "of the groups", "minutes for 1,000"],
        rows,
    )
    screen.line(f"Side by side {statistics.median(ratios):.2f} times as fast (median of {len(ratios)} groups)")
    if arguments.out is not None:
        record = {
            "experiment": folder.config.name,
            "images": images,
            "at_once": ways,
            "environment": environment(threads=run.threads, command=run.environment.command or "").model_dump(
                mode="json"
            ),
            "median_seconds": medians,
            "seconds": seconds,
            "median_ratio": statistics.median(ratios),
        }
        write_atomically(arguments.out, (json.dumps(record, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
