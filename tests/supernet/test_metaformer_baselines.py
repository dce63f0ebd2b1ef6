"""The MetaFormer baselines and PoolFormer: exact counts, timm's numbers, closed forms, any resolution."""

from __future__ import annotations

import re
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from supernet.cost import cost
from supernet.metaformer import MetaFormer
from supernet.mixers import RandomMixer
from supernet.model_zoo import create_model, list_models, published_architecture

# Trainable parameters and MACs at 224 px of the original code (facts: MetaFormer baselines section 1.3). RandFormer's
# MACs are exact here: the counter used there rounds every matrix product of an einsum to four digits.
COUNTS = {
    "identityformer_s12": (11_891_712, 1_812_267_008),
    "identityformer_s24": (21_341_464, 3_392_208_896),
    "identityformer_s36": (30_791_216, 4_972_150_784),
    "identityformer_m36": (56_077_168, 8_758_788_096),
    "identityformer_m48": (73_346_056, 11_533_320_192),
    "randformer_s12": (11_891_712, 1_812_267_008 + 6 * 320 * 196**2 + 2 * 512 * 49**2),
    "randformer_s24": (21_341_464, 3_392_208_896 + 12 * 320 * 196**2 + 4 * 512 * 49**2),
    "randformer_s36": (30_791_216, 4_972_150_784 + 18 * 320 * 196**2 + 6 * 512 * 49**2),
    "randformer_m36": (56_077_168, 8_758_788_096 + 18 * 384 * 196**2 + 6 * 768 * 49**2),
    "randformer_m48": (73_346_056, 11_533_320_192 + 24 * 384 * 196**2 + 8 * 768 * 49**2),
    "poolformerv2_s12": (11_891_712, 1_812_267_008),
    "poolformerv2_s24": (21_341_464, 3_392_208_896),
    "poolformerv2_s36": (30_791_216, 4_972_150_784),
    "poolformerv2_m36": (56_077_168, 8_758_788_096),
    "poolformerv2_m48": (73_346_056, 11_533_320_192),
    "convformer_s18": (26_774_448, 3_940_984_320),
    "convformer_s36": (40_012_152, 7_639_683_072),
    "convformer_m36": (57_051_640, 12_842_333_568),
    "convformer_b36": (99_882_616, 22_629_413_376),
    "caformer_s18": (26_341_656, 4_106_941_440),
    "caformer_s36": (39_297_102, 7_971_597_312),
    "caformer_m36": (56_204_878, 13_240_630_656),
    "caformer_b36": (98_753_614, 23_160_476_160),
    "poolformer_s12": (11_915_176, 1_812_267_008),
    "poolformer_s24": (21_388_968, 3_392_208_896),
    "poolformer_s36": (30_862_760, 4_972_150_784),
    "poolformer_m36": (56_172_520, 8_758_788_096),
    "poolformer_m48": (73_473_448, 11_533_320_192),
    "convformer_s18_384": (26_774_448, 11_575_664_640),
    "caformer_s18_384": (26_341_656, 13_366_149_120),
}
IN_TIMM = [name for name in COUNTS if re.match("convformer|caformer|poolformerv2", name) and "384" not in name]
SMALL = re.compile(".*_s1[28]$")


def test_the_whole_family_is_there() -> None:
    assert set(list_models()) - set(list_models("efficientformer*")) == set(COUNTS)


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_and_macs_are_the_published_ones_to_the_last_digit(name: str) -> None:
    found = cost(published_architecture(name))
    assert (found.parameters, found.macs) == COUNTS[name]


def in_our_names(tensors: dict[str, Tensor], model: MetaFormer) -> dict[str, Tensor]:
    """timm's tensors under our names, 1x1 convolutions as linear maps."""
    ours, shapes = {}, {name: tensor.shape for name, tensor in model.state_dict().items()}
    for name, tensor in tensors.items():
        name = name.replace(".downsample.", ".downsampling.")
        name = re.sub(r"(r|l)(?:es|ayer)_scale(\d)\.scale", r"\1s\2.gamma", name)
        ours[name] = tensor.reshape(shapes[name])
    return ours


@pytest.mark.parametrize(
    "name", [name if SMALL.match(name) else pytest.param(name, marks=pytest.mark.long) for name in IN_TIMM]
)
@pytest.mark.parametrize("training", [False, True])
def test_logits_are_timms(name: str, training: bool) -> None:
    reference = randomized_norms(timm.create_model(name, pretrained=False)).train(training)
    model = create_model(name).train(training)
    model.load_state_dict(in_our_names(reference.state_dict(), model))
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, logits = reference(images), model(images)
    assert (logits - expected).abs().max() <= 1e-4 * expected.abs().max()


