"""`--plan`: what a run would do, and its minutes and memory, estimated from a few timed steps on this machine."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from experiments.artifacts import RunFolder
from experiments.console import Screen
from experiments.experiment import Experiment, SearchConfig
from experiments.importances import measured_kinds
from experiments.run import all_threads, chosen_device, processes_at_once
from search.measure import stopwatch_seconds
from search.methods import BUILT_IN
from search.refining import NEIGHBOURS, ROUNDS
from search.table_building import table_nets
from supernet import Architecture, MetaFormer, SearchSpace, Supernet, cost
from train.data import LARGEST_IN_MEMORY_BYTES, LARGEST_IN_MEMORY_IMAGES, ImageCounts, count_images
from train.distillation import untrained_teacher
from train.recipe import OptimizationConfig, autocast
from train.retraining import RetrainConfig

TABLE_SECONDS_PER_NET = 0.17  # build and rounds; measured: 144 nets in 20 to 31 s on two cores of an AMD EPYC
PLAN_BATCH = 8  # photographs are timed in batches of this many at most, and scaled: a whole batch takes minutes
TRAINING_BYTES_PER_PARAMETER = 16  # fp32 weight, gradient and AdamW's two moments
RUNTIME_BYTES = 0.9e9  # a process with torch, timm and onnxruntime loaded; seen: 0.85 to 0.9 GB resident


@dataclass(frozen=True)
class StepCost:
    """One training step of one architecture, per image: seconds, and bytes kept for the backward pass."""

    seconds: float
    activation_bytes: float


@dataclass(frozen=True)
class Estimate:
    """What a stage takes; bytes without the images and the programs, of which `processes` hold one each."""

    stage: str
    what: str
    seconds: float
    bytes: float
    processes: int = 1


def print_plan(experiment: Experiment, folder: RunFolder, screen: Screen) -> None:
    """Print the stages, the sizes of space and models, and estimates; writes nothing.

    Works without the images where the config says how many there are (`data.num_classes`, `data.num_images`).
    """
    counts = count_images(experiment.data, or_as_stated=True)
    space = experiment.search_space(num_classes=counts.classes)
    torch.set_num_threads(all_threads(experiment))
    device = chosen_device(experiment.device)
    _print_sizes(experiment, space, counts, screen)
    estimates = _estimates(experiment, space, counts, device)
    held_bytes = RUNTIME_BYTES + _image_bytes(experiment, counts)
    done = _finished(experiment, folder)
    rows = [
        [
            estimate.stage,
            estimate.what,
            "done" if estimate.stage in done else f"{estimate.seconds / 60:,.1f}",
            f"{(estimate.bytes + estimate.processes * held_bytes) / 1e9:.1f}",
        ]
        for estimate in estimates
    ]
    screen.table("Estimates from timed steps on this machine", ["stage", "what", "minutes", "memory GB"], rows)
    total = sum(estimate.seconds for estimate in estimates if estimate.stage not in done)
    left = "Left" if done else "In all"
    screen.line(f"{left} {total / 60:,.0f} min ({total / 3600:,.1f} h) on {device.type}; run folder {folder.path}.")


def _finished(experiment: Experiment, folder: RunFolder) -> frozenset[str]:
    """The stages that a run of these settings has on record in its folder."""
    if not folder.exists or folder.changed_settings(experiment):
        return frozenset()
    return frozenset(folder.manifest.stages)


def _print_sizes(experiment: Experiment, space: SearchSpace, counts: ImageCounts, screen: Screen) -> None:
    choices = math.prod(
        len(space.widths(number)) * len(stage.candidates) ** stage.depth
        for number, stage in enumerate(space.stages, start=1)
    )
    images = f"{counts.training:,} training and {counts.test:,} test images, {counts.classes} classes"
    screen.line(f"{experiment.name}: {images}")
    screen.line(f"Space: {choices:.2g} combinations of widths and candidates, {len(space.positions)} MetaPaths")
    rows = []
    for name, architecture in (("largest", space.largest), ("smallest", space.smallest)):
        size = cost(architecture)
        rows.append([name, f"{size.parameters:,}", f"{size.macs:,}", str(architecture.depth)])
    rows.append(["supernet", f"{_supernet_parameters(space):,}", "", str(len(space.positions))])
    screen.table("Sizes", ["model", "parameters", "MACs", "blocks"], rows)
    budgets = experiment.search.budgets_ms or experiment.search.budgets_of_largest or ()
    unit = "ms" if experiment.search.budgets_ms else "of the largest's latency"
    asked = ", ".join(f"{budget:g}" for budget in budgets)
    models = len(budgets) * len(experiment.search.methods)
    screen.line(f"{models} models: {', '.join(experiment.search.methods)} at {asked} {unit}")


def _supernet_parameters(space: SearchSpace) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in Supernet(space).parameters())


def _image_bytes(experiment: Experiment, counts: ImageCounts) -> float:
    """What the decoded images take, if they are kept in memory."""
    height, width = experiment.data.stored_px
    decoded = (counts.training + counts.test) * height * width * experiment.data.channels
    if experiment.data.in_memory is True:
        return decoded
    fits = decoded <= LARGEST_IN_MEMORY_BYTES and counts.training + counts.test <= LARGEST_IN_MEMORY_IMAGES
    return decoded if fits and experiment.data.in_memory == "auto" else 0.0


def _estimates(experiment: Experiment, space: SearchSpace, counts: ImageCounts, device: torch.device) -> list[Estimate]:
    supernet, train, search = experiment.supernet, experiment.train, experiment.search
    held_out = round(experiment.data.held_out_fraction * counts.training)
    models = len(search.methods) * len(search.budgets_ms or search.budgets_of_largest or ())
    middle = space.scaled(0.7)
    largest = _step_cost(space.largest, supernet, device)
    medium, smallest = _step_cost(middle, supernet, device), _step_cost(space.smallest, supernet, device)
    passes = largest.seconds  # a training image's seconds: the largest, then the rest of the sandwich, then alphas
    if supernet.widths.sampling == "sandwich":
        sandwich = smallest.seconds + supernet.widths.random * medium.seconds
        passes += (1 - max(supernet.widths.warmup_fraction, supernet.widths.largest_first)) * sandwich
    passes += (1 - supernet.alpha.warmup_fraction) / supernet.alpha.every * medium.seconds
    if supernet.mixing == "soft":
        passes *= max(len(stage.candidates) for stage in space.stages)
    seen = counts.training - held_out
    retrained = train.epochs * (counts.training if train.use_held_out else seen)
    scores = most_scores(space, search)
    own = [name for name in search.methods if name not in BUILT_IN]
    scored = (
        min(search.score_images or held_out, round((1 - experiment.data.alpha_fraction) * held_out))
        + search.refit_images
    )
    forward = medium.seconds / 3  # a step is a forward and a backward pass of about twice its cost
    weights = TRAINING_BYTES_PER_PARAMETER * _supernet_parameters(space)
    at_once = min(processes_at_once(experiment, device), models)
    torch.set_num_threads(max(1, all_threads(experiment) // at_once))
    alone = _step_cost(middle, train, device)
    taught = 0.0 if train.distillation is None else _teacher_seconds(train, space, device)
    torch.set_num_threads(all_threads(experiment))
    single = TRAINING_BYTES_PER_PARAMETER * cost(middle).parameters + train.batch_size * alone.activation_bytes
    return [
        Estimate(
            "supernet",
            f"{supernet.epochs} epochs of {seen:,} images",
            supernet.epochs * seen * passes,
            weights + supernet.batch_size * largest.activation_bytes,
        ),
        Estimate("table", *_table_work(experiment, space), 0.0),
        Estimate(
            "search",
            f"at most {scores} scores of {scored:,} images" + (f", and those of {', '.join(own)}" if own else ""),
            scores * scored * forward,
            weights / 4,
        ),
        Estimate(
            "retrain",
            f"{models} models, {at_once} at once, {train.epochs} epochs",
            models * retrained * (alone.seconds + taught) / at_once,
            at_once * single,
            processes=at_once if at_once == 1 else at_once + 1,
        ),
        Estimate("export", "ONNX, parity, latency", 5.0 * models, 0.0),
        Estimate("evaluate", f"{counts.test:,} test images", models * counts.test * forward, 0.0),
    ]


def _table_work(experiment: Experiment, space: SearchSpace) -> tuple[str, float]:
    """What the table stage does, and its seconds."""
    config = experiment.table
    if config.bundle is not None:
        return f"measured elsewhere, in {config.bundle}", 0.0
    nets = len(table_nets(space, copies=config.copies)) + config.audit_nets
    return f"{nets} nets on {config.runtime}", max(TABLE_SECONDS_PER_NET * nets, 60 * config.most_minutes)


def most_scores(space: SearchSpace, search: SearchConfig) -> int:
    """How many architectures the project's own methods score at most."""
    widths = sum(len(space.widths(number)) for number in range(1, len(space.stages) + 1))
    budgets = len(search.budgets_ms or search.budgets_of_largest or ())
    scores = 0
    if "search" in search.methods:
        scores += 3 * (len(space.positions) + widths)  # a step narrows a stage or leaves a block out
    candidates = sum(stage.depth * len(stage.candidates) for stage in space.stages)
    if "frontier" in search.methods:
        others = candidates - len(space.positions)  # a step takes one of these, narrows a stage, or drops a token block
        scores += (others + widths - len(space.stages)) * (others + len(space.stages) + 1)
    if "removal" in measured_kinds(search):
        scores += 1 + len(space.positions)
    if "exact" in search.methods:
        scores += widths + candidates + budgets * ROUNDS * (1 + NEIGHBOURS)
    scores += sum(method in search.methods for method in ("evolution", "random_search")) * search.evolution.trials
    return scores


