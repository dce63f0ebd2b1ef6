"""A run whose device is elsewhere: its table and its last latencies come from bundles that were measured there."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import venv
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from experiments.artifacts import RunFolder
from experiments.bundles import ON_DEVICE, _table_nets
from experiments.console import Screen
from experiments.experiment import Experiment, load_experiment
from experiments.run import Run
from search.bundle import PLAN, RESULTS, SCRIPT, Plan
from search.latency_table import LatencyTable
from search.model_files import ModelFile, content_of, model_file
from supernet.onnx_export import OnnxModel
from supernet.schema import load
from train.data import open_data
from train.evaluation import accuracy

Slimformer = Callable[..., Any]
TABLE = "latency-onnxruntime-a-phone-fp32-b1-t1.json"


def answer(
    bundle: Path,
    *,
    cpu: str = "a phone",
    slower: float = 1.0,
    runtime: str = "onnxruntime",
    refused: Collection[str] = (),
) -> None:
    """Measure a bundle as a phone would that takes 1 ms, and one more for every 20 kB of a net, or slower."""
    plan = load(Plan, bundle / PLAN)
    times = {
        net.name: {"calls": 10, "samples_ms": [slower * (1 + net.size_bytes / 20_000)] * plan.protocol.rounds}
        for net in plan.nets
        if net.name not in refused
    }
    results = {
        "schema_version": 1,
        "plan": hashlib.sha256((bundle / PLAN).read_bytes()).hexdigest(),
        "runtime": {"name": runtime, "version": "9.9"},
        "machine": {"cpu": cpu, "cores": 8, "memory_gb": 6.0, "system": "none"},
        "date": "2026-01-31",
        "chunks": [times],
        "refused": dict.fromkeys(refused, "RuntimeError: no kernel"),
    }
    (bundle / RESULTS).write_text(json.dumps(results))


@pytest.fixture(scope="module")
def bundles() -> dict[str, Path]:
    """The bundles that were written so far, by the changes to the tiny experiment: tests copy them."""
    return {}


@pytest.fixture
def phone(
    tiny: Callable[..., Path],
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    slimformer: Slimformer,
    bundles: dict[str, Path],
) -> Callable[..., Path]:
    """Puts a bundle of the tiny experiment, with changes, into `bundle/`, and answers it."""

    def bundle(**changes: Any) -> Path:
        path, key = tiny(**{"table.runtime": "onnxruntime", **changes}), repr(changes)
        if key not in bundles:
            folder = tmp_path_factory.mktemp("bundle") / "bundle"
            outcome = slimformer("table", path, "--bundle", folder)
            assert outcome.code == 0, outcome.err
            assert "Copy it to the device, run python measure.py in it" in outcome.out
            assert not (tmp_path / "run").exists()
            bundles[key] = folder
        shutil.copytree(bundles[key], tmp_path / "bundle")
        answer(tmp_path / "bundle", runtime=changes.get("table.runtime", "onnxruntime"))
        return path

    return bundle


def test_a_run_with_a_table_from_a_phone_delivers_what_the_phone_measured(
    phone: Callable[..., Path], tmp_path: Path, slimformer: Slimformer
) -> None:
    few = ("--set", "search.methods=[search, uniform]", "--set", "search.budgets_of_largest=[0.6]")
    words = ("run", phone(), "--out", tmp_path / "run", "--set", f"table.bundle={tmp_path / 'bundle'}", *few)
    run, waiting = tmp_path / "run", tmp_path / "run" / ON_DEVICE
    mistake = slimformer(*words).mistake
    assert f"{waiting}: was not measured yet; copy the folder to the device" in mistake
    table = LatencyTable.load(run / TABLE)
    assert (table.machine.cpu, table.runtime.version) == ("a phone", "9.9")
    found = json.loads((run / "found.json").read_text())
    assert all(round_["measured_ms"] is None for model in found["models"] for round_ in model["rounds"])
    assert slimformer(*words).mistake == mistake
    answer(waiting, cpu="another phone")
    there = "was measured on another phone (8 cores, 6 GB) with onnxruntime 9.9, but the table on a phone (8 cores"
    assert there in slimformer(*words).mistake
    answer(waiting)
    outcome = slimformer(*words)
    assert outcome.code == 0, outcome.err
    assert outcome.skipped == ["supernet", "table", "search", "retrain"]
    sizes = {net.name: net.size_bytes for net in load(Plan, waiting / PLAN).nets}
    models = json.loads((run / "evaluation.json").read_text())["models"]
    assert {model["name"] for model in models} == sizes.keys()
    for model in models:
        assert model["measured_ms"] == pytest.approx(1 + sizes[model["name"]] / 20_000)
        assert model["within_budget"] == (model["measured_ms"] <= model["budget_ms"])
    assert "a phone" in (run / "report.html").read_text()
    assert slimformer(*words).skipped[-1] == "report"
    before = (waiting / RESULTS).read_bytes()
    assert slimformer("export", run, "--redo").code == 0  # which keeps what a person has carried here
    assert (waiting / RESULTS).read_bytes() == before
    answer(waiting, slower=1.5)
    assert f"{waiting / RESULTS}: was changed" in slimformer(*words).mistake
    assert slimformer("export", run, "--redo").code == 0
    assert json.loads((run / "exported.json").read_text())["models"][0]["measured_ms"] == pytest.approx(
        1.5 * models[0]["measured_ms"]
    )


def test_in_int8_the_rounded_file_is_measured_and_tested(
    phone: Callable[..., Path], tmp_path: Path, slimformer: Slimformer
) -> None:
    path = phone(**{"table.precision": "int8", "search.methods": ["uniform"], "search.budgets_of_largest": [0.7]})
    words = ("run", path, "--out", tmp_path / "run", "--set", f"table.bundle={tmp_path / 'bundle'}")
    run = tmp_path / "run"
    assert "was not measured yet" in slimformer(*words).mistake
    (planned,) = load(Plan, run / ON_DEVICE / PLAN).nets
    delivered = run / "delivered" / planned.name
    rounded, whole = delivered / "model-int8.onnx", delivered / "model.onnx"
    assert planned.sha256 == hashlib.sha256(rounded.read_bytes()).hexdigest()
    answer(run / ON_DEVICE)
    assert slimformer(*words).code == 0
    (model,) = json.loads((run / "evaluation.json").read_text())["models"]
    assert model["onnx"] == f"delivered/{planned.name}/model-int8.onnx"
    data = open_data(load(Experiment, run / "config.json").data, seed=0)
    counted = {
        file: accuracy(OnnxModel(file, threads=1), data.test, batch_size=64, precision="fp32").correct
        for file in (rounded, whole)
    }
    assert model["correct"] == counted[rounded]
    before = rounded.read_bytes()
    assert slimformer("export", run, "--set", "evaluate.calibration_images=2", "--redo").code == 2
    assert rounded.read_bytes() != before


def test_a_runtime_with_files_of_its_own_is_delivered_and_measured_in_them(
    phone: Callable[..., Path], tmp_path: Path, slimformer: Slimformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def package(runtime: str, module: nn.Module, input_shape: tuple[int, ...], *, precision: str) -> ModelFile:
        count = sum(parameter.numel() for parameter in module.parameters())
        return {"Manifest.json": f"{runtime} {precision} {input_shape}".encode(), "Data/weights.bin": bytes(4 * count)}

    for place in ("search.bundle", "experiments.exporting"):  # without coremltools, which converts for seconds
        monkeypatch.setattr(f"{place}.model_file", package)
    changes = {"search.methods": ["uniform"], "search.budgets_of_largest": [0.7], "table.batch_size": 2}
    path = phone(**{"table.runtime": "coreml", "table.precision": "fp16", **changes})
    words = ("run", path, "--out", tmp_path / "run", "--set", f"table.bundle={tmp_path / 'bundle'}")
    run = tmp_path / "run"
    assert "was not measured yet" in slimformer(*words).mistake
    (planned,) = load(Plan, run / ON_DEVICE / PLAN).nets
    delivered = content_of(run / "delivered" / planned.name / "model.mlpackage")
    assert not isinstance(delivered, bytes)
    assert delivered["Manifest.json"] == b"coreml fp16 (2, 1, 8, 8)"
    assert content_of(run / ON_DEVICE / planned.file) == delivered
    answer(run / ON_DEVICE, runtime="coreml")
    outcome = slimformer(*words)
    assert outcome.code == 0, outcome.err
    (model,) = json.loads((run / "evaluation.json").read_text())["models"]
    assert model["measured_ms"] == pytest.approx(1 + planned.size_bytes / 20_000)
    assert model["onnx"] == f"delivered/{planned.name}/model.onnx"
    assert slimformer(*words).skipped[-1] == "report"
    (run / "delivered" / planned.name / "model.mlpackage" / "Data" / "weights.bin").write_bytes(b"others")
    assert "weights.bin: was changed" in slimformer(*words).mistake


def test_the_table_command_takes_a_bundle_and_does_it_again_when_it_was_measured_again(
    phone: Callable[..., Path], tmp_path: Path, slimformer: Slimformer
) -> None:
    words = ("table", phone(), "--out", tmp_path / "run", "--import", tmp_path / "bundle")
    assert slimformer(*words).code == 0
    assert slimformer(*words).skipped == ["table"]
    answer(tmp_path / "bundle")
    results = tmp_path / "bundle" / RESULTS
    results.write_text(results.read_text().replace("2026-01-31", "2026-02-01"))
    outcome = slimformer(*words)
    assert outcome.code == 0
    assert outcome.skipped == []
    assert LatencyTable.load(tmp_path / "run" / TABLE).date == "2026-02-01"
    assert "its table is of another device" in slimformer("audit", tmp_path / "run").mistake


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ("table.threads=2", "was written for onnxruntime (fp32, batch 1, 1 thread), but the experiment asks for onnx"),
        ("table.batch_size=4", "but the experiment asks for onnxruntime (fp32, batch 4, 1 thread)"),
        ("table.runtime=openvino", "but the experiment asks for openvino"),
        ("data.resolution_px=16", "was written for 8x8 pixels, but the experiment has 16x16"),
        ("space.stages.1.width_channels.largest=24", "was written for another space"),
        ("table.audit_nets=5", "was written for another space or set of audit nets"),
    ],
)
def test_a_bundle_of_something_else_is_refused_before_anything_is_written(
    phone: Callable[..., Path], tmp_path: Path, slimformer: Slimformer, change: str, part: str
) -> None:
    words = ("table", phone(), "--out", tmp_path / "run", "--import", tmp_path / "bundle", "--set", change)
    assert part in slimformer(*words).mistake
    assert not (tmp_path / "run").exists()


def refusing(word: str) -> Callable[..., ModelFile]:
    """Makes files as ever, but of no module with this word in it."""

    def make(runtime: str, module: nn.Module, input_shape: tuple[int, ...], *, precision: str) -> ModelFile:
        if word in str(module):
            raise RuntimeError("no operator\nfor this")
        return model_file(runtime, module, input_shape, precision=precision)

    return make


def test_candidates_that_cannot_be_written_are_named_and_left_out_of_bundle_and_table(
    tiny: Callable[..., Path], tmp_path: Path, slimformer: Slimformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("search.bundle.model_file", refusing("OffsetAttention"))
    path = tiny(**{"table.runtime": "onnxruntime"})
    outcome = slimformer("table", path, "--bundle", tmp_path / "bundle")
    assert outcome.code == 0, outcome.err
    (left_out,) = load(Plan, tmp_path / "bundle" / PLAN).left_out
    assert (left_out.stage, left_out.candidate) == (2, "mb3d")
    assert left_out.reason == (
        "onnxruntime cannot run a small net of mb3d at 8 channels and 4x4 px, input (1, 8, 4, 4)"
        " (RuntimeError: no operator for this)"
    )
    assert f"warning: stage 2 is written without mb3d: {left_out.reason}\n" in outcome.out
    answer(tmp_path / "bundle")
    outcome = slimformer("table", path, "--out", tmp_path / "run", "--import", tmp_path / "bundle")
    assert outcome.code == 0, outcome.err
    assert "warning: stage 2 is searched without mb3d" in outcome.out
    assert LatencyTable.load(tmp_path / "run" / TABLE).left_out == (left_out,)
    monkeypatch.setattr("search.bundle.model_file", refusing("PoolMixer"))
    mistake = slimformer("table", path, "--bundle", tmp_path / "other").mistake
    assert mistake.startswith("stage 1: onnxruntime cannot run a small net of mb4d at 8 channels and 8x8 px")
    assert not (tmp_path / "other").exists()


@pytest.fixture
def without(phone: Callable[..., Path], tmp_path: Path, slimformer: Slimformer) -> Callable[..., Any]:
    """Takes the table of a phone that runs no net with such a block in such a stage, or other nets with it alone."""

    def imported(block: str, *, stage: int, alone: bool = True, audit_nets: int = 40) -> Any:
        path = phone(**{"table.audit_nets": audit_nets})
        run = Run(load_experiment(path, overrides=()), RunFolder(tmp_path / "none"), Screen(), command="")
        grid = run.space.smallest.grids[stage - 1]

        def runs(net: Any) -> bool:
            blocks = [(one.type, at) for part, at in zip(net.stages, net.grids, strict=True) for one in part.blocks]
            return (block, grid) not in blocks or (len(blocks) == 1 and not alone)

        refused = [name for name, net in _table_nets(run, run.space).items() if not runs(net)]
        answer(tmp_path / "bundle", refused=refused)
        return slimformer("table", path, "--out", tmp_path / "run", "--import", tmp_path / "bundle")

    return imported


def test_a_candidate_that_does_not_run_on_the_device_is_left_out_of_the_table(
    without: Callable[..., Any], tmp_path: Path
) -> None:
    outcome = without("mb3d", stage=2)
    assert outcome.code == 0, outcome.err
    assert (
        "warning: stage 2 is searched without mb3d: onnxruntime 9.9 on the device cannot run a small net of mb3d at 8"
        " channels and 4x4 px (RuntimeError: no kernel)\n"
    ) in outcome.out
    table = LatencyTable.load(tmp_path / "run" / TABLE)
    assert [(one.stage, one.candidate) for one in table.left_out] == [(2, "mb3d")]
    assert all(entry.spec.get("type") != "mb3d" for entry in table.entries)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (
            {"block": "mb3d", "stage": 2, "audit_nets": 4},
            "(RuntimeError: no kernel), but nearly all whole nets have it",
        ),
        ({"block": "mb4d", "stage": 2}, "(RuntimeError: no kernel), but parts are measured beside it; leave that out"),
        ({"block": "mb4d", "stage": 1}, "at least one block besides identity"),
        ({"block": "mb3d", "stage": 2, "alone": False}, "on the device cannot run a small net of mb3d at 8 channels"),
    ],
)
def test_what_a_table_cannot_do_without_on_the_device_is_one_line(
    without: Callable[..., Any], tmp_path: Path, options: dict[str, Any], part: str
) -> None:
    assert part in without(**options).mistake
    assert not (tmp_path / "run").exists()


def test_a_bundle_whose_plugins_were_edited_is_refused(
    tiny: Callable[..., Path], tmp_path: Path, slimformer: Slimformer
) -> None:
    plugin, path = tmp_path / "test_bundled_blocks.py", tiny(**{"table.runtime": "onnxruntime"})
    plugin.write_text("NUMBER = 1\n")
    assert slimformer("table", path, "--bundle", tmp_path / "bundle", "--plugin", plugin).code == 0
    answer(tmp_path / "bundle")
    words = ("table", path, "--out", tmp_path / "run", "--import", tmp_path / "bundle")
    assert "was written with other plugins" in slimformer(*words).mistake
    assert slimformer(*words, "--plugin", plugin).code == 0
    plugin.write_text("NUMBER = 2\n")
    assert "or before they were edited" in slimformer(*words, "--plugin", plugin).mistake


def test_writing_and_taking_a_bundle_at_once_is_a_mistake_and_so_is_a_folder_without_one(
    tiny: Callable[..., Path], tmp_path: Path, slimformer: Slimformer
) -> None:
    path = tiny(**{"table.runtime": "onnxruntime"})
    both = ("--bundle", tmp_path / "a", "--import", tmp_path / "b")
    assert "give one of them" in slimformer("table", path, *both).mistake
    assert "plan.json: no such file" in slimformer("table", path, "--import", tmp_path / "b").mistake


def test_a_plan_knows_that_the_table_comes_from_elsewhere(tiny: Callable[..., Path], slimformer: Slimformer) -> None:
    out = slimformer("run", tiny(), "--plan", "--set", "table.bundle=phone").out
    assert "measured elsewhere" in out


@pytest.mark.long
def test_a_bundle_goes_to_a_bare_environment_and_comes_back_as_a_table(
    tiny: Callable[..., Path], tmp_path: Path, slimformer: Slimformer
) -> None:
    path, bundle = tiny(**{"table.runtime": "onnxruntime"}), tmp_path / "bundle"
    assert slimformer("table", path, "--bundle", bundle).code == 0
    venv.create(tmp_path / "bare", with_pip=True)
    python = tmp_path / "bare" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "onnxruntime"], check=True)
    done = subprocess.run([python, SCRIPT], capture_output=True, text=True, check=False, cwd=bundle)
    assert done.returncode == 0, done.stderr
    outcome = slimformer("table", path, "--out", tmp_path / "run", "--import", bundle)
    assert outcome.code == 0, outcome.err
    (table,) = (tmp_path / "run").glob("latency-onnxruntime-*.json")
    assert all(entry.median_ms > 0 for entry in LatencyTable.load(table).entries)
