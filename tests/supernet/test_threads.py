"""One thread, for a while."""

from __future__ import annotations

import pytest
import torch

from supernet.threads import one_thread


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
