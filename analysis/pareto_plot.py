"""The Pareto front: test accuracy against measured milliseconds, every method, budgets as vertical lines."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from analysis.figure_style import (
    WIDE_PX,
    canvas,
    colour,
    house_style,
    method_colour,
    method_marker,
    panels,
    spread,
)
from analysis.files import EvaluationFile, ModelRecord
from analysis.verdict import wilson
from analysis.wording import budget_text, variant_text


def pareto_front(models: Sequence[ModelRecord]) -> list[ModelRecord]:
    """The models that no other one beats in both accuracy and measured ms, from the fastest to the slowest."""
    front: list[ModelRecord] = []
    for model in sorted(models, key=lambda m: (m.measured_ms, -m.accuracy_percent)):
        if not front or model.accuracy_percent > front[-1].accuracy_percent:
            front.append(model)
    return front


def pareto_figure(evaluation: EvaluationFile, *, width_px: int = WIDE_PX) -> Figure:
    """Accuracy (percent, 95 % Wilson interval) against measured ms (median, p10 to p90).

    One colour, marker and thin line a method; filled markers are on the front of all methods, open ones are not.
    Raises `ValueError` if the evaluation holds no model.
    """
    if not evaluation.models:
        raise ValueError("the evaluation holds no model")
    wide = width_px > 600
    with house_style():
        figure = canvas(width_px, 480 if wide else 400)
        right_px = 40 + 8.2 * max(len(variant) for variant in _variants(evaluation)) if wide else 16
        (axes,) = panels(figure, margins_px=(50, right_px, 62 if wide else 88, 50))
        _limits(axes, evaluation)
        _budgets(axes, evaluation)
        _methods(axes, evaluation)
        _labels(axes, evaluation, beside=wide)
        axes.set_title("Test accuracy, %", pad=30)
        axes.set_xlabel("measured latency, ms (median of the whole exported net)", labelpad=8)
    return figure


def _limits(axes: Axes, evaluation: EvaluationFile) -> None:
    models = evaluation.models
    xs = [m.budget_ms for m in models] + [m.measured_p10_ms or m.measured_ms for m in models]
    xs += [m.measured_p90_ms or m.measured_ms for m in models]
    intervals = [wilson(m.correct, evaluation.test_images) for m in models]
    low, high = min(i.low for i in intervals), max(i.high for i in intervals)
    pad = max(0.08 * (high - low), 0.2)
    axes.set_ylim(max(0, low - pad), min(100 + 0.2 * pad, high + pad))
    if max(xs) > 5 * min(xs):
        axes.set_xscale("log")
        axes.set_xlim(min(xs) / 1.12, max(xs) * 1.08)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticks(sorted({m.budget_ms for m in models}))
    else:
        pad = 0.07 * (max(xs) - min(xs)) or 0.1 * max(xs)
        axes.set_xlim(max(0, min(xs) - pad), max(xs) + pad)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))


def _budgets(axes: Axes, evaluation: EvaluationFile) -> None:
    budgets_ms = sorted({model.budget_ms for model in evaluation.models})
    pixels = [float(axes.transData.transform((budget_ms, 0))[0]) for budget_ms in budgets_ms]
    for budget_ms, before, after in zip(budgets_ms, pixels, spread(pixels, gap=62), strict=True):
        axes.axvline(budget_ms, color=colour("muted"), linewidth=1, dashes=(3, 3), zorder=1)
        axes.annotate(
            f"\N{LESS-THAN OR EQUAL TO} {budget_text(budget_ms)} ms",
            (budget_ms, 1),
            xycoords=("data", "axes fraction"),
            xytext=(after - before, 5),
            textcoords="offset points",
            ha="center",
            va="bottom",
            color=colour("muted"),
            fontsize=11,
        )


def _methods(axes: Axes, evaluation: EvaluationFile) -> None:
    methods = [model.method for model in evaluation.models]
    front = pareto_front(evaluation.models)
    for models in _variants(evaluation).values():
        hue = colour(method_colour(models[0].method, methods))
        axes.plot(
            [m.measured_ms for m in models],
            [m.accuracy_percent for m in models],
            color=hue,
            linewidth=1.4,
            alpha=0.55,
            dashes=(None, None) if models[0].start == "scratch" else (4, 2),
            zorder=2,
        )
        for model in models:
            _errors(axes, model, evaluation.test_images, hue)
            axes.plot(
                model.measured_ms,
                model.accuracy_percent,
                marker=method_marker(model.method, methods),
                markersize=9 if model.method == "search" else 7.5,
                markerfacecolor=hue if model in front else colour("paper"),
                markeredgecolor=hue,
                markeredgewidth=1.8,
                zorder=4,
            )


def _errors(axes: Axes, model: ModelRecord, test_images: int, hue: str) -> None:
    low, high = wilson(model.correct, test_images)
    axes.vlines(model.measured_ms, low, high, color=hue, linewidth=1.4, zorder=3)
    if model.measured_p10_ms is not None and model.measured_p90_ms is not None:
        axes.hlines(
            model.accuracy_percent, model.measured_p10_ms, model.measured_p90_ms, color=hue, linewidth=1.4, zorder=3
        )


def _labels(axes: Axes, evaluation: EvaluationFile, *, beside: bool) -> None:
    """Name each line at its right end, or, on a narrow figure, in a row above."""
    methods = [model.method for model in evaluation.models]
    variants = _variants(evaluation)
    hues = {v: colour(method_colour(models[0].method, methods)) for v, models in variants.items()}
    if not beside:
        for row, variant in enumerate(variants):
            x, y = 0.34 * (row % 3), 1.2 + 0.06 * (row // 3)
            axes.text(x, y, f"\N{BLACK CIRCLE} {variant}", color=hues[variant], transform=axes.transAxes)
        return
    ends = [models[-1] for models in variants.values()]
    pixels = axes.transData.transform([(m.measured_ms, m.accuracy_percent) for m in ends])
    heights = spread([float(y) for y in pixels[:, 1]], gap=20)
    right = float(axes.transAxes.transform((1, 0))[0]) + 14
    for variant, end, (x, y), height in zip(variants, ends, np.asarray(pixels), heights, strict=True):
        axes.annotate(
            variant,
            (end.measured_ms, end.accuracy_percent),
            xytext=(right - x, height - y),
            textcoords="offset points",
            va="center",
            color=hues[variant],
            fontsize=13,
            fontweight="bold",
            arrowprops={"arrowstyle": "-", "color": hues[variant], "alpha": 0.35, "shrinkA": 2, "shrinkB": 10},
        )


def _variants(evaluation: EvaluationFile) -> dict[str, list[ModelRecord]]:
    """Models by method (and start), search first, each by rising measured ms."""
    groups: dict[str, list[ModelRecord]] = {}
    for model in sorted(evaluation.models, key=lambda m: (m.method != "search", m.method, m.start, m.measured_ms)):
        groups.setdefault(variant_text(model, evaluation.models), []).append(model)
    return groups
