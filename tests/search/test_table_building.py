"""Building tables, with a runtime whose time is a known sum of parts: the table must find the parts."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from search import bench, measure, table_building
from search.latency_audit import LatencyAudit, audit
from search.latency_table import LatencyTable, Protocol, RuntimeName
from search.measure import HURRIED_ROUNDS, Timing
from search.parts import keys
from search.runtimes import runtime
from search.skeletons import Recipe, Skeleton, SkeletonModule, build_skeleton, recipes
from search.table_building import Condition, build_table, required_keys, table_nets
from supernet.architecture import Architecture
from supernet.metaformer import MetaFormer, MetaFormerStage
from supernet.schema import UserError
from supernet.space import SearchSpace
from supernet.stem import DownsamplingModule


@pytest.fixture(autouse=True)
def _undisturbed(monkeypatch):
    """The device's clock is arithmetic: what the system does meanwhile is no part of it, and no net has to settle."""
    monkeypatch.setattr(measure, "_interruptions", lambda: 0)
    monkeypatch.setattr(measure, "SETTLE_MS", 0.0)
    monkeypatch.setattr(measure, "VISIT_MS", 0.5)


def space(*, largest: int = 32, tokens: bool = True) -> SearchSpace:
    last = ["mb4d", {"type": "mb3d", "heads": 2, "key_channels": 4, "value_channels": 8}, "identity"]
    stages = [
        {"depth": 2, "width_channels": {"smallest": 16, "largest": largest}, "candidates": ["mb4d", "identity"]},
        {
            "depth": 3,
            "width_channels": {"smallest": 16, "largest": largest + 16},
            "candidates": last if tokens else last[::2],
        },
    ]
    return SearchSpace.model_validate(
        {"in_channels": 3, "resolution_px": (16, 16), "num_classes": 5, "stages": stages}, strict=False
    )


class AdditiveDevice:
    """A runtime and its clock: the time of a net is the sum of its parts, in ns, and nothing is computed."""

    name, version, precision = "additive", "1", "fp32"

    def __init__(self, *, threads: int = 1, reshape_ns: int = 7_000) -> None:
        self.threads = threads
        self.reshape_ns = reshape_ns
        self.now_ns = 0.0
        self.speed = 1.0
        self.change_ns, self.later_speed = float("inf"), 1.0
        self.jitter, self.draw = 0.0, random.Random(0)
        self.built = 0

    def clock(self) -> int:
        return round(self.now_ns)

    def build(self, module: nn.Module, input_shape: tuple[int, ...]) -> Callable[[], object]:
        self.built += 1
        duration_ns = 40_000 + self.duration_ns(module)

        def run() -> None:
            late = self.now_ns > self.change_ns
            noise = 1 + self.jitter * abs(self.draw.gauss(0, 1))
            self.now_ns += duration_ns * noise * (self.later_speed if late else self.speed)

        return run

    def latency_ms(self, architecture: Architecture) -> float:
        return (40_000 + self.duration_ns(MetaFormer(architecture))) / 1e6

    def duration_ns(self, module: nn.Module) -> int:
        match module:
            case nn.Identity() | None:
                return 0
            case MetaFormer(stem=entry) | SkeletonModule(entry=entry):
                return sum(map(self.duration_ns, (entry, *module.stages, module.head)))
            case MetaFormerStage():
                parts = sum(map(self.duration_ns, (module.downsampling, *module.blocks)))
                layouts = [
                    "map",
                    *(b for b, m in zip(module.layouts, module.blocks, strict=True) if self.duration_ns(m)),
                ]
                changes = sum(now == "tokens" != before for before, now in itertools.pairwise(layouts))
                return parts + self.reshape_ns * changes
            case DownsamplingModule():
                return 3_000 + 7 * module.conv.in_channels * module.conv.out_channels
            case _:
                return 5_000 + 11 * sum(parameter.numel() for parameter in module.parameters())


def table_of(device: AdditiveDevice, found: SearchSpace, **changes: Any) -> LatencyTable:
    options = {"batch_size": 1, "rounds": 3, "copies": 4, "seed": 0, "most_seconds": 0} | changes
    return build_table(found, device, clock=device.clock, **options)[0]


def audited(device: AdditiveDevice, found: SearchSpace, nets: list) -> LatencyAudit:
    options = {"batch_size": 1, "rounds": 3, "copies": 4, "seed": 0, "most_seconds": 0, "clock": device.clock}
    return audit(*build_table(found, device, whole_nets=lambda _: nets, **options))


