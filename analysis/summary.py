"""The summary of a run: one row a model, for the terminal and for the first table of the report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from analysis.files import EvaluationFile, ModelRecord
from analysis.run_folder import read_run
from analysis.verdict import wilson
from analysis.wording import budget_text, count_text, ms_text, variant_text
from supernet.schema import Record

SUMMARY_COLUMNS = (
    "model",
    "method",
    "budget ms",
    "predicted ms",
    "measured ms (p10\N{EN DASH}p90)",
    "accuracy %",
    "parameters",
    "MACs",
    "ONNX difference",
)


class SummaryRow(Record):
    """One delivered model, in numbers. Accuracies are percent of the test images, with a 95 % Wilson interval."""

    name: str
    method: str
    budget_ms: float
    predicted_ms: float
    measured_ms: float
    measured_p10_ms: float | None
    measured_p90_ms: float | None
    within_budget: bool
    accuracy_percent: float
    accuracy_low_percent: float
    accuracy_high_percent: float
    parameters: int
    macs: int
    onnx_max_difference: float | None
    files: tuple[str, ...]

    @property
    def cells(self) -> tuple[str, ...]:
        """The row as text, in the order of `SUMMARY_COLUMNS`."""
        missing = "\N{EN DASH}"
        return (
            self.name,
            self.method,
            budget_text(self.budget_ms),
            ms_text(self.predicted_ms),
            self.measured_text,
            self.accuracy_text,
            count_text(self.parameters),
            count_text(self.macs),
            missing if self.onnx_max_difference is None else f"{self.onnx_max_difference:.0e}",
        )

    @property
    def measured_text(self) -> str:
        """The measured median with p10 and p90, and a word if it is above the budget."""
        text = ms_text(self.measured_ms)
        if self.measured_p10_ms is not None and self.measured_p90_ms is not None:
            text += f" ({ms_text(self.measured_p10_ms)}\N{EN DASH}{ms_text(self.measured_p90_ms)})"
        return text if self.within_budget else f"{text} over"

    @property
    def accuracy_text(self) -> str:
        """The accuracy with half the width of its interval, such as '88.0 +- 0.6' with a plus-minus sign."""
        half = (self.accuracy_high_percent - self.accuracy_low_percent) / 2
        return f"{self.accuracy_percent:.1f} \N{PLUS-MINUS SIGN} {half:.1f}"


def summary_table(directory: Path) -> tuple[SummaryRow, ...]:
    """One row a model of the folder's `evaluation.json`, by budget and then search first; empty if it is missing.

    Raises `UserError` for a folder or file that cannot be read.
    """
    evaluation = read_run(Path(directory)).evaluation
    return () if evaluation is None else summary_rows(evaluation, directory)


def summary_rows(evaluation: EvaluationFile, directory: Path) -> tuple[SummaryRow, ...]:
    """One row a model, by budget and then search first; `files` are those that the folder holds."""
    return tuple(_row(model, evaluation, Path(directory)) for model in ordered(evaluation.models))


def ordered(models: Sequence[ModelRecord]) -> list[ModelRecord]:
    """Models by budget; at one budget search first, random last."""
    return sorted(models, key=lambda m: (m.budget_ms, m.method != "search", m.method == "random", m.method, m.name))


def _row(model: ModelRecord, evaluation: EvaluationFile, directory: Path) -> SummaryRow:
    low, high = wilson(model.correct, evaluation.test_images)
    files = (model.architecture, model.weights, model.onnx)
    return SummaryRow(
        name=model.name,
        method=variant_text(model, evaluation.models),
        budget_ms=model.budget_ms,
        predicted_ms=model.predicted_ms,
        measured_ms=model.measured_ms,
        measured_p10_ms=model.measured_p10_ms,
        measured_p90_ms=model.measured_p90_ms,
        within_budget=model.within_budget,
        accuracy_percent=model.accuracy_percent,
        accuracy_low_percent=low,
        accuracy_high_percent=high,
        parameters=model.parameters,
        macs=model.macs,
        onnx_max_difference=model.onnx_max_difference,
        files=tuple(file for file in files if file is not None and (directory / file).is_file()),
    )
