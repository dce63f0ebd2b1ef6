"""experiments/imagenet_l1.yaml describes the paper's search: the published models it speaks of are in its space."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.experiment import Experiment, load_experiment
from supernet import Architecture, SearchSpace, cost, published_architecture

EXPERIMENT = Path(__file__).resolve().parents[2] / "experiments" / "imagenet_l1.yaml"


@pytest.fixture(scope="module")
def experiment() -> Experiment:
    return load_experiment(EXPERIMENT)


def padded(published: Architecture, space: SearchSpace) -> Architecture:
    """The published model in the space's form: positions in front of its token blocks left out."""
    choices = []
    for number, stage in enumerate(published.stages, start=1):
        by_type = {candidate.type: candidate for candidate in space.candidates(number)}
        kept = [by_type[block.type] for block in stage.blocks]
        choices.append((*[by_type["identity"]] * (space.stages[number - 1].depth - len(kept)), *kept))
    return space.architecture(tuple(stage.width_channels for stage in published.stages), tuple(choices))


@pytest.mark.parametrize(
    ("name", "parameters"), [("efficientformer_l1", 12_289_928), ("efficientformer_l3", 31_406_000)]
)
def test_a_published_model_is_in_the_space_with_every_parameter(
    name: str, parameters: int, experiment: Experiment
) -> None:
    published = published_architecture(name)
    space = experiment.search_space(num_classes=1000)
    found = padded(published, space)
    kept = [[block for block in stage.blocks if block.type != "identity"] for stage in found.stages]
    assert kept == [list(stage.blocks) for stage in published.stages]
    assert (found.stem, found.head, found.resolution_px) == (published.stem, published.head, published.resolution_px)
    assert cost(found).parameters == parameters


def test_the_learning_rates_follow_the_published_rule(experiment: Experiment) -> None:
    for recipe in (experiment.supernet, experiment.train):
        assert recipe.learning_rate == pytest.approx(1e-3 * recipe.batch_size / 1024)
        assert (recipe.weight_decay, recipe.min_learning_rate, recipe.warmup_epochs) == (0.025, 1e-5, 5)
