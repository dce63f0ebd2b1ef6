"""The importance of every MetaPath: candidate probabilities and scores a position, and the sum of each stage."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.figure_style import WIDE_PX, block_colours, canvas, colour, house_style, panels
from analysis.files import ImportanceFile, MetaPathImportance
from analysis.wording import block_text

_STAGE_GAP = 0.7  # columns left free between two stages
_FURTHER_PX = 150  # a panel of another kind of importance
_TITLES = {
    "alpha": "Alpha: {}ratio",
    "removal": "Removal: rise of the loss, {}nats",
    "taylor": "Taylor: squared gradient, {}nats²",
}
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def importance_figure(
    importance: ImportanceFile, *, further: Sequence[ImportanceFile] = (), width_px: int = WIDE_PX
) -> Figure:
    """A stacked bar of probabilities a position, its score above it; below, each stage's sum of scores.

    Under the same positions a panel for each further kind of importance: its scores as bars, its stage sums below.
    """
    with house_style():
        added_px = _FURTHER_PX * len(further)
        figure = canvas(width_px, 400 + added_px)
        gap_px, top_px, bottom_px = 58, 74, 44
        inner_px = 400 - top_px - bottom_px - gap_px
        rows = (2.3 * inner_px / 3.3, inner_px / 3.3, *(_FURTHER_PX - gap_px for _ in further))
        bars, sums, *others = panels(
            figure, rows=rows, margins_px=(50, 12, top_px, bottom_px), gap_px=gap_px, share_x=True
        )
        positions = column_positions([path.stage for path in importance.metapaths])
        column_px = (width_px - 62) / (positions[-1] + 1.2)
        _probabilities(bars, importance.metapaths, positions, column_px=column_px)
        _legend(bars, importance.metapaths, width_px=width_px)
        _stage_sums(sums, importance, positions)
        for axes, other in zip(others, further, strict=True):
            _scores(axes, other, positions, column_px=column_px)
        bars.set_xlim(-0.6, positions[-1] + 0.6)
    return figure


def column_positions(stages: Sequence[int]) -> list[float]:
    """Where each position's column stands: one apart, with a gap where a new stage begins."""
    places: list[float] = []
    for index, stage in enumerate(stages):
        step = 1 + (_STAGE_GAP if index and stage != stages[index - 1] else 0)
        places.append(places[-1] + step if places else 0.0)
    return places


def _probabilities(
    axes: Axes, metapaths: Sequence[MetaPathImportance], positions: Sequence[float], *, column_px: float
) -> None:
    colours = block_colours([name for path in metapaths for name in path.candidates])
    for x, path in zip(positions, metapaths, strict=True):
        bottom = 0.0
        probability = dict(zip(path.candidates, path.probabilities, strict=True))
        for name in [name for name in colours if name in probability]:
            axes.bar(
                x,
                probability[name],
                bottom=bottom,
                width=0.82,
                color=colour(colours[name]),
                edgecolor=colour("muted") if name == "identity" else colour("paper"),
                linewidth=0.8,
            )
            bottom += probability[name]
        crowded = column_px < 26
        _score_above(axes, path.score, (x, 1), crowded=crowded)
    every = 1 if column_px >= 16 else 2
    axes.set_xticks(list(positions)[::every], [str(path.block) for path in metapaths][::every])
    axes.tick_params(axis="x", labelbottom=True, length=0, labelsize=11)
    axes.set_ylim(0, 1)
    axes.set_yticks([0, 0.5, 1], ["0", "0.5", "1"])
    axes.set_title("Candidate probabilities, score above each position", pad=34)
    axes.spines["left"].set_visible(False)


def _legend(axes: Axes, metapaths: Sequence[MetaPathImportance], *, width_px: int) -> None:
    colours = block_colours([name for path in metapaths for name in path.candidates])
    handles = [
        axes.bar(
            0,
            0,
            color=colour(hue),
            edgecolor=colour("muted") if name == "identity" else colour(hue),
            linewidth=0.8,
            label=block_text(name),
        )
        for name, hue in colours.items()
    ]
    axes.figure.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(44 / width_px, 1),
        ncols=len(handles),
        handlelength=0.9,
        handleheight=0.9,
        handletextpad=0.45,
        columnspacing=1.3,
        borderaxespad=0.1,
        borderpad=0,
    )


