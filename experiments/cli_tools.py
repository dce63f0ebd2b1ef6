"""The commands of `slimformer` that run no stage: what is published, seen, converted, measured, audited, studied."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

# As in cli.py: everything that needs torch is imported inside the commands.
from experiments.cli_options import PluginOption, SetOption, command_line, opened, there


class ExportLayout(str, Enum):
    """The layouts that `slimformer convert` writes."""

    SLIMFORMER = "slimformer"
    TIMM = "timm"
    SNAP = "snap"
    SAIL = "sail"


def models(pattern: Annotated[str, typer.Argument(help="A shell pattern.")] = "*") -> None:
    """List the published models: parameters, MACs, resolution, ImageNet-1k top-1, source."""
    from experiments.console import Screen
    from supernet import UserError, cost, list_models, published, published_architecture

    names = list_models(pattern)
    if not names:
        raise UserError(f"no published model matches {pattern!r} (known: {', '.join(list_models())})")
    rows = []
    for name in names:
        architecture = published_architecture(name)
        size = cost(architecture)
        height, width = architecture.resolution_px
        about = published(name)
        sizes = [f"{size.parameters:,}", f"{size.macs:,}", f"{height}x{width}"]
        rows.append([name, *sizes, f"{about.top1_percent:.1f}", about.source])
    Screen().table("Published models", ["name", "parameters", "MACs", "resolution", "top-1 %", "source"], rows)


def predict(
    images: Annotated[list[Path], typer.Argument(help="Image files.")],
    model: Annotated[
        str, typer.Option("--model", help="A published name, a run, a delivered model, an architecture or ONNX file.")
    ],
    weights: Annotated[Path | None, typer.Option("--weights", help="A checkpoint, in any known layout.")] = None,
    top: Annotated[int, typer.Option("--top", min=1, help="How many classes to print for an image.")] = 5,
    plugin: PluginOption = None,
) -> None:
    """Say what a model sees in images: the likeliest classes with their probabilities."""
    from experiments.console import Screen
    from experiments.plugins import import_plugins
    from experiments.predicting import open_classifier, predictions

    import_plugins(plugin or [])
    classifier = open_classifier(model, weights=weights)
    rows = predictions(classifier, [str(image) for image in images], top=top)
    Screen().table(classifier.name, ["image", "class", "probability %"], rows)


def convert(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A checkpoint: .safetensors, .pth or .pt.")],
    to: Annotated[ExportLayout, typer.Option("--to", help="The project whose names the tensors get.")],
    out: Annotated[Path, typer.Option("--out", help="The file to write: .safetensors or .pth.")],
    model: Annotated[
        str | None, typer.Option("--model", help="A published name or an architecture file (default: recognised).")
    ] = None,
    ema: Annotated[bool, typer.Option("--ema", help="Take the averaged weights of a training checkpoint.")] = False,
    resolution: Annotated[
        int | None, typer.Option("--resolution", help="Pixels of the images that it was trained on, if not published.")
    ] = None,
) -> None:
    """Write a checkpoint in another project's layout."""
    from experiments.console import Screen
    from supernet import Architecture, cost
    from supernet.convert import convert_file

    is_file = model is not None and Path(model).suffix in (".yaml", ".yml", ".json")
    chosen = Architecture.load(model) if is_file and model is not None else model
    architecture = convert_file(source, out, to=to.value, model=chosen, ema=ema, resolution_px=resolution)
    Screen().line(f"{out}: {cost(architecture).parameters:,} parameters in the layout of {to.value}")


def measure(
    models: Annotated[
        list[str], typer.Argument(help="Published names, architecture files, .onnx or .pte files, folders.")
    ],
    runtime: Annotated[str, typer.Option("--runtime", help="What executes them.")] = "onnxruntime",
    precision: Annotated[str | None, typer.Option("--precision", help="A number format of the runtime.")] = None,
    threads: Annotated[int, typer.Option("--threads", min=1)] = 1,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1)] = 1,
    resolution: Annotated[
        int | None, typer.Option("--resolution", min=1, help="Pixels, if not the model's own.")
    ] = None,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Visits of each model, in random order.")] = 30,
    table: Annotated[
        Path | None, typer.Option("--table", help="A latency table or a run: show its prediction.")
    ] = None,
    save: Annotated[Path | None, typer.Option("--save", help="Write the figures and their condition as JSON.")] = None,
    plugin: PluginOption = None,
) -> None:
    """Measure whole models: median milliseconds of an inference, next to a latency table's prediction."""
    from experiments import measuring
    from experiments.artifacts import environment
    from experiments.console import Screen
    from experiments.plugins import import_plugins
    from search.runtimes import runtime as chosen
    from supernet import schema

    import_plugins(plugin or [])
    screen, device = Screen(), chosen(runtime, threads=threads, precision=precision)
    found = [measuring.measurable(model, resolution_px=resolution) for model in dict.fromkeys(models)]
    known = None if table is None else measuring.table_at(table)
    if known is not None:
        measuring.check_condition(known, device, batch_size=batch_size)
        measuring.check_resolution(known, found)
    results = measuring.measured(found, device, batch_size=batch_size, rounds=rounds, table=known, screen=screen)
    plural = "s" if threads > 1 else ""
    title = f"{device.name} {device.version}, {device.precision}, batch {batch_size}, {threads} thread{plural}"
    screen.table(title, ["model", "median ms", "10 % to 90 %", "predicted", "ratio"], measuring.rows_of(results))
    if save is not None:
        record = measuring.Measurement(
            runtime=device.name,
            version=device.version,
            precision=device.precision,
            threads=threads,
            batch_size=batch_size,
            environment=environment(threads=threads, command=command_line()),
            models=tuple(results),
        )
        schema.save(record, save)
        screen.line(f"Written: {save}")


