"""The console script `slimformer`. A user's mistake is one line on standard error and exit code 2."""

from __future__ import annotations

import shlex
import signal
import sys
from enum import Enum
from importlib.resources import files
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

# Everything that needs torch is imported inside the commands: `slimformer --help` answers at once.
if TYPE_CHECKING:
    from experiments.artifacts import RunFolder
    from experiments.experiment import Experiment

INTERRUPTED = 130

STAGE_HELP = {
    "supernet": "Train the supernet; write its weights, metrics and importance.json.",
    "table": "Measure the latency table, here or on another device, and audit it on random whole nets.",
    "search": "Find, for every method and budget, an architecture whose whole net measures within the budget.",
    "retrain": "Retrain every architecture that was found, each standalone.",
    "export": "Write ONNX files, check their parity, and measure the whole nets; slim on where one is over its budget.",
    "evaluate": "Count the test images, once, with every delivered model.",
    "report": "Draw the report from the files of the other stages.",
}


class ExportLayout(str, Enum):
    """The layouts that `slimformer convert` writes."""

    SLIMFORMER = "slimformer"
    TIMM = "timm"
    SNAP = "snap"
    SAIL = "sail"


app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Latency-driven slimming: MetaFormer models that meet a millisecond budget on your device.",
)

ExperimentArgument = Annotated[Path, typer.Argument(help="An experiment's YAML file, or the folder of a run.")]
OutOption = Annotated[Path | None, typer.Option("--out", help="The run folder (default: runs/NAME).")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="Override a field, such as train.epochs=5; may be repeated.")
]
RedoOption = Annotated[bool, typer.Option("--redo", help="Do again what the settings, or this command, touch.")]
PluginOption = Annotated[
    list[Path] | None, typer.Option("--plugin", help="Your Python file with blocks or runtimes; may be repeated.")
]


@app.command("run")
def run_command(
    experiment: ExperimentArgument,
    out: OutOption = None,
    until: Annotated[str | None, typer.Option(help="Stop after this stage.")] = None,
    override: SetOption = None,
    redo: RedoOption = False,
    plan: Annotated[bool, typer.Option("--plan", help="Only say what would be done, and how long it takes.")] = False,
    plugin: PluginOption = None,
) -> None:
    """Run an experiment: supernet, table, search, retrain, export, evaluate, report. Run it again to go on."""
    from experiments.console import Screen
    from experiments.pipeline import check_ahead, run_stages, up_to
    from experiments.plan import print_plan
    from experiments.plugins import import_plugins
    from experiments.run import Run
    from experiments.stages import stage_named
    from experiments.summary import print_summary
    from train.data import count_images

    import_plugins(plugin or [])
    if until is not None:
        stage_named(until)
    screen = Screen()
    described, folder = _opened(experiment, out, tuple(override or ()))
    if plan:
        print_plan(described, folder, screen)
        return
    count_images(described.data)  # quick, and said before images are decoded
    folder.check(described, redo=redo)
    run = Run(described, folder, screen, command=_command(), plugins=plugin or ())
    check_ahead(run, up_to(until), redo=redo)
    with folder.locked():
        folder.claim(described, redo=redo)
        run_stages(run, until=until)
        if until is None or until == "report":
            print_summary(run.path, screen)


@app.command()
def quickstart(out: OutOption = None) -> None:
    """Run the whole line on 1,797 real handwritten digits, in minutes."""
    path = Path(str(files("experiments").joinpath("quickstart.yaml")))
    run_command(path, out=out)


@app.command()
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


@app.command()
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


@app.command()
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


