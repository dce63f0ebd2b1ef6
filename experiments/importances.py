"""The kinds of importance of a run: which of them the search measures, how, and the files that hold them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from typing_extensions import assert_never

from experiments.console import counted
from experiments.experiment import SearchConfig
from experiments.run import Run
from experiments.scoring import Scorer
from search.actions import skippable
from search.importance import Importance, ImportanceKind, removal_importance, taylor_importance
from supernet import Architecture
from supernet.metaformer import MetaFormerStage
from supernet.schema import load
from train.gates import gate_gradients
from train.splits import Batch

IMPORTANCE_FILES: dict[ImportanceKind, str] = {
    "alpha": "importance.json",  # the supernet's stage writes it, that of the search the others
    "removal": "importance-removal.json",
    "taylor": "importance-taylor.json",
}
MEASURED: tuple[Literal["removal", "taylor"], ...] = ("removal", "taylor")


def measured_kinds(search: SearchConfig) -> tuple[ImportanceKind, ...]:
    """The kinds that a search measures and writes: what its slimming goes by, and what is to be shown beside it."""
    return tuple(kind for kind in MEASURED if kind == search.importance or kind in search.further_importances)


def importance_by(kind: ImportanceKind, *, run: Run, scorer: Scorer) -> Importance:
    """The importance of every MetaPath of a run: of the supernet's file, or measured on the images of a scorer."""
    alpha = load(Importance, run.path / IMPORTANCE_FILES["alpha"])
    match kind:
        case "alpha":
            return alpha
        case "removal":
            return _by_removal(alpha, run=run, scorer=scorer)
        case "taylor":
            return _by_gradient(alpha, run=run, scorer=scorer)
        case _:
            assert_never(kind)


def _by_removal(alpha: Importance, *, run: Run, scorer: Scorer) -> Importance:
    space = run.runnable_space
    total = 1 + len(skippable(space, space.largest))
    done = 0
    with run.screen.bar("removing one block at a time") as advance:

        def loss(architecture: Architecture) -> float:
            nonlocal done
            nats = scorer.loss(architecture)
            done += 1
            advance(done, total, {"held-out loss": nats})
            return nats

        return removal_importance(alpha, space=space, loss=loss)


def _by_gradient(alpha: Importance, *, run: Run, scorer: Scorer) -> Importance:
    space = run.runnable_space
    positions = skippable(space, space.largest)
    if not positions:
        return taylor_importance(alpha, gradients={})
    heir = scorer.heir(space.largest)
    blocks = []
    for stage, block in positions:
        module = heir.stages[stage - 1]
        assert isinstance(module, MetaFormerStage)
        blocks.append(module.blocks[block - 1])
    with run.screen.bar("gradients of the blocks") as advance:
        told = counted(advance)

        def images() -> Iterator[Batch]:
            for number, batch in enumerate(scorer.images, start=1):
                yield batch
                told(number, len(scorer.images))

        gradients_NG = gate_gradients(
            heir,
            blocks,
            images(),
            precision=scorer.precision,
            batch_size=run.experiment.supernet.batch_size,  # for whose backward passes there was room
        )
    return taylor_importance(alpha, gradients=dict(zip(positions, gradients_NG.unbind(1), strict=True)))