def audit(
    run: Annotated[Path, typer.Argument(help="The folder of a run whose table is measured.")],
    nets: Annotated[int, typer.Option("--nets", min=2, help="Random whole nets that the table has not seen.")] = 200,
    rounds: Annotated[int, typer.Option("--rounds", min=2, help="Visits of each net, in random order.")] = 100,
    seed: Annotated[int, typer.Option("--seed", help="Draws other nets.")] = 0,
    budgets: Annotated[
        int | None, typer.Option("--budgets", min=2, help="Instead, deliver nets for so many budgets, measured afresh.")
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option("--against", help="Instead, compare with this table, or another run's: measured twice, the same?"),
    ] = None,
    override: SetOption = None,
    plugin: PluginOption = None,
) -> None:
    """Say how wrong a run's latency table is, beside MACs, parameters and parts timed alone."""
    from experiments.auditing import audit_run, print_audit, save_audit
    from experiments.budgets import audit_budgets, print_delivery, save_delivery
    from experiments.comparing import compare_tables, print_agreement
    from experiments.console import Screen
    from experiments.measuring import check_condition
    from experiments.plugins import import_plugins
    from experiments.run import Run
    from supernet import UserError

    import_plugins(plugin or [])
    described, folder = opened(run, None, tuple(override or ()))
    if "table" not in (folder.manifest.stages if folder.exists else {}):
        raise UserError(f"{run}: has no latency table yet; slimformer table {run} measures one")
    if budgets is not None and against is not None:
        raise UserError("--budgets and --against are two questions: give one of them")
    if against is not None:
        folder.check_artifacts("table")
        agreed, path = compare_tables(described, run, against, nets=nets, seed=seed)
        print_agreement(agreed, path, Screen())
        return
    if described.table.bundle is not None:
        raise UserError(f"{run}: its table is of another device, so nothing can be measured against it here")
    folder.check_artifacts("table")
    measured = Run(described, folder, Screen(), command=command_line(), plugins=plugin or ())
    check_condition(measured.table, measured.runtime, batch_size=described.table.batch_size)
    if budgets is not None:
        delivered = audit_budgets(measured, budgets=budgets, rounds=rounds, seed=seed)
        print_delivery(delivered, save_delivery(delivered, folder.path), measured.screen)
    else:
        record = audit_run(measured, nets=nets, rounds=rounds, seed=seed)
        print_audit(record, save_audit(record, folder.path), measured.screen)


def study(
    study: Annotated[Path, typer.Argument(help="A study's YAML file.", callback=there)],
    out: Annotated[Path | None, typer.Option("--out", help="The study's folder (default: runs/NAME).")] = None,
    override: SetOption = None,
    report: Annotated[bool, typer.Option("--report", help="Only write records and figures of what is done.")] = False,
    plugin: PluginOption = None,
) -> None:
    """Prove or disprove, with many trainings, that scores rank nets and that search pays. Run it again to go on."""
    from experiments.console import Screen
    from experiments.plugins import import_plugins
    from experiments.study import load_study, studied_run
    from experiments.studying import run_study
    from train.data import count_images

    import_plugins(plugin or [])
    described = load_study(study, overrides=tuple(override or ()))
    run = studied_run(described, Screen(), command=command_line(), plugins=plugin or ())
    count_images(run.experiment.data)
    run_study(described, run, out if out is not None else Path("runs") / described.name, only_report=report)


TOOLS: tuple[Callable[..., None], ...] = (models, predict, convert, measure, audit, study)
"""In the order of `slimformer --help`."""
