"""What every test runs with."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Nets this small are slower on two threads, and much slower where others use the cores too; a run sets its own."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> Iterator[None]:
    """A shell starts background jobs with Ctrl-C ignored, and the tests that interrupt would wait in vain."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def image_size_px() -> tuple[int, int]:
    """Height and width of the stored images of `image_folder`."""
    return 8, 8


@pytest.fixture
def image_folder(tmp_path: Path, image_size_px: tuple[int, int]) -> Path:
    """An image folder of two classes, 10 training and 4 test images each, noise around a brightness."""
    root = tmp_path / "images"
    generator = torch.Generator().manual_seed(0)
    for split, count in (("train", 10), ("val", 4)):
        for label, name in enumerate(("cat", "dog")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = torch.randint(60 + 80 * label, 120 + 80 * label, (*image_size_px, 3), generator=generator)
                Image.fromarray(pixels.to(torch.uint8).numpy()).save(folder / f"{number:02}.png")
    return root
