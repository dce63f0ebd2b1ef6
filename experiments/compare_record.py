"""What a comparison writes down: its searches, its measurements, and `study.json` with means and intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from analysis.intervals import paired, strata_interval, t_interval, together, widest
from experiments.artifacts import Environment
from experiments.experiment import Method
from experiments.external_nets import ExternalName, ExternalNet
from experiments.models import Job
from experiments.study import CompareConfig
from experiments.study_units import FailedTraining, TrainedNet
from search.delivery import Delivery
from supernet.schema import Record
from train.retraining import RetrainConfig

REFERENCE: Method = "random_search"  # at equal cost
EXTERNAL_METHOD = "timm:"  # what begins the name of a method that takes one of timm's models

Interval = tuple[float, float]
ExternalMethod = Annotated[str, Field(pattern=f"^{EXTERNAL_METHOD}")]
Whole = Mapping[int, tuple[float, ...]]
"""By search seed, the accuracies in percent of its net with every retraining seed, in their order."""


class FoundNet(Record):
    """What a method found for a budget with a search seed: a delivery, or the reason why there is none.

    `seconds` are those of the search alone; what a method does once for all budgets counts for the first of them.
    """

    schema_version: Literal[1] = 1
    job: Job
    search_seed: int
    delivery: Delivery | None
    unreachable: str | None
    seconds: float


class FoundExternal(Record):
    """The widest net of a family that measures within a budget, or why there is none.

    `tried` are the scales that were measured, and their ms at the table's speed.
    """

    schema_version: Literal[1] = 1
    name: ExternalName
    budget_ms: float
    net: ExternalNet | None
    tried: tuple[tuple[float, float], ...]
    unreachable: str | None
    seconds: float


class MeasuredNet(Record):
    """A whole net's latency in ms: median and tenth and ninetieth percentile."""

    digest: str
    median_ms: float
    p10_ms: float
    p90_ms: float


class MeasuredNets(Record):
    """All nets of a comparison, measured in the same rounds.

    `speed` is the median factor by which nets of the table's audit took longer than on its day.
    """

    schema_version: Literal[1] = 1
    speed: float
    nets: tuple[MeasuredNet, ...]


class StudiedNet(Record):
    """The net that one search led to, and its test accuracy in percent by retraining seed.

    No table predicts a model of timm's.
    """

    search_seed: int
    digest: str
    predicted_ms: float | None
    measured_ms: float | None
    macs: int
    parameters: int
    accuracy_percent: dict[str, float]


class MethodResult(Record):
    """A method at a budget; figures over the searches whose net is trained with every seed, null where too few are.

    A method without randomness is searched with the first search seed alone. `accuracy_percent` are the runs of those
    searches, `mean` and `sd` theirs; runs of other searches are in `nets` alone. Of all that were asked for, `missing`
    are still to do, `failed` diverged. `interval_95` is the wider of Student's t over search seeds and over retraining
    seeds (`interval_by`). `difference_to_random` is the mean minus that of random search at equal cost; its interval is
    the widest of a paired t over retraining seeds and of one over search seeds (paired, or Welch's where only one of
    the two was searched with several; `difference_by`). `minutes` are those of all its searches and trainings, though a
    training may be shared with others; `search_minutes` those of its searches.
    """

    added_later: ClassVar[frozenset[str]] = frozenset({"failed"})

    method: Method | ExternalMethod
    budget_ms: float
    search_seeds: tuple[int, ...]
    retrain_seeds: tuple[int, ...]
    missing: int
    accuracy_percent: tuple[float, ...]
    mean: float | None
    sd: float | None
    interval_95: Interval | None
    interval_by: str | None
    measured_ms: tuple[float, ...]
    difference_to_random: float | None
    difference_interval_95: Interval | None
    difference_by: str | None
    minutes: float
    search_minutes: float
    unreachable: tuple[str, ...]
    nets: tuple[StudiedNet, ...]
    failed: int = 0


class Difference(Record):
    """A method minus another in points, the mean over budgets, with its interval and how that was made (`by`)."""

    budgets_ms: tuple[float, ...]
    mean: float
    interval_95: Interval | None
    by: str | None


