"""Modules that only the deploy form of a model has: two steps in one pass, and what is gathered once."""

# B batch, C channels, H W pixels, N tokens, G heads

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from supernet.blocks import LinearMlp, MetaFormerBlockModule
from supernet.efficientformer_v2 import DownsamplingAttention, TalkingAttention
from supernet.layers import LayerScale
from supernet.mixers import AttentionMixer, OffsetAttention, SeparableMixer
from supernet.packing import Packing


def scale_outputs(linear: nn.Conv2d | nn.Linear, factor: Tensor) -> None:
    """Multiply every output channel of a linear map."""
    linear.weight.mul_(factor.view(-1, *[1] * (linear.weight.ndim - 1)))
    if linear.bias is not None:
        linear.bias.mul_(factor)


class PooledResidual(nn.Module):
    """x + factor * (pooled x - x), in one pass after the pooling.

    Exported, it is the sum of both maps, each times its own factor a channel: Core ML and XNNPACK have no lerp, and
    ONNX Runtime keeps a sum in the blocked layout of its convolutions, where a difference is computed outside of it
    (efficientformer_l1, one AVX2 core: 42.0 against 46.2 ms).
    """

    def __init__(self, pool: nn.Module, factor_C: Tensor) -> None:
        super().__init__()
        self.pool = pool
        self.register_buffer("factor", factor_C.view(-1, 1, 1))

    factor: Tensor

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """B,C,H,W to B,C,H,W."""
        if torch.onnx.is_in_onnx_export() or torch.compiler.is_exporting():
            return x_BCHW * (1.0 - self.factor) + self.pool(x_BCHW) * self.factor  # type: ignore[no-any-return]
        return torch.lerp(x_BCHW, self.pool(x_BCHW), self.factor.to(x_BCHW.dtype))


