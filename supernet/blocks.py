"""The blocks as plain modules, with no choice in them, and the registration of a user's own block.

A block module is built from its `Block` value, the stage's width and the grid. It takes and returns a B,C,H,W map,
or B,N,C tokens where `Block.layout` is "tokens".
"""

# B batch, C channels, H W pixels, N tokens, D width of a head

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

import torch.nn.functional as F
from torch import Tensor, nn
from torch.jit import is_scripting  # type: ignore[attr-defined]

from supernet.activations import StarReLU, activation_module
from supernet.block_types import (
    MB3D,
    MB4D,
    ActivationName,
    AttentionFFN,
    Block,
    BlockT,
    Conv,
    Identity,
    MetaFormerBlock,
    SeparableConv,
    UnifiedFFN,
    register_block_type,
)
from supernet.efficientformer_v2 import DepthwiseMlp, TalkingAttention
from supernet.layers import DropPath, LayerScale, NoScale
from supernet.mixers import ConvMixer, OffsetAttention, PoolMixer, SeparableConvMixer, mixer_module
from supernet.norms import NormModule


class BlockBuilder(Protocol):
    """What builds a block's module; a class with this constructor is one."""

    def __call__(self, block: Block, *, width_channels: int, grid: tuple[int, int], drop_path: float) -> nn.Module:
        """The module of this block; `drop_path` is the probability of dropping a residual branch."""
        ...


_BUILDERS: dict[type[Block], Callable[..., nn.Module]] = {}
ModuleT = TypeVar("ModuleT", bound=Callable[..., nn.Module])


def register_block(block: type[BlockT]) -> Callable[[ModuleT], ModuleT]:
    """Class decorator that makes a user's block known: to files by its type, to models by the decorated module.

    The module is constructed as `Module(block, width_channels=..., grid=..., drop_path=...)`. Elastic width takes
    the leading channels of every parameter, so its parameter shapes must shrink with the width and nothing else.
    Raises `ValueError` if the type's name is taken.
    """
    register_block_type(block)

    def register(builder: ModuleT) -> ModuleT:
        _BUILDERS[block] = builder
        return builder

    return register


def build_block(block: Block, *, width_channels: int, grid: tuple[int, int], drop_path: float = 0.0) -> nn.Module:
    """The module of a block in a stage of this width and grid. Raises `ValueError` if its type has no module."""
    builder = _BUILDERS.get(type(block))
    if builder is None:
        raise ValueError(f"block type {block.type!r} has no module; decorate one with register_block")
    return builder(block, width_channels=width_channels, grid=grid, drop_path=drop_path)


class ConvMlp(nn.Module):
    """The channel MLP of 4D blocks: 1x1 convolutions with batch norm, exact GELU between (EfficientFormer V1)."""

    def __init__(self, width_channels: int, mlp_channels: int, activation: ActivationName = "gelu") -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(width_channels, mlp_channels, 1)
        self.norm1 = nn.BatchNorm2d(mlp_channels)
        self.act = activation_module(activation)
        self.fc2 = nn.Conv2d(mlp_channels, width_channels, 1)
        self.norm2 = nn.BatchNorm2d(width_channels)
        for conv in (self.fc1, self.fc2):
            nn.init.trunc_normal_(conv.weight, std=0.02)
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]  # the bias exists

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """B,C,H,W to B,C,H,W."""
        return self.norm2(self.fc2(self.act(self.norm1(self.fc1(x_BCHW)))))  # type: ignore[no-any-return]


class Mlp(nn.Module):
    """The channel MLP of 3D blocks: two linear layers with exact GELU between."""

    def __init__(self, width_channels: int, mlp_channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width_channels, mlp_channels)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(mlp_channels, width_channels)
        for linear in (self.fc1, self.fc2):
            nn.init.trunc_normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)

    def forward(self, x_BNC: Tensor) -> Tensor:
        """B,N,C to B,N,C."""
        return self.fc2(self.act(self.fc1(x_BNC)))  # type: ignore[no-any-return]


