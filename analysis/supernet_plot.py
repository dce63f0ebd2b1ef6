"""How the supernet was trained: losses, and how decided its MetaPaths became."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis.figure_style import WIDE_PX, canvas, colour, house_style, panels, spread
from analysis.files import MetricRow


def supernet_figure(metrics: Sequence[MetricRow], *, width_px: int = WIDE_PX) -> Figure:
    """Training and held-out loss, and the mean entropy of the MetaPaths' probabilities (nats), over the epochs."""
    wide = width_px > 600
    with house_style():
        figure = canvas(width_px, 270 if wide else 470)
        losses, entropy = panels(
            figure,
            rows=(1,) if wide else (1, 1),
            columns=2 if wide else 1,
            margins_px=(50, 84, 36, 44),
            gap_px=132 if wide else 70,
        )
        ends = [
            _curve(losses, metrics, "train_loss", hue="grey"),
            _curve(losses, metrics, "held_out_loss", hue="blue"),
        ]
        _curve(entropy, metrics, "alpha_entropy", hue="ink")
        _end_labels(losses, ends, names=("training", "held out"), hues=("grey", "blue"))
        losses.set_title("Loss")
        entropy.set_title("Mean entropy of the MetaPaths, nats")
        entropy.set_ylim(bottom=0)
        for axes in (losses, entropy):
            axes.set_xlabel("epoch", labelpad=4)
            axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
            axes.yaxis.set_major_locator(MaxNLocator(5))
    return figure


def _curve(axes: Axes, metrics: Sequence[MetricRow], column: str, *, hue: str) -> tuple[float, float] | None:
    """Draw a column where it has a value, and return its last point."""
    points: list[tuple[float, float]] = []
    for index, row in enumerate(metrics):
        value = getattr(row, column)
        if value is not None:
            points.append((row.epoch if row.epoch is not None else float(index), value))
    if not points:
        return None
    axes.plot(
        [x for x, _ in points],
        [y for _, y in points],
        color=colour(hue),
        linewidth=1.8,
        marker="o" if len(points) == 1 else None,
    )
    return points[-1]


def _end_labels(
    axes: Axes, ends: Sequence[tuple[float, float] | None], *, names: Sequence[str], hues: Sequence[str]
) -> None:
    """Name each curve at its end, pushed apart where two ends are close."""
    present = [(end, name, hue) for end, name, hue in zip(ends, names, hues, strict=True) if end is not None]
    if not present:
        return
    axes.autoscale_view()
    pixels = [float(axes.transData.transform(end)[1]) for end, _, _ in present]
    for (end, name, hue), before, after in zip(present, pixels, spread(pixels, gap=17), strict=True):
        axes.annotate(
            name,
            end,
            xytext=(8, after - before),
            textcoords="offset points",
            va="center",
            color=colour(hue),
            annotation_clip=False,
        )
