"""Losses on logits: plain classification, and learning from a teacher.

# B batch, C channels, H W pixels, K classes
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import timm
import torch
import torch.nn.functional as F
from pydantic import Field
from timm.data import resolve_data_config  # type: ignore[attr-defined]
from torch import Tensor, nn

from supernet.architecture import Architecture
from supernet.convert import load_weights
from supernet.metaformer import MetaFormer
from supernet.schema import Record, UserError, nearest
from supernet.untrusted import read_tensors
from train.splits import Normalisation

TIMM = "timm:"

Outputs: TypeAlias = Tensor | tuple[Tensor, Tensor]  # logits B, K; while training with two heads: both heads' logits


class DistillationConfig(Record):
    """Learn from a teacher: `timm:NAME` (its published weights, unless `weights` names a file), or an Architecture.

    `weights` is a `.safetensors` or `.pth` file: timm's names for a timm model, any layout that `slimformer convert`
    knows for an architecture. Such a model was trained on images normalised as `data` says.

    `weight` is the teacher's share of the loss. `hard` takes the teacher's class for the truth, which is how
    DeiT and EfficientFormer were trained; otherwise the divergence from its probabilities at `temperature` counts.
    A model with a distillation head learns the teacher's answers with that head.
    """

    teacher: str
    weights: str | None = None
    weight: Annotated[float, Field(gt=0, le=1)] = 0.5
    temperature: Annotated[float, Field(gt=0)] = 1.0
    hard: bool = True


def teacher_files(config: DistillationConfig | None) -> tuple[Path, ...]:
    """The files that a teacher is read from."""
    if config is None:
        return ()
    named = [] if config.teacher.startswith(TIMM) else [config.teacher]
    found = [Path(name) for name in (*named, config.weights) if name is not None]
    for path in found:
        if not path.is_file():
            raise UserError(f"distillation: {path}: no such file")
    return tuple(found)


class Teacher(nn.Module):
    """A frozen model in evaluation mode, fed with images as it was trained to see them."""

    def __init__(self, model: nn.Module, *, seen_as: Normalisation, wants: Normalisation) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        scale = [ours / its for ours, its in zip(seen_as.std, wants.std, strict=True)]
        shift = [(ours - its) / spread for ours, its, spread in zip(seen_as.mean, wants.mean, wants.std, strict=True)]
        self.scale_C11: Tensor
        self.shift_C11: Tensor
        self.register_buffer("scale_C11", torch.tensor(scale)[:, None, None])
        self.register_buffer("shift_C11", torch.tensor(shift)[:, None, None])

    @torch.no_grad()
    def forward(self, images_BCHW: Tensor) -> Tensor:
        """The teacher's logits (B, K) for images in the student's normalisation."""
        logits_BK: Tensor = self.model(images_BCHW * self.scale_C11 + self.shift_C11)
        return logits_BK


def untrained_teacher(config: DistillationConfig, *, in_channels: int) -> nn.Module:
    """A model of the teacher's kind without its weights, to time it. Raises `UserError` for an unknown one."""
    if not config.teacher.startswith(TIMM):
        return MetaFormer(Architecture.load(config.teacher)).eval()
    model: nn.Module = timm.create_model(_timm_name(config), pretrained=False, in_chans=in_channels)
    return model.eval()


def open_teacher(
    config: DistillationConfig,
    *,
    in_channels: int,
    num_classes: int,
    resolution_px: tuple[int, int],
    normalisation: Normalisation,
) -> Teacher:
    """Build the teacher of a config for images of this kind.

    Raises `UserError` for an unknown model, for weights that cannot be had, or for other classes than the data's.
    """
    if config.teacher.startswith(TIMM):
        model, wants = _timm_teacher(config, in_channels=in_channels, num_classes=num_classes, ours=normalisation)
    else:
        if config.weights is None:
            raise UserError(f"distillation.weights: required with the architecture {config.teacher}")
        model, wants = MetaFormer(Architecture.load(config.teacher)), normalisation
        if model.architecture.in_channels != in_channels:
            raise UserError(
                f"distillation.teacher: {config.teacher} is made for {model.architecture.in_channels} channels, "
                f"the data have {in_channels}"
            )
        if model.architecture.resolution_px != resolution_px:
            raise UserError(
                f"distillation.teacher: {config.teacher} is made for {model.architecture.resolution_px} px images, "
                f"the data have {resolution_px}"
            )
        load_weights(model, Path(config.weights))
    try:
        with torch.no_grad():
            classes = model.eval()(torch.zeros(1, in_channels, *resolution_px)).shape[1]
    except (AssertionError, RuntimeError) as error:  # how models of one input size say so
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"distillation.teacher: {config.teacher} does not take {resolution_px} px images ({reason})"
        ) from None
    if classes != num_classes:
        raise UserError(f"distillation.teacher: {config.teacher} knows {classes} classes, the data have {num_classes}")
    return Teacher(model, seen_as=normalisation, wants=wants)


