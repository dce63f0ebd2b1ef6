"""What a user would take instead of a search: timm's small models, made narrower or wider until they take so long.

Depth stays as published, width is a share of the published one (a multiple of 8 channels, at least 8), and all goes
through what timm offers under public names:

- `resnet18d`: `channels` of the stages and `stem_width` (resnet18's own stem has 64 channels at every width);
- `efficientformerv2_s0`: `embed_dims`;
- `convformer_s18`: the class `MetaFormer` with `dims`, because the registered model takes none;
- `mobilenetv3_small`, `mobilenetv4_conv_small`: only the widths that are registered (0.5, 0.75, 1; 0.35, 0.5, 1),
  because the multiplier itself is an argument of private functions alone.

Images are smaller than ImageNet's: the first strided layers lose stride until the stem shrinks as the experiment's own
does (all five shrink by 4 before their first stage with a map of its own; a stem that shrinks more is not imitated).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import timm
import torch
from timm.models.metaformer import MetaFormer, SepConv
from torch import nn

from supernet.cost import Cost, cost_of_model
from supernet.schema import Record, digest
from train.randomness import derived_seed
from train.retraining import RetrainConfig

EXTERNAL = "timm-"  # what begins the digest of every such net
STEM_STRIDE = 4  # of all families, as published
CHANNELS = 8  # widths are multiples of this
FINE = tuple(sixteenth / 16 for sixteenth in range(1, 65))

ExternalName = Literal[
    "resnet18d", "efficientformerv2_s0", "convformer_s18", "mobilenetv3_small", "mobilenetv4_conv_small"
]


class ExternalNet(Record):
    """One of timm's models: `scale` times the published width, for images of this shape.

    `stem_stride` is how much its stem shrinks an image: 1, 2 or 4. Another version of timm's is another net.
    """

    schema_version: Literal[1] = 1
    name: ExternalName
    scale: float
    in_channels: int
    resolution_px: tuple[int, int]
    num_classes: int
    stem_stride: Literal[1, 2, 4]
    timm_version: str = timm.__version__

    @property
    def digest(self) -> str:
        """Its identity, which is never an architecture's."""
        return EXTERNAL + digest(self)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """C, H, W of an image."""
        return (self.in_channels, *self.resolution_px)

    @property
    def cost(self) -> Cost:
        """Multiply-accumulates of one image, and parameters."""
        with torch.random.fork_rng(devices=[]):
            return cost_of_model(self.build().eval(), torch.zeros(1, *self.input_shape))

    def build(self, *, drop_path_rate: float = 0.0) -> nn.Module:
        """The net, freshly initialised from torch's generator."""
        model = FAMILIES[self.name].build(self, drop_path_rate)
        _shrink_less(model, STEM_STRIDE // self.stem_stride)
        return model


@dataclass(frozen=True)
class Family:
    """A model of timm's: the shares of its published width that can be built, and how."""

    scales: Sequence[float]
    build: Callable[[ExternalNet, float], nn.Module]


def initial_external(net: ExternalNet, config: RetrainConfig, *, seed: int) -> nn.Module:
    """The net to train, freshly initialised by the seed, with the recipe's drop path."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derived_seed(seed, "initial weights"))
        return net.build(drop_path_rate=config.drop_path_rate)


def _shrink_less(model: nn.Module, factor: int) -> None:
    """Take strides away from the first layers that have one, until the map is larger by this factor."""
    for layer in model.modules():
        if factor == 1:
            return
        if isinstance(layer, nn.Conv2d) and max(layer.stride) > 1:
            taken = min(layer.stride[0], factor)
            layer.stride = (layer.stride[0] // taken, layer.stride[1] // taken)
        elif isinstance(layer, nn.MaxPool2d) and layer.stride == 2:
            taken = 2
            layer.stride = 1
        else:
            continue
        factor //= taken


def _scaled(widths: Sequence[int], scale: float) -> tuple[int, ...]:
    return tuple(max(CHANNELS, CHANNELS * round(scale * width / CHANNELS)) for width in widths)


def _resnet(net: ExternalNet, drop_path_rate: float) -> nn.Module:
    channels = _scaled((64, 128, 256, 512), net.scale)
    return timm.create_model(
        "resnet18d",
        channels=channels,
        stem_width=channels[0] // 2,
        in_chans=net.in_channels,
        num_classes=net.num_classes,
        drop_path_rate=drop_path_rate,
    )


def _efficientformer_v2(net: ExternalNet, drop_path_rate: float) -> nn.Module:
    larger = STEM_STRIDE // net.stem_stride  # its attention is made for one grid, which the stem decides
    return timm.create_model(
        "efficientformerv2_s0",
        embed_dims=_scaled((32, 48, 96, 176), net.scale),
        img_size=(larger * net.resolution_px[0], larger * net.resolution_px[1]),
        distillation=False,
        in_chans=net.in_channels,
        num_classes=net.num_classes,
        drop_path_rate=drop_path_rate,
    )


def _convformer(net: ExternalNet, drop_path_rate: float) -> nn.Module:
    widths = _scaled((64, 128, 320, 512), net.scale)
    model: nn.Module = MetaFormer(
        depths=(3, 3, 9, 3),
        dims=tuple(max(width, widths[0] + CHANNELS * at) for at, width in enumerate(widths)),  # equal ones: no stride
        token_mixers=SepConv,
        in_chans=net.in_channels,
        num_classes=net.num_classes,
        drop_path_rate=drop_path_rate,
    )
    return model


def _mobilenet(prefix: str, *, widest: str) -> Callable[[ExternalNet, float], nn.Module]:
    def build(net: ExternalNet, drop_path_rate: float) -> nn.Module:
        return timm.create_model(
            widest if net.scale == 1 else f"{prefix}_{round(100 * net.scale):03d}",
            in_chans=net.in_channels,
            num_classes=net.num_classes,
            drop_path_rate=drop_path_rate,
        )

    return build


FAMILIES: dict[ExternalName, Family] = {
    "resnet18d": Family(FINE, _resnet),
    "efficientformerv2_s0": Family(FINE, _efficientformer_v2),
    "convformer_s18": Family(FINE, _convformer),
    "mobilenetv3_small": Family((0.5, 0.75, 1.0), _mobilenet("mobilenetv3_small", widest="mobilenetv3_small_100")),
    "mobilenetv4_conv_small": Family(
        (0.35, 0.5, 1.0), _mobilenet("mobilenetv4_conv_small", widest="mobilenetv4_conv_small")
    ),
}
