"""The audit's errors and the linear correction."""

from __future__ import annotations

import pytest

from search.latency_audit import LatencyPair, errors, fit_correction
from supernet import published_architecture

NET = published_architecture("efficientformer_l1")


def pair(predicted_ms: float, measured_ms: float) -> LatencyPair:
    return LatencyPair(
        digest="0" * 16,
        architecture=NET,
        predicted_ms=predicted_ms,
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


def test_a_correction_without_nets_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        fit_correction([])
