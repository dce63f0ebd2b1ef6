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
its optimizer state.
"""

from __future__ import annotations

import argparse
import datetime
import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from experiments.artifacts import Environment, environment
from experiments.benchmarks.peak_memory import peak_bytes
from experiments.console import Screen
from experiments.experiment import load_experiment
from experiments.run import chosen_device
from search.measure import machine, stopwatch_seconds
from supernet import Architecture, MetaFormer, SearchSpace, Supernet, cost
from supernet.schema import Record, parse, save
from supernet.space import SpaceShape
from train.augment import AugmentConfig
from train.data import DataConfig, ImageData, synthetic_data
from train.distillation import classification_loss
from train.randomness import generator_for
from train.recipe import autocast, make_optimizer, resolved_precision
from train.splits import Batch
from train.supernet_training import SupernetConfig, SupernetTraining

ROOM = Path(__file__).resolve().parents[1]
STEPS = ("largest", "hard_largest", "hard", "alpha", "soft", "sandwich")
CLASSES = 10
PINNED_ALPHA = 40.0  # above any difference of two Gumbel draws in fp32, so that the candidate is always chosen
MOST_FILLING_STEPS = 300
WARMUP_STEPS = 3

Step = Callable[[], None]


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


@dataclass(frozen=True)
class Case:
    """A space, and the recipe of its supernet."""

    name: str
    space: SearchSpace
    config: SupernetConfig


def cifar10_case() -> Case:
    """The space and the recipe of experiments/cifar10.yaml."""
    experiment = load_experiment(ROOM / "cifar10.yaml")
    return Case("cifar10", _space(experiment.space, experiment.data.resolution_px), experiment.supernet)


def efficientformer_case() -> Case:
    """EfficientFormer's candidates at L1's widths, on images of 64 px."""
    widths, depths = (48, 96, 224, 448), (2, 2, 3, 2)
    stages = [
        {
            "depth": depth,
            "width_channels": {"smallest": 16 * (width // 32), "largest": width},
            "candidates": ["mb4d", "identity"] if number < 2 else ["mb4d", "mb3d", "identity"],
        }
        for number, (width, depth) in enumerate(zip(widths, depths, strict=True))
    ]
    shape = parse(SpaceShape, {"stages": stages}, source="the benchmark")
    config = SupernetConfig(epochs=1, batch_size=64, learning_rate=1e-3)
    return Case("efficientformer-64px", _space(shape, (64, 64)), config)


CASES: dict[str, Callable[[], Case]] = {"cifar10": cifar10_case, "efficientformer-64px": efficientformer_case}


def _space(shape: SpaceShape, resolution_px: tuple[int, int]) -> SearchSpace:
    return SearchSpace.of(shape, in_channels=3, resolution_px=resolution_px, num_classes=CLASSES)


def make_step(name: str, case: Case, device: torch.device) -> Step:
    """A callable that takes one training step of this kind and waits for its end."""
    batch = noise_batch(case, device)
    take = _single_step(case, batch, device) if name == "largest" else _supernet_step(name, case, batch, device)

    def step() -> None:
        take()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step


def noise_batch(case: Case, device: torch.device) -> Batch:
    """A batch of the recipe's size; the values of pixels do not matter to time and memory."""
    generator = generator_for(0, "benchmark batch")
    shape = (case.config.batch_size, case.space.in_channels, *case.space.resolution_px)
    images_BCHW = torch.randn(shape, generator=generator)
    labels_B = torch.randint(CLASSES, (case.config.batch_size,), generator=generator)
    if case.config.channels_last:
        images_BCHW = images_BCHW.contiguous(memory_format=torch.channels_last)
    return images_BCHW.to(device), labels_B.to(device)