def randomized_norms(module: nn.Module) -> nn.Module:
    """Draw norms, scales and biases anew: fresh ones (0 and 1) would not show a mistake."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim <= 1:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return module


def test_poolformer_is_its_formula_with_the_norm_before_the_mean() -> None:
    model: Any = randomized_norms(create_model("poolformer_s12", resolution_px=64, num_classes=7)).eval()
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))

    def norm(x: Tensor, module: Any) -> Tensor:
        y = (x - x.mean(dim=(1, 2, 3), keepdim=True)) / (x.var(dim=(1, 2, 3), correction=0, keepdim=True) + 1e-5).sqrt()
        return y * module.weight[:, None, None] + module.bias[:, None, None]

    def mixed(x: Tensor) -> Tensor:
        inside = F.avg_pool2d(torch.ones_like(x), 3, 1, 1)  # how much of the window lies in the image
        return F.avg_pool2d(x, 3, 1, 1) / inside - x

    def mlp(x: Tensor, module: Any) -> Tensor:
        hidden = F.gelu(torch.einsum("bchw,dc->bdhw", x, module.fc1.weight) + module.fc1.bias[:, None, None])
        return torch.einsum("bchw,dc->bdhw", hidden, module.fc2.weight) + module.fc2.bias[:, None, None]

    with torch.no_grad():
        x = F.conv2d(images, model.stem.conv.weight, model.stem.conv.bias, stride=4, padding=2)
        for stage in model.stages:
            if stage.downsampling is not None:
                conv = stage.downsampling.conv
                x = F.conv2d(x, conv.weight, conv.bias, stride=2, padding=1)
            for block in stage.blocks:
                x = x + block.ls1.gamma[:, None, None] * mixed(norm(x, block.norm1))
                x = x + block.ls2.gamma[:, None, None] * mlp(norm(x, block.norm2), block.mlp)
        expected = F.linear(norm(x, model.head.norm).mean(dim=(2, 3)), model.head.fc.weight, model.head.fc.bias)
        torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-4)


def test_randformers_matrices_are_frozen_distinct_and_in_the_state_dict() -> None:
    model = create_model("randformer_s12")
    matrices = [module.random_matrix for module in model.modules() if isinstance(module, RandomMixer)]
    assert [tuple(matrix.shape) for matrix in matrices] == [(196, 196)] * 6 + [(49, 49)] * 2
    assert sum(matrix.numel() for matrix in matrices) == 235_298
    assert not any(matrix.requires_grad for matrix in matrices)
    assert not torch.equal(matrices[0], matrices[1])
    for matrix in matrices:
        torch.testing.assert_close(matrix.sum(dim=1), torch.ones(len(matrix)))
    assert sum(name.endswith("random_matrix") for name in model.state_dict()) == 8


@pytest.mark.parametrize("name", sorted(name for name in COUNTS if SMALL.match(name)))
def test_gradients_reach_every_trainable_parameter(name: str) -> None:
    model = randomized_norms(create_model(name, resolution_px=64, num_classes=5)).train()
    model(torch.randn(2, 3, 64, 64)).square().sum().backward()
    for where, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, where
            assert parameter.grad.abs().sum() > 0, where


@pytest.mark.parametrize("name", ["caformer_s18", "convformer_s18", "poolformer_s12", "poolformerv2_s12"])
def test_models_without_a_fixed_grid_run_at_any_size(name: str) -> None:
    model = create_model(name, num_classes=3, in_channels=1, resolution_px=(97, 65)).eval()
    with torch.no_grad():
        assert model(torch.randn(2, 1, 97, 65)).shape == (2, 3)
        assert model(torch.randn(1, 1, 64, 128)).shape == (1, 3)


@pytest.mark.parametrize("resolution_px", [(224, 224), (225, 223), (96, 160), (33, 61)])
def test_the_grids_of_an_architecture_are_those_that_its_model_has(resolution_px: tuple[int, int]) -> None:
    model = create_model("poolformerv2_s12", resolution_px=resolution_px).eval()
    seen: list[tuple[int, int]] = []
    for stage in model.stages:
        stage.blocks[-1].register_forward_hook(lambda module, inputs, output: seen.append(tuple(output.shape[2:])))
    with torch.no_grad():
        model(torch.randn(1, 3, *resolution_px))
    assert tuple(seen) == model.architecture.grids


def test_a_map_that_is_not_channels_last_gives_the_same_logits() -> None:
    model = randomized_norms(create_model("caformer_s18", resolution_px=64, num_classes=5)).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        plain = model(images)
        torch.testing.assert_close(model.to(memory_format=torch.channels_last)(images), plain, rtol=1e-4, atol=1e-4)
