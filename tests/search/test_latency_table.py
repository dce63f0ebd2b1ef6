"""Latency tables as data: keys of an architecture, sums, corrections, and what a file refuses."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from search.correction import Correction, Crowding
from search.latency_table import Entry, LatencyTable, Protocol, RuntimeName, UnmeasuredBlock
from search.limits import latency_limit
from search.measure import Machine
from search.parts import LatencyKey, keys, numbers_of, parameters_of
from supernet import cost, published_architecture
from supernet.architecture import Architecture, Downsampling, Head, Stage, Stem
from supernet.block_types import MB3D, MB4D, Block, Identity
from supernet.schema import UserError
from supernet.space import SearchSpace
from tests.search.test_exact import every_architecture, priced, space


def stage(width: int, *blocks: Block, stride: int | None = 2) -> Stage:
    return Stage(
        width_channels=width, downsampling=None if stride is None else Downsampling(stride=stride), blocks=blocks
    )


def architecture(*stages: Stage) -> Architecture:
    return Architecture(
        in_channels=3,
        resolution_px=(32, 24),
        stem=Stem(width_channels=16, hidden_channels=8),
        stages=stages,
        head=Head(num_classes=10),
    )


MAP, TOKENS = MB4D(mlp_channels=64), MB3D(mlp_channels=64)
NET = architecture(stage(16, MAP, Identity(), MAP, stride=None), stage(32, MAP, TOKENS, TOKENS))


def table_of(net: Architecture, *, ms: float = 0.5, **changes: object) -> LatencyTable:
    entries = tuple(
        Entry(
            **key._replace(spec=json.loads(key.spec))._asdict(),
            median_ms=ms,
            p10_ms=ms,
            p90_ms=ms,
            standard_error_ms=0.01 * ms,
            runs=30,
        )
        for key in dict.fromkeys(keys(net))
    )
    fields = {
        "runtime": RuntimeName(name="onnxruntime", version="1.0"),
        "precision": "fp32",
        "threads": 1,
        "batch_size": 1,
        "resolution_px": net.resolution_px,
        "machine": Machine(cpu="AMD EPYC", cores=2, memory_gb=24.0, system="Linux"),
        "date": "2026-01-01",
        "protocol": Protocol(rounds=15, warmup=3, copies=4, settle=1, nets=10, seed=0),
        "entries": entries,
    }
    return LatencyTable(**fields | changes)


def table_of_space(searched: SearchSpace, ms_of: Callable[[LatencyKey], float], **changes: object) -> LatencyTable:
    """A table of every part that an architecture of the space can have."""
    parts = dict.fromkeys(key for net in every_architecture(searched) for key in keys(net))
    entries = tuple(
        Entry(
            **key._replace(spec=json.loads(key.spec))._asdict(),
            median_ms=ms_of(key),
            p10_ms=ms_of(key),
            p90_ms=ms_of(key),
            runs=30,
        )
        for key in parts
    )
    return table_of(searched.largest, **{"entries": entries} | changes)


def test_an_architecture_is_its_parts_in_order():
    parts = [(key.part, key.layout, key.grid) for key in keys(NET)]
    assert parts == [
        ("stem", "map", (32, 24)),
        ("block", "map", (8, 6)),
        ("block", "map", (8, 6)),
        ("downsampling", "map", (8, 6)),
        ("block", "map", (4, 3)),
        ("reshape", "map", (4, 3)),
        ("block", "tokens", (4, 3)),
        ("block", "tokens", (4, 3)),
        ("head", "tokens", (4, 3)),
    ]


def test_a_stage_returns_to_a_map_at_its_end():
    net = architecture(stage(16, MAP, TOKENS, stride=None), stage(32, TOKENS))
    assert [key.part for key in keys(net)].count("reshape") == 2


def test_a_skipped_position_has_no_key():
    skipped = architecture(stage(16, MAP, MAP, stride=None), stage(32, Identity(), MAP, TOKENS, TOKENS))
    assert keys(skipped) == keys(NET)


def test_a_head_after_skipped_blocks_is_given_a_map():
    net = architecture(stage(16, TOKENS, stride=None), stage(32, Identity()))
    assert keys(net)[-1].layout == "map"


@pytest.mark.parametrize("change", ["mlp_channels", "width", "grid"])
def test_keys_differ_where_sizes_differ(change):
    other = {
        "mlp_channels": stage(32, MB4D(mlp_channels=65), TOKENS, TOKENS),
        "width": stage(48, MAP, TOKENS, TOKENS),
        "grid": stage(32, MAP, TOKENS, TOKENS, stride=1),
    }[change]
    first, second = keys(NET), keys(architecture(NET.stages[0], other))
    assert first[:3] == second[:3]
    assert first[4] != second[4]


def test_predicted_latency_is_the_sum_of_the_parts():
    assert table_of(NET).latency_ms(NET) == pytest.approx(9 * 0.5)


def test_an_unmeasured_part_is_an_exception_that_names_it_and_the_condition():
    other = architecture(NET.stages[0], stage(48, MAP))
    with pytest.raises(UnmeasuredBlock, match=r"onnxruntime 1.0 on AMD EPYC.*downsampling.*16 to 48 channels at 8x6"):
        table_of(NET).latency_ms(other)


@pytest.mark.parametrize("name", ["efficientformer_l1", "efficientformerv2_s0", "caformer_s18"])
def test_the_parameters_of_the_parts_are_those_of_the_net(name):
    net = published_architecture(name)
    assert sum(map(parameters_of, keys(net))) == cost(net).parameters


def test_the_numbers_of_a_part_are_its_parameters_and_the_maps_at_its_ends():
    stem, block, *_, head = (key for key in keys(NET) if key.part != "reshape")
    maps = {key: numbers_of(key, batch_size=1) - parameters_of(key) for key in (stem, block, head)}
    assert (stem.part, block.part, head.part) == ("stem", "block", "head")
    assert maps[stem] == 3 * stem.grid[0] * stem.grid[1]
    assert maps[block] == 2 * block.in_channels * block.grid[0] * block.grid[1]
    assert maps[head] == head.in_channels * head.grid[0] * head.grid[1]
    for key, elements in maps.items():
        assert numbers_of(key, batch_size=4) == parameters_of(key) + 4 * elements


@pytest.mark.parametrize("of", ["parameters", "numbers"])
def test_what_is_beyond_a_threshold_adds_to_the_sum_of_the_parts(of):
    counts = {
        "parameters": cost(NET).parameters,
        "numbers": sum(numbers_of(key, batch_size=table_of(NET).batch_size) for key in keys(NET)),
    }
    millions = counts[of] / 1e6
    for above, beyond in ((0.5 * millions, 0.5 * millions), (2 * millions, 0.0)):
        crowding = Crowding(of=of, above_millions=above, ms_per_million=3.0)
        corrected = table_of(NET).corrected(Correction(crowding=crowding))
        assert corrected.latency_ms(NET) == pytest.approx(9 * 0.5 + 3.0 * beyond)
        predicted_ms = corrected.correction.of(corrected.kinds_ms(NET), **counts)
        assert predicted_ms == pytest.approx(corrected.latency_ms(NET))
        limit = latency_limit(corrected, 10.0)
        assert limit.used(NET) == pytest.approx(corrected.latency_ms(NET))


def test_a_correction_scales_each_kind_of_part_and_adds_its_constant():
    table = table_of(NET)
    kinds_ms = table.kinds_ms(NET)
    assert sum(kinds_ms.values()) == pytest.approx(4.5)
    first = sorted(kinds_ms)[0]
    correction = Correction(constant_ms=1.5, scale=3.0, scales={first: 2.0})
    corrected = table.corrected(correction)
    assert corrected.latency_ms(NET) == pytest.approx(1.5 + 3.0 * (4.5 + kinds_ms[first]))
    assert correction.of(kinds_ms) == pytest.approx(corrected.latency_ms(NET))
    assert corrected.kinds_ms(NET) == kinds_ms


def test_a_correction_leaves_the_measurements_alone():
    table = table_of(NET)
    assert table.corrected(Correction(scale=2.0)).entries == table.entries
    assert table.corrected(Correction(scale=2.0)).ms(keys(NET)[0]) == table.ms(keys(NET)[0])


def test_the_file_name_is_the_condition():
    assert table_of(NET).file_name == "latency-onnxruntime-amd-epyc-fp32-b1-t1.json"
    assert table_of(NET, threads=4, batch_size=8).file_name == "latency-onnxruntime-amd-epyc-fp32-b8-t4.json"


def test_a_table_read_back_is_the_table(tmp_path):
    table = table_of(NET).corrected(Correction(scale=1.1, scales={"stem 32x24": 0.9}))
    table.save(tmp_path / table.file_name)
    found = LatencyTable.load(tmp_path / table.file_name)
    assert found == table
    assert found.latency_ms(NET) == table.latency_ms(NET)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 2}, "schema_version"),
        ({"thread": 1}, r"thread: unknown key \(did you mean threads\?\)"),
        ({"threads": 0}, "threads"),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path, change, message):
    path = tmp_path / "table.json"
    path.write_text(json.dumps(table_of(NET).model_dump(mode="json") | change))
    with pytest.raises(UserError, match=message):
        LatencyTable.load(path)


def test_a_part_measured_twice_is_refused():
    entries = table_of(NET).entries
    with pytest.raises(ValueError, match="measured twice"):
        table_of(NET, entries=(*entries, entries[0]))


def test_an_entry_without_positive_latency_is_refused():
    with pytest.raises(ValueError, match="median_ms"):
        table_of(NET, ms=0.0)


@pytest.mark.parametrize("name", ["tokens in two stages", "one width"])
def test_the_fastest_architecture_is_that_of_all(name: str) -> None:
    searched = space(name)
    crowding = Crowding(of="numbers", above_millions=0.01, ms_per_million=20.0)
    table = table_of_space(searched, priced(searched, 4, least=0.01))
    for corrected in (table, table.corrected(Correction(constant_ms=0.2, scale=1.5, crowding=crowding))):
        fastest_ms = min(corrected.latency_ms(net) for net in every_architecture(searched))
        assert fastest_ms < corrected.latency_ms(searched.smallest)
        assert corrected.latency_ms(corrected.fastest(searched)) == pytest.approx(fastest_ms, rel=1e-5)


def test_the_fastest_architecture_is_the_smallest_where_none_is_faster_and_solved_for_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    searched = space("one width")
    table = table_of_space(searched, lambda key: 1.0)
    assert table.fastest(searched) == searched.smallest
    monkeypatch.setattr("search.exact.least", lambda *_: pytest.fail("solved again"))
    assert table.fastest(searched) == searched.smallest
