"""Token mixers: what a block does across space."""

# B batch, C channels, H W pixels, N tokens, G heads, K key channels of a head, V value channels of a head

from __future__ import annotations

import torch
from torch import Tensor, nn

from supernet.activations import Activation, activation_module


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
        self, width_channels: int, mixer_channels: int, *, kernel: int, activation: Activation = "gelu"
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

    def __init__(self, width_channels: int, *, kernel: int, activation: Activation) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width_channels, width_channels, kernel, padding=kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(width_channels)
        self.act = activation_module(activation)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """B,C,H,W to B,C,H,W."""
        return self.act(self.norm(self.conv(x_BCHW)))  # type: ignore[no-any-return]


class OffsetAttention(nn.Module):
    """Multi-head attention with a learned bias for every absolute offset (|dy|, |dx|) on the grid (LeViT's).

    Keys and values have their own sizes per head, independent of the width. The rows of `qkv` are interleaved per
    head: K of q, K of k, V of v (facts: EfficientFormer section 5). The bias table has H*W entries a head, at
    |dy| * W + |dx|, so it is sized by the grid; it is gathered on every call, never cached.
    """

    bias_index: Tensor

    def __init__(
        self, width_channels: int, *, heads: int, key_channels: int, value_channels: int, grid: tuple[int, int]
    ) -> None:
        super().__init__()
        self.heads, self.key_channels, self.value_channels = heads, key_channels, value_channels
        self.qkv = nn.Linear(width_channels, heads * (2 * key_channels + value_channels))
        self.proj = nn.Linear(heads * value_channels, width_channels)
        for linear in (self.qkv, self.proj):
            nn.init.trunc_normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)
        height, width = grid
        self.attention_biases = nn.Parameter(torch.zeros(heads, height * width))
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        y, x = y.flatten(), x.flatten()
        index = (y[:, None] - y[None, :]).abs() * width + (x[:, None] - x[None, :]).abs()
        self.register_buffer("bias_index", index, persistent=False)

    def forward(self, x_BNC: Tensor) -> Tensor:
        """B,N,C to B,N,C."""
        qkv_BNGS = self.qkv(x_BNC).unflatten(2, (self.heads, -1))
        q, k, v = qkv_BNGS.split((self.key_channels, self.key_channels, self.value_channels), dim=3)
        scores_BGNN = (q.transpose(1, 2) * self.key_channels**-0.5) @ k.permute(0, 2, 3, 1)
        weights_BGNN = (scores_BGNN + self.attention_biases[:, self.bias_index]).softmax(dim=-1)
        mixed_BNGV = (weights_BGNN @ v.transpose(1, 2)).transpose(1, 2)
        return self.proj(mixed_BNGV.flatten(2))  # type: ignore[no-any-return]
