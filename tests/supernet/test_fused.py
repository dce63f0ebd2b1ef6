"""The deploy form: the same logits, nothing left to fold."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from supernet.activations import StarReLU
from supernet.architecture import Architecture, Head, Stage, Stem
from supernet.block_types import MB4D, Conv, SeparableConv
from supernet.blocks import MB4DModule
from supernet.fused import fused
from supernet.layers import DropPath, LayerScale
from supernet.metaformer import MetaFormer
from supernet.model_zoo import create_model, list_models

Drawn = Callable[..., Any]
SMALLEST = (
    "efficientformer_l1",
    "efficientformerv2_s0",
    "poolformer_s12",
    "poolformerv2_s12",
    "identityformer_s12",
    "randformer_s12",
    "convformer_s18",
    "caformer_s18",
)


def images(size: int = 64) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "name", [name if name in SMALLEST else pytest.param(name, marks=pytest.mark.long) for name in list_models()]
)
def test_the_deploy_form_computes_the_same(name: str, drawn: Drawn) -> None:
    model = drawn(create_model(name, resolution_px=64, num_classes=11, drop_path_rate=0.2))
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with torch.no_grad():
        expected, found = model(images()), model.fused()(images())
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[key]), f"{key} of the original was changed"


@pytest.mark.parametrize(("name", "expected"), [("efficientformer_l1", True), ("efficientformerv2_s0", False)])
def test_the_deploy_form_computes_on_channels_last_maps_where_no_convolution_is_depthwise(
    name: str, expected: bool
) -> None:
    stem = create_model(name, resolution_px=64).fused().stem
    assert isinstance(stem, nn.Module)
    with torch.no_grad():
        assert stem(images()).is_contiguous(memory_format=torch.channels_last) == expected


@pytest.mark.parametrize("name", SMALLEST)
def test_nothing_is_left_to_fold(name: str) -> None:
    left = [type(module) for module in create_model(name, resolution_px=64).fused().modules()]
    assert not {nn.BatchNorm2d, nn.BatchNorm1d, nn.Dropout, DropPath, StarReLU} & set(left)
    assert name.startswith("poolformer_") or LayerScale not in left


def test_attention_made_for_one_grid_refuses_images_of_another_size() -> None:
    model = create_model("efficientformerv2_s0", resolution_px=64).fused()
    with torch.no_grad(), pytest.raises(ValueError, match=r"made for maps of \(2, 2\) \(got \(4, 4\)\)"):
        model(images(128))


def test_a_head_of_maxima_and_the_blocks_of_our_own_are_folded_too(drawn: Drawn) -> None:
    blocks = (
        Conv(mlp_channels=32, layer_scale=0.5),
        SeparableConv(mixer_channels=24, mlp_channels=32, layer_scale=0.5),
    )
    for norm, pooling in itertools.product(("layer_norm", "identity", "batch_norm", "map_norm"), ("mean", "max")):
        architecture = Architecture(
            in_channels=3,
            resolution_px=(32, 32),
            stem=Stem(width_channels=16, hidden_channels=8, pooling="max"),
            stages=(Stage(width_channels=16, downsampling=None, blocks=blocks),),
            head=Head(num_classes=5, distillation=True, norm=norm, pooling=pooling),
        )
        model = drawn(MetaFormer(architecture))
        with torch.no_grad():
            torch.testing.assert_close(model.fused()(images(32)), model(images(32)), rtol=1e-4, atol=1e-5)


def test_a_subclass_that_computes_something_else_is_kept_as_it_is() -> None:
    class Doubled(MB4DModule):
        def forward(self, x_BCHW: Tensor) -> Tensor:
            return 2 * super().forward(x_BCHW)

    block = Doubled(MB4D(mlp_channels=8, layer_scale=0.5), width_channels=4, grid=(6, 6), drop_path=0.0).eval()
    x_BCHW = torch.randn(2, 4, 6, 6)
    torch.testing.assert_close(fused(block)(x_BCHW), block(x_BCHW))


def test_a_block_of_a_users_own_is_kept_as_it_is() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(x)  # type: ignore[no-any-return]

    assert isinstance(fused(nn.Sequential(Own()))[0].norm, nn.BatchNorm2d)


def test_the_deploy_form_is_not_saved_under_the_architectures_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="deploy form"):
        create_model("poolformer_s12", resolution_px=64, num_classes=3).fused().save_pretrained(tmp_path)


def test_the_deploy_form_runs_in_bf16_autocast() -> None:
    model = create_model("efficientformer_l1", resolution_px=64, num_classes=3).fused()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.isfinite(model(images())).all()
