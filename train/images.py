"""Image folders on disk: which files they hold, and pixels out of one file or all of them.

Nothing is ever written beside the images.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from supernet.schema import UserError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})
SILENT_SECONDS = 2.0

Pixels = npt.NDArray[np.uint8]  # H, W, C


@dataclass(frozen=True)
class ImageFiles:
    """The images of one split: a path and a class number each, ordered by class, then by name."""

    paths: tuple[str, ...]
    labels: tuple[int, ...]
    class_names: tuple[str, ...]


def list_splits(root: Path) -> tuple[ImageFiles, ImageFiles]:
    """The training and the test images of an image folder: `train/` and `test/` (or, without one, `val/`).

    Raises `UserError` if a folder is missing or empty, or if the class folders of the two differ.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such image folder")
    if not (root / "train").is_dir():
        raise UserError(f"{root}: has no folder train/ (expected train/ and val/ or test/, one folder a class)")
    test_name = next((name for name in ("test", "val") if (root / name).is_dir()), None)
    if test_name is None:
        raise UserError(f"{root}: has neither test/ nor val/ beside train/")
    train, test = list_images(root / "train"), list_images(root / test_name)
    if train.class_names != test.class_names:
        lacking = [f"{test_name}/ lacks {name}" for name in train.class_names if name not in test.class_names]
        lacking += [f"train/ lacks {name}" for name in test.class_names if name not in train.class_names]
        more = f" and {len(lacking) - 5} more" if len(lacking) > 5 else ""
        raise UserError(f"{root}: class folders differ: {', '.join(lacking[:5])}{more}")
    return train, test


def list_images(folder: Path) -> ImageFiles:
    """The images of a folder that holds one folder a class; hidden files and other suffixes are passed over.

    Raises `UserError` for fewer than two classes and for a class without images.
    """
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    if len(names) < 2:
        raise UserError(f"{folder}: needs at least 2 class folders, has {len(names)}")
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        found = sorted(entry.path for entry in os.scandir(folder / name) if _is_image(entry))
        if not found:
            raise UserError(f"{folder / name}: no images in this class folder")
        paths += found
        labels += [label] * len(found)
    return ImageFiles(tuple(paths), tuple(labels), tuple(names))


def _is_image(entry: os.DirEntry[str]) -> bool:
    suffix = os.path.splitext(entry.name)[1].lower()
    return suffix in IMAGE_SUFFIXES and not entry.name.startswith(".") and entry.is_file()


def open_image(path: str, mode: Literal["L", "RGB"], *, at_least_px: tuple[int, int] | None) -> Image.Image:
    """Decode one file. A large JPEG is decoded at a fraction of its size that still covers `at_least_px` (h, w).

    Raises `UserError` that names the file if it cannot be read.
    """
    try:
        with Image.open(path) as file:
            if at_least_px is not None:
                file.draft(mode, (at_least_px[1], at_least_px[0]))
            image: Image.Image = file.convert(mode)
            return image
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: unreadable image ({reason})") from None


def covering_pixels(path: str, *, size_px: tuple[int, int], channels: int) -> Pixels:
    """The image scaled until it covers `size_px` (h, w) and centre-cropped to it; untouched if it has that size."""
    image = open_image(path, pil_mode(channels), at_least_px=size_px)
    size = (size_px[1], size_px[0])
    if image.size != size:
        image = ImageOps.fit(image, size, method=Image.Resampling.BICUBIC)
    return with_channels(image)


def with_channels(image: Image.Image) -> Pixels:
    """The image as an array H, W, C, also where C is 1."""
    pixels = np.asarray(image, dtype=np.uint8)
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def pil_mode(channels: int) -> Literal["L", "RGB"]:
    """PIL's name for one or three channels of 8 bits."""
    return "L" if channels == 1 else "RGB"


def all_have_size(paths: Sequence[str], size_px: tuple[int, int]) -> bool:
    """Whether the images (64 of them, evenly spread) are stored at exactly `size_px` (h, w)."""
    for path in paths[:: max(1, len(paths) // 64)]:
        try:
            with Image.open(path) as image:
                if image.size != (size_px[1], size_px[0]):
                    return False
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise UserError(f"{path}: unreadable image ({' '.join(str(error).split())})") from None
    return True


def decode_all(paths: Sequence[str], *, size_px: tuple[int, int], channels: int, what: str) -> Tensor:
    """Decode every file into one uint8 tensor N, H, W, C, in threads; a bar appears after two seconds.

    Raises `UserError` that names the first unreadable file.
    """
    pixels = np.empty((len(paths), *size_px, channels), dtype=np.uint8)

    def decode(part: range) -> int:
        for index in part:
            pixels[index] = covering_pixels(paths[index], size_px=size_px, channels=channels)
        return len(part)

    parts = [range(start, min(start + 128, len(paths))) for start in range(0, len(paths), 128)]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    task = bar.add_task(f"decoding {what}", total=len(paths))
    began = time.monotonic()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            for done in pool.map(decode, parts):
                bar.advance(task, done)
                if time.monotonic() - began > SILENT_SECONDS:
                    bar.start()
        finally:
            bar.stop()
            pool.shutdown(cancel_futures=True)
    return torch.from_numpy(pixels)
