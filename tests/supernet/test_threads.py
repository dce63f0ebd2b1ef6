"""One thread, for a while, and several pieces of work side by side."""

from __future__ import annotations

import threading

import pytest
import torch

from supernet.threads import one_thread, side_by_side


@pytest.mark.parametrize("before", [1, 2])
def test_work_runs_on_one_thread_and_the_callers_number_comes_back_even_after_an_error(before: int) -> None:
    at_first = torch.get_num_threads()
    torch.set_num_threads(before)
    try:
        with one_thread():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == before
        with pytest.raises(ZeroDivisionError), one_thread():
            _ = 1 / 0
        assert torch.get_num_threads() == before
    finally:
        torch.set_num_threads(at_first)


def test_items_are_worked_on_at_once_each_on_its_share_of_the_threads_and_come_back_in_order() -> None:
    at_first = torch.get_num_threads()
    torch.set_num_threads(4)
    both = threading.Barrier(2, timeout=20)

    def work(item: int) -> tuple[int, int]:
        both.wait()  # which one alone would never pass
        return item, torch.get_num_threads()

    try:
        assert side_by_side(work, [5, 3, 9, 1], at_once=2) == [(5, 2), (3, 2), (9, 2), (1, 2)]
        assert torch.get_num_threads() == 4
        with pytest.raises(ZeroDivisionError):
            side_by_side(lambda item: 1 // item, [1, 0, 1], at_once=2)
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(at_first)
