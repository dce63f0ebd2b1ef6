"""The clock: interleaving, drift, interruptions and how many calls make a sample."""

from __future__ import annotations

import gc
import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from search import measure as measure_module
from search.measure import HURRIED_ROUNDS, Machine, Rounds, Timing, machine, measure, most_redone


class FakeClock:
    """Nanoseconds that pass only when a net says so."""

    def __init__(self) -> None:
        self.now_ns = 0
        self.order: list[str] = []
        self.speed = 1.0

    def __call__(self) -> int:
        return self.now_ns

    def net(self, name: str, duration_ns: int) -> Callable[[], None]:
        def run() -> None:
            self.order.append(name)
            self.now_ns += round(duration_ns * self.speed)

        return run


@pytest.fixture(autouse=True)
def nothing_interrupts(monkeypatch: pytest.MonkeyPatch) -> None:
    """What else runs on the machine must not decide how often a fake net is called."""
    monkeypatch.setattr(measure_module, "_interruptions", lambda: 0)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def visits(order: list[str]) -> list[str]:
    return [name for name, _ in itertools.groupby(order)]


def test_the_median_of_a_constant_net_is_its_duration():
    clock = FakeClock()
    timing = measure({"a": clock.net("a", 1_500_000)}, rounds=5, warmup=1, generator=seeded(), clock=clock)["a"]
    assert (timing.median_ms, timing.p10_ms, timing.p90_ms) == pytest.approx((1.5, 1.5, 1.5))


def test_the_standard_error_of_a_median_is_what_repetitions_show():
    draw = np.random.default_rng(0)
    timings = [Timing(tuple(draw.normal(10.0, 1.0, 40)), runs=40) for _ in range(400)]
    seen = np.std([timing.median_ms for timing in timings])
    assert np.mean([timing.standard_error_ms for timing in timings]) == pytest.approx(seen, rel=0.15)
    assert Timing((1.0,), runs=1).standard_error_ms == float("inf")


def test_joined_timings_hold_all_samples_at_the_first_ones_speed():
    joined = Timing((1.0, 1.2), runs=2).joined(Timing((2.2, 2.0, 2.4), runs=3), speed=0.5)
    assert joined.samples_ms == pytest.approx((1.0, 1.2, 1.1, 1.0, 1.2))
    assert joined.runs == 5


def test_every_round_visits_all_nets_in_a_fresh_order():
    clock = FakeClock()
    nets = {name: clock.net(name, 11_000_000) for name in "abcdef"}
    measure(nets, rounds=6, warmup=1, generator=seeded(), clock=clock, min_runs=1)
    per_round = [tuple(clock.order[i : i + 12 : 2]) for i in range(6, len(clock.order), 12)]  # settle and timed call
    assert len(per_round) == 6
    assert all(sorted(order) == list("abcdef") for order in per_round)
    assert len(set(per_round)) > 1


def test_the_same_seed_gives_the_same_order():
    orders = []
    for _ in range(2):
        clock = FakeClock()
        measure(
            {name: clock.net(name, 2_000_000) for name in "abcdef"},
            rounds=3,
            warmup=1,
            generator=seeded(7),
            clock=clock,
        )
        orders.append(visits(clock.order))
    assert orders[0] == orders[1]


@pytest.mark.parametrize("rounds", [1, 4, 40])
def test_every_net_is_timed_at_least_min_runs_times(rounds):
    clock = FakeClock()
    nets = {"long": clock.net("long", 50_000_000), "short": clock.net("short", 1_000)}
    timings = measure(nets, rounds=rounds, warmup=1, generator=seeded(), clock=clock, min_runs=30)
    for name, timing in timings.items():
        assert 30 <= timing.runs <= clock.order.count(name)


def test_a_net_below_the_clocks_noise_is_timed_over_many_calls():
    clock = FakeClock()
    reads = []

    def counting() -> int:
        reads.append(clock.now_ns)
        return clock.now_ns

    measure({"a": clock.net("a", 1_000)}, rounds=1, warmup=1, generator=seeded(), clock=counting, min_runs=1)
    spans = [later - earlier for earlier, later in itertools.pairwise(reads)]
    assert max(spans) >= 0.2e6


def test_a_visit_is_timed_when_its_net_has_settled():
    clock, others, since_ns = FakeClock(), "", 0

    def net(name: str, warm_ns: int) -> Callable[[], None]:
        def run() -> None:
            nonlocal others, since_ns
            if others != name:
                others, since_ns = name, clock.now_ns
            clock.now_ns += warm_ns if clock.now_ns - since_ns >= 8_000_000 else 2 * warm_ns

        return run

    nets = {"a": net("a", 400_000), "b": net("b", 1_000_000), "c": net("c", 9_000_000)}
    timings = measure(nets, rounds=5, warmup=1, min_runs=1, generator=seeded(), clock=clock)
    assert [timing.median_ms for timing in timings.values()] == pytest.approx([0.4, 1.0, 9.0])


