"""The rows that the terminal and the report share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from analysis.summary import SUMMARY_COLUMNS, summary_table


def test_rows_go_by_budget_with_search_first_and_random_last(run_directory: Path) -> None:
    assert [(row.budget_ms, row.method) for row in summary_table(run_directory)] == [
        (0.8, "search"),
        (0.8, "uniform scaling"),
        (0.8, "random"),
        (2.0, "search"),
        (2.0, "uniform scaling"),
        (2.0, "random"),
    ]


def test_a_row_has_a_cell_for_every_column(run_directory: Path) -> None:
    row = summary_table(run_directory)[0]
    assert len(row.cells) == len(SUMMARY_COLUMNS)
    assert row.cells == (
        "search-0.8ms",
        "search",
        "0.8",
        "0.792",
        "0.784 (0.776–0.808)",
        "84.6 ± 0.7",
        "1.23 M",
        "24.1 M",
        "1e-06",
    )


def test_numbers_that_were_not_taken_are_dashes(
    run_directory: Path, change: Callable[[str, Callable[[Any], object]], None]
) -> None:
    nothing = {"measured_p10_ms": None, "onnx_max_difference": None, "measured_ms": 0.81}
    change("evaluation.json", lambda data: data["models"][0].update(nothing))
    row = summary_table(run_directory)[0]
    assert (row.cells[4], row.cells[8]) == ("0.810 over", "–")


def test_without_an_evaluation_there_are_no_rows(run_directory: Path) -> None:
    (run_directory / "evaluation.json").unlink()
    assert summary_table(run_directory) == ()
