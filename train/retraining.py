"""Retraining one architecture as a standalone model, from scratch or from inherited weights."""

# B batch, C channels, H W pixels, K classes

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Generic, Literal, TypeVar

import torch
from torch import Tensor, nn

from supernet.architecture import Architecture
from supernet.inherit import inherit
from supernet.metaformer import MetaFormer
from supernet.schema import digest as record_digest
from supernet.supernet import Supernet
from train.augment import AugmentConfig, mixed
from train.checkpoint import module_tensors, optimizer_tensors, restore_module, restore_optimizer, save_weights
from train.data import ImageData
from train.distillation import (
    DistillationConfig,
    Teacher,
    classification_loss,
    distillation_loss,
    open_teacher,
)
from train.evaluation import accuracy
from train.loop import CHECKPOINT_MINUTES, Progress, fit
from train.randomness import derived_seed, generator_for
from train.recipe import (
    RecipeConfig,
    autocast,
    learning_rate,
    make_average,
    make_optimizer,
    set_learning_rate,
)
from train.splits import Batch, batch_count, batches

NAME = "retrain"
ModelT = TypeVar("ModelT", bound=nn.Module)


class RetrainConfig(RecipeConfig):
    """How one architecture becomes a trained model.

    `start: inherited` begins with the supernet's weights. `use_held_out` trains on all training images; without it,
    those held out for the search are left out, and the accuracy on them is logged after each epoch.
    """

    augment: AugmentConfig = AugmentConfig()
    distillation: DistillationConfig | None = None
    start: Literal["scratch", "inherited"] = "scratch"
    use_held_out: bool = True


def weights_path(directory: Path) -> Path:
    """Where `retrain` leaves the trained weights."""
    return directory / f"{NAME}.safetensors"


def initial_model(
    architecture: Architecture, config: RetrainConfig, *, supernet: Supernet | None, seed: int
) -> MetaFormer:
    """The model to retrain, with the recipe's drop path: freshly initialized by the seed, or cut from the supernet.

    Raises `ValueError` if the config starts from inherited weights and there is no supernet.
    """
    rate = config.drop_path_rate
    match config.start:
        case "inherited":
            if supernet is None:
                raise ValueError("start: inherited needs the supernet")
            return inherit(supernet, architecture, drop_path_rate=rate)
        case "scratch":
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(derived_seed(seed, "initial weights"))
                return MetaFormer(architecture, drop_path_rate=rate)


def retrain(
    model: ModelT,
    data: ImageData,
    config: RetrainConfig,
    *,
    digest: str,
    seed: int,
    directory: Path,
    progress: Progress | None,
    device: torch.device,
    checkpoint_minutes: float = CHECKPOINT_MINUTES,
) -> ModelT:
    """Train a model; the averaged one is returned where the recipe averages, in evaluation mode on the device.

    The model may be any that makes logits of images; `digest` tells it from others, so that none goes on from another's
    checkpoint.
    Never touches the test images. Writes `retrain.safetensors`, `retrain-metrics.csv`, a checkpoint from which an
    interrupted training goes on, and TensorBoard logs. Raises `LossDiverged`, and `UserError` for an augmentation,
    a teacher or a checkpoint that does not fit.
    """
    training = Retraining(model, data, config, digest=digest, seed=seed, device=device)
    fit(training, seed=seed, directory=directory, progress=progress, checkpoint_minutes=checkpoint_minutes)
    result = training.result
    save_weights(result, weights_path(directory))
    return result.eval()


def check_retraining(data: ImageData, config: RetrainConfig) -> None:
    """Raise `UserError` for an augmentation or a teacher that does not fit these images."""
    data.check(config.augment)
    _teacher(config.distillation, data, torch.device("cpu"))