def test_drift_that_hits_all_nets_alike_is_divided_out():
    clock = FakeClock()
    nets = {name: clock.net(name, 1_000_000 * (1 + "abcdef".index(name))) for name in "abcdef"}
    speeds = [1.0, 1.0, 1.5, 2.0, 1.0, 0.8, 1.0]

    def slow_down(done: int, rounds: int) -> None:
        clock.speed = speeds[done] if done < rounds else 1.0

    timings = measure(nets, rounds=7, warmup=1, generator=seeded(), clock=clock, progress=slow_down)
    for name, timing in timings.items():
        assert timing.samples_ms == pytest.approx([1.0 + "abcdef".index(name)] * 7, rel=1e-3)


def rounds_of(
    clock: FakeClock, speeds: list[dict[str, float]], *, rounds: int, until_ns: float = math.inf
) -> tuple[dict[str, Timing], Rounds, int]:
    """Twenty nets of 11 to 30 ms, slowed down by name in some rounds: their timings, the rounds, and their number.

    The first visit of a net is its warm-up, so its visit number is that of the round.
    """
    taken, names = dict.fromkeys("abcdefghijklmnopqrst", 0), "abcdefghijklmnopqrst"

    def net(name: str) -> Callable[[], None]:
        def run() -> None:
            round_number = (taken[name] - 1) // 2  # two calls a round: settle, sample
            taken[name] += 1
            slower = speeds[round_number].get(name, 1.0) if 0 <= round_number < len(speeds) else 1.0
            clock.now_ns += round(1_000_000 * (11 + names.index(name)) * slower)

        return run

    seen: list[Rounds] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure_module, "_interruptions", lambda: 0)
        timings = measure(
            {name: net(name) for name in names},
            rounds=rounds,
            warmup=1,
            min_runs=1,
            generator=seeded(),
            until_ns=until_ns,
            seen=seen.append,
            clock=clock,
        )
    (told,) = seen
    return timings, told, (taken["a"] - 1) // 2


@pytest.mark.parametrize("disturbed", ["abc", "abcdefghij"])
def test_a_round_in_which_some_nets_were_slowed_down_is_thrown_away_and_measured_again(disturbed):
    calm: dict[str, float] = {}
    timings, rounds, count = rounds_of(FakeClock(), [calm, calm, dict.fromkeys(disturbed, 1.5), calm], rounds=6)
    assert (rounds.redone, count) == (1, 7)
    for index, timing in enumerate(timings.values()):
        assert timing.samples_ms == pytest.approx([11.0 + index] * 6)


@pytest.mark.parametrize(
    "speeds",
    [
        [{}, dict.fromkeys("abcdefghijklmnopqrst", 1.7)],  # drift: all nets alike
        [{}, {"a": 3.0}],  # one net: the others' round is as good as ever
        [{name: 1 + 0.002 * index for index, name in enumerate("abcdefgh")}],  # below what matters
        [dict.fromkeys("abcdefgh", 1.3), dict.fromkeys("efghijkl", 1.3), dict.fromkeys("ijklmnop", 1.3)],  # usual here
    ],
)
def test_drift_and_what_is_usual_are_no_disturbance(speeds):
    _, rounds, count = rounds_of(FakeClock(), speeds, rounds=5)
    assert (rounds.redone, count) == (0, 5)


def test_a_disturbed_round_does_not_count_where_no_time_is_left_to_measure_it_again():
    calm, busy = {}, dict.fromkeys("abcdef", 2.0)
    timings, rounds, count = rounds_of(FakeClock(), [calm, busy, calm, calm, calm, calm], rounds=6, until_ns=0.0)
    assert count == HURRIED_ROUNDS == 5
    assert (rounds.done, rounds.redone, rounds.dropped) == (4, 0, 1)
    for index, timing in enumerate(timings.values()):
        assert timing.samples_ms == pytest.approx([11.0 + index] * 4)
    joined = rounds.joined(Rounds(done=9, dropped=2), speed=1.0)
    assert (joined.done, joined.dropped) == (4, 3)


def test_torch_runs_in_inference_mode_and_on_the_threads_that_are_asked_for_and_then_as_before():
    before, seen = torch.get_num_threads(), set()

    def net() -> None:
        seen.add((torch.get_num_threads(), torch.is_inference_mode_enabled()))

    measure({"net": net}, rounds=1, warmup=1, min_runs=1, threads=before + 1, generator=seeded())
    assert seen == {(before + 1, True)}
    assert (torch.get_num_threads(), torch.is_inference_mode_enabled()) == (before, False)


def test_no_more_rounds_are_redone_than_stated():
    calm, busy = [{}, {}, {}, {}, {}, {}], [dict.fromkeys("abcdef"[k:], 2.0) for k in range(4)]
    _, rounds, count = rounds_of(FakeClock(), [*calm, *busy, *busy, *busy], rounds=10)
    assert rounds.redone == most_redone(10) == 5
    assert count == 15


def test_the_smallest_and_largest_drift_of_a_round_are_told():
    every = "abcdefghijklmnopqrst"
    speeds = [{}, dict.fromkeys(every, 1.5), {}, dict.fromkeys(every, 0.8), {}]
    _, rounds, _ = rounds_of(FakeClock(), speeds, rounds=5)
    assert (rounds.fastest, rounds.slowest) == pytest.approx((0.8, 1.5))
    joined = rounds.joined(Rounds(redone=2, fastest=0.9, slowest=1.1), speed=0.5)  # on a machine half as fast by then
    assert (joined.redone, joined.fastest, joined.slowest) == pytest.approx((2, 0.8, 2.2))


