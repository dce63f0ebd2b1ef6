"""Architecture: one model as a frozen value, without torch.

An `Architecture` holds everything that decides the shape of a standalone model: input channels and resolution, stem,
per stage its width, downsampling and blocks (with absolute channel numbers), and the head. It is written and read as
YAML or JSON, and its digest is its identity.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from supernet.block_types import ActivationName, AnyBlock, Identity, Norm, Positive
from supernet.schema import Record, digest, load, save

PoolingName = Literal["none", "max"]


class Stem(Record):
    """Two 3x3 convolutions with batch norm and activation; the first has half of the width by default.

    `strides` (2, 2) is the published stem (output stride 4); (1, 2) and (1, 1) keep small images large. With `pooling:
    max` the convolutions keep the size, and the maximum of every stride x stride pixels follows the activation.
    """

    added_later: ClassVar[frozenset[str]] = frozenset({"pooling"})

    width_channels: Positive
    hidden_channels: Positive
    strides: tuple[Positive, Positive] = (2, 2)
    activation: Literal["relu", "gelu"] = "relu"
    pooling: PoolingName = "none"

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of its output for an input of this size."""
        for stride in self.strides:
            size = strided(size, stride)
        return size


class PatchStem(Record):
    """One large strided convolution with bias, then a norm: the stem of the MetaFormer baselines."""

    type: Literal["patch"] = "patch"
    width_channels: Positive
    kernel: Positive = 7
    stride: Positive = 4
    padding: Annotated[int, Field(ge=0)] = 2
    norm: Norm | None = Norm()

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of its output for an input of this size."""
        return convolved(size, kernel=self.kernel, stride=self.stride, padding=self.padding)


class Downsampling(Record):
    """A 3x3 convolution with bias and batch norm, without activation, that opens a stage.

    With `pooling: max` the convolution keeps the size; ReLU and the maximum of every stride x stride pixels follow.
    """

    added_later: ClassVar[frozenset[str]] = frozenset({"pooling"})

    stride: Positive = 2
    pooling: PoolingName = "none"

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of its output for an input of this size."""
        return strided(size, self.stride)


class PatchDownsampling(Record):
    """A norm, then a strided convolution with bias: how the MetaFormer baselines open a stage."""

    type: Literal["patch"] = "patch"
    kernel: Positive = 3
    stride: Positive = 2
    padding: Annotated[int, Field(ge=0)] = 1
    norm: Norm | None = Norm()

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of its output for an input of this size."""
        return convolved(size, kernel=self.kernel, stride=self.stride, padding=self.padding)


class DualDownsampling(Record):
    """EfficientFormerV2's: a strided 3x3 convolution with batch norm, plus attention that asks from every s-th pixel.

    `key_channels` and `value_channels` are per head.
    """

    type: Literal["dual"] = "dual"
    stride: Positive = 2
    heads: Positive = 8
    key_channels: Positive = 16
    value_channels: Positive = 64

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of its output for an input of this size."""
        return strided(size, self.stride)


def _kind(value: object) -> str:
    """The tag of a stem or downsampling: those without a `type` are EfficientFormer's."""
    found = value.get("type", "conv") if isinstance(value, dict) else getattr(value, "type", "conv")
    return str(found)


AnyStem = Annotated[Annotated[Stem, Tag("conv")] | Annotated[PatchStem, Tag("patch")], Discriminator(_kind)]
AnyDownsampling = Annotated[
    Annotated[Downsampling, Tag("conv")]
    | Annotated[PatchDownsampling, Tag("patch")]
    | Annotated[DualDownsampling, Tag("dual")],
    Discriminator(_kind),
]


class Stage(Record):
    """Blocks of one width and resolution. `downsampling` is None where the stage keeps its input's shape."""

    width_channels: Positive
    downsampling: AnyDownsampling | None
    blocks: tuple[AnyBlock, ...]

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the stage's map after one of this size."""
        return size if self.downsampling is None else self.downsampling.grid(size)


