"""Predicted against measured latency of whole nets: how far the table can be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from analysis.figure_style import WIDE_PX, canvas, colour, house_style, method_colour, method_marker, panels
from analysis.files import LatencyAuditFile, LatencyPair, ModelRecord
from analysis.wording import points_text


def latency_audit_figure(
    audit: LatencyAuditFile, *, models: Sequence[ModelRecord] = (), width_px: int = WIDE_PX
) -> Figure:
    """Two panels: measured against predicted ms with the line of equality, and the error in percent.

    Filled grey points are the nets that judge the table's correction, corrected by what was fitted on the others; open
    ones are predictions of the table alone (filled where there is no correction). Bars go from p10 to p90; coloured
    points are the delivered models, if given.
    """
    wide = width_px > 600
    with house_style():
        figure = canvas(width_px, 390 if wide else 640)
        scatter, errors = panels(
            figure,
            rows=(1,) if wide else (1, 1),
            columns=2 if wide else 1,
            margins_px=(50, 14, 36, 46),
            gap_px=74,
        )
        judged = corrected_pairs(audit)
        _scatter(scatter, audit.pairs, judged)
        _errors(errors, audit.pairs, judged)
        _models(scatter, errors, models)
        for axes in (scatter, errors):
            axes.set_xlabel("predicted, ms", labelpad=4)
            axes.xaxis.set_major_locator(MaxNLocator(5))
        scatter.set_title("Measured, ms")
        errors.set_title("Error of the prediction, % (above 0: predicted too high)")
    return figure


def error_percent(pair: LatencyPair | ModelRecord) -> float:
    """How much too high the prediction was, in percent of the measured ms."""
    return 100 * (pair.predicted_ms / pair.measured_ms - 1)


def corrected_pairs(audit: LatencyAuditFile) -> list[LatencyPair]:
    """The nets that the correction was not fitted on, with corrected predictions; empty without a correction."""
    if audit.held_out is None:
        return []
    correction = audit.held_out.correction
    return [
        pair.model_copy(update={"predicted_ms": correction.of(pair)}) for pair in audit.pairs[audit.held_out.fitted :]
    ]


def _scatter(axes: Axes, pairs: Sequence[LatencyPair], judged: Sequence[LatencyPair]) -> None:
    values = [value for pair in [*pairs, *judged] for value in (pair.predicted_ms, pair.measured_ms)]
    low, high = min(values) * 0.94, max(values) * 1.04
    line = np.array([low, high])
    axes.fill_between(line, line * 0.95, line * 1.05, color=colour("faint"), linewidth=0, zorder=0)
    axes.plot(line, line, color=colour("muted"), linewidth=1, zorder=1)
    axes.annotate(
        "predicted = measured, band \N{PLUS-MINUS SIGN}5 %",
        (0.03, 0.97),
        xycoords="axes fraction",
        va="top",
        color=colour("muted"),
        fontsize=11,
    )
    for pair in pairs if judged else ():
        axes.plot(pair.predicted_ms, pair.measured_ms, **_dot(filled=False))
    for pair in judged or pairs:
        if pair.measured_p10_ms is not None and pair.measured_p90_ms is not None:
            axes.vlines(
                pair.predicted_ms, pair.measured_p10_ms, pair.measured_p90_ms, color=colour("grey"), linewidth=1.2
            )
        axes.plot(pair.predicted_ms, pair.measured_ms, **_dot(filled=True))
    axes.set_xlim(low, high)
    axes.set_ylim(low, high)
    axes.yaxis.set_major_locator(MaxNLocator(5))


def _errors(axes: Axes, pairs: Sequence[LatencyPair], judged: Sequence[LatencyPair]) -> None:
    errors = [error_percent(pair) for pair in pairs]
    reach = max(6.0, 1.15 * max(abs(error) for error in errors))
    axes.axhspan(-5, 5, color=colour("faint"), linewidth=0, zorder=0)
    axes.axhline(0, color=colour("muted"), linewidth=1, zorder=1)
    for pair, error in zip(pairs, errors, strict=True):
        axes.plot(pair.predicted_ms, error, **_dot(filled=not judged))
    for pair in judged:
        axes.plot(pair.predicted_ms, error_percent(pair), **_dot(filled=True))
    axes.set_ylim(-reach, reach)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(FuncFormatter(_signed))


def _signed(value: float, _: int | None) -> str:
    return points_text(value).removesuffix(".0") if value else "0"


def _models(scatter: Axes, errors: Axes, models: Sequence[ModelRecord]) -> None:
    methods = [model.method for model in models]
    for model in models:
        style: dict[str, Any] = {
            "marker": method_marker(model.method, methods),
            "color": colour(method_colour(model.method, methods)),
            "markersize": 7,
            "markeredgecolor": colour("paper"),
            "markeredgewidth": 1,
            "zorder": 4,
        }
        scatter.plot(model.predicted_ms, model.measured_ms, **style)
        errors.plot(model.predicted_ms, error_percent(model), **style)


def _dot(*, filled: bool) -> dict[str, Any]:
    return {
        "marker": "o",
        "linestyle": "",
        "markersize": 6.5,
        "markerfacecolor": colour("grey") if filled else "none",
        "markeredgecolor": colour("paper") if filled else colour("grey"),
        "markeredgewidth": 0.8,
        "zorder": 3 if filled else 2,
    }
