"""One thread for work on small tensors: two threads of a shared machine wait for each other longer than they work.

Measured on two shared cores of an AMD EPYC while other programs ran, 15 small nets of `imagenet_l1.yaml`: building the
modules takes 51 ms a net on one thread and 818 ms on two, exporting them to ONNX 465 and 856 ms.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """What runs in here runs on one thread of torch; the caller's number is restored."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
