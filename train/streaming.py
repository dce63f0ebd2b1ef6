"""Images that stay on disk: worker processes decode and crop them, one batch after another.

What happens to an image is a function of (seed, epoch, its path's position), so the number of workers changes nothing.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from supernet.schema import UserError
from train.augment import rand_augment, random_boxes
from train.images import Pixels, covering_pixels, open_image, pil_mode, with_channels
from train.randomness import derived_seed, generator_for

Sample = tuple[Pixels, int]


@dataclass(frozen=True)
class Decoding:
    """What a worker does to an image: cover `size_px` (h, w) and crop, at random if `min_crop_scale` is below 1."""

    size_px: tuple[int, int]
    channels: int
    min_crop_scale: float = 1.0
    randaugment: str | None = None


def stream(
    paths: Sequence[str],
    labels: Sequence[int],
    groups: Sequence[Sequence[int]],
    *,
    decoding: Decoding,
    workers: int,
    seed: int,
    epoch: int,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Uint8 batches B, H, W, C and labels B of these groups of positions, in order.

    Raises `UserError` that names the file when an image is unreadable.
    """
    loader = DataLoader(
        _Images(paths, labels, decoding, seed, epoch),
        batch_sampler=[list(group) for group in groups],
        num_workers=min(workers, len(groups)),
        collate_fn=_collated,
        generator=generator_for(seed, "workers", epoch),
    )
    for batch in loader:
        if isinstance(batch, str):  # an exception would cross the process border as a traceback
            raise UserError(batch)
        yield batch


class _Images(Dataset[Sample | str]):
    def __init__(self, paths: Sequence[str], labels: Sequence[int], decoding: Decoding, seed: int, epoch: int) -> None:
        self.paths, self.labels, self.decoding = paths, labels, decoding
        self.seed, self.epoch = seed, epoch
        self.rand_augment = None if decoding.randaugment is None else rand_augment(decoding.randaugment)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Sample | str:
        try:
            return self._pixels(index), self.labels[index]
        except UserError as error:
            return str(error)

    def _pixels(self, index: int) -> Pixels:
        path, decoding = self.paths[index], self.decoding
        if decoding.min_crop_scale < 1:
            image = self._randomly_cropped(path, index)
        elif self.rand_augment is None:
            return covering_pixels(path, size_px=decoding.size_px, channels=decoding.channels)
        else:
            pixels = covering_pixels(path, size_px=decoding.size_px, channels=decoding.channels)
            image = Image.fromarray(pixels)
        if self.rand_augment is not None:
            with _seeded_globals(derived_seed(self.seed, "randaugment", self.epoch, index)):
                image = self.rand_augment(image)
        return with_channels(image)

    def _randomly_cropped(self, path: str, index: int) -> Image.Image:
        height, width = self.decoding.size_px
        scale = self.decoding.min_crop_scale
        # decoded no smaller than leaves the smallest crop at the resolution
        least = (round(height / scale**0.5), round(width / scale**0.5))
        image = open_image(path, pil_mode(self.decoding.channels), at_least_px=least)
        boxes = random_boxes(
            1,
            size_px=(image.height, image.width),
            min_scale=scale,
            generator=generator_for(self.seed, "crop", self.epoch, index),
        )
        left, top, box_width, box_height = (float(value) for value in boxes)
        box = (left, top, min(left + box_width, image.width), min(top + box_height, image.height))
        return image.resize((width, height), Image.Resampling.BICUBIC, box=box)


def _collated(samples: list[Sample | str]) -> tuple[Tensor, Tensor] | str:
    pixels: list[Pixels] = []
    labels: list[int] = []
    for sample in samples:
        if isinstance(sample, str):
            return sample
        pixels.append(sample[0])
        labels.append(sample[1])
    return torch.from_numpy(np.stack(pixels)), torch.tensor(labels)


@contextmanager
def _seeded_globals(seed: int) -> Iterator[None]:
    """Seed the global states that timm's RandAugment draws from, and put back what they were."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
