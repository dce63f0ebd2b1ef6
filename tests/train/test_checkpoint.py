"""Checkpoints: the same bytes for the same content, and no silent damage."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from supernet.schema import UserError
from train.checkpoint import (
    load_checkpoint,
    load_weights,
    module_tensors,
    optimizer_tensors,
    restore_module,
    restore_optimizer,
    save_checkpoint,
    save_weights,
)

TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(7), "c": torch.zeros(0)}


def test_a_checkpoint_gives_back_what_was_saved(tmp_path: Path) -> None:
    state = {"epoch": 3, "sums": {"loss": 0.1 + 0.2}, "name": "x"}
    save_checkpoint(tmp_path / "c.safetensors", TENSORS, state)
    tensors, read = load_checkpoint(tmp_path / "c.safetensors")
    assert read == state
    assert tensors.keys() == TENSORS.keys()
    assert all(
        torch.equal(tensors[name], TENSORS[name]) and tensors[name].dtype == TENSORS[name].dtype for name in TENSORS
    )


def test_the_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    for name, order in (("1", ("a", "b", "c")), ("2", ("c", "b", "a"))):
        save_checkpoint(tmp_path / name, {key: TENSORS[key] for key in order}, {"x": 1, "y": 2})
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


@pytest.mark.parametrize("where", [0.02, 0.5, 0.999])
def test_a_file_that_was_cut_short_or_edited_is_refused_and_says_how_to_redo(tmp_path: Path, where: float) -> None:
    path = tmp_path / "c.safetensors"
    save_checkpoint(path, {"a": torch.randn(200)}, {"epoch": 1})
    whole = path.read_bytes()
    position = int(where * len(whole))
    for damaged in (whole[:position], whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"c\.safetensors: .*Delete it and run the same command again"):
            load_checkpoint(path)


def test_a_foreign_or_missing_file_is_refused(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(UserError, match="not a file of ours"):
        load_checkpoint(tmp_path / "foreign.safetensors")
    with pytest.raises(UserError, match="no such file"):
        load_checkpoint(tmp_path / "missing.safetensors")


def test_a_restored_optimizer_steps_as_the_original(tmp_path: Path) -> None:
    def trained(steps: int, restore_at: int | None) -> torch.Tensor:
        torch.manual_seed(0)
        net = nn.Conv2d(4, 8, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = torch.optim.AdamW(net.parameters(), fused=True)
        for step in range(steps):
            if step == restore_at:
                save_checkpoint(
                    tmp_path / "o", {**module_tensors(net, "net"), **optimizer_tensors(optimizer, "opt")}, {}
                )
                tensors, _ = load_checkpoint(tmp_path / "o")
                optimizer = torch.optim.AdamW(net.parameters(), fused=True)
                restore_module(net, tensors, "net")
                restore_optimizer(optimizer, tensors, "opt")
            images = torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(step))
            optimizer.zero_grad()
            net(images.contiguous(memory_format=torch.channels_last)).square().mean().backward()
            optimizer.step()
        assert net.weight.is_contiguous(memory_format=torch.channels_last)
        weight: torch.Tensor = net.weight.detach()
        return weight

    assert torch.equal(trained(5, None), trained(5, restore_at=3))


def test_weights_of_another_model_are_refused_by_name(tmp_path: Path) -> None:
    save_weights(nn.Linear(3, 2), tmp_path / "w.safetensors")
    same, other = nn.Linear(3, 2), nn.Linear(4, 2)
    load_weights(same, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=r"another model \(weight: \[2, 3\] in the file, \[2, 4\] in the model\)"):
        load_weights(other, tmp_path / "w.safetensors")
