"""Core ML: nets are converted here, and measured on a Mac."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from search.model_files import model_file, write_model
from search.runtimes import runtime
from search.runtimes.quiet import quiet
from supernet import create_model
from supernet.schema import UserError

SHAPE = (2, 3, 8, 8)


def small_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten()).eval()


def test_it_is_measured_from_a_bundle_alone():
    with pytest.raises(UserError, match="runtime coreml: is measured on a Mac, from a bundle: slimformer table EXP"):
        runtime("coreml", threads=1)


def test_without_coremltools_nothing_is_converted_and_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "coremltools", None)
    with pytest.raises(UserError, match=r"runtime coreml: not installed; .* pip install '\.\[coreml\]'"):
        model_file("coreml", small_net(), SHAPE, precision="fp32")


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_converted_net_says_what_it_takes_and_gives(precision: str, tmp_path: Path):
    pytest.importorskip("coremltools", reason="coremltools is not installed: pip install '.[coreml]'")
    path = tmp_path / "net.mlpackage"
    content = model_file("coreml", small_net(), SHAPE, precision=precision)
    assert model_file("coreml", small_net(), SHAPE, precision=precision) == content
    write_model(path, content)
    with quiet():
        import coremltools

        spec = coremltools.models.MLModel(str(path), skip_model_load=True).get_spec()
    (images,), (logits,) = spec.description.input, spec.description.output
    assert (images.name, tuple(images.type.multiArrayType.shape)) == ("images", SHAPE)
    float32 = images.type.multiArrayType.FLOAT32
    assert (logits.name, logits.type.multiArrayType.dataType) == ("logits", float32)
    assert images.type.multiArrayType.dataType == float32
    assert spec.WhichOneof("Type") == "mlProgram"
    (weights,) = path.rglob("weight.bin")
    assert weights.stat().st_size > 0


@pytest.mark.long
@pytest.mark.parametrize("name", ["efficientformer_l1", "efficientformerv2_s0", "caformer_s18", "poolformer_s12"])
def test_published_models_are_converted(name: str):
    pytest.importorskip("coremltools", reason="coremltools is not installed: pip install '.[coreml]'")
    model = create_model(name).eval()
    content = model_file("coreml", model, (1, 3, *model.architecture.resolution_px), precision="fp16")
    assert not isinstance(content, bytes)
    weights = sum(len(data) for file, data in content.items() if file.endswith("weight.bin"))
    parameters = sum(parameter.numel() for parameter in model.fused().parameters())
    assert weights == pytest.approx(2 * parameters, rel=0.05)
