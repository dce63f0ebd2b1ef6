"""The training steps that the benchmark of supernets compares, on noise; what each of them is: `supernet_step`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from experiments.experiment import load_experiment
from supernet import Architecture, MetaFormer, SearchSpace, Supernet
from supernet.schema import parse
from supernet.space import SpaceShape
from train.augment import AugmentConfig
from train.data import DataConfig, ImageData, synthetic_data
from train.distillation import classification_loss
from train.randomness import generator_for
from train.recipe import autocast, make_optimizer
from train.splits import Batch
from train.supernet_training import SupernetConfig, SupernetTraining

ROOM = Path(__file__).resolve().parents[1]
STEPS = ("largest", "hard_largest", "hard", "alpha", "soft", "sandwich")
CLASSES = 10
PINNED_ALPHA = 40.0  # above any difference of two Gumbel draws in fp32, so that the candidate is always chosen
MOST_FILLING_STEPS = 300

Step = Callable[[], None]


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