@app.command("measure")
def measure_command(
    models: Annotated[
        list[str], typer.Argument(help="Published names, architecture or ONNX files, folders of models.")
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
            environment=environment(threads=threads, command=_command()),
            models=tuple(results),
        )
        schema.save(record, save)
        screen.line(f"Written: {save}")


@app.command("audit")
def audit_command(
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
    from experiments import budgets as delivering
    from experiments import comparing
    from experiments.auditing import audit_run, rows_of, save_audit
    from experiments.console import Screen
    from experiments.measuring import check_condition
    from experiments.plugins import import_plugins
    from experiments.run import Run
    from supernet import UserError

    import_plugins(plugin or [])
    described, folder = _opened(run, None, tuple(override or ()))
    if "table" not in (folder.manifest.stages if folder.exists else {}):
        raise UserError(f"{run}: has no latency table yet; slimformer table {run} measures one")
    if budgets is not None and against is not None:
        raise UserError("--budgets and --against are two questions: give one of them")
    if against is not None:
        folder.check_artifacts("table")
        agreed, path = comparing.compare_tables(described, run, against, nets=nets, seed=seed)
        header = ["compared", "number", "mean %", "median %", "within 3 %", "worst %"]
        screen = Screen()
        screen.table(f"{agreed.environment}, {' and '.join(agreed.dates)}", header, comparing.rows_of(agreed))
        screen.line(
            f"The second took {agreed.speed:.3f} times as long, which is divided out. Largest difference: "
            f"{agreed.worst_entry.first_ms:.4f} and {agreed.worst_entry.second_ms:.4f} ms, {agreed.worst_entry.entry}."
            f" Written: {path}"
        )
        return
    if described.table.bundle is not None:
        raise UserError(f"{run}: its table is of another device, so nothing can be measured against it here")
    folder.check_artifacts("table")
    opened = Run(described, folder, Screen(), command=_command(), plugins=plugin or ())
    check_condition(opened.table, opened.runtime, batch_size=described.table.batch_size)
    if budgets is not None:
        delivered = delivering.audit_budgets(opened, budgets=budgets, rounds=rounds, seed=seed)
        title = f"Nets delivered for {budgets} budgets, {delivered.runtime} {delivered.version}"
        columns = ["budget ms", "predicted", "measured", "at table's speed", "slack %", "slack % then", "rounds"]
        opened.screen.table(title, columns, delivering.rows_of(delivered))
        opened.screen.line(
            f"{delivered.within_budget} of {budgets} within their budgets as measured,"
            f" {delivered.within_budget_at_tables_speed} at the table's speed (a net takes {delivered.speed:.2f} times"
            f" what it took then). Written: {delivering.save_delivery(delivered, folder.path)}"
        )
        return
    record = audit_run(opened, nets=nets, rounds=rounds, seed=seed)
    header = ["prediction", "error %", "within 3 %", "5 %", "10 %", "bias %", "worst %", "tau"]
    opened.screen.table(
        f"{record.num_architectures} whole nets, {record.runtime} {record.version}", header, rows_of(record)
    )
    opened.screen.line(
        f"Measured again, the same nets differ by {record.remeasurement_percent:.1f} % on average."
        f" Written: {save_audit(record, folder.path)}"
    )


@app.command("study")
def study_command(
    study: Annotated[Path, typer.Argument(help="A study's YAML file.")],
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
    run = studied_run(described, Screen(), command=_command(), plugins=plugin or ())
    count_images(run.experiment.data)
    run_study(described, run, out if out is not None else Path("runs") / described.name, only_report=report)


def _stage_command(name: str, summary: str) -> None:
    @app.command(name, help=summary)
    def command(
        experiment: ExperimentArgument,
        out: OutOption = None,
        override: SetOption = None,
        redo: RedoOption = False,
        plugin: PluginOption = None,
    ) -> None:
        _run_stage(name, experiment, out=out, override=override, redo=redo, plugin=plugin)


def _run_stage(
    name: str,
    experiment: Path,
    *,
    out: Path | None,
    override: list[str] | None,
    redo: bool,
    plugin: list[Path] | None,
) -> None:
    from experiments.console import Screen
    from experiments.pipeline import check_ahead, check_startable, run_stage
    from experiments.plugins import import_plugins
    from experiments.run import Run
    from experiments.stages import stage_named

    import_plugins(plugin or [])
    described, folder = _opened(experiment, out, tuple(override or ()))
    stage = stage_named(name)
    check_startable(stage, described, folder)
    folder.check(described, redo=redo)
    run = Run(described, folder, Screen(), command=_command(), plugins=plugin or ())
    check_ahead(run, (stage,), redo=redo)
    with folder.locked():
        folder.claim(described, redo=redo)
        run_stage(run, stage, redo=redo)


def table_command(
    experiment: ExperimentArgument,
    out: OutOption = None,
    override: SetOption = None,
    redo: RedoOption = False,
    bundle: Annotated[
        Path | None, typer.Option("--bundle", help="Write the nets here, to be measured on another device.")
    ] = None,
    measured: Annotated[
        Path | None, typer.Option("--import", help="Take the table from this bundle, measured on another device.")
    ] = None,
    plugin: PluginOption = None,
) -> None:
    """The latency table: measured here, written as a bundle for another device, or taken from one."""
    from experiments.bundles import write_table_bundle
    from experiments.console import Screen
    from experiments.plugins import import_plugins
    from experiments.run import Run
    from supernet import UserError

    if bundle is not None and measured is not None:
        raise UserError("--bundle writes what --import reads: give one of them")
    if measured is not None:
        override = [*(override or ()), f"table.bundle={measured}"]
    if bundle is None:
        _run_stage("table", experiment, out=out, override=override, redo=redo, plugin=plugin)
        return
    import_plugins(plugin or [])
    described, folder = _opened(experiment, out, tuple(override or ()))
    write_table_bundle(Run(described, folder, Screen(), command=_command(), plugins=plugin or ()), bundle)


for _name, _summary in STAGE_HELP.items():
    if _name == "table":
        app.command(_name, help=_summary)(table_command)
    else:
        _stage_command(_name, _summary)


def _opened(path: Path, out: Path | None, overrides: tuple[str, ...]) -> tuple[Experiment, RunFolder]:
    """The experiment that a YAML file or a run folder describes, and its folder."""
    from experiments.artifacts import RunFolder
    from experiments.experiment import load_experiment
    from supernet.schema import UserError

    if path.is_dir():
        if not (path / "config.json").exists():
            raise UserError(f"{path}: holds no run (no config.json); give an experiment's YAML file")
        if out is not None and out != path:
            raise UserError(f"--out {out}: the run folder {path} is given already")
        return load_experiment(path / "config.json", overrides=overrides), RunFolder(path)
    described = load_experiment(path, overrides=overrides)
    return described, RunFolder(out if out is not None else Path("runs") / described.name)


def _command() -> str:
    return shlex.join(["slimformer", *sys.argv[1:]])


def main() -> None:
    """Run the command line; exit code 2 for a user's mistake or a diverged training, 130 for an interruption."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        app()
    except ValueError as error:
        from supernet.schema import UserError

        if not isinstance(error, UserError):
            raise
        print(f"slimformer: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:  # a full disk, a folder that may not be read: the machine's, not the code's
        print(f"slimformer: {error}", file=sys.stderr)
        sys.exit(2)
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":
            raise
        print(f"slimformer: out of GPU memory ({str(error).split('. ')[0]}); lower a batch_size", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(_interrupted())
    except SystemExit as ended:
        if ended.code == INTERRUPTED:  # how typer answers Ctrl-C inside a command
            _interrupted()
        raise


def _terminate(number: int, frame: FrameType | None) -> None:
    """A scheduler's SIGTERM ends a run as Ctrl-C does: the time spent is noted down, and the run can go on."""
    raise KeyboardInterrupt


def _interrupted() -> int:
    print("slimformer: interrupted; run the same command again to go on", file=sys.stderr)
    return INTERRUPTED


if __name__ == "__main__":
    main()
