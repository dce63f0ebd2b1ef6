"""The blocks that a stage can hold, as values: what a block is, without torch.

Blocks are an open set: a block is a `Block` subclass with a `type`, registered by `register_block` in
`supernet.blocks`. Fields that end in `_channels` are absolute; a search space gives them as `_ratio` of the stage's
width (see `Block.at_width`).
"""

from __future__ import annotations

import builtins
import json
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import AfterValidator, Field, SerializeAsAny, ValidatorFunctionWrapHandler, WrapValidator

from supernet.schema import Record, UserError, nearest, parse


def _odd(value: int) -> int:
    if value % 2 == 0:
        raise ValueError(f"must be odd (got {value})")
    return value


Positive = Annotated[int, Field(gt=0)]
OddKernel = Annotated[int, Field(gt=0), AfterValidator(_odd)]
LayerScale = Annotated[float, Field(ge=0)]
ActivationName = Literal["gelu", "relu", "star_relu", "squared_relu"]

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


class UnifiedFFN(Block):
    """The local block of EfficientFormerV2: a channel MLP with a depthwise convolution inside, with layer scale."""

    type: Literal["unified_ffn"] = "unified_ffn"
    mlp_channels: Positive
    layer_scale: LayerScale = 1e-5


class AttentionFFN(Block):
    """The global block of EfficientFormerV2: attention with talking heads and a local value path, then `UnifiedFFN`.

    With a `stride` the attention works on a map smaller by it, and its result is enlarged again. `key_channels` and
    `value_channels` are per head, and do not depend on the stage's width.
    """

    type: Literal["attention_ffn"] = "attention_ffn"
    stride: Positive = 1
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


class Norm(Record):
    """Layer norm of the channels of every pixel, or of the whole map; a factor (and a bias) a channel in both."""

    over: Literal["channels", "map"] = "channels"
    bias: bool = False
    eps: Annotated[float, Field(gt=0)] = 1e-6


class Pooling(Record):
    """Average pooling minus its input (PoolFormer)."""

    type: Literal["pooling"] = "pooling"
    kernel: OddKernel = 3


class NoMixing(Record):
    """No token mixing: the branch is its norm (IdentityFormer)."""

    type: Literal["identity"] = "identity"


class RandomMixing(Record):
    """A fixed random matrix over the positions, its rows normalised by softmax (RandFormer)."""

    type: Literal["random"] = "random"


class SeparableMixing(Record):
    """Expand, activation, depthwise convolution, project, all without bias and norm (ConvFormer)."""

    type: Literal["separable_conv"] = "separable_conv"
    hidden_channels: Positive
    kernel: OddKernel = 7
    activation: ActivationName = "star_relu"


class SelfAttention(Record):
    """Multi-head attention without bias or positions, as many heads as the width holds (CAFormer)."""

    type: Literal["attention"] = "attention"
    head_channels: Positive = 32


TokenMixer = Annotated[Pooling | NoMixing | RandomMixing | SeparableMixing | SelfAttention, Field(discriminator="type")]


class MetaFormerBlock(Block):
    """The general MetaFormer block: X' = r1 * X + l1 * Mixer(Norm(X)), X'' = r2 * X' + l2 * MLP(Norm(X')).

    `layer_scale` and `residual_scale` are the initial values of l and r, one learnable factor a channel; None leaves
    them out. The MLP has two linear maps (facts: MetaFormer baselines sections 1.2 and 3).
    """

    type: Literal["metaformer"] = "metaformer"
    mixer: TokenMixer
    norm: Norm = Norm()
    mlp_channels: Positive
    mlp_bias: bool = False
    activation: ActivationName = "star_relu"
    layer_scale: float | None = None
    residual_scale: float | None = None

    @classmethod
    def at_width(cls, width_channels: int, **options: Any) -> Block:
        """The block that candidate options describe; `mixer` may be given by its type alone.

        A separable convolution's channels are a `hidden_ratio` of the width, 2 where nothing is said (ConvFormer's).
        Self-attention has as many heads as the width holds, so its widths share weights less well than MB3D's do.
        """
        mixer = options.get("mixer")
        if isinstance(mixer, str):
            mixer = {"type": mixer}
        if isinstance(mixer, dict) and mixer.get("type") == "separable_conv" and "hidden_channels" not in mixer:
            ratio = mixer.get("hidden_ratio", 2)
            if not isinstance(ratio, int | float) or isinstance(ratio, bool) or ratio <= 0:
                raise UserError(f"mixer.hidden_ratio: must be a number above 0 (got {ratio!r})")
            others = {name: value for name, value in mixer.items() if name != "hidden_ratio"}
            mixer = others | {"hidden_channels": max(1, round(ratio * width_channels))}
        return super().at_width(width_channels, **options if mixer is None else options | {"mixer": mixer})


def register_block_type(block: type[Block]) -> None:
    """Make a `Block` subclass readable from files by its `type`. Raises `ValueError` if the name is taken."""
    default = block.model_fields["type"].default
    if not isinstance(default, str) or not default:
        raise ValueError(f'{block.__name__}: needs `type: Literal["name"] = "name"`')
    if _BLOCK_TYPES.get(default, block).__qualname__ != block.__qualname__:
        raise ValueError(f"block type {default!r} is registered already, by {_BLOCK_TYPES[default].__name__}")
    _BLOCK_TYPES[default] = block


def block_type_names() -> list[str]:
    """The type names of all known blocks, sorted."""
    return sorted(_BLOCK_TYPES)


def block_type(name: str) -> type[Block]:
    """The registered `Block` subclass of this type name. Raises `UserError` that names the nearest one."""
    if name not in _BLOCK_TYPES:
        raise UserError(
            f"unknown block type {name!r}{nearest(name, _BLOCK_TYPES)}; a block of your own needs --plugin FILE"
        )
    return _BLOCK_TYPES[name]


for _block in (Identity, MB4D, MB3D, UnifiedFFN, AttentionFFN, SeparableConv, Conv, MetaFormerBlock):
    register_block_type(_block)


def _by_type(value: object, handler: ValidatorFunctionWrapHandler) -> Block:
    if isinstance(value, Block):
        return value
    if not isinstance(value, dict) or not isinstance(value.get("type"), str):
        raise ValueError("a block needs a type, such as {type: mb4d, ...}")
    return block_type(value["type"]).model_validate_json(json.dumps(value))


AnyBlock = Annotated[SerializeAsAny[Block], WrapValidator(_by_type)]
