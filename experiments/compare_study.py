"""The comparison: every method's nets for every budget, retrained alike, against random search at equal cost."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from analysis.intervals import paired_interval, t_interval, welch_interval, widest
from experiments.artifacts import Environment, digest_of
from experiments.experiment import Method
from experiments.models import Job
from experiments.run import Run
from experiments.solving import Solver
from experiments.study import CompareConfig, Study
from experiments.study_units import StudyFolder, TrainedNet, Training, trained
from search.delivery import Delivery
from search.slimming import BudgetUnreachable
from supernet import Architecture, cost
from supernet.cost import Cost
from supernet.schema import Record, load, plain, save
from train.randomness import generator_for
from train.retraining import RetrainConfig

WITHOUT_RANDOMNESS: tuple[Method, ...] = ("search", "exact", "uniform")
REFERENCE: Method = "random_search"

Interval = tuple[float, float]
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
    """The net that one search led to, and its test accuracy in percent by retraining seed."""

    search_seed: int
    digest: str
    predicted_ms: float
    measured_ms: float | None
    macs: int
    parameters: int
    accuracy_percent: dict[str, float]


class MethodResult(Record):
    """A method at a budget; figures over trainings that are done, null where too few are.

    A method without randomness is searched with the first search seed alone. `mean` and `sd` are over all runs,
    `interval_95` is the wider of Student's t over search seeds and over retraining seeds (`interval_by`).
    `difference_to_random` is the mean minus that of random search at equal cost; its interval is the widest of a paired
    t over retraining seeds and of one over search seeds (paired, or Welch's where only one of the two was searched
    with several; `difference_by`). Means and intervals count searches whose net is trained with every seed. `minutes`
    are those of all its searches and trainings, though a training may be shared with others; `search_minutes` those of
    its searches.
    """

    method: Method
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


class CompareRecord(Record):
    """`study.json`: methods against each other; `missing` of its `trainings` are still to do."""

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


class CompareStudy:
    """The compare section of a study: its searches, its trainings and its record."""

    def __init__(self, study: Study, config: CompareConfig, run: Run, folder: StudyFolder) -> None:
        self.study, self.config, self.folder = study, config, folder
        self._found: dict[Path, FoundNet] = {}
        self._costs: dict[str, Cost] = {}
        self.run = self._asking(run, seed=config.search_seeds[0])
        searched = self.run.experiment.search.model_copy(update={"methods": ()})
        came_from = [run.folder.manifest.stages[name].artifacts for name in ("supernet", "table")]
        settings = [plain(searched), self.run.experiment.evaluate.batch_size]
        self.key = digest_of([came_from, folder.supernet, folder.images, settings])[:16]

    def _asking(self, run: Run, *, seed: int) -> Run:
        """The run with the study's budgets and a search seed; supernet, table and images are shared."""
        config, experiment = self.config, run.experiment
        trials = experiment.search.evolution.trials if config.trials is None else config.trials
        evolution = experiment.search.evolution.model_copy(update={"trials": trials, "storage": None})
        budgets = {"budgets_ms": config.budgets_ms, "budgets_of_largest": config.budgets_of_largest}
        search = experiment.search.model_copy(update={**budgets, "evolution": evolution})
        seeds = experiment.seeds.model_copy(update={"search": seed})
        asking = Run(
            experiment.model_copy(update={"search": search, "seeds": seeds}),
            run.folder,
            run.screen,
            command=run.environment.command,
            plugins=run.plugins,
        )
        for name in ("space", "table", "audit"):
            setattr(asking, name, getattr(run, name))
        return asking

    def seeds_of(self, method: Method) -> tuple[int, ...]:
        """The search seeds of a method: the first alone where there is no randomness."""
        return self.config.search_seeds[:1] if method in WITHOUT_RANDOMNESS else self.config.search_seeds

    @property
    def searches(self) -> list[tuple[Job, int]]:
        """Every search, seed by seed, so that what is there early is comparable."""
        return [
            (Job(method=method, budget_ms=budget_ms), seed)
            for seed in self.config.search_seeds
            for method in self.config.methods
            if seed in self.seeds_of(method)
            for budget_ms in self.run.budgets_ms
        ]

    def found(self, job: Job, seed: int) -> FoundNet | None:
        """What a search found, if it was done."""
        path = self._searching(job.method, seed) / f"{job.name}.json"
        if path not in self._found and path.exists():
            self._found[path] = load(FoundNet, path)
        return self._found.get(path)

    def _cost(self, net: Architecture) -> Cost:
        if net.digest not in self._costs:
            self._costs[net.digest] = cost(net)
        return self._costs[net.digest]

    def _searching(self, method: Method, seed: int) -> Path:
        """Where a method with a seed keeps its scores and trials, apart from others, so that each pays for its own."""
        return self.folder.path / "searches" / self.key / f"{method}-seed{seed}"

    def search(self) -> None:
        """Do the searches that are missing, then measure all nets that were found in the same rounds."""
        solver: Solver | None = None
        for job, seed in self.searches:
            if self.found(job, seed) is not None:
                continue
            working = self._searching(job.method, seed)
            working.mkdir(parents=True, exist_ok=True)
            if solver is None or solver.working != working:
                asking = self._asking(self.run, seed=seed)
                asking.data, asking.supernet = self.run.data, self.run.supernet
                solver = Solver(asking, working=working)
            began = time.monotonic()
            delivery, reason = None, None
            try:
                delivery = solver.deliver(job)
            except BudgetUnreachable as unreachable:
                reason = str(unreachable)
            seconds = round(time.monotonic() - began, 2)
            found = FoundNet(job=job, search_seed=seed, delivery=delivery, unreachable=reason, seconds=seconds)
            save(found, working / f"{job.name}.json")
            shown = reason if delivery is None else f"predicted {delivery.delivered.predicted_ms:.3f} ms"
            self.run.screen.line(f"  {job.name}, search seed {seed}: {shown}, {seconds:.0f} s")
        self._measure()

    @property
    def nets(self) -> dict[str, Architecture]:
        """Every architecture that was found, by its digest."""
        found = [self.found(job, seed) for job, seed in self.searches]
        nets = [each.delivery.architecture for each in found if each is not None and each.delivery is not None]
        return {net.digest: net for net in nets}

    def _measured_path(self) -> Path:
        names = digest_of([sorted(self.nets), self.run.experiment.evaluate.latency_rounds])[:16]
        return self.folder.path / "measured" / self.key / f"{names}.json"

    def measured(self) -> MeasuredNets | None:
        """The latencies of all nets found so far, if they were measured."""
        path = self._measured_path()
        return load(MeasuredNets, path) if path.exists() else None

    def _measure(self) -> None:
        nets = self.nets
        if self.run.elsewhere or not nets or self.measured() is not None:
            return
        timings, slowdown = self.run.measure_nets(
            list(nets.values()),
            what=f"measuring {len(nets)} nets",
            rounds=self.run.experiment.evaluate.latency_rounds,
            generator=generator_for(self.run.experiment.seeds.table, "nets of a study"),
        )
        measured = tuple(
            MeasuredNet(digest=name, median_ms=timing.median_ms, p10_ms=timing.p10_ms, p90_ms=timing.p90_ms)
            for name, timing in ((name, timings[net]) for name, net in nets.items())
        )
        save(MeasuredNets(speed=slowdown, nets=measured), self._measured_path())

    @property
    def trainings(self) -> list[Training]:
        """Every net that was found with every seed, one seed of all after another."""
        nets = self.nets
        macs = {name: self._cost(net).macs for name, net in nets.items()}
        return [
            self.folder.training(net, seed, macs=macs[name])
            for seed in self.config.retrain_seeds
            for name, net in nets.items()
        ]

    def record(self) -> CompareRecord:
        """What is known by now."""
        tasks = self.trainings
        results = {(task.name, task.seed): result for task in tasks if (result := trained(task)) is not None}
        measured = self.measured()
        found = [(job, seed, self.found(job, seed)) for job, seed in self.searches]
        nets = self._studied(found, results, measured)
        means = {key: _by_search_seed(studied, self.config.retrain_seeds) for key, studied in nets.items()}
        return CompareRecord(
            study=self.study.name,
            experiment=self.run.experiment.name,
            recipe=self.study.train,
            config=self.config,
            budgets_ms=self.run.budgets_ms,
            test_set=self.run.experiment.data.path,
            test_images=next((result.total for result in results.values()), 0),
            trainings=len(tasks),
            missing=len(tasks) - len(results),
            searches_missing=sum(each is None for _, _, each in found),
            speed=None if measured is None else measured.speed,
            environment=self.run.environment,
            results=tuple(
                self._result(
                    method,
                    budget_ms,
                    found=[
                        each for job, _, each in found if (job.method, job.budget_ms) == (method, budget_ms) and each
                    ],
                    nets=nets[method, budget_ms],
                    results=results,
                    reference=means.get((REFERENCE, budget_ms)) if method != REFERENCE else None,
                )
                for budget_ms in self.run.budgets_ms
                for method in self.config.methods
            ),
        )

    def _studied(
        self,
        found: Sequence[tuple[Job, int, FoundNet | None]],
        results: Mapping[tuple[str, int], TrainedNet],
        measured: MeasuredNets | None,
    ) -> dict[tuple[Method, float], list[StudiedNet]]:
        """The nets of every method and budget."""
        ms = {} if measured is None else {net.digest: net.median_ms for net in measured.nets}
        studied: dict[tuple[Method, float], list[StudiedNet]] = {
            (method, budget_ms): [] for method in self.config.methods for budget_ms in self.run.budgets_ms
        }
        for job, seed, each in found:
            if each is None or each.delivery is None:
                continue
            last, size = each.delivery.delivered, self._cost(each.delivery.architecture)
            seeds = [retrain for retrain in self.config.retrain_seeds if (last.digest, retrain) in results]
            studied[job.method, job.budget_ms].append(
                StudiedNet(
                    search_seed=seed,
                    digest=last.digest,
                    predicted_ms=last.predicted_ms,
                    measured_ms=ms.get(last.digest),
                    macs=size.macs,
                    parameters=size.parameters,
                    accuracy_percent={str(s): results[last.digest, s].accuracy_percent for s in seeds},
                )
            )
        return studied

    def _result(
        self,
        method: Method,
        budget_ms: float,
        *,
        found: Sequence[FoundNet],
        nets: Sequence[StudiedNet],
        results: Mapping[tuple[str, int], TrainedNet],
        reference: Whole | None,
    ) -> MethodResult:
        runs = [percent for net in nets for percent in net.accuracy_percent.values()]
        whole = _by_search_seed(nets, self.config.retrain_seeds)
        interval, by = interval_of(whole)
        difference, bounds, how = (None, None, None) if reference is None else difference_of(whole, reference)
        trainings = {(net.digest, int(seed)) for net in nets for seed in net.accuracy_percent}
        seconds = sum(each.seconds for each in found)
        wanted = len(self.seeds_of(method)) * len(self.config.retrain_seeds)
        reasons = [each.unreachable for each in found if each.unreachable is not None]
        return MethodResult(
            method=method,
            budget_ms=budget_ms,
            search_seeds=self.seeds_of(method),
            retrain_seeds=self.config.retrain_seeds,
            missing=wanted - len(runs) - len(reasons) * len(self.config.retrain_seeds),
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
        )


