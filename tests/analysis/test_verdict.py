"""What may be said about a comparison, and what may not."""

from __future__ import annotations

import pytest

from analysis.files import JobRecord, ModelRecord, UnreachableRecord
from analysis.verdict import caveats, comparisons, deliveries, difference, headline, verdict, wilson


def model(
    method: str,
    correct: int,
    *,
    images: int = 10_000,
    budget_ms: float = 2.0,
    measured_ms: float = 1.97,
    start: str = "scratch",
    seed: int = 0,
) -> ModelRecord:
    return ModelRecord(
        name=f"{method}-{budget_ms}ms",
        method=method,
        budget_ms=budget_ms,
        predicted_ms=measured_ms,
        measured_ms=measured_ms,
        runtime="onnxruntime",
        correct=correct,
        accuracy_percent=100 * correct / images,
        parameters=1,
        macs=1,
        architecture="a.yaml",
        start=start,
        seed=seed,
    )


def outcome(ours: int, theirs: int, *, images: int = 10_000) -> str:
    models = [model("search", ours, images=images), model("uniform", theirs, images=images)]
    (comparison,) = comparisons(models, test_images=images)
    return comparison.outcome


def test_wilson_gives_the_published_interval_of_a_known_case() -> None:
    # Newcombe 1998, Statistics in Medicine 17:857, table I: 81 of 263, method 3 (score): 0.2553 to 0.3662
    low, high = wilson(81, 263)
    assert low == pytest.approx(25.53, abs=0.005)
    assert high == pytest.approx(36.62, abs=0.005)


def test_a_perfect_accuracy_still_has_an_interval() -> None:
    low, high = wilson(360, 360)
    assert low == pytest.approx(98.94, abs=0.01)
    assert high == pytest.approx(100)


def test_the_difference_gives_the_published_interval_of_a_known_case() -> None:
    # Newcombe 1998, Statistics in Medicine 17:873, table II, method 10: 9/10 - 3/10 is 0.1705 to 0.8090
    gap, interval = difference(9, 3, 10)
    assert gap == pytest.approx(60)
    assert interval == pytest.approx((17.05, 80.90), abs=0.01)


def test_a_share_above_one_is_refused() -> None:
    with pytest.raises(ValueError, match="11 correct of 10 images"):
        wilson(11, 10)


def test_two_tenths_of_a_point_on_ten_thousand_images_is_no_claim() -> None:
    (_, sentence) = verdict([model("search", 8810), model("uniform", 8790)], test_images=10_000)
    assert "search reached 88.1 % (1.97 ms) and uniform scaling 87.9 %" in sentence
    assert "+0.2 points (95 % interval −0.7 to +1.1)" in sentence
    assert sentence.endswith("within the sampling error of 10,000 test images and one training seed: no claim.")


def test_two_points_on_ten_thousand_images_are_a_difference_but_on_four_hundred_are_not() -> None:
    assert outcome(8800, 8600) == "better"
    assert outcome(8600, 8800) == "worse"
    assert outcome(352, 344, images=400) == "open"


def test_a_clear_difference_says_that_one_seed_was_trained() -> None:
    (overall, sentence) = verdict([model("search", 8800), model("random", 8400)], test_images=10_000)
    assert overall == "Search beat random at the only budget."
    assert "one training seed each" in sentence


def test_a_loss_is_said_as_plainly_as_a_win() -> None:
    (overall, sentence) = verdict([model("search", 8400), model("uniform", 8800)], test_images=10_000)
    assert overall == "Search lost to uniform scaling at the only budget."
    assert "the model of uniform scaling is better" in sentence


def test_mixed_outcomes_are_counted() -> None:
    models = [
        model("search", 8800, budget_ms=1.0, measured_ms=0.9),
        model("uniform", 8400, budget_ms=1.0, measured_ms=0.9),
        model("search", 8800, budget_ms=2.0),
        model("uniform", 8810, budget_ms=2.0),
        model("search", 8800, budget_ms=3.0),
        model("uniform", 9100, budget_ms=3.0),
    ]
    overall = verdict(models, test_images=10_000)[0]
    assert (
        overall == "Search beat uniform scaling at 1 of 3 and lost to uniform scaling at 1 of 3 budgets; "
        "1 too close to call."
    )


def test_seeds_whose_accuracies_overlap_are_no_claim_however_far_their_means() -> None:
    models = [model("search", correct, seed=i) for i, correct in enumerate((9000, 9100, 8500))]
    models += [model("random", correct, seed=i) for i, correct in enumerate((8400, 8300, 8600))]
    (comparison,) = comparisons(models, test_images=10_000)
    assert comparison.outcome == "open"
    assert "accuracies of 3 seeds overlap" in comparison.sentence


def test_models_of_two_starts_are_compared_apart() -> None:
    models = [model("search", 8900), model("search", 8700, start="inherited"), model("uniform", 8500)]
    assert [c.search for c in comparisons(models, test_images=10_000)] == [
        "search (inherited weights)",
        "search (scratch weights)",
    ]


def test_a_budget_without_baseline_and_a_missed_budget_are_said() -> None:
    slow = model("search", 8800, budget_ms=2.0, measured_ms=2.1)
    assert caveats([slow]) == [
        "At 2.0 ms no baseline was retrained: nothing to compare with.",
        "search-2.0ms misses its budget: 2.10 ms measured, 5.0 % above 2.0 ms.",
    ]


def test_a_baseline_that_has_nothing_within_a_budget_is_named_with_its_reason() -> None:
    lost = UnreachableRecord(job=JobRecord(method="uniform", budget_ms=2.0), reason="the smallest measures 2.3 ms")
    assert verdict([model("search", 8800)], test_images=10_000, unreachable=[lost]) == [
        "At 2.0 ms there is no model of uniform scaling to compare with: the smallest measures 2.3 ms."
    ]


def test_the_headline_counts_only_models_within_budget() -> None:
    good, slow = model("search", 8800), model("search", 8800, measured_ms=2.01)
    assert headline([good]) == "1 model, within its budget"
    assert headline([good, good]) == "2 models, each within its budget"
    assert headline([good, slow, model("uniform", 1)]) == "2 models, 1 within budget and 1 above it"
    assert headline([model("uniform", 1)]) == "1 model, within its budget"


def test_a_delivery_names_budget_measurement_and_accuracy() -> None:
    assert deliveries([model("search", 8800)]) == ["2.0 ms → 1.97 ms measured, 88.0 %"]
    assert deliveries([model("search", 8800, measured_ms=2.1)])[0].endswith("(5.0 % above its budget)")
