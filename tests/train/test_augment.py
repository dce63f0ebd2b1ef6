"""Augmentation: each operation against a plain reference, and every option changes something."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import ValidationError

from train.augment import (
    AugmentConfig,
    erased,
    mixed,
    normalised,
    rand_augment,
    random_boxes,
    random_resized_crop,
    shifted_windows,
    take_windows,
)
from train.data import ImageData
from train.splits import batches


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(64, 3, 12, 10, generator=generator(7)).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("flip", [False, True])
def test_windows_equal_reflection_padding_and_a_crop(flip: bool) -> None:
    store = torch.randint(0, 256, (9, 7, 6, 3), dtype=torch.uint8, generator=generator())
    arguments = {"stored_px": (7, 6), "out_px": (5, 6), "padding_px": 3, "flip": flip}
    rows, columns = shifted_windows(9, **arguments, generator=generator())  # type: ignore[arg-type]
    windows = take_windows(store, torch.arange(9), rows, columns)
    padded = F.pad(store.permute(0, 3, 1, 2).float(), (3, 3, 3, 3), mode="reflect")
    for number in range(9):
        crops = [
            padded[number, :, top : top + 5, left : left + 6] for top in range(2 * 3 + 3) for left in range(2 * 3 + 1)
        ]
        crops += [crop.flip(2) for crop in crops] if flip else []
        assert any(torch.equal(windows[number].permute(2, 0, 1).float(), crop) for crop in crops)


def test_crops_lie_inside_the_image_and_keep_a_flat_one_flat() -> None:
    left, top, width, height = random_boxes(500, size_px=(10, 14), min_scale=0.1, generator=generator())
    assert (left >= 0).all()
    assert (top >= 0).all()
    assert (left + width <= 14 + 1e-4).all()
    assert (top + height <= 10 + 1e-4).all()
    flat = torch.full((8, 1, 10, 14), 5.0)
    crops = random_resized_crop(flat, out_px=(6, 8), min_scale=0.1, flip=True, generator=generator())
    assert torch.allclose(crops, torch.full((8, 1, 6, 8), 5.0))


def test_a_resized_crop_equals_cropping_and_scaling() -> None:
    ramp = torch.arange(40.0).expand(1, 1, 40, 40)  # value is the column, so a crop shows where it lies
    crop = random_resized_crop(ramp, out_px=(20, 20), min_scale=0.5, flip=False, generator=generator(1))
    left, _, width, _ = (float(v) for v in random_boxes(1, size_px=(40, 40), min_scale=0.5, generator=generator(1)))
    expected = left + width * (torch.arange(20) + 0.5) / 20 - 0.5
    assert (crop[0, 0] - expected.clamp(0, 39)).abs().max() < 1e-3


def test_crops_keep_at_least_the_smallest_share() -> None:
    _, _, width, height = random_boxes(500, size_px=(200, 200), min_scale=0.36, generator=generator())
    share = width * height / 200**2
    assert share.min() > 0.3  # a cut side may take a little more off
    assert share.min() < 0.5
    assert share.max() > 0.9


def test_normalised_pixels_are_in_units_of_the_spread() -> None:
    pixels = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1)
    assert normalised(pixels, mean_C=torch.tensor([0.5]), std_C=torch.tensor([0.25])).flatten().tolist() == [-2, 2]


def test_erasing_fills_one_rectangle_in_the_given_share_of_images() -> None:
    ones = torch.ones(2000, 1, 16, 16)
    hit = erased(ones.clone(), probability=0.3, generator=generator())
    touched = (hit == 0).flatten(1).any(dim=1)
    assert 0.26 < float(touched.float().mean()) < 0.34
    hole = (hit[touched][0, 0] == 0).float()
    assert torch.equal(hole, torch.outer(hole.amax(dim=1), hole.amax(dim=0)))
    assert torch.equal(erased(ones.clone(), probability=0.0, generator=generator()), ones)


def test_mixup_mixes_images_and_targets_alike(images: torch.Tensor) -> None:
    config = AugmentConfig(mixup_alpha=1.0, mix_probability=1.0)
    labels = torch.arange(64)
    mixture, targets = mixed(images, labels, num_classes=64, config=config, generator=generator())
    kept = float(targets[0, 0])
    assert 0 < kept < 1
    assert torch.allclose(mixture, kept * images + (1 - kept) * images.flip(0), atol=1e-6)
    assert torch.allclose(targets.sum(dim=1), torch.ones(64))


def test_cutmix_pastes_a_box_and_weighs_targets_by_its_area(images: torch.Tensor) -> None:
    config = AugmentConfig(cutmix_alpha=1.0, mix_probability=1.0)
    before = images.clone()
    mixture, targets = mixed(images, torch.arange(64), num_classes=64, config=config, generator=generator(2))
    from_self = (mixture == images).all(dim=1)
    from_partner = (mixture == images.flip(0)).all(dim=1)
    assert (from_self | from_partner).all()
    assert abs(float(from_self[0].float().mean()) - float(targets[0, 0])) < 1e-6
    assert 0 < float(targets[0, 0]) < 1
    assert torch.equal(images, before)


def test_mixing_touches_the_given_share_of_batches(images: torch.Tensor) -> None:
    config = AugmentConfig(mixup_alpha=0.4, cutmix_alpha=1.0, mix_probability=0.5)
    results = [
        mixed(images, torch.arange(64), num_classes=64, config=config, generator=generator(seed))[0]
        for seed in range(60)
    ]
    touched = sum(not torch.equal(result, images) for result in results)
    assert 15 < touched < 45


@pytest.mark.parametrize(
    "change",
    [
        {"crop_padding_px": 2},
        {"min_crop_scale": 0.5},
        {"flip": True},
        {"erase_probability": 0.5},
    ],
)
def test_every_option_changes_the_batch(digits: ImageData, change: dict[str, Any]) -> None:
    def first(augment: AugmentConfig) -> torch.Tensor:
        return next(batches(digits.train, 32, epoch=0, seed=0, augment=augment))[0]

    assert not torch.equal(first(AugmentConfig()), first(AugmentConfig(**change)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"crop_padding_px": 2, "min_crop_scale": 0.5}, "choose one"),
        ({"mixup_alpha": 0.2}, "the other way round"),
        ({"mix_probability": 0.5}, "mix_probability needs"),
        ({"randaugment": "trivial"}, "is not a RandAugment string"),
    ],
)
def test_options_that_do_not_agree_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        AugmentConfig(**fields)


def test_randaugment_survives_full_magnitude() -> None:
    transform = rand_augment("rand-m10-n8-inc1")
    image = Image.new("RGB", (8, 8), (200, 100, 50))
    assert all(transform(image).size == (8, 8) for _ in range(40))
