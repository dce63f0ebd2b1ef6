"""An architecture as a picture: a bar a block, as high as its stage is wide, coloured by the type of the block."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from analysis.architecture_outline import ArchitectureOutline, StageOutline
from analysis.figure_style import block_colours, canvas, colour, house_style

DRAWING_PX = 300
_BAR_AREA_PX, _LABEL_PX, _STEM_PX = 108, 40, 11


def architecture_figure(
    architecture: ArchitectureOutline,
    *,
    tallest_channels: int,
    positions: Sequence[int],
    types: Sequence[str],
    width_px: int = DRAWING_PX,
) -> Figure:
    """Stages from left to right, each position in its place; a block left out is an empty outline.

    `tallest_channels`, `positions` (places a stage) and `types` (of all drawings) are those of `shared_scale`, so that
    drawings made with the same ones can be compared by eye. Below each stage: its channels and its grid.
    """
    height_px = _BAR_AREA_PX + _LABEL_PX + 4
    with house_style():
        figure = canvas(width_px, height_px)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.set_xlim(0, width_px)
        axes.set_ylim(-_LABEL_PX, _BAR_AREA_PX + 4)
        gap_px = 14 if width_px < 500 else 26
        places = [max(count, 1) for count in positions]
        free_px = width_px - _STEM_PX - gap_px * len(places) - 2
        block_px = min(free_px / sum(places), 34)
        x = 1.0
        stem_height = _height(architecture.stem.width_channels, tallest_channels)
        axes.add_patch(Rectangle((x, 0), _STEM_PX, stem_height, facecolor=colour("rule"), linewidth=0))
        x += _STEM_PX + gap_px
        colours = block_colours(types)
        for stage, grid, count in zip(architecture.stages, architecture.grids, places, strict=False):
            height = _height(stage.width_channels, tallest_channels)
            _stage(axes, stage, x=x, height=height, block_px=block_px, colours=colours)
            _labels(axes, stage, grid, centre=x + count * block_px / 2)
            x += count * block_px + gap_px
    return figure


def shared_scale(architectures: Sequence[ArchitectureOutline]) -> tuple[int, tuple[int, ...], tuple[str, ...]]:
    """The widest stage in channels, the most positions a stage, and all block types of several architectures."""
    stages = [stage for architecture in architectures for stage in architecture.stages]
    tallest = max([stage.width_channels for stage in stages] + [a.stem.width_channels for a in architectures])
    depth = max(len(architecture.stages) for architecture in architectures)
    positions = tuple(
        max(len(a.stages[index].blocks) for a in architectures if index < len(a.stages)) for index in range(depth)
    )
    return tallest, positions, tuple(sorted({block.type for stage in stages for block in stage.blocks}))


def _height(width_channels: int, tallest_channels: int) -> float:
    return max(3.0, _BAR_AREA_PX * width_channels / tallest_channels)


def _stage(
    axes: Axes, stage: StageOutline, *, x: float, height: float, block_px: float, colours: dict[str, str]
) -> None:
    for index, block in enumerate(stage.blocks):
        left, width = x + index * block_px + 1, max(block_px - 2, 1.5)
        if block.type == "identity":
            box = Rectangle(
                (left + 0.5, 0.5),
                width - 1,
                max(height - 1, 2),
                facecolor="none",
                edgecolor=colour("grey"),
                linewidth=1,
                linestyle=(0, (2, 2)),
            )
        else:
            box = Rectangle((left, 0), width, height, facecolor=colour(colours[block.type]), linewidth=0)
        axes.add_patch(box)


def _labels(axes: Axes, stage: StageOutline, grid: tuple[int, int], *, centre: float) -> None:
    rows, columns = grid
    axes.text(centre, -6, str(stage.width_channels), ha="center", va="top", fontsize=12, fontweight="bold")
    axes.text(
        centre,
        -22,
        f"{rows}\N{MULTIPLICATION SIGN}{columns}",
        ha="center",
        va="top",
        fontsize=10.5,
        color=colour("muted"),
    )
