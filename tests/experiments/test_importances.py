"""The kinds of importance of a run: measured as defined, written where asked for, and what the slimming goes by."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from analysis.run_folder import read_run
from experiments import solving
from experiments.artifacts import RunFolder
from experiments.console import Screen
from experiments.experiment import load_experiment
from experiments.importances import importance_by
from experiments.plan import most_scores
from experiments.run import Run
from experiments.scoring import search_scorer
from experiments.solving import Solver
from search.importance import Importance, ImportanceKind
from supernet import Supernet, inherit
from supernet.schema import load
from train.evaluation import outcome_of_batches, refit_batchnorm

Slimformer = Callable[..., Any]
MEASURED: tuple[ImportanceKind, ...] = ("removal", "taylor")


def run_of(folder: Path, *overrides: str) -> Run:
    return Run(load_experiment(folder / "config.json", overrides=overrides), RunFolder(folder), Screen(), command="")


@pytest.fixture
def run(finished: Path) -> Run:
    return run_of(finished)


def scores(importance: Importance) -> list[float | None]:
    return [metapath.score for metapath in importance.metapaths]


def with_empty_branches(supernet: Supernet, *positions: int) -> Supernet:
    """A copy in which every candidate at these positions adds nothing to its input."""
    changed = copy.deepcopy(supernet)
    with torch.no_grad():
        for position in positions:
            for name, parameter in changed.metapaths[position].named_parameters():
                if ".ls1." in name or ".ls2." in name:
                    parameter.zero_()
    return changed


@pytest.mark.parametrize("kind", MEASURED)
def test_a_block_whose_branch_is_zero_has_no_importance(run: Run, tmp_path: Path, kind: ImportanceKind) -> None:
    run.supernet = with_empty_branches(run.supernet, 0, 2)  # one on maps, one on tokens
    found = importance_by(kind, run=run, scorer=search_scorer(run, tmp_path))
    first, second, third = scores(found)
    assert found.kind == kind
    assert (first, third) == (0.0, 0.0)
    assert second is not None
    assert abs(second) > 1e-6
    assert [(m.stage, m.block) for m in found.metapaths] == list(run.space.positions)


def test_removal_is_the_rise_of_the_heirs_loss_with_refitted_statistics(run: Run, tmp_path: Path) -> None:
    scorer, space = search_scorer(run, tmp_path), run.space
    losses = []
    widths = tuple(stage.width_channels for stage in space.largest.stages)
    (first, (block, last)) = space.choices(space.largest)
    skipped = space.candidates(2)[2]
    assert skipped.is_identity
    for architecture in (space.largest, space.architecture(widths, (first, (block, skipped)))):
        heir = inherit(run.supernet, architecture)
        refit_batchnorm(heir, scorer.refit, precision="fp32")
        losses.append(outcome_of_batches(heir, scorer.images, precision="fp32")[1])
    assert not last.is_identity
    found = importance_by("removal", run=run, scorer=scorer)
    assert found.of(2, 2) == pytest.approx(losses[1] - losses[0], abs=1e-6)
    assert found.of(2, 2) != 0


@pytest.mark.parametrize("kind", MEASURED)
def test_measuring_leaves_the_supernet_as_it_was(run: Run, tmp_path: Path, kind: ImportanceKind) -> None:
    supernet = run.supernet
    supernet.train()
    supernet.head.eval()
    before = copy.deepcopy(supernet.state_dict())
    modes = [module.training for module in supernet.modules()]
    importance_by(kind, run=run, scorer=search_scorer(run, tmp_path))
    assert all(torch.equal(tensor, before[name]) for name, tensor in supernet.state_dict().items())
    assert [module.training for module in supernet.modules()] == modes
    assert all(parameter.grad is None and parameter.requires_grad for parameter in supernet.parameters())
    assert not any(module._forward_hooks for module in supernet.modules())


def test_a_removal_is_measured_once(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = importance_by("removal", run=run, scorer=search_scorer(run, tmp_path))
    monkeypatch.setattr("experiments.scoring.inherit", lambda *_, **__: pytest.fail("measured again"))
    assert importance_by("removal", run=run, scorer=search_scorer(run, tmp_path)) == first


def test_a_search_writes_the_importances_that_it_is_asked_for_and_no_others(
    finished: Path, copied: Path, slimformer: Slimformer
) -> None:
    def searched(*overrides: str) -> set[str]:
        words = [word for override in ("search.methods=[search]", *overrides) for word in ("--set", override)]
        outcome = slimformer("search", copied, *words, "--redo")
        assert outcome.code == 0, outcome.err
        written = {path.name for path in copied.glob("importance*.json")}
        artifacts = RunFolder(copied).manifest.stages["search"].artifacts
        assert written - {"importance.json"} == {name for name in artifacts if name.startswith("importance")}
        return written

    further = "search.further_importances=[taylor, removal]"
    assert searched(further) == {"importance.json", "importance-removal.json", "importance-taylor.json"}
    for kind in MEASURED:
        assert load(Importance, copied / f"importance-{kind}.json").kind == kind
    shown = read_run(copied)
    assert [importance.kind for importance in shown.further_importances] == list(MEASURED)
    assert not [missing for missing in shown.missing if "importance" in missing.file]
    trajectory = (copied / "trajectory.jsonl").read_bytes()
    assert trajectory == (finished / "trajectory.jsonl").read_bytes()  # only shown
    assert searched("search.importance=removal", "search.further_importances=[]") == {
        "importance.json",
        "importance-removal.json",
    }
    assert (copied / "importance.json").read_bytes() == (finished / "importance.json").read_bytes()


@pytest.mark.parametrize("kind", ["alpha", *MEASURED])
def test_the_slimming_goes_by_the_importance_that_is_asked_for(
    copied: Path, monkeypatch: pytest.MonkeyPatch, kind: ImportanceKind
) -> None:
    """The last position made the least important by this kind alone: it is the first that the slimming thinks of."""
    run = run_of(copied, f"search.importance={kind}")
    measured = importance_by

    def doctored(asked: ImportanceKind, **options: Any) -> Importance:
        found = measured(asked, **options)
        return found.rescored(asked, {(1, 1): 3.0, (2, 1): 2.0, (2, 2): 1.0}) if asked == kind else found

    monkeypatch.setattr(solving, "importance_by", doctored)
    solver = Solver(run)
    solver.slimmed(0.95 * run.table.latency_ms(run.space.largest), method="search")
    (skip,) = (
        alternative.action
        for alternative in solver.trajectories["search"].steps[1].alternatives
        if alternative.action.kind == "skip_path"
    )
    assert (skip.stage, skip.block) == (2, 2)
    assert solver.importance(kind).kind == kind


def test_a_plan_counts_the_removals(run: Run) -> None:
    search = run.experiment.search
    asked = [
        search.model_copy(update={"importance": "removal"}),
        search.model_copy(update={"further_importances": MEASURED}),
    ]
    more = {most_scores(run.space, each) - most_scores(run.space, search) for each in asked}
    assert more == {1 + len(run.space.positions)}
