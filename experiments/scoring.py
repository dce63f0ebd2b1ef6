"""The score that the search is given: held-out accuracy of an inherited subnet, batch-norm statistics re-fitted."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from experiments.run import MOST_AT_ONCE, Run
from search.importance import DiscretizationGap
from supernet import Architecture, MetaFormer, Sample, Supernet, UserError, inherit
from supernet.schema import write_atomically
from supernet.threads import side_by_side
from train.augment import AugmentConfig
from train.data import ImageData
from train.evaluation import accuracy_of_batches, outcome_of_batches, refit_batchnorm
from train.recipe import Precision
from train.splits import Batch, batches, evaluation_batches

SCORES = "scores.jsonl"


class Scorer:
    """`score(architecture)` in percent, deterministic, cached by digest in a file of JSON lines.

    The images, a fixed part of the training split for the statistics and of the score split for the accuracy, are
    prepared once for all architectures. A file from an interrupted search is gone on with. `loss(architecture)` is the
    cross-entropy of the same images, kept beside the accuracy, which it counts too. Of architectures that are asked for
    together (`ahead`) so many are scored `at_once`, each on its share of the threads.
    """

    def __init__(
        self,
        supernet: Supernet,
        data: ImageData,
        *,
        refit_images: int,
        score_images: int | None,
        batch_size: int,
        precision: Precision,
        cache: Path | None,
        at_once: int = 1,
    ) -> None:
        self.supernet, self.precision, self.cache, self.at_once = supernet, precision, cache, at_once
        device = next(supernet.parameters()).device
        data = data.to(device)
        still = AugmentConfig()
        refit_images = min(refit_images, len(data.train))
        count = math.ceil(refit_images / batch_size)  # of equal batches, as each counts the same in the average
        stream = batches(data.train, refit_images // count, epoch=0, seed=0, augment=still, device=device)
        self.refit: list[Batch] = list(itertools.islice(stream, count))
        self.images: list[Batch] = []
        left = len(data.score) if score_images is None else min(score_images, len(data.score))
        for images, labels in evaluation_batches(data.score, batch_size, device=device):
            self.images.append((images[:left], labels[:left]))
            left -= len(self.images[-1][1])
            if left == 0:
                break
        self.known, self.losses = _read(cache) if cache is not None else ({}, {})

    def __call__(self, architecture: Architecture) -> float:
        """Accuracy in percent on the score split."""
        key = architecture.digest
        if key not in self.known:
            model = inherit(self.supernet, architecture)
            self.known[key] = self.of(model)
            self._keep({"digest": key, "accuracy_percent": self.known[key]})
        return self.known[key]

    def ahead(self, architectures: Sequence[Architecture]) -> None:
        """Score those that are not known yet, several at once; their accuracies are kept in the order given.

        A single one too has its share of the threads alone, so that its score is that of an uninterrupted search.
        """
        left = list({net.digest: net for net in architectures if net.digest not in self.known}.values())
        if self.at_once == 1:
            return
        models = [inherit(self.supernet, net) for net in left]
        for net, percent in zip(left, side_by_side(self.of, models, at_once=self.at_once), strict=True):
            self.known[net.digest] = percent
            self._keep({"digest": net.digest, "accuracy_percent": percent})

    def loss(self, architecture: Architecture) -> float:
        """Mean cross-entropy of the labels on the score split, in nats."""
        key = architecture.digest
        if key not in self.losses:
            counted, loss = outcome_of_batches(self.heir(architecture), self.images, precision=self.precision)
            self.known[key], self.losses[key] = counted.percent, loss
            self._keep({"digest": key, "accuracy_percent": counted.percent, "cross_entropy": loss})
        return self.losses[key]

    def heir(self, architecture: Architecture) -> MetaFormer:
        """The inherited subnet, batch-norm statistics re-fitted."""
        model = inherit(self.supernet, architecture)
        refit_batchnorm(model, self.refit, precision=self.precision)
        return model

    def of(self, model: nn.Module) -> float:
        """Accuracy in percent of any model, after re-fitting its batch-norm statistics in place."""
        refit_batchnorm(model, self.refit, precision=self.precision)
        return accuracy_of_batches(model, self.images, precision=self.precision).percent

    def _keep(self, line: dict[str, str | float]) -> None:
        if self.cache is not None:
            with self.cache.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


def nets_scored(folder: Path) -> int:
    """How many nets a search has scored whose scores are kept in `folder`."""
    return len(_read(folder / SCORES)[0])


def search_scorer(run: Run, folder: Path) -> Scorer:
    """The score of a run's search, of its supernet on the images that it asks for; kept in `folder`."""
    experiment = run.experiment
    return Scorer(
        run.supernet,
        run.data,
        refit_images=experiment.search.refit_images,
        score_images=experiment.search.score_images,
        batch_size=experiment.evaluate.batch_size,
        precision=experiment.supernet.precision,
        cache=folder / SCORES,
        at_once=min(run.threads, MOST_AT_ONCE) if run.device.type == "cpu" else 1,
    )


def _read(cache: Path) -> tuple[dict[str, float], dict[str, float]]:
    """The accuracies in a file by digest, and the losses, of those architectures that were asked for theirs."""
    known: dict[str, float] = {}
    losses: dict[str, float] = {}
    if not cache.exists():
        return known, losses
    text = cache.read_text(encoding="utf-8")
    if text and not text.endswith("\n"):  # the last line of a process that was killed
        text = text[: text.rfind("\n") + 1]
        write_atomically(cache, text.encode())
    for line in text.splitlines():
        try:
            record = json.loads(line)
            known[str(record["digest"])] = float(record["accuracy_percent"])
            if "cross_entropy" in record:
                losses[str(record["digest"])] = float(record["cross_entropy"])
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{cache}: a line is damaged; delete the file, the search will score again") from None
    return known, losses


class Fixed(nn.Module):
    """A supernet with one choice made."""

    def __init__(self, supernet: Supernet, choice: Sample) -> None:
        super().__init__()
        self.supernet, self.choice = supernet, choice

    def forward(self, images_BCHW: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Images to logits."""
        return self.supernet(images_BCHW, self.choice)  # type: ignore[no-any-return]


def discretization_gap(supernet: Supernet, scorer: Scorer, *, temperature: float) -> DiscretizationGap:
    """Accuracy of the soft mixture against that of its most probable path, at the largest widths, without noise."""
    probabilities = tuple((alpha.detach() / temperature).softmax(dim=0) for alpha in supernet.alpha_parameters())
    chosen = tuple(int(p.argmax()) for p in probabilities)
    soft = scorer.of(Fixed(supernet, Sample(supernet.largest_widths, probabilities, chosen=None)))
    hard = scorer.of(Fixed(supernet, Sample(supernet.largest_widths, probabilities, chosen=chosen)))
    return DiscretizationGap(
        soft_accuracy_percent=soft,
        hard_accuracy_percent=hard,
        gap_points=soft - hard,
        mean_dropped_probability=sum(1.0 - float(p.max()) for p in probabilities) / len(probabilities),
    )
