"""Augmentation of whole batches, as tensor operations and never image by image in Python.

# B batch, C channels, H W pixels, K classes
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from pydantic import Field, model_validator
from timm.data.auto_augment import RandAugment, posterize, rand_augment_transform
from torch import Tensor

from supernet.schema import Record
from train.randomness import beta_draw

Probability = Annotated[float, Field(ge=0, le=1)]
NotNegative = Annotated[float, Field(ge=0)]


class AugmentConfig(Record):
    """How training images are varied; with every default, they are not.

    `min_crop_scale` below 1 draws random crops of that share of the area or more (aspect 3:4 to 4:3) and scales them
    to the resolution, which suits photographs; `crop_padding_px` shifts by reflected padding, which suits small images.
    `mix_probability` is the share of batches that Mixup or CutMix touches. `randaugment` is timm's string, such as
    "rand-m9-mstd0.5-inc1"; it works image by image, so only in worker processes (`data.in_memory: false`).
    """

    crop_padding_px: Annotated[int, Field(ge=0)] = 0
    min_crop_scale: Annotated[float, Field(gt=0, le=1)] = 1.0
    flip: bool = False
    erase_probability: Probability = 0.0
    mixup_alpha: NotNegative = 0.0
    cutmix_alpha: NotNegative = 0.0
    mix_probability: Probability = 0.0
    randaugment: str | None = None

    @model_validator(mode="after")
    def _agrees(self) -> AugmentConfig:
        if self.crop_padding_px and self.min_crop_scale < 1:
            raise ValueError("crop_padding_px and min_crop_scale below 1 are two ways to crop: choose one")
        if bool(self.mix_probability) != bool(self.mixup_alpha or self.cutmix_alpha):
            raise ValueError("mix_probability needs mixup_alpha or cutmix_alpha above 0, and the other way round")
        if self.randaugment is not None:
            rand_augment(self.randaugment)
        return self


def rand_augment(description: str) -> RandAugment:
    """The image transform of timm's string. Raises `ValueError` for a string that timm does not understand."""
    try:
        transform: RandAugment = rand_augment_transform(description, {})
    except (AssertionError, ValueError, KeyError):
        raise ValueError(
            f"randaugment: {description!r} is not a RandAugment string of timm's, such as rand-m9-mstd0.5-inc1"
        ) from None
    for operation in transform.ops:
        if operation.aug_fn is posterize:
            operation.aug_fn = _posterized
    return transform


def _posterized(image: Image.Image, bits_to_keep: int, **_: object) -> Image.Image:
    """At full magnitude timm asks for 0 bits, which Pillow refuses since 12.0: keep one."""
    return ImageOps.posterize(image, max(1, bits_to_keep))