def _timm_teacher(
    config: DistillationConfig, *, in_channels: int, num_classes: int, ours: Normalisation
) -> tuple[nn.Module, Normalisation]:
    name = _timm_name(config)
    if config.weights is not None:
        model: nn.Module = timm.create_model(name, pretrained=False, in_chans=in_channels, num_classes=num_classes)
        _load(model, Path(config.weights), name=config.teacher)
        return model, ours
    try:
        model = timm.create_model(name, pretrained=True, in_chans=in_channels)
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"distillation.teacher: no weights for timm's {name} could be loaded ({reason})") from None
    settings = resolve_data_config(model=model)  # type: ignore[no-untyped-call]
    mean, std = tuple(settings["mean"]), tuple(settings["std"])
    if len(mean) != in_channels:  # timm sums the first layer over colours
        mean, std = (sum(mean) / len(mean),) * in_channels, (sum(std) / len(std),) * in_channels
    return model, Normalisation(mean, std)


def _timm_name(config: DistillationConfig) -> str:
    name = config.teacher.removeprefix(TIMM)
    if not timm.is_model(name.split(".")[0]):
        raise UserError(f"distillation.teacher: timm has no model {name!r}" + _close(name))
    return name


def _load(model: nn.Module, path: Path, *, name: str) -> None:
    try:
        model.load_state_dict(read_tensors(path))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"distillation.weights: {path}: not the weights of {name} ({reason})") from None


def _close(name: str) -> str:
    hint = nearest(name, timm.list_models())
    return hint if "did you mean" in hint else ""


def classification_loss(outputs: Outputs, targets: Tensor, *, label_smoothing: float) -> Tensor:
    """Cross-entropy with class numbers (B) or probabilities (B, K); of two heads, the mean of both."""
    heads = outputs if isinstance(outputs, tuple) else (outputs,)
    losses = [F.cross_entropy(logits.float(), targets, label_smoothing=label_smoothing) for logits in heads]
    return torch.stack(losses).mean()


def divergence(logits_BK: Tensor, teacher_BK: Tensor, *, temperature: float) -> Tensor:
    """Temperature squared times the KL divergence (nats an image) of the student from the teacher's probabilities."""
    student = F.log_softmax(logits_BK.float() / temperature, dim=1)
    teacher = F.log_softmax(teacher_BK.float() / temperature, dim=1)
    return temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)


def in_place_loss(
    outputs: Outputs, targets: Tensor, teacher_BK: Tensor, *, weight: float, label_smoothing: float
) -> Tensor:
    """A narrow path's loss in a supernet: of the labels, and with this weight of the largest path's logits."""
    labels = classification_loss(outputs, targets, label_smoothing=label_smoothing)
    if weight == 0:
        return labels
    heads = outputs if isinstance(outputs, tuple) else (outputs,)
    divergences = torch.stack([divergence(logits, teacher_BK, temperature=1.0) for logits in heads])
    return (1 - weight) * labels + weight * divergences.mean()


def distillation_loss(
    outputs: Outputs, targets: Tensor, teacher_BK: Tensor, *, config: DistillationConfig, label_smoothing: float
) -> Tensor:
    """The labels' loss and the teacher's, weighted; with two heads, each learns from one of them."""
    label_head, teacher_head = outputs if isinstance(outputs, tuple) else (outputs, outputs)
    from_labels = F.cross_entropy(label_head.float(), targets, label_smoothing=label_smoothing)
    if config.hard:
        from_teacher = F.cross_entropy(teacher_head.float(), teacher_BK.argmax(dim=1))
    else:
        from_teacher = divergence(teacher_head, teacher_BK, temperature=config.temperature)
    return (1 - config.weight) * from_labels + config.weight * from_teacher


def mean_logits(outputs: Outputs) -> Tensor:
    """The logits that count: of two heads, their mean, detached from the graph."""
    logits = (outputs[0] + outputs[1]) / 2 if isinstance(outputs, tuple) else outputs
    return logits.detach()