def _by_search_seed(nets: Sequence[StudiedNet], seeds: Sequence[int]) -> dict[int, tuple[float, ...]]:
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


def difference_of(whole: Whole, reference: Whole) -> tuple[float | None, Interval | None, str | None]:
    """The mean of one method minus that of another, its interval, and how that was made: the widest that can be."""
    if not whole or not reference:
        return None, None, None
    searches, others = _of_searches(whole), _of_searches(reference)
    intervals = {"paired t over retraining seeds": paired_interval(_of_retrainings(whole), _of_retrainings(reference))}
    if whole.keys() == reference.keys():
        intervals["paired t over search seeds"] = paired_interval(searches, others)
    elif len(whole) == 1:  # without randomness: what varies is its retraining, and the other's search
        intervals["Welch's t, retraining seeds against search seeds"] = welch_interval(_of_retrainings(whole), others)
    else:
        intervals["Welch's t over search seeds"] = welch_interval(searches, others)
    interval, by = widest(intervals)
    return float(np.mean(searches)) - float(np.mean(others)), interval, by


def _of_searches(whole: Whole) -> list[float]:
    """The mean of each search's retrainings."""
    return [float(np.mean(percents)) for percents in whole.values()]


def _of_retrainings(whole: Whole) -> list[float]:
    """For each retraining seed the mean over searches."""
    return [float(np.mean(percents)) for percents in zip(*whole.values(), strict=True)]