class Residual(nn.Module):
    """x + branch(x)."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        return x + self.branch(x)  # type: ignore[no-any-return]


class BiasedAttention(nn.Module):
    """`OffsetAttention` with its biases gathered and the scale of its products in the queries."""

    def __init__(self, attention: OffsetAttention) -> None:
        super().__init__()
        self.heads, self.sizes = attention.heads, (attention.key_channels,) * 2 + (attention.value_channels,)
        self.qkv, self.proj = attention.qkv, attention.proj
        queries = torch.zeros(sum(self.sizes), dtype=torch.bool, device=self.qkv.weight.device)
        queries[: attention.key_channels] = True
        scale = torch.where(queries.repeat(self.heads), attention.key_channels**-0.5, 1.0)
        scale_outputs(self.qkv, scale.to(self.qkv.weight.dtype))
        self.register_buffer("bias_GNN", attention.attention_biases[:, attention.bias_index].clone())

    bias_GNN: Tensor

    def forward(self, x_BNC: Tensor) -> Tensor:
        """B,N,C to B,N,C."""
        q, k, v = self.qkv(x_BNC).unflatten(2, (self.heads, -1)).split(self.sizes, dim=3)
        weights_BGNN = (q.transpose(1, 2) @ k.permute(0, 2, 3, 1) + self.bias_GNN).softmax(dim=-1)
        return self.proj((weights_BGNN @ v.transpose(1, 2)).transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class _Sizes:
    """Shapes in an attention of EfficientFormerV2, whose biases are made for one grid; -1 is the batch.

    Being numbers, they leave nothing to compute in an exported model (EfficientFormerV2-S0 in ONNX Runtime: 0.97 of
    the time).
    """

    def __init__(self, attention: TalkingAttention | DownsamplingAttention) -> None:
        heads, positions = attention.heads, math.prod(attention.grid)
        self.grid = attention.grid
        self.queries = (-1, heads, attention.key_channels, math.prod(attention.query_grid))
        self.keys = (-1, heads, attention.key_channels, positions)
        self.values = (-1, heads, attention.value_channels, positions)
        self.mixed = (-1, heads * attention.value_channels, *attention.query_grid)

    def check(self, x_BCHW: Tensor) -> None:
        """Raise `ValueError` for a map of another grid: a part of it would count as more images."""
        plain = type(x_BCHW) is Tensor and not torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]
        if plain and not torch.compiler.is_compiling() and tuple(x_BCHW.shape[2:]) != self.grid:
            raise ValueError(f"the attention is made for maps of {self.grid} (got {tuple(x_BCHW.shape[2:])})")


class GatheredTalkingAttention(nn.Module):
    """`TalkingAttention` with the biases, already mixed by the first talking heads, gathered, and no scale."""

    def __init__(self, attention: TalkingAttention) -> None:
        super().__init__()
        self.stride = attention.stride
        self.stride_conv, self.act, self.proj = attention.stride_conv, attention.act, attention.proj
        self.q, self.k, self.v, self.v_local = attention.q, attention.k, attention.v, attention.v_local
        first = attention.talking_head1
        bias_GNN = attention.attention_biases[:, attention.bias_index]
        self.register_buffer("bias_GNN", first(bias_GNN[None])[0])
        self.register_buffer("mixed_before", first.weight[:, :, 0, 0] * attention.scale)
        self.talking_head2 = attention.talking_head2
        self.sizes, self.size = _Sizes(attention), attention.map_grid

    bias_GNN: Tensor
    mixed_before: Tensor

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """B,C,H,W to B,C,H,W."""
        x = self.stride_conv(x_BCHW)
        sizes = self.sizes
        sizes.check(x)
        products_BGNN = self.q(x).reshape(sizes.queries).transpose(2, 3) @ self.k(x).reshape(sizes.keys)
        scores_BGNN = F.conv2d(products_BGNN, self.mixed_before[:, :, None, None]) + self.bias_GNN
        weights_BGNN = self.talking_head2(scores_BGNN.softmax(dim=-1))
        v = self.v(x)
        mixed_BGVN = v.reshape(sizes.values) @ weights_BGNN.transpose(2, 3)
        x = mixed_BGVN.reshape(sizes.mixed) + self.v_local(v)
        if self.stride > 1:
            x = F.interpolate(x, size=self.size, mode="bilinear")
        return self.proj(self.act(x))  # type: ignore[no-any-return]


class GatheredDownsamplingAttention(nn.Module):
    """`DownsamplingAttention` with its biases gathered and the scale of its products in the queries."""

    def __init__(self, attention: DownsamplingAttention) -> None:
        super().__init__()
        self.act, self.proj = attention.act, attention.proj
        self.q, self.k, self.v, self.v_local = attention.q, attention.k, attention.v, attention.v_local
        *_, last = self.q.children()
        assert isinstance(last, nn.Conv2d)
        scale_outputs(last, torch.full((last.out_channels,), attention.scale).to(last.weight))
        self.register_buffer("bias_GNN", attention.attention_biases[:, attention.bias_index].clone())
        self.sizes = _Sizes(attention)

    bias_GNN: Tensor

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """B,C,H,W to B,C',H/s,W/s (rounded up)."""
        v, sizes = self.v(x_BCHW), self.sizes
        sizes.check(x_BCHW)
        q, k = self.q(x_BCHW).reshape(sizes.queries), self.k(x_BCHW).reshape(sizes.keys)
        weights_BGNN = (q.transpose(2, 3) @ k + self.bias_GNN).softmax(dim=-1)
        mixed_BGVN = v.reshape(sizes.values) @ weights_BGNN.transpose(2, 3)
        return self.proj(self.act(mixed_BGVN.reshape(sizes.mixed) + self.v_local(v)))  # type: ignore[no-any-return]