def random_nets(found: SearchSpace, count: int) -> list:
    generator = torch.Generator().manual_seed(3)
    return [found.random(generator) for _ in range(count)]


@pytest.mark.parametrize("tokens", [True, False])
def test_where_time_is_additive_the_table_predicts_whole_nets_exactly(tokens):
    device, searched = AdditiveDevice(), space(tokens=tokens)
    result = audited(device, searched, random_nets(searched, 10))
    assert result.worst_percent < 0.01
    assert result.kendall_tau > 0.95  # nets of equal time are ties
    assert result.held_out.worst_percent < 0.01
    assert result.remeasurement_percent < 0.01


@pytest.mark.parametrize("changes_after", [0.1, 0.5, 0.9])
def test_a_machine_that_changes_its_speed_does_not_pass_for_an_error_of_the_table(changes_after):
    searched = space()
    nets = random_nets(searched, 10)
    steady = AdditiveDevice()
    audited(steady, searched, nets)
    device = AdditiveDevice()
    device.change_ns, device.later_speed = changes_after * steady.now_ns, 1.6
    result = audited(device, searched, nets)
    assert device.now_ns > 1.05 * steady.now_ns
    assert abs(result.bias_percent) < 0.5
    assert result.worst_percent < 5


def test_whole_nets_are_measured_in_the_rounds_of_the_table_and_each_once():
    device, searched = AdditiveDevice(), space(tokens=False)
    nets = random_nets(searched, 4)
    table, timings = build_table(
        searched,
        device,
        batch_size=1,
        rounds=3,
        copies=4,
        seed=0,
        most_seconds=0,
        whole_nets=lambda _: [*nets, nets[0]],
        clock=device.clock,
    )
    assert list(timings) == list(dict.fromkeys(nets))
    assert device.built == table.protocol.nets + len(timings)
    for net, timing in timings.items():
        assert timing.median_ms == pytest.approx((40_000 + device.duration_ns(MetaFormer(net))) / 1e6)


def test_references_are_spread_from_the_fastest_net_to_the_slowest():
    device, searched = AdditiveDevice(), space(tokens=False)
    result = audited(device, searched, random_nets(searched, 9))
    measured = [pair.architecture for pair in sorted(result.pairs, key=lambda pair: pair.measured_ms)]
    last = len(measured) - 1
    assert result.references(3) == [measured[0], measured[round(last / 2)], measured[last]]
    assert result.references(100) == measured
    for pair in result.pairs:
        took_ms = (40_000 + device.duration_ns(MetaFormer(pair.architecture))) / 1e6
        assert pair.measured_ms == pytest.approx(took_ms)


def test_an_audit_read_back_is_the_audit(tmp_path):
    device, searched = AdditiveDevice(), space(tokens=False)
    result = audited(device, searched, random_nets(searched, 6))
    result.save(tmp_path / "latency-audit.json")
    assert LatencyAudit.load(tmp_path / "latency-audit.json") == result


def test_the_required_keys_cover_every_architecture_of_the_space():
    searched = space()
    required = required_keys(searched)
    for net in [searched.largest, searched.smallest, *random_nets(searched, 50)]:
        assert set(keys(net)) <= required


def test_a_table_has_exactly_the_required_keys():
    searched = space()
    assert {entry.key for entry in table_of(AdditiveDevice(), searched).entries} == required_keys(searched)


def test_equal_skeletons_are_built_once():
    device, searched = AdditiveDevice(), space()
    table = table_of(device, searched)
    assert device.built == table.protocol.nets == len(table_nets(searched, copies=4))


def test_more_pairs_than_allowed_are_interpolated_on_the_bilinear_surface():
    searched = space(largest=112, tokens=False)
    exact = table_of(AdditiveDevice(), searched, pairs=1000)
    sparse = table_of(AdditiveDevice(), searched, pairs=9)
    assert sum(entry.interpolated for entry in sparse.entries) == 7 * 8 - 9
    assert not any(entry.interpolated for entry in exact.entries)
    for entry in sparse.entries:
        assert entry.median_ms == pytest.approx(exact.ms(entry.key), rel=1e-3)


