"""Trajectories: replay gives the final architecture digest for digest, and a damaged file is refused by its line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from search.actions import apply
from search.importance import Importance
from search.slimming import slim
from search.trajectory import Trajectory
from supernet.architecture import Architecture
from supernet.block_types import Identity
from supernet.schema import UserError
from supernet.space import SearchSpace


@pytest.fixture
def trajectory(space: SearchSpace, importance: Importance, table: Any) -> Trajectory:
    """All the way down, with scores that make every kind of action be chosen sometimes."""

    def score(architecture: Architecture) -> float:
        return 50 + int(architecture.digest, 16) % 1000 / 100

    return slim(space, importance=importance, table=table, score=score, budget_ms=table.latency_ms(space.smallest))


def test_folding_the_actions_over_the_largest_architecture_gives_every_file_digest_for_digest(
    trajectory: Trajectory, space: SearchSpace
) -> None:
    assert {step.action.kind for step in trajectory.steps[1:] if step.action} == {
        "skip_path",
        "drop_first_3d",
        "narrow_stage",
    }
    architecture = space.largest
    for step in trajectory.steps:
        if step.action is not None:
            architecture = apply(step.action, architecture, space=space)
        assert architecture.digest == step.digest == step.architecture.digest
    assert trajectory.replay(space) == architecture == space.smallest


def test_replay_notices_an_action_that_was_changed(trajectory: Trajectory, space: SearchSpace) -> None:
    skips = [index for index, step in enumerate(trajectory.steps) if step.action and step.action.kind == "skip_path"]
    shorter = Trajectory(steps=tuple(step for index, step in enumerate(trajectory.steps) if index != skips[0]))
    assert shorter.replay(space).digest != trajectory.steps[-1].digest


def test_a_trajectory_comes_back_from_its_file_a_line_a_step(trajectory: Trajectory, tmp_path: Path) -> None:
    path = tmp_path / "trajectory.jsonl"
    trajectory.save(path)
    lines = path.read_text().splitlines()
    assert len(lines) == len(trajectory.steps)
    assert [json.loads(line)["step"] for line in lines] == list(range(len(lines)))
    back = Trajectory.load(path)
    assert back == trajectory
    back.save(tmp_path / "again.jsonl")
    assert (tmp_path / "again.jsonl").read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda line: line.replace('"latency_ms"', '"latency"', 1), r"line 3: .*latency: unknown key"),
        (lambda line: line.replace('"kind":"', '"kind":"un', 1), "line 3: action: "),
        (lambda line: line.replace('"step":2', '"step":2,"step":2', 1), "line 3: .*the key 'step' occurs twice"),
        (lambda line: line[: len(line) // 2], "line 3: not valid JSON"),
        (lambda line: "[]", "line 3: "),
        (lambda line: "", "line 3: not valid JSON"),
    ],
    ids=["misspelt key", "unknown action", "repeated key", "cut short", "no record", "empty"],
)
def test_a_damaged_line_is_refused_and_named(trajectory: Trajectory, tmp_path: Path, spoil: Any, message: str) -> None:
    path = tmp_path / "trajectory.jsonl"
    trajectory.save(path)
    lines = path.read_text().splitlines()
    lines[2] = spoil(lines[2])
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match=message) as refused:
        Trajectory.load(path)
    assert str(refused.value).startswith(str(path))
    assert "line 3" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_missing_and_an_empty_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing\.jsonl: cannot be read"):
        Trajectory.load(tmp_path / "nothing.jsonl")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(UserError, match=r"empty\.jsonl: holds no steps"):
        Trajectory.load(tmp_path / "empty.jsonl")


def test_the_step_for_a_budget_is_the_first_within_it(trajectory: Trajectory) -> None:
    for index, step in enumerate(trajectory.steps):
        assert trajectory.at(step.latency_ms) == step
        below = trajectory.at(step.latency_ms - 1e-6)
        assert below == (trajectory.steps[index + 1] if index + 1 < len(trajectory.steps) else None)
    assert trajectory.at(1e9) == trajectory.steps[0]


def test_skipped_positions_keep_their_number_on_the_way(trajectory: Trajectory, space: SearchSpace) -> None:
    for step in trajectory.steps:
        assert [len(stage.blocks) for stage in step.architecture.stages] == [2, 1, 2]
    assert isinstance(trajectory.steps[-1].architecture.stages[0].blocks[0], Identity)
