"""Retraining: it learns, it resumes to the same bytes, and it never sees what it must not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from supernet.metaformer import MetaFormer
from supernet.space import SearchSpace
from supernet.supernet import Supernet
from train.augment import AugmentConfig
from train.checkpoint import load_weights, save_weights
from train.data import ImageData
from train.distillation import DistillationConfig
from train.evaluation import accuracy
from train.loop import checkpoint_path, metrics_path
from train.recipe import RecipeConfig, computes_bf16
from train.retraining import RetrainConfig, Retraining, initial_model, retrain, weights_path
from train.splits import batches

CPU = torch.device("cpu")
CONFIG = RetrainConfig(epochs=3, batch_size=32, learning_rate=5e-3, ema_decay=0.9, drop_path_rate=0.2)


def run(
    space: SearchSpace, data: ImageData, directory: Path, config: RetrainConfig = CONFIG, **options: Any
) -> MetaFormer:
    model = initial_model(space.largest, config, supernet=None, seed=0)
    settings = {"digest": "", "seed": 0, "directory": directory, "progress": None, "device": CPU}
    return retrain(model, data, config, **{**settings, **options})


def test_a_small_net_learns_the_digits(space: SearchSpace, digits: ImageData, tmp_path: Path) -> None:
    config = RetrainConfig(
        epochs=5, batch_size=32, learning_rate=1e-2, warmup_epochs=1, ema_decay=0.9, use_held_out=False
    )
    model = run(space, digits, tmp_path, config)
    assert not model.training
    assert accuracy(model, digits.score, batch_size=256, precision="fp32").percent > 85
    last = metrics_path(tmp_path, "retrain").read_text().splitlines()[-1].split(",")
    assert float(last[3]) > 85  # the held-out accuracy that is logged


def test_the_same_seed_gives_the_same_bytes_and_a_resumed_training_too(
    space: SearchSpace, few_digits: ImageData, tmp_path: Path
) -> None:
    augment = AugmentConfig(crop_padding_px=1, erase_probability=0.5, cutmix_alpha=1.0, mix_probability=0.5)
    config = CONFIG.model_copy(update={"augment": augment})
    for name in ("whole", "again"):
        run(space, few_digits, tmp_path / name, config)

    class _PowerCut(Exception):
        pass

    for cut in (1, 3, 6, 11):  # of 12 steps, the average and drop path on

        def progress(done: int, total: int, losses: dict[str, float], cut: int = cut) -> None:
            if done == cut + 1:
                raise _PowerCut

        with pytest.raises(_PowerCut):
            run(space, few_digits, tmp_path / "cut", config, progress=progress, checkpoint_minutes=0.0)
    run(space, few_digits, tmp_path / "cut", config)
    for path in (checkpoint_path, lambda directory, _: weights_path(directory)):
        whole = path(tmp_path / "whole", "retrain").read_bytes()
        assert path(tmp_path / "again", "retrain").read_bytes() == whole
        assert path(tmp_path / "cut", "retrain").read_bytes() == whole


def test_the_returned_model_is_the_average_and_is_left_in_a_file(
    space: SearchSpace, few_digits: ImageData, tmp_path: Path
) -> None:
    averaged = run(space, few_digits, tmp_path / "averaged")
    plain = run(space, few_digits, tmp_path / "plain", CONFIG.model_copy(update={"ema_decay": None}))
    assert not torch.equal(next(averaged.parameters()), next(plain.parameters()))
    loaded = MetaFormer(space.largest).eval()
    load_weights(loaded, weights_path(tmp_path / "averaged"))
    images = torch.rand(2, 1, 8, 8)
    assert torch.allclose(loaded(images), averaged(images), atol=1e-5)


@pytest.mark.parametrize("use_held_out", [True, False])
def test_test_images_are_never_shown_and_held_out_ones_only_on_request(
    space: SearchSpace, few_digits: ImageData, use_held_out: bool
) -> None:
    poisoned = few_digits.test.subset(torch.arange(0))
    data = replace(few_digits, test=poisoned)
    config = CONFIG.model_copy(update={"use_held_out": use_held_out})
    model = initial_model(space.largest, config, supernet=None, seed=0)
    steps = Retraining(model, data, config, digest="", seed=0, device=CPU)
    shown = torch.cat([images for images, _ in steps.batches(0, 0)]).flatten(1).tolist()
    part = few_digits.all_training if use_held_out else few_digits.train
    expected = torch.cat([i for i, _ in batches(part, 32, epoch=5, seed=1, augment=AugmentConfig())]).flatten(1)
    assert sorted(shown) == sorted(expected.tolist())


def test_inherited_weights_are_the_supernets_and_scratch_is_a_function_of_the_seed(space: SearchSpace) -> None:
    supernet = Supernet(space)
    config = CONFIG.model_copy(update={"start": "inherited"})
    inherited = initial_model(space.largest, config, supernet=supernet, seed=0)
    assert any(torch.equal(next(inherited.parameters()), weight) for weight in supernet.parameters())
    first, same, other = (
        next(initial_model(space.largest, CONFIG, supernet=supernet, seed=seed).parameters()) for seed in (0, 0, 1)
    )
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    with pytest.raises(ValueError, match="needs the supernet"):
        initial_model(space.largest, config, supernet=None, seed=0)


def test_a_teacher_changes_what_is_learnt(space: SearchSpace, few_digits: ImageData, tmp_path: Path) -> None:
    teacher = initial_model(space.smallest, CONFIG, supernet=None, seed=9)
    space.smallest.save(tmp_path / "teacher.yaml")
    save_weights(teacher, tmp_path / "teacher.safetensors")
    distillation = DistillationConfig(
        teacher=str(tmp_path / "teacher.yaml"), weights=str(tmp_path / "teacher.safetensors")
    )
    run(space, few_digits, tmp_path / "plain")
    run(space, few_digits, tmp_path / "taught", CONFIG.model_copy(update={"distillation": distillation}))
    assert weights_path(tmp_path / "plain").read_bytes() != weights_path(tmp_path / "taught").read_bytes()


RECIPE_CHANGES: dict[str, Any] = {
    "epochs": 2,
    "batch_size": 16,
    "learning_rate": 1e-3,
    "warmup_epochs": 1.0,
    "min_learning_rate": 1e-3,
    "optimizer": "muon",
    "weight_decay": 0.5,
    "label_smoothing": 0.0,
    "gradient_clip_norm": 0.01,
    "ema_decay": 0.5,
    "drop_path_rate": 0.0,
    "precision": "fp32" if computes_bf16(CPU) else "bf16",  # what `auto` is not on this CPU
}


def test_every_field_of_the_recipe_changes_the_weights(
    space: SearchSpace, few_digits: ImageData, tmp_path: Path
) -> None:
    run(space, few_digits, tmp_path / "base")
    base = weights_path(tmp_path / "base").read_bytes()
    assert set(RecipeConfig.model_fields) - set(RECIPE_CHANGES) == {"channels_last"}  # which changes speed alone
    for name, value in RECIPE_CHANGES.items():
        run(space, few_digits, tmp_path / name, CONFIG.model_copy(update={name: value}))
        assert weights_path(tmp_path / name).read_bytes() != base, name


def test_a_training_of_another_digest_does_not_go_on_from_this_ones_checkpoint(
    space: SearchSpace, few_digits: ImageData
) -> None:
    model = initial_model(space.smallest, CONFIG, supernet=None, seed=0)
    one, same, other = (
        Retraining(model, few_digits, CONFIG, digest=digest, seed=0, device=CPU).fingerprint
        for digest in ("one", "one", "other")
    )
    assert one == same != other
