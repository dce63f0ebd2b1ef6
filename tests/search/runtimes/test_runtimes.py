"""Runtimes: registration, the built-in ones, and a user's own."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from torch import nn

from search import runtimes
from search.measure import measure
from search.runtimes import noise, onnx_in, register_runtime, runtime, runtime_names
from supernet.onnx_export import export_onnx
from supernet.schema import UserError

SHAPE = (2, 3, 8, 8)


@pytest.fixture
def own_runtime(monkeypatch):
    monkeypatch.setattr(runtimes, "_FACTORIES", dict(runtimes._FACTORIES))

    @register_runtime("double")
    class DoubleRuntime:
        name, precision, version = "double", "fp64", torch.__version__

        def __init__(self, *, threads: int) -> None:
            self.threads = threads

        def build(self, module, input_shape):
            module, images = module.double(), torch.randn(input_shape).double()
            return lambda: module(images)


def small_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten()).eval()


BUILT_IN = ["onnxruntime", "eager", "openvino", "mnn", pytest.param("compile", marks=pytest.mark.long)]
PACKAGES = {"openvino": "openvino", "mnn": "MNN"}


@pytest.fixture(autouse=True)
def _installed(request):
    """Tests of a runtime whose package is missing are skipped; what `.[test]` installs is there in the gate."""
    name = request.node.callspec.params.get("name") if hasattr(request.node, "callspec") else None
    if name in PACKAGES:
        pytest.importorskip(PACKAGES[name])


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_built_in_runtime_computes_what_the_module_computes(name):
    net = small_net()
    with torch.no_grad():
        expected = net(torch.from_numpy(noise(SHAPE)))
    output = runtime(name, threads=1).build(net, SHAPE)()
    first = output[0] if isinstance(output, list) else output
    found = first if isinstance(first, torch.Tensor) else torch.from_numpy(np.array(first))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_part_that_works_on_tokens_runs_alone_too(name):
    torch.manual_seed(0)
    net, shape = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8)).eval(), (2, 6, 8)
    with torch.no_grad():
        expected = net(torch.from_numpy(noise(shape)))
    output = runtime(name, threads=1).build(net, shape)()
    first = output[0] if isinstance(output, list) else output
    found = first if isinstance(first, torch.Tensor) else torch.from_numpy(np.array(first))
    torch.testing.assert_close(found.reshape(expected.shape), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_int8_is_close_to_the_module_and_not_it(name):
    net = small_net()
    with torch.no_grad():
        expected = net(torch.from_numpy(noise(SHAPE)))
    device = runtime(name, threads=1, precision="int8")
    assert device.precision == "int8"
    found = torch.from_numpy(np.array(device.build(net, SHAPE)())).reshape(expected.shape)
    error = ((found - expected).norm() / expected.norm()).item()
    assert 1e-4 < error < 0.05


@pytest.mark.parametrize("name", ["eager", pytest.param("compile", marks=pytest.mark.long)])
def test_bf16_is_close_to_the_module_and_not_it(name):
    net = small_net()
    with torch.no_grad():
        expected = net(torch.from_numpy(noise(SHAPE)))
    device = runtime(name, threads=1, precision="bf16")
    found = device.build(net, SHAPE)()
    assert (device.precision, found.dtype) == ("bf16", torch.bfloat16)
    error = ((found.float() - expected).norm() / expected.norm()).item()
    assert 1e-4 < error < 0.05


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_built_in_runtime_states_its_condition(name):
    built = runtime(name, threads=2)
    assert (built.name, built.precision, built.threads) == (name, "fp32", 2)
    assert built.version[0].isdigit()


@pytest.mark.long
def test_every_one_of_many_compiled_nets_is_compiled():
    nets = [runtime("compile", threads=1).build(small_net(), SHAPE) for _ in range(12)]
    with torch.profiler.profile() as profile:
        for net in nets:
            net()
    assert "aten::batch_norm" not in {event.key for event in profile.key_averages()}  # folded or fused by the compiler


def test_a_precision_that_a_runtime_does_not_have_is_refused_with_those_it_has():
    assert runtime("eager", threads=1, precision="fp32").precision == "fp32"
    with pytest.raises(UserError, match="runtime eager: computes in fp32, bf16, not in int4"):
        runtime("eager", threads=1, precision="int4")
    with pytest.raises(UserError, match="runtime openvino: computes in fp32, bf16, fp16, int8, not in int4"):
        runtime("openvino", threads=1, precision="int4")


def test_a_package_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(runtimes, "_FACTORIES", {})
    monkeypatch.delitem(sys.modules, "search.runtimes.openvino_cpu", raising=False)
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(UserError, match=r"openvino: not installed; .* pip install '\.\[openvino\]'"):
        runtime("openvino", threads=1)


def test_compiling_without_a_compiler_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"needs a C\+\+ compiler, and there is no (g|clang)\+\+ here"):
        runtime("compile", threads=1)
    monkeypatch.setenv("CXX", "my-compiler")
    with pytest.raises(UserError, match=r"there is no my-compiler here"):
        runtime("compile", threads=1)


def test_a_package_that_cannot_be_loaded_says_why(monkeypatch, tmp_path):
    (tmp_path / "openvino.py").write_text("raise ImportError('undefined symbol: f')")
    monkeypatch.setattr(runtimes, "_FACTORIES", {})
    monkeypatch.syspath_prepend(tmp_path)
    for module in ("search.runtimes.openvino_cpu", "openvino"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises(UserError, match=r"openvino: cannot be loaded \(undefined symbol: f\); in a checkout"):
        runtime("openvino", threads=1)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino", "mnn"])
def test_a_file_that_is_no_model_and_one_that_is_missing_are_refused(name, tmp_path):
    (tmp_path / "bad.onnx").write_bytes(b"not a model")
    device = runtime(name, threads=1)
    for file, part in (("bad.onnx", "bad.onnx: not an ONNX model"), ("missing.onnx", "missing.onnx: ")):
        with pytest.raises(UserError, match=part):
            device.load(tmp_path / file, SHAPE)


@pytest.mark.parametrize("name", ["onnxruntime", "mnn"])
def test_images_of_another_size_are_refused_where_the_runtime_itself_would_fail_later(name):
    with pytest.raises(UserError, match=r"its input is \['batch', 3, 8, 8\], not \[2, 4, 8, 8\]"):
        runtime(name, threads=1).load(onnx_in("fp32", small_net(), SHAPE), (2, 4, 8, 8))


def test_eager_runs_with_its_threads_and_gives_the_callers_back():
    seen = []

    class Watching(nn.Module):
        def forward(self, x):
            seen.append((torch.get_num_threads(), torch.is_inference_mode_enabled()))
            return x

    before = torch.get_num_threads()
    runtime("eager", threads=before + 1).build(Watching(), SHAPE)()
    assert seen == [(before + 1, True)]
    assert torch.get_num_threads() == before


@pytest.mark.usefixtures("own_runtime")
def test_a_runtime_of_ones_own_is_found_by_its_name_and_measured():
    net = runtime("double", threads=1).build(small_net(), SHAPE)
    timing = measure({"net": net}, rounds=2, warmup=1, generator=torch.Generator().manual_seed(0))["net"]
    assert timing.median_ms > 0
    assert "double" in runtime_names()


@pytest.mark.usefixtures("own_runtime")
def test_a_name_is_registered_once():
    with pytest.raises(ValueError, match="'double' is registered already"):
        register_runtime("double")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"name": "other"}, "runtime wrong: calls itself 'other'"),
        ({"precision": None}, "runtime wrong: has no precision"),
        ({}, "runtime wrong: computes in fp32, not in int8"),
    ],
)
def test_a_runtime_of_ones_own_that_lacks_something_is_refused(monkeypatch, fields, reason):
    class Wrong:
        name, version, precision = "wrong", "1", "fp32"

        def __init__(self, *, threads):
            self.threads = threads

        def build(self, module, input_shape):
            return lambda: None

    monkeypatch.setattr(runtimes, "_FACTORIES", dict(runtimes._FACTORIES))
    for field, value in fields.items():
        delattr(Wrong, field) if value is None else setattr(Wrong, field, value)
    register_runtime("wrong")(Wrong)
    with pytest.raises(UserError, match=reason):
        runtime("wrong", threads=1, precision=None if fields else "int8")


@pytest.mark.parametrize("name", ["r/4", "", "../x", "a b"])
def test_a_runtime_has_a_name_that_a_file_can_have(name):
    with pytest.raises(ValueError, match="name it with letters, digits"):
        register_runtime(name)


def test_an_unknown_runtime_is_refused_with_the_nearest_name():
    with pytest.raises(UserError, match=r"unknown runtime 'onnxrutime' \(did you mean onnxruntime\?\)"):
        runtime("onnxrutime", threads=1)


def test_less_than_one_thread_is_refused():
    with pytest.raises(UserError, match=r"threads: must be 1 or more \(got 0\)"):
        runtime("eager", threads=0)


def test_an_exported_file_is_measured_with_at_least_thirty_runs(tmp_path):
    path = tmp_path / "net.onnx"
    export_onnx(small_net(), path, in_channels=3, resolution_px=(8, 8))
    net = runtime("onnxruntime", threads=1).load(path, (1, 3, 8, 8))
    timing = measure({"net": net}, rounds=3, warmup=1, generator=torch.Generator().manual_seed(0))["net"]
    assert timing.runs >= 30
    assert 0 < timing.p10_ms <= timing.median_ms <= timing.p90_ms
