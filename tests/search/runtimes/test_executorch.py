"""ExecuTorch, where it is installed: it is not in `.[test]`, because it takes 10 s to import and lowers for seconds."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import torch
from torch import nn

pytest.importorskip("executorch", reason="ExecuTorch is not installed: pip install '.[executorch]'")

from search.runtimes import FileRuntime, noise, runtime
from search.runtimes.executorch import pte_bytes, pte_input_shape
from supernet import create_model
from supernet.schema import UserError

SHAPE = (2, 3, 8, 8)
TWO_THREADS = """
from pathlib import Path
from search.runtimes import runtime
from search.runtimes.executorch import pte_input_shape
from executorch.extension.pybindings import portable_lib
assert pte_input_shape(Path(FILE)) == (2, 3, 8, 8)
runtime("executorch", threads=2).load(FILE, (2, 3, 8, 8))()
print("pool:", portable_lib._threadpool_get_thread_count())
"""


def small_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten()).eval()


@pytest.fixture(scope="module")
def program() -> bytes:
    return pte_bytes(small_net(), input_shape=SHAPE)


def test_a_program_computes_what_the_module_computes(program):
    with torch.no_grad():
        expected = small_net()(torch.from_numpy(noise(SHAPE)))
    (found,) = runtime("executorch", threads=1).load(program, SHAPE)()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_published_model_computes_what_it_does_in_torch():
    torch.manual_seed(0)
    model, shape = create_model("efficientformer_l1", resolution_px=32, num_classes=4).eval(), (1, 3, 32, 32)
    with torch.no_grad():
        expected = model(torch.from_numpy(noise(shape)))
    (found,) = runtime("executorch", threads=1).build(model, shape)()
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


def test_it_states_its_condition_and_runs_files(program, tmp_path):
    device = runtime("executorch", threads=1)
    assert (device.name, device.precision, device.threads) == ("executorch", "fp32", 1)
    assert device.version[0].isdigit()
    assert isinstance(device, FileRuntime)
    (tmp_path / "model.pte").write_bytes(program)
    assert device.load(tmp_path / "model.pte", SHAPE)()[0].shape == (2, 512)


def test_a_module_is_lowered_to_the_same_bytes_twice(program):
    assert pte_bytes(small_net(), input_shape=SHAPE) == program


@pytest.mark.parametrize("shape", [(1, 3, 8, 8), (2, 3, 16, 16)])
def test_images_of_another_shape_are_refused(program, shape):
    refused = rf"the model: not a program that ExecuTorch can run on {re.escape(str(shape))} \(it was lowered for \(2, "
    with pytest.raises(UserError, match=refused):
        runtime("executorch", threads=1).load(program, shape)


def test_a_file_that_is_no_program_is_refused(program, tmp_path):
    for name, content in (("bad.pte", b"not a program"), ("short.pte", program[:-500])):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=f"{name}: not a program"):
            runtime("executorch", threads=1).load(tmp_path / name, SHAPE)
    with pytest.raises(UserError, match=r"bad.pte: not a program that ExecuTorch can read"):
        pte_input_shape(tmp_path / "bad.pte")
    with pytest.raises(UserError, match=r"missing.pte: not a program .*No such file"):
        pte_input_shape(tmp_path / "missing.pte")
    with pytest.raises(UserError, match=r"missing.pte: not a program .*No such file"):
        runtime("executorch", threads=1).load(tmp_path / "missing.pte", SHAPE)


def test_a_process_has_one_number_of_threads(program):
    runtime("executorch", threads=1).load(program, SHAPE)
    with pytest.raises(UserError, match="threads=2 needs a process of its own"):
        runtime("executorch", threads=2).load(program, SHAPE)


def test_the_pool_has_as_many_threads_as_asked_for(program, tmp_path):
    (tmp_path / "model.pte").write_bytes(program)
    command = TWO_THREADS.replace("FILE", repr(str(tmp_path / "model.pte")))
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "pool: 2" in done.stdout
