"""What surrounds the stages' blocks: stem, downsampling and head, as plain modules."""

# B batch, C channels, H W pixels, N tokens

from __future__ import annotations

from torch import Tensor, nn
from typing_extensions import assert_never

from supernet.activations import activation_module
from supernet.architecture import (
    AnyDownsampling,
    AnyStem,
    Downsampling,
    DualDownsampling,
    Head,
    PatchDownsampling,
    PatchStem,
    PoolingName,
    Stem,
)
from supernet.block_types import Norm
from supernet.efficientformer_v2 import DualDownsamplingModule
from supernet.norms import NormModule


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


class PatchStemModule(nn.Module):
    """One large strided convolution with bias, then a norm (facts: MetaFormer baselines section 1.2)."""

    def __init__(self, stem: PatchStem, *, in_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, stem.width_channels, stem.kernel, stride=stem.stride, padding=stem.padding)
        self.norm = nn.Identity() if stem.norm is None else NormModule(stem.norm, width_channels=stem.width_channels)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Images B,C,H,W to a map of the first stage's width."""
        return self.norm(self.conv(images_BCHW))  # type: ignore[no-any-return]


class PatchDownsamplingModule(nn.Module):
    """A norm, then a strided convolution with bias (facts: MetaFormer baselines section 1.2)."""

    def __init__(self, downsampling: PatchDownsampling, *, in_channels: int, out_channels: int) -> None:
        super().__init__()
        norm = downsampling.norm
        self.norm = nn.Identity() if norm is None else NormModule(norm, width_channels=in_channels)
        self.conv = nn.Conv2d(
            in_channels,
            out_channels,
            downsampling.kernel,
            stride=downsampling.stride,
            padding=downsampling.padding,
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """B,C,H,W to B,C',H',W'."""
        return self.conv(self.norm(x_BCHW))  # type: ignore[no-any-return]


def build_stem(stem: AnyStem, *, in_channels: int) -> nn.Module:
    """The module of a stem."""
    match stem:
        case Stem():
            return StemModule(stem, in_channels=in_channels)
        case PatchStem():
            return PatchStemModule(stem, in_channels=in_channels)
        case _:
            assert_never(stem)


def build_downsampling(
    downsampling: AnyDownsampling, *, in_channels: int, out_channels: int, grid: tuple[int, int]
) -> nn.Module:
    """The module of a downsampling; `grid` is the height and width of the map that it is given."""
    match downsampling:
        case Downsampling():
            return DownsamplingModule(downsampling, in_channels=in_channels, out_channels=out_channels)
        case PatchDownsampling():
            return PatchDownsamplingModule(downsampling, in_channels=in_channels, out_channels=out_channels)
        case DualDownsampling():
            return DualDownsamplingModule(downsampling, in_channels=in_channels, out_channels=out_channels, grid=grid)
        case _:
            assert_never(downsampling)


def _pool(stride: int, pooling: PoolingName) -> nn.Module:
    """The maximum of every stride x stride pixels; at the far edges of an odd size, of those that are there."""
    return nn.Identity() if pooling == "none" or stride == 1 else nn.MaxPool2d(stride, ceil_mode=True)


class HeadModule(nn.Module):
    """Norm (or none) and pooling in the head's order, then one or two classifiers.

    With distillation it returns the pair of logits while training and their average otherwise.
    """

    def __init__(self, head: Head, *, width_channels: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm: nn.Module = nn.Identity()
        if head.norm == "layer_norm":
            self.norm = nn.LayerNorm(width_channels, eps=head.norm_eps)
        elif head.norm == "map_norm":
            self.norm = NormModule(Norm(over="map", bias=True, eps=head.norm_eps), width_channels=width_channels)
        elif head.norm == "batch_norm":
            self.norm = nn.BatchNorm2d(width_channels, eps=head.norm_eps)
        self.norm_of_maps = head.norm in ("map_norm", "batch_norm")
        self.norm_after_pooling, self.pooling = head.norm_after_pooling, head.pooling
        self.dropout = nn.Dropout(dropout if head.hidden_channels is None else 0.0)  # a hidden layer has its own
        self.fc = _classifier(head, width_channels=width_channels, dropout=dropout)
        self.fc_distillation = None
        if head.distillation:
            self.fc_distillation = _classifier(head, width_channels=width_channels, dropout=dropout)

    def pooled(self, x_BNC: Tensor) -> Tensor:
        """B,N,C to what the classifiers see, B,C."""
        if self.norm_of_maps:
            x_BNC = self.norm(x_BNC.transpose(1, 2)[..., None])[..., 0].transpose(1, 2)
        elif not self.norm_after_pooling:
            x_BNC = self.norm(x_BNC)
        x_BC = x_BNC.mean(dim=1) if self.pooling == "mean" else x_BNC.amax(dim=1)
        return self.norm(x_BC) if self.norm_after_pooling else x_BC

    def classified(self, x_BC: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """B,C to logits B,classes: two while training with a distillation head, else their average."""
        x_BC = self.dropout(x_BC)
        logits: Tensor = self.fc(x_BC)
        if self.fc_distillation is None:
            return logits
        distilled: Tensor = self.fc_distillation(x_BC)
        if self.training:
            return logits, distilled
        return (logits + distilled) / 2

    def forward(self, x_BNC: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Tokens B,N,C to logits B,classes."""
        return self.classified(self.pooled(x_BNC))


class MlpClassifier(nn.Module):
    """Linear, activation, layer norm (or none), dropout, linear (facts: MetaFormer baselines section 1.2)."""

    def __init__(self, head: Head, hidden_channels: int, *, width_channels: int, dropout: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width_channels, hidden_channels)
        self.act = activation_module(head.hidden_activation)
        self.norm = nn.LayerNorm(hidden_channels) if head.hidden_norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.fc2 = nn.Linear(hidden_channels, head.num_classes)

    def forward(self, x_BC: Tensor) -> Tensor:
        """B,C to B,classes."""
        return self.fc2(self.dropout(self.norm(self.act(self.fc1(x_BC)))))  # type: ignore[no-any-return]


def _classifier(head: Head, *, width_channels: int, dropout: float) -> nn.Module:
    classifier: nn.Module
    if head.hidden_channels is None:
        classifier = nn.Linear(width_channels, head.num_classes)
    else:
        classifier = MlpClassifier(head, head.hidden_channels, width_channels=width_channels, dropout=dropout)
    for module in classifier.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
    return classifier
