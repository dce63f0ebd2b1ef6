"""Data sets: what is held out from what, and one clear line for everything that can be wrong with a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from supernet.schema import UserError, parse
from train.augment import AugmentConfig
from train.data import DataConfig, ImageData, open_data, synthetic_data
from train.splits import FolderSplit, InMemorySplit, batches, evaluation_batches

# Python 3.12 warns of forking with threads; the workers decode images and touch none of them
FORKS = pytest.mark.filterwarnings("ignore:This process .*fork:DeprecationWarning")


def folder_config(root: Path, **changes: Any) -> DataConfig:
    fields = {"path": str(root), "resolution_px": (12, 12), "held_out_fraction": 0.4, "workers": 0, **changes}
    return DataConfig(**fields)


def first_images(data: ImageData) -> torch.Tensor:
    return next(evaluation_batches(data.train, 4))[0]


def test_the_parts_of_the_training_images_are_disjoint_and_cover_them(digits: ImageData) -> None:
    train, alpha, score = (set(part.indices.tolist()) for part in (digits.train, digits.alpha, digits.score))
    assert not train & alpha
    assert not train & score
    assert not alpha & score
    assert alpha | score == set(digits.held_out.indices.tolist())
    assert train | alpha | score == set(digits.all_training.indices.tolist())
    assert not set(digits.test.indices.tolist()) & set(digits.all_training.indices.tolist())
    assert len(digits.all_training) + len(digits.test) == 1797


def test_every_class_is_held_out_in_the_same_share(digits: ImageData) -> None:
    held, everything = (torch.bincount(part.labels).float() for part in (digits.held_out, digits.all_training))
    assert (held / everything - 0.25).abs().max() < 0.01
    assert (torch.bincount(digits.alpha.labels) - torch.bincount(digits.score.labels)).abs().max() <= 1


def test_fewer_images_for_the_alphas_are_some_of_the_same_and_leave_more_for_the_scores(digits: ImageData) -> None:
    config = DataConfig(path="digits", resolution_px=(8, 8), channels=1, held_out_fraction=0.25, alpha_fraction=0.2)
    fewer = open_data(config, seed=0)
    assert len(fewer.alpha) == pytest.approx(0.2 * len(digits.held_out), abs=5)
    assert set(fewer.alpha.indices.tolist()) < set(digits.alpha.indices.tolist())
    assert set(fewer.score.indices.tolist()) > set(digits.score.indices.tolist())
    assert torch.equal(fewer.train.indices, digits.train.indices)


def test_alphas_and_scores_need_an_image_of_every_class_each(image_folder: Path) -> None:
    with pytest.raises(UserError, match=r"data.alpha_fraction: 0.01 gives the alphas 0 of the \d+ held-out images of"):
        open_data(folder_config(image_folder, alpha_fraction=0.01), seed=0)


def test_the_first_held_out_images_are_of_every_class(image_folder: Path) -> None:
    data = open_data(folder_config(image_folder, held_out_fraction=0.8), seed=0)
    for part in (data.alpha, data.score):
        assert 0 < int(part.labels[:5].sum()) < 5


def test_the_seed_changes_what_is_held_out_but_never_the_test_images(digits: ImageData) -> None:
    config = DataConfig(path="digits", resolution_px=(8, 8), channels=1, held_out_fraction=0.25)
    same, other = open_data(config, seed=0), open_data(config, seed=1)
    assert torch.equal(same.alpha.indices, digits.alpha.indices)
    assert not torch.equal(other.alpha.indices, digits.alpha.indices)
    assert torch.equal(other.test.indices, digits.test.indices)


def test_digits_are_the_pixels_that_scikit_learn_carries(digits: ImageData) -> None:
    assert digits.num_classes == 10
    assert digits.test.store_NHWC.shape == (1797, 8, 8, 1)
    assert digits.test.store_NHWC[0, 0].flatten().tolist() == [0, 0, 80, 207, 143, 16, 0, 0]  # 0 0 5 13 9 1 0 0


def test_computed_normalisation_gives_zero_mean_and_unit_spread(digits: ImageData) -> None:
    images = torch.cat([batch for batch, _ in evaluation_batches(digits.all_training, 512)])
    assert abs(float(images.mean())) < 0.02
    assert abs(float(images.std()) - 1) < 0.02


def test_a_folder_is_read_with_its_classes_and_splits(image_folder: Path) -> None:
    (image_folder / "train" / "cat" / ".hidden.png").write_bytes(b"")
    (image_folder / "train" / "cat" / "notes.txt").write_text("no image")
    data = open_data(folder_config(image_folder), seed=0)
    assert data.class_names == ("cat", "dog")
    assert (len(data.train), len(data.alpha), len(data.score), len(data.test)) == (12, 4, 4, 8)
    assert data.test.labels.tolist() == [0] * 4 + [1] * 4


def test_test_is_preferred_to_val(image_folder: Path) -> None:
    for name in ("cat", "dog"):
        (image_folder / "test" / name).mkdir(parents=True)
        Image.new("RGB", (20, 16)).save(image_folder / "test" / name / "only.jpg")
    assert len(open_data(folder_config(image_folder), seed=0).test) == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"resolution_px": (8, 12)},
        {"channels": 1},
        {"held_out_fraction": 0.2},
        {"alpha_fraction": 0.3},
        {"mean": (0.1, 0.2, 0.3), "std": (0.2, 0.2, 0.2)},
        {"crop_fraction": 0.6},
        {"in_memory": False},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_every_field_changes_the_data(image_folder: Path, changes: dict[str, Any]) -> None:
    base = open_data(folder_config(image_folder), seed=0)
    changed = open_data(folder_config(image_folder, **changes), seed=0)
    if changes == {"in_memory": False}:
        assert isinstance(base.train, InMemorySplit)
        assert isinstance(changed.train, FolderSplit)
    elif "alpha_fraction" in changes:
        assert len(changed.alpha) < len(base.alpha)
    else:
        images, others = first_images(base), first_images(changed)
        assert len(base.train) != len(changed.train) or images.shape != others.shape or not images.equal(others)


def test_images_of_the_resolution_are_not_touched(image_folder: Path) -> None:
    config = folder_config(image_folder, resolution_px=(16, 20), mean=(0.0,) * 3, std=(1.0,) * 3)
    images, _ = next(evaluation_batches(open_data(config, seed=0).test, 1))
    with Image.open(image_folder / "val" / "cat" / "00.png") as file:
        stored = torch.tensor(list(file.convert("RGB").tobytes())).view(16, 20, 3)
    assert torch.equal((images[0].permute(1, 2, 0) * 255).round().long(), stored)


def test_streamed_images_equal_decoded_ones(image_folder: Path) -> None:
    decoded, streamed = (open_data(folder_config(image_folder, in_memory=kind), seed=0) for kind in (True, False))
    assert decoded.normalisation == streamed.normalisation
    for part in ("train", "score", "test"):
        for one, other in zip(
            evaluation_batches(getattr(decoded, part), 3), evaluation_batches(getattr(streamed, part), 3), strict=True
        ):
            assert torch.equal(one[0], other[0])
            assert torch.equal(one[1], other[1])


@FORKS
@pytest.mark.parametrize("augment", [AugmentConfig(), AugmentConfig(min_crop_scale=0.3, randaugment="rand-m9-mstd0.5")])
def test_the_number_of_workers_changes_no_byte(image_folder: Path, augment: AugmentConfig) -> None:
    def images(workers: int) -> torch.Tensor:
        data = open_data(folder_config(image_folder, in_memory=False, workers=workers), seed=0)
        return torch.cat([batch for batch, _ in batches(data.train, 4, epoch=1, seed=3, augment=augment)])

    assert torch.equal(images(0), images(2))


@FORKS
def test_an_unreadable_image_is_named_wherever_it_is_decoded(image_folder: Path) -> None:
    broken = image_folder / "train" / "dog" / "03.png"
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(UserError, match=r"dog/03\.png: unreadable image"):
        open_data(folder_config(image_folder, in_memory=True), seed=0)
    config = folder_config(image_folder, in_memory=False, workers=1, mean=(0.5,) * 3, std=(0.5,) * 3)
    streamed = open_data(config, seed=0)
    with pytest.raises(UserError, match=r"dog/03\.png: unreadable image \([^\n]*\)$"):
        list(evaluation_batches(streamed.all_training, 4))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: root.rename(root.with_name("elsewhere")), "no such image folder"),
        (lambda root: (root / "train").rename(root / "training"), "has no folder train/"),
        (lambda root: (root / "val").rename(root / "validation"), "neither test/ nor val/"),
        (lambda root: (root / "val" / "dog").rename(root / "val" / "wolf"), "val/ lacks dog, train/ lacks wolf"),
        (lambda root: [path.unlink() for path in (root / "train" / "dog").iterdir()], "train/dog: no images"),
        (lambda root: (root / "train" / "dog").rename(root / "dog"), "at least 2 class folders, has 1"),
        (lambda root: [(root / "train" / "dog" / f"{n:02}.png").unlink() for n in range(7)], "of class dog"),
    ],
)
def test_a_folder_that_cannot_be_used_is_refused_with_its_reason(image_folder: Path, spoil: Any, message: str) -> None:
    spoil(image_folder)
    with pytest.raises(UserError, match=message) as caught:
        open_data(folder_config(image_folder), seed=0)
    assert "\n" not in str(caught.value)


def test_the_number_of_classes_must_agree_with_the_folders(image_folder: Path) -> None:
    with pytest.raises(UserError, match="num_classes: 3, but"):
        open_data(folder_config(image_folder, num_classes=3), seed=0)


def test_randaugment_is_refused_for_decoded_images(digits: ImageData) -> None:
    with pytest.raises(UserError, match="worker processes only"):
        digits.check(AugmentConfig(randaugment="rand-m9"))


def test_a_side_in_yaml_stands_for_a_square_and_wrong_statistics_are_refused() -> None:
    assert parse(DataConfig, {"path": "digits", "resolution_px": 32}, source="x").resolution_px == (32, 32)
    with pytest.raises(UserError, match=r"mean needs one number a channel \(1\)"):
        parse(DataConfig, {"path": "a", "resolution_px": 8, "channels": 1, "mean": [0, 0, 0]}, source="x")
    with pytest.raises(UserError, match="together or not at all"):
        parse(DataConfig, {"path": "a", "resolution_px": 8, "std": [1, 1, 1]}, source="x")


def test_synthetic_data_have_the_shape_of_the_real() -> None:
    config = DataConfig(path="nowhere", resolution_px=(8, 12), held_out_fraction=0.5)
    data = synthetic_data(config, num_classes=7, images_per_class=4, seed=0)
    images, _ = next(batches(data.train, 4, epoch=0, seed=0, augment=AugmentConfig(flip=True)))
    assert data.num_classes == 7
    assert images.shape == (4, 3, 8, 12)
