"""The console script `slimformer`. A user's mistake is one line on standard error and exit code 2."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

# Everything that needs torch is imported inside the commands: `slimformer --help` answers at once.
from experiments.cli_options import (
    ExperimentArgument,
    OutOption,
    PluginOption,
    RedoOption,
    SetOption,
    command_line,
    opened,
)
from experiments.cli_tools import TOOLS

INTERRUPTED = 130

STAGE_HELP = {
    "supernet": "Train the supernet; write its weights, metrics and importance.json.",
    "table": "Measure the latency table, here or on another device, and audit it on whole nets.",
    "search": "Find, for every method and budget, an architecture whose whole net measures within the budget.",
    "retrain": "Retrain every architecture that was found, each standalone.",
    "export": "Write ONNX files, check their parity, and measure the whole nets; slim on where one is over its budget.",
    "evaluate": "Count the test images, once, with every delivered model.",
    "report": "Draw the report from the files of the other stages.",
}


app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Latency-driven slimming: MetaFormer models that meet a millisecond budget on your device.",
)


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
    from experiments.stages import stage_named, stage_settings
    from experiments.summary import print_summary
    from train.data import count_images

    import_plugins(plugin or [])
    if until is not None:
        stage_named(until)
    screen = Screen()
    described, folder = opened(experiment, out, tuple(override or ()))
    if plan:
        print_plan(described, folder, screen)
        return
    count_images(described.data)  # quick, and said before images are decoded
    folder.check(described, redo=redo, settings=stage_settings)
    run = Run(described, folder, screen, command=command_line(), plugins=plugin or ())
    check_ahead(run, up_to(until), redo=redo)
    with folder.locked():
        folder.claim(described, redo=redo, settings=stage_settings)
        run_stages(run, until=until)
        if until is None or until == "report":
            print_summary(run.path, screen)


@app.command()
def quickstart(out: OutOption = None) -> None:
    """Run the whole line on 1,797 real handwritten digits, in minutes."""
    path = Path(str(files("experiments").joinpath("quickstart.yaml")))
    run_command(path, out=out)


for _tool in TOOLS:
    app.command()(_tool)


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
    from experiments.stages import stage_named, stage_settings

    import_plugins(plugin or [])
    described, folder = opened(experiment, out, tuple(override or ()))
    stage = stage_named(name)
    check_startable(stage, described, folder)
    folder.check(described, redo=redo, settings=stage_settings)
    run = Run(described, folder, Screen(), command=command_line(), plugins=plugin or ())
    check_ahead(run, (stage,), redo=redo)
    with folder.locked():
        folder.claim(described, redo=redo, settings=stage_settings)
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
    described, folder = opened(experiment, out, tuple(override or ()))
    write_table_bundle(Run(described, folder, Screen(), command=command_line(), plugins=plugin or ()), bundle)


def search_command(
    experiment: ExperimentArgument,
    out: OutOption = None,
    method: Annotated[
        list[str] | None, typer.Option("--method", help="Search by this method (search.methods); may be repeated.")
    ] = None,
    budget_ms: Annotated[
        list[float] | None, typer.Option("--budget-ms", help="For this budget (search.budgets_ms); may be repeated.")
    ] = None,
    override: SetOption = None,
    redo: RedoOption = False,
    plugin: PluginOption = None,
) -> None:
    """Architectures that meet the budgets, by each method."""
    asked = [f"search.methods=[{', '.join(method)}]"] if method else []
    if budget_ms:
        asked += ["search.budgets_of_largest=null", f"search.budgets_ms={budget_ms}"]
    _run_stage("search", experiment, out=out, override=[*asked, *(override or ())], redo=redo, plugin=plugin)


_OWN_COMMANDS: dict[str, Callable[..., None]] = {"table": table_command, "search": search_command}
for _name, _summary in STAGE_HELP.items():
    if _name in _OWN_COMMANDS:
        app.command(_name, help=_summary)(_OWN_COMMANDS[_name])
    else:
        _stage_command(_name, _summary)


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
    print("slimformer: interrupted; the same command goes on from what was finished", file=sys.stderr)
    return INTERRUPTED


if __name__ == "__main__":
    main()
