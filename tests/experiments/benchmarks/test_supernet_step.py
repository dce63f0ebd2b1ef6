"""The benchmark of supernet steps: that what it times is what it says, and that a peak is a peak."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from experiments.benchmarks import supernet_step, training_steps
from experiments.benchmarks.peak_memory import peak_bytes
from experiments.benchmarks.supernet_step import SupernetStepRecord, child_peak_bytes, main, ratios
from experiments.benchmarks.training_steps import CASES, STEPS, Case, make_step, pin
from supernet import MetaPath, SearchSpace, Supernet
from supernet.schema import load, parse
from train.supernet_training import SupernetConfig, SupernetTraining

CPU = torch.device("cpu")


@pytest.fixture
def case() -> Case:
    """Two stages with every kind of candidate, at 8 px."""
    stages = [
        {"depth": 1, "width_channels": {"smallest": 8, "largest": 16}, "candidates": ["mb4d", "identity"]},
        {"depth": 2, "width_channels": {"smallest": 8, "largest": 16}, "candidates": ["mb4d", "mb3d", "identity"]},
    ]
    data = {"in_channels": 3, "resolution_px": [8, 8], "num_classes": 10, "granularity": 8, "stages": stages}
    space = parse(SearchSpace, data | {"stem": {"strides": [1, 1]}}, source="the test")
    return Case("tiny", space, SupernetConfig(epochs=1, batch_size=4, learning_rate=1e-3))


def test_a_pinned_supernet_draws_the_largest_path_every_time(case: Case) -> None:
    supernet = Supernet(case.space)
    pin(supernet, case.space.largest)
    wanted = [candidate.name for stage in case.space.choices(case.space.largest) for candidate in stage]
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        sample = supernet.sample(
            supernet.largest_widths, mixing="hard", noise="gumbel", temperature=1.0, generator=generator
        )
        assert sample.chosen is not None
        drawn = [path.names[index] for path, index in zip(supernet.metapaths, sample.chosen, strict=True)]
        assert drawn == wanted


def candidates_run(monkeypatch: pytest.MonkeyPatch, name: str, case: Case) -> list[int]:
    """How many candidates, identity aside, each of five steps ran."""
    run, counts = MetaPath.run, [0]

    def counted(self: MetaPath, index: int, x: torch.Tensor, *, width: int) -> torch.Tensor:
        counts[-1] += 1
        return run(self, index, x, width=width)

    monkeypatch.setattr(MetaPath, "run", counted)
    step = make_step(name, case, CPU)
    counts.clear()
    for _ in range(5):
        counts.append(0)
        step()
    return counts


@pytest.mark.parametrize(
    ("name", "expected"), [("largest", [0]), ("hard_largest", [3]), ("alpha", [3]), ("soft", [5]), ("hard", range(4))]
)
def test_a_step_runs_as_many_candidates_as_its_name_says(
    name: str, expected: list[int] | range, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert set(candidates_run(monkeypatch, name, case)) <= set(expected)


def test_the_sandwich_runs_its_widths_on_every_batch(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    forward = Supernet.forward

    def watched(self: Supernet, images: torch.Tensor, choice: object) -> object:
        seen.append(1)
        return forward(self, images, choice)  # type: ignore[arg-type]

    step = make_step("sandwich", case, CPU)
    monkeypatch.setattr(Supernet, "forward", watched)
    step()
    assert len(seen) == 2 + case.config.widths.random


def test_before_it_is_measured_a_supernet_has_an_optimizer_state_for_every_weight(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[SupernetTraining] = []
    training = training_steps._training

    def kept(*arguments: object, **options: object) -> SupernetTraining:
        made.append(training(*arguments, **options))  # type: ignore[arg-type]
        return made[-1]

    monkeypatch.setattr(training_steps, "_training", kept)
    make_step("hard_largest", case, CPU)
    assert all(weight in made[0].optimizer.state for weight in made[0].weights)


def test_a_ratio_is_that_of_one_round() -> None:
    assert ratios([1.0, 4.0], [1.0, 2.0]) == [1.0, 2.0]


def test_a_peak_that_is_given_back_still_counts() -> None:
    def work() -> None:
        torch.ones(64 * 2**20)  # 256 MB in fp32, above what tests leave to the allocator

    gc.collect()  # what is given back while the work runs would be missing from the peak
    assert 250 * 2**20 < peak_bytes(work, CPU) < 400 * 2**20


@pytest.mark.parametrize("name", sorted(CASES))
def test_the_spaces_of_the_benchmark_have_a_largest_architecture(name: str) -> None:
    space = CASES[name]().space
    assert space.largest.depth == len(space.positions) > 1


def test_the_benchmark_writes_its_figures_with_their_conditions(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = replace(case, name="cifar10")
    monkeypatch.setattr(supernet_step, "CASES", {"cifar10": lambda: tiny})
    peaks = {name: 2**20 * (index + 1) for index, name in enumerate(STEPS)}
    monkeypatch.setattr(supernet_step, "child_peak_bytes", lambda name, *_, **__: peaks[name])
    main(["--rounds", "2", "--device", "cpu", "--out", str(tmp_path / "record.json")])
    record = load(SupernetStepRecord, tmp_path / "record.json")
    assert (record.rounds, record.memory_kind, record.device) == (2, "resident", "cpu")
    assert "--rounds 2" in record.environment.command
    (space,) = record.spaces
    assert [entry.step for entry in space.times] == list(STEPS)
    assert space.times[0].ratio.median == 1.0
    assert [entry.ratio for entry in space.memory] == [1, 2, 3, 4, 5, 6]


@pytest.mark.long
def test_a_childs_peak_is_that_of_its_step_alone() -> None:
    single = child_peak_bytes("largest", "cifar10", CPU, steps=2)
    soft = child_peak_bytes("soft", "cifar10", CPU, steps=2)
    assert 50 * 2**20 < single < soft
