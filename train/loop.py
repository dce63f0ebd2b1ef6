"""The loop that every training runs in: checkpoints, resuming, metrics, and a name for a loss that diverges.

A training is resumed bit for bit: everything random is a function of (seed, epoch, step), and everything else that
changes is in the checkpoint. (On a GPU that needs deterministic kernels too, which are the caller's to choose.)
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from supernet.schema import Record, UserError, parse, write_atomically
from train.checkpoint import load_checkpoint, save_checkpoint
from train.randomness import derived_seed
from train.splits import Batch

Progress = Callable[[int, int, dict[str, float]], None]
"""Called with the steps done, the steps in all, and the last values of the losses."""

CHECKPOINT_MINUTES = 5.0
GPU_CHECK_STEPS = 32  # a look at the losses waits for the GPU, so it is not taken at every step


class LossDiverged(UserError):
    """A loss or a weight became nan or inf; `what` says which and when. The last good checkpoint is kept."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"{what}. The checkpoint before it is kept; try a lower learning_rate or a gradient_clip_norm, and"
            " precision fp32"
        )
        self.what = what


class Training(Protocol):
    """What a kind of training hands to the loop."""

    name: str
    fingerprint: str
    epochs: int
    steps_per_epoch: int
    images_per_step: int
    columns: tuple[str, ...]

    @property
    def device(self) -> torch.device:
        """Where the training runs."""

    def batches(self, epoch: int, first: int) -> Iterator[Batch]:
        """The batches of an epoch (from 0) without the first ones."""

    def step(self, batch: Batch, *, epoch: int, step: int) -> Mapping[str, Tensor]:
        """Learn from one batch; the step counts from 0 in its epoch. Returns scalar losses by name."""

    def epoch_metrics(self, epoch: int) -> Mapping[str, float]:
        """More figures for the epoch's line in the metrics."""

    def tensors(self) -> dict[str, Tensor]:
        """Everything that changes in training."""

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `tensors` gave."""


class Position(Record):
    """Where a training stands: the next step to do, and the sums over the epoch so far."""

    training: str
    fingerprint: str
    epoch: int = 0
    step: int = 0
    sums: dict[str, float] = {}
    counts: dict[str, int] = {}


def checkpoint_path(directory: Path, name: str) -> Path:
    """The resumable checkpoint of the training of this name."""
    return directory / f"{name}-checkpoint.safetensors"


def metrics_path(directory: Path, name: str) -> Path:
    """The metrics, one line an epoch, of the training of this name."""
    return directory / f"{name}-metrics.csv"


def fit(
    training: Training,
    *,
    seed: int,
    directory: Path,
    progress: Progress | None,
    checkpoint_minutes: float = CHECKPOINT_MINUTES,
) -> None:
    """Train to the end from the checkpoint in the directory, or from the start if there is none.

    Writes the checkpoint (after each epoch, and after `checkpoint_minutes` in a long one), the metrics and
    TensorBoard logs. Raises `LossDiverged`, and `UserError` for a checkpoint that is spoilt or of other settings.
    """
    directory.mkdir(parents=True, exist_ok=True)
    position = _resumed(training, checkpoint_path(directory, training.name))
    if position.epoch == training.epochs:
        return
    devices = [training.device] if training.device.type == "cuda" else []
    log = directory / "tensorboard" / training.name
    first_step = position.epoch * training.steps_per_epoch + position.step
    with (
        torch.random.fork_rng(devices=devices),
        SummaryWriter(log_dir=str(log), purge_step=first_step or None) as board,
    ):
        table = _Table(metrics_path(directory, training.name), training.columns, keep_epochs=position.epoch)
        for epoch in range(position.epoch, training.epochs):
            run = _Epoch(training, position, directory, seed, progress, checkpoint_minutes)
            values = run.run()
            table.append(epoch, values)
            for name, value in values.items():
                board.add_scalar(name, value, global_step=(epoch + 1) * training.steps_per_epoch)
            position = Position(training=training.name, fingerprint=training.fingerprint, epoch=epoch + 1)
            _save(training, position, directory)


class _Epoch:
    """One epoch from some step to its end."""

    def __init__(
        self,
        training: Training,
        position: Position,
        directory: Path,
        seed: int,
        progress: Progress | None,
        checkpoint_minutes: float,
    ) -> None:
        self.training, self.position, self.directory = training, position, directory
        self.seed, self.progress, self.checkpoint_minutes = seed, progress, checkpoint_minutes
        self.sums, self.counts = dict(position.sums), dict(position.counts)
        self.unseen: list[tuple[int, Mapping[str, Tensor]]] = []
        self.patience_steps = GPU_CHECK_STEPS if training.device.type == "cuda" else 1

    def run(self) -> dict[str, float]:
        """Do the steps that are left; means of the losses, and the figures of the epoch."""
        training, epoch, first = self.training, self.position.epoch, self.position.step
        began = saved = time.monotonic()
        for step, batch in enumerate(training.batches(epoch, first), start=first):
            # what modules draw from torch's global generator (drop path) is a function of the step too
            torch.manual_seed(derived_seed(self.seed, training.name, epoch, step))
            self.unseen.append((step, training.step(batch, epoch=epoch, step=step)))
            last = step + 1 == training.steps_per_epoch
            late = not last and time.monotonic() - saved >= 60 * self.checkpoint_minutes
            if last or late or len(self.unseen) >= self.patience_steps:
                self._look(step)
            if late:
                position = self.position.model_copy(
                    update={"step": step + 1, "sums": dict(self.sums), "counts": dict(self.counts)}
                )
                _save(training, position, self.directory)
                saved = time.monotonic()
        images = (training.steps_per_epoch - first) * training.images_per_step
        rate = images / max(time.monotonic() - began, 1e-9)
        means = {name: total / self.counts[name] for name, total in self.sums.items()}
        return means | dict(training.epoch_metrics(epoch)) | {"images_per_second": rate}

    def _look(self, step: int) -> None:
        """Read the losses since the last look, and refuse to go on if one is not finite."""
        latest: dict[str, float] = {}
        for at, losses in self.unseen:
            values = torch.stack([value.detach().float() for value in losses.values()]).tolist()
            for name, value in zip(losses, values, strict=True):
                if not math.isfinite(value):
                    raise LossDiverged(
                        f"{self.training.name}: {name} became {value} in epoch {self.position.epoch + 1}, step {at + 1}"
                    )
                self.sums[name] = self.sums.get(name, 0.0) + value
                self.counts[name] = self.counts.get(name, 0) + 1
                latest[name] = value
        self.unseen.clear()
        if self.progress is not None:
            done = self.position.epoch * self.training.steps_per_epoch + step + 1
            self.progress(done, self.training.epochs * self.training.steps_per_epoch, latest)


def _resumed(training: Training, path: Path) -> Position:
    fresh = Position(training=training.name, fingerprint=training.fingerprint)
    if not path.exists():
        return fresh
    tensors, state = load_checkpoint(path)
    position = parse(Position, state, source=str(path))
    if (position.training, position.fingerprint) != (fresh.training, fresh.fingerprint):
        raise UserError(
            f"{path}: belongs to a training with other settings, seed, model or images. "
            "Use another folder, or delete it to start anew"
        )
    training.restore(tensors)
    return position


def _save(training: Training, position: Position, directory: Path) -> None:
    tensors = training.tensors()
    for name, tensor in tensors.items():  # a gradient can overflow while the loss is still finite
        if not tensor.isfinite().all():
            step = position.epoch * training.steps_per_epoch + position.step
            raise LossDiverged(f"{training.name}: {name} became nan or inf by step {step} of the training")
    state: dict[str, Any] = position.model_dump(mode="json")
    save_checkpoint(checkpoint_path(directory, training.name), tensors, state)


class _Table:
    """The metrics file; lines of epochs that will be trained again are dropped.

    It holds nothing that is timed, so that the same training gives the same bytes; the speed is in TensorBoard's logs.
    """

    def __init__(self, path: Path, columns: tuple[str, ...], *, keep_epochs: int) -> None:
        self.path = path
        self.columns = ("epoch", *columns)
        self.lines = [",".join(self.columns)]
        if path.exists():
            self.lines += path.read_text(encoding="utf-8").splitlines()[1 : keep_epochs + 1]

    def append(self, epoch: int, values: Mapping[str, float]) -> None:
        """Add a line; epochs are numbered from 1, a figure that this epoch lacks is left empty."""
        figures = (f"{values[name]:.6g}" if name in values else "" for name in self.columns[1:])
        self.lines.append(",".join((str(epoch + 1), *figures)))
        write_atomically(self.path, "\n".join([*self.lines, ""]).encode())
