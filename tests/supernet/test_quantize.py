"""int8: close to the model on images like those it was calibrated on, smaller, and run by both runtimes."""

from __future__ import annotations

import logging

import numpy as np
import onnx
import pytest
import torch

from supernet import create_model
from supernet.onnx_export import OnnxModel, onnx_bytes
from supernet.quantize import quantized_onnx

IMAGES = np.random.default_rng(0).standard_normal((8, 3, 64, 64), dtype=np.float32)


@pytest.fixture(scope="module", params=["efficientformer_l1", pytest.param("poolformerv2_s12", marks=pytest.mark.long)])
def exported(request: pytest.FixtureRequest) -> bytes:
    torch.manual_seed(0)
    return onnx_bytes(create_model(request.param, resolution_px=64, num_classes=7).eval(), input_shape=(1, 3, 64, 64))


def test_int8_is_close_to_fp32_and_a_third_of_its_size(exported: bytes) -> None:
    rounded = quantized_onnx(exported, [IMAGES[:4], IMAGES[4:]])
    expected = OnnxModel(exported, threads=1)(torch.from_numpy(IMAGES))
    found = OnnxModel(rounded, threads=1)(torch.from_numpy(IMAGES))
    assert found.shape == (8, 7)  # the batch is as free as before
    error = ((found - expected).norm() / expected.norm()).item()
    assert 0 < error < 0.08
    assert len(rounded) < len(exported) / 3


def test_the_ranges_are_those_of_the_calibration_images(exported: bytes) -> None:
    right, wrong = quantized_onnx(exported, [IMAGES]), quantized_onnx(exported, [0.01 * IMAGES])
    expected = OnnxModel(exported, threads=1)(torch.from_numpy(IMAGES))
    errors = [
        (OnnxModel(rounded, threads=1)(torch.from_numpy(IMAGES)) - expected).norm().item() for rounded in (right, wrong)
    ]
    assert errors[0] < errors[1]


def test_every_convolution_and_linear_map_is_rounded(exported: bytes) -> None:
    graph = onnx.load_from_string(quantized_onnx(exported, [IMAGES[:1]])).graph
    rounded = {name for node in graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    layers = [node for node in graph.node if node.op_type in ("Conv", "MatMul", "Gemm")]
    assert layers
    assert all(node.input[0] in rounded and node.input[1] in rounded for node in layers)


def test_without_images_there_is_no_range(exported: bytes) -> None:
    with pytest.raises(ValueError, match="int8 needs at least one batch of calibration images"):
        quantized_onnx(exported, [])


def test_logging_is_left_as_it_was(exported: bytes, caplog: pytest.LogCaptureFixture) -> None:
    quantized_onnx(exported, [IMAGES[:1]])
    assert not caplog.records
    assert logging.root.manager.disable == logging.NOTSET
