"""A table that is interrupted goes on with the rounds that it has, and never with those of something else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from search import bench, measure
from search.latency_table import LatencyTable
from search.table_building import build_table
from search.table_journal import Journal
from supernet.schema import UserError
from supernet.space import SearchSpace


class Stopped(BaseException):
    """What interrupts the measurement."""


class CountingDevice:
    """A runtime whose nets take as long as they have weights; it stops everything at its n-th inference."""

    name, version, precision = "counting", "1", "fp32"

    def __init__(self, *, threads: int = 1, stop_at: float = float("inf"), refused: str = "") -> None:
        self.threads, self.stop_at, self.refused = threads, stop_at, refused
        self.calls, self.built, self.now_ns = 0, 0, 0.0

    def clock(self) -> int:
        return round(self.now_ns)

    def build(self, module: nn.Module, input_shape: tuple[int, ...]) -> Callable[[], object]:
        if self.refused and any(self.refused in type(one).__name__ for one in module.modules()):
            raise ValueError("no such operator")
        self.built += 1
        duration_ns = 300_000 + 11 * sum(parameter.numel() for parameter in module.parameters())

        def run() -> None:
            self.calls += 1
            if self.calls == self.stop_at:
                raise Stopped
            self.now_ns += duration_ns * (1 + 0.2 * (self.calls % 7 == 0))

        return run


@pytest.fixture(autouse=True)
def _undisturbed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "_interruptions", lambda: 0)
    monkeypatch.setattr(measure, "SETTLE_MS", 0.0)
    monkeypatch.setattr(measure, "VISIT_MS", 0.5)


def table(
    space: SearchSpace, device: CountingDevice, path: Path | None, told: list[str] | None = None, **changes: Any
) -> LatencyTable:
    said = [] if told is None else told
    options: dict[str, Any] = {"rounds": 6, "copies": 1, "seed": 0, "most_seconds": 3.0} | changes
    journal = Journal(path, told=said.append, clock=device.clock)
    return build_table(
        space,
        device,
        batch_size=1,
        journal=journal,
        clock=device.clock,
        whole_nets=lambda searched: [searched.smallest, searched.largest],
        **options,
    )[0]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def rounds_in(path: Path) -> int:
    return sum("clean_ms" in line for line in lines(path))


@pytest.fixture(scope="module", name="space")
def _space() -> SearchSpace:
    """Two stages of which the second can do without attention."""
    attention = {"type": "mb3d", "heads": 2, "key_channels": 4, "value_channels": 4}
    stages = [
        {"depth": 1, "width_channels": {"smallest": 8, "largest": 16}, "candidates": ["mb4d", "identity"]},
        {"depth": 1, "width_channels": {"smallest": 8, "largest": 16}, "candidates": ["mb4d", attention, "identity"]},
    ]
    plain = {"in_channels": 3, "resolution_px": (16, 16), "num_classes": 5, "granularity": 8, "stages": stages}
    return SearchSpace.model_validate(plain, strict=False)


@pytest.fixture(scope="module")
def calls_of_a_table(space: SearchSpace) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "_interruptions", lambda: 0)
        patch.setattr(measure, "SETTLE_MS", 0.0)
        patch.setattr(measure, "VISIT_MS", 0.5)
        device = CountingDevice()
        table(space, device, None)
        return device.calls


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_an_interrupted_table_goes_on_and_measures_no_round_twice(
    space: SearchSpace, tmp_path: Path, calls_of_a_table: int, share: float
) -> None:
    path, told = tmp_path / "journal.jsonl", list[str]()
    first = CountingDevice(stop_at=int(share * calls_of_a_table))
    with pytest.raises(Stopped):
        table(space, first, path)
    kept = rounds_in(path)
    before = path.read_bytes()
    assert kept
    second = CountingDevice()
    found = table(space, second, path, told)
    assert told == [f"going on after {rounds_of_all_nets(before)} rounds that were measured before"]
    assert path.read_bytes().startswith(before)
    assert second.calls < (1.15 - 0.9 * share) * calls_of_a_table  # the warm-up comes again
    assert {entry.key for entry in found.entries} == {
        entry.key for entry in table(space, CountingDevice(), None).entries
    }


def rounds_of_all_nets(content: bytes) -> int:
    found = [json.loads(line) for line in content.splitlines()]
    return sum("clean_ms" in line and line["at"] is None and not line["repair"] for line in found)


def test_a_finished_journal_gives_the_very_same_table_and_builds_nothing(space: SearchSpace, tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    first = table(space, CountingDevice(), path)
    again = CountingDevice()
    second = table(space, again, path)
    assert second == first
    assert again.calls == again.built == 0


def test_chunks_that_were_measured_are_not_measured_again(
    space: SearchSpace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "LINKS", 2)
    monkeypatch.setattr(bench, "CHUNK_NETS", 5)
    path, whole = tmp_path / "journal.jsonl", CountingDevice()
    table(space, whole, None, most_seconds=0)
    with pytest.raises(Stopped):
        table(space, CountingDevice(stop_at=whole.calls // 2), path, most_seconds=0)
    done = sum("ended" in line for line in lines(path))
    assert done > 1
    monkeypatch.setattr(bench, "CHUNK_NETS", 4)  # the memory of the same machine has less room now
    second = CountingDevice()
    found = table(space, second, path, most_seconds=0)
    assert second.calls < 0.7 * whole.calls
    sizes = [len(line["nets"]) for line in lines(path) if "nets" in line]
    assert sizes[: done + 1] == [7] * (done + 1)
    assert max(sizes[done + 1 :]) == 6
    assert all(entry.median_ms > 0 for entry in found.entries)


def test_what_the_last_stop_cut_short_is_left_out(space: SearchSpace, tmp_path: Path, calls_of_a_table: int) -> None:
    path, told = tmp_path / "journal.jsonl", list[str]()
    with pytest.raises(Stopped):
        table(space, CountingDevice(stop_at=calls_of_a_table // 2), path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    table(space, CountingDevice(), path, told)
    assert told == [f"going on after {rounds_of_all_nets(whole) - 1} rounds that were measured before"]
    assert all(lines(path))


@pytest.mark.parametrize(
    "change",
    [{"rounds": 7}, {"seed": 1}, {"copies": 2}, {"standard_error_percent": 2.0}, {"version": "2"}, {"threads": 2}],
)
def test_rounds_of_another_table_do_not_count(
    space: SearchSpace, tmp_path: Path, calls_of_a_table: int, change: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, told = tmp_path / "journal.jsonl", list[str]()
    with pytest.raises(Stopped):
        table(space, CountingDevice(stop_at=calls_of_a_table // 2), path)
    device = CountingDevice(threads=change.pop("threads", 1))
    monkeypatch.setattr(device, "version", change.pop("version", device.version))
    device.stop_at = 5
    with pytest.raises(Stopped):
        table(space, device, path, told, **change)
    assert told == ["what was measured before is of another machine, runtime or protocol, and does not count"]
    assert rounds_in(path) == 0


def test_a_journal_without_any_round_is_gone_on_with_in_silence(space: SearchSpace, tmp_path: Path) -> None:
    path, told = tmp_path / "journal.jsonl", list[str]()
    with pytest.raises(Stopped):
        table(space, CountingDevice(stop_at=1), path)
    assert rounds_in(path) == 0
    table(space, CountingDevice(), path, told)
    assert told == []


def test_an_end_without_rounds_is_not_believed(space: SearchSpace, tmp_path: Path, calls_of_a_table: int) -> None:
    path = tmp_path / "journal.jsonl"
    with pytest.raises(Stopped):
        table(space, CountingDevice(stop_at=calls_of_a_table // 2), path)
    found = path.read_text().splitlines()
    begun = next(number for number, line in enumerate(found) if "nets" in json.loads(line))
    path.write_text("\n".join([*found[: begun + 1], '{"ended": true}']) + "\n")
    assert table(space, CountingDevice(), path).entries


def damaged(line: dict[str, Any], **fields: Any) -> str:
    return json.dumps(line | fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"all_ms": [-1.0]},
        {"seconds": -1},
        {"at": 99},
        {"clean_ms": [1.0], "all_ms": [1.0]},
        {"all_ms": "much"},
        {"unknown": 1},
    ],
)
def test_nothing_after_a_line_that_cannot_be_is_read(
    space: SearchSpace, tmp_path: Path, calls_of_a_table: int, fields: dict[str, Any]
) -> None:
    path, told = tmp_path / "journal.jsonl", list[str]()
    with pytest.raises(Stopped):
        table(space, CountingDevice(stop_at=calls_of_a_table // 2), path)
    found = path.read_text().splitlines()
    at = next(number for number, line in enumerate(found) if "clean_ms" in line) + 2
    path.write_text("\n".join([*found[:at], damaged(json.loads(found[at]), **fields), *found[at + 1 :]]) + "\n")
    table(space, CountingDevice(), path, told)
    assert told == ["going on after 2 rounds that were measured before"]


def test_what_the_runtime_refused_is_not_tried_again(space: SearchSpace, tmp_path: Path, calls_of_a_table: int) -> None:
    path = tmp_path / "journal.jsonl"
    with pytest.raises(Stopped):
        table(space, CountingDevice(refused="Attention", stop_at=calls_of_a_table // 3), path)
    left_out = next(line["left_out"] for line in lines(path) if "left_out" in line)
    assert [one["candidate"] for one in left_out] == ["mb3d"]
    again = CountingDevice(refused="Attention")
    assert [one.model_dump() for one in table(space, again, path).left_out] == left_out
    assert again.built == len(set().union(*(line["nets"] for line in lines(path) if "nets" in line)))


def test_a_folder_that_cannot_be_written_is_said(space: SearchSpace, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/journal.jsonl: cannot be"):
        table(space, CountingDevice(), tmp_path / "file" / "journal.jsonl")


def test_a_journal_leaves_torchs_random_numbers_alone(space: SearchSpace, tmp_path: Path) -> None:
    state = torch.random.get_rng_state()
    table(space, CountingDevice(), tmp_path / "journal.jsonl", most_seconds=0)
    assert torch.equal(torch.random.get_rng_state(), state)
