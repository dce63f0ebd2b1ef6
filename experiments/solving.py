"""The search methods of a run behind one call: an architecture predicted within a latency."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch

from experiments.artifacts import digest_of
from experiments.console import counted
from experiments.importances import importance_by
from experiments.limits import further_limits
from experiments.models import Job, Proofs, ProvenOptimum
from experiments.plugins import file_of_method, told
from experiments.run import Run
from experiments.scoring import Scorer, search_scorer
from search.baselines import random_architecture, uniform_scaling
from search.contributions import Contributions, removal_contributions
from search.delivery import Delivery, deliver
from search.exact import Optimum
from search.front import Front, Scored
from search.frontier import slim_frontier
from search.importance import Importance, ImportanceKind
from search.limits import AnyLimit, latency_limit
from search.methods import architecture_of, search_method, takes_importance
from search.random_search import TOLERANCE, random_search
from search.refining import refined
from search.slimming import check_reachable, slim
from search.trajectory import Step, Trajectory
from supernet import Architecture, UserError
from supernet.schema import plain, save
from train.randomness import generator_for

EVOLUTION = "evolution.db"
PROOFS = "exact"  # its file without suffix, too
Greedy = Literal["search", "frontier"]
TRAJECTORIES: dict[Greedy, str] = {"search": "trajectory", "frontier": "trajectory-frontier"}
"""The methods that leave a trajectory, and its file without suffix."""


class Solver:
    """Solves for budgets with every method, and closes the loop by measuring whole nets.

    Scores and trials are kept in `working`, by default the run's folder.
    """

    def __init__(self, run: Run, *, working: Path | None = None) -> None:
        self.run = run
        self.working = run.path if working is None else working
        self.trajectories: dict[Greedy, Trajectory] = {}
        # What the exact search has proposed so far, each job's apart, so that no answer depends on the jobs before
        self.scored: dict[Job, dict[Architecture, float]] = {}
        self._importances: dict[ImportanceKind, Importance] = {}
        self._proven: list[ProvenOptimum] = []
        self._random: dict[float, list[Scored]] = {}  # what random search has scored, by budget

    @cached_property
    def scorer(self) -> Scorer:
        """Held-out accuracy of subnets; scores are kept in a file, so that a search can go on."""
        return search_scorer(self.run, self.working)

    def importance(self, kind: ImportanceKind) -> Importance:
        """The importance of every MetaPath, measured once."""
        if kind not in self._importances:
            self._importances[kind] = importance_by(kind, run=self.run, scorer=self.scorer)
        return self._importances[kind]

    def slimmed(self, asked_ms: float, *, method: Greedy) -> Architecture:
        """The first architecture on a trajectory within the latency; the trajectory is made as long as needed."""
        there = self.trajectories.get(method)
        step = there.at(asked_ms) if there is not None else None
        if step is None:
            self.trajectories[method] = self._slim(asked_ms, method=method)
            step = self.trajectories[method].at(asked_ms)
        assert step is not None
        return step.architecture

    def save_trajectories(self, *, suffix: str = "") -> list[Path]:
        """Write every trajectory made so far into the run's folder; the files."""
        paths = [self.run.path / f"{TRAJECTORIES[method]}{suffix}.jsonl" for method in self.trajectories]
        for path, trajectory in zip(paths, self.trajectories.values(), strict=True):
            trajectory.save(path)
        return paths

    def _slim(self, budget_ms: float, *, method: Greedy) -> Trajectory:
        table, space = self.run.table, self.run.runnable_space
        check_reachable(space, table=table, budget_ms=budget_ms)
        importance = self.importance(self.run.experiment.search.importance) if method == "search" else None
        with self.run.screen.bar("slimming" if method == "search" else "slimming over the frontier") as advance:
            start_ms = table.latency_ms(space.largest)

            def progress(step: Step) -> None:
                done = (start_ms - step.latency_ms) / max(start_ms - budget_ms, 1e-9)
                figures = {"step": float(step.step), "ms": step.latency_ms, "held-out %": step.accuracy_percent}
                advance(min(100, int(100 * done)), 100, figures)

            if importance is None:
                config = self.run.experiment.search.frontier
                return slim_frontier(
                    space,
                    table=table,
                    score=self.scorer,
                    budget_ms=budget_ms,
                    efficiency=config.mes if config.gain == "mes" else None,
                    progress=progress,
                )
            return slim(
                space,
                importance=importance,
                table=table,
                score=self.scorer,
                budget_ms=budget_ms,
                progress=progress,
            )

    @cached_property
    def contributions(self) -> Contributions:
        """What every choice of the space adds to the score, each measured alone once."""
        with self.run.screen.bar("scoring single choices") as advance:
            return removal_contributions(self.run.runnable_space, self.scorer, progress=counted(advance))

    @cached_property
    def further_limits(self) -> list[AnyLimit]:
        """What the config asks for besides milliseconds here."""
        return further_limits(self.run)

    def exact(self, job: Job, asked_ms: float) -> Architecture:
        """The best-scored architecture within the latency and all limits that the integer program leads to."""
        table, space = self.run.table, self.run.runnable_space
        check_reachable(space, table=table, budget_ms=asked_ms)
        limits = [latency_limit(table, asked_ms), *self.further_limits]
        at_most = {limit.name: limit.at_most for limit in limits}

        def proven(optimum: Optimum) -> None:
            self._proven.append(
                ProvenOptimum(
                    budget_ms=job.budget_ms,
                    digest=optimum.architecture.digest,
                    modelled_percent=optimum.percent,
                    bound_percent=optimum.bound_percent,
                    used=optimum.used,
                    at_most=at_most,
                )
            )

        scored = self.scored.setdefault(job, {})
        return refined(space, self.contributions, score=self.scorer, limits=limits, scored=scored, proven=proven)

    def save_proofs(self, *, suffix: str = "", budget_ms: float | None = None) -> list[Path]:
        """Write what the integer programs, or those for one budget, were solved to, if there were any; the file."""
        programs = tuple(each for each in self._proven if budget_ms in (None, each.budget_ms))
        if not programs:
            return []
        path = self.working / f"{PROOFS}{suffix}.json"
        save(Proofs(programs=programs), path)
        return [path]

    @cached_property
    def evolved(self) -> Front:
        """What evolution has scored, for all budgets at once; a study in the run folder, or in a shared database."""
        from search.evolution import evolve  # loads Optuna: half a second that other methods do not need

        run, config = self.run, self.run.experiment.search.evolution
        came_from = [run.folder.manifest.stages[name].artifacts for name in ("supernet", "table")]
        asked = plain(run.experiment.search) | {"evolution": config.model_dump(exclude={"storage"})}
        search = [asked, run.experiment.evaluate.batch_size, run.experiment.seeds.search]
        with run.screen.bar("evolution") as advance:
            return evolve(
                run.runnable_space,
                table=run.table,
                score=self.scorer,
                most_ms=max(run.budgets_ms),
                trials=config.trials,
                seed=run.experiment.seeds.search,
                population=config.population,
                sampler=config.sampler,
                storage=config.storage or f"sqlite:///{self.working.resolve() / EVOLUTION}",
                study_name=f"{run.experiment.name}-{digest_of([came_from, search])[:16]}",
                alone=config.storage is None,
                progress=counted(advance),
            )

    def random_searched(self, job: Job, asked_ms: float) -> Architecture:
        """The best-scored of random architectures close below what is asked.

        Another question about the same budget is answered from those that were scored for it, as evolution answers
        it, as long as half of them are close below what is asked now; if not, as many are scored again.
        """
        run = self.run
        trials = max(1, run.experiment.search.evolution.trials // len(run.budgets_ms))
        known = self._random.setdefault(job.budget_ms, [])
        close = [found for found in known if (1 - TOLERANCE) * asked_ms <= found.latency_ms <= asked_ms]
        if 2 * len(close) < trials:
            with run.screen.bar(f"random search for {job.budget_ms:g} ms") as advance:
                known += random_search(
                    run.runnable_space,
                    table=run.table,
                    score=self.scorer,
                    budget_ms=asked_ms,
                    trials=trials,
                    generator=generator_for(run.experiment.seeds.search, "random search", f"{job.budget_ms:g}"),
                    progress=counted(advance),
                ).scored
        return Front(tuple(known)).within(asked_ms)

    def method(self, job: Job) -> Callable[[float], Architecture]:
        """`solve(asked_ms) -> Architecture` for a job's method."""
        match job.method:
            case "search":
                return lambda asked_ms: self.slimmed(asked_ms, method="search")
            case "frontier":
                return lambda asked_ms: self.slimmed(asked_ms, method="frontier")
            case "exact":
                return lambda asked_ms: self.exact(job, asked_ms)
            case "evolution":
                return lambda asked_ms: self.evolved.within(asked_ms)
            case "random_search":
                return lambda asked_ms: self.random_searched(job, asked_ms)
            case "uniform":
                return lambda asked_ms: uniform_scaling(
                    self.run.runnable_space, table=self.run.table, budget_ms=asked_ms
                )
            case "random":
                seed = self.run.experiment.seeds.search
                return lambda asked_ms: random_architecture(
                    self.run.runnable_space,
                    table=self.run.table,
                    budget_ms=asked_ms,
                    generator=generator_for(seed, "random architecture", f"{job.budget_ms:g}"),
                )
            case _:
                return lambda asked_ms: self.own(job, asked_ms)

    def own(self, job: Job, asked_ms: float) -> Architecture:
        """What a user's own method answers.

        Raises `BudgetUnreachable` for too little, `Unreachable` where it has no answer, and `UserError` for an answer
        that is none or an error of its own.
        """
        run, name = self.run, job.method
        check_reachable(run.runnable_space, table=run.table, budget_ms=asked_ms)
        asked: dict[str, Any] = {"table": run.table, "budget_ms": asked_ms, "score": self.scorer}
        asked["generator"] = generator_for(run.experiment.seeds.search, name, f"{job.budget_ms:g}")
        # Measured importances cost scores, which are the method's only if it goes by them
        asked["importance"] = self.importance(run.experiment.search.importance) if takes_importance(name) else None
        with run.screen.bar(f"{name} for {job.budget_ms:g} ms"):
            try:
                answer = search_method(name)(run.runnable_space, **asked)
            except (UserError, OSError, MemoryError, torch.OutOfMemoryError):  # not the method's fault
                raise
            except Exception as error:  # whatever a user's code raises, told by its own file and line
                file = file_of_method(name) or Path("?")
                raise UserError(f"search method {name}: {told(error, file)}") from error
        return architecture_of(answer, name, space=run.runnable_space, table=run.table, budget_ms=asked_ms)

    def deliver(self, job: Job, *, ask_at_most_ms: float | None = None) -> Delivery:
        """An architecture whose whole net measures within the job's budget. Raises `BudgetUnreachable`.

        It is measured at the table's speed: where the machine's speed has changed since, only a wrong prediction is
        corrected here. Whether the delivered model is within its budget, the export measures as it is. Nets of another
        device are not measured here: the corrected prediction counts, until the export.
        """

        def measure(net: Architecture) -> float:
            return self.run.measure_at_tables_speed(net, what=f"measuring {job.name}")

        return deliver(
            budget_ms=job.budget_ms,
            margin=self.run.experiment.search.margin,
            slack=self.run.experiment.search.slack,
            solve=self.method(job),
            predict_ms=self.run.table.latency_ms,
            measure_ms=None if self.run.elsewhere else measure,
            ask_at_most_ms=ask_at_most_ms,
        )


def architecture_path(folder: Path, job: Job) -> Path:
    """The contract between search and retraining: `architecture-<budget>ms.yaml`, under its method's folder."""
    return folder / "architectures" / job.method / f"architecture-{job.budget_ms:g}ms.yaml"
