"""Delivery: whatever the table's bias, what is delivered measures within its budget, or nothing is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from search.delivery import Delivery, deliver
from search.slimming import BudgetUnreachable, WalkEnded
from supernet.architecture import Architecture
from supernet.space import SearchSpace

BUDGET_MS = 5.0  # of 2.87 to 5.83 ms by uniform scaling


@pytest.fixture(scope="module")
def scaled(space: SearchSpace) -> list[Architecture]:
    """Uniformly scaled architectures of all sizes."""
    return list({a.digest: a for a in (space.scaled(percent / 100) for percent in range(101))}.values())


@pytest.fixture
def solve(scaled: list[Architecture], table: Any) -> Callable[[float], Architecture]:
    """The slowest of them within a latency."""

    def solved(asked_ms: float) -> Architecture:
        by_latency = sorted(scaled, key=table.latency_ms)
        if table.latency_ms(by_latency[0]) > asked_ms:
            raise BudgetUnreachable(asked_ms, table.latency_ms(by_latency[0]))
        return [architecture for architecture in by_latency if table.latency_ms(architecture) <= asked_ms][-1]

    return solved


@pytest.fixture
def run(solve: Callable[[float], Architecture], table: Any) -> Callable[..., Delivery]:
    """Delivers at BUDGET_MS with a device that is `bias` times as slow as the table says, plus a constant."""

    def delivered(*, bias: float = 1.0, constant_ms: float = 0.0, margin: float = 0.02, **options: Any) -> Delivery:
        return deliver(
            **{
                "budget_ms": BUDGET_MS,
                "margin": margin,
                "solve": solve,
                "predict_ms": table.latency_ms,
                "measure_ms": lambda architecture: bias * table.latency_ms(architecture) + constant_ms,
                **options,
            }
        )

    return delivered


@pytest.mark.parametrize("bias", [0.5, 0.9, 1.0, 1.1, 1.3, 1.5])
@pytest.mark.parametrize("constant_ms", [0.0, 0.3])
def test_a_delivered_net_measures_within_the_margin_of_its_budget(
    run: Callable[..., Delivery], table: Any, bias: float, constant_ms: float
) -> None:
    delivery = run(bias=bias, constant_ms=constant_ms)
    assert delivery.measured_ms <= 0.98 * BUDGET_MS
    last = delivery.rounds[-1]
    assert last.digest == delivery.architecture.digest
    assert last.predicted_ms == table.latency_ms(delivery.architecture)
    assert last.measured_ms == pytest.approx(bias * last.predicted_ms + constant_ms)
    assert all(round_.measured_ms > 0.98 * BUDGET_MS for round_ in delivery.rounds[:-1])


def test_every_round_asks_for_less_and_gets_a_smaller_net(run: Callable[..., Delivery]) -> None:
    delivery = run(bias=1.2, constant_ms=0.35)
    assert len(delivery.rounds) > 1
    for before, after in zip(delivery.rounds, delivery.rounds[1:], strict=False):
        assert after.asked_ms < before.predicted_ms
        assert after.predicted_ms < before.predicted_ms


def test_a_table_without_bias_needs_one_round(run: Callable[..., Delivery]) -> None:
    (only,) = run().rounds
    assert only.asked_ms == pytest.approx(0.98 * BUDGET_MS)


def test_the_measured_ratio_is_corrected_in_one_step_where_the_bias_is_a_factor(run: Callable[..., Delivery]) -> None:
    first, second = run(bias=1.25).rounds
    assert second.asked_ms == pytest.approx(first.asked_ms / 1.25)


@pytest.mark.parametrize("bias", [0.5, 0.75, 0.9, 1.1, 1.3])
@pytest.mark.parametrize("constant_ms", [0.0, 0.3])
def test_with_little_slack_no_slower_net_would_have_fitted(
    run: Callable[..., Delivery], scaled: list[Architecture], table: Any, bias: float, constant_ms: float
) -> None:
    delivery = run(bias=bias, constant_ms=constant_ms, slack=0.001, max_rounds=20)
    latencies = [bias * table.latency_ms(architecture) + constant_ms for architecture in scaled]
    assert delivery.measured_ms == max(ms for ms in latencies if ms <= 0.98 * BUDGET_MS)
    assert delivery.delivered.digest == delivery.architecture.digest


def test_a_net_that_leaves_room_is_kept_where_the_slack_allows_it(run: Callable[..., Delivery]) -> None:
    assert len(run(bias=0.8, slack=0.3).rounds) == 1
    assert len(run(bias=0.8, slack=0.03).rounds) > 1


def test_a_slower_net_that_does_not_fit_is_not_delivered(run: Callable[..., Delivery], space: SearchSpace) -> None:
    small, large = space.scaled(0.3), space.scaled(1.0)
    sizes = {small.digest: 4.0, large.digest: 7.0}
    delivery = run(
        solve=lambda asked_ms: large if asked_ms > 5.1 else small,
        predict_ms=lambda net: sizes[net.digest],
        measure_ms=lambda net: sizes[net.digest] * 0.9,
        slack=0.03,
    )
    assert delivery.architecture == small
    assert [round_.measured_ms for round_ in delivery.rounds] == [pytest.approx(3.6), pytest.approx(6.3)]
    assert delivery.shortfall == "28.0 % below the budget: the next slower net that the method gave measures 6.3 ms"


def test_what_fills_its_budget_falls_short_of_nothing(run: Callable[..., Delivery]) -> None:
    assert run(margin=0.0, slack=0.3).shortfall is None
    assert run(measure_ms=None).shortfall is None


def test_the_margin_is_a_reason_too(run: Callable[..., Delivery], space: SearchSpace) -> None:
    kept = {"solve": lambda asked_ms: space.smallest, "predict_ms": lambda net: 1.0, "slack": 0.03, "budget_ms": 5.0}
    near = run(**kept, measure_ms=lambda net: 4.8, margin=0.02)  # 0.96 of the budget, of which 0.98 may be used
    assert near.shortfall == "4.0 % below the budget: a margin of 2 % is kept free, and up to 3 % of the rest"
    assert run(**kept, measure_ms=lambda net: 4.86, margin=0.02).shortfall is None


def test_a_method_that_gives_no_slower_net_is_said_to_give_none_for_what_was_asked(
    run: Callable[..., Delivery], space: SearchSpace
) -> None:
    asked: list[float] = []
    delivery = run(solve=lambda asked_ms: asked.append(asked_ms) or space.smallest, slack=0.03)
    assert len(asked) == 2
    assert delivery.shortfall is not None
    assert delivery.shortfall.endswith(
        f"% below the budget: the method gives no slower net that is predicted to take at most {asked[-1]:.4g} ms"
    )


def test_rounds_that_were_used_up_are_the_reason(run: Callable[..., Delivery]) -> None:
    delivery = run(bias=0.8, constant_ms=0.3, slack=0.001, max_rounds=1)
    assert delivery.shortfall is not None
    assert delivery.shortfall.endswith("there were no more than 1 rounds")


def test_without_a_measurement_the_prediction_decides(run: Callable[..., Delivery], table: Any) -> None:
    delivery = run(measure_ms=None)
    (only,) = delivery.rounds
    assert only.measured_ms is delivery.measured_ms is None
    assert only.predicted_ms == table.latency_ms(delivery.architecture) <= 0.98 * BUDGET_MS


@pytest.mark.parametrize(("margin", "goal_ms"), [(0.0, 5.0), (0.1, 4.5)])
def test_the_margin_is_taken_off_the_budget(run: Callable[..., Delivery], margin: float, goal_ms: float) -> None:
    delivery = run(margin=margin)
    assert delivery.rounds[0].asked_ms == pytest.approx(goal_ms)
    assert delivery.measured_ms <= goal_ms


def test_a_net_within_its_budget_but_not_by_the_margin_is_slimmed_on(run: Callable[..., Delivery]) -> None:
    (alone,) = run().rounds
    delivery = run(bias=0.99 * BUDGET_MS / alone.predicted_ms)
    assert delivery.rounds[0].measured_ms == pytest.approx(0.99 * BUDGET_MS)
    assert len(delivery.rounds) == 2
    assert delivery.measured_ms <= 0.98 * BUDGET_MS


def test_a_net_that_was_too_slow_before_begins_lower(run: Callable[..., Delivery], table: Any) -> None:
    delivery = run(ask_at_most_ms=4.0)
    assert delivery.rounds[0].asked_ms == 4.0
    assert table.latency_ms(delivery.architecture) <= 4.0
    assert run(ask_at_most_ms=99.0).rounds[0].asked_ms == pytest.approx(0.98 * BUDGET_MS)


def test_the_same_net_is_measured_once(run: Callable[..., Delivery], space: SearchSpace, table: Any) -> None:
    measured: list[str] = []

    def measure_ms(architecture: Architecture) -> float:
        measured.append(architecture.digest)
        return 99.0

    with pytest.raises(BudgetUnreachable):
        run(measure_ms=measure_ms, solve=lambda asked_ms: space.smallest)
    assert measured == [space.smallest.digest]


def test_after_its_rounds_it_gives_up_with_the_smallest_that_it_measured(
    run: Callable[..., Delivery], table: Any
) -> None:
    measured: list[float] = []

    def measure_ms(architecture: Architecture) -> float:
        measured.append(BUDGET_MS + 0.01 * table.latency_ms(architecture))  # ever closer, and never within
        return measured[-1]

    with pytest.raises(BudgetUnreachable, match="budget 5 ms was missed 3 times") as refused:
        run(measure_ms=measure_ms, max_rounds=3)
    assert len(measured) == 3
    assert (refused.value.budget_ms, refused.value.smallest_ms) == (BUDGET_MS, min(measured))


def test_a_space_that_is_exhausted_is_told_with_the_budget_that_was_asked_for(
    run: Callable[..., Delivery], space: SearchSpace, table: Any
) -> None:
    # the device is 2.5 times as slow as the table says, so the smallest scaled net is too slow as well
    smallest_ms = 2.5 * table.latency_ms(space.scaled(0.0))
    assert smallest_ms > BUDGET_MS
    with pytest.raises(BudgetUnreachable, match="budget 5 ms is out of reach") as refused:
        run(bias=2.5)
    assert refused.value.budget_ms == BUDGET_MS
    assert refused.value.smallest_ms == pytest.approx(smallest_ms / 0.98)


def test_a_delivery_is_plain_data(run: Callable[..., Delivery]) -> None:
    delivery = run(bias=1.2)
    assert Delivery.model_validate_json(delivery.model_dump_json()) == delivery


def test_a_walk_that_ended_is_said_of_the_budget_and_stays_what_it_is() -> None:
    def solve(asked_ms: float) -> Architecture:
        raise WalkEnded(asked_ms, 2 * asked_ms)

    with pytest.raises(WalkEnded, match="budget 5 ms is out of reach of greedy slimming: its way ends at 10 ms"):
        deliver(budget_ms=5.0, margin=0.02, solve=solve, predict_ms=lambda net: 1.0, measure_ms=None)