class OverallResult(Record):
    """A method over all budgets that it reached, each counting alike: its mean, and `against` others by their name.

    Budgets are given, not drawn: only searches and retrainings vary, and the interval is the widest that these allow,
    of the one supernet and the one table of the run, and not widened for the number of methods compared.
    `share_of_budget` is how much of a budget its nets measure, at the table's speed: who uses less can be less accurate
    for that alone. `nets_scored` is the cost of a search for all budgets, the mean over its seeds.
    """

    method: Method | ExternalMethod
    budgets_ms: tuple[float, ...]
    mean: float
    share_of_budget: float | None = None
    nets_scored: float | None = None
    against: dict[str, Difference]


class CompareRecord(Record):
    """`study.json`: methods against each other; `missing` of its `trainings` are still to do, `failed` diverged.

    A search whose net failed with a seed is in no mean and no interval.
    """

    added_later: ClassVar[frozenset[str]] = frozenset({"overall", "failed"})

    schema_version: Literal[1] = 1
    study: str
    experiment: str
    recipe: RetrainConfig
    config: CompareConfig
    budgets_ms: tuple[float, ...]
    test_set: str
    test_images: int
    trainings: int
    missing: int
    searches_missing: int
    speed: float | None
    environment: Environment
    results: tuple[MethodResult, ...]
    overall: tuple[OverallResult, ...] = ()
    failed: tuple[FailedTraining, ...] = ()


def method_result(
    method: Method | ExternalMethod,
    budget_ms: float,
    *,
    search_seeds: tuple[int, ...],
    retrain_seeds: tuple[int, ...],
    found: Sequence[FoundNet | FoundExternal],
    nets: Sequence[StudiedNet],
    results: Mapping[tuple[str, int], TrainedNet],
    failed: Sequence[FailedTraining],
    reference: Whole | None,
) -> MethodResult:
    """The figures of a method at a budget: of what was found, of its nets, and of their trainings, done and failed.

    `reference` is what it is compared with, None for random search itself.
    """
    whole = by_search_seed(nets, retrain_seeds)
    runs = [percent for percents in whole.values() for percent in percents]
    done = sum(len(net.accuracy_percent) for net in nets)
    lost = sum(failure.name == net.digest and failure.seed in retrain_seeds for net in nets for failure in failed)
    interval, by = interval_of(whole)
    difference, bounds, how = (None, None, None) if reference is None else difference_of([(whole, reference)])
    trainings = {(net.digest, int(seed)) for net in nets for seed in net.accuracy_percent}
    seconds = sum(each.seconds for each in found)
    wanted = len(search_seeds) * len(retrain_seeds)
    reasons = [each.unreachable for each in found if each.unreachable is not None]
    return MethodResult(
        method=method,
        budget_ms=budget_ms,
        search_seeds=search_seeds,
        retrain_seeds=retrain_seeds,
        missing=wanted - done - lost - len(reasons) * len(retrain_seeds),
        accuracy_percent=tuple(runs),
        mean=float(np.mean(runs)) if runs else None,
        sd=float(np.std(runs, ddof=1)) if len(runs) > 1 else None,
        interval_95=interval,
        interval_by=by,
        measured_ms=tuple(net.measured_ms for net in nets if net.measured_ms is not None),
        difference_to_random=difference,
        difference_interval_95=bounds,
        difference_by=how,
        minutes=round((seconds + sum(results[key].seconds for key in trainings)) / 60, 2),
        search_minutes=round(seconds / 60, 2),
        unreachable=tuple(dict.fromkeys(reasons)),
        nets=tuple(nets),
        failed=lost,
    )


def by_search_seed(nets: Sequence[StudiedNet], seeds: Sequence[int]) -> dict[int, tuple[float, ...]]:
    """The accuracies of each search whose net is trained with every seed, in their order."""
    return {
        net.search_seed: tuple(net.accuracy_percent[str(seed)] for seed in seeds)
        for net in nets
        if len(net.accuracy_percent) == len(seeds)
    }


