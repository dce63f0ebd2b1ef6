"""The importance of every MetaPath: candidate probabilities and score a position, and the sum of each stage."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.figure_style import WIDE_PX, block_colours, canvas, colour, house_style, panels
from analysis.files import ImportanceFile, MetaPathImportance
from analysis.wording import block_text

_STAGE_GAP = 0.7  # columns left free between two stages


def importance_figure(importance: ImportanceFile, *, width_px: int = WIDE_PX) -> Figure:
    """A stacked bar of probabilities a position, its score above it; below, each stage's sum of scores."""
    with house_style():
        figure = canvas(width_px, 400)
        bars, sums = panels(figure, rows=(2.3, 1), margins_px=(50, 12, 74, 44), gap_px=58, share_x=True)
        positions = column_positions([path.stage for path in importance.metapaths])
        column_px = (width_px - 62) / (positions[-1] + 1.2)
        _probabilities(bars, importance.metapaths, positions, column_px=column_px)
        _legend(bars, importance.metapaths, width_px=width_px)
        _stage_sums(sums, importance, positions)
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
        axes.annotate(
            score_text(path.score),
            (x, 1),
            xytext=(0, 4),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=9 if crowded else 11,
            rotation=90 if crowded else 0,
            annotation_clip=False,
        )
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


def score_text(score: float | None) -> str:
    """A score with two digits; a dash where it is not finite (a probability of Identity that reached 0)."""
    if score is None:
        return "\N{EN DASH}"
    if score >= 99.5:
        return f"{score:.0f}"
    return f"{score:.1f}" if score >= 0.95 else f"{score:.2f}"
