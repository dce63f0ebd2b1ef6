"""Supernet training: who learns from which images and when, and the same bytes however it was run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from supernet.architecture import Architecture
from supernet.space import SearchSpace
from supernet.supernet import Sample, Supernet
from train.augment import AugmentConfig
from train.checkpoint import load_weights
from train.data import ImageData
from train.loop import checkpoint_path, metrics_path
from train.randomness import generator_for
from train.recipe import OptimizationConfig, computes_bf16
from train.splits import Batch, evaluation_batches
from train.supernet_training import (
    AlphaConfig,
    SupernetConfig,
    SupernetTraining,
    TemperatureConfig,
    WidthsConfig,
    train_supernet,
    weights_path,
)

CPU = torch.device("cpu")
CONFIG = SupernetConfig(
    epochs=3,
    batch_size=32,
    learning_rate=5e-3,
    alpha=AlphaConfig(learning_rate=0.1, warmup_fraction=0.34),
    widths=WidthsConfig(random=1, warmup_fraction=0.0),
)


def fresh(space: SearchSpace) -> Supernet:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Supernet(space)


def training(space: SearchSpace, data: ImageData, config: SupernetConfig = CONFIG) -> SupernetTraining:
    return SupernetTraining(fresh(space), data, config, seed=0, device=CPU)


def run(supernet: Supernet, data: ImageData, directory: Path, config: SupernetConfig = CONFIG, **options: Any) -> bytes:
    train_supernet(
        supernet, data, config, **{"seed": 0, "directory": directory, "progress": None, "device": CPU, **options}
    )
    return checkpoint_path(directory, "supernet").read_bytes()


def weights_of(supernet: Supernet) -> list[Tensor]:
    alphas = {id(alpha) for alpha in supernet.alpha_parameters()}
    return [t.detach().clone() for t in (*supernet.parameters(), *supernet.buffers()) if id(t) not in alphas]


def alphas_of(supernet: Supernet) -> list[Tensor]:
    return [alpha.detach().clone() for alpha in supernet.alpha_parameters()]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("mixing", ["soft", "hard"])
def test_alphas_move_in_alpha_steps_alone_and_weights_in_weight_steps_alone(
    space: SearchSpace, few_digits: ImageData, mixing: str
) -> None:
    steps = training(space, few_digits, CONFIG.model_copy(update={"mixing": mixing}))
    batch, net = next(steps.batches(0, 0)), steps.supernet
    weights, alphas = weights_of(net), alphas_of(net)
    steps.weight_step(batch, at=8, generator=generator_for(0))
    assert not same(weights_of(net), weights)
    assert same(alphas_of(net), alphas)
    weights = weights_of(net)
    steps.alpha_step(steps.alpha_batch(0), at=8, generator=generator_for(0))
    assert same(weights_of(net), weights)
    assert not same(alphas_of(net), alphas)
    assert all(weight.requires_grad for weight in net.parameters())


def test_alphas_learn_from_held_out_images_only_and_see_all_of_them_in_turn(
    space: SearchSpace, few_digits: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, list[Tensor]] = {"alpha": [], "weight": []}

    def watch(kind: str, step: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def watched(self: SupernetTraining, batch: Batch, **options: Any) -> Tensor:
            seen[kind].append(batch[0].flatten(1))
            return step(self, batch, **options)

        return watched

    for kind in seen:
        name = f"{kind}_step"
        monkeypatch.setattr(SupernetTraining, name, watch(kind, getattr(SupernetTraining, name)))
    config = CONFIG.model_copy(update={"batch_size": 20, "epochs": 2})
    run(fresh(space), few_digits, tmp_path, config)

    def rows(images: Tensor) -> set[tuple[float, ...]]:
        return {tuple(row) for row in images.tolist()}

    def of_part(part: Any) -> set[tuple[float, ...]]:
        return rows(torch.cat([images for images, _ in evaluation_batches(part, 64)]).flatten(1))

    assert len(seen["alpha"]) >= 4
    assert rows(torch.cat(seen["alpha"][:2])) == of_part(few_digits.alpha)  # 40 images in two batches
    assert rows(torch.cat(seen["alpha"][2:4])) == of_part(few_digits.alpha)
    assert not rows(seen["alpha"][0]) & rows(seen["alpha"][1])
    assert rows(seen["alpha"][0]) != rows(seen["alpha"][2])
    assert rows(torch.cat(seen["weight"])) <= of_part(few_digits.train)
    assert not of_part(few_digits.train) & of_part(few_digits.alpha)


def test_alphas_stay_in_the_warm_up_and_move_after_it(
    space: SearchSpace, few_digits: ImageData, tmp_path: Path
) -> None:
    for fraction, moved in ((1.0, False), (0.99, False), (0.5, True)):
        alpha = AlphaConfig(learning_rate=0.1, warmup_fraction=fraction)
        net = fresh(space)
        run(net, few_digits, tmp_path / str(fraction), CONFIG.model_copy(update={"alpha": alpha}))
        assert any(bool(value.any()) for value in alphas_of(net)) == moved


def test_an_alpha_step_comes_once_every_so_many_steps(space: SearchSpace, few_digits: ImageData) -> None:
    alpha = AlphaConfig(warmup_fraction=0.34, every=2)
    steps = training(space, few_digits, CONFIG.model_copy(update={"alpha": alpha}))
    turns = []
    for epoch in range(3):
        for step, batch in enumerate(steps.batches(epoch, 0)):
            turns.append("held_out_loss" in steps.step(batch, epoch=epoch, step=step))
    assert turns == [False, False, False, True, False, True, False, True, False]


@pytest.fixture
def choices(monkeypatch: pytest.MonkeyPatch) -> list[Architecture | Sample]:
    """What every forward pass of a supernet computed, in order."""
    seen: list[Architecture | Sample] = []
    forward = Supernet.forward

    def watched(self: Supernet, images: Tensor, choice: Architecture | Sample) -> Any:
        seen.append(choice)
        return forward(self, images, choice)

    monkeypatch.setattr(Supernet, "forward", watched)
    return seen


def test_the_sandwich_has_the_largest_the_smallest_and_random_widths(
    space: SearchSpace, few_digits: ImageData, choices: list[Architecture | Sample]
) -> None:
    widths = WidthsConfig(random=2, warmup_fraction=0.2)
    steps = training(space, few_digits, CONFIG.model_copy(update={"widths": widths}))
    batch = next(steps.batches(0, 0))
    steps.weight_step(batch, at=0, generator=generator_for(0))
    steps.weight_step(batch, at=1, generator=generator_for(0))
    whole, alone = choices
    assert whole == space.largest
    assert isinstance(alone, Sample)
    assert alone.widths == steps.supernet.largest_widths
    choices.clear()
    steps.weight_step(batch, at=5, generator=generator_for(0))
    assert choices[0] == space.largest
    samples = [choice for choice in choices[1:] if isinstance(choice, Sample)]
    assert len(samples) == 3
    assert samples[0].widths == steps.supernet.smallest_widths
    assert all(sample.chosen is not None for sample in samples)


@pytest.mark.parametrize("sampling", ["sandwich", "largest"])
def test_nothing_but_the_largest_architecture_is_trained_at_first(
    space: SearchSpace,
    few_digits: ImageData,
    choices: list[Architecture | Sample],
    sampling: Literal["sandwich", "largest"],
) -> None:
    widths = WidthsConfig(sampling=sampling, random=1, warmup_fraction=0.0, largest_first=0.5)
    steps = training(space, few_digits, CONFIG.model_copy(update={"widths": widths}))
    batch = next(steps.batches(0, 0))
    first = round(0.5 * steps.total_steps)
    for at in range(first):
        steps.weight_step(batch, at=at, generator=generator_for(0))
    assert choices == [space.largest] * first
    steps.weight_step(batch, at=first, generator=generator_for(0))
    assert any(isinstance(choice, Sample) for choice in choices[first:])


@pytest.mark.parametrize("mixing", ["soft", "hard"])
def test_the_same_seed_gives_the_same_bytes_and_a_resumed_training_too(
    space: SearchSpace, few_digits: ImageData, tmp_path: Path, mixing: str
) -> None:
    config = CONFIG.model_copy(update={"mixing": mixing, "augment": AugmentConfig(crop_padding_px=1)})
    whole = run(fresh(space), few_digits, tmp_path / "whole", config)
    assert run(fresh(space), few_digits, tmp_path / "again", config) == whole

    class _PowerCut(Exception):
        pass

    for cut in (1, 4, 8):  # inside each epoch
        net = fresh(space)

        def progress(done: int, total: int, losses: dict[str, float], cut: int = cut) -> None:
            if done == cut + 1:
                raise _PowerCut

        with pytest.raises(_PowerCut):
            run(net, few_digits, tmp_path / "cut", config, progress=progress, checkpoint_minutes=0.0)
    with torch.random.fork_rng():
        torch.manual_seed(1)  # other initial weights: everything must come from the checkpoint
        net = Supernet(space)
    assert run(net, few_digits, tmp_path / "cut", config) == whole
    for name in ("whole", "cut"):
        assert (tmp_path / name / "supernet.safetensors").read_bytes() == weights_path(tmp_path / "again").read_bytes()
    assert run(fresh(space), few_digits, tmp_path / "other", config, seed=1) != whole


def test_the_trained_supernet_is_left_in_a_file(space: SearchSpace, few_digits: ImageData, tmp_path: Path) -> None:
    trained, loaded = fresh(space), fresh(space)
    run(trained, few_digits, tmp_path)
    load_weights(loaded, weights_path(tmp_path))
    assert same(weights_of(loaded), weights_of(trained))
    assert same(alphas_of(loaded), alphas_of(trained))
    header = metrics_path(tmp_path, "supernet").read_text().splitlines()[0]
    assert header == "epoch,train_loss,narrow_loss,held_out_loss,learning_rate,temperature,alpha_entropy"


CHANGES: dict[str, dict[str, Any]] = {
    "epochs": {"epochs": 3},
    "batch_size": {"batch_size": 16},
    "learning_rate": {"learning_rate": 1e-3},
    "warmup_epochs": {"warmup_epochs": 1.0},
    "min_learning_rate": {"min_learning_rate": 1e-3},
    "optimizer": {"optimizer": "muon"},
    "weight_decay": {"weight_decay": 0.5},
    "label_smoothing": {"label_smoothing": 0.0},
    "gradient_clip_norm": {"gradient_clip_norm": 0.01},
    "precision": {"precision": "fp32" if computes_bf16(CPU) else "bf16"},  # what `auto` is not on this CPU
    "augment": {"augment": AugmentConfig(mixup_alpha=1.0, mix_probability=1.0)},
    "mixing": {"mixing": "soft"},
    "noise": {"noise": "uniform"},
    "temperature": {"temperature": TemperatureConfig(start=5.0, end=5.0)},
    "temperature.end": {"temperature": TemperatureConfig(start=1.0, end=0.2, schedule="linear")},
    "temperature.schedule": {"temperature": TemperatureConfig(start=1.0, end=0.2, schedule="exponential")},
    "alpha.learning_rate": {"alpha": AlphaConfig(learning_rate=0.2, warmup_fraction=0.34)},
    "alpha.weight_decay": {"alpha": AlphaConfig(learning_rate=0.1, warmup_fraction=0.34, weight_decay=0.5)},
    "alpha.warmup_fraction": {"alpha": AlphaConfig(learning_rate=0.1, warmup_fraction=0.6)},
    "alpha.every": {"alpha": AlphaConfig(learning_rate=0.1, warmup_fraction=0.34, every=3)},
    "widths.sampling": {"widths": WidthsConfig(sampling="largest", random=1, warmup_fraction=0.0)},
    "widths.random": {"widths": WidthsConfig(random=2, warmup_fraction=0.0)},
    "widths.warmup_fraction": {"widths": WidthsConfig(random=1, warmup_fraction=0.5)},
    "widths.largest_first": {"widths": WidthsConfig(random=1, warmup_fraction=0.0, largest_first=0.5)},
    "widths.teacher": {"widths": WidthsConfig(random=1, warmup_fraction=0.0, teacher="sample")},
    "distill_weight": {"distill_weight": 0.0},
}


@pytest.fixture(scope="module")
def outcomes(space: SearchSpace, few_digits: ImageData, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The trained weights of the base config and of every change."""
    weights = {}
    for name, change in {"": {}, **CHANGES}.items():
        directory = tmp_path_factory.mktemp("run")
        run(fresh(space), few_digits, directory, CONFIG.model_copy(update={"epochs": 2, **change}))
        weights[name] = weights_path(directory).read_bytes()
    return weights


