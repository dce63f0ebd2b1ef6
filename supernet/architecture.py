"""Architecture: one model as a frozen value, without torch.

An `Architecture` holds everything that decides the shape of a standalone model: input channels and resolution, stem,
per stage its width, downsampling and blocks (with absolute channel numbers), and the head. It is written and read as
YAML or JSON, and its digest is its identity.

Blocks are an open set: a block is a `Block` subclass with a `type`, registered by `register_block` in
`supernet.blocks`. Fields that end in `_channels` are absolute; a search space gives them as `_ratio` of the stage's
width (see `Block.at_width`).
"""

from __future__ import annotations

import builtins
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import (
    AfterValidator,
    Field,
    SerializeAsAny,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
    model_validator,
)

from supernet.schema import Record, UserError, digest, load, nearest, parse, save


def _odd(value: int) -> int:
    if value % 2 == 0:
        raise ValueError(f"must be odd (got {value})")
    return value


Positive = Annotated[int, Field(gt=0)]
OddKernel = Annotated[int, Field(gt=0), AfterValidator(_odd)]
LayerScale = Annotated[float, Field(ge=0)]

_BLOCK_TYPES: dict[str, type[Block]] = {}


class Block(Record):
    """What one position of a stage computes; subclass it to add your own.

    `layout` says what the module takes and returns: "map" for B,C,H,W tensors, "tokens" for B,N,C tensors.
    """

    type: str
    layout: ClassVar[Literal["map", "tokens"]] = "map"

    @classmethod
    def at_width(cls, width_channels: int, **options: Any) -> Block:
        """The block that candidate options describe in a stage of this width.

        For each field `X_channels` an option `X_ratio` gives it as a multiple of the width (rounded to an integer).
        Raises `UserError` for an option that the block does not have.
        """
        values: dict[str, Any] = {}
        for option, value in options.items():
            stem = option.removesuffix("_ratio")
            if option != stem and f"{stem}_channels" in cls.model_fields:
                if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
                    raise UserError(f"{option}: must be a number above 0 (got {value!r})")
                values[f"{stem}_channels"] = max(1, round(value * width_channels))
            elif option in cls.model_fields and option != "type":
                values[option] = value
            else:
                raise UserError(f"{option}: unknown option" + nearest(option, cls.option_names()))
            if option != stem and f"{stem}_channels" in options:
                raise UserError(f"{option} and {stem}_channels: give one of the two")
        return parse(cls, {"type": cls.model_fields["type"].default} | values, source=cls.__name__)

    @classmethod
    def kind_of(cls, data: object) -> builtins.type[Record]:
        """The registered block type that the data name, or `Block` itself."""
        name = data.get("type") if isinstance(data, dict) else None
        return _BLOCK_TYPES.get(name, cls) if isinstance(name, str) else cls

    @classmethod
    def option_names(cls) -> list[str]:
        """The names a candidate of this type accepts in a search space."""
        fields = [name for name in cls.model_fields if name != "type"]
        return fields + [name.removesuffix("_channels") + "_ratio" for name in fields if name.endswith("_channels")]


BlockT = TypeVar("BlockT", bound=Block)


class Identity(Block):
    """A position left out. It stays in the list, so that positions keep their numbers in the supernet."""

    type: Literal["identity"] = "identity"


class MB4D(Block):
    """The 4D block of EfficientFormer: pooling mixer, convolutional channel MLP, both with layer scale."""

    type: Literal["mb4d"] = "mb4d"
    pool_kernel: OddKernel = 3
    mlp_channels: Positive
    layer_scale: LayerScale = 1e-5


class MB3D(Block):
    """The 3D block of EfficientFormer: attention with an offset bias table, linear channel MLP, both pre-normed.

    `key_channels` and `value_channels` are per head, and do not depend on the stage's width.
    """

    type: Literal["mb3d"] = "mb3d"
    layout: ClassVar[Literal["map", "tokens"]] = "tokens"
    heads: Positive = 8
    key_channels: Positive = 32
    value_channels: Positive = 128
    mlp_channels: Positive
    layer_scale: LayerScale = 1e-5


class SeparableConv(Block):
    """A 4D block whose token mixer is a separable convolution (expand, depthwise, project), batch-normed.

    The mixer follows ConvFormer's (facts: expansion 2, activation before the depthwise kernel) in MB4D's frame:
    batch norm instead of layer norm, so that everything folds into convolutions at inference.
    """

    type: Literal["separable_conv"] = "separable_conv"
    kernel: OddKernel = 3
    mixer_channels: Positive
    mlp_channels: Positive
    activation: Literal["gelu", "relu"] = "gelu"
    layer_scale: LayerScale = 1.0


