"""Benchmark: what the largest architecture of an experiment learns in a given time, trained alone from scratch.

    python -m experiments.benchmarks.learning_speed experiments/cifar10.yaml --seconds 200 --set space.head_pooling=mean

For choosing a space whose nets are trained for minutes only. The recipe is the experiment's `train`, its schedule
stretched over the seconds, on the training images without those held out; the accuracy is that on the latter, never on
the test images. One seed: differences below a point mean nothing.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from experiments.artifacts import environment
from experiments.console import Screen
from experiments.experiment import Experiment, load_experiment
from experiments.run import chosen_device
from supernet import Architecture, cost
from supernet.schema import Record
from train.data import ImageData, open_data
from train.evaluation import accuracy
from train.retraining import Retraining, initial_model


class Learned(Record):
    """What a net learned: accuracy on the held-out images, and how much it saw for it."""

    accuracy_percent: float
    epochs: float
    images_per_second: float


def learned(
    architecture: Architecture,
    data: ImageData,
    experiment: Experiment,
    *,
    seconds: float,
    device: torch.device,
    clock: Callable[[], float] = time.perf_counter,
) -> Learned:
    """Train an architecture from scratch for so many seconds."""
    config = experiment.train.model_copy(update={"use_held_out": False, "start": "scratch"})
    seed = experiment.seeds.train
    model = initial_model(architecture, config, supernet=None, seed=seed)
    training = Retraining(model, data, config, digest=model.architecture.digest, seed=seed, device=device)
    per_epoch, images, start = training.steps_per_epoch, 0, clock()
    batches = itertools.chain.from_iterable(training.batches(epoch, 0) for epoch in itertools.count())
    for batch in batches:
        share = (clock() - start) / seconds
        if share >= 1:
            break
        at = int(share * config.epochs * per_epoch)  # where the recipe would be by now
        training.step(batch, epoch=at // per_epoch, step=at % per_epoch)
        images += len(batch[0])
    held_out = accuracy(training.result.eval(), data.held_out, batch_size=config.batch_size, precision=config.precision)
    return Learned(
        accuracy_percent=round(held_out.percent, 2),
        epochs=round(images / len(data.train), 2),
        images_per_second=round(images / seconds, 1),
    )


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks.learning_speed", description=_SUMMARY)
    parser.add_argument("experiment", type=Path)
    parser.add_argument("--seconds", type=float, default=200.0, help="how long to train (default: 200)")
    parser.add_argument("--threads", type=int, default=1, help="default: 1, as retraining uses on a CPU")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="override a field")
    return parser.parse_args(words)


_SUMMARY = "What the largest architecture of an experiment learns in a given time."


def main(words: Sequence[str] | None = None) -> None:
    """Train, and print one line with its conditions."""
    arguments = _arguments(words)
    torch.set_num_threads(arguments.threads)
    experiment = load_experiment(arguments.experiment, overrides=tuple(arguments.set))
    data = open_data(experiment.data, seed=experiment.seeds.data)
    largest = experiment.search_space(num_classes=data.num_classes).largest
    device = chosen_device(experiment.device)
    found = learned(largest, data, experiment, seconds=arguments.seconds, device=device)
    where = environment(threads=arguments.threads, command="")
    Screen().line(
        f"{cost(largest).macs / 1e6:.1f} M MACs, {found.epochs:g} epochs in {arguments.seconds:g} s: "
        f"{found.accuracy_percent:g} % of the held-out images "
        f"({found.images_per_second:g} images/s; {where.machine.cpu}, threads: {arguments.threads}, "
        f"commit {(where.commit or 'unknown')[:7]})"
    )


if __name__ == "__main__":
    main()
