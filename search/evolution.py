"""Evolution over score and latency through Optuna.

A trial is an architecture: a width for each stage, a candidate for each position. Trials live in a storage that several
processes can share and that outlives them; with one process the result depends on the seed alone, interrupted or not.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, Literal

import optuna
import torch
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, NSGAIIISampler, NSGAIISampler, TPESampler
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from search.evolution_storage import HEARTBEAT_SECONDS, opened
from search.front import Front, Scored
from search.slimming import Latencies, Score, check_reachable
from supernet import Architecture, SearchSpace
from supernet.candidate import Candidate

SamplerName = Literal["nsga2", "nsga3", "tpe"]
GIVEN = "given"  # the trial's attribute that says which of the first ones it is


def evolve(
    space: SearchSpace,
    *,
    table: Latencies,
    score: Score,
    most_ms: float,
    trials: int,
    seed: int,
    population: int = 20,
    sampler: SamplerName = "nsga2",
    storage: str | BaseStorage | None = None,
    study_name: str = "evolution",
    alone: bool = True,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Front:
    """Score `trials` architectures of a study, and return all that it holds, in the order in which they were finished.

    The study maximises the score and minimises the latency; architectures above `most_ms` are constrained away. It
    begins with `population` random architectures, the fastest among them, so that every budget in reach has one.
    `storage` is Optuna's: a URL such as sqlite:///study.db, which is gone on with, or None for memory. Several
    processes may share it, each with `alone=False`: they stop when the study has `trials` (one may be under way in
    each), and the trial of one that died counts as failed after a minute. Raises `BudgetUnreachable` if even the
    fastest architecture is predicted above `most_ms`, and `UserError` if the storage cannot be opened or fails.
    """
    check_reachable(space, table=table, budget_ms=most_ms)
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # an interruption is no news of a failed trial
    first = _first_generation(space, table.fastest(space), population, seed)
    numbered = _Numbered(sampler, first, seed=seed, alone=alone)

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        architecture = decoded(space, _suggested(space, trial))
        trial.set_user_attr(GIVEN, numbered.index)
        latency_ms = table.latency_ms(architecture)
        trial.set_constraint("ms over the budget", latency_ms - most_ms)
        return score(architecture), latency_ms

    def stop(study: optuna.Study, trial: FrozenTrial) -> None:
        done = len(_finished(study))
        progress(min(done, trials), trials)
        if done >= trials:
            study.stop()

    with opened(storage) as database:
        study = optuna.create_study(
            study_name=study_name,
            directions=["maximize", "minimize"],
            storage=database,
            sampler=numbered,
            load_if_exists=True,
        )
        if alone:
            for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                study.tell(trial.number, state=TrialState.FAIL)
        if len(_finished(study)) < trials:
            study.optimize(objective, callbacks=[stop])
        return Front(tuple(Scored(decoded(space, trial.params), *trial.values) for trial in _finished(study)))


class _Numbered(BaseSampler):
    """A sampler whose draws for a trial depend on the seed, the trial's number and the finished trials alone.

    So a study that was interrupted goes on as if it had not been: trials that failed are not counted (among several
    workers they are, or the numbers of trials after a failed one would be drawn for twice). The first trials are given,
    whatever is drawn.
    """

    def __init__(self, name: SamplerName, first: Sequence[dict[str, Any]], *, seed: int, alone: bool) -> None:
        self.name, self.first, self.seed, self.alone = name, first, seed, alone
        self.trial = -1  # the one under way: its draws follow one another
        self.drawn: BaseSampler = optuna.samplers.RandomSampler()
        self.index: int | None = None  # of the first trials, which one this is
        self.given: dict[str, Any] = {}

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """As the sampler that is wrapped."""
        self._begin(study, trial)
        return self.drawn.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """What is given; else as the sampler that is wrapped, which is asked in any case: it counts generations."""
        self._begin(study, trial)
        drawn = self.drawn.sample_relative(study, trial, search_space)
        return {name: self.given[name] for name in search_space} if self.given else drawn

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """What is given; else as the sampler that is wrapped."""
        self._begin(study, trial)
        if self.given:
            return self.given[param_name]
        return self.drawn.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        """As the sampler that is wrapped."""
        self.drawn.after_trial(study, trial, state, values)

    def _begin(self, study: optuna.Study, trial: FrozenTrial) -> None:
        if self.trial == trial.number:
            return
        others = [other for other in study.get_trials(deepcopy=False) if other.number != trial.number]
        failed = [other.number for other in others if other.state == TrialState.FAIL] if self.alone else []
        number = trial.number - sum(other < trial.number for other in failed)
        self.trial = trial.number
        self.drawn = _sampler(self.name, population=len(self.first), seed=_seed_of(self.seed, number))
        taken = {other.user_attrs.get(GIVEN) for other in others if other.state != TrialState.FAIL}
        free = [index for index in range(len(self.first)) if index not in taken]
        choosing = sum(_is_choosing(other, before=trial) for other in others)
        self.index = free[choosing] if choosing < len(free) else None
        self.given = {} if self.index is None else self.first[self.index]


def _is_choosing(other: FrozenTrial, *, before: FrozenTrial) -> bool:
    """Whether a trial that another worker has just begun is about to take one of the given ones, before this trial."""
    if other.state != TrialState.RUNNING or other.number > before.number or GIVEN in other.user_attrs:
        return False
    if other.datetime_start is None or before.datetime_start is None:
        return False
    return before.datetime_start - other.datetime_start < timedelta(seconds=2 * HEARTBEAT_SECONDS)  # else it has died


def encoded(space: SearchSpace, architecture: Architecture) -> dict[str, Any]:
    """An architecture of the space as a trial's parameters."""
    params: dict[str, Any] = {}
    for number, stage in enumerate(architecture.stages, start=1):
        params[f"width {number}"] = space.widths(number).index(stage.width_channels)
    for number, chosen in enumerate(space.choices(architecture), start=1):
        for block, candidate in enumerate(chosen, start=1):
            params[f"block {number}.{block}"] = candidate.name
    return params


