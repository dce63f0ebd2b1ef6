"""`--plan`: what a run would do, and its minutes and memory, estimated from a few timed steps on this machine."""

from __future__ import annotations

import math
import os
import resource
import statistics
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from experiments.artifacts import RunFolder
from experiments.console import Screen
from experiments.experiment import Experiment
from experiments.run import chosen_device
from search.measure import stopwatch_seconds
from search.table_building import count_nets
from supernet import Architecture, MetaFormer, SearchSpace, Supernet, cost
from train.data import ImageCounts, count_images
from train.recipe import autocast
from train.supernet_training import SupernetConfig

TABLE_SECONDS_PER_NET = 0.17  # build and rounds; measured: 144 nets in 20 to 31 s on two cores of an AMD EPYC
PLAN_BATCH = 8  # timed steps are of this many images at most, and scaled: a whole batch of photographs takes minutes


@dataclass(frozen=True)
class Estimate:
    """What a stage takes."""

    stage: str
    what: str
    seconds: float | None


def print_plan(experiment: Experiment, folder: RunFolder, screen: Screen) -> None:
    """Print the stages, the sizes of space and models, and estimates; writes nothing.

    Works without the images where the config says how many there are (`data.num_classes`, `data.num_images`).
    """
    counts = count_images(experiment.data)
    space = SearchSpace.of(
        experiment.space,
        in_channels=experiment.data.channels,
        resolution_px=experiment.data.resolution_px,
        num_classes=counts.classes,
    )
    torch.set_num_threads(experiment.threads or len(os.sched_getaffinity(0)))
    device = chosen_device(experiment.device)
    _print_sizes(experiment, space, counts, screen)
    estimates = _estimates(experiment, space, counts, device)
    rows = [
        [estimate.stage, estimate.what, "?" if estimate.seconds is None else f"{estimate.seconds / 60:.1f}"]
        for estimate in estimates
    ]
    total = sum(estimate.seconds or 0.0 for estimate in estimates)
    screen.table("Estimates from timed steps on this machine", ["stage", "what", "minutes"], rows)
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    screen.line(f"In all {total / 60:.0f} min ({total / 3600:.1f} h) on {device.type}; run folder {folder.path}.")
    screen.line(f"Memory seen while timing: {peak_gb:.1f} GB; activations grow with the batch.")


def _print_sizes(experiment: Experiment, space: SearchSpace, counts: ImageCounts, screen: Screen) -> None:
    choices = math.prod(
        len(space.widths(number)) * len(stage.candidates) ** stage.depth
        for number, stage in enumerate(space.stages, start=1)
    )
    screen.line(
        f"{experiment.name}: {counts.training:,} training and {counts.test:,} test images, {counts.classes} classes"
    )
    screen.line(f"Space: up to {choices:.2g} architectures, {len(space.positions)} MetaPaths")
    rows = []
    for name, architecture in (("largest", space.largest), ("smallest", space.smallest)):
        size = cost(architecture)
        rows.append([name, f"{size.parameters:,}", f"{size.macs:,}", str(architecture.depth)])
    supernet_parameters = sum(parameter.numel() for parameter in _on_meta(space).parameters())
    rows.append(["supernet", f"{supernet_parameters:,}", "", str(len(space.positions))])
    screen.table("Sizes", ["model", "parameters", "MACs", "blocks"], rows)
    budgets = experiment.search.budgets_ms or experiment.search.budgets_of_largest or ()
    unit = "ms" if experiment.search.budgets_ms else "of the largest's latency"
    models = len(budgets) * len(experiment.search.methods)
    asked = ", ".join(f"{budget:g}" for budget in budgets)
    screen.line(f"{models} models: {', '.join(experiment.search.methods)} at {asked} {unit}")


def _on_meta(space: SearchSpace) -> Supernet:
    with torch.device("meta"):
        return Supernet(space)


def _estimates(experiment: Experiment, space: SearchSpace, counts: ImageCounts, device: torch.device) -> list[Estimate]:
    supernet, train = experiment.supernet, experiment.train
    held_out = round(experiment.data.held_out_fraction * counts.training)
    models = len(experiment.search.methods) * len(
        experiment.search.budgets_ms or experiment.search.budgets_of_largest or ()
    )
    middle = space.scaled(0.7)
    seconds = {
        name: _seconds_per_image(architecture, supernet, device)
        for name, architecture in (("largest", space.largest), ("middle", middle), ("smallest", space.smallest))
    }
    trained = supernet.epochs * (counts.training - held_out)
    sandwich = 0.0 if supernet.widths.sampling == "largest" else 1 - supernet.widths.warmup_fraction
    passes = seconds["largest"] + sandwich * (seconds["smallest"] + supernet.widths.random * seconds["middle"])
    passes += (1 - supernet.alpha.warmup_fraction) / supernet.alpha.every * seconds["middle"]
    retrained = train.epochs * (counts.training if train.use_held_out else counts.training - held_out)
    nets = count_nets(space, copies=experiment.table.copies)
    steps = len(space.positions) + sum(len(space.widths(n)) for n in range(1, len(space.stages) + 1))
    scored = min(experiment.search.score_images or held_out, held_out // 2) + experiment.search.refit_images
    scoring = 3 * steps * scored * seconds["middle"] / 3  # three alternatives a step, forward alone
    return [
        Estimate("supernet", f"{supernet.epochs} epochs of {counts.training - held_out:,} images", trained * passes),
        Estimate("table", f"{nets} nets on {experiment.table.runtime}", TABLE_SECONDS_PER_NET * nets),
        Estimate("search", f"at most {steps} steps, {scored:,} images a score", scoring),
        Estimate("retrain", f"{models} models, {train.epochs} epochs", models * retrained * seconds["middle"]),
        Estimate("export", "ONNX, parity, latency", 5.0 * models),
        Estimate("evaluate", f"{counts.test:,} test images", models * counts.test * seconds["middle"] / 3),
    ]


def _seconds_per_image(architecture: Architecture, config: SupernetConfig, device: torch.device) -> float:
    """The time of a training step over its images: the median of three after one to warm up."""
    batch = min(config.batch_size, PLAN_BATCH if max(architecture.resolution_px) > 64 else config.batch_size)
    model = MetaFormer(architecture).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters())
    images = torch.randn(batch, architecture.in_channels, *architecture.resolution_px, device=device)
    if config.channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        images = images.to(memory_format=torch.channels_last)
    labels = torch.zeros(batch, dtype=torch.long, device=device)

    def step() -> None:
        optimizer.zero_grad()
        with autocast(config.precision, device):
            outputs = model(images)
        logits: Tensor = outputs[0] if isinstance(outputs, tuple) else outputs
        F.cross_entropy(logits.float(), labels).backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()

    step()
    return statistics.median(stopwatch_seconds(step) for _ in range(3)) / batch
