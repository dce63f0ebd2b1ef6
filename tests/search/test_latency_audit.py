"""The audit's errors and the linear correction."""

from __future__ import annotations

import numpy as np
import pytest

from search.correction import Correction, fit_correction
from search.latency_audit import LatencyAudit, LatencyPair, errors
from search.measure import Timing
from supernet import published_architecture

NET = published_architecture("efficientformer_l1")


def pair(predicted_ms: float, measured_ms: float, *, numbers: int = 0, **kinds_ms: float) -> LatencyPair:
    return LatencyPair(
        digest="0" * 16,
        architecture=NET,
        numbers=numbers,
        predicted_ms=predicted_ms,
        kinds_ms=kinds_ms or {"whole": predicted_ms},
        measured_ms=measured_ms,
        measured_p10_ms=measured_ms,
        measured_p90_ms=measured_ms,
        remeasured_ms=measured_ms,
    )


def test_errors_are_relative_to_the_measurement():
    found = errors([pair(1.09, 1.0), pair(1.82, 2.0), pair(3.9, 3.0)])
    assert found.mean_absolute_error_percent == pytest.approx((9 + 9 + 30) / 3)
    assert found.bias_percent == pytest.approx((9 - 9 + 30) / 3)
    assert found.worst_percent == pytest.approx(30)
    assert found.within_5_percent == 0
    assert found.within_10_percent == pytest.approx(200 / 3)
    assert found.kendall_tau == pytest.approx(1.0)


def test_rank_correlation_of_a_single_net_is_unknown():
    assert errors([pair(1.0, 1.0)]).kendall_tau is None


def test_a_correction_finds_the_constant_and_the_scale():
    found = fit_correction([pair(ms, 0.2 + 1.3 * ms) for ms in (0.5, 1.0, 2.0, 4.0)])
    assert (found.constant_ms, found.scale) == pytest.approx((0.2, 1.3))


def test_a_correction_is_never_negative():
    found = fit_correction([pair(ms, 1.3 * ms - 0.3) for ms in (0.5, 1.0, 2.0, 4.0)])
    assert found.constant_ms == 0.0
    assert found.scale > 0


def test_a_correction_keeps_the_order_of_predictions_that_explain_nothing():
    assert fit_correction([pair(1.0, 2.0), pair(2.0, 1.0), pair(3.0, 0.5)]).scale > 0


def test_one_net_corrects_the_scale_alone():
    found = fit_correction([pair(1.0, 1.25)])
    assert (found.constant_ms, found.scale) == pytest.approx((0.0, 1.25))


def nets_of(kinds: dict[str, float], *, noise: float, count: int = 20) -> list[LatencyPair]:
    """Nets whose kinds of parts take so many times what the table says, in random shares."""
    draw = np.random.default_rng(0)
    found = []
    for _ in range(count):
        parts = {kind: float(draw.uniform(0.1, 1.0)) for kind in kinds}
        measured = sum(kinds[kind] * ms for kind, ms in parts.items()) * (1 + noise * draw.standard_normal())
        found.append(pair(sum(parts.values()), measured, **parts))
    return found


def mean_error(correction: Correction, judged: list[LatencyPair]) -> float:
    predicted_ms = [correction.of(net.kinds_ms, numbers=net.numbers) for net in judged]
    return float(np.mean([abs(ms / net.measured_ms - 1) for ms, net in zip(predicted_ms, judged, strict=True)]))


def test_a_kind_of_part_that_takes_longer_than_measured_gets_a_factor_of_its_own():
    nets = nets_of({"a": 1.0, "b": 1.3, "c": 0.9}, noise=0.0, count=40)
    found = fit_correction(nets[:20])
    assert mean_error(found, nets[20:]) < 0.005
    assert {kind: found.factor(kind) for kind in "abc"} == pytest.approx({"a": 1.0, "b": 1.3, "c": 0.9}, rel=0.03)


def test_where_kinds_do_not_differ_noise_gives_them_hardly_a_factor():
    nets = nets_of(dict.fromkeys("abcdef", 1.1), noise=0.03, count=400)
    found = fit_correction(nets[:12])
    assert mean_error(found, nets[12:]) < mean_error(Correction(scale=1.1), nets[12:]) + 0.01


def crowded_nets(*, each_ms: float, noise: float, count: int) -> list[LatencyPair]:
    """Nets that take as long as their parts, and `each_ms` more for every million numbers above a third of one."""
    draw = np.random.default_rng(1)
    found = []
    for _ in range(count):
        millions, parts_ms = draw.uniform(0.05, 0.8), {kind: float(draw.uniform(0.1, 1.0)) for kind in "ab"}
        measured_ms = sum(parts_ms.values()) + each_ms * max(0.0, millions - 0.33)
        measured_ms *= 1 + noise * draw.standard_normal()
        found.append(pair(sum(parts_ms.values()), measured_ms, numbers=round(1e6 * millions), **parts_ms))
    return found


def test_what_finds_no_room_in_a_cache_is_told_from_what_parts_take():
    nets = crowded_nets(each_ms=0.4, noise=0.003, count=240)
    found = fit_correction(nets[:40])
    assert found.crowding is not None
    assert found.crowding.of == "numbers"
    assert found.crowding.above_millions == pytest.approx(0.33, abs=0.1)
    assert found.crowding.ms_per_million == pytest.approx(0.4, rel=0.25)
    assert mean_error(found, nets[40:]) < 0.01 < mean_error(Correction(scale=1.05), nets[40:])


def test_where_size_costs_nothing_more_there_is_no_crowding():
    assert fit_correction(crowded_nets(each_ms=0.0, noise=0.01, count=40)).crowding is None


def test_few_nets_correct_the_line_alone():
    assert fit_correction(nets_of({"a": 1.0, "b": 1.3}, noise=0.0, count=7)).scales == {}


def test_a_correction_without_nets_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        fit_correction([])


def audit_of(pairs: list[LatencyPair]) -> LatencyAudit:
    condition = {"runtime": "eager", "precision": "fp32", "threads": 1, "batch_size": 1}
    fitted = {"remeasurement_percent": 0.0, "correction": fit_correction(pairs), "held_out": None}
    return LatencyAudit(**errors(pairs).model_dump(), **condition, pairs=tuple(pairs), **fitted)


def test_the_machines_slowdown_is_the_median_factor_of_the_nets_that_are_measured_again():
    nets = [NET.model_copy(update={"resolution_px": (side, side)}) for side in (32, 64, 96, 128)]
    audited = audit_of([pair(1.0, ms).model_copy(update={"architecture": net}) for ms, net in enumerate(nets, start=1)])
    again = {net: Timing((ms,), runs=1) for net, ms in zip(nets[1:], (2 * 1.5, 3 * 9.0, 4 * 2.0), strict=True)}
    assert audited.slowdown(again) == pytest.approx(2.0)
    with pytest.raises(KeyError):
        audited.slowdown({NET: Timing((1.0,), runs=1)})
