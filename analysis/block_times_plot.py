"""Where the milliseconds of models go, block by block and runtime by runtime, and how the models rank on each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from analysis.figure_style import WIDE_PX, block_colours, canvas, colour, house_style, panels
from analysis.files import FileRecord
from analysis.wording import block_text, ms_text
from supernet.schema import parse

_BAR_PX, _GROUP_GAP_PX, _LEGEND_PX = 26, 0.9, 64
_ENDS = {"stem": "grey", "downsampling": "purple", "head": "ink"}
_LINES = ("blue", "vermillion", "green", "orange", "purple", "sky", "grey", "ink")


class PartTime(FileRecord):
    """A part of a model and what it adds to the latency of what comes before it, in ms."""

    part: str
    stage: int
    type: str
    ms: float


class ModelTimes(FileRecord):
    """The parts of a model on one runtime."""

    model: str
    runtime: str
    whole_ms: float
    parts: tuple[PartTime, ...]


class WholeTime(FileRecord):
    """A whole model on one runtime."""

    model: str
    runtime: str
    ms: float


class BlockTimesFile(FileRecord):
    """`block-times-*.json`."""

    schema_version: Literal[1]
    models: tuple[ModelTimes, ...]
    ranking: tuple[WholeTime, ...]


def block_times_figure(data: Mapping[str, Any], *, width_px: int = WIDE_PX) -> Figure:
    """Left a bar a model and runtime, a piece a block; right the models in the order of their latency on each runtime.

    `data` are those of a record of `experiments.benchmarks.block_times`. A piece that came out below zero, within the
    noise of two nets, is left out. Raises `UserError` for data that are no such record.
    """
    record = parse(BlockTimesFile, dict(data), source="block times")
    models = list(dict.fromkeys(times.model for times in record.models))
    runtimes = list(dict.fromkeys(times.runtime for times in record.models))
    height_px = round(_BAR_PX * len(models) * (len(runtimes) + _GROUP_GAP_PX)) + 150
    with house_style():
        figure = canvas(width_px, height_px)
        margins_px = (150, 24, 50, _LEGEND_PX + 46)
        left, right = panels(figure, columns=2, margins_px=margins_px, gap_px=150)
        _bars(left, record.models, models, runtimes)
        _ranks(right, record.ranking, runtimes)
        hues = _hues(record.models)
        figure.legend(
            handles=[Patch(facecolor=colour(hue), label=block_text(name)) for name, hue in hues.items()],
            loc="lower left",
            bbox_to_anchor=(12 / width_px, 4 / height_px),
            ncols=math.ceil(len(hues) / 2),
            handlelength=1.0,
            columnspacing=1.4,
        )
    return figure


def _hues(times: Sequence[ModelTimes]) -> dict[str, str]:
    """The palette name of stem, downsampling, head and every type of block."""
    types = dict.fromkeys(part.type for one in times for part in one.parts if part.part == "block")
    return _ENDS | block_colours(list(types))


def _bars(axes: Axes, times: Sequence[ModelTimes], models: Sequence[str], runtimes: Sequence[str]) -> None:
    hues = _hues(times)
    labels: list[tuple[float, str]] = []
    for group, model in enumerate(models):
        top = group * (len(runtimes) + _GROUP_GAP_PX)
        axes.text(0, top - 0.7, model, fontsize=13, va="center")
        for row, name in enumerate(runtimes):
            (found,) = (one for one in times if (one.model, one.runtime) == (model, name))
            place, start = top + row, 0.0
            for part in found.parts:
                hue, ms = hues[part.type if part.part == "block" else part.part], max(0.0, part.ms)
                axes.barh(place, ms, left=start, height=0.8, color=colour(hue), edgecolor=colour("paper"))
                start += ms
            axes.text(start, place, f"  {ms_text(found.whole_ms)}", va="center", fontsize=12)
            labels.append((place, name))
    axes.set_yticks([place for place, _ in labels], [name for _, name in labels])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.15 * max(one.whole_ms for one in times))
    axes.set_xlabel("milliseconds of one inference")
    axes.grid(visible=True, axis="x")
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.set_title("block by block", pad=22)


def _ranks(axes: Axes, ranking: Sequence[WholeTime], runtimes: Sequence[str]) -> None:
    """A line a model through its places; the fastest is on top."""
    places: dict[str, list[tuple[int, float]]] = {}
    for name in runtimes:
        ordered = sorted((one for one in ranking if one.runtime == name), key=lambda one: one.ms)
        for place, one in enumerate(ordered, start=1):
            places.setdefault(one.model, []).append((place, one.ms))
    for number, (model, found) in enumerate(places.items()):
        hue = colour(_LINES[number % len(_LINES)])
        ranks = [place for place, _ in found]
        axes.plot(range(len(found)), ranks, color=hue, linewidth=2, marker="o", markersize=7)
        for column, (place, ms) in enumerate(found):
            axes.annotate(
                ms_text(ms), (column, place), (0, 9), textcoords="offset points", ha="center", fontsize=11, color=hue
            )
        axes.annotate(
            model, (0, ranks[0]), (-14, 0), textcoords="offset points", ha="right", va="center", fontsize=12, color=hue
        )
    axes.set_xticks(range(len(runtimes)), runtimes)
    axes.set_xlim(-0.25, len(runtimes) - 0.75)
    axes.set_ylim(len(places) + 0.5, 0.3)
    axes.set_yticks([])
    axes.grid(visible=False)
    axes.spines["left"].set_visible(False)
    axes.set_title("fastest first, in milliseconds", pad=22)
