"""int8: an exported model with weights and activations of 8 bits, after training, calibrated on images.

ONNX's QDQ form, which ONNX Runtime and OpenVINO both read: around each layer the graph says how its numbers are
rounded, and the runtime computes in int8 what it can. Additions are not rounded: OpenVINO cannot load that. Weights
have 7 of the 8 bits, because processors without VNNI add two products in 16 bits and would overflow: poolformerv2_s12
with random weights at 64 px is then 4.5 % off (of the logits' norm), and with 8 bits 33 % (ONNX Runtime 1.31, AVX2).
"""

# B batch, C channels, H W pixels

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from supernet.onnx_export import INPUT_NAME

ROUNDED = ("Conv", "MatMul", "Gemm", "MaxPool", "AveragePool", "GlobalAveragePool", "Relu")


def quantized_onnx(model: bytes, calibration: Sequence[np.ndarray]) -> bytes:
    """The model in int8; the range of every activation is that on the calibration images, batches B,C,H,W float32.

    Weights are symmetric, one scale a channel; activations have a zero point of their own. Raises `ValueError` without
    images.
    """
    if not calibration:
        raise ValueError("int8 needs at least one batch of calibration images")
    with tempfile.TemporaryDirectory() as folder, _quiet():
        path = Path(folder) / "int8.onnx"
        quantize_static(
            onnx.load_from_string(model),
            path,
            _Batches(calibration),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(ROUNDED),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            reduce_range=True,
        )
        return path.read_bytes()


class _Batches(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    """The calibration images, one batch a call."""

    def __init__(self, batches: Sequence[np.ndarray]) -> None:
        self.left = iter(batches)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next batch as the model's input, or None at the end."""
        batch = next(self.left, None)
        return None if batch is None else {INPUT_NAME: batch}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the advice to simplify a graph that is simple already, on the root logger at every call."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
