"""Batches are a function of seed, epoch and number."""

from __future__ import annotations

import pytest
import torch

from train.augment import AugmentConfig
from train.data import ImageData
from train.splits import batch_count, batches, evaluation_batches

SHIFTED = AugmentConfig(crop_padding_px=1, flip=True, erase_probability=0.5)


def some(data: ImageData, *, epoch: int = 0, seed: int = 0, first: int = 0) -> list[torch.Tensor]:
    stream = batches(data.train, 20, epoch=epoch, seed=seed, augment=SHIFTED, first=first)
    return [torch.cat([images.flatten(1), labels[:, None]], dim=1) for images, labels in stream]


def test_the_same_seed_and_epoch_give_the_same_batches(few_digits: ImageData) -> None:
    assert all(one.equal(other) for one, other in zip(some(few_digits), some(few_digits), strict=True))


@pytest.mark.parametrize("change", [{"epoch": 1}, {"seed": 1}])
def test_another_seed_or_epoch_gives_other_batches(few_digits: ImageData, change: dict[str, int]) -> None:
    assert not some(few_digits)[0].equal(some(few_digits, **change)[0])


def test_skipping_batches_leaves_the_others_as_they_are(few_digits: ImageData) -> None:
    everything = some(few_digits)
    rest = some(few_digits, first=2)
    assert len(rest) == len(everything) - 2
    assert all(one.equal(other) for one, other in zip(everything[2:], rest, strict=True))


def test_training_leaves_out_the_last_batch_that_is_not_full_and_evaluation_does_not(few_digits: ImageData) -> None:
    assert len(some(few_digits)) == batch_count(few_digits.train, 20, training=True) == 4
    assert sum(len(labels) for _, labels in evaluation_batches(few_digits.train, 20)) == 96
    assert batch_count(few_digits.train, 500, training=True) == 1


def test_an_epoch_shows_every_image_once(few_digits: ImageData) -> None:
    stream = batches(few_digits.train, 32, epoch=0, seed=0, augment=AugmentConfig())
    shown = torch.cat([images for images, _ in stream]).flatten(1)
    stored = torch.cat([images for images, _ in evaluation_batches(few_digits.train, 32)]).flatten(1)
    assert sorted(shown.tolist()) == sorted(stored.tolist())


@pytest.mark.parametrize("augment", [None, AugmentConfig(), SHIFTED, AugmentConfig(min_crop_scale=0.5)])
def test_batches_are_channels_last_floats(digits: ImageData, augment: AugmentConfig | None) -> None:
    images, labels = next(batches(digits.train, 16, epoch=0, seed=0, augment=augment))
    assert images.dtype == torch.float32
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert labels.dtype == torch.int64
