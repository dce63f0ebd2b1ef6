"""What surrounds the stages' blocks: stem, downsampling and head, as plain modules."""

# B batch, C channels, H W pixels, N tokens

from __future__ import annotations

from torch import Tensor, nn

from supernet.activations import activation_module
from supernet.architecture import Downsampling, Head, Pooling, Stem


class StemModule(nn.Module):
    """Two 3x3 convolutions with bias, each with batch norm and activation (facts: EfficientFormer section 1)."""

    def __init__(self, stem: Stem, *, in_channels: int) -> None:
        super().__init__()
        first, second = stem.strides if stem.pooling == "none" else (1, 1)
        self.conv1 = nn.Conv2d(in_channels, stem.hidden_channels, 3, stride=first, padding=1)
        self.norm1 = nn.BatchNorm2d(stem.hidden_channels)
        self.act1 = activation_module(stem.activation)
        self.pool1 = _pool(stem.strides[0], stem.pooling)
        self.conv2 = nn.Conv2d(stem.hidden_channels, stem.width_channels, 3, stride=second, padding=1)
        self.norm2 = nn.BatchNorm2d(stem.width_channels)
        self.act2 = activation_module(stem.activation)
        self.pool2 = _pool(stem.strides[1], stem.pooling)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Images B,C,H,W to a map of the first stage's width."""
        x = self.pool1(self.act1(self.norm1(self.conv1(images_BCHW))))
        return self.pool2(self.act2(self.norm2(self.conv2(x))))  # type: ignore[no-any-return]


class DownsamplingModule(nn.Module):
    """A strided 3x3 convolution with bias and batch norm; or one that keeps the size, with ReLU and a maximum after."""

    def __init__(self, downsampling: Downsampling, *, in_channels: int, out_channels: int) -> None:
        super().__init__()
        pooled = downsampling.pooling == "max"
        self.conv = nn.Conv2d(in_channels, out_channels, 3, stride=1 if pooled else downsampling.stride, padding=1)
        self.norm = nn.BatchNorm2d(out_channels)
        self.act = nn.ReLU() if pooled else nn.Identity()
        self.pool = _pool(downsampling.stride, downsampling.pooling)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """B,C,H,W to B,C',H/s,W/s (rounded up)."""
        return self.pool(self.act(self.norm(self.conv(x_BCHW))))  # type: ignore[no-any-return]


def _pool(stride: int, pooling: Pooling) -> nn.Module:
    """The maximum of every stride x stride pixels; at the far edges of an odd size, of those that are there."""
    return nn.Identity() if pooling == "none" or stride == 1 else nn.MaxPool2d(stride, ceil_mode=True)


class HeadModule(nn.Module):
    """Layer norm over tokens (or none), mean or maximum over tokens, then one or two linear classifiers.

    With distillation it returns the pair of logits while training and their average otherwise.
    """

    def __init__(self, head: Head, *, width_channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width_channels) if head.norm == "layer_norm" else nn.Identity()
        self.pooling = head.pooling
        self.fc = nn.Linear(width_channels, head.num_classes)
        self.fc_distillation = nn.Linear(width_channels, head.num_classes) if head.distillation else None
        for linear in (self.fc, self.fc_distillation):
            if linear is not None:
                nn.init.trunc_normal_(linear.weight, std=0.02)
                nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """A map B,C,H,W or tokens B,N,C to logits B,classes."""
        x_BNC = x.flatten(2).transpose(1, 2) if x.ndim == 4 else x
        x_BNC = self.norm(x_BNC)
        x_BC = x_BNC.mean(dim=1) if self.pooling == "mean" else x_BNC.amax(dim=1)
        logits: Tensor = self.fc(x_BC)
        if self.fc_distillation is None:
            return logits
        distilled: Tensor = self.fc_distillation(x_BC)
        return (logits, distilled) if self.training else (logits + distilled) / 2
