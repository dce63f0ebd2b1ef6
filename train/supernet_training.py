"""Training a supernet: weights by a sandwich of widths, alphas on images held out from the weights.

The sandwich (largest, smallest and some random widths on one batch, the largest as teacher of the others) is that of
universally slimmable networks; the alternation of weights and alphas on disjoint images is DARTS'.

# B batch, C channels, H W pixels, K candidates
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from supernet.schema import Record, digest
from supernet.space import SearchSpace
from supernet.supernet import Sample, Supernet
from train.augment import AugmentConfig, mixed
from train.checkpoint import (
    module_tensors,
    optimizer_tensors,
    restore_module,
    restore_optimizer,
    save_weights,
)
from train.data import ImageData
from train.distillation import classification_loss, in_place_loss, mean_logits
from train.loop import CHECKPOINT_MINUTES, Progress, fit
from train.randomness import derived_seed, generator_for
from train.recipe import OptimizationConfig, autocast, learning_rate, make_optimizer, set_learning_rate
from train.splits import Batch, batch_count, batches

NAME = "supernet"
Fraction = Annotated[float, Field(ge=0, lt=1)]
Above0 = Annotated[float, Field(gt=0)]
NO_AUGMENT = AugmentConfig()


class TemperatureConfig(Record):
    """The softmax temperature over the alphas, from the end of their warm-up to the last step."""

    start: Above0 = 1.0
    end: Above0 = 1.0
    schedule: Literal["linear", "exponential", "constant"] = "constant"

    @model_validator(mode="after")
    def _agrees(self) -> TemperatureConfig:
        if self.schedule == "constant" and self.start != self.end:
            raise ValueError(f"a constant schedule cannot go from {self.start:g} to {self.end:g}: choose linear")
        return self

    def at(self, progress: float) -> float:
        """The temperature at this share (0..1) of the way."""
        if self.schedule == "exponential":
            return float(self.start * (self.end / self.start) ** progress)
        return self.start + (self.end - self.start) * progress


class AlphaConfig(Record):
    """How the alphas learn: not at all in the first `warmup_fraction` of the steps, then once every `every` steps.

    With hard mixing the paths are drawn uniformly until then, so 1.0 is uniform single-path training: the alphas are
    never trained, and say nothing.
    """

    learning_rate: Above0 = 3e-3
    weight_decay: Annotated[float, Field(ge=0)] = 1e-3
    warmup_fraction: Annotated[float, Field(ge=0, le=1)] = 0.25
    every: Annotated[int, Field(gt=0)] = 1


class WidthsConfig(Record):
    """Which widths a batch trains: the largest alone, or with the smallest and `random` others (the sandwich).

    The sandwich's first member, which teaches the others, is the space's largest architecture, or a sample of the
    MetaPaths at the largest widths. For the first `warmup_fraction` of the steps only the largest widths are trained,
    the architecture and a sample in turn; for the first `largest_first` of the steps nothing but the largest
    architecture (the order of Once-for-All: first the largest, then what it contains).
    """

    added_later: ClassVar[frozenset[str]] = frozenset({"largest_first"})

    sampling: Literal["sandwich", "largest"] = "sandwich"
    random: Annotated[int, Field(ge=0)] = 2
    largest_first: Fraction = 0.0
    warmup_fraction: Fraction = 0.1
    teacher: Literal["architecture", "sample"] = "architecture"


class SupernetConfig(OptimizationConfig):
    """How a supernet is trained.

    `mixing: soft` is the paper's weighted sum of candidates, `hard` computes one path; `noise` is added to the
    alphas. `distill_weight` is the share of the largest member's logits in the loss of the others.
    """

    augment: AugmentConfig = AugmentConfig()
    mixing: Literal["soft", "hard"] = "hard"
    noise: Literal["none", "uniform", "gumbel"] = "gumbel"
    temperature: TemperatureConfig = TemperatureConfig()
    alpha: AlphaConfig = AlphaConfig()
    widths: WidthsConfig = WidthsConfig()
    distill_weight: Annotated[float, Field(ge=0, le=1)] = 0.5


def weights_path(directory: Path) -> Path:
    """Where `train_supernet` leaves the trained weights and alphas."""
    return directory / f"{NAME}.safetensors"


def train_supernet(
    supernet: Supernet,
    data: ImageData,
    config: SupernetConfig,
    *,
    seed: int,
    directory: Path,
    progress: Progress | None,
    device: torch.device,
    checkpoint_minutes: float = CHECKPOINT_MINUTES,
) -> None:
    """Train a supernet in place; an interrupted training goes on from its checkpoint in the directory.

    Writes `supernet.safetensors` (weights and alphas), `supernet-metrics.csv`, the checkpoint and TensorBoard logs.
    Raises `LossDiverged`, and `UserError` for an augmentation or a checkpoint that does not fit.
    """
    training = SupernetTraining(supernet, data, config, seed=seed, device=device)
    fit(training, seed=seed, directory=directory, progress=progress, checkpoint_minutes=checkpoint_minutes)
    save_weights(supernet, weights_path(directory))


class SupernetTraining:
    """The steps of a supernet's training, for `train.loop.fit`."""

    name = NAME
    columns: tuple[str, ...] = (
        "train_loss",
        "narrow_loss",
        "held_out_loss",
        "learning_rate",
        "temperature",
        "alpha_entropy",
    )

    def __init__(
        self, supernet: Supernet, data: ImageData, config: SupernetConfig, *, seed: int, device: torch.device
    ) -> None:
        data.check(config.augment)
        self.device, self.seed, self.config = device, seed, config
        self.data = data.to(device)
        memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
        supernet.to(device=device, memory_format=memory_format)  # type: ignore[call-overload]
        self.supernet = supernet
        self.space: SearchSpace = supernet.space
        self.alphas = list(supernet.alpha_parameters())
        self.weights = list(supernet.weight_parameters())
        kept = {id(weight) for weight in self.weights}
        named = [(name, p) for name, p in supernet.named_parameters() if id(p) in kept]
        self.optimizer = make_optimizer(named, config)
        self.alpha_optimizer = torch.optim.AdamW(
            self.alphas, lr=config.alpha.learning_rate, weight_decay=config.alpha.weight_decay
        )
        self.epochs = config.epochs
        self.steps_per_epoch = batch_count(data.train, config.batch_size, training=True)
        self.images_per_step = min(config.batch_size, len(data.train))
        self.total_steps = self.epochs * self.steps_per_epoch
        self.alpha_start = round(config.alpha.warmup_fraction * self.total_steps)
        self.largest_until = round(config.widths.largest_first * self.total_steps)
        self.sandwich_start = max(self.largest_until, round(config.widths.warmup_fraction * self.total_steps))
        self.fingerprint = f"{digest(config)}-{self.space.digest}-{seed}-{len(data.train)}-{len(data.alpha)}"
        self._alpha_stream: Iterator[Batch] = iter(())
        self._alpha_number = -1

    def batches(self, epoch: int, first: int) -> Iterator[Batch]:
        """Training batches of an epoch, without the first ones."""
        self.supernet.train()
        return batches(
            self.data.train,
            self.config.batch_size,
            epoch=epoch,
            seed=self.seed,
            augment=self.config.augment,
            first=first,
            device=self.device,
        )

    def step(self, batch: Batch, *, epoch: int, step: int) -> dict[str, Tensor]:
        """One step of the weights and, after the warm-up, one of the alphas where it is their turn."""
        at = epoch * self.steps_per_epoch + step
        generator = generator_for(self.seed, "paths", epoch, step)
        losses = self.weight_step(batch, at=at, generator=generator)
        since = at - self.alpha_start
        if since >= 0 and since % self.config.alpha.every == 0:
            held_out = self.alpha_batch(since // self.config.alpha.every)
            losses["held_out_loss"] = self.alpha_step(held_out, at=at, generator=generator)
        return losses

    def weight_step(self, batch: Batch, *, at: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Add up the gradients of all widths on one batch, and step once; losses of the first and of the others."""
        images_BCHW, targets = self._mixed(batch, generator)
        self.optimizer.zero_grad(set_to_none=True)
        set_learning_rate(self.optimizer, learning_rate(self.config, step=at, steps_per_epoch=self.steps_per_epoch))
        widths = self._widths(at, generator)
        losses: list[Tensor] = []
        teacher_BK: Tensor | None = None
        smoothing = self.config.label_smoothing
        for member in widths:
            whole = not losses and self._trains_whole(at, alone=len(widths) == 1)
            choice = self.space.largest if whole else self._sample(member, at, generator)
            with autocast(self.config.precision, self.device):
                outputs = self.supernet(images_BCHW, choice)
            if teacher_BK is None:
                loss = classification_loss(outputs, targets, label_smoothing=smoothing)
                teacher_BK = mean_logits(outputs)
            else:
                loss = in_place_loss(
                    outputs, targets, teacher_BK, weight=self.config.distill_weight, label_smoothing=smoothing
                )
            losses.append(loss.detach())
            (loss / len(widths)).backward()  # type: ignore[no-untyped-call]
        if self.config.gradient_clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.weights, self.config.gradient_clip_norm)
        self.optimizer.step()
        narrow = {"narrow_loss": torch.stack(losses[1:]).mean()} if len(losses) > 1 else {}
        return {"train_loss": losses[0], **narrow}

    def alpha_step(self, batch: Batch, *, at: int, generator: torch.Generator) -> Tensor:
        """One step of the alphas at the largest widths; weights and batch-norm statistics stay as they are."""
        images_BCHW, labels_B = batch
        buffers = [buffer.clone() for buffer in self.supernet.buffers()]
        for weight in self.weights:
            weight.requires_grad_(False)
        try:
            sample = self.supernet.sample(
                self.supernet.largest_widths,
                mixing=self.config.mixing,
                noise=self.config.noise,
                temperature=self.temperature(at),
                generator=generator,
            )
            with autocast(self.config.precision, self.device):
                outputs = self.supernet(images_BCHW, sample)
            loss = classification_loss(outputs, labels_B, label_smoothing=0.0)
            self.alpha_optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            self.alpha_optimizer.step()
        finally:
            for weight in self.weights:
                weight.requires_grad_(True)
        with torch.no_grad():
            for buffer, before in zip(self.supernet.buffers(), buffers, strict=True):
                buffer.copy_(before)
        return loss.detach()

    def alpha_batch(self, number: int) -> Batch:
        """The held-out batch of this alpha step; all are seen before one comes again, each time in another order."""
        cycle, first = divmod(number, batch_count(self.data.alpha, self.config.batch_size, training=True))
        if number != self._alpha_number + 1 or first == 0:
            self._alpha_stream = batches(
                self.data.alpha,
                self.config.batch_size,
                epoch=cycle,
                seed=derived_seed(self.seed, "alphas"),
                augment=NO_AUGMENT,
                first=first,
                device=self.device,
            )
        self._alpha_number = number
        return next(self._alpha_stream)

    def temperature(self, at: int) -> float:
        """The temperature at a step, counted from 0 over the whole training."""
        way = self.total_steps - 1 - self.alpha_start
        return self.config.temperature.at(min(1.0, max(0, at - self.alpha_start) / max(1, way)))

    def epoch_metrics(self, epoch: int) -> dict[str, float]:
        """Learning rate and temperature of the epoch's last step, and the mean entropy of the alphas (nats)."""
        at = (epoch + 1) * self.steps_per_epoch - 1
        with torch.no_grad():
            entropies = [-(alpha.softmax(0) * alpha.log_softmax(0)).sum() for alpha in self.alphas]
        return {
            "learning_rate": learning_rate(self.config, step=at, steps_per_epoch=self.steps_per_epoch),
            "temperature": self.temperature(at),
            "alpha_entropy": float(torch.stack(entropies).mean()),
        }

    def tensors(self) -> dict[str, Tensor]:
        """Weights, alphas and both optimizers."""
        return {
            **module_tensors(self.supernet, "supernet"),
            **optimizer_tensors(self.optimizer, "optimizer"),
            **optimizer_tensors(self.alpha_optimizer, "alpha_optimizer"),
        }

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `tensors` gave."""
        restore_module(self.supernet, tensors, "supernet")
        restore_optimizer(self.optimizer, tensors, "optimizer")
        restore_optimizer(self.alpha_optimizer, tensors, "alpha_optimizer")

    def _mixed(self, batch: Batch, generator: torch.Generator) -> Batch:
        images_BCHW, labels_B = batch
        if not self.config.augment.mix_probability:
            return batch
        return mixed(
            images_BCHW,
            labels_B,
            num_classes=self.data.num_classes,
            config=self.config.augment,
            generator=generator,
        )

    def _trains_whole(self, at: int, *, alone: bool) -> bool:
        """Whether a batch's first member is the largest architecture; alone, in the warm-up, every other time."""
        config = self.config.widths
        if at < self.largest_until:
            return True
        if config.sampling != "sandwich" or config.teacher != "architecture":
            return False
        return at % 2 == 0 if alone else True

    def _widths(self, at: int, generator: torch.Generator) -> list[tuple[int, ...]]:
        members = [self.supernet.largest_widths]
        if self.config.widths.sampling == "sandwich" and at >= self.sandwich_start:
            members.append(self.supernet.smallest_widths)
            members += [self.supernet.random_widths(generator) for _ in range(self.config.widths.random)]
        return members

    def _sample(self, widths: tuple[int, ...], at: int, generator: torch.Generator) -> Sample:
        """A path for the weights: uniform in the warm-up of hard mixing, else as the alphas have it."""
        if at < self.alpha_start and self.config.mixing == "hard":
            return self.supernet.uniform_sample(widths, generator)
        with torch.no_grad():
            return self.supernet.sample(
                widths,
                mixing=self.config.mixing,
                noise=self.config.noise,
                temperature=self.temperature(at),
                generator=generator,
            )
