"""The family of the MetaFormer baselines: an architecture from depths, widths and what every stage is made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from supernet.architecture import AnyDownsampling, AnyStem, Architecture, PatchDownsampling, PatchStem
from supernet.block_types import (
    ActivationName,
    NoMixing,
    Norm,
    Pooling,
    RandomMixing,
    SelfAttention,
    SeparableMixing,
    TokenMixer,
)
from supernet.schema import UserError, parse

MixerName = Literal["identity", "random", "pooling", "separable_conv", "attention"]


def metaformer_architecture(
    *,
    depths: Sequence[int],
    widths_channels: Sequence[int],
    token_mixers: MixerName | TokenMixer | Sequence[MixerName | TokenMixer],
    norms: Norm | Sequence[Norm] = Norm(),  # noqa: B008  # frozen
    mlp_ratio: float | Sequence[float] = 4,
    mlp_bias: bool = False,
    activation: ActivationName = "star_relu",
    layer_scale: float | Sequence[float | None] | None = None,
    residual_scale: float | Sequence[float | None] | None = (None, None, 1.0, 1.0),
    stem: AnyStem | None = None,
    downsampling: AnyDownsampling | Sequence[AnyDownsampling] = PatchDownsampling(),  # noqa: B008  # frozen
    output_norm: Literal["layer_norm", "map_norm", "batch_norm", "identity"] = "layer_norm",
    norm_after_pooling: bool = True,
    head_ratio: float | None = None,
    in_channels: int = 3,
    num_classes: int = 1000,
    resolution_px: int | tuple[int, int] = 224,
) -> Architecture:
    """An architecture of `MetaFormerBlock` stages; what is not given is as in MetaFormer Baselines for Vision.

    `token_mixers`, `norms`, `mlp_ratio`, `layer_scale` and `residual_scale` are one for all stages or one a stage,
    `downsampling` one for all stages but the first or one each. A mixer is a name, with the published settings
    (expansion 2 and a 7x7 kernel, heads of 32 channels, a 3x3 window), or a value. `head_ratio` gives the classifier a
    hidden layer of so many times the last width. Drop path and head dropout are `MetaFormer`'s own arguments.

    Raises `UserError` for lists of different lengths and for anything that an `Architecture` refuses.
    """
    count = len(depths)
    if len(widths_channels) != count:
        raise UserError(f"widths_channels: needs {count} values, one a stage (got {len(widths_channels)})")
    mixers = _each(token_mixers, count, "token_mixers")
    every_norm = _each(norms, count, "norms")
    ratios = _each(mlp_ratio, count, "mlp_ratio")
    scales = _each(layer_scale, count, "layer_scale")
    residuals = _each(residual_scale, count, "residual_scale")
    openings = (None, *_each(downsampling, count - 1, "downsampling"))
    stages = []
    for number, (depth, width) in enumerate(zip(depths, widths_channels, strict=True)):
        block = {
            "type": "metaformer",
            "mixer": _mixer(mixers[number], width).model_dump(mode="json"),
            "norm": every_norm[number].model_dump(mode="json"),
            "mlp_channels": max(1, round(ratios[number] * width)),
            "mlp_bias": mlp_bias,
            "activation": activation,
            "layer_scale": scales[number],
            "residual_scale": residuals[number],
        }
        opening = openings[number]
        downsampled = None if opening is None else opening.model_dump(mode="json")
        stages.append({"width_channels": width, "downsampling": downsampled, "blocks": [block] * depth})
    data = {
        "in_channels": in_channels,
        "resolution_px": resolution_px if isinstance(resolution_px, int) else list(resolution_px),
        "stem": (stem or PatchStem(width_channels=widths_channels[0])).model_dump(mode="json"),
        "stages": stages,
        "head": {
            "num_classes": num_classes,
            "norm": output_norm,
            "norm_after_pooling": norm_after_pooling,
            "norm_eps": 1e-6 if output_norm == "layer_norm" else 1e-5,
            "hidden_channels": None if head_ratio is None else round(head_ratio * widths_channels[-1]),
        },
    }
    return parse(Architecture, data, source="metaformer_architecture")


def _each(value: Any, count: int, name: str) -> tuple[Any, ...]:
    """One value a stage, out of one for all or of a list; a name is one value."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        return (value,) * count
    if len(value) != count:
        raise UserError(f"{name}: needs {count} values (got {len(value)})")
    return tuple(value)


def _mixer(mixer: MixerName | TokenMixer, width_channels: int) -> TokenMixer:
    match mixer:
        case "identity":
            return NoMixing()
        case "random":
            return RandomMixing()
        case "pooling":
            return Pooling()
        case "separable_conv":
            return SeparableMixing(hidden_channels=2 * width_channels)
        case "attention":
            return SelfAttention()
        case str():
            raise UserError(f"token_mixers: no mixer is named {mixer!r}")
        case _:
            return mixer
