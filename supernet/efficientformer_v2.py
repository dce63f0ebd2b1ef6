"""The parts of EfficientFormerV2: its channel MLP, its attention and its dual-path downsampling.

Everything stays a map, and every convolution is followed by batch norm (facts: EfficientFormer section 2).
"""

# B batch, C channels, H W pixels, N positions, G heads, K key channels of a head, V value channels of a head

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from supernet.architecture import DualDownsampling, strided
from supernet.block_types import AttentionFFN
from supernet.mixers import offset_index


class ConvNorm(nn.Module):
    """A convolution with bias that keeps the size, or divides it by its stride, and batch norm."""

    def __init__(
        self, in_channels: int, out_channels: int, *, kernel: int = 1, stride: int = 1, depthwise: bool = False
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels,
            out_channels,
            kernel,
            stride=stride,
            padding=kernel // 2,
            groups=in_channels if depthwise else 1,
        )
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """B,C,H,W to B,C',H/s,W/s (rounded up)."""
        return self.norm(self.conv(x_BCHW))  # type: ignore[no-any-return]


class DepthwiseMlp(nn.Module):
    """1x1 convolution, 3x3 depthwise convolution, 1x1 convolution, GELU between them."""

    def __init__(self, width_channels: int, mlp_channels: int) -> None:
        super().__init__()
        self.fc1 = ConvNorm(width_channels, mlp_channels)
        self.act1 = nn.GELU()
        self.mid = ConvNorm(mlp_channels, mlp_channels, kernel=3, depthwise=True)
        self.act2 = nn.GELU()
        self.fc2 = ConvNorm(mlp_channels, width_channels)
        for layer in (self.fc1, self.mid, self.fc2):
            nn.init.trunc_normal_(layer.conv.weight, std=0.02)
            assert layer.conv.bias is not None
            nn.init.zeros_(layer.conv.bias)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """B,C,H,W to B,C,H,W."""
        return self.fc2(self.act2(self.mid(self.act1(self.fc1(x_BCHW)))))  # type: ignore[no-any-return]


class _LocalValueAttention(nn.Module):
    """What both attentions of EfficientFormerV2 share: keys, values, their local path, biases and the projection.

    The bias table has an entry for every absolute offset (|dy|, |dx|) on the grid of the keys, and is gathered on
    every call, never cached.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        heads: int,
        key_channels: int,
        value_channels: int,
        grid: tuple[int, int],
        query_stride: int = 1,
    ) -> None:
        super().__init__()
        self.heads, self.scale = heads, key_channels**-0.5
        self.key_channels, self.value_channels = key_channels, value_channels
        self.grid, self.query_grid, self.query_stride = grid, strided(grid, query_stride), query_stride
        values = heads * value_channels
        self.k = ConvNorm(in_channels, heads * key_channels)
        self.v = ConvNorm(in_channels, values)
        self.v_local = ConvNorm(values, values, kernel=3, stride=query_stride, depthwise=True)
        self.act = nn.GELU()
        self.proj = ConvNorm(values, out_channels)
        self.attention_biases = nn.Parameter(torch.zeros(heads, grid[0] * grid[1]))
        self.bias_index = nn.Buffer(offset_index(grid, query_stride=query_stride), persistent=False)

    def init_non_persistent_buffers(self) -> None:
        """Fill what no state dict holds, after `to_empty`; the name is timm's."""
        self.bias_index.copy_(offset_index(self.grid, query_stride=self.query_stride))

    def scores(self, q_BCHW: Tensor, x_BCHW: Tensor) -> Tensor:
        """B,G,Nq,Nk: scaled products of queries and keys, and the bias of their offset."""
        q_BGNK = self.by_head(q_BCHW).transpose(2, 3)
        products_BGNN: Tensor = (q_BGNK * self.scale) @ self.by_head(self.k(x_BCHW))
        return products_BGNN + self.attention_biases[:, self.bias_index]

    def mixed(self, weights_BGNN: Tensor, v_BCHW: Tensor) -> Tensor:
        """B,GV,H,W: values mixed by weights, plus their local path."""
        local_BCHW: Tensor = self.v_local(v_BCHW)
        mixed_BGVN = self.by_head(v_BCHW) @ weights_BGNN.transpose(2, 3)
        return mixed_BGVN.reshape(local_BCHW.shape) + local_BCHW

    def by_head(self, x_BCHW: Tensor) -> Tensor:
        """B,GK,H,W to B,G,K,N."""
        x_BGKN: Tensor = x_BCHW.flatten(2).unflatten(1, (self.heads, -1))  # type: ignore[no-untyped-call]
        return x_BGKN


