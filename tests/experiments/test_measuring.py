"""`slimformer measure`: every kind of model, next to the prediction of a table of the same condition."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from experiments.measuring import measurable, table_at
from search.correction import Correction
from search.latency_audit import LatencyAudit
from search.latency_table import LatencyTable
from search.model_files import model_file, write_model
from search.net_building import module_of
from supernet import Architecture, published_architecture

Slimformer = Callable[..., Any]
QUICK = ("--rounds", "2")


@pytest.fixture
def delivered(finished: Path) -> Path:
    """One delivered model of a finished run."""
    return min((finished / "delivered").iterdir())


def test_a_model_is_measured_beside_the_tables_prediction(
    finished: Path, delivered: Path, tmp_path: Path, slimformer: Slimformer
) -> None:
    saved = tmp_path / "measured.json"
    words = ("--table", finished, "--runtime", "virtual", "--save", saved, *QUICK)
    outcome = slimformer("measure", delivered, delivered / "architecture.yaml", "poolformerv2_s12", *words)
    assert outcome.code == 0, outcome.err
    found = {model["name"]: model for model in json.loads(saved.read_text())["models"]}
    assert len(found) == 3
    same = found[str(delivered)]
    assert same == found[str(delivered / "architecture.yaml")] | {"name": str(delivered)}
    assert same["predicted_ms"] == pytest.approx(same["median_ms"], rel=0.02)  # virtual time adds up
    assert found["poolformerv2_s12"]["predicted_ms"] is None
    assert found["poolformerv2_s12"]["predicted_error_ms"] is None
    sizes = "the table is of 8x8 pixels, and the model of 224x224"
    assert f"no prediction of poolformerv2_s12: {sizes}" in outcome.out
    assert f"{same['median_ms']:.3f}" in outcome.out
    assert f"{same['predicted_ms']:.3f} ± {same['predicted_error_ms']:.3f}" in outcome.out


def test_a_prediction_that_cannot_be_made_or_lies_between_measured_parts_says_so(
    copied: Path, tmp_path: Path, slimformer: Slimformer
) -> None:
    delivered = min((copied / "delivered").iterdir())
    (path,) = copied.glob("latency-virtual-*.json")
    table = json.loads(path.read_text())
    for entry in table["entries"]:
        entry["interpolated"] = entry["part"] == "downsampling"
    path.write_text(json.dumps(table))
    words = ("--table", path, "--runtime", "virtual", *QUICK)
    (line,) = (line for line in slimformer("measure", delivered, *words).out.splitlines() if "lie between" in line)
    assert line == f"  {delivered}: 1 of the parts of its prediction lie between measured ones"
    table["entries"] = [entry for entry in table["entries"] if entry["part"] != "stem"]
    path.write_text(json.dumps(table))
    (line,) = (line for line in slimformer("measure", delivered, *words).out.splitlines() if "no prediction" in line)
    assert "not in the latency table of virtual 1" in line
    assert "stem" in line


def test_a_tables_file_predicts_wherever_it_lies_and_an_older_one_takes_its_own_audits_correction(
    copied: Path, tmp_path: Path
) -> None:
    (path,) = copied.glob("latency-virtual-*.json")
    table, audit = LatencyTable.load(path), LatencyAudit.load(copied / "latency-audit.json")
    assert table.correction == audit.correction != Correction()
    assert audit.held_out is not None
    assert table.held_out_error_percent == audit.held_out.mean_absolute_error_percent
    net = audit.pairs[0].architecture
    alone = tmp_path / "table.json"
    table.save(alone)
    assert table_at(alone).latency_ms(net) == table_at(copied).latency_ms(net)
    table.corrected(Correction()).save(path)  # as files were
    assert table_at(path).latency_ms(net) == table.latency_ms(net)
    audit.model_copy(update={"precision": "bf16"}).save(copied / "latency-audit.json")
    assert table_at(path).latency_ms(net) == sum(table.kinds_ms(net).values())


def test_an_onnx_file_is_measured_as_it_is(delivered: Path, slimformer: Slimformer) -> None:
    outcome = slimformer("measure", delivered / "model.onnx", *QUICK)
    assert outcome.code == 0, outcome.err
    assert "model.onnx" in outcome.out


def test_a_program_of_executorch_is_measured_at_the_size_that_it_was_made_for(
    delivered: Path, tmp_path: Path, slimformer: Slimformer
) -> None:
    pytest.importorskip("executorch", reason="ExecuTorch is not installed: pip install '.[executorch]'")
    architecture, path = Architecture.load(delivered / "architecture.yaml"), tmp_path / "model.pte"
    shape = (2, *architecture.input_shape)
    write_model(path, model_file("executorch", module_of(architecture), shape, precision="fp32"))
    outcome = slimformer("measure", path, "--runtime", "executorch", "--batch-size", "2", *QUICK)
    assert outcome.code == 0, outcome.err
    assert "model.pte" in outcome.out
    for words, problem in ((path, f"it was lowered for {shape}"), (tmp_path / "none.pte", "No such file")):
        assert problem in slimformer("measure", words, "--runtime", "executorch", *QUICK).mistake


@pytest.mark.parametrize(
    ("name", "runtime", "problem"),
    [
        ("model.onnx", "eager", "the runtime eager runs no files"),
        ("model.pte", "eager", "the runtime eager runs no files"),
        ("model.pte", "onnxruntime", "the runtime onnxruntime runs .onnx files alone"),
        ("model.mlpackage", "onnxruntime", "the runtime onnxruntime runs .onnx files alone"),
    ],
)
def test_a_file_of_another_runtime_is_refused_with_what_this_one_runs(
    name: str, runtime: str, problem: str, slimformer: Slimformer
) -> None:
    assert slimformer("measure", name, "--runtime", runtime, *QUICK).mistake.startswith(f"{name}: {problem}")


def test_a_table_of_another_condition_is_refused_with_both(
    finished: Path, delivered: Path, slimformer: Slimformer
) -> None:
    for words in (("--runtime", "eager"), ("--runtime", "virtual", "--batch-size", "2")):
        mistake = slimformer("measure", delivered, "--table", finished, *words).mistake
        assert "the table is of virtual 1" in mistake
        assert "but this would measure" in mistake


def test_a_table_of_another_resolution_is_refused_with_both(
    finished: Path, delivered: Path, slimformer: Slimformer
) -> None:
    words = ("--table", finished, "--runtime", "virtual", *QUICK)
    mistake = slimformer("measure", delivered, *words, "--resolution", "16").mistake
    assert mistake == f"the table is of 8x8 pixels, but this would measure 16x16 ({delivered})"
    mistake = slimformer("measure", "poolformerv2_s12", *words).mistake
    assert "is of 8x8 pixels, but this would measure 224x224 (poolformerv2_s12)" in mistake


def test_a_files_resolution_cannot_be_chosen(delivered: Path, slimformer: Slimformer) -> None:
    for name in ("model.onnx", "model.pte"):
        mistake = slimformer("measure", delivered, delivered / name, "--resolution", "16", *QUICK).mistake
        assert mistake == f"{delivered / name}: a model's file has its own resolution; measure it without --resolution"


def test_a_model_that_the_runtime_refuses_is_a_line_and_the_others_are_measured(
    delivered: Path, tmp_path: Path, slimformer: Slimformer
) -> None:
    saved = tmp_path / "measured.json"
    words = ("--runtime", "virtual_refusing", "--resolution", "32", *QUICK)
    outcome = slimformer("measure", "caformer_s18", "poolformerv2_s12", *words, "--save", saved)
    assert outcome.code == 0, outcome.err
    (warning,) = (line for line in outcome.out.splitlines() if "warning" in line)
    refused = "virtual_refusing 1 cannot run caformer_s18, input (1, 3, 32, 32) (RuntimeError: no kernel for this)"
    assert warning == f"  warning: {refused}"
    assert [model["name"] for model in json.loads(saved.read_text())["models"]] == ["poolformerv2_s12"]
    assert slimformer("measure", "caformer_s18", *words).mistake == refused


def test_folder_and_architecture_and_published_name_are_known(delivered: Path) -> None:
    expected = Architecture.load(delivered / "architecture.yaml")
    assert measurable(str(delivered), resolution_px=None).architecture == expected
    assert measurable(str(delivered / "architecture.yaml"), resolution_px=None).architecture == expected
    named = measurable("caformer_s18", resolution_px=64).architecture
    assert named == published_architecture("caformer_s18").model_copy(update={"resolution_px": (64, 64)})


@pytest.mark.parametrize(
    ("model", "problem"),
    [
        ("caformer_s81", "did you mean caformer_s18?"),
        ("missing.yaml", "missing.yaml"),
        ("missing.onnx", "no such file"),
        (".", "no model here"),
    ],
)
def test_a_mistake_is_one_line(model: str, problem: str, tmp_path: Path, slimformer: Slimformer) -> None:
    assert problem in slimformer("measure", tmp_path if model == "." else model, *QUICK).mistake