def _images(space: SearchSpace | Architecture, config: OptimizationConfig, device: torch.device) -> Tensor:
    """A batch to time: the config's, or a smaller one of large images."""
    batch = min(config.batch_size, PLAN_BATCH if max(space.resolution_px) > 64 else config.batch_size)
    images = torch.randn(batch, space.in_channels, *space.resolution_px, device=device)
    return images.to(memory_format=torch.channels_last) if config.channels_last else images


def _teacher_seconds(config: RetrainConfig, space: SearchSpace, device: torch.device) -> float:
    """The seconds that a teacher takes to look at one image."""
    assert config.distillation is not None
    teacher = untrained_teacher(config.distillation, in_channels=space.in_channels).to(device)
    images = _images(space, config, device)

    def look() -> None:
        with torch.no_grad(), autocast(config.precision, device):
            teacher(images)
        if device.type == "cuda":
            torch.cuda.synchronize()

    look()
    return statistics.median(stopwatch_seconds(look) for _ in range(3)) / len(images)


def _step_cost(architecture: Architecture, config: OptimizationConfig, device: torch.device) -> StepCost:
    """The cost of a training step an image: the median of three after one to warm up."""
    images = _images(architecture, config, device)
    model = MetaFormer(architecture).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters())
    if config.channels_last:
        model = model.to(memory_format=torch.channels_last)
    labels = torch.zeros(len(images), dtype=torch.long, device=device)
    kept: dict[int, int] = {}  # storages that autograd keeps, by address

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    def step() -> None:
        optimizer.zero_grad()
        with autocast(config.precision, device):
            outputs = model(images)
        logits: Tensor = outputs[0] if isinstance(outputs, tuple) else outputs
        F.cross_entropy(logits.float(), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        step()
    activations = sum(kept.values()) - sum(parameter.nbytes for parameter in model.parameters())
    seconds = statistics.median(stopwatch_seconds(step) for _ in range(3))
    return StepCost(seconds=seconds / len(images), activation_bytes=max(0, activations) / len(images))
