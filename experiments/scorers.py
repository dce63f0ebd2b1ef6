"""The ways of scoring a net without training it that a rank study compares, each a figure where higher means better."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

from experiments.run import Run
from experiments.scoring import Scorer
from search.contributions import Contributions, removal_contributions
from search.importance import Importance
from supernet import Architecture, SearchSpace, cost, inherit
from supernet.schema import Record, load, save
from train.evaluation import accuracy_of_batches, cross_entropy_of_batches, refit_batchnorm

Scores = dict[str, float]


class HeldOutScore(Record):
    """An inherited subnet on held-out images: accuracies in percent, cross-entropy in nats (statistics re-fitted)."""

    digest: str
    accuracy_percent: float
    accuracy_without_refit_percent: float
    cross_entropy: float


class Scorers:
    """All scores of an architecture.

    - `supernet_accuracy`: held-out accuracy of the inherited subnet, batch-norm statistics re-fitted: the search's own
    - `supernet_accuracy_no_refit`: the same with the statistics that the supernet has
    - `supernet_loss`: minus the held-out cross-entropy, statistics re-fitted
    - `additive`: the exact search's model, the largest net's accuracy plus what every choice changed it by, alone
    - `alpha_log_probability`: the sum of the log-probabilities that the supernet's alphas give to the candidates chosen
    - `alpha_importance`: the sum of the published importance (probabilities of the blocks over that of identity) over
      the positions that keep a block; like the one above it does not see widths
    - `table_ms`, `macs`, `parameters`: what the net costs

    Held-out scores are kept as files in `folder`, and every image of the score split counts unless the experiment's
    search takes fewer.
    """

    def __init__(self, run: Run, folder: Path) -> None:
        self.run, self.folder = run, folder
        self.importance = load(Importance, run.path / "importance.json")
        self._contributions: Contributions | None = None

    @cached_property
    def scorer(self) -> Scorer:
        """The search's own score, with the images that it takes."""
        search = self.run.experiment.search
        return Scorer(
            self.run.supernet,
            self.run.data,
            refit_images=search.refit_images,
            score_images=search.score_images,
            batch_size=self.run.experiment.evaluate.batch_size,
            precision=self.run.experiment.supernet.precision,
            cache=None,
        )

    def of(self, architecture: Architecture) -> Scores:
        """Every score by its name."""
        held_out, size = self.held_out(architecture), cost(architecture)
        return {
            "supernet_accuracy": held_out.accuracy_percent,
            "supernet_accuracy_no_refit": held_out.accuracy_without_refit_percent,
            "supernet_loss": -held_out.cross_entropy,
            "additive": self.contributions().percent(self.run.space, architecture),
            "alpha_log_probability": alpha_log_probability(self.importance, self.run.space, architecture),
            "alpha_importance": alpha_importance(self.importance, self.run.space, architecture),
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
        score = HeldOutScore(
            digest=architecture.digest,
            accuracy_percent=accuracy_of_batches(net, scorer.images, precision=scorer.precision).percent,
            accuracy_without_refit_percent=as_it_is.percent,
            cross_entropy=cross_entropy_of_batches(net, scorer.images, precision=scorer.precision),
        )
        save(score, path)
        return score

    def contributions(self, told: Callable[[], None] = lambda: None) -> Contributions:
        """The additive model: measured once, `told` after each architecture that it takes, then read from its file."""
        path = self.folder / "contributions.json"
        if self._contributions is None and path.exists():
            self._contributions = load(Contributions, path)
        if self._contributions is None:

            def score(architecture: Architecture) -> float:
                percent = self.held_out(architecture).accuracy_percent
                told()
                return percent

            self._contributions = removal_contributions(self.run.space, score)
            save(self._contributions, path)
        return self._contributions


def alpha_log_probability(importance: Importance, space: SearchSpace, architecture: Architecture) -> float:
    """The sum over positions of the log-probability of the candidate that is there."""
    return sum(math.log(max(probability, 1e-12)) for probability, _ in _chosen(importance, space, architecture))


def alpha_importance(importance: Importance, space: SearchSpace, architecture: Architecture) -> float:
    """The sum of the published scores of the positions that keep a block; one without identity adds nothing."""
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
