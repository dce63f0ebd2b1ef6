"""How much every MetaPath matters, read from the supernet's alphas: the content of `importance.json`."""

from __future__ import annotations

from typing import Literal

import torch

from supernet import Supernet
from supernet.schema import Record


class MetaPathImportance(Record):
    """The probabilities of one position's candidates, and the paper's score.

    The score is (sum of the blocks' probabilities) / (identity's probability): alpha_4D / alpha_I in the first
    stages, (alpha_4D + alpha_3D) / alpha_I in the last ones (facts: EfficientFormer section 4.2). A position without
    identity has no score, and is never skipped.
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
    """Scores of all MetaPaths and stages of one supernet."""

    schema_version: Literal[1] = 1
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


def importance_of(
    supernet: Supernet,
    *,
    mixing: Literal["soft", "hard"],
    temperature: float,
    discretization_gap: DiscretizationGap | None,
) -> Importance:
    """The importance of every MetaPath: probabilities softmax(alpha / temperature), without noise."""
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
    stages = tuple(
        StageImportance(stage=number, score=sum(m.score or 0.0 for m in metapaths if m.stage == number))
        for number in range(1, len(supernet.space.stages) + 1)
    )
    return Importance(
        space_digest=supernet.space.digest,
        mixing=mixing,
        temperature=temperature,
        metapaths=tuple(metapaths),
        stages=stages,
        discretization_gap=discretization_gap,
    )
