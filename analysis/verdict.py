"""What the evaluation supports, in plain sentences: what was delivered, and whether the search beat the baselines.

Intervals are 95 %: Wilson's for one accuracy, Newcombe's (1998, method 10: hybrid score) for a difference. They hold
the sampling error of the test images alone. Models are tested on the same images, so the true error of a difference
is, if anything, smaller. Another training seed adds an error that one seed cannot show; the sentences say so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from analysis.files import ModelRecord, UnreachableRecord
from analysis.wording import budget_text, method_text, ms_text, points_text, variant_text

_Z = 1.959963984540054  # the 97.5 % quantile of the normal distribution


class Interval(NamedTuple):
    """A 95 % interval, in percent or in percentage points."""

    low: float
    high: float


class Comparison(NamedTuple):
    """Search against one baseline at one budget: difference in points, its interval, and what may be said."""

    budget_ms: float
    search: str
    baseline: str
    difference_points: float
    interval: Interval
    outcome: str  # "better", "worse" or "open"
    sentence: str


def wilson(correct: float, images: int) -> Interval:
    """The 95 % interval of an accuracy, in percent. Raises `ValueError` unless 0 <= correct <= images."""
    if not 0 <= correct <= images or images == 0:
        raise ValueError(f"{correct:g} correct of {images} images")
    share = correct / images
    centre = (share + _Z**2 / (2 * images)) / (1 + _Z**2 / images)
    half = _Z / (1 + _Z**2 / images) * math.sqrt(share * (1 - share) / images + _Z**2 / (4 * images**2))
    return Interval(100 * max(0.0, centre - half), 100 * min(1.0, centre + half))


def difference(first_correct: float, second_correct: float, images: int) -> tuple[float, Interval]:
    """First minus second accuracy in points, with its 95 % interval, each on `images` test images."""
    first, second = 100 * first_correct / images, 100 * second_correct / images
    of_first, of_second = wilson(first_correct, images), wilson(second_correct, images)
    gap = first - second
    low = gap - math.hypot(first - of_first.low, of_second.high - second)
    high = gap + math.hypot(of_first.high - first, second - of_second.low)
    return gap, Interval(low, high)


UNEQUAL = 1.1  # times as slow: from here on a comparison at one budget says so


def _shown(models: Sequence[ModelRecord]) -> list[ModelRecord]:
    """The search's models, or all where a run has none."""
    return [model for model in models if model.method == "search"] or list(models)


def headline(models: Sequence[ModelRecord]) -> str:
    """One line: how many models were delivered and whether each keeps its budget."""
    delivered = _shown(models)
    if not delivered:
        return "No model has been delivered yet"
    kept = sum(model.within_budget for model in delivered)
    count = len(delivered)
    noun = "model" if count == 1 else "models"
    if kept == count:
        return f"{count} {noun}, within its budget" if count == 1 else f"{count} {noun}, each within its budget"
    return f"{count} {noun}, {kept} within budget and {count - kept} above it"


def deliveries(models: Sequence[ModelRecord]) -> list[str]:
    """One phrase a delivered model: '0.8 ms -> 0.784 ms measured, 91.2 %', with an arrow."""
    delivered = sorted(_shown(models), key=lambda m: (m.budget_ms, m.name))
    return [
        f"{budget_text(m.budget_ms)} ms \N{RIGHTWARDS ARROW} {ms_text(m.measured_ms)} ms measured, "
        f"{m.accuracy_percent:.1f} %" + ("" if m.within_budget else f" ({_excess(m)} above its budget)")
        for m in delivered
    ]


def verdict(
    models: Sequence[ModelRecord], *, test_images: int, unreachable: Sequence[UnreachableRecord] = ()
) -> list[str]:
    """Whether search beat each baseline: an overall sentence a baseline, then one a budget, then what to beware of.

    Never claims more than the test images carry; a missed budget and a missing baseline are said.
    """
    found = comparisons(models, test_images=test_images)
    pairs = dict.fromkeys((comparison.search, comparison.baseline) for comparison in found)
    overalls = [overall([c for c in found if (c.search, c.baseline) == pair]) for pair in pairs]
    return overalls + [comparison.sentence for comparison in found] + caveats(models, unreachable=unreachable)


