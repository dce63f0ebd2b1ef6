"""The ways of scoring a net without training it that a rank study compares, each a figure where higher means better."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import torch

from experiments.importances import IMPORTANCE_FILES, importance_by
from experiments.run import Run
from experiments.scoring import Scorer, search_scorer
from experiments.zero_cost import naswot, synflow
from search.contributions import Contributions, removal_contributions
from search.importance import Importance, ImportanceKind
from supernet import Architecture, SearchSpace, cost, inherit
from supernet.schema import Record, load, save
from train.evaluation import accuracy_of_batches, outcome_of_batches, refit_batchnorm

Scores = dict[str, float]
UNTRAINED_IMAGES = 128


class HeldOutScore(Record):
    """An inherited subnet on held-out images: accuracies in percent, cross-entropy in nats (statistics re-fitted)."""

    digest: str
    accuracy_percent: float
    accuracy_without_refit_percent: float
    cross_entropy: float


class UntrainedScore(Record):
    """What `experiments.zero_cost` says of an architecture."""

    digest: str
    naswot: float
    synflow: float


class Scorers:
    """All scores of an architecture.

    - `supernet_accuracy`: held-out accuracy of the inherited subnet, batch-norm statistics re-fitted: the search's own
    - `supernet_accuracy_no_refit`: the same with the statistics that the supernet has
    - `supernet_loss`: minus the held-out cross-entropy, statistics re-fitted
    - `additive`: the exact search's model, the largest net's accuracy plus what every choice changed it by, alone
    - `alpha_log_probability`: the sum of the log-probabilities that the supernet's alphas give to the candidates chosen
    - `alpha_importance`: the sum of the published importance (probabilities of the blocks over that of identity) over
      the positions that keep a block; like the one above it does not see widths
    - `removal_importance`, `taylor_importance`: the same sum of the other kinds of importance
    - `naswot`, `synflow`: of the untrained net, on 128 training images and on none (`experiments.zero_cost`)
    - `table_ms`, `macs`, `parameters`: what the net costs

    All but the costs and the alphas' are kept as files in `folder`. Images are those of the experiment's search.
    """

    def __init__(self, run: Run, folder: Path) -> None:
        self.run, self.folder = run, folder
        folder.mkdir(parents=True, exist_ok=True)
        self.importance = load(Importance, run.path / IMPORTANCE_FILES["alpha"])
        self._contributions: Contributions | None = None
        self._measured: dict[ImportanceKind, Importance] = {}

    @cached_property
    def scorer(self) -> Scorer:
        """The search's own score, with the images that it takes."""
        return search_scorer(self.run, self.folder)

    def of(self, architecture: Architecture) -> Scores:
        """Every score by its name."""
        held_out, untrained, size = self.held_out(architecture), self.untrained(architecture), cost(architecture)
        return {
            "supernet_accuracy": held_out.accuracy_percent,
            "supernet_accuracy_no_refit": held_out.accuracy_without_refit_percent,
            "supernet_loss": -held_out.cross_entropy,
            "additive": self.contributions().percent(self.run.runnable_space, architecture),
            "alpha_log_probability": alpha_log_probability(self.importance, self.run.space, architecture),
            "alpha_importance": kept_importance(self.importance, self.run.space, architecture),
            "removal_importance": kept_importance(self.measured("removal"), self.run.space, architecture),
            "taylor_importance": kept_importance(self.measured("taylor"), self.run.space, architecture),
            "naswot": untrained.naswot,
            "synflow": untrained.synflow,
            "table_ms": self.run.table.latency_ms(architecture),
            "macs": float(size.macs),
            "parameters": float(size.parameters),
        }

    def held_out(self, architecture: Architecture) -> HeldOutScore:
        """What the supernet says of an architecture; from its file, if it was asked before."""
        path = self.folder / f"{architecture.digest}.json"
        if path.exists():
            return load(HeldOutScore, path)
        scorer = self.scorer
        net = inherit(scorer.supernet, architecture)
        as_it_is = accuracy_of_batches(net, scorer.images, precision=scorer.precision)
        refit_batchnorm(net, scorer.refit, precision=scorer.precision)
        refitted, cross_entropy = outcome_of_batches(net, scorer.images, precision=scorer.precision)
        score = HeldOutScore(
            digest=architecture.digest,
            accuracy_percent=refitted.percent,
            accuracy_without_refit_percent=as_it_is.percent,
            cross_entropy=cross_entropy,
        )
        save(score, path)
        return score

    def measured(self, kind: ImportanceKind) -> Importance:
        """Another kind of importance: measured once, then read from its file."""
        if kind not in self._measured:
            path = self.folder / IMPORTANCE_FILES[kind]
            if not path.exists():
                save(importance_by(kind, run=self.run, scorer=self.scorer), path)
            self._measured[kind] = load(Importance, path)
        return self._measured[kind]

    def untrained(self, architecture: Architecture) -> UntrainedScore:
        """What the architecture's fresh net says; from its file, if it was asked before."""
        path = self.folder / f"{architecture.digest}-untrained.json"
        if path.exists():
            return load(UntrainedScore, path)
        images_NCHW = torch.cat([images for images, _ in self.scorer.refit])[:UNTRAINED_IMAGES].cpu()
        score = UntrainedScore(
            digest=architecture.digest,
            naswot=naswot(architecture, images_NCHW, seed=0),
            synflow=synflow(architecture, seed=0),
        )
        save(score, path)
        return score

    def contributions(self, progress: Callable[[int, int], None] = lambda done, total: None) -> Contributions:
        """The additive model: measured once, with (scores known, scores) for `progress`, then read from its file."""
        path = self.folder / "contributions.json"
        if self._contributions is None and path.exists():
            self._contributions = load(Contributions, path)
        if self._contributions is None:
            self._contributions = removal_contributions(self.run.runnable_space, self.scorer, progress=progress)
            save(self._contributions, path)
        return self._contributions


def alpha_log_probability(importance: Importance, space: SearchSpace, architecture: Architecture) -> float:
    """The sum over positions of the log-probability of the candidate that is there."""
    return sum(math.log(max(probability, 1e-12)) for probability, _ in _chosen(importance, space, architecture))


def kept_importance(importance: Importance, space: SearchSpace, architecture: Architecture) -> float:
    """The sum of the scores of the positions that keep a block; one without identity adds nothing."""
    return sum(score for _, score in _chosen(importance, space, architecture))


def _chosen(importance: Importance, space: SearchSpace, architecture: Architecture) -> list[tuple[float, float]]:
    """For every position the probability of the candidate there, and the position's score if that is a block."""
    choices = space.choices(architecture)
    found = []
    for metapath in importance.metapaths:
        candidate = choices[metapath.stage - 1][metapath.block - 1]
        probability = metapath.probabilities[metapath.candidates.index(candidate.name)]
        found.append((probability, 0.0 if candidate.is_identity else metapath.score or 0.0))
    return found
