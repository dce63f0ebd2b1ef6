"""The intervals of a comparison: over searches and over retrainings, and how two methods differ."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from experiments.compare_record import MethodResult, StudiedNet, difference_of, interval_of, method_result, overall
from experiments.experiment import Method
from experiments.study_units import FailedTraining


def test_the_interval_of_a_method_covers_its_searches_and_its_retrainings() -> None:
    searches_differ = {0: (80.0, 80.2), 1: (84.0, 84.2)}
    interval, by = interval_of(searches_differ)
    assert by == "Student's t over search seeds"
    assert interval is not None
    assert interval[0] < 80 < 84 < interval[1]
    one_net = {0: (80.0, 82.0, 81.0), 1: (80.0, 82.0, 81.0)}  # both searches found it
    interval, by = interval_of(one_net)
    assert by == "Student's t over retraining seeds"
    assert interval == pytest.approx((81 - 2.4841, 81 + 2.4841), abs=1e-3)
    assert interval_of({0: (80.0,)}) == (None, None)
    assert interval_of({}) == (None, None)


def test_a_difference_is_paired_by_seeds_and_says_how() -> None:
    reference = {0: (80.0, 80.4), 1: (81.0, 81.2)}
    better = {seed: tuple(percent + 1 for percent in percents) for seed, percents in reference.items()}
    found, interval, by = difference_of([(better, reference)])
    assert found == pytest.approx(1)
    assert interval == pytest.approx((1, 1))
    assert by is not None
    assert by.startswith("paired t")
    found, interval, by = difference_of([({0: (82.0, 82.4)}, reference)])  # a method without randomness
    assert found == pytest.approx(82.2 - 80.65)
    assert by == "Welch's t, retraining seeds against search seeds"
    assert interval is not None
    assert interval[0] < 0 < interval[1]  # two seeds say little
    assert difference_of([({}, reference)]) == (None, None, None)
    assert difference_of([({0: (82.0,)}, {0: (81.0,)})]) == (1.0, None, None)


def test_over_budgets_a_difference_is_their_mean_and_what_differs_between_them_is_no_noise() -> None:
    small = {0: (70.0, 70.2, 70.1)}, {0: (68.9, 69.3, 69.2), 1: (69.0, 69.2, 69.4)}
    large = {0: (80.1, 80.0, 80.4)}, {0: (76.9, 77.1, 77.3), 1: (77.2, 76.8, 77.0)}
    alone = [difference_of([pair]) for pair in (small, large)]
    found, interval, by = difference_of([small, large])
    assert found == pytest.approx((alone[0][0] + alone[1][0]) / 2)
    assert by is not None
    assert by.startswith("Welch's t, retraining seeds against search seeds")
    assert interval is not None
    assert alone[0][1] is not None
    # about 1 point at one budget and 3 at the other: Student's t of those two would reach from -12 to 16
    assert 0 < interval[0] < found < interval[1]
    assert interval[1] - interval[0] < alone[0][1][1] - alone[0][1][0]


def test_a_method_is_compared_at_the_budgets_that_both_reach() -> None:
    def result(method: Method, budget_ms: float, *searches: tuple[float, ...]) -> MethodResult:
        nets = [
            StudiedNet(
                search_seed=seed,
                digest=f"{method}{budget_ms}{seed}",
                predicted_ms=budget_ms,
                measured_ms=budget_ms,
                macs=1,
                parameters=1,
                accuracy_percent={str(retrain): percent for retrain, percent in enumerate(percents)},
            )
            for seed, percents in enumerate(searches)
        ]
        seeds = tuple(range(len(searches)))
        timed = {(net.digest, seed): SimpleNamespace(seconds=1.0) for net in nets for seed in (0, 1)}
        kinds = {"search_seeds": seeds, "retrain_seeds": (0, 1), "found": (), "failed": (), "reference": None}
        return method_result(method, budget_ms, nets=nets, results=timed, **kinds)

    random = [result("random_search", 2.0, (80.0, 81.0), (80.4, 80.6)), result("random_search", 1.0, (70.0, 70.0))]
    exact = [result("exact", 2.0, (82.0, 82.4)), result("exact", 0.5, (60.0, 60.2))]
    found = {each.method: each for each in overall([*exact, *random])}
    assert found["exact"].budgets_ms == (2.0, 0.5)
    assert found["exact"].mean == pytest.approx((82.2 + 60.1) / 2)
    difference = found["exact"].against["random_search"]
    assert difference.budgets_ms == (2.0,)
    assert difference.mean == pytest.approx(82.2 - 80.5)
    assert difference.by == "Welch's t, retraining seeds against search seeds"
    assert found["random_search"].against == {}
    assert overall([result("exact", 2.0)]) == ()


def test_all_figures_are_over_the_searches_whose_net_is_trained_with_every_seed() -> None:
    percents = [{"0": 80.0, "1": 81.0}, {"0": 70.0}, {"1": 60.0}, {"0": 82.0, "1": 84.0}]
    nets = [
        StudiedNet(
            search_seed=seed,
            digest=f"net{seed}",
            predicted_ms=1.0,
            measured_ms=1.0,
            macs=1,
            parameters=1,
            accuracy_percent=accuracies,
        )
        for seed, accuracies in enumerate(percents)
    ]
    timed = {(net.digest, seed): SimpleNamespace(seconds=1.0) for net in nets for seed in (0, 1)}
    lost = FailedTraining(name="net2", seed=0, depends_on="recipe", reason="loss became nan", seconds=1.0)
    whole = {0: (80.0, 81.0), 3: (82.0, 84.0)}
    found = method_result(
        "evolution",
        1.0,
        search_seeds=(0, 1, 2, 3),
        retrain_seeds=(0, 1),
        found=(),
        nets=nets,
        results=timed,
        failed=(lost, lost.model_copy(update={"name": "another"})),
        reference={0: (80.0, 80.0), 3: (80.0, 80.0)},
    )
    assert found.accuracy_percent == (80.0, 81.0, 82.0, 84.0)
    assert found.mean == 81.75
    assert found.sd == pytest.approx(1.7078, abs=1e-4)
    assert found.interval_95 == interval_of(whole)[0]
    assert found.difference_to_random == pytest.approx(1.75)
    assert (found.missing, found.failed) == (1, 1)
    assert [net.accuracy_percent for net in found.nets] == percents