@register_block(Identity)
class IdentityModule(nn.Identity):
    """A position left out."""

    def __init__(self, block: Identity, *, width_channels: int, grid: tuple[int, int], drop_path: float) -> None:
        super().__init__()


class MapBlock(nn.Module):
    """X' = X + ls1 * TokenMixer(X), X'' = X' + ls2 * ChannelMLP(X'), on maps; the parts bring their own norms."""

    def __init__(
        self,
        mixer: nn.Module,
        *,
        width_channels: int,
        mlp_channels: int,
        layer_scale: float,
        drop_path: float,
        activation: ActivationName = "gelu",
    ) -> None:
        super().__init__()
        self.token_mixer = mixer
        self.ls1 = LayerScale(width_channels, layer_scale, channels_first=True)
        self.drop_path = DropPath(drop_path)
        self.mlp = ConvMlp(width_channels, mlp_channels, activation)
        self.ls2 = LayerScale(width_channels, layer_scale, channels_first=True)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """B,C,H,W to B,C,H,W."""
        x_BCHW = x_BCHW + self.drop_path(self.ls1(self.token_mixer(x_BCHW)))
        return x_BCHW + self.drop_path(self.ls2(self.mlp(x_BCHW)))  # type: ignore[no-any-return]


@register_block(MB4D)
class MB4DModule(MapBlock):
    """EfficientFormer's 4D block. The pooling mixer has no norm before it (facts: EfficientFormer section 1)."""

    def __init__(self, block: MB4D, *, width_channels: int, grid: tuple[int, int], drop_path: float) -> None:
        super().__init__(
            PoolMixer(block.pool_kernel),
            width_channels=width_channels,
            mlp_channels=block.mlp_channels,
            layer_scale=block.layer_scale,
            drop_path=drop_path,
        )


@register_block(SeparableConv)
class SeparableConvModule(MapBlock):
    """MB4D with a separable convolution in the place of pooling."""

    def __init__(self, block: SeparableConv, *, width_channels: int, grid: tuple[int, int], drop_path: float) -> None:
        super().__init__(
            SeparableConvMixer(width_channels, block.mixer_channels, kernel=block.kernel, activation=block.activation),
            width_channels=width_channels,
            mlp_channels=block.mlp_channels,
            layer_scale=block.layer_scale,
            drop_path=drop_path,
            activation=block.activation,
        )


@register_block(Conv)
class ConvModule(MapBlock):
    """MB4D with a dense convolution in the place of pooling."""

    def __init__(self, block: Conv, *, width_channels: int, grid: tuple[int, int], drop_path: float) -> None:
        super().__init__(
            ConvMixer(width_channels, kernel=block.kernel, activation=block.activation),
            width_channels=width_channels,
            mlp_channels=block.mlp_channels,
            layer_scale=block.layer_scale,
            drop_path=drop_path,
            activation=block.activation,
        )


@register_block(MB3D)
class MB3DModule(nn.Module):
    """EfficientFormer's 3D block: pre-normed attention and linear MLP on tokens, both with layer scale."""

    def __init__(self, block: MB3D, *, width_channels: int, grid: tuple[int, int], drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width_channels)
        self.token_mixer = OffsetAttention(
            width_channels,
            heads=block.heads,
            key_channels=block.key_channels,
            value_channels=block.value_channels,
            grid=grid,
        )
        self.ls1 = LayerScale(width_channels, block.layer_scale, channels_first=False)
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(width_channels)
        self.mlp = Mlp(width_channels, block.mlp_channels)
        self.ls2 = LayerScale(width_channels, block.layer_scale, channels_first=False)

    def forward(self, x_BNC: Tensor) -> Tensor:
        """B,N,C to B,N,C, with N = H*W of the grid, row by row."""
        x_BNC = x_BNC + self.drop_path(self.ls1(self.token_mixer(self.norm1(x_BNC))))
        return x_BNC + self.drop_path(self.ls2(self.mlp(self.norm2(x_BNC))))  # type: ignore[no-any-return]


