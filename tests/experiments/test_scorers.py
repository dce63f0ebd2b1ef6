"""What a rank study compares: each score against its own definition, and which architectures are trained."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch

from experiments import rank_study, scorers
from experiments.artifacts import RunFolder
from experiments.console import Screen
from experiments.importances import importance_by
from experiments.rank_study import BINS, spread_architectures
from experiments.run import Run
from experiments.scorers import Scorers, alpha_log_probability, kept_importance
from experiments.study import RankConfig
from search.importance import importance_of
from supernet import UserError, cost, inherit
from train.evaluation import accuracy_of_batches


@pytest.fixture(scope="module")
def run(_finished: Path) -> Run:
    folder = RunFolder(_finished)
    return Run(folder.config, folder, Screen(), command="")


def test_every_score_is_what_its_name_says(run: Run, tmp_path: Path) -> None:
    made = Scorers(run, tmp_path)
    before = copy.deepcopy(run.supernet.state_dict())
    differs = False
    for seed in range(3):
        net = run.space.random(torch.Generator().manual_seed(seed))
        scores, size = made.of(net), cost(net)
        assert scores["supernet_accuracy"] == made.scorer(net)
        heir = inherit(run.supernet, net)
        as_it_is = accuracy_of_batches(heir, made.scorer.images, precision="fp32").percent
        assert scores["supernet_accuracy_no_refit"] == as_it_is
        differs |= as_it_is != scores["supernet_accuracy"]
        assert -5 < scores["supernet_loss"] < 0
        for kind in ("alpha", "removal", "taylor"):
            importance = importance_by(kind, run=run, scorer=made.scorer)  # type: ignore[arg-type]
            assert scores[f"{kind}_importance"] == kept_importance(importance, run.space, net)
        assert scores["additive"] == made.contributions().percent(run.space, net)
        assert (scores["macs"], scores["parameters"]) == (size.macs, size.parameters)
        assert scores["table_ms"] == run.table.latency_ms(net)
    assert differs
    assert all(torch.equal(tensor, before[name]) for name, tensor in run.supernet.state_dict().items())


def test_the_loss_is_the_mean_over_all_images(run: Run, tmp_path: Path) -> None:
    made = Scorers(run, tmp_path)
    net = run.space.smallest
    found = made.held_out(net)
    heir = inherit(run.supernet, net)
    made.scorer.of(heir)  # re-fits its statistics
    images, labels = (torch.cat(parts) for parts in zip(*made.scorer.images, strict=True))
    with torch.no_grad():
        expected = torch.nn.functional.cross_entropy(heir(images), labels)
    assert found.cross_entropy == pytest.approx(float(expected), rel=1e-4)


def test_a_score_is_taken_once(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = run.space.scaled(0.5)
    first = Scorers(run, tmp_path).of(net)
    monkeypatch.setattr(scorers, "inherit", lambda *_: pytest.fail("scored again"))
    assert Scorers(run, tmp_path).of(net) == first


def test_alphas_score_the_blocks_that_are_kept(run: Run) -> None:
    supernet, space = copy.deepcopy(run.supernet), run.space
    with torch.no_grad():
        for alpha in supernet.alpha_parameters():
            alpha.copy_(torch.linspace(1.0, 0.0, len(alpha)))  # identity is the last, so the least probable
    importance = importance_of(supernet, mixing="hard", temperature=1.0, discretization_gap=None)
    probable = sum(math.log(metapath.probabilities[0]) for metapath in importance.metapaths)
    blocks = space.architecture(
        tuple(space.widths(number)[0] for number in (1, 2)),
        tuple((space.candidates(number)[0],) * stage.depth for number, stage in enumerate(space.stages, start=1)),
    )
    assert alpha_log_probability(importance, space, blocks) == pytest.approx(probable)
    assert kept_importance(importance, space, blocks) == pytest.approx(sum(m.score or 0 for m in importance.metapaths))
    empty = space.smallest  # identity wherever there may be
    assert kept_importance(importance, space, empty) == 0
    unlikely = sum(math.log(metapath.probabilities[-1]) for metapath in importance.metapaths)
    assert alpha_log_probability(importance, space, empty) == pytest.approx(unlikely)


def test_architectures_are_spread_over_the_latencies_and_fewer_are_the_first_of_more(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rank_study, "DRAWS", 300)
    nets = spread_architectures(run, RankConfig(architectures=22))
    assert len({net.digest for net in nets}) == 22
    assert nets[:2] == [run.space.smallest, run.space.largest]
    assert spread_architectures(run, RankConfig(architectures=12)) == nets[:12]
    assert spread_architectures(run, RankConfig(architectures=22, draw_seed=1))[2:] != nets[2:]
    low_ms, high_ms = run.table.latency_ms(nets[0]), run.table.latency_ms(nets[1])
    shares = [(run.table.latency_ms(net) - low_ms) / (high_ms - low_ms) for net in nets[2:12]]
    assert len({min(BINS - 1, int(BINS * share)) for share in shares}) >= BINS - 2  # where the space has some


def test_more_architectures_than_there_are_is_a_mistake(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_study, "DRAWS", 30)
    with pytest.raises(UserError, match=r"rank\.architectures: 5000, but 30 random ones of this space are \d+"):
        spread_architectures(run, RankConfig(architectures=5000))
