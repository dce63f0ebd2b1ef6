"""What a study's figures show, read back from the drawn artists."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from analysis.study_files import RankStudyFile, StudyFile
from analysis.study_plot import rank_figure, study_figure, write_study_figures
from supernet.schema import UserError, parse

RANKS: dict[str, Any] = {
    "schema_version": 1,
    "experiment": "cifar10",
    "config": {"seeds": [0, 1]},
    "trainings": 14,
    "missing": 1,
    "seed_ceiling_tau": 0.8,
    "scorers": [
        {"scorer": "macs", "kendall_tau": 0.5, "tau_interval_95": [0.1, 0.8], "tercile_tau": 0.25},
        {"scorer": "supernet_loss", "kendall_tau": 0.75, "tau_interval_95": None, "tercile_tau": None},
        {"scorer": "my_score", "kendall_tau": None, "tau_interval_95": None, "tercile_tau": None},
    ],
    "architectures": [
        {
            "digest": str(number),
            "table_ms": 1.0 + number,
            "accuracy_percent": {"0": 70.0 + number, "1": 72.0 + number} if number else {"0": 70.0},
            "scores": {"macs": 1e6 * number, "supernet_loss": -1.0 / (1 + number), "my_score": 1.0},
        }
        for number in range(7)
    ],
}


def result(method: str, budget_ms: float, mean: float | None) -> dict[str, Any]:
    return {
        "method": method,
        "budget_ms": budget_ms,
        "accuracy_percent": [] if mean is None else [mean - 0.5, mean + 0.5],
        "mean": mean,
        "interval_95": None if mean is None else [mean - 1, mean + 1],
        "measured_ms": [] if mean is None else [0.9 * budget_ms, 0.98 * budget_ms],
    }


STUDY: dict[str, Any] = {
    "schema_version": 1,
    "experiment": "cifar10",
    "trainings": 8,
    "missing": 2,
    "budgets_ms": [0.2, 0.4],
    "results": [
        result(m, b, v) for m, b, v in (("exact", 0.2, 80.0), ("random_search", 0.2, 79.0), ("exact", 0.4, None))
    ],
}


def words(figure: Figure) -> set[str]:
    return {text.get_text() for text in figure.findobj(Text) if isinstance(text, Text)}


def test_every_score_has_a_panel_the_best_first_with_its_tau() -> None:
    figure = rank_figure(parse(RankStudyFile, RANKS, source="the test"))
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == [
        "supernet, minus loss\ntau 0.75",
        "MACs\ntau 0.50 (0.10 to 0.80), in thirds 0.25",
        "my score\ntau not defined",
    ]


def test_a_net_is_a_dot_at_its_score_and_mean_accuracy_once_all_its_seeds_are_trained() -> None:
    figure = rank_figure(parse(RankStudyFile, RANKS, source="the test"))
    dots = {
        (float(x), float(y))
        for line in figure.axes[1].get_lines()
        for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)  # type: ignore[arg-type]
    }
    assert dots == {(1e6 * number, 71.0 + number) for number in range(1, 7)}


def test_a_method_is_drawn_at_its_latency_with_its_interval_and_every_run() -> None:
    figure = study_figure(parse(StudyFile, STUDY, source="the test"))
    assert {"exact solver", "random search", "0.2 ms", "0.4 ms"} <= words(figure)
    drawn = [tuple(map(float, line.get_ydata())) for line in figure.axes[0].get_lines()]  # type: ignore[union-attr]
    for expected in ((80.0,), (79.0, 81.0), (79.5, 80.5), (79.0,)):
        assert expected in drawn
    at = next(line for line in figure.axes[0].get_lines() if tuple(line.get_ydata()) == (80.0,))  # type: ignore[arg-type]
    assert float(at.get_xdata()[0]) == pytest.approx(0.94 * 0.2)  # type: ignore[index]


def test_figures_are_written_beside_the_records_and_only_of_what_there_is(tmp_path: Path) -> None:
    assert write_study_figures(tmp_path) == []
    (tmp_path / "rank_study.json").write_text(json.dumps(RANKS))
    (tmp_path / "study.json").write_text(json.dumps(STUDY | {"results": [result("exact", 0.2, None)]}))
    assert [path.name for path in write_study_figures(tmp_path)] == ["rank_study.svg"]
    (tmp_path / "rank_study.json").write_text(json.dumps(RANKS | {"scorers": []}))
    (tmp_path / "study.json").write_text(json.dumps(STUDY))
    assert [path.name for path in write_study_figures(tmp_path)] == ["study.svg"]
    assert (tmp_path / "study.svg").read_text().startswith("<svg")


def test_a_record_of_another_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rank_study.json").write_text(json.dumps(RANKS | {"schema_version": 2}))
    with pytest.raises(UserError, match="schema_version"):
        write_study_figures(tmp_path)