def _single_step(case: Case, batch: Batch, device: torch.device) -> Step:
    config = case.config
    model = MetaFormer(case.space.largest).to(device).train()
    if config.channels_last:
        model = model.to(memory_format=torch.channels_last)
    optimizer = make_optimizer(model.named_parameters(), config)
    images_BCHW, labels_B = batch

    def take() -> None:
        optimizer.zero_grad(set_to_none=True)
        with autocast(config.precision, device):
            outputs = model(images_BCHW)
        loss = classification_loss(outputs, labels_B, label_smoothing=config.label_smoothing)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return take


def _supernet_step(name: str, case: Case, batch: Batch, device: torch.device) -> Step:
    training = _training(case, device, soft=name == "soft", sandwich=name == "sandwich")
    at = training.total_steps - 1  # the end of the cosine, where the learning rate hardly moves the weights
    generator = generator_for(0, "benchmark paths", name)

    def weights() -> None:
        training.weight_step(batch, at=at, generator=generator)

    _fill_optimizer_state(training, weights)
    if name in ("hard_largest", "alpha"):
        pin(training.supernet, case.space.largest)
    if name != "alpha":
        return weights

    def alphas() -> None:
        training.alpha_step(batch, at=at, generator=generator)

    return alphas


def _training(case: Case, device: torch.device, *, soft: bool, sandwich: bool) -> SupernetTraining:
    """The supernet's training past all of its warm-ups; its alphas stay where they are put."""
    config = case.config
    config = config.model_copy(
        update={
            "augment": AugmentConfig(),
            "mixing": "soft" if soft else "hard",
            "noise": "gumbel",
            "alpha": config.alpha.model_copy(update={"learning_rate": 1e-12, "warmup_fraction": 0.0}),
            "widths": config.widths.model_copy(
                update={"sampling": "sandwich" if sandwich else "largest", "warmup_fraction": 0.0}
            ),
        }
    )
    supernet = Supernet(case.space).train()
    return SupernetTraining(supernet, _noise_data(case), config, seed=0, device=device)


def _noise_data(case: Case) -> ImageData:
    """A data set for the training to hold; no step reads it."""
    data = DataConfig(path="noise", resolution_px=case.space.resolution_px, held_out_fraction=0.5)
    return synthetic_data(data, num_classes=CLASSES, images_per_class=8, seed=0)


def _fill_optimizer_state(training: SupernetTraining, weight_step: Step) -> None:
    """Take weight steps until every weight has been on a path, as after some minutes of training."""
    weights = [weight for weight in training.weights if weight.requires_grad]
    for _ in range(MOST_FILLING_STEPS):
        weight_step()
        if all(weight in training.optimizer.state for weight in weights):
            return
    raise AssertionError(f"some weights were on none of {MOST_FILLING_STEPS} paths")


def pin(supernet: Supernet, architecture: Architecture) -> None:
    """Set the alphas so that every hard sample is this architecture's path."""
    chosen = [candidate for stage in supernet.space.choices(architecture) for candidate in stage]
    with torch.no_grad():
        for alpha, (stage, _), candidate in zip(
            supernet.alpha_parameters(), supernet.space.positions, chosen, strict=True
        ):
            alpha.zero_()
            alpha[supernet.space.candidates(stage).index(candidate)] = PINNED_ALPHA


def time_steps(case: Case, device: torch.device, *, rounds: int, warmup: int) -> dict[str, list[float]]:
    """Seconds of every kind of step, one a round, in random order within a round."""
    steps = {name: make_step(name, case, device) for name in STEPS}
    for step in steps.values():
        for _ in range(warmup):
            step()
    generator = generator_for(0, "benchmark order")
    seconds: dict[str, list[float]] = {name: [] for name in STEPS}
    for _ in range(rounds):
        for index in torch.randperm(len(STEPS), generator=generator).tolist():
            seconds[STEPS[index]].append(stopwatch_seconds(steps[STEPS[index]]))
    return seconds


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
    parser.add_argument("--memory-steps", type=int, default=8, help="steps of each kind for the peak (default: 8)")
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
