"""The optimization recipe: its settings, and the optimizer, learning rate, precision and average that follow."""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from timm.optim import create_optimizer_v2  # type: ignore[attr-defined]
from timm.utils import ModelEmaV3  # type: ignore[attr-defined]
from torch import nn

from supernet.schema import Record
from train.muon import Muon, is_matrix

Precision = Literal["auto", "fp32", "bf16"]
Positive = Annotated[int, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]

UNDECAYED = ("attention_bias", "layer_scale")  # matrices or vectors that are not the weights of a linear map


class OptimizationConfig(Record):
    """AdamW or Muon with a linear warm-up and a cosine, for a supernet or a single model.

    `learning_rate` is the peak, per step, and means the same for both; `precision: auto` is bf16 autocast where the
    device computes it natively.
    """

    added_later: ClassVar[frozenset[str]] = frozenset({"optimizer"})

    epochs: Positive
    batch_size: Annotated[int, Field(ge=2)]
    optimizer: Literal["adamw", "muon"] = "adamw"
    learning_rate: Annotated[float, Field(gt=0)]
    warmup_epochs: NotNegative = 0.0
    min_learning_rate: NotNegative = 0.0
    weight_decay: NotNegative = 0.05
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1
    gradient_clip_norm: Annotated[float, Field(gt=0)] | None = None
    precision: Precision = "auto"
    channels_last: bool = True

    @model_validator(mode="after")
    def _ordered(self) -> OptimizationConfig:
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs ({self.warmup_epochs:g}) must be below epochs ({self.epochs})")
        if self.min_learning_rate > self.learning_rate:
            raise ValueError(
                f"min_learning_rate ({self.min_learning_rate:g}) is above learning_rate ({self.learning_rate:g})"
            )
        return self


class RecipeConfig(OptimizationConfig):
    """The recipe of a single model: also an average of its weights and drop path.

    `ema_decay` null trains without an average; `drop_path_rate` is the last block's.
    """

    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    drop_path_rate: Annotated[float, Field(ge=0, lt=1)] = 0.0


def learning_rate(config: OptimizationConfig, *, step: int, steps_per_epoch: int) -> float:
    """The learning rate of a step, counted from 0 over the whole training: linear warm-up, then a cosine."""
    warmup = round(config.warmup_epochs * steps_per_epoch)
    total = config.epochs * steps_per_epoch
    if step < warmup:
        return config.learning_rate * (step + 1) / (warmup + 1)
    done = (step - warmup) / max(1, total - warmup)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    return config.min_learning_rate + (config.learning_rate - config.min_learning_rate) * cosine


def make_optimizer(
    named_parameters: Iterable[tuple[str, nn.Parameter]], config: OptimizationConfig
) -> torch.optim.Optimizer:
    """The optimizer over these parameters; vectors, attention biases and layer scales are not decayed."""
    decayed: list[nn.Parameter] = []
    undecayed: list[nn.Parameter] = []
    for name, parameter in named_parameters:
        vector = parameter.ndim <= 1 or any(part in name for part in UNDECAYED)
        (undecayed if vector else decayed).append(parameter)
    if config.optimizer == "muon":
        matrices = [parameter for parameter in decayed if is_matrix(parameter)]
        others = [parameter for parameter in decayed if not is_matrix(parameter)]
        groups = [
            {"params": matrices, "weight_decay": config.weight_decay, "matrices": True},
            {"params": others, "weight_decay": config.weight_decay, "matrices": False},
            {"params": undecayed, "weight_decay": 0.0, "matrices": False},
        ]
        return Muon((group for group in groups if group["params"]), lr=config.learning_rate)
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": undecayed, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return create_optimizer_v2(groups, "adamw", lr=config.learning_rate, weight_decay=0.0, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Set the learning rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = value


def make_average(model: nn.Module, decay: float) -> ModelEmaV3:
    """The moving average of weights and batch-norm statistics; it follows more quickly in the first steps."""
    return ModelEmaV3(model, decay=decay, use_warmup=True)


def computes_bf16(device: torch.device) -> bool:
    """Whether the device has bf16 arithmetic. (Emulated on AVX2, bf16 was measured ten times slower than fp32.)"""
    match device.type:
        case "cuda":
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
        case "cpu":
            probe = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
            return bool(probe()) if probe is not None else False
        case _:
            return False


def resolved_precision(precision: Precision, device: torch.device) -> Literal["fp32", "bf16"]:
    """The precision that "auto" stands for on this device; others are taken at their word."""
    if precision == "auto":
        return "bf16" if computes_bf16(device) else "fp32"
    return precision


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """The context in which a forward pass runs in this precision."""
    enabled = resolved_precision(precision, device) == "bf16"
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)
