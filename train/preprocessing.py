"""From an image file to what a model expects."""

# B batch, C channels, H W pixels

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from supernet.schema import Record
from train.images import all_have_size, covering_pixels

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Preprocessing(Record):
    """What a delivered model expects of an image, and what its outputs are: `preprocessing.json`.

    Scale the image to cover resolution / `crop_fraction`, crop the centre, divide by 255, subtract `mean`, divide by
    `std`, one value a channel. Images stored at the resolution are left as they are.
    """

    schema_version: Literal[1] = 1
    resolution_px: tuple[int, int]
    channels: int
    crop_fraction: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...]

    def image(self, path: str) -> Tensor:
        """A file as a batch of one, 1,C,H,W. Raises `UserError` that names the file if it cannot be read."""
        height, width = self.resolution_px
        stored_px = round(height / self.crop_fraction), round(width / self.crop_fraction)
        if all_have_size([path], self.resolution_px):
            stored_px = self.resolution_px
        pixels = covering_pixels(path, size_px=stored_px, channels=self.channels)
        top, left = (stored_px[0] - height) // 2, (stored_px[1] - width) // 2
        cropped = torch.from_numpy(pixels[top : top + height, left : left + width].copy()).permute(2, 0, 1)
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        return ((cropped / 255 - mean) / std)[None]