def caveats(models: Sequence[ModelRecord], *, unreachable: Sequence[UnreachableRecord] = ()) -> list[str]:
    """Methods without a model, budgets without a baseline, models that differ in latency or are above their budget."""
    sentences = []
    for lost in unreachable:
        sentences.append(
            f"At {budget_text(lost.job.budget_ms)} ms there is no model of {method_text(lost.job.method)} "
            f"to compare with: {lost.reason.rstrip('.')}."
        )
    explained = {lost.job.budget_ms for lost in unreachable}
    compared = {model.budget_ms for model in models if model.method != "search"}
    for budget_ms in sorted({model.budget_ms for model in models if model.method == "search"} - compared - explained):
        sentences.append(f"At {budget_text(budget_ms)} ms no baseline was retrained: nothing to compare with.")
    for budget_ms in sorted({model.budget_ms for model in models}):
        measured = sorted((m.measured_ms, method_text(m.method)) for m in models if m.budget_ms == budget_ms)
        (least_ms, small), (most_ms, large) = measured[0], measured[-1]
        if most_ms > UNEQUAL * least_ms and small != large:
            sentences.append(
                f"At {budget_text(budget_ms)} ms the models are not equally fast: {small} takes {ms_text(least_ms)} ms,"
                f" {large} {ms_text(most_ms)} ms, so a part of the difference between them is one of latency."
            )
    for model in models:
        if not model.within_budget:
            sentences.append(
                f"{model.name} misses its budget: {ms_text(model.measured_ms)} ms measured, {_excess(model)} "
                f"above {budget_text(model.budget_ms)} ms."
            )
    return sentences


def comparisons(models: Sequence[ModelRecord], *, test_images: int) -> list[Comparison]:
    """Search against every other method that has a model for the same budget, by budget."""
    groups: dict[tuple[float, str, str], list[ModelRecord]] = {}
    for model in models:
        groups.setdefault((model.budget_ms, model.method, variant_text(model, models)), []).append(model)
    found = []
    for budget_ms, method, search in sorted(groups):
        for key in sorted(groups, key=lambda key: (key[1] == "random", key)):
            if method == "search" and key[0] == budget_ms and key[1] != "search":
                searched = groups[budget_ms, method, search]
                found.append(_compare(search, searched, key[2], groups[key], test_images=test_images))
    return found


def _compare(
    search: str, searched: Sequence[ModelRecord], baseline: str, others: Sequence[ModelRecord], *, test_images: int
) -> Comparison:
    """Compare the models of two groups at one budget; several models of a group are several seeds."""
    ours, theirs = ([m.correct for m in group] for group in (searched, others))
    gap, interval = difference(sum(ours) / len(ours), sum(theirs) / len(theirs), test_images)
    seeds = min(len(ours), len(theirs))
    apart = seeds == 1 or min(ours) > max(theirs) or max(ours) < min(theirs)
    significant = apart and (interval.low > 0 or interval.high < 0)
    outcome = "open" if not significant else "better" if gap > 0 else "worse"
    budget_ms = searched[0].budget_ms
    sentence = (
        f"At {budget_text(budget_ms)} ms {search} reached {_reached(searched)} and {baseline} {_reached(others)}: "
        f"{points_text(gap)} points (95 % interval {points_text(interval.low)} to {points_text(interval.high)}). "
    )
    if outcome == "open" and not apart:
        sentence += f"The accuracies of {seeds} seeds overlap: no claim."
    elif outcome == "open":
        sentence += f"That is within the sampling error of {test_images:,} test images{_seeds(seeds)}: no claim."
    elif seeds == 1:
        winner = search if outcome == "better" else baseline
        sentence += f"On these {test_images:,} test images the model of {winner} is better (one training seed each)."
    else:
        sentence += f"More than the sampling error, and the accuracies of {seeds} seeds do not overlap."
    return Comparison(budget_ms, search, baseline, gap, interval, outcome, sentence)


def overall(found: Sequence[Comparison]) -> str:
    """One sentence on all budgets at which a baseline was compared. Raises `ValueError` without a comparison."""
    if not found:
        raise ValueError("nothing was compared")
    search, baseline = found[0].search, found[0].baseline
    number = {outcome: sum(c.outcome == outcome for c in found) for outcome in ("better", "worse", "open")}
    name, total = search[0].upper() + search[1:], len(found)
    budgets = "the only budget" if total == 1 else f"all {total} budgets"
    if number["better"] == total:
        return f"{name} beat {baseline} at {budgets}."
    if number["worse"] == total:
        return f"{name} lost to {baseline} at {budgets}."
    if number["open"] == total:
        where = "the only budget" if total == 1 else f"any of {total} budgets"
        return f"{name} did not measurably beat {baseline} at {where}."
    words = {"better": "beat {} at {} of {}", "worse": "lost to {} at {} of {}"}
    parts = [words[key].format(baseline, number[key], total) for key in words if number[key]]
    unclear = f"; {number['open']} too close to call" if number["open"] else ""
    return f"{name} {' and '.join(parts)} budgets{unclear}."


def _reached(group: Sequence[ModelRecord]) -> str:
    accuracy = sum(model.accuracy_percent for model in group) / len(group)
    measured_ms = sum(model.measured_ms for model in group) / len(group)
    seeds = f", mean of {len(group)} seeds" if len(group) > 1 else ""
    return f"{accuracy:.1f} % ({ms_text(measured_ms)} ms{seeds})"


def _seeds(count: int) -> str:
    return " and one training seed" if count == 1 else f" and {count} training seeds"


def _excess(model: ModelRecord) -> str:
    return f"{100 * (model.measured_ms / model.budget_ms - 1):.1f} %"