@register_block(UnifiedFFN)
class UnifiedFFNModule(nn.Module):
    """EfficientFormerV2's local block: a channel MLP with a depthwise convolution inside, and layer scale."""

    def __init__(self, block: UnifiedFFN, *, width_channels: int, grid: tuple[int, int], drop_path: float) -> None:
        super().__init__()
        self.drop_path = DropPath(drop_path)
        self.mlp = DepthwiseMlp(width_channels, block.mlp_channels)
        self.ls2 = LayerScale(width_channels, block.layer_scale, channels_first=True)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """B,C,H,W to B,C,H,W."""
        return x_BCHW + self.drop_path(self.ls2(self.mlp(x_BCHW)))  # type: ignore[no-any-return]


@register_block(AttentionFFN)
class AttentionFFNModule(nn.Module):
    """EfficientFormerV2's global block: attention, then the local block's MLP, both with layer scale."""

    def __init__(self, block: AttentionFFN, *, width_channels: int, grid: tuple[int, int], drop_path: float) -> None:
        super().__init__()
        self.token_mixer = TalkingAttention(block, width_channels=width_channels, grid=grid)
        self.ls1 = LayerScale(width_channels, block.layer_scale, channels_first=True)
        self.drop_path = DropPath(drop_path)
        self.mlp = DepthwiseMlp(width_channels, block.mlp_channels)
        self.ls2 = LayerScale(width_channels, block.layer_scale, channels_first=True)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """B,C,H,W to B,C,H,W."""
        x_BCHW = x_BCHW + self.drop_path(self.ls1(self.token_mixer(x_BCHW)))
        return x_BCHW + self.drop_path(self.ls2(self.mlp(x_BCHW)))  # type: ignore[no-any-return]


class LinearMlp(nn.Module):
    """The channel MLP of the MetaFormer baselines: two linear maps of every pixel with an activation between."""

    def __init__(self, width_channels: int, mlp_channels: int, *, activation: ActivationName, bias: bool) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width_channels, mlp_channels, bias=bias)
        self.act = activation_module(activation)
        self.fc2 = nn.Linear(mlp_channels, width_channels, bias=bias)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """B,C,H,W to B,C,H,W.

        While training, the factor and the shift of StarReLU act through the weights of the second map: that is the
        same, and spares passes over the hidden tensor, the largest of the block. (`act` and `fc2` are then not called.)
        """
        hidden = self.fc1(x_BCHW.permute(0, 2, 3, 1))
        if self.training and not is_scripting():  # noqa: SIM102  # TorchScript compiles all of a condition
            if isinstance(self.act, StarReLU):
                return F.linear(F.relu(hidden).square(), *self.act.folded_into(self.fc2)).permute(0, 3, 1, 2)
        return self.fc2(self.act(hidden)).permute(0, 3, 1, 2)  # type: ignore[no-any-return]


@register_block(MetaFormerBlock)
class MetaFormerBlockModule(nn.Module):
    """The general MetaFormer block on maps; fastest on channels_last ones, which its norms leave in any case."""

    def __init__(self, block: MetaFormerBlock, *, width_channels: int, grid: tuple[int, int], drop_path: float) -> None:
        super().__init__()

        def scale(initial: float | None) -> LayerScale | NoScale:
            return NoScale() if initial is None else LayerScale(width_channels, initial, channels_first=True)

        self.norm1 = NormModule(block.norm, width_channels=width_channels)
        self.token_mixer = mixer_module(block.mixer, width_channels=width_channels, grid=grid)
        self.ls1, self.rs1 = scale(block.layer_scale), scale(block.residual_scale)
        self.drop_path = DropPath(drop_path)
        self.norm2 = NormModule(block.norm, width_channels=width_channels)
        self.mlp = LinearMlp(width_channels, block.mlp_channels, activation=block.activation, bias=block.mlp_bias)
        self.ls2, self.rs2 = scale(block.layer_scale), scale(block.residual_scale)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """B,C,H,W to B,C,H,W."""
        x_BCHW = self.rs1.plus(x_BCHW, self.drop_path(self.ls1(self.token_mixer(self.norm1(x_BCHW)))))
        return self.rs2.plus(x_BCHW, self.drop_path(self.ls2(self.mlp(self.norm2(x_BCHW)))))
