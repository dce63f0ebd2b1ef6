"""The peak memory of a piece of work: resident memory on a CPU, allocated memory on CUDA."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch

if sys.platform != "win32":
    import resource

_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")


def peak_bytes(work: Callable[[], object], device: torch.device) -> int:
    """The most memory held while this works, above what is held before it, in bytes.

    On a CPU this is only true in a fresh process: memory that an earlier peak left to the allocator is not seen again.
    Elsewhere than on Linux the process's peak before this counts as what is held before it.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    if not _RESET.exists():
        before = _peak_since_birth()
        work()
        return _peak_since_birth() - before
    _RESET.write_text("5")  # the kernel's record of the peak begins anew
    before = _status_bytes("VmRSS")
    work()
    return _status_bytes("VmHWM") - before


def _status_bytes(field: str) -> int:
    """A field of the kernel's record; VmHWM is, unlike ru_maxrss, never what the parent process held at the fork."""
    lines = _STATUS.read_text().splitlines()
    (kilobytes,) = (line.split()[1] for line in lines if line.startswith(f"{field}:"))
    return int(kilobytes) * 1024


def _peak_since_birth() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
