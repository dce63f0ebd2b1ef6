"""The report of a run: one HTML file with everything in it, made from the files of the run folder alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment as Templates
from jinja2 import FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from analysis.architecture_drawing import architecture_figure, shared_scale
from analysis.architecture_outline import ArchitectureOutline
from analysis.figure_style import (
    NARROW_PX,
    PALETTE,
    WIDE_PX,
    action_colour,
    block_colours,
    inline_svg,
    method_colour,
    save_figure,
)
from analysis.files import AlternativeRecord, ModelRecord, ProvenOptimum, StageRun, StepRecord
from analysis.importance_plot import importance_figure
from analysis.latency_audit import error_percent, latency_audit_figure
from analysis.pareto_plot import pareto_figure
from analysis.run_folder import Run, outline, read_run
from analysis.summary import ordered, summary_rows
from analysis.supernet_plot import supernet_figure
from analysis.trajectory_plot import trajectory_figure
from analysis.verdict import caveats, comparisons, deliveries, headline, overall
from analysis.wording import (
    action_text,
    block_text,
    budget_text,
    count_text,
    importance_text,
    machine_text,
    minutes_text,
    ms_text,
    points_text,
)
from supernet.schema import write_atomically

_TEMPLATES = Path(__file__).parent / "templates"
_FIGURES = ("pareto", "importance", "supernet", "trajectory", "trajectory-frontier", "latency-audit")
_REJECTED = 3  # alternatives of a step that the table lists: those that came nearest


def write_report(directory: Path) -> Path:
    """Write `report.html` into a run folder from the files that are there, and return its path.

    Files that are missing are named in the report with the command that makes them. Raises `UserError` if the folder
    holds no experiment or if a file in it is malformed.
    """
    run = read_run(Path(directory))
    path = run.directory / "report.html"
    write_atomically(path, render(run).encode())
    return path


def write_figures(directory: Path, *, suffix: str = ".svg") -> tuple[Path, ...]:
    """Write every figure that the folder's files allow into `figures/`, as files of their own (".svg" or ".png")."""
    run = read_run(Path(directory))
    paths = []
    for name, (make, _) in _figures(run).items():
        paths.append(run.directory / "figures" / f"{name}{suffix}")
        save_figure(make(WIDE_PX), paths[-1])
    return tuple(paths)