def shifted_windows(
    count: int,
    *,
    stored_px: tuple[int, int],
    out_px: tuple[int, int],
    padding_px: int,
    flip: bool,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Rows (B, h) and columns (B, w) of random windows of `out_px`, which may reach `padding_px` over the edge.

    What lies over the edge is mirrored, as reflection padding does; half of the windows are flipped if `flip`.
    """
    rows_Bh, columns_Bw = (
        torch.randint(-padding_px, stored - out + padding_px + 1, (count, 1), generator=generator) + torch.arange(out)
        for stored, out in zip(stored_px, out_px, strict=True)
    )
    if flip:
        flipped_B1 = torch.rand((count, 1), generator=generator) < 0.5
        columns_Bw = torch.where(flipped_B1, columns_Bw.flip(1), columns_Bw)
    return _mirrored(rows_Bh, stored_px[0]), _mirrored(columns_Bw, stored_px[1])


def _mirrored(position: Tensor, size: int) -> Tensor:
    """Positions outside 0..size-1 reflected into it, without repeating the edge."""
    if size == 1:
        return torch.zeros_like(position)
    folded = position.remainder(2 * size - 2)
    return torch.minimum(folded, 2 * size - 2 - folded)


def take_windows(images_NHWC: Tensor, chosen_B: Tensor, rows_Bh: Tensor, columns_Bw: Tensor) -> Tensor:
    """Cut one window out of each chosen image in a single gather: (B, h, w, C), same dtype and device as the images."""
    device = images_NHWC.device
    chosen, rows, columns = (index.to(device, non_blocking=True) for index in (chosen_B, rows_Bh, columns_Bw))
    return images_NHWC[chosen[:, None, None], rows[:, :, None], columns[:, None, :]]


def centred(images_BHWC: Tensor, out_px: tuple[int, int]) -> Tensor:
    """The centre `out_px` (h, w) of every image, as a view."""
    top, left = ((stored - out) // 2 for stored, out in zip(images_BHWC.shape[1:3], out_px, strict=True))
    return images_BHWC[:, top : top + out_px[0], left : left + out_px[1]]


def random_boxes(
    count: int, *, size_px: tuple[int, int], min_scale: float, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Left, top, width and height in pixels (each of shape B) of random crops, as in RandomResizedCrop.

    The share of the area is uniform in min_scale..1, the logarithm of the aspect in 3:4..4:3; a side that would not
    fit is cut to the image's (torchvision draws again instead).
    """
    height, width = size_px
    uniform_4B = torch.rand((4, count), generator=generator)
    area_B = (min_scale + (1 - min_scale) * uniform_4B[0]) * height * width
    aspect_B = torch.exp((2 * uniform_4B[1] - 1) * math.log(4 / 3))
    width_B = (area_B * aspect_B).sqrt().clamp(1, width)
    height_B = (area_B / aspect_B).sqrt().clamp(1, height)
    return uniform_4B[2] * (width - width_B), uniform_4B[3] * (height - height_B), width_B, height_B


def random_resized_crop(
    images_BCHW: Tensor, *, out_px: tuple[int, int], min_scale: float, flip: bool, generator: torch.Generator
) -> Tensor:
    """Scale one random crop of each float image to `out_px`, bilinearly; half of them are flipped if `flip`."""
    count, channels, height, width = images_BCHW.shape
    left_B, top_B, width_B, height_B = random_boxes(
        count, size_px=(height, width), min_scale=min_scale, generator=generator
    )
    theta_B23 = torch.zeros(count, 2, 3)
    theta_B23[:, 0, 0] = width_B / width
    theta_B23[:, 0, 2] = (2 * left_B + width_B) / width - 1
    theta_B23[:, 1, 1] = height_B / height
    theta_B23[:, 1, 2] = (2 * top_B + height_B) / height - 1
    if flip:
        theta_B23[:, 0, 0] *= torch.where(torch.rand(count, generator=generator) < 0.5, -1.0, 1.0)
    theta_B23 = theta_B23.to(images_BCHW.device, non_blocking=True)
    grid_Bhw2 = F.affine_grid(theta_B23, [count, channels, *out_px], align_corners=False)
    return F.grid_sample(images_BCHW, grid_Bhw2, mode="bilinear", padding_mode="border", align_corners=False)


def normalised(images_BCHW: Tensor, *, mean_C: Tensor, std_C: Tensor) -> Tensor:
    """Pixels 0..255 (uint8 or float) as channels_last floats, minus the mean, over the standard deviation (of 0..1)."""
    floats = images_BCHW.to(torch.float32, copy=True, memory_format=torch.channels_last)
    return floats.sub_((255 * mean_C)[:, None, None]).div_((255 * std_C)[:, None, None])


def erased(images_BCHW: Tensor, *, probability: float, generator: torch.Generator) -> Tensor:
    """Fill a rectangle (2 to 33 % of the area, aspect 1:3 to 3:1) with 0, the mean, in this share of the images.

    In place, which also keeps the memory layout.
    """
    count, _, height, width = images_BCHW.shape
    uniform_5B = torch.rand((5, count), generator=generator)
    area_B = (0.02 + 0.31 * uniform_5B[0]) * height * width
    aspect_B = torch.exp((2 * uniform_5B[1] - 1) * math.log(3))
    hit_B = uniform_5B[4] < probability
    inside = []
    for size, side_B, place_B in (
        (height, (area_B * aspect_B).sqrt().clamp(1, height), uniform_5B[2]),
        (width, (area_B / aspect_B).sqrt().clamp(1, width), uniform_5B[3]),
    ):
        first_B1 = (place_B * (size - side_B))[:, None]
        position = torch.arange(size)
        inside.append((position >= first_B1) & (position < first_B1 + side_B[:, None]))
    mask_B1HW = (inside[0][:, :, None] & inside[1][:, None, :] & hit_B[:, None, None])[:, None]
    return images_BCHW.masked_fill_(mask_B1HW.to(images_BCHW.device, non_blocking=True), 0.0)


def mixed(
    images_BCHW: Tensor, labels_B: Tensor, *, num_classes: int, config: AugmentConfig, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Mixup or CutMix of a batch with itself in reverse order, one draw a batch: images, and targets (B, K).

    Own code because `timm.data.Mixup` draws from numpy's global state, which a resumed run could not restore.
    """
    targets_BK = F.one_hot(labels_B, num_classes).float()
    if config.mix_probability == 0 or float(torch.rand((), generator=generator)) >= config.mix_probability:
        return images_BCHW, targets_BK
    both = config.mixup_alpha > 0 and config.cutmix_alpha > 0
    use_cutmix = float(torch.rand((), generator=generator)) < 0.5 if both else config.cutmix_alpha > 0
    kept = beta_draw(config.cutmix_alpha if use_cutmix else config.mixup_alpha, generator)
    if use_cutmix:
        height, width = images_BCHW.shape[2:]
        sides = [round(size * math.sqrt(1 - kept)) for size in (height, width)]
        top, left = (
            int(torch.randint(size - side + 1, (), generator=generator))
            for size, side in zip((height, width), sides, strict=True)
        )
        box = (..., slice(top, top + sides[0]), slice(left, left + sides[1]))
        partner = images_BCHW.flip(0)[box]
        images_BCHW = images_BCHW.clone()
        images_BCHW[box] = partner
        kept = 1 - sides[0] * sides[1] / (height * width)
    else:
        images_BCHW = torch.lerp(images_BCHW.flip(0), images_BCHW, kept)
    return images_BCHW, torch.lerp(targets_BK.flip(0), targets_BK, kept)
