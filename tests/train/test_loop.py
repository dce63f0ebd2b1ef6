"""The loop: resuming is bit-exact wherever it was cut, and a loss that diverges is named."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from supernet.schema import UserError
from train.checkpoint import load_checkpoint, module_tensors, optimizer_tensors, restore_module, restore_optimizer
from train.loop import LossDiverged, checkpoint_path, fit, metrics_path
from train.randomness import generator_for
from train.splits import Batch


class _Interrupted(Exception):
    pass


class _Regression:
    """A linear fit with dropout, which draws from torch's global generator as drop path does."""

    name = "toy"
    epochs = 3
    steps_per_epoch = 4
    images_per_step = 8
    columns = ("train_loss", "slope")
    device = torch.device("cpu")

    def __init__(self, *, cut_at: int | None = None, nan_at: int | None = None, fingerprint: str = "1") -> None:
        torch.manual_seed(0)
        self.net = nn.Linear(3, 1)
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=0.1)
        self.cut_at, self.nan_at, self.fingerprint = cut_at, nan_at, fingerprint
        self.seen: list[int] = []

    def batches(self, epoch: int, first: int) -> Iterator[Batch]:
        for step in range(first, self.steps_per_epoch):
            inputs = torch.randn(8, 3, generator=generator_for(0, epoch, step))
            yield inputs, inputs.sum(dim=1, keepdim=True)

    def step(self, batch: Batch, *, epoch: int, step: int) -> dict[str, Tensor]:
        at = epoch * self.steps_per_epoch + step
        self.seen.append(at)
        if at == self.cut_at:
            raise _Interrupted
        loss = (self.net(nn.functional.dropout(batch[0], 0.2)) - batch[1]).square().mean()
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return {"train_loss": loss.detach() * (float("nan") if at == self.nan_at else 1.0)}

    def epoch_metrics(self, epoch: int) -> dict[str, float]:
        return {"slope": float(self.net.weight.detach().sum())}

    def tensors(self) -> dict[str, Tensor]:
        return {**module_tensors(self.net, "net"), **optimizer_tensors(self.optimizer, "optimizer")}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        restore_module(self.net, tensors, "net")
        restore_optimizer(self.optimizer, tensors, "optimizer")


def run(training: _Regression, directory: Path, *, checkpoint_minutes: float = 60.0) -> bytes:
    fit(training, seed=0, directory=directory, progress=None, checkpoint_minutes=checkpoint_minutes)
    return checkpoint_path(directory, "toy").read_bytes()


def metrics(directory: Path) -> list[str]:
    """The metrics without the images a second."""
    return [line.rsplit(",", 1)[0] for line in metrics_path(directory, "toy").read_text().splitlines()]


@pytest.mark.parametrize("cut_at", range(12))
@pytest.mark.parametrize("checkpoint_minutes", [0.0, 60.0])
def test_an_interrupted_training_ends_in_the_same_bytes(tmp_path: Path, cut_at: int, checkpoint_minutes: float) -> None:
    whole = run(_Regression(), tmp_path / "whole")
    with pytest.raises(_Interrupted):
        run(_Regression(cut_at=cut_at), tmp_path / "cut", checkpoint_minutes=checkpoint_minutes)
    resumed = _Regression()
    assert run(resumed, tmp_path / "cut") == whole
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")
    assert resumed.seen[0] == (cut_at if checkpoint_minutes == 0 else 4 * (cut_at // 4))


def test_a_finished_training_does_no_further_step(tmp_path: Path) -> None:
    before = run(_Regression(), tmp_path)
    again = _Regression()
    assert run(again, tmp_path) == before
    assert again.seen == []
    assert float(again.net.weight.detach().sum()) > 1  # its weights are the trained ones


def test_the_seed_reaches_what_modules_draw(tmp_path: Path) -> None:
    for seed in (0, 1):
        fit(_Regression(), seed=seed, directory=tmp_path / str(seed), progress=None)
    first, second = (load_checkpoint(checkpoint_path(tmp_path / seed, "toy"))[0] for seed in "01")
    assert not torch.equal(first["net.weight"], second["net.weight"])


def test_torchs_global_generator_is_left_as_it_was(tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    training = _Regression()
    torch.manual_seed(5)
    run(training, tmp_path)
    assert torch.equal(torch.rand(3), expected)


def test_a_diverged_loss_is_named_and_the_last_good_checkpoint_stays(tmp_path: Path) -> None:
    with pytest.raises(LossDiverged, match="toy: train_loss became nan in epoch 2, step 3"):
        run(_Regression(nan_at=6), tmp_path)
    tensors, state = load_checkpoint(checkpoint_path(tmp_path, "toy"))
    assert state["epoch"] == 1
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    assert run(_Regression(), tmp_path) == run(_Regression(), tmp_path.with_name("whole"))


def test_weights_that_overflow_while_the_loss_is_finite_are_not_saved(tmp_path: Path) -> None:
    class _Overflowing(_Regression):
        def epoch_metrics(self, epoch: int) -> dict[str, float]:
            if epoch == 1:
                self.net.bias.data.fill_(float("inf"))
            return {}

    with pytest.raises(LossDiverged, match=r"toy: net\.bias became nan or inf by step 8"):
        run(_Overflowing(), tmp_path)
    assert load_checkpoint(checkpoint_path(tmp_path, "toy"))[1]["epoch"] == 1


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    run(_Regression(), tmp_path)
    with pytest.raises(UserError, match="belongs to a training with other settings"):
        run(_Regression(fingerprint="2"), tmp_path)


def test_progress_counts_every_step_of_the_whole_training(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []

    def progress(done: int, total: int, losses: dict[str, float]) -> None:
        calls.append((done, total))
        assert losses["train_loss"] >= 0

    with pytest.raises(_Interrupted):
        fit(_Regression(cut_at=5), seed=0, directory=tmp_path, progress=progress)
    fit(_Regression(), seed=0, directory=tmp_path, progress=progress)
    assert calls == [(done, 12) for done in (1, 2, 3, 4, 5, *range(5, 13))]


def test_metrics_have_a_line_an_epoch_and_tensorboard_is_written(tmp_path: Path) -> None:
    run(_Regression(), tmp_path)
    lines = metrics_path(tmp_path, "toy").read_text().splitlines()
    assert lines[0] == "epoch,train_loss,slope"
    assert [line.split(",")[0] for line in lines[1:]] == ["1", "2", "3"]
    assert float(lines[1].split(",")[1]) > float(lines[3].split(",")[1])
    assert list((tmp_path / "tensorboard" / "toy").glob("events.*"))
