"""A study's figures: every score against the accuracy of trained nets, and what methods reached at which latency."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from analysis.figure_style import (
    WIDE_PX,
    canvas,
    colour,
    house_style,
    method_colour,
    method_marker,
    panels,
    save_figure,
)
from analysis.study_files import MethodFigures, RankStudyFile, ScoredNet, ScorerFigures, StudyFile
from analysis.wording import budget_text, method_text
from supernet.schema import load

COLUMNS = 3
PANEL_PX = 230
LEGEND_COLUMNS, LEGEND_ROW_PX = 5, 24
GROUP_HUES = ("sky", "blue", "ink")  # from the fastest third of the nets to the slowest

_SCORERS = {
    "supernet_accuracy": "supernet, accuracy",
    "supernet_accuracy_no_refit": "supernet, statistics not re-fitted",
    "supernet_loss": "supernet, minus loss",
    "additive": "sum of single choices",
    "alpha_log_probability": "alphas, log-probability",
    "alpha_importance": "alphas, published importance",
    "removal_importance": "importance by removal",
    "taylor_importance": "importance by gradient",
    "naswot": "NASWOT, untrained",
    "synflow": "SynFlow, untrained",
    "table_ms": "table, ms",
    "macs": "MACs",
    "parameters": "parameters",
}


def scorer_text(scorer: str) -> str:
    """A score's name for people; that of an ablation's variant is "variant/score"."""
    variant, _, score = scorer.rpartition("/")
    text = _SCORERS.get(score, score.replace("_", " "))
    return f"{variant}: {text}" if variant else text


def rank_figure(study: RankStudyFile, *, width_px: int = WIDE_PX) -> Figure:
    """One small panel a score: the score across, test accuracy in percent up, a dot a net, tau in its title.

    The colour is the third of the nets by predicted latency. Variants of an ablation are left to the table. Raises
    `ValueError` if no score has trained nets.
    """
    own = [scorer for scorer in study.scorers if "/" not in scorer.scorer]
    if not own:
        raise ValueError("the study has no trained and scored nets yet")
    ranked = sorted(own, key=lambda scorer: -(scorer.kendall_tau if scorer.kendall_tau is not None else -2))
    rows = math.ceil(len(ranked) / COLUMNS)
    nets = sorted((net for net in study.architectures if net.scores), key=lambda net: net.table_ms)
    dots = [(net, percent) for net in nets if (percent := study.accuracy_percent(net)) is not None]
    with house_style():
        figure = canvas(width_px, 60 + PANEL_PX * rows)
        axes = panels(figure, rows=(1,) * rows, columns=COLUMNS, margins_px=(50, 16, 46, 34), gap_px=62)
        for at, scorer in enumerate(ranked):
            _panel(axes[at], scorer, dots)
        for empty in axes[len(ranked) :]:
            empty.set_axis_off()
        for at in range(0, len(ranked), COLUMNS):
            axes[at].set_ylabel("test accuracy, %")
    return figure


def _panel(axes: Axes, scorer: ScorerFigures, dots: list[tuple[ScoredNet, float]]) -> None:
    for part, hue in zip(np.array_split(np.arange(len(dots)), len(GROUP_HUES)), GROUP_HUES, strict=True):
        axes.plot(
            [dots[at][0].scores[scorer.scorer] for at in part],
            [dots[at][1] for at in part],
            marker="o",
            markersize=6,
            color=colour(hue),
            markeredgecolor=colour("paper"),
            markeredgewidth=0.6,
            linestyle="none",
        )
    axes.set_title(f"{scorer_text(scorer.scorer)}\n{_tau_text(scorer)}", fontsize=11.5, pad=6)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))


def _tau_text(scorer: ScorerFigures) -> str:
    if scorer.kendall_tau is None:
        return "tau not defined"
    text = f"tau {scorer.kendall_tau:.2f}"
    if scorer.tau_interval_95 is not None:
        text += " ({:.2f} to {:.2f})".format(*scorer.tau_interval_95)
    return text if scorer.tercile_tau is None else f"{text}, in thirds {scorer.tercile_tau:.2f}"


def _short(value: float) -> str:
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:g} {unit}"
    return f"{value:.4g}"


def study_figure(study: StudyFile, *, width_px: int = WIDE_PX) -> Figure:
    """Accuracy in percent (every run small, the mean with its 95 % interval) against the nets' mean measured ms.

    Milliseconds are those at the speed that the machine had when the table was measured, as the budgets are. Methods
    of a budget are drawn at their own latencies; where nothing was measured, at the budget. Raises `ValueError` if
    nothing is trained.
    """
    shown = [result for result in study.results if result.mean is not None]
    if not shown:
        raise ValueError("the study has no trained nets yet")
    methods = list(dict.fromkeys(result.method for result in shown))
    with house_style():
        legend_px = LEGEND_ROW_PX * math.ceil(len(methods) / LEGEND_COLUMNS)
        figure = canvas(width_px, 460 + legend_px)
        (axes,) = panels(figure, margins_px=(50, 24, 74, 50 + legend_px))
        for budget_ms in study.budgets_ms:
            axes.axvline(budget_ms, color=colour("muted"), linewidth=1, dashes=(3, 3), zorder=1)
            axes.annotate(
                f"{budget_text(budget_ms)} ms",
                (budget_ms, 1),
                xycoords=("data", "axes fraction"),
                xytext=(0, 5),
                textcoords="offset points",
                ha="center",
                color=colour("muted"),
                fontsize=11,
            )
        for result in shown:
            named = result is next(r for r in shown if r.method == result.method)
            _point(axes, result, methods, speed=study.speed or 1.0, named=named)
        runs = [percent for result in shown for percent in result.accuracy_percent]
        room = max(0.5, 0.15 * (max(runs) - min(runs)))  # intervals of two runs are wider than any picture
        axes.set_ylim(min(runs) - room, max(runs) + room)
        axes.set_xlabel(
            "measured latency at the table's speed, ms (mean of the medians of a method's nets)", labelpad=8
        )
        axes.set_ylabel("test accuracy, %")
        axes.yaxis.set_major_locator(MaxNLocator(6))
        figure.legend(  # below the axes, where it hides nothing
            loc="lower left", bbox_to_anchor=(38 / width_px, 0), ncols=LEGEND_COLUMNS, fontsize=11.5
        )
        axes.set_title("Test accuracy, mean and 95 % interval", pad=30)
    return figure


def _point(axes: Axes, result: MethodFigures, methods: list[str], *, speed: float, named: bool) -> None:
    assert result.mean is not None
    ms = float(np.mean(result.measured_ms)) / speed if result.measured_ms else result.budget_ms
    hue = colour(method_colour(result.method, methods))
    marker = method_marker(result.method, methods)
    runs = result.accuracy_percent
    axes.plot([ms] * len(runs), runs, marker=marker, markersize=4, color=hue, alpha=0.35, linestyle="none", zorder=2)
    if result.interval_95 is not None:
        axes.plot([ms, ms], result.interval_95, color=hue, linewidth=1.6, zorder=3)
    label = method_text(result.method) if named else None
    axes.plot(ms, result.mean, marker=marker, markersize=9, color=hue, linestyle="none", zorder=4, label=label)


def write_study_figures(folder: Path) -> list[Path]:
    """Draw the figures of the records in a study's folder beside them; what has nothing to show yet is left out."""
    written = []
    if (folder / "rank_study.json").exists():
        ranks = load(RankStudyFile, folder / "rank_study.json")
        if ranks.scorers:
            written.append(folder / "rank_study.svg")
            save_figure(rank_figure(ranks), written[-1])
    if (folder / "study.json").exists():
        study = load(StudyFile, folder / "study.json")
        if any(result.mean is not None for result in study.results):
            written.append(folder / "study.svg")
            save_figure(study_figure(study), written[-1])
    return written
