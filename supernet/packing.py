"""Linear maps whose weights lie in memory as the processor's matrix product reads them.

A matrix product reorders the weight on every call. For a single image that is 10 to 25 % of its time (one core of an
AMD EPYC with AVX-512, fp32, torch 2.15: 41 to 50 G multiply-adds a second as they are, 54 to 56 packed), so the deploy
form keeps a reordered copy, which torch.compile does too.
"""

from __future__ import annotations

import platform
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_KNOWN = (
    platform.machine().lower() in ("x86_64", "amd64")
    and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)
SMALLEST = 2**14  # weights below this take less time than asking whether to use a packed one


class Packing:
    """Computes a linear map with a packed copy of its weight, made on the first call and again when the weight changes.

    Where a packed product is of no use (other processors, other number formats, gradients, export, tracing and
    compilation) it is the ordinary one. The copy takes as much memory as the weight.
    """

    def __init__(self) -> None:
        self._packed: Tensor | None = None
        self._source: tuple[Tensor, int] | None = None  # held, so that its memory is not another tensor's

    def __deepcopy__(self, memo: dict[int, Any]) -> Packing:
        return Packing()

    def __reduce__(self) -> tuple[type[Packing], tuple[()]]:
        return Packing, ()

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """`F.linear`."""
        if torch.compiler.is_compiling() or not _is_packable(x, weight):
            return F.linear(x, weight, bias)
        x = x.contiguous()
        packed = self._of(weight, rows=x.numel() // x.shape[-1])
        return torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")  # type: ignore[no-any-return]

    def _of(self, weight: Tensor, *, rows: int) -> Tensor:
        version = weight._version
        if self._source is not None and self._packed is not None:
            source, known = self._source
            if known == version and source.data_ptr() == weight.data_ptr():
                return self._packed
        with torch.inference_mode(False), torch.no_grad():
            self._source = weight.detach(), version
            self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), rows)
        return self._packed


def _is_packable(x: Tensor, weight: Tensor) -> bool:
    """Whether these are plain fp32 tensors on an x86 processor, and nothing records what is computed.

    What torch.fx, torch.export and torch.func compute with is no plain tensor.
    """
    return bool(
        _KNOWN
        and not torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]
        and type(x) is Tensor
        and type(weight) in (Tensor, nn.Parameter)
        and weight.numel() >= SMALLEST
        and x.numel() > x.shape[-1]  # of a single row there is nothing to gain
        and x.dtype == weight.dtype == torch.float32
        and x.is_cpu
        and not (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad))
        and not torch.is_autocast_enabled("cpu")
        and not weight.is_inference()
        and torch.backends.mkldnn.enabled
    )


class PackedLinear(nn.Linear):
    """A linear layer with a packed weight."""

    packing: Packing

    @classmethod
    def of(cls, linear: nn.Linear) -> PackedLinear:
        """This layer, with its own weight and bias."""
        packed = cls(linear.in_features, linear.out_features, bias=False, device="meta")
        packed.weight, packed.bias = linear.weight, linear.bias
        packed.packing = Packing()
        return packed.train(linear.training)

    def forward(self, input: Tensor) -> Tensor:
        """Any shape with the channels last."""
        return self.packing.linear(input, self.weight, self.bias)