class Head(Record):
    """Norm, mean or maximum over tokens, classifier; with distillation a second classifier.

    `norm: layer_norm` normalises every token, as EfficientFormer does, or with `norm_after_pooling` what the pooling
    leaves (the MetaFormer baselines); `map_norm` the whole map (PoolFormer); `batch_norm` every channel
    (EfficientFormerV2); `identity` leaves the norm out. `pooling: mean` is EfficientFormer's; `max` takes every channel
    where it is strongest. The classifier is linear, or with `hidden_channels` linear, `hidden_activation`, layer norm
    (left out without `hidden_norm`), dropout, linear.
    """

    added_later: ClassVar[frozenset[str]] = frozenset(
        {"norm", "norm_after_pooling", "norm_eps", "pooling", "hidden_channels", "hidden_activation", "hidden_norm"}
    )

    num_classes: Positive
    distillation: bool = False
    norm: Literal["layer_norm", "map_norm", "batch_norm", "identity"] = "layer_norm"
    norm_after_pooling: bool = False
    norm_eps: Annotated[float, Field(gt=0)] = 1e-5
    pooling: Literal["mean", "max"] = "mean"
    hidden_channels: Positive | None = None
    hidden_activation: ActivationName = "squared_relu"
    hidden_norm: bool = True

    @model_validator(mode="after")
    def _ordered(self) -> Head:
        if self.norm_after_pooling and self.norm not in ("layer_norm", "identity"):
            raise ValueError(f"norm_after_pooling: {self.norm} is a norm of maps, before the pooling")
        if self.hidden_channels is None and (self.hidden_activation != "squared_relu" or not self.hidden_norm):
            raise ValueError("hidden_activation and hidden_norm need hidden_channels")
        return self


class Architecture(Record):
    """A standalone MetaFormer, complete: from this file alone the model can be built and retrained."""

    schema_version: Literal[1] = 1
    in_channels: Positive
    resolution_px: tuple[Positive, Positive]
    stem: AnyStem
    stages: Annotated[tuple[Stage, ...], Field(min_length=1)]
    head: Head

    @field_validator("resolution_px", mode="before")
    @classmethod
    def _square(cls, value: object) -> object:
        if isinstance(value, int):
            return value, value
        return tuple(value) if isinstance(value, list) else value

    @model_validator(mode="after")
    def _fits(self) -> Architecture:
        if self.stages[0].downsampling is None and self.stages[0].width_channels != self.stem.width_channels:
            raise ValueError(
                f"stage 1: width {self.stages[0].width_channels} differs from the stem's {self.stem.width_channels}"
            )
        for number, (previous, stage) in enumerate(zip(self.stages, self.stages[1:], strict=False), start=2):
            if stage.downsampling is None and stage.width_channels != previous.width_channels:
                raise ValueError(f"stage {number}: a change of width needs a downsampling")
        if min(min(grid) for grid in self.grids) < 1:
            raise ValueError(f"resolution_px: {self.resolution_px} leaves nothing of the map in the last stage")
        return self

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """C, H, W of an image."""
        return (self.in_channels, *self.resolution_px)

    @property
    def grids(self) -> tuple[tuple[int, int], ...]:
        """Height and width of the feature map in every stage."""
        return stage_grids(self.stem.grid(self.resolution_px), self.stages)

    @property
    def depth(self) -> int:
        """The number of blocks that compute something."""
        return sum(not isinstance(block, Identity) for stage in self.stages for block in stage.blocks)

    @property
    def digest(self) -> str:
        """The identity of this architecture: 16 hex digits over its canonical JSON."""
        return digest(self)

    @classmethod
    def load(cls, path: Path | str) -> Architecture:
        """Read an architecture from YAML or JSON. Raises `UserError` for anything wrong with the file."""
        return load(cls, path)

    def save(self, path: Path | str) -> None:
        """Write the architecture as YAML or JSON, by suffix."""
        save(self, path)


def stage_grids(grid: tuple[int, int], stages: Iterable[Stage]) -> tuple[tuple[int, int], ...]:
    """Height and width of the feature map in every stage, the first one given a map of this size."""
    return tuple(itertools.accumulate(stages, lambda size, stage: stage.grid(size), initial=grid))[1:]


def strided(grid: tuple[int, int], stride: int) -> tuple[int, int]:
    """The output size of a 3x3 convolution with padding 1 and this stride."""
    return math.ceil(grid[0] / stride), math.ceil(grid[1] / stride)


def convolved(grid: tuple[int, int], *, kernel: int, stride: int, padding: int) -> tuple[int, int]:
    """The output size of a convolution."""
    height, width = ((side + 2 * padding - kernel) // stride + 1 for side in grid)
    return height, width


def grids_of(
    resolution_px: tuple[int, int], *, stem_strides: Iterable[int], stage_strides: Iterable[int]
) -> tuple[tuple[int, int], ...]:
    """Height and width of the feature map in every stage; a stage without downsampling has the stride 1."""
    grid = resolution_px
    for stride in stem_strides:
        grid = strided(grid, stride)
    grids = []
    for stride in stage_strides:
        grid = strided(grid, stride)
        grids.append(grid)
    return tuple(grids)
