"""How every figure looks: colours, one hand for all axes, and the step from a matplotlib figure to inline SVG.

Colours are Okabe and Ito's (Color Universal Design, 2008), which colour-blind readers tell apart; a method has one
colour and one marker everywhere. One SVG unit is one CSS pixel. In the report each colour becomes a CSS variable, so
that the same figure reads on a light and on a dark page.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from supernet.schema import write_atomically

WIDE_PX = 1060
NARROW_PX = 430

# name: (on a light page, on a dark page). The light value identifies the colour in a drawn SVG: keep them distinct.
PALETTE: dict[str, tuple[str, str]] = {
    "ink": ("#1b1f24", "#e8eaed"),
    "muted": ("#5c6670", "#9aa4ae"),
    "rule": ("#dde1e5", "#343b43"),
    "faint": ("#eef0f2", "#262c33"),
    "paper": ("#fffffe", "#15191e"),
    "blue": ("#0072b2", "#4db2ee"),
    "vermillion": ("#d55e00", "#f58a3c"),
    "grey": ("#7a838c", "#a9b2bb"),
    "sky": ("#56b4e9", "#56b4e8"),
    "orange": ("#e69f00", "#e69f01"),
    "green": ("#009e73", "#1fb58a"),
    "purple": ("#cc79a7", "#d98fb8"),
    "yellow": ("#f0e442", "#d9ce3c"),
}
_METHODS = {
    "search": ("blue", "o"),
    "frontier": ("sky", "X"),
    "exact": ("green", "^"),
    "evolution": ("purple", "v"),
    "random_search": ("orange", "P"),
    "uniform": ("vermillion", "s"),
    "random": ("grey", "D"),
}
_OTHER_METHODS = (("ink", "*"), ("muted", "p"), ("yellow", "h"))
_BLOCKS = {"identity": "paper", "mb4d": "sky", "mb3d": "orange", "separable_conv": "green", "conv": "purple"}
_OTHER_BLOCKS = ("yellow", "blue", "vermillion")
_ACTIONS = {"skip_path": "ink", "drop_first_3d": "orange", "narrow_stage": "purple", "change_candidate": "sky"}
_FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


def colour(name: str) -> str:
    """The hex value of a palette colour on a light page."""
    return PALETTE[name][0]


def method_colour(method: str, methods: Sequence[str]) -> str:
    """The palette name of a search method; `methods` are all methods shown, so that unknown ones differ too."""
    return _method(method, methods)[0]


def method_marker(method: str, methods: Sequence[str]) -> str:
    """The marker of a search method."""
    return _method(method, methods)[1]


def _method(method: str, methods: Sequence[str]) -> tuple[str, str]:
    if method in _METHODS:
        return _METHODS[method]
    unknown = sorted(set(methods) - set(_METHODS) | {method})
    return _OTHER_METHODS[unknown.index(method) % len(_OTHER_METHODS)]


def block_colours(types: Sequence[str]) -> dict[str, str]:
    """The palette name of every block type or candidate, in a stable order: known ones first, identity last."""
    order = [name for name in _BLOCKS if name in types and name != "identity"]
    unknown = sorted(set(types) - set(_BLOCKS))
    colours = {name: _BLOCKS[name] for name in order}
    colours |= {name: _OTHER_BLOCKS[i % len(_OTHER_BLOCKS)] for i, name in enumerate(unknown)}
    return colours | ({"identity": _BLOCKS["identity"]} if "identity" in types else {})


def action_colour(kind: str) -> str:
    """The palette name of a kind of slimming action."""
    return _ACTIONS.get(kind, "green")


@contextmanager
def house_style() -> Iterator[None]:
    """matplotlib settings inside which every figure is made."""
    settings: dict[Any, Any] = {
        "font.family": "DejaVu Sans",
        "font.size": 13,
        "text.color": colour("ink"),
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        "axes.edgecolor": colour("rule"),
        "axes.labelcolor": colour("muted"),
        "axes.labelsize": 13,
        "axes.titlesize": 13,
        "axes.titlelocation": "left",
        "axes.titlecolor": colour("muted"),
        "axes.titlepad": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.axisbelow": True,
        "grid.color": colour("rule"),
        "grid.linewidth": 0.8,
        "xtick.color": colour("muted"),
        "ytick.color": colour("muted"),
        "ytick.major.size": 0,
        "lines.solid_capstyle": "round",
        "legend.frameon": False,
    }
    with mpl.rc_context(settings):
        yield


def canvas(width_px: int, height_px: int) -> Figure:
    """An empty figure in which one unit of the SVG is one CSS pixel."""
    return Figure(figsize=(width_px / 72, height_px / 72), dpi=72)


def panels(
    figure: Figure,
    *,
    rows: Sequence[float] = (1,),
    columns: int = 1,
    margins_px: tuple[float, float, float, float],
    gap_px: float = 0,
    share_x: bool = False,
) -> list[Axes]:
    """Axes in a grid, inside margins (left, right, top, bottom) in pixels; `rows` are relative heights."""
    width_px, height_px = figure.get_size_inches() * 72
    left, right, top, bottom = margins_px
    inner_height = (height_px - top - bottom - gap_px * (len(rows) - 1)) / len(rows)
    inner_width = (width_px - left - right - gap_px * (columns - 1)) / columns
    grid = figure.add_gridspec(
        len(rows),
        columns,
        left=left / width_px,
        right=1 - right / width_px,
        top=1 - top / height_px,
        bottom=bottom / height_px,
        height_ratios=list(rows),
        hspace=gap_px / inner_height,
        wspace=gap_px / inner_width,
    )
    made: list[Axes] = []
    for row in range(len(rows)):
        for column in range(columns):
            made.append(figure.add_subplot(grid[row, column], sharex=made[0] if share_x and made else None))
    return made


def spread(positions: Sequence[float], *, gap: float) -> list[float]:
    """Move positions apart until neighbours are at least `gap` from one another, staying near where they were."""
    order = sorted(range(len(positions)), key=lambda i: positions[i])
    groups: list[tuple[float, list[int]]] = []
    for i in order:
        groups.append((positions[i], [i]))
        while len(groups) > 1 and _bottom(groups[-1], gap) - _top(groups[-2], gap) < gap:
            (upper_centre, upper), (lower_centre, lower) = groups.pop(), groups.pop()
            members = lower + upper
            centre = (upper_centre * len(upper) + lower_centre * len(lower)) / len(members)
            groups.append((centre, members))
    moved = list(positions)
    for centre, members in groups:
        for rank, i in enumerate(members):
            moved[i] = centre + (rank - (len(members) - 1) / 2) * gap
    return moved


def _bottom(group: tuple[float, list[int]], gap: float) -> float:
    return group[0] - (len(group[1]) - 1) / 2 * gap


def _top(group: tuple[float, list[int]], gap: float) -> float:
    return group[0] + (len(group[1]) - 1) / 2 * gap


def inline_svg(figure: Figure, *, label: str, key: str) -> str:
    """The figure as an `<svg>` element for an HTML page, byte for byte the same for the same figure.

    `label` is read out by screen readers. `key` must differ between the figures of a page: it salts the identifiers.
    Colours of the palette become `var(--name, #hex)`.
    """
    text = _drawn(figure, salt=key)
    for name, (light, _) in PALETTE.items():
        text = text.replace(light, f"var(--{name}, {light})")
    width_px, height_px = figure.get_size_inches() * 72
    head = (
        f'<svg xmlns:xlink="http://www.w3.org/1999/xlink" xmlns="http://www.w3.org/2000/svg" role="img" '
        f'viewBox="0 0 {width_px:g} {height_px:g}" aria-label="{escape(label)}">'
    )
    return head + text[text.index(">", text.index("<svg")) + 1 :]


def save_figure(figure: Figure, path: Path) -> None:
    """Write the figure on a light background, as a file of its own: SVG, or PNG at twice the size."""
    if path.suffix == ".svg":
        figure.set_facecolor(colour("paper"))
        write_atomically(path, _drawn(figure, salt=path.stem).encode())
        return
    buffer = io.BytesIO()
    figure.savefig(buffer, format=path.suffix.removeprefix("."), dpi=144, facecolor=colour("paper"))
    write_atomically(path, buffer.getvalue())


def _drawn(figure: Figure, *, salt: str) -> str:
    buffer = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": f"slimformer-{salt}"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    return text.replace("'DejaVu Sans'", _FONTS).strip()
