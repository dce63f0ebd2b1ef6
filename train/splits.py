"""Splits of a data set, and their batches: a function of (seed, epoch, batch number) and nothing else.

# N images, B batch, C channels, H W pixels
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor

from train.augment import AugmentConfig, centred, erased, normalised, random_resized_crop, shifted_windows, take_windows
from train.randomness import generator_for
from train.streaming import Decoding, stream

Batch: TypeAlias = tuple[Tensor, Tensor]  # float images B, C, H, W in channels_last; labels B


@dataclass(frozen=True)
class Normalisation:
    """Mean and standard deviation a channel, on a scale of 0..1: what a deployed model needs beside its weights."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def tensors(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Both as tensors of shape C."""
        return torch.tensor(self.mean, device=device), torch.tensor(self.std, device=device)


@dataclass(frozen=True)
class InMemorySplit:
    """Some of the images of a decoded uint8 store (N, H, W, C), which all splits of a data set may share."""

    store_NHWC: Tensor
    store_labels_N: Tensor
    indices: Tensor
    out_px: tuple[int, int]
    normalisation: Normalisation

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def labels(self) -> Tensor:
        """The class numbers of this split's images, in their order (on the CPU)."""
        return self.store_labels_N.cpu()[self.indices]

    @property
    def stored_px(self) -> tuple[int, int]:
        """Height and width of the decoded images."""
        return self.store_NHWC.shape[1], self.store_NHWC.shape[2]

    def subset(self, indices: Tensor) -> InMemorySplit:
        """The images at these positions of this split."""
        return replace(self, indices=self.indices[indices])


@dataclass(frozen=True)
class FolderSplit:
    """Images that stay on disk and are decoded by worker processes, again in every epoch."""

    paths: tuple[str, ...]
    labels: Tensor
    stored_px: tuple[int, int]
    out_px: tuple[int, int]
    channels: int
    workers: int
    normalisation: Normalisation

    def __len__(self) -> int:
        return len(self.paths)

    def subset(self, indices: Tensor) -> FolderSplit:
        """The images at these positions of this split."""
        return replace(self, paths=tuple(self.paths[i] for i in indices.tolist()), labels=self.labels[indices])


Split: TypeAlias = InMemorySplit | FolderSplit


def batches(
    split: Split,
    batch_size: int,
    *,
    epoch: int,
    seed: int,
    augment: AugmentConfig | None,
    first: int = 0,
    device: torch.device | None = None,
) -> Iterator[Batch]:
    """Normalised float batches (B, C, H, W in channels_last) and their labels (B).

    With `augment`: shuffled and varied, as a function of `seed`, `epoch` and the batch's number alone; a last batch
    that is not full is left out. With None: every image once, in order, centre-cropped. `first` skips that many
    batches without decoding them. `device` is where batches end up, by default where the images are.
    Mixup and CutMix are not applied here, but by `augment.mixed`, since they change the labels.
    """
    training = augment is not None
    order = torch.arange(len(split))
    if training:
        order = torch.randperm(len(split), generator=generator_for(seed, "order", epoch))
    count = batch_count(split, batch_size, training=training)
    groups = [order[number * batch_size : (number + 1) * batch_size] for number in range(first, count)]
    for number, (pixels_BHWC, labels_B) in enumerate(_decoded(split, groups, augment, seed=seed, epoch=epoch), first):
        target = pixels_BHWC.device if device is None else device
        pixels_BHWC, labels_B = pixels_BHWC.to(target, non_blocking=True), labels_B.to(target, non_blocking=True)
        generator = generator_for(seed, "augment", epoch, number)
        yield _varied(pixels_BHWC, split, augment, generator), labels_B


def evaluation_batches(split: Split, batch_size: int, *, device: torch.device | None = None) -> Iterator[Batch]:
    """Every image once, in order and centre-cropped: `batches` without augmentation."""
    return batches(split, batch_size, epoch=0, seed=0, augment=None, device=device)


def batch_count(split: Split, batch_size: int, *, training: bool) -> int:
    """The number of batches in an epoch; training leaves out a last one that is not full, unless it is the only one."""
    return max(1, len(split) // batch_size) if training else -(-len(split) // batch_size)


def _decoded(
    split: Split, groups: list[Tensor], augment: AugmentConfig | None, *, seed: int, epoch: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Uint8 batches B, H, W, C, of the stored size or of the resolution, and labels."""
    if isinstance(split, FolderSplit):
        crops = augment is not None and augment.min_crop_scale < 1
        decoding = Decoding(
            size_px=split.out_px if crops else split.stored_px,
            channels=split.channels,
            min_crop_scale=augment.min_crop_scale if augment else 1.0,
            randaugment=augment.randaugment if augment else None,
        )
        positions = [group.tolist() for group in groups]
        labels = split.labels.tolist()
        yield from stream(
            split.paths, labels, positions, decoding=decoding, workers=split.workers, seed=seed, epoch=epoch
        )
        return
    for group in groups:
        chosen_B = split.indices[group].to(split.store_NHWC.device)
        yield split.store_NHWC[chosen_B], split.store_labels_N[chosen_B]


def _varied(pixels_BHWC: Tensor, split: Split, augment: AugmentConfig | None, generator: torch.Generator) -> Tensor:
    """Crop, flip, normalise and erase one batch: float B, C, H, W in channels_last."""
    mean_C, std_C = split.normalisation.tensors(pixels_BHWC.device)
    if augment is None:
        return normalised(centred(pixels_BHWC, split.out_px).permute(0, 3, 1, 2), mean_C=mean_C, std_C=std_C)
    if augment.min_crop_scale < 1 and isinstance(split, InMemorySplit):
        images = random_resized_crop(
            pixels_BHWC.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format),
            out_px=split.out_px,
            min_scale=augment.min_crop_scale,
            flip=augment.flip,
            generator=generator,
        )
    else:
        rows_Bh, columns_Bw = shifted_windows(
            len(pixels_BHWC),
            stored_px=(pixels_BHWC.shape[1], pixels_BHWC.shape[2]),
            out_px=split.out_px,
            padding_px=augment.crop_padding_px,
            flip=augment.flip,
            generator=generator,
        )
        images = take_windows(pixels_BHWC, torch.arange(len(pixels_BHWC)), rows_Bh, columns_Bw).permute(0, 3, 1, 2)
    images = normalised(images, mean_C=mean_C, std_C=std_C)
    if augment.erase_probability:
        images = erased(images, probability=augment.erase_probability, generator=generator)
    return images
