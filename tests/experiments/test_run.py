"""What a run takes from its config: device, threads, images, recipes and measurements."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from experiments import exporting
from experiments import run as running
from experiments.artifacts import RunFolder
from experiments.console import Screen
from experiments.experiment import load_experiment
from experiments.exporting import calibration_split
from experiments.models import Job
from experiments.pipeline import run_stage
from experiments.run import Run, chosen_device
from experiments.solving import EVOLUTION, Solver
from experiments.stages import stage_named
from search.correction import Correction
from search.table_building import build_table
from search.trajectory import Trajectory
from supernet import cost
from supernet.onnx_export import onnx_parity
from train import streaming
from train.augment import AugmentConfig
from train.data import DataConfig, open_data
from train.retraining import RetrainConfig, Retraining, initial_model
from train.splits import FolderSplit, batches
from train.supernet_training import SupernetConfig

Slimformer = Callable[..., Any]


def run_of(folder: Path, *overrides: str) -> Run:
    return Run(load_experiment(folder / "config.json", overrides=overrides), RunFolder(folder), Screen(), command="")


@pytest.mark.parametrize(
    ("override", "refit", "score", "batch"),
    [
        ("search.margin=0.02", 128, 64, 64),
        ("search.refit_images=64", 64, 64, 64),
        ("search.score_images=40", 128, 40, 64),
        ("search.score_images=null", 128, None, 64),
        ("evaluate.batch_size=32", 128, 64, 32),
    ],
)
def test_the_scorer_of_a_run_has_the_images_that_its_config_says(
    copied: Path, override: str, refit: int, score: int | None, batch: int
) -> None:
    run = run_of(copied, override)
    scorer = Solver(run).scorer
    assert sum(len(labels) for _, labels in scorer.refit) == refit
    assert sum(len(labels) for _, labels in scorer.images) == (score or len(run.data.score))
    assert len(scorer.refit[0][1]) == batch


def test_a_net_that_leaves_room_is_given_up_for_a_slower_one(copied: Path) -> None:
    measured = {}
    for slack in (1.0, 0.03):
        run = run_of(copied, f"search.slack={slack}")
        budget_ms = 0.8 * run.table.latency_ms(run.space.largest)
        there = run.table.correction
        run.table = run.table.corrected(Correction(scale=1.3 * there.scale, scales=there.scales))  # all is too slow
        delivery = Solver(run).deliver(Job(method="random", budget_ms=budget_ms))
        measured[slack] = delivery.measured_ms
        assert delivery.measured_ms <= 0.98 * budget_ms
    assert measured[1.0] < 0.9 * measured[0.03]


def test_the_frontier_is_searched_as_its_config_says(copied: Path) -> None:
    def slimmed(*overrides: str) -> Trajectory:
        run = run_of(copied, *(f"search.frontier.{override}" for override in overrides))
        solver = Solver(run)
        solver.slimmed(0.5 * run.table.latency_ms(run.space.largest), method="frontier")
        return solver.trajectories["frontier"]

    def gains(trajectory: Trajectory) -> list[float]:
        return [one.mes_gain for step in trajectory.steps for one in step.alternatives if one.mes_gain is not None]

    by_ms, by_mes = slimmed(), slimmed("gain=mes")
    assert gains(by_ms) == []
    assert len(gains(by_mes)) == sum(len(step.alternatives) for step in by_mes.steps) > 5
    assert slimmed("gain=mes", "mes.size_unit_millions=12.0").steps[1].alternatives[0].mes_gain == pytest.approx(
        2 * gains(by_mes)[0]
    )
    assert slimmed("gain=mes", "mes.latency_unit_ms=3.0").steps[1].alternatives[0].mes_gain == pytest.approx(
        3 * gains(by_mes)[0]
    )
    assert gains(slimmed("gain=mes", "mes.size_exponent=0.0")) != gains(by_mes)
    assert gains(slimmed("gain=mes", "mes.latency_exponent=2.0")) != gains(by_mes)


def test_evolution_searches_as_its_config_says(copied: Path, tmp_path: Path) -> None:
    def evolved(*overrides: str) -> list[tuple[str, float]]:
        run = run_of(copied, *(f"search.evolution.{override}" for override in overrides))
        for path in copied.glob(f"{EVOLUTION}*"):
            path.unlink()
        return [(found.architecture.digest, found.percent) for found in Solver(run).evolved.scored]

    first = evolved("trials=12", "population=6")
    assert len(first) == 12
    assert (copied / EVOLUTION).is_file()
    assert evolved("trials=9", "population=6") == first[:9]
    assert evolved("trials=12", "population=3") != first
    other = evolved("trials=12", "population=6", "sampler=tpe")
    assert other[:6] == first[:6]
    assert other != first
    shared = tmp_path / "shared.db"
    assert evolved("trials=12", "population=6", f"storage=sqlite:///{shared}") == first
    assert shared.is_file()
    assert not (copied / EVOLUTION).exists()


def test_what_memory_does_not_hold_is_measured_in_chunks_at_one_speed(
    copied: Path, device: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(copied)
    generator = torch.Generator().manual_seed(0)
    audited = run.audit.references(4)
    nets = list(dict.fromkeys([*(run.space.random(generator) for _ in range(12)), *audited]))
    virtual, chunks = vars(running)["measure"], list[int]()

    def slower_and_slower(nets: Any, **options: Any) -> Any:
        chunks.append(len(nets))
        device.slowdown = 1 + 0.25 * len(chunks)
        assert set(audited) <= nets.keys()
        return virtual(nets, **options)

    monkeypatch.setattr(running, "measure", slower_and_slower)

    def measured() -> dict[Any, float]:
        chunks.clear()
        timings, slowdown = run.measure_nets(nets, what="", rounds=2, generator=generator, references=4)
        assert list(timings) == nets
        assert slowdown == pytest.approx(1.25)
        return {net: timing.median_ms / slowdown for net, timing in timings.items()}

    whole = measured()
    assert chunks == [len(nets)]
    for room in (1e5, 1.0):
        monkeypatch.setattr(running, "bytes_at_once", lambda room=room: room)
        assert measured() == pytest.approx(whole)
        assert len(chunks) > 2
    assert set(chunks) == {5}


def test_int8_is_calibrated_on_images_of_all_classes_however_they_are_sorted(copied: Path) -> None:
    run = run_of(copied, "evaluate.calibration_images=60")
    by_class = run.data.train.subset(run.data.train.labels.argsort())
    assert len(set(by_class.labels[:60].tolist())) == 1
    run.data = dataclasses.replace(run.data, train=by_class)
    drawn = calibration_split(run).labels
    assert len(drawn) == 60
    assert len(set(drawn.tolist())) >= 9
    assert calibration_split(run).labels.equal(drawn)


def test_parity_is_checked_on_so_many_images(
    copied: Path, slimformer: Slimformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def counted(model: Any, path: Path, images: torch.Tensor) -> Any:
        seen.append(len(images))
        return onnx_parity(model, path, images)

    monkeypatch.setattr(exporting, "onnx_parity", counted)
    assert slimformer("export", copied, "--set", "evaluate.parity_images=3", "--redo").code == 0
    assert set(seen) == {3}


def test_delivered_models_are_measured_in_so_many_rounds(
    copied: Path, slimformer: Slimformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    virtual = vars(running)["measure"]  # the one of conftest.py

    def counted(nets: Any, *, rounds: int, **options: Any) -> Any:
        seen.append(rounds)
        return virtual(nets, rounds=rounds, **options)

    monkeypatch.setattr(running, "measure", counted)
    assert slimformer("export", copied, "--set", "evaluate.latency_rounds=5", "--redo").code == 0
    assert set(seen) == {5}
    seen.clear()
    run = run_of(copied, "evaluate.latency_rounds=7")
    run.measure_at_tables_speed(run.space.smallest, what="smallest")
    assert seen == [7]


def test_a_table_is_measured_on_as_asked_for(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[float, float]] = []

    def watched(*given: Any, standard_error_percent: float, most_seconds: float, **options: Any) -> Any:
        seen.append((standard_error_percent, most_seconds))
        return build_table(*given, standard_error_percent=standard_error_percent, most_seconds=most_seconds, **options)

    monkeypatch.setattr("experiments.stages.build_table", watched)
    run = run_of(copied, "table.standard_error_percent=0.5", "table.most_minutes=2")
    run_stage(run, stage_named("table"), redo=True)
    assert seen == [(0.5, 120.0)]


def test_the_device_is_the_one_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [chosen_device(name).type for name in ("auto", "cuda", "cpu")] == ["cuda", "cuda", "cpu"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert [chosen_device(name).type for name in ("auto", "cpu")] == ["cpu", "cpu"]
    with pytest.raises(ValueError, match="device: cuda was asked for"):
        chosen_device("cuda")


@pytest.mark.parametrize("threads", [1, 2])
def test_a_stage_runs_with_the_threads_asked_for(copied: Path, threads: int) -> None:
    seen: list[int] = []

    def watch(run: Run) -> list[Path]:
        seen.append(torch.get_num_threads())
        return []

    before = torch.get_num_threads()
    try:
        run_stage(
            run_of(copied, f"threads={threads}"), dataclasses.replace(stage_named("report"), run=watch), redo=True
        )
    finally:
        torch.set_num_threads(before)
    assert seen == [threads]
    assert RunFolder(copied).manifest.stages["report"].environment.threads == threads


def streamed(image_folder: Path, **changes: Any) -> FolderSplit:
    fields = {"path": str(image_folder), "resolution_px": (8, 8), "held_out_fraction": 0.4, "in_memory": False}
    split = open_data(DataConfig(**{**fields, "workers": 0, **changes}), seed=0).train
    assert isinstance(split, FolderSplit)
    return split


@pytest.mark.parametrize("workers", [0, 2])
def test_images_stream_through_the_workers_asked_for(
    image_folder: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    seen: list[int] = []

    class Loader:
        def __init__(self, *_: Any, num_workers: int, **__: Any) -> None:
            seen.append(num_workers)

        def __iter__(self) -> Iterator[Any]:
            return iter(())

    monkeypatch.setattr(streaming, "DataLoader", Loader)
    list(batches(streamed(image_folder, workers=workers), 4, epoch=0, seed=0, augment=AugmentConfig()))
    assert seen == [workers]


def test_randaugment_changes_images_that_stream(image_folder: Path) -> None:
    split = streamed(image_folder)

    def images(augment: AugmentConfig) -> torch.Tensor:
        return torch.cat([batch for batch, _ in batches(split, 4, epoch=0, seed=0, augment=augment)])

    plain, varied = images(AugmentConfig()), images(AugmentConfig(randaugment="rand-m9-mstd0.5-inc1"))
    assert plain.shape == varied.shape
    assert not torch.equal(plain, varied)


@pytest.mark.parametrize("wanted", [True, False])
def test_channels_last_is_the_layout_of_a_retrained_models_weights(finished: Path, wanted: bool) -> None:
    run = run_of(finished)
    config = RetrainConfig(epochs=1, batch_size=64, learning_rate=1e-3, channels_last=wanted)
    model = initial_model(run.space.largest, config, supernet=None, seed=0)
    Retraining(model, run.data, config, digest="", seed=0, device=torch.device("cpu"))
    kernels = [p for p in model.parameters() if p.ndim == 4 and p.shape[1] > 1 and p.shape[2] > 1]
    assert kernels
    assert all(kernel.is_contiguous(memory_format=torch.channels_last) == wanted for kernel in kernels)


def test_an_augmentation_reaches_the_batches_of_both_trainings(finished: Path) -> None:
    assert SupernetConfig.model_fields["augment"].annotation is AugmentConfig
    assert RetrainConfig.model_fields["augment"].annotation is AugmentConfig
    run = run_of(finished, "train.augment={crop_padding_px: 2}")
    config = run.experiment.train
    shown = []
    for augment in (AugmentConfig(), config.augment):
        model = initial_model(run.space.smallest, config, supernet=None, seed=0)
        changed = config.model_copy(update={"augment": augment})
        training = Retraining(model, run.data, changed, digest="", seed=0, device=torch.device("cpu"))
        shown.append(next(training.batches(0, 0))[0])
    assert not torch.equal(*shown)


def test_the_nets_that_correct_a_table_are_spread_over_its_range_and_in_random_order(
    copied: Path,
) -> None:
    run = run_of(copied, "table.audit_nets=12")
    nets = run.audit_nets(run.space)
    assert len({net.digest for net in nets}) == 12
    assert {run.space.smallest, run.space.largest} <= set(nets)
    macs = [cost(net).macs for net in nets]
    assert macs != sorted(macs)
    steps = np.diff(sorted(macs)) / (max(macs) - min(macs))
    assert steps.max() < 0.3
    assert run.audit_nets(run.space) == nets
