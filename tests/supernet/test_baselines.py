"""The generic constructor: the published baselines are calls of it, and it takes what they take."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from supernet import MetaFormer, UserError, published_architecture
from supernet.architecture import Downsampling, PatchDownsampling, PatchStem
from supernet.baselines import metaformer_architecture
from supernet.block_types import Norm, SelfAttention, SeparableMixing

S12: dict[str, Any] = {"depths": (2, 2, 6, 2), "widths_channels": (64, 128, 320, 512)}
S18: dict[str, Any] = {"depths": (3, 3, 9, 3), "widths_channels": (64, 128, 320, 512), "head_ratio": 4}
MAP = Norm(over="map")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("identityformer_s12", S12 | {"token_mixers": "identity", "norms": MAP}),
        ("randformer_s12", S12 | {"token_mixers": ("identity", "identity", "random", "random"), "norms": MAP}),
        ("poolformerv2_s12", S12 | {"token_mixers": "pooling", "norms": [MAP] * 4}),
        ("convformer_s18", S18 | {"token_mixers": "separable_conv"}),
        ("caformer_s18", S18 | {"token_mixers": ("separable_conv", "separable_conv", "attention", "attention")}),
        ("caformer_s18_384", S18 | {"token_mixers": ["separable_conv"] * 2 + ["attention"] * 2, "resolution_px": 384}),
        (
            "poolformer_s12",
            S12
            | {
                "token_mixers": "pooling",
                "norms": Norm(over="map", bias=True, eps=1e-5),
                "mlp_bias": True,
                "activation": "gelu",
                "layer_scale": 1e-5,
                "residual_scale": None,
                "stem": PatchStem(width_channels=64, norm=None),
                "downsampling": PatchDownsampling(norm=None),
                "output_norm": "map_norm",
                "norm_after_pooling": False,
            },
        ),
    ],
)
def test_a_published_model_is_one_call(name: str, options: dict[str, Any]) -> None:
    assert metaformer_architecture(**options) == published_architecture(name)


def test_every_stage_can_be_its_own() -> None:
    architecture = metaformer_architecture(
        depths=(1, 2, 1),
        widths_channels=(16, 24, 32),
        token_mixers=("pooling", SeparableMixing(hidden_channels=36, kernel=5), SelfAttention(head_channels=8)),
        norms=(MAP, Norm(), Norm(bias=True)),
        mlp_ratio=(2, 3, 1.5),
        layer_scale=(1e-5, None, 0.5),
        residual_scale=1.0,
        downsampling=(Downsampling(stride=1), PatchDownsampling()),
        in_channels=1,
        num_classes=5,
        resolution_px=(32, 48),
    )
    assert [stage.blocks[0].mlp_channels for stage in architecture.stages] == [32, 72, 48]  # type: ignore[attr-defined]
    assert architecture.grids == ((8, 12), (8, 12), (4, 6))
    model = MetaFormer(architecture, drop_path_rate=0.2, head_dropout=0.1).train()
    logits = model(torch.randn(2, 1, 32, 48))
    assert logits.shape == (2, 5)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"token_mixers": ("pooling", "pooling")}, "token_mixers: needs 4 values"),
        ({"token_mixers": "pool"}, "no mixer is named 'pool'"),
        ({"token_mixers": "pooling", "mlp_ratio": (4, 4)}, "mlp_ratio: needs 4 values"),
        ({"token_mixers": "pooling", "widths_channels": (64,)}, "widths_channels: needs 4 values"),
    ],
)
def test_lists_of_another_length_are_refused(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        metaformer_architecture(**(S12 | options))