def render(run: Run) -> str:
    """The report's HTML, byte for byte the same for the same run."""
    templates = Templates(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    texts = (
        ms_text,
        budget_text,
        count_text,
        minutes_text,
        points_text,
        action_text,
        block_text,
        importance_text,
        machine_text,
    )
    templates.filters.update({text.__name__: text for text in texts})
    return templates.get_template("report.html.j2").render(
        run=run,
        palette=PALETTE,
        figures=dict.fromkeys(_FIGURES)
        | {name: _responsive(make, label=label, key=name) for name, (make, label) in _figures(run).items()},
        **_delivered(run),
        drawings=_drawings(run),
        steps={"trajectory": _steps(run.trajectory), "trajectory-frontier": _steps(run.frontier)},
        programs=_programs(run),
        audit=_audit(run),
        environments=_environments(run),
        seeds=_seeds(run),
        total_seconds=sum(stage.seconds for stage in _stage_runs(run)),
        longest_seconds=max([stage.seconds for stage in _stage_runs(run)] + [1e-9]),
    )


def _figures(run: Run) -> dict[str, tuple[Callable[[int], Figure], str]]:
    """Every figure that can be drawn: a function of the width in pixels, and what it shows in words."""
    figures: dict[str, tuple[Callable[[int], Figure], str]] = {}
    evaluation, importance, audit, further = run.evaluation, run.importance, run.audit, run.further_importances
    if evaluation is not None and evaluation.models:
        figures["pareto"] = (
            lambda width_px: pareto_figure(evaluation, width_px=width_px),
            "Test accuracy against measured latency for every method",
        )
    if importance is not None:
        figures["importance"] = (
            lambda width_px: importance_figure(importance, further=further, width_px=width_px),
            "Candidate probabilities and every kind of score of every MetaPath, and the sum of each stage",
        )
    if run.metrics:
        figures["supernet"] = (
            lambda width_px: supernet_figure(run.metrics, width_px=width_px),
            "Losses of the supernet and entropy of its MetaPaths over the training steps",
        )
    if run.trajectory:
        figures["trajectory"] = (
            lambda width_px: trajectory_figure(run.trajectory, budgets_ms=run.budgets_ms, width_px=width_px),
            "Predicted latency, held-out accuracy and the stage acted on at every step of the search",
        )
    if run.frontier:
        figures["trajectory-frontier"] = (
            lambda width_px: trajectory_figure(run.frontier, budgets_ms=run.budgets_ms, width_px=width_px),
            "The same at every step of the search over the whole frontier",
        )
    if audit is not None:
        models = evaluation.models if evaluation is not None else ()
        figures["latency-audit"] = (
            lambda width_px: latency_audit_figure(audit, models=models, width_px=width_px),
            "Measured against predicted latency of whole nets, and the error in percent",
        )
    return figures


def _responsive(make: Callable[[int], Figure], *, label: str, key: str) -> Markup:
    """The figure twice, for wide and for narrow screens; the style sheet shows one of them."""
    wide = inline_svg(make(WIDE_PX), label=label, key=key)
    narrow = inline_svg(make(NARROW_PX), label=label, key=f"{key}-narrow")
    return Markup(f'<div class="wide">{wide}</div>\n<div class="narrow">{narrow}</div>')


def _delivered(run: Run) -> dict[str, Any]:
    """What the first screen and the table say."""
    if run.evaluation is None:
        unfinished = "No model has been evaluated yet"
        empty: list[Any] = []
        return {"headline": unfinished, "summary": f"{unfinished}.", "cards": empty, "rows": empty} | {
            "verdicts": empty,
            "caveats": empty,
            "methods": empty,
        }
    models, test_images = run.evaluation.models, run.evaluation.test_images
    methods = [model.method for model in models]
    rows: list[dict[str, Any]] = [
        {
            "row": row,
            "hue": method_colour(model.method, methods),
            "best": model.correct == max(other.correct for other in models if other.budget_ms == model.budget_ms),
            "model": model,
        }
        for row, model in zip(summary_rows(run.evaluation, run.directory), ordered(models), strict=True)
    ]
    phrases = deliveries(models)
    return {
        "headline": headline(models),
        "summary": f"{headline(models)}: {'; '.join(phrases)}." if phrases else f"{headline(models)}.",
        "cards": [entry for entry in rows if entry["model"].method == "search"],
        "rows": rows,
        "verdicts": _verdicts(models, test_images=test_images),
        "caveats": caveats(models, unreachable=run.evaluation.unreachable),
        "methods": list(dict.fromkeys((entry["row"].method, entry["hue"]) for entry in rows)),
    }


def _verdicts(models: Sequence[ModelRecord], *, test_images: int) -> list[dict[str, Any]]:
    """For each baseline the overall sentence and one a budget."""
    found = comparisons(models, test_images=test_images)
    groups = [
        [c for c in found if (c.search, c.baseline) == pair]
        for pair in dict.fromkeys((comparison.search, comparison.baseline) for comparison in found)
    ]
    return [{"overall": overall(group), "sentences": [c.sentence for c in group]} for group in groups]


def _drawings(run: Run) -> dict[str, Any]:
    """The drawings by budget, the largest architecture of the search, and the legend of block types."""
    models = ordered(run.evaluation.models) if run.evaluation is not None else []
    drawn = [(model, shape) for model in models if (shape := run.outline(model)) is not None]
    first = run.largest
    largest = outline(first.architecture, source="step 0 of a trajectory") if first is not None else None
    shapes = [shape for _, shape in drawn] + ([largest] if largest is not None else [])
    if not shapes:
        return {"budgets": [], "largest": None, "legend": []}
    scale = shared_scale(shapes)
    budgets: dict[float, list[dict[str, Any]]] = {}
    for model, shape in drawn:
        entry = {"model": model, "svg": _drawing(shape, scale, title=model.name), "hue": _hue(model, models)}
        budgets.setdefault(model.budget_ms, []).append(entry)
    return {
        "budgets": list(budgets.items()),
        "largest": _drawing(largest, scale, title="largest", width_px=460) if largest is not None else None,
        "largest_step": first,
        "legend": [(block_text(name), hue) for name, hue in block_colours(scale[2]).items()],
    }


def _drawing(
    shape: ArchitectureOutline,
    scale: tuple[int, tuple[int, ...], tuple[str, ...]],
    *,
    title: str,
    width_px: int = 300,
) -> Markup:
    tallest, positions, types = scale
    figure = architecture_figure(shape, tallest_channels=tallest, positions=positions, types=types, width_px=width_px)
    widths = ", ".join(str(stage.width_channels) for stage in shape.stages)
    label = f"Architecture of {title}: stages of {widths} channels"
    return Markup(inline_svg(figure, label=label, key=f"drawing-{title}"))


def _hue(model: ModelRecord, models: Sequence[ModelRecord]) -> str:
    return method_colour(model.method, [other.method for other in models])


def _steps(trajectory: Sequence[StepRecord]) -> list[dict[str, Any]]:
    """The rows of the step table, with the alternatives that came nearest to being chosen, and their reasons."""

    def loses(alternative: AlternativeRecord) -> float:
        return math.inf if alternative.drop_per_gain is None else alternative.drop_per_gain

    rows = []
    for step in trajectory:
        rejected = sorted((one for one in step.alternatives if not one.chosen), key=loses)
        hue = action_colour(step.action.kind) if step.action is not None else "grey"
        left_out = max(0, len(rejected) - _REJECTED)
        rows.append({"step": step, "hue": hue, "rejected": rejected[:_REJECTED], "left_out": left_out})
    return rows


def _programs(run: Run) -> list[dict[str, Any]]:
    """For every budget the last integer program, whose model of the score knows most, and how many there were."""
    by_budget: dict[float, list[ProvenOptimum]] = {}
    for program in run.programs:
        by_budget.setdefault(program.budget_ms, []).append(program)
    return [
        {
            "last": programs[-1],
            "count": len(programs),
            "largest_gap": max(program.bound_percent - program.modelled_percent for program in programs),
            "limits": [
                f"{_size(programs[-1].used[name])} of {_size(most)} {name}"
                for name, most in programs[-1].at_most.items()
            ],
        }
        for _, programs in sorted(by_budget.items())
    ]


def _size(value: float) -> str:
    return count_text(value) if value >= 1000 else f"{value:.4g}"


def _audit(run: Run) -> dict[str, Any] | None:
    """The error numbers of the latency table; shares are counted here, from the pairs."""
    if run.audit is None:
        return None
    audit = run.audit
    errors = [abs(error_percent(pair)) for pair in audit.pairs]
    held_out = audit.held_out
    tiles = [
        ("mean absolute error", f"{audit.mean_absolute_error_percent:.1f} %"),
        ("after correction", None if held_out is None else f"{held_out.mean_absolute_error_percent:.1f} %"),
        ("bias", None if audit.bias_percent is None else f"{points_text(audit.bias_percent)} %"),
        ("within 5 %", f"{sum(error <= 5 for error in errors)} of {len(errors)}"),
        ("within 10 %", f"{sum(error <= 10 for error in errors)} of {len(errors)}"),
        ("worst", f"{max(errors):.1f} %"),
        ("Kendall tau", None if audit.kendall_tau is None else f"{audit.kendall_tau:.2f}"),
        ("measured again", None if audit.remeasurement_percent is None else f"{audit.remeasurement_percent:.1f} %"),
    ]
    return {
        "tiles": [(name, text) for name, text in tiles if text is not None],
        "condition": f"{audit.runtime}, {audit.precision}, {audit.threads} thread{'s' * (audit.threads != 1)}",
    }


def _environments(run: Run) -> list[dict[str, Any]]:
    """The environment of the last stage, and every other one with the stages that ran in it."""
    if run.manifest is None or run.manifest.environment is None:
        return []
    last = run.manifest.environment
    found: dict[str, dict[str, Any]] = {last.without_command: {"environment": last, "stages": []}}
    for name, stage in run.manifest.stages.items():
        if stage.environment is not None:
            entry = {"environment": stage.environment, "stages": []}
            found.setdefault(stage.environment.without_command, entry)["stages"].append(name)
    return list(found.values())


def _seeds(run: Run) -> list[tuple[str, int]]:
    """Every seed that the configuration or a stage names."""
    named = set(run.experiment.seeds.items()) if run.experiment is not None else set()
    return sorted(named.union(*(stage.seeds.items() for stage in _stage_runs(run))))


def _stage_runs(run: Run) -> list[StageRun]:
    return list(run.manifest.stages.values()) if run.manifest is not None else []
