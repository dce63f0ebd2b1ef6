"""The comparison: every method's nets for every budget, retrained alike, against random search at equal cost."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from experiments.artifacts import digest_of, sha256
from experiments.compare_record import (
    REFERENCE,
    CompareRecord,
    FoundNet,
    MeasuredNet,
    MeasuredNets,
    MethodResult,
    StudiedNet,
    Whole,
    by_search_seed,
    method_result,
    overall,
)
from experiments.experiment import Method
from experiments.external_nets import ExternalNet
from experiments.external_study import Externals
from experiments.models import Job
from experiments.plugins import file_of_method
from experiments.run import Run
from experiments.scoring import nets_scored
from experiments.solving import Solver
from experiments.study import CompareConfig, Study
from experiments.study_units import FailedTraining, StudyFolder, TrainedNet, Training, failures, trained
from search.slimming import Unreachable
from supernet import Architecture, cost
from supernet.cost import Cost
from supernet.schema import load, plain, save
from train.randomness import generator_for

WITHOUT_RANDOMNESS: tuple[Method, ...] = ("search", "frontier", "exact", "uniform")


class CompareStudy:
    """The compare section of a study: its searches, its trainings and its record."""

    def __init__(self, study: Study, config: CompareConfig, run: Run, folder: StudyFolder) -> None:
        self.study, self.config, self.folder = study, config, folder
        self._found: dict[Path, FoundNet] = {}
        self._costs: dict[str, Cost] = {}
        self.run = self._asking(run, seed=config.search_seeds[0])
        searched = self.run.experiment.search.model_copy(update={"methods": ()})
        came_from = [run.folder.manifest.stages[name].artifacts for name in ("supernet", "table")]
        evaluate = self.run.experiment.evaluate
        settings = [plain(searched), evaluate.batch_size, evaluate.latency_rounds]
        self.key = digest_of([came_from, folder.supernet, folder.images, settings])[:16]
        self.external = Externals(config.external, self.run, folder.path / "external" / self.key)

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

    def _cost(self, net: Architecture | ExternalNet) -> Cost:
        if net.digest not in self._costs:
            self._costs[net.digest] = cost(net) if isinstance(net, Architecture) else net.cost
        return self._costs[net.digest]

    def _searching(self, method: Method, seed: int) -> Path:
        """Where a method with a seed keeps its scores and trials, apart from others, so that each pays for its own.

        A method of a user's own whose file was edited searches anew.
        """
        file = file_of_method(method)
        own = "" if file is None else f"-{sha256(file)[:8]}"
        return self.folder.path / "searches" / self.key / f"{method}{own}-seed{seed}"

    def _nets_scored(self) -> dict[str, float]:
        """How many nets a search of each method scored, the mean over its seeds that are done."""
        counted: dict[str, list[int]] = {}
        done = {(job.method, seed) for job, seed in self.searches if self.found(job, seed) is not None}
        for method, seed in sorted(done):
            counted.setdefault(method, []).append(nets_scored(self._searching(method, seed)))
        return {method: float(np.mean(counts)) for method, counts in counted.items()}

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
            except Unreachable as unreachable:
                reason = str(unreachable)
            seconds = round(time.monotonic() - began, 2)
            solver.save_proofs(suffix=f"-proofs-{job.budget_ms:g}ms", budget_ms=job.budget_ms)
            found = FoundNet(job=job, search_seed=seed, delivery=delivery, unreachable=reason, seconds=seconds)
            save(found, working / f"{job.name}.json")
            shown = reason if delivery is None else f"predicted {delivery.delivered.predicted_ms:.3f} ms"
            self.run.screen.line(f"  {job.name}, search seed {seed}: {shown}, {seconds:.0f} s")
        self.external.search()
        self._measure()

    @property
    def nets(self) -> dict[str, Architecture | ExternalNet]:
        """Every net that was found, by its digest."""
        found = [self.found(job, seed) for job, seed in self.searches]
        nets = [each.delivery.architecture for each in found if each is not None and each.delivery is not None]
        return {net.digest: net for net in nets} | self.external.nets

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
        failed, measured = failures(tasks), self.measured()
        found = [(job, seed, self.found(job, seed)) for job, seed in self.searches]
        nets = self._studied(found, results, measured)
        means = {key: by_search_seed(studied, self.config.retrain_seeds) for key, studied in nets.items()}
        references = {budget_ms: whole for (method, budget_ms), whole in means.items() if method == REFERENCE}
        ours = tuple(
            method_result(
                method,
                budget_ms,
                search_seeds=self.seeds_of(method),
                retrain_seeds=self.config.retrain_seeds,
                found=[each for job, _, each in found if (job.method, job.budget_ms) == (method, budget_ms) and each],
                nets=nets[method, budget_ms],
                results=results,
                failed=failed,
                reference=references.get(budget_ms) if method != REFERENCE else None,
            )
            for budget_ms in self.run.budgets_ms
            for method in self.config.methods
        )
        every = ours + self._external_results(results, failed, measured, references)
        return CompareRecord(
            study=self.study.name,
            experiment=self.run.experiment.name,
            recipe=self.study.train,
            config=self.config,
            budgets_ms=self.run.budgets_ms,
            test_set=self.run.experiment.data.path,
            test_images=next((result.total for result in results.values()), 0),
            trainings=len(tasks),
            missing=len(tasks) - len(results) - len(failed),
            searches_missing=sum(each is None for _, _, each in found) + self.external.missing,
            speed=None if measured is None else measured.speed,
            environment=self.run.environment,
            results=every,
            overall=overall(every, speed=None if measured is None else measured.speed, nets_scored=self._nets_scored()),
            failed=failed,
        )

    def _studied(
        self,
        found: Sequence[tuple[Job, int, FoundNet | None]],
        results: Mapping[tuple[str, int], TrainedNet],
        measured: MeasuredNets | None,
    ) -> dict[tuple[Method, float], list[StudiedNet]]:
        """The nets of every method and budget."""
        studied: dict[tuple[Method, float], list[StudiedNet]] = {
            (method, budget_ms): [] for method in self.config.methods for budget_ms in self.run.budgets_ms
        }
        for job, seed, each in found:
            if each is None or each.delivery is None:
                continue
            ms, net = each.delivery.delivered.predicted_ms, each.delivery.architecture
            studied[job.method, job.budget_ms].append(
                self._studied_net(net, seed, predicted_ms=ms, results=results, measured=measured)
            )
        return studied

    def _studied_net(
        self,
        net: Architecture | ExternalNet,
        search_seed: int,
        *,
        predicted_ms: float | None,
        results: Mapping[tuple[str, int], TrainedNet],
        measured: MeasuredNets | None,
    ) -> StudiedNet:
        name, size = net.digest, self._cost(net)
        ms = {} if measured is None else {each.digest: each.median_ms for each in measured.nets}
        seeds = [retrain for retrain in self.config.retrain_seeds if (name, retrain) in results]
        return StudiedNet(
            search_seed=search_seed,
            digest=name,
            predicted_ms=predicted_ms,
            measured_ms=ms.get(name),
            macs=size.macs,
            parameters=size.parameters,
            accuracy_percent={str(s): results[name, s].accuracy_percent for s in seeds},
        )

    def _external_results(
        self,
        results: Mapping[tuple[str, int], TrainedNet],
        failed: Sequence[FailedTraining],
        measured: MeasuredNets | None,
        references: Mapping[float, Whole],
    ) -> tuple[MethodResult, ...]:
        """The figures of timm's models at every budget; nothing is random in the search of a width."""
        first = self.config.search_seeds[0]
        return self.external.results(
            search_seed=first,
            retrain_seeds=self.config.retrain_seeds,
            studied=lambda net: self._studied_net(net, first, predicted_ms=None, results=results, measured=measured),
            results=results,
            failed=failed,
            references=references,
        )