def test_what_lies_between_measured_pairs_is_settled_where_all_of_them_are():
    searched, device = space(largest=112, tokens=False), AdditiveDevice()
    nets = table_nets(searched, copies=4, pairs=9)

    def timing(net: Skeleton) -> Timing:
        ms = device.duration_ns(build_skeleton(net)) / 1e6
        noisy = [stage.width_channels for stage in net.stages] == [16, 16]
        return Timing((0.5 * ms, ms, 2 * ms) if noisy else (ms, ms, ms), runs=3)

    found = table_building.table_of(
        searched,
        {net: timing(net) for net in nets},
        condition=Condition(RuntimeName(name="additive", version="1"), "fp32", 1, 1, measure.machine(), "2026-01-31"),
        protocol=Protocol(rounds=3, warmup=3, copies=4, settle=1, nets=len(nets), seed=0),
        pairs=9,
    )
    pairs = [entry for entry in found.entries if entry.part == "downsampling"]
    measured = {(entry.in_channels, entry.out_channels): entry for entry in pairs if not entry.interpolated}
    assert [widths for widths, entry in measured.items() if not entry.settled] == [(16, 16)]
    in_widths, out_widths = (sorted(set(widths)) for widths in zip(*measured, strict=True))
    unsettled = {(entry.in_channels, entry.out_channels) for entry in pairs if not entry.settled}
    near = itertools.product(range(16, in_widths[1], 16), range(16, out_widths[1], 16))
    assert unsettled == set(near)
    assert len(unsettled) > 1