class Retraining(Generic[ModelT]):
    """The steps of a retraining, for `train.loop.fit`."""

    name = NAME

    def __init__(
        self, model: ModelT, data: ImageData, config: RetrainConfig, *, digest: str, seed: int, device: torch.device
    ) -> None:
        data.check(config.augment)
        self.device, self.seed, self.config = device, seed, config
        self.data = data.to(device)
        self.split = self.data.all_training if config.use_held_out else self.data.train
        memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
        model.to(device=device, memory_format=memory_format)  # type: ignore[call-overload]
        self.model = model
        self.optimizer = make_optimizer(self.model.named_parameters(), config)
        self.average = None if config.ema_decay is None else make_average(self.model, config.ema_decay)
        self.teacher = _teacher(config.distillation, data, device)
        self.epochs = config.epochs
        self.steps_per_epoch = batch_count(self.split, config.batch_size, training=True)
        self.images_per_step = min(config.batch_size, len(self.split))
        self.columns = ("train_loss", "learning_rate") + (() if config.use_held_out else ("held_out_percent",))
        self.fingerprint = f"{record_digest(config)}-{digest}-{seed}-{len(self.split)}"

    @property
    def result(self) -> ModelT:
        """The model that counts: the average, if there is one."""
        if self.average is None:
            return self.model
        average = self.average.module
        assert isinstance(average, type(self.model))
        return average

    def batches(self, epoch: int, first: int) -> Iterator[Batch]:
        """Training batches of an epoch, without the first ones."""
        self.model.train()
        return batches(
            self.split,
            self.config.batch_size,
            epoch=epoch,
            seed=self.seed,
            augment=self.config.augment,
            first=first,
            device=self.device,
        )

    def step(self, batch: Batch, *, epoch: int, step: int) -> dict[str, Tensor]:
        """One step of the weights, and of their average."""
        at = epoch * self.steps_per_epoch + step
        images_BCHW, targets = batch
        if self.config.augment.mix_probability:
            images_BCHW, targets = mixed(
                images_BCHW,
                targets,
                num_classes=self.data.num_classes,
                config=self.config.augment,
                generator=generator_for(self.seed, "mix", epoch, step),
            )
        set_learning_rate(self.optimizer, learning_rate(self.config, step=at, steps_per_epoch=self.steps_per_epoch))
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._loss(images_BCHW, targets)
        loss.backward()  # type: ignore[no-untyped-call]
        if self.config.gradient_clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.gradient_clip_norm)
        self.optimizer.step()
        if self.average is not None:
            self.average.update(self.model, step=at + 1)
        return {"train_loss": loss.detach()}

    def _loss(self, images_BCHW: Tensor, targets: Tensor) -> Tensor:
        with autocast(self.config.precision, self.device):
            outputs = self.model(images_BCHW)
            teacher_BK = None if self.teacher is None else self.teacher(images_BCHW)
        smoothing = self.config.label_smoothing
        if teacher_BK is None or self.config.distillation is None:
            return classification_loss(outputs, targets, label_smoothing=smoothing)
        return distillation_loss(
            outputs, targets, teacher_BK, config=self.config.distillation, label_smoothing=smoothing
        )

    def epoch_metrics(self, epoch: int) -> dict[str, float]:
        """The last learning rate and, where held-out images are not trained on, the accuracy on them."""
        at = (epoch + 1) * self.steps_per_epoch - 1
        metrics = {"learning_rate": learning_rate(self.config, step=at, steps_per_epoch=self.steps_per_epoch)}
        if not self.config.use_held_out:
            correct = accuracy(
                self.result, self.data.held_out, batch_size=self.config.batch_size, precision=self.config.precision
            )
            metrics["held_out_percent"] = correct.percent
        return metrics

    def tensors(self) -> dict[str, Tensor]:
        """Weights, their average and the optimizer."""
        tensors = {**module_tensors(self.model, "model"), **optimizer_tensors(self.optimizer, "optimizer")}
        if self.average is not None:
            tensors |= module_tensors(self.average.module, "average")
        return tensors

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `tensors` gave."""
        restore_module(self.model, tensors, "model")
        restore_optimizer(self.optimizer, tensors, "optimizer")
        if self.average is not None:
            restore_module(self.average.module, tensors, "average")


def _teacher(config: DistillationConfig | None, data: ImageData, device: torch.device) -> Teacher | None:
    if config is None:
        return None
    return open_teacher(
        config,
        in_channels=data.in_channels,
        num_classes=data.num_classes,
        resolution_px=data.resolution_px,
        normalisation=data.normalisation,
    ).to(device)
