"""What each figure shows, read back from the drawn artists."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from analysis.architecture_drawing import architecture_figure, shared_scale
from analysis.figure_style import NARROW_PX, WIDE_PX, colour
from analysis.importance_plot import column_positions, importance_figure, score_text
from analysis.latency_audit import corrected_pairs, error_percent, latency_audit_figure
from analysis.pareto_plot import pareto_figure, pareto_front
from analysis.run_folder import Run, outline, read_run
from analysis.supernet_plot import supernet_figure
from analysis.trajectory_plot import action_stage, trajectory_figure


@pytest.fixture
def run(run_directory: Path) -> Run:
    return read_run(run_directory)


def words(figure: Figure) -> set[str]:
    return {text.get_text() for text in figure.findobj(Text) if isinstance(text, Text)}


def test_the_front_holds_no_model_that_another_one_beats(run: Run) -> None:
    assert run.evaluation is not None
    models = run.evaluation.models
    front = pareto_front(models)
    for kept in front:
        assert not any(m.measured_ms <= kept.measured_ms and m.accuracy_percent > kept.accuracy_percent for m in models)
    for left in set(models) - set(front):
        assert any(f.measured_ms <= left.measured_ms and f.accuracy_percent >= left.accuracy_percent for f in front)


@pytest.mark.parametrize("width_px", [WIDE_PX, NARROW_PX])
def test_the_pareto_figure_names_every_method_and_budget(run: Run, width_px: int) -> None:
    assert run.evaluation is not None
    shown = " ".join(words(pareto_figure(run.evaluation, width_px=width_px)))
    for word in ("search", "uniform scaling", "random", "≤ 0.8 ms", "≤ 2.0 ms"):
        assert word in shown


def test_budgets_that_differ_much_get_a_logarithmic_axis(run: Run) -> None:
    assert run.evaluation is not None
    models = tuple(
        m.model_copy(update={"measured_ms": 38.0, "budget_ms": 40.0, "measured_p10_ms": None})
        if m.budget_ms == 2.0
        else m
        for m in run.evaluation.models
    )
    figure = pareto_figure(run.evaluation.model_copy(update={"models": models}))
    assert figure.axes[0].get_xscale() == "log"
    assert pareto_figure(run.evaluation).axes[0].get_xscale() == "linear"


def test_an_evaluation_without_models_is_refused(run: Run) -> None:
    assert run.evaluation is not None
    with pytest.raises(ValueError, match="holds no model"):
        pareto_figure(run.evaluation.model_copy(update={"models": ()}))


def test_a_position_has_a_bar_as_high_as_each_probability_and_its_score_above(run: Run) -> None:
    assert run.importance is not None
    figure = importance_figure(run.importance)
    bars = [patch for patch in figure.axes[0].patches if isinstance(patch, Rectangle)]
    assert sorted(bar.get_height() for bar in bars if bar.get_height() > 0) == [
        pytest.approx(0.2),
        pytest.approx(0.8),
        pytest.approx(1.0),
    ]
    assert {"4.0", "–", "stage 1", "stage 2"} <= words(figure)


@pytest.mark.parametrize("width_px", [WIDE_PX, NARROW_PX])
def test_every_kind_of_importance_has_a_panel_over_the_same_positions(three_kinds: Path, width_px: int) -> None:
    run = read_run(three_kinds)
    assert run.importance is not None
    figure = importance_figure(run.importance, further=run.further_importances, width_px=width_px)
    bars, _, removal, taylor = figure.axes
    for axes, score in ((removal, -1.2), (taylor, 370.0)):
        drawn = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
        assert [bar.get_height() for bar in drawn] == [pytest.approx(score), 0.0]
        middles = [bar.get_x() + bar.get_width() / 2 for bar in drawn]
        assert middles == pytest.approx([x for x in bars.get_xticks() if x >= 0])
    for axes, title, score_and_sum in (
        (removal, "Removal: rise of the loss, 10⁻³ nats; stage sums", "−1.2"),
        (taylor, "Taylor: squared gradient, 10⁻³ nats²; stage sums", "370"),
    ):
        assert axes.get_title(loc="left") == title
        assert [text.get_text() for text in axes.texts] == [score_and_sum, "–", score_and_sum, "0.00"]
    assert figure.get_figheight() > importance_figure(run.importance).get_figheight()


def test_a_new_stage_stands_apart() -> None:
    assert column_positions([1, 1, 2, 2]) == pytest.approx([0, 1, 2.7, 3.7])


@pytest.mark.parametrize(
    ("score", "text"),
    [(None, "–"), (4.04, "4.0"), (0.254, "0.25"), (123.4, "123"), (-1.2, "\N{MINUS SIGN}1.2"), (-0.001, "0.00")],
)
def test_a_score_has_about_two_digits(score: float | None, text: str) -> None:
    assert score_text(score) == text


def test_the_trajectory_rings_the_first_step_below_each_budget(run: Run) -> None:
    figure = trajectory_figure(run.trajectory, budgets_ms=(2.0, 0.8))
    rings = [line for line in figure.axes[0].lines if line.get_markerfacecolor() == "none"]
    assert sorted(float(ring.get_xdata()[0]) for ring in rings) == [2, 3]  # type: ignore[index]
    assert {"2.0 ms", "0.8 ms", "skip a MetaPath", "narrow a stage"} <= words(figure)


def test_the_stage_of_a_dropped_block_is_found_from_what_changed(run: Run) -> None:
    assert [action_stage(a, b) for a, b in zip(run.trajectory, run.trajectory[1:], strict=False)] == [2, 1, 1]


def test_a_drawing_gives_a_skipped_position_its_place_as_an_empty_outline(run: Run) -> None:
    assert run.evaluation is not None
    shape = run.outline(run.evaluation.models[0])
    assert shape is not None
    tallest, positions, types = shared_scale([shape])
    assert (tallest, positions) == (96, (2, 2))
    figure = architecture_figure(shape, tallest_channels=tallest, positions=positions, types=types)
    boxes = [patch for patch in figure.axes[0].patches if isinstance(patch, Rectangle)][1:]  # without the stem
    filled = [to_hex(box.get_facecolor()) for box in boxes if box.get_facecolor()[3] > 0]
    assert len(boxes) == 4
    assert filled == [colour("sky"), colour("sky"), colour("green")]
    heights = [round(box.get_height()) for box in boxes]
    assert heights == [17, 18, 108, 108]
    assert {"16", "96", "16×16", "8×8"} <= words(figure)


def test_drawings_share_a_scale_that_fits_the_largest(run: Run) -> None:
    shapes = [outline(step.architecture, source="step") for step in run.trajectory]
    tallest, positions, types = shared_scale(shapes)
    assert (tallest, positions, types) == (96, (2, 2), ("identity", "mb3d", "mb4d"))


def test_only_nets_that_the_correction_has_not_seen_judge_it(run: Run) -> None:
    assert run.audit is not None
    judged = corrected_pairs(run.audit)
    assert [pair.measured_ms for pair in judged] == [1.6, 2.2]
    assert [error_percent(pair) for pair in judged] == pytest.approx([-0.16, -0.16])
    assert corrected_pairs(run.audit.model_copy(update={"held_out": None})) == []


@pytest.mark.parametrize("width_px", [WIDE_PX, NARROW_PX])
def test_every_audited_net_and_model_is_drawn_in_both_panels(run: Run, width_px: int) -> None:
    assert run.audit is not None
    assert run.evaluation is not None
    figure = latency_audit_figure(run.audit, models=run.evaluation.models, width_px=width_px)
    for axes in figure.axes:
        assert sum(line.get_marker() not in ("None", None) for line in axes.lines) == 4 + 2 + 6


def test_a_curve_begins_where_its_values_begin(run: Run) -> None:
    figure = supernet_figure(run.metrics)
    training, held_out = figure.axes[0].lines
    assert list(training.get_xdata()) == [0, 1, 2, 3, 4]  # type: ignore[arg-type]
    assert list(held_out.get_xdata()) == [2, 3, 4]  # type: ignore[arg-type]
    assert {"training", "held out"} <= words(figure)
