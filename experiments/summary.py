"""The last words of a run on the terminal: the delivered models, the verdict, where the report is."""

from __future__ import annotations

from pathlib import Path

from analysis.files import EvaluationFile
from analysis.summary import summary_table
from analysis.verdict import comparisons, overall
from experiments.console import Screen
from supernet.schema import load


def print_summary(path: Path, screen: Screen) -> None:
    """Print a row a model, whether the search beat each baseline, and the report's path."""
    rows = [
        [
            row.name,
            f"{row.budget_ms:g}",
            "" if row.predicted_ms is None else f"{row.predicted_ms:.3f}",
            f"{row.measured_ms:.3f}",
            "yes" if row.within_budget else "NO",
            f"{row.accuracy_percent:.2f}",
            f"{row.parameters / 1e6:.2f}",
            f"{row.macs / 1e6:.1f}",
        ]
        for row in summary_table(path)
    ]
    header = ["model", "budget", "pred.", "meas.", "within", "test %", "params", "MACs"]
    screen.table("Delivered models (latencies in ms, parameters and MACs in millions)", header, rows)
    evaluation = load(EvaluationFile, path / "evaluation.json")
    found = comparisons(evaluation.models, test_images=evaluation.test_images)
    for baseline in dict.fromkeys(comparison.baseline for comparison in found):
        screen.line(overall([comparison for comparison in found if comparison.baseline == baseline]))
    screen.line(f"Report: {(path / 'report.html').resolve()}")
