"""Token mixers: what a block does across space."""

# B batch, C channels, H W pixels, N tokens, G heads, K key channels of a head, V value channels of a head

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import assert_never

from supernet.activations import activation_module
from supernet.block_types import (
    ActivationName,
    NoMixing,
    Pooling,
    RandomMixing,
    SelfAttention,
    SeparableMixing,
    TokenMixer,
)


class PoolMixer(nn.Module):
    """Average pooling minus its input (PoolFormer); borders average over what is inside the image."""

    def __init__(self, kernel: int) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(kernel, stride=1, padding=kernel // 2, count_include_pad=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """B,C,H,W to B,C,H,W."""
        return self.pool(x_BCHW) - x_BCHW  # type: ignore[no-any-return]


class SeparableConvMixer(nn.Module):
    """Expand (1x1), activation, depthwise convolution, project (1x1); batch norm after each convolution."""

    def __init__(
        self, width_channels: int, mixer_channels: int, *, kernel: int, activation: ActivationName = "gelu"
    ) -> None:
        super().__init__()
        self.pwconv1 = nn.Conv2d(width_channels, mixer_channels, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(mixer_channels)
        self.act = activation_module(activation)
        self.dwconv = nn.Conv2d(
            mixer_channels, mixer_channels, kernel, padding=kernel // 2, groups=mixer_channels, bias=False
        )
        self.norm2 = nn.BatchNorm2d(mixer_channels)
        self.pwconv2 = nn.Conv2d(mixer_channels, width_channels, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(width_channels)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """B,C,H,W to B,C,H,W."""
        x = self.act(self.norm1(self.pwconv1(x_BCHW)))
        return self.norm3(self.pwconv2(self.norm2(self.dwconv(x))))  # type: ignore[no-any-return]


class ConvMixer(nn.Module):
    """A dense convolution, batch norm and activation."""

    def __init__(self, width_channels: int, *, kernel: int, activation: ActivationName) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width_channels, width_channels, kernel, padding=kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(width_channels)
        self.act = activation_module(activation)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """B,C,H,W to B,C,H,W."""
        return self.act(self.norm(self.conv(x_BCHW)))  # type: ignore[no-any-return]


def offset_index(grid: tuple[int, int], *, query_stride: int = 1) -> Tensor:
    """Queries x keys: the place |dy| * W + |dx| of every pair's offset in a table of H*W biases.

    Keys are all positions of the grid, queries every `query_stride`-th of them in both directions.
    """
    height, width = grid
    (key_y, key_x), (query_y, query_x) = (
        torch.meshgrid(torch.arange(0, height, step), torch.arange(0, width, step), indexing="ij")
        for step in (1, query_stride)
    )
    y = (query_y.reshape(-1, 1) - key_y.reshape(1, -1)).abs()
    x = (query_x.reshape(-1, 1) - key_x.reshape(1, -1)).abs()
    return y * width + x


class OffsetAttention(nn.Module):
    """Multi-head attention with a learned bias for every absolute offset (|dy|, |dx|) on the grid (LeViT's).

    Keys and values have their own sizes per head, independent of the width. The rows of `qkv` are interleaved per
    head: K of q, K of k, V of v (facts: EfficientFormer section 5). The bias table has H*W entries a head, at
    |dy| * W + |dx|, so it is sized by the grid; it is gathered on every call, never cached.
    """

    def __init__(
        self, width_channels: int, *, heads: int, key_channels: int, value_channels: int, grid: tuple[int, int]
    ) -> None:
        super().__init__()
        self.heads, self.key_channels, self.value_channels = heads, key_channels, value_channels
        self.grid = grid
        self.qkv = nn.Linear(width_channels, heads * (2 * key_channels + value_channels))
        self.proj = nn.Linear(heads * value_channels, width_channels)
        for linear in (self.qkv, self.proj):
            nn.init.trunc_normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)
        self.attention_biases = nn.Parameter(torch.zeros(heads, grid[0] * grid[1]))
        self.bias_index = nn.Buffer(offset_index(grid), persistent=False)

    def init_non_persistent_buffers(self) -> None:
        """Fill what no state dict holds, after `to_empty`; the name is timm's."""
        self.bias_index.copy_(offset_index(self.grid))

    def forward(self, x_BNC: Tensor) -> Tensor:
        """B,N,C to B,N,C."""
        qkv_BNGS = self.qkv(x_BNC).unflatten(2, (self.heads, -1))
        q, k, v = qkv_BNGS.split((self.key_channels, self.key_channels, self.value_channels), dim=3)
        scores_BGNN = (q.transpose(1, 2) * self.key_channels**-0.5) @ k.permute(0, 2, 3, 1)
        weights_BGNN = (scores_BGNN + self.attention_biases[:, self.bias_index]).softmax(dim=-1)
        mixed_BNGV = (weights_BGNN @ v.transpose(1, 2)).transpose(1, 2)
        return self.proj(mixed_BNGV.flatten(2))  # type: ignore[no-any-return]


class SeparableMixer(nn.Module):
    """Expand, activation, depthwise convolution, project, without biases and norms (ConvFormer)."""

    def __init__(self, mixer: SeparableMixing, *, width_channels: int) -> None:
        super().__init__()
        hidden = mixer.hidden_channels
        self.pwconv1 = nn.Linear(width_channels, hidden, bias=False)
        self.act1 = activation_module(mixer.activation)
        self.dwconv = nn.Conv2d(hidden, hidden, mixer.kernel, padding=mixer.kernel // 2, groups=hidden, bias=False)
        self.pwconv2 = nn.Linear(hidden, width_channels, bias=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """B,C,H,W to B,C,H,W; the linear maps work on views of a channels_last map."""
        x = self.act1(self.pwconv1(x_BCHW.permute(0, 2, 3, 1)))
        x = self.dwconv(x.permute(0, 3, 1, 2))
        return self.pwconv2(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # type: ignore[no-any-return]


class AttentionMixer(nn.Module):
    """Multi-head self-attention over the positions of a map, without biases and positions (CAFormer)."""

    def __init__(self, mixer: SelfAttention, *, width_channels: int) -> None:
        super().__init__()
        self.head_channels = mixer.head_channels
        self.heads = max(1, width_channels // mixer.head_channels)
        attention_channels = self.heads * mixer.head_channels
        self.qkv = nn.Linear(width_channels, 3 * attention_channels, bias=False)
        self.proj = nn.Linear(attention_channels, width_channels, bias=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """B,C,H,W to B,C,H,W."""
        height, width = x_BCHW.shape[2:]
        x_BNC = self.attend(x_BCHW.flatten(2).transpose(1, 2))
        mixed_BCHW: Tensor = x_BNC.transpose(1, 2).unflatten(2, (height, width))  # type: ignore[no-untyped-call]
        return mixed_BCHW

    def attend(self, x_BNC: Tensor) -> Tensor:
        """B,N,C to B,N,C."""
        qkv_BN3GD = self.qkv(x_BNC).unflatten(2, (3, self.heads, self.head_channels))
        q, k, v = qkv_BN3GD.permute(2, 0, 3, 1, 4).unbind(0)
        mixed_BGND = F.scaled_dot_product_attention(q, k, v)
        return self.proj(mixed_BGND.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class RandomMixer(nn.Module):
    """A fixed random matrix over the positions, drawn once and kept in the state dict (RandFormer)."""

    def __init__(self, *, positions: int) -> None:
        super().__init__()
        self.random_matrix = nn.Buffer(torch.rand(positions, positions).softmax(dim=-1))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """B,C,H,W to B,C,H,W."""
        height, width = x_BCHW.shape[2:]
        mixed_BCN = x_BCHW.flatten(2) @ self.random_matrix.t()
        mixed_BCHW: Tensor = mixed_BCN.unflatten(2, (height, width))  # type: ignore[no-untyped-call]
        return mixed_BCHW


def mixer_module(mixer: TokenMixer, *, width_channels: int, grid: tuple[int, int]) -> nn.Module:
    """The module of a token mixer, B,C,H,W to B,C,H,W."""
    match mixer:
        case Pooling():
            return PoolMixer(mixer.kernel)
        case NoMixing():
            return nn.Identity()
        case RandomMixing():
            return RandomMixer(positions=grid[0] * grid[1])
        case SeparableMixing():
            return SeparableMixer(mixer, width_channels=width_channels)
        case SelfAttention():
            return AttentionMixer(mixer, width_channels=width_channels)
        case _:
            assert_never(mixer)