@pytest.mark.parametrize("name", CHANGES)
def test_every_field_changes_the_training(outcomes: dict[str, bytes], name: str) -> None:
    base = "temperature.end" if name == "temperature.schedule" else ""
    assert outcomes[name] != outcomes[base]


def test_no_field_is_left_out() -> None:
    fields = set(SupernetConfig.model_fields) - set(CHANGES)
    # the layout changes speed alone; the nested ones are changed field by field
    assert fields == {"channels_last", "alpha", "widths"}
    assert set(OptimizationConfig.model_fields) <= set(SupernetConfig.model_fields)


def test_channels_last_is_the_layout_of_the_weights(space: SearchSpace, few_digits: ImageData) -> None:
    for wanted in (True, False):
        net = training(space, few_digits, CONFIG.model_copy(update={"channels_last": wanted})).supernet
        kernels = [p for p in net.parameters() if p.ndim == 4 and p.shape[1] > 1 and p.shape[2] > 1]
        assert all(kernel.is_contiguous(memory_format=torch.channels_last) == wanted for kernel in kernels)


@pytest.mark.parametrize(("schedule", "middle"), [("linear", 2.5), ("exponential", 2.0)], ids=["linear", "exponential"])
def test_temperature_goes_from_start_to_end(
    space: SearchSpace, few_digits: ImageData, schedule: Any, middle: float
) -> None:
    temperature = TemperatureConfig(start=4.0, end=1.0, schedule=schedule)
    assert temperature.at(0.5) == pytest.approx(middle)
    steps = training(space, few_digits, CONFIG.model_copy(update={"temperature": temperature}))
    assert [steps.temperature(at) for at in (0, 3, 8)] == pytest.approx([4.0, 4.0, 1.0])


def test_a_constant_temperature_cannot_change() -> None:
    with pytest.raises(ValidationError, match="constant schedule cannot go from 4 to 1"):
        TemperatureConfig(start=4.0, end=1.0)
