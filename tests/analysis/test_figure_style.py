"""Colours, label placement and SVG output that all figures share."""

from __future__ import annotations

import itertools
import re

import pytest

from analysis.figure_style import (
    PALETTE,
    block_colours,
    canvas,
    colour,
    house_style,
    inline_svg,
    method_colour,
    method_marker,
    spread,
)


def luminance(hex_colour: str) -> float:
    """Relative luminance as in WCAG 2.2."""
    channels = [int(hex_colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: str, second: str) -> float:
    brighter, darker = sorted((luminance(first), luminance(second)), reverse=True)
    return (brighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("page", [0, 1])
def test_text_is_readable_on_both_pages(page: int) -> None:
    for name in ("ink", "muted"):
        assert contrast(PALETTE[name][page], PALETTE["paper"][page]) >= 4.5, name
    for method in ("search", "uniform", "random"):
        assert contrast(PALETTE[method_colour(method, ())][page], PALETTE["paper"][page]) >= 3.5, method


def test_no_two_colours_of_the_palette_can_be_taken_for_one_another_in_a_drawing() -> None:
    light = [pair[0] for pair in PALETTE.values()]
    assert len(set(light)) == len(light)


def test_methods_differ_in_colour_and_in_marker_even_unknown_ones() -> None:
    methods = ["search", "uniform", "random", "knapsack", "evolution"]
    assert len({method_colour(method, methods) for method in methods}) == len(methods)
    assert len({method_marker(method, methods) for method in methods}) == len(methods)


def test_a_method_keeps_its_colour_whatever_is_shown_beside_it() -> None:
    assert method_colour("search", ["search"]) == method_colour("search", ["random", "knapsack", "search"])


def test_identity_is_hollow_and_other_blocks_differ() -> None:
    colours = block_colours(["identity", "mine", "mb3d", "mb4d", "yours", "separable_conv", "conv"])
    assert colours["identity"] == "paper"
    assert len(set(colours.values())) == len(colours) == 7
    assert list(colours)[-1] == "identity"


@pytest.mark.parametrize("positions", [[0.0, 1.0, 2.0], [5.0, 5.0, 5.0], [9.0, 0.0, 8.5, 8.9], [3.0], []])
def test_spread_labels_do_not_overlap_and_keep_their_order_and_their_mean(positions: list[float]) -> None:
    moved = spread(positions, gap=3)
    ordered = sorted(moved)
    assert all(b - a >= 3 - 1e-9 for a, b in itertools.pairwise(ordered))
    assert sorted(range(len(moved)), key=moved.__getitem__) == sorted(range(len(moved)), key=positions.__getitem__)
    assert sum(moved) == pytest.approx(sum(positions))


def test_labels_that_are_far_apart_stay() -> None:
    assert spread([0.0, 10.0], gap=3) == [0.0, 10.0]


def drawing(key: str) -> str:
    with house_style():
        figure = canvas(200, 100)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.plot([0, 1], [0, 1], color=colour("blue"), marker="o")
        axes.set_title("a < b")
    return inline_svg(figure, label='say "hi"', key=key)


def test_an_inline_figure_follows_the_page_in_colour_and_font() -> None:
    text = drawing("x")
    assert f"stroke: var(--blue, {colour('blue')})" in text
    assert "DejaVu" not in text
    assert 'viewBox="0 0 200 100"' in text
    assert 'aria-label="say &quot;hi&quot;"' in text


def test_a_drawing_repeats_itself_byte_for_byte_and_shares_no_identifier_with_another() -> None:
    assert drawing("x") == drawing("x")
    first, second = (set(re.findall(r' id="([^"]+)"', drawing(key))) for key in "xy")
    assert first
    assert not first & second
