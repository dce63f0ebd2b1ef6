"""Importance: the paper's score by its formula, and a file that says all of it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from search.importance import (
    DiscretizationGap,
    Importance,
    importance_of,
    removal_importance,
    taylor_importance,
)
from supernet.architecture import Architecture
from supernet.block_types import Identity
from supernet.schema import UserError, load, save
from supernet.space import SearchSpace
from supernet.supernet import Supernet

GAP = DiscretizationGap(
    soft_accuracy_percent=80.0, hard_accuracy_percent=78.5, gap_points=1.5, mean_dropped_probability=0.2
)


@pytest.fixture(scope="module")
def supernet(space: SearchSpace) -> Supernet:
    """A supernet whose alphas are logarithms of 1, 2, 3, ... so that probabilities are easy fractions."""
    net = Supernet(space)
    with torch.no_grad():
        for number, alpha in enumerate(net.alpha_parameters()):
            alpha.copy_(torch.tensor([math.log(1 + number + k) for k in range(len(alpha))]))
    return net


def test_a_score_is_the_blocks_probability_over_identitys(supernet: Supernet) -> None:
    found = importance_of(supernet, mixing="hard", temperature=1.0, discretization_gap=None)
    assert [(m.stage, m.block) for m in found.metapaths] == list(supernet.space.positions)
    assert [m.candidates for m in found.metapaths] == [
        ("mb4d", "identity"),
        ("mb4d", "identity"),
        ("mb4d", "mb3d"),
        ("mb4d", "mb3d", "identity"),
        ("mb4d", "mb3d", "identity"),
    ]
    # probabilities 1:2, 2:3, 3:4, 4:5:6 and 5:6:7
    assert [m.score for m in found.metapaths] == [
        pytest.approx(1 / 2),
        pytest.approx(2 / 3),
        None,
        pytest.approx(9 / 6),
        pytest.approx(11 / 7),
    ]
    assert found.metapaths[3].probabilities == pytest.approx((4 / 15, 5 / 15, 6 / 15))


def test_a_stages_score_is_the_sum_of_its_paths_scores(supernet: Supernet) -> None:
    found = importance_of(supernet, mixing="soft", temperature=1.0, discretization_gap=None)
    assert [stage.score for stage in found.stages] == pytest.approx([1 / 2 + 2 / 3, 0.0, 9 / 6 + 11 / 7])


def test_probabilities_are_taken_at_the_temperature(supernet: Supernet) -> None:
    found = importance_of(supernet, mixing="hard", temperature=0.5, discretization_gap=None)
    assert found.metapaths[0].probabilities == pytest.approx((1 / 5, 4 / 5))  # squared: 1:4
    assert found.metapaths[0].score == pytest.approx(1 / 4)
    assert found.temperature == 0.5


def test_a_path_without_identity_is_infinitely_important(supernet: Supernet) -> None:
    found = importance_of(supernet, mixing="hard", temperature=1.0, discretization_gap=None)
    assert found.of(2, 1) == math.inf
    assert found.of(1, 2) == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="stage 2, block 2: no such MetaPath"):
        found.of(2, 2)


def test_a_saturated_path_has_a_finite_score_or_none(space: SearchSpace) -> None:
    net = Supernet(space)
    with torch.no_grad():
        for alpha in net.alpha_parameters():
            alpha[0] = 1e4  # identity's probability is 0, even in double precision
    found = importance_of(net, mixing="hard", temperature=1.0, discretization_gap=None)
    assert all(m.score is None for m in found.metapaths)
    assert all(math.isfinite(stage.score) for stage in found.stages)


def test_importance_comes_back_from_its_file(supernet: Supernet, tmp_path: Path) -> None:
    found = importance_of(supernet, mixing="hard", temperature=0.7, discretization_gap=GAP)
    save(found, tmp_path / "importance.json")
    back = load(Importance, tmp_path / "importance.json")
    assert back == found
    assert back.discretization_gap == GAP
    assert back.space_digest == supernet.space.digest
    save(back, tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "importance.json").read_bytes()


def test_a_file_of_an_unknown_version_is_refused(supernet: Supernet, tmp_path: Path) -> None:
    path = tmp_path / "importance.json"
    save(importance_of(supernet, mixing="hard", temperature=1.0, discretization_gap=None), path)
    path.write_text(path.read_text().replace('"schema_version": 1', '"schema_version": 2'))
    with pytest.raises(UserError, match=r"importance\.json: schema_version: .*got 2"):
        load(Importance, path)


def test_reading_the_alphas_changes_nothing(supernet: Supernet) -> None:
    before = [alpha.clone() for alpha in supernet.alpha_parameters()]
    importance_of(supernet, mixing="hard", temperature=0.5, discretization_gap=None)
    assert all(torch.equal(a, b) for a, b in zip(before, supernet.alpha_parameters(), strict=True))


def test_a_file_from_before_there_were_kinds_is_of_the_alphas(supernet: Supernet, tmp_path: Path) -> None:
    path = tmp_path / "importance.json"
    found = importance_of(supernet, mixing="hard", temperature=1.0, discretization_gap=GAP)
    save(found, path)
    data = json.loads(path.read_text())
    assert data.pop("kind") == "alpha"
    path.write_text(json.dumps(data))
    assert load(Importance, path) == found
    path.write_text(json.dumps({**data, "kind": "beta"}))
    with pytest.raises(UserError, match=r"kind: .*'alpha', 'removal' or 'taylor'"):
        load(Importance, path)


def filled(architecture: Architecture) -> list[tuple[int, int]]:
    return [
        (stage, block)
        for stage, blocks in enumerate((stage.blocks for stage in architecture.stages), start=1)
        for block, chosen in enumerate(blocks, start=1)
        if not isinstance(chosen, Identity)
    ]


def test_importance_by_removal_is_what_the_loss_rises_by_without_the_block(
    space: SearchSpace, importance: Importance, tmp_path: Path
) -> None:
    worth = {(1, 1): 0.5, (1, 2): -0.25, (2, 1): 8.0, (3, 1): 0.125, (3, 2): 1.0}
    asked: list[Architecture] = []

    def loss(architecture: Architecture) -> float:
        asked.append(architecture)
        assert [stage.width_channels for stage in architecture.stages] == [48, 64, 96]
        return 10.0 - sum(worth[position] for position in filled(architecture))

    found = removal_importance(importance, space=space, loss=loss)
    assert found.kind == "removal"
    assert [m.score for m in found.metapaths] == [0.5, -0.25, None, 0.125, 1.0]  # stage 2 has no identity
    assert [(s.stage, s.score) for s in found.stages] == [(1, 0.25), (2, 0.0), (3, 1.125)]
    assert asked[0] == space.largest
    assert len(asked) == len(set(asked)) == 5
    assert found.of(2, 1) == math.inf
    assert [m.probabilities for m in found.metapaths] == [m.probabilities for m in importance.metapaths]
    save(found, tmp_path / "importance-removal.json")
    assert load(Importance, tmp_path / "importance-removal.json") == found


def test_importance_by_gradient_counts_images_that_pull_apart(
    space: SearchSpace, importance: Importance, make_importance: Callable[..., Importance]
) -> None:
    gradients = {
        (1, 1): torch.tensor([1.0, -1.0, 1.0, -1.0]),  # 0 on average
        (1, 2): torch.tensor([0.5, 0.5, 0.5, 0.5]),
        (3, 1): torch.tensor([0.0, 0.0, 0.0, 4.0]),
        (3, 2): torch.zeros(4),
    }
    found = taylor_importance(importance, gradients=gradients)
    scores = {(1, 1): 1.0, (1, 2): 0.25, (2, 1): None, (3, 1): 4.0, (3, 2): 0.0}
    assert found == make_importance(space, scores).model_copy(update={"kind": "taylor"})
