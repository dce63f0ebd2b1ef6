"""Data sets: image folders and the embedded digits, divided for weights, alphas, scores and the last test.

# N images, C channels, H W pixels
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from supernet.schema import Record, UserError
from train.augment import AugmentConfig
from train.images import ImageFiles, all_have_size, covering_pixels, decode_all, list_splits
from train.randomness import generator_for
from train.splits import FolderSplit, InMemorySplit, Normalisation, Split

DIGITS = "digits"
LARGEST_IN_MEMORY_BYTES = 2 * 2**30
LARGEST_IN_MEMORY_IMAGES = 200_000
STATISTICS_IMAGES = 1024  # enough for the third digit of a mean
DIGITS_TEST_SEED = 0  # the same test digits in every run

PerChannel = tuple[float, ...]
Positive = Annotated[int, Field(gt=0)]


class DataConfig(Record):
    """Which images, how large, and which of the training images are held out from the weights.

    `path` is an image folder with `train/` and `test/` (or `val/`), one folder a class, or "digits". Of the training
    images `held_out_fraction` goes, class by class, to the alphas (`alpha_fraction` of it) and to the scores of the
    search. Images are scaled to the resolution over `crop_fraction`, then cropped (at the centre to evaluate); images
    that are stored at the resolution are left alone. `in_memory: auto` decodes once whatever fits 2 GiB; other folders
    stream through `workers` processes. `mean` and `std` are per channel on a scale of 0..1; null computes them from
    training images. `num_classes` and `num_images` (for training) are needed only to plan a run, or to measure its
    latency table (the classes suffice), without its images; with them, the classes must agree.
    """

    added_later: ClassVar[frozenset[str]] = frozenset({"alpha_fraction"})

    path: str
    resolution_px: tuple[Positive, Positive]
    channels: Literal[1, 3] = 3
    held_out_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    alpha_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.5
    in_memory: Literal["auto"] | bool = "auto"
    workers: Annotated[int, Field(ge=0)] = 4
    num_classes: Annotated[int, Field(ge=2)] | None = None
    num_images: Positive | None = None
    mean: PerChannel | None = None
    std: PerChannel | None = None
    crop_fraction: Annotated[float, Field(gt=0, le=1)] = 0.875

    @field_validator("resolution_px", mode="before")
    @classmethod
    def _square(cls, value: object) -> object:
        if isinstance(value, int):
            return value, value
        return tuple(value) if isinstance(value, list) else value

    @model_validator(mode="after")
    def _agrees(self) -> DataConfig:
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and len(values) != self.channels:
                raise ValueError(f"{name} needs one number a channel ({self.channels}), has {len(values)}")
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std are given together or not at all")
        if self.std is not None and min(self.std) <= 0:
            raise ValueError("std must be above 0")
        return self

    @property
    def stored_px(self) -> tuple[int, int]:
        """Height and width to which images are scaled before they are cropped to the resolution."""
        height, width = self.resolution_px
        return round(height / self.crop_fraction), round(width / self.crop_fraction)


@dataclass(frozen=True)
class ImageData:
    """One data set: `train` for the weights, `alpha` and `score` held out from them, `test` for the last figure.

    `held_out` is alpha and score together; `all_training` is train and held_out together.
    """

    train: Split
    alpha: Split
    score: Split
    held_out: Split
    all_training: Split
    test: Split
    class_names: tuple[str, ...]
    in_channels: int
    resolution_px: tuple[int, int]
    normalisation: Normalisation

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)

    def to(self, device: torch.device) -> ImageData:
        """The same data with decoded images on this device, each store moved once; what streams is left alone."""
        moved: dict[int, Tensor] = {}

        def there(split: Split) -> Split:
            if not isinstance(split, InMemorySplit):
                return split
            for store in (split.store_NHWC, split.store_labels_N):
                if id(store) not in moved:
                    moved[id(store)] = store.to(device)
            return replace(
                split,
                store_NHWC=moved[id(split.store_NHWC)],
                store_labels_N=moved[id(split.store_labels_N)],
            )

        return replace(
            self,
            train=there(self.train),
            alpha=there(self.alpha),
            score=there(self.score),
            held_out=there(self.held_out),
            all_training=there(self.all_training),
            test=there(self.test),
        )

    def check(self, augment: AugmentConfig) -> None:
        """Raise `UserError` for an augmentation that these images, decoded in memory, cannot have."""
        if augment.randaugment is not None and isinstance(self.train, InMemorySplit):
            raise UserError(
                "augment.randaugment: works in worker processes only, but these images are decoded in memory "
                "(set data.in_memory: false, or leave randaugment out)"
            )
        if augment.randaugment is not None and self.in_channels != 3:
            raise UserError(
                f"augment.randaugment: works on images of 3 channels only (data.channels: {self.in_channels})"
            )


def open_data(config: DataConfig, *, seed: int) -> ImageData:
    """Open the images of a config; `seed` decides which training images are held out.

    Raises `UserError` for a folder that is missing, empty or inconsistent, an unreadable image, or a held-out part
    that is too small.
    """
    if config.path == DIGITS:
        training, test, class_names = _open_digits(config)
    else:
        training, test, class_names = _open_folder(config)
    if config.num_classes is not None and config.num_classes != len(class_names):
        raise UserError(f"data.num_classes: {config.num_classes}, but {config.path} has {len(class_names)} classes")
    return _divided(training, test, class_names=class_names, config=config, seed=seed)


class ImageCounts(Record):
    """How many images and classes a data set has."""

    training: int
    test: int
    classes: int


def count_images(config: DataConfig, *, or_as_stated: bool = False) -> ImageCounts:
    """Count without decoding; `or_as_stated` takes the config's numbers where the images are not there.

    Raises `UserError` for a missing or empty image folder, and for class folders that differ.
    """
    if config.path == DIGITS:
        training, test, names = _open_digits(config)
        return ImageCounts(training=len(training), test=len(test), classes=len(names))
    root = Path(config.path)
    if or_as_stated and not root.exists():
        if config.num_classes is not None and config.num_images is not None:
            return ImageCounts(training=config.num_images, test=0, classes=config.num_classes)
        raise UserError(f"{root}: no such image folder (to plan without it, give data.num_classes and data.num_images)")
    train, held = list_splits(root)
    return ImageCounts(training=len(train.paths), test=len(held.paths), classes=len(set(train.labels)))


def count_classes(config: DataConfig) -> int:
    """The number of classes, from the config or the folders. Raises `UserError` as `count_images` does."""
    return config.num_classes if config.num_classes is not None else count_images(config).classes


def synthetic_data(config: DataConfig, *, num_classes: int, images_per_class: int, seed: int) -> ImageData:
    """Noise in the shape of the data, for planning a run whose images are elsewhere."""
    labels = torch.arange(num_classes).repeat_interleave(images_per_class)
    shape = (len(labels), *config.resolution_px, config.channels)
    store = torch.randint(0, 256, shape, generator=generator_for(seed, "noise"), dtype=torch.uint8)
    split = _in_memory(store, labels, config, _statistics(store, config))
    names = tuple(f"class {number}" for number in range(num_classes))
    return _divided(split, split, class_names=names, config=config, seed=seed)


def _open_digits(config: DataConfig) -> tuple[Split, Split, tuple[str, ...]]:
    """The 1,797 digits of scikit-learn (8x8, 16 levels), scaled bilinearly; a fifth of each class are test images."""
    if config.in_memory is False:
        raise UserError("data.in_memory: the embedded digits are always in memory (got False)")
    from sklearn.datasets import load_digits  # takes a second, which runs on other images need not wait for

    digits = load_digits()
    pixels_N1HW = torch.from_numpy(digits.images).float()[:, None] * (255 / 16)
    labels = torch.from_numpy(digits.target).long()
    scaled = F.interpolate(pixels_N1HW, size=config.resolution_px, mode="bilinear", align_corners=False)
    store = scaled.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).repeat(1, 1, 1, config.channels)
    kept, held = _stratified(labels, 0.2, generator_for(DIGITS_TEST_SEED, "digits test"))
    everything = _in_memory(store.contiguous(), labels, config, _statistics(store[kept], config))
    return everything.subset(kept), everything.subset(held), tuple(str(name) for name in digits.target_names)


def _open_folder(config: DataConfig) -> tuple[Split, Split, tuple[str, ...]]:
    train, test = list_splits(Path(config.path))
    as_they_are = all_have_size(train.paths, config.resolution_px)
    stored_px = config.resolution_px if as_they_are else config.stored_px
    splits: list[Split] = []
    if _fits_memory(config, len(train.paths) + len(test.paths), stored_px):
        normalisation: Normalisation | None = None
        for files, what in ((train, "training images"), (test, "test images")):
            store = decode_all(files.paths, size_px=stored_px, channels=config.channels, what=what)
            normalisation = normalisation or _statistics(store, config)
            splits.append(_in_memory(store, torch.tensor(files.labels), config, normalisation))
    else:
        normalisation = _statistics(_some_images(train, config, stored_px), config)
        for files in (train, test):
            splits.append(
                FolderSplit(
                    paths=files.paths,
                    labels=torch.tensor(files.labels),
                    stored_px=stored_px,
                    out_px=config.resolution_px,
                    channels=config.channels,
                    workers=config.workers,
                    normalisation=normalisation,
                )
            )
    return splits[0], splits[1], train.class_names


def _fits_memory(config: DataConfig, images: int, stored_px: tuple[int, int]) -> bool:
    if config.in_memory != "auto":
        return config.in_memory
    size_bytes = images * stored_px[0] * stored_px[1] * config.channels
    return size_bytes <= LARGEST_IN_MEMORY_BYTES and images <= LARGEST_IN_MEMORY_IMAGES


def _in_memory(store: Tensor, labels: Tensor, config: DataConfig, normalisation: Normalisation) -> InMemorySplit:
    return InMemorySplit(
        store_NHWC=store,
        store_labels_N=labels,
        indices=torch.arange(len(labels)),
        out_px=config.resolution_px,
        normalisation=normalisation,
    )


def _some_images(files: ImageFiles, config: DataConfig, size_px: tuple[int, int]) -> Tensor:
    paths = files.paths[:: max(1, len(files.paths) // STATISTICS_IMAGES)]
    if config.mean is not None:
        paths = paths[:1]  # nothing to compute, but the first unreadable image should show early
    pixels = [covering_pixels(path, size_px=size_px, channels=config.channels) for path in paths]
    return torch.from_numpy(np.stack(pixels))


def _statistics(store_NHWC: Tensor, config: DataConfig) -> Normalisation:
    """The config's mean and std, or those of about a thousand images, evenly spread over the store."""
    if config.mean is not None and config.std is not None:
        return Normalisation(config.mean, config.std)
    some = store_NHWC[:: max(1, len(store_NHWC) // STATISTICS_IMAGES)].double() / 255
    std, mean = torch.std_mean(some, dim=(0, 1, 2))
    return Normalisation(
        mean=tuple(round(value, 6) for value in mean.tolist()),
        std=tuple(round(max(value, 1 / 255), 6) for value in std.tolist()),  # blank images have no spread to divide by
    )


def _stratified(labels: Tensor, fraction: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Positions that stay and positions that are held out: this fraction of every class, in ascending order."""
    kept, held = [], []
    for label in range(int(labels.max()) + 1):
        positions = (labels == label).nonzero().flatten()
        positions = positions[torch.randperm(len(positions), generator=generator)]
        count = round(fraction * len(positions))
        held.append(positions[:count])
        kept.append(positions[count:])
    return torch.cat(kept).sort().values, torch.cat(held).sort().values


def _divided(training: Split, test: Split, *, class_names: tuple[str, ...], config: DataConfig, seed: int) -> ImageData:
    labels, fraction = training.labels, config.held_out_fraction
    for name, count in zip(class_names, torch.bincount(labels, minlength=len(class_names)).tolist(), strict=True):
        held = round(fraction * count)
        if not 2 <= held < count:
            raise UserError(
                f"data.held_out_fraction: {fraction} holds out {held} of the {count} training images of class {name}, "
                "but needs at least 2 (one for the alphas, one for the scores) and must leave at least 1"
            )
        if not 1 <= (alphas := round(config.alpha_fraction * held)) < held:
            raise UserError(
                f"data.alpha_fraction: {config.alpha_fraction} gives the alphas {alphas} of the {held} held-out images"
                f" of class {name}, but they and the scores need at least 1 each"
            )
    kept, held_out = _stratified(labels, fraction, generator_for(seed, "held out"))
    parts = _stratified(labels[held_out], config.alpha_fraction, generator_for(seed, "alphas and scores"))
    # shuffled once, so that the first few hundred of them are of every class
    shuffle = generator_for(seed, "order of held out")
    score, alpha = (part[torch.randperm(len(part), generator=shuffle)] for part in parts)
    return ImageData(
        train=training.subset(kept),
        alpha=training.subset(held_out[alpha]),
        score=training.subset(held_out[score]),
        held_out=training.subset(held_out),
        all_training=training,
        test=test,
        class_names=class_names,
        in_channels=config.channels,
        resolution_px=config.resolution_px,
        normalisation=training.normalisation,
    )
