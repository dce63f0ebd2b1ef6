"""How much every MetaPath matters, by its alphas, by removal or by a gradient: the content of `importance*.json`."""

# N images

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Literal

import torch
from torch import Tensor

from search.actions import SkipPath, apply, skippable
from supernet import Architecture, SearchSpace, Supernet
from supernet.schema import Record

ImportanceKind = Literal["alpha", "removal", "taylor"]
Position = tuple[int, int]
"""Stage and block number of a MetaPath, both from 1."""
Loss = Callable[[Architecture], float]
"""Mean cross-entropy of an architecture on held-out images, in nats."""


class MetaPathImportance(Record):
    """The probabilities of one position's candidates, and its score, of the file's kind.

    A position without identity has no score, and is never skipped.
    """

    stage: int
    block: int
    candidates: tuple[str, ...]
    probabilities: tuple[float, ...]
    score: float | None


class StageImportance(Record):
    """The sum of the scores of a stage's MetaPaths."""

    stage: int
    score: float


class DiscretizationGap(Record):
    """What is lost when the mixture becomes one path: accuracy of the soft supernet and of its most probable path.

    Both on held-out images, at the largest widths and without noise, batch-norm statistics re-fitted for each.
    `mean_dropped_probability` is the mean over MetaPaths of 1 - max p: a kept residual block loses exactly that
    share of its branch.
    """

    soft_accuracy_percent: float
    hard_accuracy_percent: float
    gap_points: float
    mean_dropped_probability: float


class Importance(Record):
    """Scores of all MetaPaths and stages of one supernet; what has the lowest is skipped first.

    `kind` says what a score is:

    - `alpha`, the paper's: (sum of the blocks' probabilities) / (identity's probability), that is alpha_4D / alpha_I in
      the first stages, (alpha_4D + alpha_3D) / alpha_I in the last ones (facts: EfficientFormer section 4.2)
    - `removal`: what `removal_importance` measures, in nats; below zero where the net does better without the block
    - `taylor`: what `taylor_importance` makes of gradients, in nats squared

    The probabilities are the alphas' in every kind.
    """

    schema_version: Literal[1] = 1
    kind: ImportanceKind = "alpha"  # of files from before there were others
    space_digest: str
    mixing: Literal["soft", "hard"]
    temperature: float
    metapaths: tuple[MetaPathImportance, ...]
    stages: tuple[StageImportance, ...]
    discretization_gap: DiscretizationGap | None

    def of(self, stage: int, block: int) -> float:
        """The score of one MetaPath; infinite where it cannot be skipped."""
        for metapath in self.metapaths:
            if (metapath.stage, metapath.block) == (stage, block):
                return float("inf") if metapath.score is None else metapath.score
        raise ValueError(f"stage {stage}, block {block}: no such MetaPath")

    def rescored(self, kind: ImportanceKind, scores: Mapping[Position, float]) -> Importance:
        """The same MetaPaths with scores of another kind; a position that is not among them has none."""
        metapaths = tuple(
            metapath.model_copy(update={"score": scores.get((metapath.stage, metapath.block))})
            for metapath in self.metapaths
        )
        return self.model_copy(update={"kind": kind, "metapaths": metapaths, "stages": _stage_sums(metapaths)})


def importance_of(
    supernet: Supernet,
    *,
    mixing: Literal["soft", "hard"],
    temperature: float,
    discretization_gap: DiscretizationGap | None,
) -> Importance:
    """The paper's importance of every MetaPath: probabilities softmax(alpha / temperature), without noise."""
    metapaths = []
    with torch.no_grad():
        alphas = [alpha.double().cpu() for alpha in supernet.alpha_parameters()]
    for (stage, block), alpha in zip(supernet.space.positions, alphas, strict=True):
        candidates = supernet.space.candidates(stage)
        probabilities = (alpha / temperature).softmax(dim=0)
        identity = sum(float(p) for p, c in zip(probabilities, candidates, strict=True) if c.is_identity)
        metapaths.append(
            MetaPathImportance(
                stage=stage,
                block=block,
                candidates=tuple(candidate.name for candidate in candidates),
                probabilities=tuple(float(p) for p in probabilities),
                score=(1.0 - identity) / identity if identity > 0 else None,
            )
        )
    return Importance(
        kind="alpha",
        space_digest=supernet.space.digest,
        mixing=mixing,
        temperature=temperature,
        metapaths=tuple(metapaths),
        stages=_stage_sums(metapaths),
        discretization_gap=discretization_gap,
    )


def removal_importance(alpha: Importance, *, space: SearchSpace, loss: Loss) -> Importance:
    """Importance by removal: how much the loss rises when the largest architecture has identity at this position alone.

    Choosing by what a removal is measured to do, instead of by the size of an alpha, is DARTS-PT's idea (facts: search
    section 2). Asks for the loss of the largest architecture, and of one more for every position with identity.
    """
    largest = space.largest
    whole = loss(largest)
    rises = {
        (stage, block): loss(apply(SkipPath(stage=stage, block=block), largest, space=space)) - whole
        for stage, block in skippable(space, largest)
    }
    return alpha.rescored("removal", rises)


def taylor_importance(alpha: Importance, *, gradients: Mapping[Position, Tensor]) -> Importance:
    """Importance by a gradient: the mean over images of the square of dL/dg, for a gate g = 1 on a block's branch.

    `gradients` has for every position with identity the dL/dg of each image alone, shape N: the sum over the branch's
    output of gradient times activation, to first order what closing the gate takes off that image's loss. It is squared
    before it is averaged, as by Molchanov et al. ("Importance Estimation for Neural Network Pruning", CVPR 2019): where
    training has converged, images that want more of a branch and images that want less of it cancel out, however much
    the net relies on it, so that the size of the mean would rank noise. They square the mean of a batch, here each
    image counts by itself, as in Fisher pruning (Theis et al. 2018), so that no size of a batch is in the figure.
    """
    return alpha.rescored("taylor", {at: float(each_N.double().square().mean()) for at, each_N in gradients.items()})


def _stage_sums(metapaths: Iterable[MetaPathImportance]) -> tuple[StageImportance, ...]:
    sums: dict[int, float] = {}
    for metapath in metapaths:
        sums[metapath.stage] = sums.get(metapath.stage, 0.0) + (metapath.score or 0.0)
    return tuple(StageImportance(stage=stage, score=score) for stage, score in sums.items())
