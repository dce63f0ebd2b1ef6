"""Accuracy and loss of a model on a split, and batch-norm statistics fitted anew.

# B batch, C channels, H W pixels, K classes
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from supernet.schema import Record
from train.recipe import Precision, autocast
from train.splits import Batch, Split, evaluation_batches


class Accuracy(Record):
    """How many of how many images were classified correctly."""

    correct: int
    total: int

    @property
    def percent(self) -> float:
        """Correct images in percent."""
        return 100 * self.correct / self.total


def accuracy(model: nn.Module, split: Split, *, batch_size: int, precision: Precision) -> Accuracy:
    """Classify every image of the split, on the model's device and in evaluation mode."""
    device = device_of(model)
    return accuracy_of_batches(model, evaluation_batches(split, batch_size, device=device), precision=precision)


def accuracy_of_batches(model: nn.Module, batches: Iterable[Batch], *, precision: Precision) -> Accuracy:
    """The same over batches that were made before, so that many models can be scored on one set of tensors."""
    correct = torch.zeros((), dtype=torch.long, device=device_of(model))
    total = 0
    for logits_BK, labels_B in _outputs(model, batches, precision):
        correct += (logits_BK.argmax(dim=1) == labels_B).sum()
        total += len(labels_B)
    return Accuracy(correct=int(correct), total=total)


def outcome_of_batches(model: nn.Module, batches: Iterable[Batch], *, precision: Precision) -> tuple[Accuracy, float]:
    """The accuracy and the mean cross-entropy of the labels, in nats, over batches that were made before."""
    correct, total, nats = 0, 0, 0.0
    for logits_BK, labels_B in _outputs(model, batches, precision):
        correct += int((logits_BK.argmax(dim=1) == labels_B).sum())
        nats += float(F.cross_entropy(logits_BK.float(), labels_B, reduction="sum"))
        total += len(labels_B)
    return Accuracy(correct=correct, total=total), nats / total


def refit_batchnorm(model: nn.Module, batches: Iterable[Batch], *, precision: Precision) -> None:
    """Replace the running statistics of every batch norm by the plain average over these batches.

    Everything else runs as in evaluation (no drop path, no dropout), and every mode and momentum is put back.
    Without batch norms, or without batches, nothing happens.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    if not norms:
        return
    device = device_of(model)
    modes = {module: module.training for module in model.modules()}
    momenta = [norm.momentum for norm in norms]
    model.eval()
    started = False
    try:
        with torch.no_grad(), autocast(precision, device):
            for images_BCHW, _ in batches:
                if not started:
                    for norm in norms:
                        norm.reset_running_stats()
                        norm.momentum = None  # torch's name for a cumulative average
                        norm.train()
                    started = True
                model(images_BCHW.to(device))
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, training in modes.items():
            module.training = training


def device_of(model: nn.Module) -> torch.device:
    """The device of the model's first parameter."""
    return next(model.parameters()).device


def _outputs(model: nn.Module, batches: Iterable[Batch], precision: Precision) -> Iterable[tuple[Tensor, Tensor]]:
    """Logits and labels of every batch; the model's modes are put back at the end."""
    device = device_of(model)
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        for images_BCHW, labels_B in batches:
            with torch.inference_mode(), autocast(precision, device):
                logits_BK = model(images_BCHW.to(device))
            yield logits_BK, labels_B.to(device)
    finally:
        for module, training in modes.items():
            module.training = training
