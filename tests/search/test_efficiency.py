"""The Mobile Efficiency Score: its formula, the published constants, and whose parameters it counts."""

from __future__ import annotations

import pytest

from search.efficiency import MobileEfficiency
from supernet.cost import cost
from supernet.schema import UserError, parse
from supernet.space import SearchSpace


@pytest.mark.parametrize(
    ("millions", "latency_ms", "score"),
    [(3.5, 0.9, 102.9), (12.3, 1.4, 35.3), (3.0, 1.0, 100.0)],  # MobileNetV2, EfficientFormer-L1, the unit itself
)
def test_the_defaults_give_the_scores_noted_as_published(millions: float, latency_ms: float, score: float) -> None:
    assert MobileEfficiency().score(millions=millions, latency_ms=latency_ms) == pytest.approx(score, abs=0.05)


def test_a_smaller_and_a_faster_net_score_higher_each_by_its_exponent() -> None:
    efficiency = MobileEfficiency(size_exponent=2.0, latency_exponent=3.0, size_unit_millions=5.0, latency_unit_ms=7.0)
    whole = efficiency.score(millions=5.0, latency_ms=7.0)
    assert whole == 100.0
    assert efficiency.score(millions=2.5, latency_ms=7.0) == pytest.approx(4 * whole)
    assert efficiency.score(millions=5.0, latency_ms=3.5) == pytest.approx(8 * whole)


def test_the_parameters_are_those_of_the_standalone_model(space: SearchSpace) -> None:
    efficiency = MobileEfficiency()
    for architecture in (space.largest, space.smallest):
        expected = efficiency.score(millions=cost(architecture).parameters / 1e6, latency_ms=2.0)
        assert efficiency.of(architecture, latency_ms=2.0) == pytest.approx(expected)


@pytest.mark.parametrize("field", ["size_unit_millions", "latency_unit_ms"])
def test_a_unit_of_nothing_is_refused(field: str) -> None:
    with pytest.raises(UserError, match=f"x: {field}: .*greater than 0"):
        parse(MobileEfficiency, {field: 0.0}, source="x")