def test_chunks_are_linked_by_common_nets_when_the_machine_changes_its_speed(monkeypatch):
    searched, device = space(), AdditiveDevice()
    whole, chunks = table_of(AdditiveDevice(), searched), []
    monkeypatch.setattr(bench, "CHUNK_NETS", 8)

    def slower_and_slower(nets: dict, **options: Any) -> dict:
        chunks.append(len(nets))
        device.speed = 1.0 + 0.25 * (len(chunks) - 1)
        return measure.measure(nets, **options)

    monkeypatch.setattr(bench, "measure", slower_and_slower)
    chunked = table_of(device, searched)
    assert len(chunks) > 3
    assert set(chunks[:-1]) <= set(range(8 + bench.LINKS // 2, 8 + bench.LINKS + 1))
    for entry in chunked.entries:
        assert entry.median_ms == pytest.approx(whole.ms(entry.key), rel=0.02)


def test_one_net_that_is_slower_than_it_was_does_not_change_the_speed_of_a_chunk():
    before = {name: Timing((1.0 + number,), runs=1) for number, name in enumerate("abcde")}
    later = {name: timing.scaled(2.0) for name, timing in before.items()} | {"f": Timing((7.0,), runs=1)}
    assert bench.speed_of(before, later) == 0.5
    assert bench.speed_of(before, later | {"a": before["a"].scaled(20.0)}) == 0.5
    assert bench.speed_of({}, later) == 1.0


def test_a_part_that_costs_nothing_is_flagged_and_never_zero():
    table = table_of(AdditiveDevice(reshape_ns=0), space())
    unsettled = [entry for entry in table.entries if not entry.settled]
    assert {entry.part for entry in unsettled} == {"reshape"}
    assert all(0 < entry.median_ms <= 1e-6 for entry in unsettled)


def test_what_is_measured_again_is_brought_to_the_speed_of_the_first_rounds(monkeypatch):
    searched, device = space(), AdditiveDevice(reshape_ns=0)
    exact = table_of(AdditiveDevice(reshape_ns=0), searched)
    more_copies = table_building._more_copies

    def slower_from_now_on(recipe: Recipe) -> Recipe:
        device.speed = 1.5
        return more_copies(recipe)

    monkeypatch.setattr(table_building, "_more_copies", slower_from_now_on)
    found = table_of(device, searched)
    assert device.speed == 1.5
    for entry in found.entries:
        assert entry.median_ms == pytest.approx(exact.ms(entry.key))
    assert {entry.part for entry in found.entries if not entry.settled} == {"reshape"}


def test_what_comes_out_above_zero_at_last_is_settled_only_if_it_is_known_well_enough(monkeypatch):
    monkeypatch.setattr(measure, "VISIT_MS", 0.2)
    searched, unknown = space(), set[str]()
    for seed in range(2):
        device = AdditiveDevice(reshape_ns=0)
        device.jitter, device.draw = 0.1, random.Random(seed)
        found = table_of(device, searched)
        largest_ms = sum(found.ms(key) for key in keys(searched.largest))
        for entry in found.entries:
            is_known = entry.standard_error_ms <= 0.01 * max(entry.median_ms, 0.1 * largest_ms)
            assert not entry.settled or is_known
            if entry.median_ms > 1e-6 and not is_known:
                unknown.add(entry.part)
    assert "reshape" in unknown


class Disturbed(AdditiveDevice):
    """At first several equal blocks in a row are quicker than a single one."""

    disturbed = True

    def build(self, module: nn.Module, input_shape: tuple[int, ...]) -> Callable[[], object]:
        run = super().build(module, input_shape)
        several = isinstance(module, SkeletonModule) and len(module.stages[0].blocks) > 1

        def disturbed() -> None:
            if self.disturbed and several:
                self.now_ns += 10_000
            else:
                run()

        return disturbed


def test_parts_that_subtract_what_was_measured_again_follow_from_its_new_value(monkeypatch):
    searched, device = space(tokens=False), Disturbed()
    more_copies = table_building._more_copies

    def undisturbed_from_now_on(recipe: Recipe) -> Recipe:
        device.disturbed = False
        return more_copies(recipe)

    monkeypatch.setattr(table_building, "_more_copies", undisturbed_from_now_on)
    found, exact = table_of(device, searched), table_of(AdditiveDevice(), searched)
    assert not device.disturbed
    for entry in found.entries:
        assert entry.settled
        assert entry.median_ms == pytest.approx(exact.ms(entry.key))


def seconds_of_ten_rounds(searched: SearchSpace) -> float:
    device = AdditiveDevice()
    table_of(device, searched, rounds=10, most_seconds=1e6)
    return device.now_ns / 1e9


def test_nets_are_measured_on_until_every_entry_is_known_well_enough():
    searched, exact = space(tokens=False), table_of(AdditiveDevice(), space(tokens=False))
    largest_ms = exact.latency_ms(searched.largest)

    def table(most_seconds: float) -> LatencyTable:
        device = AdditiveDevice()
        device.jitter = 0.1
        return table_of(device, searched, rounds=10, standard_error_percent=5.0, most_seconds=most_seconds)

    hurried, patient = table(0), table(100 * seconds_of_ten_rounds(searched))
    assert any(not entry.settled for entry in hurried.entries)
    for entry in patient.entries:
        assert entry.settled
        assert entry.standard_error_ms <= 0.05 * max(entry.median_ms, 0.1 * largest_ms) * 1.2
    assert sum(entry.runs for entry in patient.entries) > sum(entry.runs for entry in hurried.entries)
    assert patient.standard_error_ms(searched.largest) < hurried.standard_error_ms(searched.largest)
    assert hurried.protocol.most_seconds == 0


def test_whole_nets_are_measured_on_until_each_is_known_well_enough(monkeypatch):
    monkeypatch.setattr(measure, "VISIT_MS", 0.2)
    searched = space(tokens=False)
    nets = random_nets(searched, 6)

    def timings(most_seconds: float) -> list:
        device = AdditiveDevice()
        device.jitter = 0.1
        options = {"batch_size": 1, "rounds": 10, "copies": 4, "seed": 0, "clock": device.clock}
        limits = {"standard_error_percent": 2.0, "most_seconds": most_seconds}
        return list(build_table(searched, device, whole_nets=lambda _: nets, **options, **limits)[1].values())

    hurried, patient = timings(0), timings(100 * seconds_of_ten_rounds(searched))
    assert any(timing.standard_error_ms > 0.02 * timing.median_ms for timing in hurried)
    assert all(timing.standard_error_ms <= 0.02 * timing.median_ms for timing in patient)


def test_what_is_measured_on_is_brought_to_the_speed_of_the_first_rounds(monkeypatch):
    monkeypatch.setattr(measure, "VISIT_MS", 0.2)
    searched, exact = space(tokens=False), table_of(AdditiveDevice(), space(tokens=False))
    seconds = seconds_of_ten_rounds(searched)
    device = AdditiveDevice()
    device.jitter = 0.04
    device.change_ns, device.later_speed = 1.1e9 * seconds, 1.5
    found = table_of(device, searched, rounds=10, standard_error_percent=1.0, most_seconds=100 * seconds)
    assert device.now_ns > 1.5e9 * seconds
    for net in [searched.largest, *random_nets(searched, 5)]:
        assert found.latency_ms(net) == pytest.approx(exact.latency_ms(net), rel=0.05)


def test_the_table_says_how_many_rounds_were_redone_and_what_drift_it_saw():
    searched, device = space(tokens=False), AdditiveDevice()
    round_ns = 1e8 * seconds_of_ten_rounds(searched)
    exact = table_of(AdditiveDevice(), searched, rounds=6, most_seconds=1e6)
    build = device.build

    def sometimes_slower(module: nn.Module, input_shape: tuple[int, ...]) -> Callable[[], object]:
        run = build(module, input_shape)

        def slower() -> None:
            device.speed = 1.3 if 3.3 * round_ns <= device.now_ns < 3.7 * round_ns else 1.0
            run()

        return slower

    device.build = sometimes_slower  # type: ignore[method-assign]
    found = table_of(device, searched, rounds=6, most_seconds=1e6)
    assert found.protocol.most_redone == 3
    assert 1 <= found.protocol.redone <= 3
    assert found.protocol.drift == pytest.approx((1.0, 1.0), abs=0.31)
    for entry in found.entries:
        assert entry.median_ms == pytest.approx(exact.ms(entry.key), rel=1e-3)
    assert exact.protocol.redone == 0
    assert exact.protocol.drift == (1.0, 1.0)


def test_when_time_is_short_there_are_fewer_rounds_and_the_table_says_how_many():
    searched = space(tokens=False)
    ten = AdditiveDevice()
    table_of(ten, searched, rounds=10, most_seconds=1e6)
    for share, least, most in ((0.0, HURRIED_ROUNDS, HURRIED_ROUNDS), (0.8, 6, 9)):
        device, seen = AdditiveDevice(), []
        found = table_of(
            device,
            searched,
            rounds=10,
            most_seconds=share * ten.now_ns / 1e9,
            progress=lambda *steps, seen=seen: seen.append(steps),
        )
        assert least <= found.protocol.rounds <= most
        assert device.now_ns < max(share, 0.7) * ten.now_ns
        assert found.latency_ms(searched.largest) == pytest.approx(device.latency_ms(searched.largest), rel=1e-3)
        assert seen[-1][0] == seen[-1][1]


def test_where_nets_take_long_to_build_half_of_the_time_is_left_for_measuring():
    class Slow(AdditiveDevice):
        def build(self, module, input_shape):
            self.now_ns += 10 * ten.now_ns
            return super().build(module, input_shape)

    searched = space(tokens=False)
    ten = AdditiveDevice()
    table_of(ten, searched, rounds=10, most_seconds=1e6)
    for share, rounds in ((0.2, HURRIED_ROUNDS), (2.2, 10)):
        assert table_of(Slow(), searched, rounds=10, most_seconds=share * ten.now_ns / 1e9).protocol.rounds == rounds


def test_the_table_states_its_condition():
    table = table_of(AdditiveDevice(threads=3), space(), batch_size=2, rounds=4, copies=2, seed=5)
    assert (table.runtime.name, table.threads, table.batch_size, table.resolution_px) == ("additive", 3, 2, (16, 16))
    assert (table.protocol.rounds, table.protocol.copies, table.protocol.seed) == (4, 2, 5)


def test_every_entry_rests_on_thirty_runs_or_more():
    assert all(entry.runs >= 30 for entry in table_of(AdditiveDevice(), space()).entries)


def test_progress_ends_at_its_total():
    seen = []
    device = AdditiveDevice()
    build_table(
        space(),
        device,
        batch_size=1,
        rounds=2,
        copies=4,
        seed=0,
        most_seconds=0,
        clock=device.clock,
        progress=lambda done, total: seen.append((done, total)),
    )
    blocks, all_work = seen[: seen[0][1]], seen[seen[0][1] :]
    for steps in (blocks, all_work):
        assert steps == sorted(steps)
        assert steps[-1][0] == steps[-1][1]


def test_a_block_recipe_differs_by_its_copies_and_nothing_else():
    searched = space()
    depths = dict(zip(searched.smallest.grids, (stage.depth for stage in searched.stages), strict=True))
    for recipe in recipes(searched, copies=4):
        if recipe.key.part == "block":
            (more,), (fewer,) = recipe.plus.stages, recipe.minus.stages
            assert recipe.copies == min(4, depths[recipe.key.grid])  # no more than a net of the space can hold
            assert more.blocks == fewer.blocks * (1 + recipe.copies)
            assert recipe.plus.model_copy(update={"stages": (fewer,)}) == recipe.minus


def test_building_a_table_leaves_torchs_random_numbers_alone():
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    table_of(AdditiveDevice(), space(tokens=False), rounds=1)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("name", ["onnxruntime", "eager"])
def test_a_real_runtime_fills_the_whole_table(name):
    searched = space(largest=16)
    table, _ = build_table(searched, runtime(name, threads=1), batch_size=1, rounds=2, copies=2, seed=0, most_seconds=0)
    assert {entry.key for entry in table.entries} == required_keys(searched)
    assert table.latency_ms(searched.largest) > table.latency_ms(searched.smallest) > 0


@pytest.mark.timing
def test_the_table_ranks_whole_nets_and_is_within_a_factor_of_two():
    searched, onnx = space(largest=64), runtime("onnxruntime", threads=1)
    nets = random_nets(searched, 20)
    options = {"batch_size": 1, "rounds": 15, "copies": 4, "seed": 0, "most_seconds": 60}
    result = audit(*build_table(searched, onnx, whole_nets=lambda _: nets, **options))
    assert result.kendall_tau > 0.6
    assert result.worst_percent < 100


class Picky(AdditiveDevice):
    """Refuses whatever has this word in its module, from this width on."""

    def __init__(self, word: str, *, from_width: int = 0) -> None:
        super().__init__()
        self.word, self.from_width = word, from_width

    def build(self, module: nn.Module, input_shape: tuple[int, ...]) -> Callable[[], object]:
        if self.word in str(module) and next(module.parameters()).shape[0] >= self.from_width:
            raise RuntimeError("no kernel for\n  this operator")
        return super().build(module, input_shape)


@pytest.mark.parametrize("from_width", [0, 48])
def test_a_candidate_that_the_runtime_cannot_build_at_some_width_is_left_out_and_the_table_says_why(
    tmp_path, from_width
):
    searched, device = space(), Picky("Attention", from_width=from_width)
    asked = []
    table, timings = build_table(
        searched,
        device,
        batch_size=1,
        rounds=3,
        copies=4,
        seed=0,
        most_seconds=0,
        whole_nets=lambda left: [asked.append(left) or left.random(torch.Generator().manual_seed(n)) for n in range(4)],
        clock=device.clock,
    )
    (left_out,) = table.left_out
    assert (left_out.stage, left_out.candidate) == (2, "mb3d")
    width = from_width or 16
    assert left_out.reason.startswith(
        f"additive 1 cannot run a small net of mb3d at {width} channels and 2x2 px, input"
    )
    assert left_out.reason.endswith("(RuntimeError: no kernel for this operator)")
    left = table.runnable(searched)
    assert [[candidate.name for candidate in stage.candidates] for stage in left.stages] == [["mb4d", "identity"]] * 2
    assert asked == [left] * 4
    assert {entry.key for entry in table.entries} == required_keys(left)
    assert table.latency_ms(left.largest) > 0
    assert len(timings) == len({left.random(torch.Generator().manual_seed(n)) for n in range(4)})
    table.save(tmp_path / "table.json")
    assert LatencyTable.load(tmp_path / "table.json") == table


def test_a_table_of_a_runtime_that_builds_all_leaves_nothing_out():
    table = table_of(AdditiveDevice(), space())
    assert table.left_out == ()
    assert table.runnable(space()) == space()


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("PoolMixer", "stage 1: additive 1 cannot run a small net of mb4d .*at least one block besides identity"),
        ("DownsamplingModule", "additive 1 cannot run a small net of mb4d .* and mb4d .*; take other candidates, or"),
        ("HeadModule", "additive 1 cannot run a small net of .*no kernel for this operator"),
        ("SkeletonModule", "stage 1: additive 1 cannot run a small net of mb4d at 16 .*; stage 2: additive"),
    ],
)
def test_what_a_space_cannot_do_without_must_be_built(word, message):
    with pytest.raises(UserError, match=message) as refused:
        table_of(Picky(word), space())
    assert "\n" not in str(refused.value)


def test_a_full_disk_is_not_the_blocks_fault():
    class Full(AdditiveDevice):
        def build(self, module: nn.Module, input_shape: tuple[int, ...]) -> Callable[[], object]:
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        table_of(Full(), space())
