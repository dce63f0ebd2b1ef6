"""Two tables of one space against each other: what is divided out, what is told, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch

from search.agreement import agreement
from search.correction import Correction
from search.latency_table import Entry, LatencyTable, Protocol, RuntimeName
from search.measure import Machine
from search.parts import LatencyKey, keys
from search.table_building import required_keys
from supernet.schema import UserError
from supernet.space import SearchSpace


def usual_ms(key: LatencyKey) -> float:
    """Parts of many channels take longer; a reshape takes next to nothing."""
    return 1e-6 if key.part == "reshape" else 0.01 * key.out_channels


def table_of(space: SearchSpace, ms: Callable[[LatencyKey], float] = usual_ms, **changes: object) -> LatencyTable:
    entries = tuple(
        Entry(
            **key._replace(spec=json.loads(key.spec))._asdict(),
            median_ms=ms(key),
            p10_ms=ms(key),
            p90_ms=ms(key),
            runs=30,
        )
        for key in sorted(required_keys(space))
    )
    fields = {
        "runtime": RuntimeName(name="onnxruntime", version="1.0"),
        "precision": "fp32",
        "threads": 1,
        "batch_size": 1,
        "resolution_px": space.resolution_px,
        "machine": Machine(cpu="AMD EPYC", cores=2, memory_gb=24.0, system="Linux"),
        "date": "2026-01-01",
        "protocol": Protocol(rounds=15, warmup=3, copies=4, settle=1, nets=10, seed=0),
        "entries": entries,
    }
    return LatencyTable(**fields | changes)


@pytest.fixture
def nets(space):
    return [space.random(torch.Generator().manual_seed(seed)) for seed in range(20)]


@pytest.mark.parametrize("slower", [1.0, 1.37])
def test_a_table_agrees_with_itself_on_a_slower_machine(space, nets, slower):
    found = agreement(table_of(space), table_of(space, lambda key: slower * usual_ms(key), date="2026-01-02"), nets)
    assert found.speed == pytest.approx(slower)
    assert found.dates == ("2026-01-01", "2026-01-02")
    for differences in (found.nets, found.uncorrected, found.entries):
        assert differences.worst_percent == pytest.approx(0, abs=1e-9)
        assert differences.within_3_percent == pytest.approx(100)
    assert (found.num_architectures, found.num_entries) == (20, len(required_keys(space)))


def test_an_entry_that_differs_counts_with_its_size_and_is_named(space):
    one = max((key for key in required_keys(space) if key.part == "block"), key=lambda key: key.out_channels)
    other = table_of(space, lambda key: usual_ms(key) * (1.1 if key == one else 1.0))
    found = agreement(table_of(space), other, [space.smallest])  # which has no such block
    share = usual_ms(one) / sum(map(usual_ms, required_keys(space)))
    assert found.entries.mean_percent == pytest.approx(10 * share)
    assert found.entries.within_3_percent == pytest.approx(100 * (1 - share))
    assert found.entries.median_percent == pytest.approx(0, abs=1e-9)
    assert found.entries.worst_percent == found.worst_entry.difference_percent == pytest.approx(10)
    assert found.worst_entry.entry == str(one)
    assert found.nets.worst_percent == pytest.approx(0, abs=1e-9)


def test_what_takes_next_to_nothing_changes_nothing(space, nets):
    nothing, little = (
        table_of(space, lambda key, ms=ms: ms if key.part == "reshape" else usual_ms(key)) for ms in (1e-6, 1e-4)
    )
    found = agreement(nothing, little, nets)
    assert found.entries.worst_percent > 9_000
    assert found.entries.mean_percent < 0.1
    assert found.entries.within_3_percent > 99.99
    assert found.nets.worst_percent < 0.01


def test_half_of_the_nets_that_differ_are_half_of_the_nets(space):
    largest, smallest = space.largest, space.smallest
    head = keys(largest)[-1]
    other = table_of(space, lambda key: usual_ms(key) + (1.0 if key == head else 0.0))
    found = agreement(table_of(space), other, [largest, smallest, smallest, largest, smallest])
    whole_ms = table_of(space).latency_ms(largest)
    assert found.nets.within_3_percent == pytest.approx(60)
    assert found.nets.worst_percent == pytest.approx(100 / whole_ms)
    assert found.nets.mean_percent == pytest.approx(40 / whole_ms)


def test_corrections_count_for_the_nets_and_not_for_the_sums(space, nets):
    other = table_of(space).corrected(Correction(constant_ms=3.0))
    found = agreement(table_of(space), other, nets)
    assert found.nets.worst_percent > 3
    assert found.uncorrected.worst_percent == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"precision": "bf16"}, r"of two conditions: .*\(fp32, batch 1.*; .*\(bf16, batch 1"),
        ({"threads": 2}, "1 thread.* at 32x32 px; .*2 threads"),
        ({"resolution_px": (64, 64)}, "at 32x32 px; .* at 64x64 px"),
        ({"runtime": RuntimeName(name="openvino", version="2")}, "onnxruntime 1.0 on .*; openvino 2 on"),
    ],
)
def test_tables_of_two_conditions_are_refused_with_both(space, nets, changes, message):
    with pytest.raises(UserError, match=message):
        agreement(table_of(space), table_of(space, **changes), nets)


def test_tables_of_two_spaces_are_refused_with_an_entry_that_one_lacks(space, nets):
    table = table_of(space)
    shorter = table_of(space, entries=table.entries[1:])
    for pair in ((table, shorter), (shorter, table)):
        with pytest.raises(UserError, match="of two spaces: 1 entries are in one alone, as block"):
            agreement(*pair, nets)
