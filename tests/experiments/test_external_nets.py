"""timm's models at other widths: what each family makes of a scale, a stem and a seed."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from experiments.external_nets import FAMILIES, ExternalNet, initial_external
from experiments.external_study import widest
from train.retraining import RetrainConfig

CONFIG = RetrainConfig(epochs=1, batch_size=8, learning_rate=1e-3)


def net(name: Any, **changes: Any) -> ExternalNet:
    shape = {"in_channels": 3, "resolution_px": (32, 32), "num_classes": 7, "stem_stride": 4}
    return ExternalNet(**({"name": name, "scale": FAMILIES[name].scales[0]} | shape | changes))


@pytest.mark.parametrize("name", FAMILIES)
def test_every_width_of_a_family_is_larger_than_the_one_before(name: Any) -> None:
    scales = [scale for scale in FAMILIES[name].scales if scale <= 1][::4]
    sizes = [net(name, scale=scale).cost for scale in scales]
    assert len(sizes) >= 1
    assert all(one.parameters < other.parameters and one.macs < other.macs for one, other in itertools.pairwise(sizes))
    assert len({net(name, scale=scale).digest for scale in scales}) == len(scales)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(("stem_stride", "grid_px"), [(4, 2), (2, 4), (1, 8)])
def test_the_stem_shrinks_an_image_as_asked(name: Any, stem_stride: int, grid_px: int) -> None:
    model = net(name, stem_stride=stem_stride, resolution_px=(64, 32), in_channels=1).build().eval()
    images = torch.randn(2, 1, 64, 32)
    assert model(images).shape == (2, 7)
    assert model.forward_features(images).shape[-2:] == (grid_px, grid_px // 2)


def test_a_seed_decides_the_first_weights_and_torchs_generator_rests() -> None:
    before = torch.get_rng_state()
    first, again, other = (initial_external(net("resnet18d"), CONFIG, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(first.eval()(images), again.eval()(images))
    assert not torch.equal(first(images), other.eval()(images))


@pytest.mark.parametrize("name", FAMILIES)
def test_the_recipes_drop_path_reaches_the_net(name: Any) -> None:
    model = initial_external(net(name), CONFIG.model_copy(update={"drop_path_rate": 0.9}), seed=0).eval()
    assert any(getattr(module, "drop_prob", 0) > 0 for module in model.modules())


@pytest.mark.parametrize("count", [1, 2, 3, 4, 64])
def test_the_widest_within_a_budget_is_found_with_few_measurements(count: int) -> None:
    scales = tuple(range(1, count + 1))
    for limit in range(count + 2):
        asked: list[float] = []

        def ms_of(scale: float, asked: list[float] = asked) -> float:
            asked.append(scale)
            return scale

        assert widest(scales, ms_of, at_most_ms=limit + 0.5) == (min(limit, count) or None)
        assert len(set(asked)) <= 13
        assert max(asked) <= max(2 * limit + 2, 2)
