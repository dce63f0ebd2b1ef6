"""Fewer threads for work on small tensors: two threads of a shared machine wait for each other longer than they work.

Measured on two shared cores of an AMD EPYC while other programs ran, 15 small nets of `imagenet_l1.yaml`: building the
modules takes 51 ms a net on one thread and 818 ms on two, exporting them to ONNX 465 and 856 ms. So, of many pieces of
work, several are done side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


@contextmanager
def one_thread() -> Iterator[None]:
    """What runs in here runs on one thread of torch; the caller's number is restored."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def side_by_side(work: Callable[[ItemT], ResultT], items: Sequence[ItemT], *, at_once: int) -> list[ResultT]:
    """`work(item)` of every item in their order, `at_once` at a time, each on its share of torch's threads.

    The work may not depend on which item comes first: no random numbers but from generators of its own.
    """
    before = torch.get_num_threads()
    share = max(1, before // at_once)
    pool = ThreadPoolExecutor(at_once, initializer=torch.set_num_threads, initargs=(share,))
    try:
        return list(pool.map(work, items))
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)