def decoded(space: SearchSpace, params: Mapping[str, Any]) -> Architecture:
    """The architecture that a trial's parameters stand for.

    Token blocks come last: one with a block on maps behind it becomes the first block on maps of its stage.
    """
    widths = tuple(space.widths(number)[params[f"width {number}"]] for number in range(1, len(space.stages) + 1))
    choices: list[list[Candidate]] = [[] for _ in space.stages]
    maps_behind = False
    for stage, block in reversed(space.positions):
        candidates = space.candidates(stage)
        candidate = next(found for found in candidates if found.name == params[f"block {stage}.{block}"])
        if not candidate.is_identity and candidate.layout == "tokens" and maps_behind:
            candidate = next(found for found in candidates if not found.is_identity and found.layout == "map")
        maps_behind |= not candidate.is_identity and candidate.layout == "map"
        choices[stage - 1].insert(0, candidate)
    return space.architecture(widths, tuple(map(tuple, choices)))


def _suggested(space: SearchSpace, trial: optuna.Trial) -> dict[str, Any]:
    params: dict[str, Any] = {}
    for number in range(1, len(space.stages) + 1):
        params[f"width {number}"] = trial.suggest_int(f"width {number}", 0, len(space.widths(number)) - 1)
    for stage, block in space.positions:
        names = [candidate.name for candidate in space.candidates(stage)]
        params[f"block {stage}.{block}"] = trial.suggest_categorical(f"block {stage}.{block}", names)
    return params


def _first_generation(space: SearchSpace, fastest: Architecture, population: int, seed: int) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(_seed_of(seed, -1))
    nets = [fastest, *(space.random(generator) for _ in range(population - 1))]
    return [encoded(space, net) for net in nets]


def _finished(study: optuna.Study) -> list[FrozenTrial]:
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return sorted(trials, key=lambda trial: trial.number)


def _sampler(name: SamplerName, *, population: int, seed: int) -> BaseSampler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)  # of NSGA-III, and of TPE's joint density
        if name == "tpe":
            return TPESampler(n_startup_trials=population, seed=seed, multivariate=True)
        kind = NSGAIISampler if name == "nsga2" else NSGAIIISampler
        return kind(population_size=population, seed=seed)


def _seed_of(seed: int, number: int) -> int:
    return (seed * 1_000_003 + number + 1) % 2**31