class TalkingAttention(_LocalValueAttention):
    """Attention whose heads are mixed linearly before and after the softmax; with a stride, on a smaller map."""

    def __init__(self, block: AttentionFFN, *, width_channels: int, grid: tuple[int, int]) -> None:
        super().__init__(
            width_channels,
            width_channels,
            heads=block.heads,
            key_channels=block.key_channels,
            value_channels=block.value_channels,
            grid=strided(grid, block.stride),
        )
        self.stride, self.map_grid = block.stride, grid
        self.stride_conv: nn.Module = nn.Identity()
        if block.stride > 1:
            self.stride_conv = ConvNorm(width_channels, width_channels, kernel=3, stride=block.stride, depthwise=True)
        self.q = ConvNorm(width_channels, block.heads * block.key_channels)
        self.talking_head1 = nn.Conv2d(block.heads, block.heads, 1)
        self.talking_head2 = nn.Conv2d(block.heads, block.heads, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """B,C,H,W to B,C,H,W."""
        size = x_BCHW.shape[2:]
        x = self.stride_conv(x_BCHW)
        scores_BGNN = self.talking_head1(self.scores(self.q(x), x))
        x = self.mixed(self.talking_head2(scores_BGNN.softmax(dim=-1)), self.v(x))
        if self.stride > 1:
            x = F.interpolate(x, size=size, mode="bilinear")
        return self.proj(self.act(x))  # type: ignore[no-any-return]


class LocalGlobalQuery(nn.Module):
    """The queries of a downsampling: every s-th pixel plus a strided depthwise convolution, then 1x1 and batch norm."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.local = nn.Conv2d(in_channels, in_channels, 3, stride=stride, padding=1, groups=in_channels)
        self.proj = ConvNorm(in_channels, out_channels)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """B,C,H,W to B,C',H/s,W/s (rounded up)."""
        return self.proj(self.local(x_BCHW) + x_BCHW[:, :, :: self.stride, :: self.stride])  # type: ignore[no-any-return]


class DownsamplingAttention(_LocalValueAttention):
    """Attention from fewer queries than keys, without talking heads."""

    def __init__(
        self, downsampling: DualDownsampling, *, in_channels: int, out_channels: int, grid: tuple[int, int]
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            heads=downsampling.heads,
            key_channels=downsampling.key_channels,
            value_channels=downsampling.value_channels,
            grid=grid,
            query_stride=downsampling.stride,
        )
        queries = downsampling.heads * downsampling.key_channels
        self.q = LocalGlobalQuery(in_channels, queries, stride=downsampling.stride)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """B,C,H,W to B,C',H/s,W/s (rounded up)."""
        weights_BGNN = self.scores(self.q(x_BCHW), x_BCHW).softmax(dim=-1)
        return self.proj(self.act(self.mixed(weights_BGNN, self.v(x_BCHW))))  # type: ignore[no-any-return]


class DualDownsamplingModule(nn.Module):
    """A strided 3x3 convolution and a `DownsamplingAttention`, summed; `grid` is the input's."""

    def __init__(
        self, downsampling: DualDownsampling, *, in_channels: int, out_channels: int, grid: tuple[int, int]
    ) -> None:
        super().__init__()
        self.local = ConvNorm(in_channels, out_channels, kernel=3, stride=downsampling.stride)
        self.attention = DownsamplingAttention(
            downsampling, in_channels=in_channels, out_channels=out_channels, grid=grid
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """B,C,H,W to B,C',H/s,W/s (rounded up)."""
        return self.local(x_BCHW) + self.attention(x_BCHW)  # type: ignore[no-any-return]