class Conv(Block):
    """A 4D block whose token mixer is a dense convolution, batch-normed and activated.

    On small images it learns more per second of training than pooling or a separable convolution does
    (experiments/LOG.md), and it folds into one convolution and one activation at inference.
    """

    type: Literal["conv"] = "conv"
    kernel: OddKernel = 3
    mlp_channels: Positive
    activation: Literal["gelu", "relu"] = "gelu"
    layer_scale: LayerScale = 1.0


def register_block_type(block: type[Block]) -> None:
    """Make a `Block` subclass readable from files by its `type`. Raises `ValueError` if the name is taken."""
    default = block.model_fields["type"].default
    if not isinstance(default, str) or not default:
        raise ValueError(f'{block.__name__}: needs `type: Literal["name"] = "name"`')
    if _BLOCK_TYPES.get(default, block).__qualname__ != block.__qualname__:
        raise ValueError(f"block type {default!r} is registered already, by {_BLOCK_TYPES[default].__name__}")
    _BLOCK_TYPES[default] = block


def block_type(name: str) -> type[Block]:
    """The registered `Block` subclass of this type name. Raises `UserError` that names the nearest one."""
    if name not in _BLOCK_TYPES:
        raise UserError(
            f"unknown block type {name!r}{nearest(name, _BLOCK_TYPES)}; a block of your own needs --plugin FILE"
        )
    return _BLOCK_TYPES[name]


for _block in (Identity, MB4D, MB3D, SeparableConv, Conv):
    register_block_type(_block)


def _by_type(value: object, handler: ValidatorFunctionWrapHandler) -> Block:
    if isinstance(value, Block):
        return value
    if not isinstance(value, dict) or not isinstance(value.get("type"), str):
        raise ValueError("a block needs a type, such as {type: mb4d, ...}")
    return block_type(value["type"]).model_validate_json(json.dumps(value))


AnyBlock = Annotated[SerializeAsAny[Block], WrapValidator(_by_type)]

Pooling = Literal["none", "max"]


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
    pooling: Pooling = "none"


class Downsampling(Record):
    """A 3x3 convolution with bias and batch norm, without activation, that opens a stage.

    With `pooling: max` the convolution keeps the size; ReLU and the maximum of every stride x stride pixels follow.
    """

    added_later: ClassVar[frozenset[str]] = frozenset({"pooling"})

    stride: Positive = 2
    pooling: Pooling = "none"


class Stage(Record):
    """Blocks of one width and resolution. `downsampling` is None where the stage keeps its input's shape."""

    width_channels: Positive
    downsampling: Downsampling | None
    blocks: tuple[AnyBlock, ...]

    @property
    def stride(self) -> int:
        """How much smaller the stage's map is than the one before it, along each side."""
        return 1 if self.downsampling is None else self.downsampling.stride


class Head(Record):
    """Norm, mean or maximum over tokens, linear classifier; with distillation a second classifier.

    `norm: layer_norm` normalises every token, as EfficientFormer does; `identity` leaves the norm out. `pooling: mean`
    is EfficientFormer's; `max` takes every channel where it is strongest.
    """

    added_later: ClassVar[frozenset[str]] = frozenset({"norm", "pooling"})

    num_classes: Positive
    distillation: bool = False
    norm: Literal["layer_norm", "identity"] = "layer_norm"
    pooling: Literal["mean", "max"] = "mean"


class Architecture(Record):
    """A standalone MetaFormer, complete: from this file alone the model can be built and retrained."""

    schema_version: Literal[1] = 1
    in_channels: Positive
    resolution_px: tuple[Positive, Positive]
    stem: Stem
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
        return self

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """C, H, W of an image."""
        return (self.in_channels, *self.resolution_px)

    @property
    def grids(self) -> tuple[tuple[int, int], ...]:
        """Height and width of the feature map in every stage."""
        strides = [stage.stride for stage in self.stages]
        return grids_of(self.resolution_px, stem_strides=self.stem.strides, stage_strides=strides)

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


def strided(grid: tuple[int, int], stride: int) -> tuple[int, int]:
    """The output size of a 3x3 convolution with padding 1 and this stride."""
    return math.ceil(grid[0] / stride), math.ceil(grid[1] / stride)


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