def _stage_sums(axes: Axes, importance: ImportanceFile, positions: Sequence[float]) -> None:
    stages = [path.stage for path in importance.metapaths]
    score = {stage.stage: stage.score for stage in importance.stages}
    shown = sorted(set(stages))
    centres, widths = [], []
    for stage in shown:
        columns = [x for x, number in zip(positions, stages, strict=True) if number == stage]
        centres.append((columns[0] + columns[-1]) / 2)
        widths.append(columns[-1] - columns[0] + 0.82)
    heights = [score.get(stage) or 0.0 for stage in shown]
    axes.bar(centres, heights, width=widths, color=colour("grey"), alpha=0.55, linewidth=0)
    for x, stage, height in zip(centres, shown, heights, strict=True):
        axes.annotate(
            score_text(score.get(stage)),
            (x, height),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontweight="bold",
        )
    axes.set_ylim(0, max([*heights, 1e-9]) * 1.3)
    axes.set_yticks([])
    axes.grid(False)
    axes.spines["left"].set_visible(False)
    axes.set_xticks(list(positions))
    axes.tick_params(axis="x", labelbottom=False)
    for x, stage in zip(centres, shown, strict=True):
        axes.annotate(
            f"stage {stage}",
            (x, 0),
            xycoords=("data", "axes fraction"),
            xytext=(0, -8),
            textcoords="offset points",
            ha="center",
            va="top",
            color=colour("muted"),
        )
    axes.set_title("Stage sums", pad=8)


def _scores(axes: Axes, importance: ImportanceFile, positions: Sequence[float], *, column_px: float) -> None:
    """A bar a position, as high as its score, and the sum of every stage below."""
    scores = [path.score for path in importance.metapaths]
    exponent = _thousands([score for score in scores if score is not None])
    scaled = [None if score is None else score / 10.0**exponent for score in scores]
    heights = [score or 0.0 for score in scaled]
    axes.bar(list(positions), heights, width=0.82, color=colour("blue"), linewidth=0)
    axes.axhline(0, color=colour("muted"), linewidth=0.8)
    crowded = column_px < 30
    for x, score, height in zip(positions, scaled, heights, strict=True):
        _score_above(axes, score, (x, max(height, 0.0)), crowded=crowded)
    spread = max([*heights, 0.0]) - min([*heights, 0.0])
    axes.set_ylim(min([*heights, 0.0]), min([*heights, 0.0]) + 1.25 * (spread or 1.0))
    axes.set_yticks([])
    axes.grid(False)
    axes.spines["left"].set_visible(False)
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(axis="x", labelbottom=False, length=0)
    sums = {stage.stage: stage.score for stage in importance.stages}
    stages = [path.stage for path in importance.metapaths]
    for stage in sorted(set(stages)):
        columns = [x for x, number in zip(positions, stages, strict=True) if number == stage]
        total = sums.get(stage)
        axes.annotate(
            score_text(None if total is None else total / 10.0**exponent),
            ((columns[0] + columns[-1]) / 2, 0),
            xycoords=("data", "axes fraction"),
            xytext=(0, -4),
            textcoords="offset points",
            ha="center",
            va="top",
            fontweight="bold",
        )
    power = f"10{str(exponent).translate(_SUPERSCRIPTS)} " if exponent else ""
    axes.set_title(f"{_TITLES[importance.kind].format(power)}; stage sums", pad=16 if crowded else 8)


def _score_above(axes: Axes, score: float | None, at: tuple[float, float], *, crowded: bool) -> None:
    """Write a score above a bar, upright where bars are narrow."""
    axes.annotate(
        score_text(score),
        at,
        xytext=(0, 4),
        textcoords="offset points",
        ha="center",
        va="bottom",
        fontsize=9 if crowded else 11,
        rotation=90 if crowded else 0,
        annotation_clip=False,
    )


def _thousands(scores: Sequence[float]) -> int:
    """The power of ten, a multiple of 3, in which the largest score has one to three digits before its point."""
    largest = max((abs(score) for score in scores), default=0.0)
    return 3 * math.floor(math.log10(largest) / 3) if largest > 0 else 0


def score_text(score: float | None) -> str:
    """A score with two digits; a dash where there is none (no Identity, or a probability of it that reached 0)."""
    if score is None:
        return "\N{EN DASH}"
    size = abs(score)
    text = f"{size:.0f}" if size >= 99.5 else f"{size:.1f}" if size >= 0.95 else f"{size:.2f}"
    return f"\N{MINUS SIGN}{text}" if score < 0 and float(text) else text