class PixelLinear(nn.Module):
    """A linear map of every pixel, B,C,H,W to B,C',H,W: a matrix product of views, exported as a 1x1 convolution.

    ONNX Runtime keeps convolutions, what is between them and depthwise ones in one blocked layout, and would transpose
    the map before and after a product. The weight has a convolution's shape, so that what rounds weights finds it.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = nn.Parameter(linear.weight.detach()[:, :, None, None], requires_grad=False)
        self.bias = linear.bias
        self.packing = Packing()

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """B,C,H,W to B,C',H,W."""
        if torch.onnx.is_in_onnx_export():
            return F.conv2d(x_BCHW, self.weight, self.bias)
        x_BHWC = x_BCHW.permute(0, 2, 3, 1)
        return self.packing.linear(x_BHWC, self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


class PixelMlp(nn.Module):
    """`LinearMlp`, in a block that leaves its map a map."""

    def __init__(self, mlp: LinearMlp) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = PixelLinear(mlp.fc1), mlp.act, PixelLinear(mlp.fc2)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """B,C,H,W to B,C,H,W."""
        return self.fc2(self.act(self.fc1(x_BCHW)))  # type: ignore[no-any-return]


class PixelSeparableMixer(nn.Module):
    """`SeparableMixer`."""

    def __init__(self, mixer: SeparableMixer) -> None:
        super().__init__()
        self.pwconv1, self.pwconv2 = PixelLinear(mixer.pwconv1), PixelLinear(mixer.pwconv2)
        self.act1, self.dwconv = mixer.act1, mixer.dwconv

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """B,C,H,W to B,C,H,W."""
        return self.pwconv2(self.dwconv(self.act1(self.pwconv1(x_BCHW))))  # type: ignore[no-any-return]


class PixelAttentionBlock(nn.Module):
    """`MetaFormerBlock` with attention and norms over channels: inside, the channels are last.

    So an exported model transposes its map before and after such blocks, and not around every norm.
    """

    def __init__(self, block: MetaFormerBlockModule, mixer: AttentionMixer, mlp: LinearMlp) -> None:
        super().__init__()
        self.norm1, self.token_mixer, self.norm2, self.mlp = block.norm1, mixer, block.norm2, mlp
        for name, scale in (("scale1", block.rs1), ("scale2", block.rs2)):
            self.register_buffer(name, scale.gamma.clone() if isinstance(scale, LayerScale) else None)

    scale1: Tensor | None
    scale2: Tensor | None

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """B,C,H,W to B,C,H,W."""
        x_BHWC = x_BCHW.permute(0, 2, 3, 1)
        mixed_BNC = self.token_mixer.attend(self.norm1.of_pixels(x_BHWC).flatten(1, 2))
        x_BHWC = _joined(x_BHWC, self.scale1, mixed_BNC.reshape(x_BHWC.shape))
        hidden = self.mlp.act(self.mlp.fc1(self.norm2.of_pixels(x_BHWC)))
        return _joined(x_BHWC, self.scale2, self.mlp.fc2(hidden)).permute(0, 3, 1, 2)


def _joined(x: Tensor, scale: Tensor | None, branch: Tensor) -> Tensor:
    """scale * x + branch, in one pass."""
    return x + branch if scale is None else torch.addcmul(branch, x, scale)


class ShiftedSquaredReLU(nn.Module):
    """relu(x)^2 + shift."""

    def __init__(self, shift: Tensor) -> None:
        super().__init__()
        self.register_buffer("shift", shift)

    shift: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        return F.relu(x).square() + self.shift


class ScaledResidual(nn.Module):
    """scale * x + branch(x), with one factor a channel, in one pass after the branch."""

    def __init__(self, branch: nn.Module, scale: LayerScale) -> None:
        super().__init__()
        self.branch = branch
        self.register_buffer("scale", scale.gamma.view(-1, 1, 1).clone())

    scale: Tensor

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """B,C,H,W to B,C,H,W."""
        return torch.addcmul(self.branch(x_BCHW), x_BCHW, self.scale)
