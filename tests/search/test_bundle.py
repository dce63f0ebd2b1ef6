"""Bundles for other devices: what `measure.py` writes comes back as timings, and anything else is refused."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from search import bundle_script
from search.bundle import PLAN, RESULTS, SCRIPT, Plan, read_bundle, write_bundle
from search.bundle_script import BUILD, chunks_of, running
from search.measure import machine
from supernet.schema import UserError, load

CHANNELS = (3, 5, 7)
# What a bare device does not have; measure.py must not need it.
ABSENT = ("torch", "pydantic", "yaml", "search", "supernet", "onnx", "scipy")
RUN = (
    "import runpy, sys; sys.modules |= dict.fromkeys({absent}); script = sys.argv.pop(1);"
    " sys.argv[0] = script; runpy.run_path(script, run_name='__main__')"
)


def net(channels: int) -> nn.Module:
    torch.manual_seed(channels)
    return nn.Sequential(nn.Conv2d(3, channels, 3), nn.ReLU(), nn.Conv2d(channels, 4, 3)).eval()


def written(directory: Path, **changes: Any) -> Plan:
    nets = {f"net-{channels}": (partial(net, channels), (3, 8, 6)) for channels in CHANNELS}
    settings = {"runtime": "onnxruntime", "precision": "fp32", "threads": 1, "batch_size": 2, "rounds": 3, "seed": 0}
    settings |= {"min_runs": 3, "nets": nets} | changes
    return write_bundle(directory, settings.pop("nets"), **settings)


def on_device(folder: Path, *words: str, absent: tuple[str, ...] = ABSENT) -> subprocess.CompletedProcess[str]:
    """Run `measure.py` as on a device where nothing of the project is installed."""
    command = [sys.executable, "-c", RUN.format(absent=absent), str(folder / SCRIPT), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    written(tmp_path / "bundle")
    return tmp_path / "bundle"


@pytest.fixture
def answered(bundle: Path) -> Callable[..., Path]:
    """Writes results by hand: 1 ms for the first net, 2 for the second, ..., all in one chunk, with changes."""

    def answer(change: Callable[[dict[str, Any]], object] = lambda data: None) -> Path:
        times = {f"net-{c}": {"calls": 10, "samples_ms": [i, i, i]} for i, c in enumerate(CHANNELS, start=1)}
        data = {
            "schema_version": 1,
            "plan": hashlib.sha256((bundle / PLAN).read_bytes()).hexdigest(),
            "runtime": {"name": "onnxruntime", "version": "1.0"},
            "machine": {"cpu": "a phone", "cores": 4, "memory_gb": 2.0, "system": "none"},
            "date": "2026-01-31",
            "chunks": [times],
        }
        change(data)
        (bundle / RESULTS).write_text(json.dumps(data))
        return bundle

    return answer


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_what_a_bare_device_measures_comes_back_as_timings(tmp_path: Path, runtime: str) -> None:
    pytest.importorskip(runtime)
    folder = tmp_path / "bundle"
    written(folder, runtime=runtime)
    done = on_device(folder)
    assert done.returncode == 0, done.stderr
    plan, condition, timings, _, _ = read_bundle(folder)
    assert timings.keys() == {"net-3", "net-5", "net-7"}
    for timing in timings.values():
        assert 0 < timing.median_ms < 100
        assert len(timing.samples_ms) == 3
        assert timing.runs >= 3
    assert condition.machine.cpu == machine().cpu
    assert condition.machine.cores == machine().cores
    assert (condition.runtime.name, condition.precision) == (runtime, "fp32")
    assert (condition.threads, condition.batch_size) == (1, 2)
    assert plan.nets[0].input_shape == (2, 3, 8, 6)


def test_nets_for_openvino_are_in_its_own_format_and_the_same_whenever_they_are_written(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    first = written(tmp_path / "bundle", runtime="openvino")
    assert [net.file for net in first.nets] == [f"nets/{number:04}.openvino" for number in (1, 2, 3)]
    inside = sorted(file.name for file in (tmp_path / "bundle" / "nets" / "0001.openvino").iterdir())
    assert inside == ["model.bin", "model.xml"]
    assert written(tmp_path / "again", runtime="openvino") == first


def test_programs_of_executorch_are_measured_on_a_device_without_this_project(tmp_path: Path) -> None:
    pytest.importorskip("executorch", reason="ExecuTorch is not installed: pip install '.[executorch]'")
    folder = tmp_path / "bundle"
    plan = written(folder, runtime="executorch", threads=2)
    assert [net.file for net in plan.nets] == ["nets/0001.pte", "nets/0002.pte", "nets/0003.pte"]
    done = on_device(folder, absent=("pydantic", "search", "supernet", "onnx", "timm"))
    assert done.returncode == 0, done.stderr
    _, condition, timings, _, _ = read_bundle(folder)
    assert timings.keys() == {"net-3", "net-5", "net-7"}
    assert all(0 < timing.median_ms < 100 for timing in timings.values())
    assert (condition.runtime.name, condition.runtime.version[0].isdigit()) == ("executorch", True)
    assert "Resetting threadpool to 2 threads" in done.stdout + done.stderr


# As far as the script sees it, a Mac with coremltools; nothing is computed.
MAC = """
import json
from pathlib import Path
from types import SimpleNamespace

