"""The search, step by step: predicted latency, held-out accuracy, and which stage each action touched."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from analysis.figure_style import WIDE_PX, action_colour, canvas, colour, house_style, panels
from analysis.files import StepRecord
from analysis.wording import action_kind_text, budget_text

_MARKERS = {"skip_path": "o", "drop_first_3d": "D", "narrow_stage": "v", "change_candidate": "P"}


def trajectory_figure(
    trajectory: Sequence[StepRecord], *, budgets_ms: Sequence[float], width_px: int = WIDE_PX
) -> Figure:
    """Three panels over the steps: latency (ms, with the budgets), accuracy (percent), stage of the action.

    Raises `ValueError` if the trajectory has no step.
    """
    if not trajectory:
        raise ValueError("the trajectory has no step")
    with house_style():
        figure = canvas(width_px, 560)
        margins_px = (50, 74 if width_px > 600 else 56, 74, 46)
        latency, accuracy, stages = panels(
            figure, rows=(1.35, 1.15, 0.9), margins_px=margins_px, gap_px=44, share_x=True
        )
        steps = [step.step for step in trajectory]
        latency.plot(steps, [step.latency_ms for step in trajectory], color=colour("grey"), linewidth=1.2, zorder=2)
        scored = [step for step in trajectory if step.accuracy_percent is not None]
        accuracy.plot(
            [s.step for s in scored],
            [s.accuracy_percent for s in scored if s.accuracy_percent is not None],
            color=colour("grey"),
            linewidth=1.2,
            zorder=2,
        )
        _marks(latency, accuracy, stages, trajectory)
        _budgets(latency, trajectory, budgets_ms)
        _stage_axis(stages, trajectory)
        latency.set_title("Predicted latency, ms")
        latency.set_ylim(0, max(step.latency_ms for step in trajectory) * 1.06)
        accuracy.set_title("Held-out accuracy of the supernet's subnet, %")
        accuracy.yaxis.set_major_locator(MaxNLocator(4))
        for axes in (latency, accuracy):
            axes.tick_params(axis="x", labelbottom=False, length=0)
        _legend(figure, trajectory, width_px=width_px)
    return figure


def action_stage(before: StepRecord, after: StepRecord) -> int | None:
    """The stage (from 1) that a step changed: the action's own, or the first that differs; None if none does."""
    if after.action is not None and after.action.stage is not None:
        return after.action.stage
    old, new = before.architecture.get("stages", []), after.architecture.get("stages", [])
    return next((i for i, (a, b) in enumerate(zip(old, new, strict=False), start=1) if a != b), None)


def _marks(latency: Axes, accuracy: Axes, stages: Axes, trajectory: Sequence[StepRecord]) -> None:
    size = 7.5 if len(trajectory) <= 40 else 5.5 if len(trajectory) <= 90 else 4
    for before, step in zip([None, *trajectory], trajectory, strict=False):
        if step.action is None or before is None:
            hue, marker, stage = colour("grey"), "s", None
        else:
            hue, marker = colour(action_colour(step.action.kind)), _MARKERS.get(step.action.kind, "^")
            stage = action_stage(before, step)
        for axes, value in ((latency, step.latency_ms), (accuracy, step.accuracy_percent), (stages, stage)):
            if value is not None:
                axes.plot(step.step, value, marker=marker, markersize=size, color=hue, markeredgewidth=0, zorder=3)


def _budgets(axes: Axes, trajectory: Sequence[StepRecord], budgets_ms: Sequence[float]) -> None:
    """A line a budget, named at the right, and a ring around the first step below it."""
    for budget_ms in budgets_ms:
        axes.axhline(budget_ms, color=colour("muted"), linewidth=1, dashes=(3, 3), zorder=1)
        axes.annotate(
            f"{budget_text(budget_ms)} ms",
            (1, budget_ms),
            xycoords=("axes fraction", "data"),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            color=colour("muted"),
            fontsize=11,
        )
        first = next((step for step in trajectory if step.latency_ms <= budget_ms), None)
        if first is not None:
            axes.plot(
                first.step,
                first.latency_ms,
                marker="o",
                markersize=14,
                markerfacecolor="none",
                markeredgecolor=colour("blue"),
                markeredgewidth=1.8,
                zorder=4,
            )


def _stage_axis(axes: Axes, trajectory: Sequence[StepRecord]) -> None:
    count = len(trajectory[0].architecture.get("stages", [])) or 1
    axes.set_ylim(count + 0.6, 0.4)
    axes.set_yticks(range(1, count + 1), [str(stage) for stage in range(1, count + 1)])
    axes.set_title("Stage that the action made smaller")
    axes.set_xlabel("step", labelpad=4)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.tick_params(axis="x", length=0)


def _legend(figure: Figure, trajectory: Sequence[StepRecord], *, width_px: int) -> None:
    kinds = list(dict.fromkeys(step.action.kind for step in trajectory if step.action is not None))
    handles = [
        Line2D(
            [],
            [],
            linestyle="",
            marker=_MARKERS.get(kind, "^"),
            color=colour(action_colour(kind)),
            markersize=7,
            markeredgewidth=0,
            label=action_kind_text(kind),
        )
        for kind in sorted(kinds, key=lambda kind: (list(_MARKERS).index(kind) if kind in _MARKERS else 9, kind))
    ]
    ring = Line2D(
        [],
        [],
        linestyle="",
        marker="o",
        markerfacecolor="none",
        markeredgecolor=colour("blue"),
        markersize=10,
        markeredgewidth=1.8,
        label="first below a budget",
    )
    figure.legend(
        handles=[*handles, ring],
        loc="upper left",
        bbox_to_anchor=(40 / width_px, 1),
        ncols=4 if width_px > 600 else 2,
        handletextpad=0.2,
        columnspacing=1.2,
        borderaxespad=0.1,
        borderpad=0,
    )
