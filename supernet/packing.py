"""Linear maps whose weights lie in memory as the processor's matrix product reads them.

A matrix product reorders the weight on every call. For a single image that is 10 to 25 % of its time (one core of an
AMD EPYC with AVX-512, fp32, torch 2.15: 41 to 50 G multiply-adds a second as they are, 54 to 56 packed), so on
processors with AVX-512 the deploy form keeps a reordered copy. What gains was not measured on others.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_KNOWN = (
    torch.backends.cpu.get_cpu_capability() == "AVX512"  # where it was measured
    and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)
SMALLEST = 2**14  # weights below this take less time than asking whether to use a packed one


class _Kept(NamedTuple):
    """A packed weight and what it was made of; the source is held, so that its memory is not another tensor's."""

    source: Tensor
    version: int
    packed: Tensor

    def is_of(self, weight: Tensor) -> bool:
        """Whether the weight is the same memory, seen in the same way, and was not written to since."""
        return (
            self.version == weight._version
            and self.source.data_ptr() == weight.data_ptr()
            and self.source.shape == weight.shape
            and self.source.stride() == weight.stride()
        )


class Packing:
    """Computes a linear map with a packed copy of its weight, made on the first call and again when the weight changes.

    Where a packed product is of no use (other processors, other number formats, gradients, export, tracing and
    compilation) it is the ordinary one. The copy takes as much memory as the weight. Writing through `weight.data` or
    numpy is not noticed.
    """

    def __init__(self) -> None:
        self._kept: _Kept | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Packing:
        return Packing()

    def __reduce__(self) -> tuple[type[Packing], tuple[()]]:
        return Packing, ()

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """`F.linear`."""
        if torch.compiler.is_compiling() or not _is_packable(x, weight, bias):
            if self._kept is not None and not self._kept.is_of(weight):
                self._kept = None  # the model was moved or converted
            return F.linear(x, weight, bias)
        x = x.contiguous()
        packed = self._of(weight, rows=x.numel() // x.shape[-1])
        return torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")  # type: ignore[no-any-return]

    def _of(self, weight: Tensor, *, rows: int) -> Tensor:
        kept = self._kept  # read once: another thread may replace it
        if kept is not None and kept.is_of(weight):
            return kept.packed
        with torch.inference_mode(False), torch.no_grad():
            version, source = weight._version, weight.detach()
            packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(source.contiguous(), rows)
        self._kept = _Kept(source, version, packed)
        return packed


def _is_packable(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether these are plain fp32 tensors in the main memory, and nothing records or transforms what is computed.

    What torch.fx and torch.export compute with is no plain tensor.
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
        and not (torch.is_grad_enabled() and any(each is not None and each.requires_grad for each in (x, weight, bias)))
        and not torch.is_autocast_enabled("cpu")
        and not weight.is_inference()
        and torch._C._functorch.peek_interpreter_stack() is None
        and torch._C._len_torch_dispatch_stack() == 0
        and torch.backends.mkldnn.enabled
    )


class PackedLinear(nn.Linear):
    """A linear layer with a packed weight."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.packing = Packing()

    @classmethod
    def of(cls, linear: nn.Linear) -> PackedLinear:
        """This layer, with its own weight and bias."""
        packed = cls(linear.in_features, linear.out_features, bias=False, device="meta")
        packed.weight, packed.bias = linear.weight, linear.bias
        return packed.train(linear.training)

    def forward(self, input: Tensor) -> Tensor:
        """Any shape with the channels last."""
        return self.packing.linear(input, self.weight, self.bias)
