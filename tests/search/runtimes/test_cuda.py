"""CUDA graphs: refused where there is no GPU, tested where there is one."""

from __future__ import annotations

import pytest
import torch

from search.measure import measure
from search.runtimes import noise, runtime
from search.runtimes.cuda import _full_precision, why_no_gpu
from supernet import create_model
from supernet.schema import UserError

on_gpu = pytest.mark.skipif(why_no_gpu() is not None, reason=f"no GPU: {why_no_gpu()}")
SHAPE = (2, 3, 64, 64)


@pytest.mark.parametrize(
    ("built", "reason"),
    [(False, r"torch \S+ is built without CUDA"), (True, "torch finds no NVIDIA GPU, or no driver")],
)
def test_without_a_gpu_it_is_refused_with_the_reason(monkeypatch, built, reason):
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: built)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=rf"^runtime cuda: {reason}"):
        runtime("cuda", threads=1)


def test_two_threads_are_refused(monkeypatch):
    monkeypatch.setattr("search.runtimes.cuda.why_no_gpu", lambda: None)
    with pytest.raises(UserError, match=r"runtime cuda: one thread starts the graph; threads must be 1 \(got 2\)"):
        runtime("cuda", threads=2)


def test_products_are_of_full_precision_inside_and_the_callers_after():
    def settings():
        return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark

    before = settings()
    with _full_precision():
        assert settings() == (False, False, True)
    assert settings() == before


@on_gpu
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("fp16", 0.02), ("bf16", 0.1)])
def test_a_replayed_graph_computes_what_the_module_computes(precision, tolerance):
    torch.manual_seed(0)
    model = create_model("efficientformer_l1", resolution_px=64, num_classes=8).eval()
    with torch.no_grad():
        expected = model(torch.from_numpy(noise(SHAPE)))
    device = runtime("cuda", threads=1, precision=precision)
    found = device.build(model, SHAPE)().float().cpu()
    assert (found - expected).abs().max() < tolerance * expected.abs().max()
    assert torch.cuda.get_device_name() in device.version


@on_gpu
def test_a_replay_is_waited_for():
    def net(depth):
        return torch.nn.Sequential(*(torch.nn.Conv2d(64, 64, 3, padding=1) for _ in range(depth))).eval()

    device = runtime("cuda", threads=1)
    nets = {depth: device.build(net(depth), (8, 64, 128, 128)) for depth in (2, 32)}
    timings = measure(nets, rounds=5, warmup=3, generator=torch.Generator().manual_seed(0))
    assert timings[32].median_ms > 4 * timings[2].median_ms  # without waiting, both take what a launch takes