def interval_of(whole: Whole) -> tuple[Interval | None, str | None]:
    """The 95 % interval of a method's mean, and over what: search seeds or retraining seeds, whichever is wider.

    Nets of one search are not independent of each other, and several searches may find one net: so neither all runs
    count as independent, nor always the searches.
    """
    return widest(
        {
            "Student's t over search seeds": t_interval(_of_searches(whole)),
            "Student's t over retraining seeds": t_interval(_of_retrainings(whole)),
        }
    )


def difference_of(pairs: Sequence[tuple[Whole, Whole]]) -> tuple[float | None, Interval | None, str | None]:
    """One method minus another, a pair a budget: the mean over budgets, its interval, and how that was made.

    Budgets are given, not drawn: only seeds vary. The interval is the widest that can be made, with the seeds of every
    budget on their own or (as one search may serve all budgets, and one net two of them) of all budgets together.
    """
    if not pairs or not all(whole and reference for whole, reference in pairs):
        return None, None, None
    samples = {
        "paired t over retraining seeds": [
            [paired(_of_retrainings(whole), _of_retrainings(reference))] for whole, reference in pairs
        ]
    }
    if all(whole.keys() == reference.keys() for whole, reference in pairs):
        samples["paired t over search seeds"] = [
            [paired(_of_searches(whole), _of_searches(reference))] for whole, reference in pairs
        ]
    else:  # without randomness, what varies is retraining
        one = any(len(each) == 1 for pair in pairs for each in pair)
        name = "Welch's t, retraining seeds against search seeds" if one else "Welch's t over search seeds"
        samples[name] = [[_of_searches_or_retrainings(each) for each in pair] for pair in pairs]
    intervals = {name: strata_interval(strata) for name, strata in samples.items()}
    if len(pairs) > 1:
        intervals |= {f"{name}, budgets together": together(strata) for name, strata in samples.items()}
    interval, by = widest(intervals)
    between = [float(np.mean(_of_searches(whole))) - float(np.mean(_of_searches(other))) for whole, other in pairs]
    return float(np.mean(between)), interval, by


def overall(
    results: Sequence[MethodResult], *, speed: float | None = None, nets_scored: Mapping[str, float] | None = None
) -> tuple[OverallResult, ...]:
    """Every method over the budgets that it reached, against random search and uniform scaling at the same budgets.

    `speed` is that of the record, `nets_scored` the mean over search seeds by method.
    """
    wholes: dict[str, dict[float, Whole]] = {}
    shares: dict[str, list[float]] = {}
    for result in results:
        if result.measured_ms and speed is not None:
            shares.setdefault(result.method, []).append(float(np.mean(result.measured_ms)) / speed / result.budget_ms)
        whole = by_search_seed(result.nets, result.retrain_seeds)
        if whole:
            wholes.setdefault(result.method, {})[result.budget_ms] = whole
    found = []
    for method, by_budget in wholes.items():
        against = {
            other: _against(by_budget, wholes[other])
            for other in (REFERENCE, "uniform")
            if other != method and other in wholes
        }
        found.append(
            OverallResult(
                method=method,
                budgets_ms=tuple(by_budget),
                mean=float(np.mean([np.mean(_of_searches(whole)) for whole in by_budget.values()])),
                share_of_budget=float(np.mean(shares[method])) if method in shares else None,
                nets_scored=(nets_scored or {}).get(method),
                against={other: difference for other, difference in against.items() if difference is not None},
            )
        )
    return tuple(found)


def _against(by_budget: Mapping[float, Whole], other: Mapping[float, Whole]) -> Difference | None:
    common = tuple(budget for budget in by_budget if budget in other)
    mean, interval, by = difference_of([(by_budget[budget], other[budget]) for budget in common])
    return None if mean is None else Difference(budgets_ms=common, mean=mean, interval_95=interval, by=by)


def _of_searches(whole: Whole) -> list[float]:
    """The mean of each search's retrainings."""
    return [float(np.mean(percents)) for percents in whole.values()]


def _of_retrainings(whole: Whole) -> list[float]:
    """For each retraining seed the mean over searches."""
    return [float(np.mean(percents)) for percents in zip(*whole.values(), strict=True)]


def _of_searches_or_retrainings(whole: Whole) -> list[float]:
    """The mean of each search, or of the only one its retrainings."""
    return _of_searches(whole) if len(whole) > 1 else _of_retrainings(whole)
