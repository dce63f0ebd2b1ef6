"""Peak activation memory: the most numbers that are alive at once while a model sees one image.

Counted on the meta device, operation by operation of the deploy form: a tensor is alive from the operation that makes
it to the last one that reads it, and an operation on single elements overwrites an input that nothing reads any more.
Parameters do not count, nor does what a kernel takes for itself.
"""

# C channels, H W pixels

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from supernet.architecture import Architecture
from supernet.fused import fused
from supernet.metaformer import MetaFormer


def peak_activations(architecture: Architecture) -> int:
    """The most numbers alive at once in the standalone model, for one image; in fp32 each takes 4 bytes."""
    with torch.device("meta"):
        return peak_activations_of(MetaFormer(architecture), torch.empty(1, *architecture.input_shape))


def peak_activations_of(module: nn.Module, x: Tensor) -> int:
    """The same for any module and an input on its device, which counts until nothing reads it any more."""
    folded = fused(module)
    with torch.no_grad(), _Recorder([*folded.parameters(), *folded.buffers()], x) as recorder:
        folded(x)
    peak: int = recorder.peak()
    return peak


class _Operation(NamedTuple):
    """What one operation reads and makes, by the identity of storages."""

    reads: frozenset[int]
    makes: frozenset[int]
    single_elements: bool


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes down every operation; all tensors are kept, so that no two storages have one identity."""

    def __init__(self, constants: Iterable[Tensor], x: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.constants = {_identity(constant) for constant in constants}
        self.numbers = {_identity(x): x.numel()}
        self.operations: list[_Operation] = []
        self.kept: list[Tensor] = [x]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        made = self._storages(result)
        reads = self._storages([args, kwargs])
        fresh = frozenset(made) - self.numbers.keys()
        self.numbers |= {identity: made[identity] for identity in fresh}
        single = torch.Tag.pointwise in func.tags
        self.operations.append(_Operation(frozenset(reads), fresh, single_elements=single))
        return result

    def _storages(self, values: object) -> dict[int, int]:
        """The storages of all tensors in nested values, without constants, and how many numbers each holds."""
        found: dict[int, int] = {}
        for tensor in tree_leaves(values):
            if isinstance(tensor, Tensor) and _identity(tensor) not in self.constants:
                self.kept.append(tensor)
                found[_identity(tensor)] = tensor.untyped_storage().nbytes() // tensor.element_size()
        return found

    def peak(self) -> int:
        """The most numbers alive at any operation."""
        first = dict.fromkeys(self.numbers, 0)
        last = dict.fromkeys(self.numbers, 0)
        for at, operation in enumerate(self.operations):
            first |= dict.fromkeys(operation.makes, at)
            last |= dict.fromkeys(operation.reads | operation.makes, at)
        for at, operation in enumerate(self.operations):
            room = [identity for identity in operation.reads if last[identity] == at]
            for made in operation.makes if operation.single_elements else ():
                if any(self.numbers[identity] >= self.numbers[made] for identity in room):
                    first[made] = at + 1  # until then it is the input that takes the room
        alive = [0] * (len(self.operations) + 2)
        for identity, count in self.numbers.items():
            alive[first[identity]] += count
            alive[max(first[identity], last[identity]) + 1] -= count
        peak = now = 0
        for change in alive[:-1]:
            now += change
            peak = max(peak, now)
        return peak


def _identity(tensor: Tensor) -> int:
    identity: int = tensor.untyped_storage()._cdata
    return identity