class MLModel:
    def __init__(self, path, compute_units):
        assert compute_units == "all"
        assert json.loads((Path(path) / "Manifest.json").read_text())["fileFormatVersion"] == "1.0.0"

    def get_spec(self):
        return SimpleNamespace(description=SimpleNamespace(input=[SimpleNamespace(name="images")]))

    def predict(self, feed):
        (images,) = feed.items()
        assert (images[0], images[1].shape, str(images[1].dtype)) == ("images", (2, 3, 8, 6), "float32")

models, ComputeUnit = SimpleNamespace(MLModel=MLModel), SimpleNamespace(ALL="all")
"""


@pytest.fixture
def mac(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], subprocess.CompletedProcess[str]]:
    """Runs `measure.py` of a folder as on a Mac."""
    (tmp_path / "mac").mkdir()
    (tmp_path / "mac" / "coremltools.py").write_text(MAC)
    (tmp_path / "mac" / "sitecustomize.py").write_text(
        "import platform; platform.system = lambda: 'Darwin'; platform.mac_ver = lambda: ('15.1', (), '')"
    )

    def run(folder: Path) -> subprocess.CompletedProcess[str]:
        with monkeypatch.context() as patch:
            patch.setenv("PYTHONPATH", str(tmp_path / "mac"))
            return on_device(folder)

    return run


def packages(directory: Path) -> None:
    """A bundle of folders for Core ML."""
    nets = {
        f"net-{channels}": (
            lambda: {"Manifest.json": b'{"fileFormatVersion": "1.0.0"}', "Data/weights.bin": b"weights"},
            (3, 8, 6),
        )
        for channels in CHANNELS
    }
    written(directory, runtime="coreml", precision="fp16", nets=nets)


def test_folders_for_core_ml_are_checked_and_measured_as_a_mac_would(
    tmp_path: Path, mac: Callable[[Path], subprocess.CompletedProcess[str]]
) -> None:
    folder = tmp_path / "bundle"
    packages(folder)
    elsewhere = on_device(folder)
    assert elsewhere.returncode != 0
    assert not (folder / RESULTS).exists()
    (folder / "nets" / "0001.mlpackage" / ".DS_Store").touch()  # what a Mac leaves wherever it looks
    done = mac(folder)
    assert done.returncode == 0, done.stderr
    _, condition, timings, _, _ = read_bundle(folder)
    assert timings.keys() == {"net-3", "net-5", "net-7"}
    assert (condition.runtime.name, condition.runtime.version, condition.precision) == ("coreml", "15.1", "fp16")
    (folder / RESULTS).unlink()
    (folder / "nets" / "0002.mlpackage" / "Data" / "weights.bin").write_bytes(b"others")
    assert "0002.mlpackage: was changed or cut short" in mac(folder).stderr


def test_nets_of_an_earlier_bundle_for_another_runtime_are_removed(tmp_path: Path) -> None:
    packages(tmp_path / "bundle")
    written(tmp_path / "bundle", nets={"net-3": (partial(net, 3), (3, 8, 6))})
    assert [path.name for path in (tmp_path / "bundle" / "nets").iterdir()] == ["0001.onnx"]


def test_an_interrupted_measurement_goes_on_and_keeps_what_it_has(bundle: Path) -> None:
    assert on_device(bundle, "--most-mb", "0.0001").returncode == 0
    whole = json.loads((bundle / RESULTS).read_text())
    assert [list(chunk) for chunk in whole["chunks"]] == [["net-3", "net-5"], ["net-3", "net-7"]]
    (bundle / RESULTS).write_text(json.dumps(whole | {"chunks": whole["chunks"][:1]}))
    with pytest.raises(UserError, match=r"1 of 3 nets have no times; run python measure.py on the device again"):
        read_bundle(bundle)
    assert on_device(bundle, "--most-mb", "0.0001").returncode == 0
    again = json.loads((bundle / RESULTS).read_text())
    assert again["chunks"][0] == whole["chunks"][0]
    assert list(again["chunks"][1]) == ["net-3", "net-7"]
    assert read_bundle(bundle)[2].keys() == {"net-3", "net-5", "net-7"}


def test_results_of_another_plan_are_not_written_over(bundle: Path) -> None:
    assert on_device(bundle).returncode == 0
    before = (bundle / RESULTS).read_bytes()
    (bundle / PLAN).write_text((bundle / PLAN).read_text().replace('"rounds": 3', '"rounds": 4'))
    done = on_device(bundle)
    assert done.returncode != 0
    assert "results.json is there already, of another plan: move it away first" in done.stderr
    assert (bundle / RESULTS).read_bytes() == before


@pytest.mark.parametrize(
    ("file", "remedy"),
    [
        (RESULTS, "results.json: is not JSON, or was cut short; move"),
        (PLAN, "plan.json: is not JSON, or was cut short"),
    ],
)
def test_a_file_that_was_cut_short_is_one_line_on_the_device(
    answered: Callable[..., Path], file: str, remedy: str
) -> None:
    folder = answered()
    (folder / file).write_text((folder / file).read_text()[:-20])
    done = on_device(folder)
    assert done.returncode != 0
    assert done.stderr.startswith(remedy)
    assert done.stderr.count("\n") == 1
    rounds = on_device(folder, "model.onnx", "--rounds", "0")
    assert rounds.returncode == 2
    assert "--threads and --rounds must be 1 or more" in rounds.stderr


def test_a_net_that_was_changed_is_not_measured(bundle: Path) -> None:
    file = bundle / "nets" / "0002.onnx"
    file.write_bytes(file.read_bytes()[:-1])
    done = on_device(bundle)
    assert done.returncode != 0
    assert "0002.onnx: was changed or cut short; copy the bundle again" in done.stderr
    assert not (bundle / RESULTS).exists()


def test_single_models_can_be_measured_on_the_device_too(bundle: Path) -> None:
    done = on_device(bundle, "nets/0001.onnx", "nets/0003.onnx", "--rounds", "2")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[-1] for line in lines] == ["nets/0001.onnx", "nets/0003.onnx"]
    assert all(float(line.split()[0]) > 0 for line in lines)
    assert not (bundle / RESULTS).exists()


def test_a_net_that_does_not_run_on_the_device_is_noted_and_the_others_are_measured(tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    broken = {f"broken-{number}": (lambda: b"no model", (3, 8, 6)) for number in (1, 2)}
    nets = {f"net-{channels}": (partial(net, channels), (3, 8, 6)) for channels in CHANNELS}
    names = ("broken-1", "net-3", "net-5", "broken-2", "net-7")
    written(bundle, nets={name: (broken | nets)[name] for name in names})
    done = on_device(bundle, "--most-mb", "0.0001")
    assert done.returncode == 0, done.stderr
    assert "does not run here: broken-1: InvalidProtobuf: " in done.stderr
    before = (bundle / RESULTS).read_bytes()
    assert [list(chunk) for chunk in json.loads(before)["chunks"]] == [["net-3", "net-5"], ["net-3", "net-7"]]
    _, _, timings, refused, _ = read_bundle(bundle)
    assert timings.keys() == nets.keys()
    assert refused.keys() == broken.keys()
    assert on_device(bundle, "--most-mb", "0.0001").returncode == 0
    assert (bundle / RESULTS).read_bytes() == before


def test_too_little_memory_is_not_the_nets_fault(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*words: object) -> None:
        raise RuntimeError("Failed to allocate memory for requested buffer of size 1024")

    monkeypatch.setitem(BUILD, "onnxruntime", full)
    plan, refused = json.loads((bundle / PLAN).read_text()), dict[str, str]()
    with pytest.raises(SystemExit, match="not memory enough; load fewer nets at once, with --most-mb"):
        running(bundle / plan["nets"][0]["file"], plan["nets"][0], plan, refused)
    assert refused == {}


def test_a_device_on_which_no_net_runs_says_why_in_one_line(tmp_path: Path) -> None:
    written(tmp_path / "bundle", nets={"broken": (lambda: b"no model", (3, 8, 6))})
    done = on_device(tmp_path / "bundle")
    assert done.returncode == 1
    assert done.stderr.startswith("none of 1 nets runs here, the first because: InvalidProtobuf: ")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "bundle" / RESULTS).exists()


def test_a_device_without_runtime_or_numpy_or_plan_is_told_what_to_do_in_one_line(bundle: Path) -> None:
    for package in ("onnxruntime", "numpy"):
        done = on_device(bundle, absent=(*ABSENT, package))
        assert done.returncode == 1
        assert done.stderr.startswith(f"{package} cannot be loaded (")
        assert f": pip install {package}" in done.stderr
        assert done.stderr.count("\n") == 1
    (bundle / PLAN).unlink()
    done = on_device(bundle)
    assert done.returncode == 1
    assert done.stderr.startswith(f"{bundle}: holds no plan.json; copy the whole bundle, or name models")
    assert done.stderr.count("\n") == 1


def test_a_single_model_that_does_not_run_is_a_line_and_the_others_are_measured(bundle: Path) -> None:
    (bundle / "broken.onnx").write_bytes(b"no model")
    taken = helper.make_node("Gather", ["images", "index"], ["taken"], axis=1)  # of three channels the hundredth
    graph = helper.make_graph(
        [taken],
        "late",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, 4, 4])],
        [helper.make_tensor_value_info("taken", TensorProto.FLOAT, [1, 4, 4])],
        [helper.make_tensor("index", TensorProto.INT64, [], [99])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), bundle / "late.onnx")
    done = on_device(bundle, "broken.onnx", "late.onnx", "nets/0001.onnx", "--rounds", "2")
    assert done.returncode == 0, done.stderr
    assert "does not run here: broken.onnx: InvalidProtobuf: " in done.stderr
    assert "does not run here: late.onnx: InvalidArgument: " in done.stderr
    assert [line.split()[-1] for line in done.stdout.splitlines()] == ["nets/0001.onnx"]
    assert on_device(bundle, "broken.onnx").returncode == 2


def test_results_count_on_when_the_same_bundle_is_written_by_a_version_with_further_fields(
    bundle: Path, answered: Callable[..., Path]
) -> None:
    plan = json.loads((bundle / PLAN).read_text())
    del plan["left_out"]
    (bundle / PLAN).write_text(json.dumps(plan))
    answered()
    written(bundle)
    assert read_bundle(bundle).timings.keys() == {"net-3", "net-5", "net-7"}


def test_chunks_are_brought_to_one_speed_by_the_net_that_is_in_all(answered: Callable[..., Path]) -> None:
    def slower(data: dict[str, Any]) -> None:
        (first,) = data["chunks"]
        late = {"net-3": {"calls": 10, "samples_ms": [2, 2, 2]}, "net-7": {"calls": 10, "samples_ms": [6, 6, 6]}}
        data["chunks"] = [{name: first[name] for name in ("net-3", "net-5")}, late]

    _, _, timings, _, _ = read_bundle(answered(slower))
    assert {name: timing.median_ms for name, timing in timings.items()} == {"net-3": 1, "net-5": 2, "net-7": 3}
    assert timings["net-7"].runs == 30


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda data: data.update(plan="0" * 64), "belongs to another plan.json"),
        (lambda data: data["runtime"].update(name="openvino"), "measured with openvino, but plan.json asks for onnxr"),
        (lambda data: data["chunks"][0].pop("net-5"), "1 of 3 nets have no times"),
        (lambda data: data["chunks"][0].update({"net-8": data["chunks"][0]["net-3"]}), "does not know, net-8 for one"),
        (lambda data: data["chunks"][0]["net-5"].update(samples_ms=[1, 2]), "net-5 has 2 samples, but plan.json asks"),
        (lambda data: data["chunks"][0]["net-5"].update(samples_ms=[1, 0, 2]), "samples_ms.2: input should be greater"),
        (lambda data: data["chunks"][0]["net-5"].update(samples_ms=[1, -1, 2]), "samples_ms.2: input should be great"),
        (lambda data: data["chunks"].append({"net-5": data["chunks"][0]["net-5"]}), "a chunk lacks the net net-3"),
        (lambda data: data["chunks"][0]["net-5"].update(samples_ms=[1, 1e300, 2]), "samples_ms.2: input should be le"),
        (lambda data: data["chunks"][0]["net-5"].update(samples_ms=[1, float("nan"), 2]), "samples_ms.2: input should"),
        (lambda data: data["machine"].update(cpu="x" * 500), "machine.cpu: has 500 characters, but at most 120 may be"),
        (lambda data: data.update(refused={"net-8": "no kernel"}), "plan.json does not know, net-8 for one"),
        (lambda data: data.update(refused={"net-5": "no kernel"}), "has times of net-5, and says that it does not run"),
        (lambda data: data.update(refused={"net-5": "x" * 500}), "refused.net-5"),
        (lambda data: data.update(schema_version=2), "schema_version"),
        (lambda data: data.update(extra=1), "extra: unknown key"),
    ],
)
def test_results_that_cannot_be_are_refused(
    answered: Callable[..., Path], change: Callable[[dict[str, Any]], object], part: str
) -> None:
    answered()
    with pytest.raises(UserError, match=r"results\.json: ") as refused:
        read_bundle(answered(change))
    assert part in str(refused.value)


def test_results_that_were_cut_short_are_refused(answered: Callable[..., Path]) -> None:
    path = answered() / RESULTS
    path.write_text(path.read_text()[:-20])
    with pytest.raises(UserError, match=r"results\.json: not valid JSON"):
        read_bundle(path.parent)


def test_a_bundle_that_was_not_measured_says_what_to_do(bundle: Path) -> None:
    with pytest.raises(UserError, match=r"was not measured yet; copy the folder .* run python measure.py in it"):
        read_bundle(bundle)


def test_results_count_for_the_bundle_they_are_of_and_are_never_lost(answered: Callable[..., Path]) -> None:
    bundle = answered()
    before = (bundle / RESULTS).read_bytes()
    written(bundle)
    assert (bundle / RESULTS).exists()
    written(bundle, nets={"net-3": (partial(net, 3), (3, 8, 6))})
    assert not (bundle / RESULTS).exists()
    (kept,) = bundle.glob("results-*.json")
    assert kept.read_bytes() == before
    with pytest.raises(UserError, match=rf"was not measured yet; .* \({kept.name}: of an earlier plan.json\)"):
        read_bundle(bundle)
    assert [path.name for path in (bundle / "nets").iterdir()] == ["0001.onnx"]
    assert [planned.name for planned in load(Plan, bundle / PLAN).nets] == ["net-3"]


def test_a_runtime_that_no_script_knows_and_a_folder_of_something_else_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"onnxruntime in fp32 or int8, .* coreml in fp16 or fp32, not with eager in"):
        written(tmp_path / "bundle", runtime="eager")
    with pytest.raises(UserError, match="not with onnxruntime in bf16"):
        written(tmp_path / "bundle", precision="bf16")
    with pytest.raises(UserError, match="not with executorch in int8"):
        written(tmp_path / "bundle", runtime="executorch", precision="int8")
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(UserError, match="is not empty and holds no bundle"):
        written(tmp_path)


def test_disturbed_rounds_are_measured_again_on_the_device_as_here(monkeypatch: pytest.MonkeyPatch) -> None:
    protocol = {"warmup": 1, "min_runs": 1, "rounds": 8, "settle": 1, "retakes": 0, "sample_ms": 0.1, "visit_ms": 0.1}
    visits, nets = [0], {str(number): (lambda: None) for number in range(12)}
    monkeypatch.setattr(bundle_script, "sample", lambda net, calls, retakes: (1.0, True))

    def visit(net: object, settle: int, calls: int, samples: int, retakes: int) -> float:
        visits[0] += 1
        in_round, number = (visits[0] - 1) % 12, (visits[0] - 1) // 12
        return 1.0 + 0.001 * (visits[0] % 5) + (0.5 * (in_round % 2) if number in (3, 8) else 0.0)

    monkeypatch.setattr(bundle_script, "visit", visit)
    found, redone = bundle_script.measure(nets, protocol, random.Random(0), lambda done: None)
    assert redone == 2  # the fourth round, and its first repetition
    assert visits[0] == 12 * 10
    assert all(len(timing["samples_ms"]) == 8 for timing in found.values())
    assert max(ms for timing in found.values() for ms in timing["samples_ms"]) < 1.01


def test_rounds_that_are_still_disturbed_do_not_count_and_those_that_were_redone_are_told(tmp_path: Path) -> None:
    nets = {f"net-{channels}": (partial(net, channels), (3, 8, 6)) for channels in range(3, 15)}
    written(tmp_path / "bundle", nets=nets, rounds=8)
    plan = json.loads((tmp_path / "bundle" / PLAN).read_text())
    times = {
        net["name"]: {"calls": 10, "samples_ms": [1.0, 1.01, 1.0 + number % 2, 1.0, 1.02, 1.0, 1.0, 1.01]}
        for number, net in enumerate(plan["nets"])
    }
    data = {
        "schema_version": 1,
        "plan": hashlib.sha256((tmp_path / "bundle" / PLAN).read_bytes()).hexdigest(),
        "runtime": {"name": "onnxruntime", "version": "1.0"},
        "machine": {"cpu": "a phone", "cores": 4, "memory_gb": 2.0, "system": "none"},
        "date": "2026-01-31",
        "chunks": [times],
        "redone": 4,
    }
    (tmp_path / "bundle" / RESULTS).write_text(json.dumps(data))
    found = read_bundle(tmp_path / "bundle")
    assert {len(timing.samples_ms) for timing in found.timings.values()} == {7}
    assert (found.rounds.done, found.rounds.redone, found.rounds.dropped) == (7, 4, 1)
    assert found.rounds.slowest == pytest.approx(1.02, rel=0.01)


def test_results_that_were_begun_with_another_governor_say_so(answered: Callable[..., Path]) -> None:
    folder = answered(lambda data: data.update(machine=bundle_script.machine() | {"governor": "powersave"}))
    done = on_device(folder)
    assert done.returncode != 0
    assert "another machine (governor 'powersave', now '" in done.stderr
    assert "cores" not in done.stderr


def test_parts_share_several_small_nets() -> None:
    nets = [{"name": str(number), "size_bytes": 1 + 99 * (number % 3 == 1)} for number in range(60)]
    parts = chunks_of(nets, 400)
    shared = set.intersection(*({net["name"] for net in part} for part in parts))
    assert len(parts) > 3
    assert 4 <= len(shared) <= 8
    assert "0" in shared
    assert {net["name"] for part in parts for net in part} == {net["name"] for net in nets}
    assert all(sum(net["size_bytes"] for net in part) <= 400 for part in parts)


def test_chunks_hold_the_first_net_and_at_most_so_much() -> None:
    nets = [{"name": str(number), "size_bytes": size} for number, size in enumerate((1, 5, 5, 2, 9))]
    names = [[planned["name"] for planned in chunk] for chunk in chunks_of(nets, 8)]
    assert names == [["0", "1"], ["0", "2", "3"], ["0", "4"]]
    assert chunks_of(nets[:1], 8) == [nets[:1]]


@pytest.mark.long
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_the_script_runs_in_a_virtual_environment_with_nothing_but_the_runtime(tmp_path: Path, runtime: str) -> None:
    import venv

    bundle = tmp_path / "bundle"
    written(bundle, runtime=runtime)
    venv.create(tmp_path / "bare", with_pip=True)
    python = tmp_path / "bare" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", runtime], check=True)
    listed = subprocess.run([python, "-m", "pip", "list"], capture_output=True, text=True, check=True).stdout
    assert "torch" not in listed
    assert "pydantic" not in listed
    done = subprocess.run([python, SCRIPT], capture_output=True, text=True, check=False, cwd=bundle)
    assert done.returncode == 0, done.stderr
    assert read_bundle(bundle)[2].keys() == {"net-3", "net-5", "net-7"}