def test_a_single_net_keeps_its_own_spread():
    clock = FakeClock()

    def slow_down(done: int, rounds: int) -> None:
        clock.speed = 1.0 + 0.1 * done

    timing = measure(
        {"a": clock.net("a", 2_000_000)}, rounds=5, warmup=1, generator=seeded(), clock=clock, progress=slow_down
    )["a"]
    assert timing.p90_ms > 1.2 * timing.p10_ms


def test_an_interrupted_sample_is_taken_again(monkeypatch):
    clock = FakeClock()
    calls = itertools.count()
    interruptions = 0

    def net() -> None:
        nonlocal interruptions
        clock.now_ns += 1_000_000
        if next(calls) % 3 == 2:  # every third call loses the core
            clock.now_ns += 4_000_000
            interruptions += 1

    monkeypatch.setattr(measure_module, "_interruptions", lambda: interruptions)
    timing = measure({"a": net}, rounds=10, warmup=1, generator=seeded(), clock=clock)["a"]
    assert timing.samples_ms == pytest.approx([1.0] * 10)


def test_rounds_in_which_every_take_was_interrupted_do_not_count_and_are_made_up_for(monkeypatch):
    clock, interruptions, busy = FakeClock(), itertools.count(), False

    def net() -> None:
        clock.now_ns += 5_000_000 if busy else 1_000_000

    def next_round(done: int, rounds: int) -> None:
        nonlocal busy
        busy = done % 2 == 1

    monkeypatch.setattr(measure_module, "_interruptions", lambda: next(interruptions) if busy else 0)
    timing = measure({"a": net}, rounds=30, warmup=1, generator=seeded(), clock=clock, progress=next_round)["a"]
    assert timing.samples_ms == pytest.approx([1.0] * len(timing.samples_ms))
    assert timing.runs >= 30


def test_a_sample_that_is_always_interrupted_counts_as_its_fastest_take(monkeypatch):
    clock, interruptions = FakeClock(), itertools.count()
    monkeypatch.setattr(measure_module, "_interruptions", lambda: next(interruptions))
    timing = measure({"a": clock.net("a", 1_000_000)}, rounds=2, warmup=1, generator=seeded(), clock=clock)["a"]
    assert timing.median_ms == pytest.approx(1.0)


def test_garbage_collection_rests_while_measuring_and_comes_back():
    seen = []
    measure({"a": lambda: seen.append(gc.isenabled())}, rounds=1, warmup=1, generator=seeded())
    assert gc.isenabled()
    assert not any(seen)


@pytest.mark.parametrize(("rounds", "warmup"), [(0, 1), (1, 0)])
def test_rounds_and_warmup_below_one_are_refused(rounds, warmup):
    with pytest.raises(ValueError, match="must be 1 or more"):
        measure({"a": lambda: None}, rounds=rounds, warmup=warmup, generator=seeded())


def test_the_machine_names_its_processor_and_cores():
    here = machine()
    assert here.cpu
    assert here.cores >= 1


@pytest.mark.parametrize(("content", "governor"), [("performance\n", "performance"), (None, "")])
def test_the_machine_names_its_frequency_governor_where_it_tells(tmp_path, monkeypatch, content, governor):
    path = tmp_path / "scaling_governor"
    if content is not None:
        path.write_text(content)
    monkeypatch.setattr(measure_module, "GOVERNOR", path)
    assert machine().governor == governor


CPUINFO = """processor\t: 0
cpu family\t: 25
model\t\t: {model}
model name\t: AMD EPYC
flags\t\t: fpu avx2 {flags} sse4_2

processor\t: 1
model\t\t: 99
"""


def test_processors_of_one_name_are_told_apart_by_model_and_instruction_sets():
    told = {}
    for name, model, flags in (("old", 1, ""), ("new", 17, "avx512f avx512_bf16")):
        processor = measure_module._processor(measure_module._first_processor(CPUINFO.format(model=model, flags=flags)))
        told[name] = Machine(cpu="AMD EPYC", cores=2, memory_gb=24.0, system="Linux", processor=processor)
    assert told["new"].described == "AMD EPYC (family 25 model 17, avx2, avx512f, avx512_bf16)"
    assert not told["old"].same_processor(told["new"])
    assert told["new"].same_processor(told["new"].model_copy(update={"cores": 8}))
    untold = told["old"].model_copy(update={"processor": ""})
    assert untold.described == "AMD EPYC"
    assert untold.same_processor(told["old"])
    assert untold.same_processor(told["new"])
    assert not untold.same_processor(untold.model_copy(update={"cpu": "Intel"}))


def test_a_slug_is_fit_for_a_file_name():
    here = Machine(cpu="Intel(R) Xeon(R) CPU @ 2.20GHz", cores=2, memory_gb=24.0, system="Linux")
    assert here.slug == "intel-r-xeon-r-cpu-2-20ghz"
