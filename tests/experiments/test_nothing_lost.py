"""What was finished stays until it is certain that it can be done again; what went in is known to the last file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments import exporting
from experiments.artifacts import RunFolder, folder_digest
from search.measure import machine
from supernet.onnx_export import OnnxParity

Slimformer = Callable[..., Any]
Contents = Callable[[Path], dict[str, bytes]]


@pytest.mark.parametrize("command", ["run", "retrain"])
def test_a_redo_that_could_not_even_begin_removes_nothing(
    copied: Path, slimformer: Slimformer, contents: Contents, command: str
) -> None:
    before = contents(copied)
    impossible = ("--redo", "--set", "train.augment={randaugment: rand-m9}")
    assert "randaugment" in slimformer(command, copied, *impossible).mistake
    assert contents(copied) == before


def test_a_missing_image_folder_removes_nothing(
    tiny: Callable[..., Path], tmp_path: Path, image_folder: Path, slimformer: Slimformer
) -> None:
    data = {"path": str(image_folder), "resolution_px": 8, "channels": 1, "held_out_fraction": 0.25}
    run = tmp_path / "run"
    assert slimformer("run", tiny(data=data), "--out", run, "--until", "supernet").code == 0
    image_folder.rename(tmp_path / "elsewhere")
    assert "no such image folder" in slimformer("supernet", run).mistake
    assert (run / "supernet" / "supernet.safetensors").is_file()
    assert "supernet" in RunFolder(run).manifest.stages


def test_a_stage_is_done_again_when_a_plugin_was_edited(
    tiny: Callable[..., Path], tmp_path: Path, slimformer: Slimformer
) -> None:
    plugin, run = tmp_path / "my_own_blocks.py", tmp_path / "run"
    plugin.write_text("NUMBER = 1\n")
    words = ("run", tiny(), "--out", run, "--until", "supernet", "--plugin", plugin)
    assert slimformer(*words).skipped == []
    assert slimformer(*words).skipped == ["supernet"]
    plugin.write_text("NUMBER = 2\n")
    assert slimformer(*words).skipped == []


@pytest.mark.parametrize("differs", ["name", "instruction sets", "runtime"])
def test_a_table_of_another_device_or_runtime_is_refused(
    differs: str, copied: Path, slimformer: Slimformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = machine().model_copy(update={"processor": "family 1 model 2"})
    monkeypatch.setattr("search.table_building.machine", lambda: here)
    assert slimformer("table", copied, "--redo").code == 0
    update = {"cpu": "a phone"} if differs == "name" else {"processor": "family 1 model 3"}
    elsewhere = here.model_copy(update=update)
    if differs == "runtime":
        elsewhere = here
        monkeypatch.setattr("tests.experiments.conftest.VirtualRuntime.version", "2")
    monkeypatch.setattr("experiments.run.machine", lambda: elsewhere)
    mistake = slimformer("search", copied, "--redo").mistake
    changed = (
        "with virtual 1, but here is virtual 2"
        if differs == "runtime"
        else (f"on {here.described}, but this is {elsewhere.described}")
    )
    assert f": was measured {changed}; measure one here: slimformer table" in mistake


def test_an_onnx_file_that_computes_something_else_is_not_delivered(
    copied: Path, slimformer: Slimformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "onnx_parity", lambda *words: OnnxParity(1.0, 0.5))
    mistake = slimformer("export", copied, "--redo").mistake
    assert "model.onnx: computes something else than the model" in mistake
    assert "50 %" in mistake


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(28, "No space left on device", "somewhere"), "No space left on device: 'somewhere'"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "out of GPU memory"),
    ],
)
def test_what_the_machine_lacks_is_one_line(
    tiny: Callable[..., Path],
    tmp_path: Path,
    slimformer: Slimformer,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    told: str,
) -> None:
    def fail(*words: object, **options: object) -> None:
        raise error

    monkeypatch.setattr("experiments.pipeline.run_stages", fail)
    assert told in slimformer("run", tiny(), "--out", tmp_path / "run").mistake


def test_only_images_make_the_identity_of_a_data_set(image_folder: Path) -> None:
    before = folder_digest(str(image_folder))
    (image_folder / "train" / ".DS_Store").write_bytes(b"x")
    (image_folder / "notes.txt").write_text("x")
    (image_folder / "train" / "broken.png").symlink_to("nowhere")
    assert folder_digest(str(image_folder)) == before
