"""The stages of a run, in order: each reads the files before it and writes its own."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from analysis.report import write_report
from experiments.bundles import bundle_files, read_table_bundle
from experiments.console import counted
from experiments.experiment import Experiment
from experiments.exporting import export_models
from experiments.importances import IMPORTANCE_FILES, MEASURED, measured_kinds
from experiments.limits import check_device_tables, device_tables
from experiments.models import (
    EvaluatedModel,
    Evaluation,
    Found,
    FoundModel,
    Job,
    UnreachableModel,
    exported,
    found,
    onnx_file,
    trained_model,
)
from experiments.retraining import found_architecture, retrain_found, trained_files
from experiments.run import AUDIT, Run
from experiments.scoring import Scorer, discretization_gap
from experiments.solving import EVOLUTION, PROOFS, TRAJECTORIES, Solver, architecture_path
from experiments.workers import retrain_at_once
from search.importance import importance_of
from search.latency_audit import audit
from search.latency_table import LatencyTable
from search.measure import Timing
from search.slimming import BudgetUnreachable, Unreachable, WalkEnded
from search.table_building import build_table
from search.table_journal import Journal
from supernet import Architecture, Supernet, cost
from supernet.onnx_export import OnnxModel
from supernet.schema import UserError, plain, save
from train.distillation import teacher_files
from train.evaluation import accuracy
from train.loop import checkpoint_path, metrics_path
from train.retraining import check_retraining
from train.supernet_training import NAME as SUPERNET
from train.supernet_training import train_supernet, weights_path

TABLE_JOURNAL = "latency-table.part.jsonl"
GAP_REFIT_IMAGES = 1024
GAP_SCORE_IMAGES = 5000  # half a point of standard error at 85 %


@dataclass(frozen=True)
class Stage:
    """One step of the line.

    `settings` is what it takes of the config's plain data, `reads` names the stages whose files it reads,
    `reads_files` are a user's own; `builds` says that it builds models, so that plugins and the number of classes
    count, `searches` that a user's search methods do as well. `check` raises `UserError` for what would stop it and can
    be known before the stages that come first have taken their hours.
    """

    name: str
    run: Callable[[Run], list[Path]]
    settings: Callable[[dict[str, Any]], dict[str, Any]]
    reads: Callable[[Experiment], tuple[str, ...]]
    reads_images: bool = True
    builds: bool = True
    searches: bool = False
    reads_files: Callable[[Experiment], tuple[Path, ...]] = lambda experiment: ()
    check: Callable[[Run], object] = lambda run: None


def train_supernet_stage(run: Run) -> list[Path]:
    """Train the supernet; write its weights, metrics and `importance.json`."""
    experiment = run.experiment
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(experiment.seeds.supernet)
        supernet = Supernet(run.space)
    with run.screen.bar("training the supernet") as advance:
        train_supernet(
            supernet,
            run.data,
            experiment.supernet,
            seed=experiment.seeds.supernet,
            directory=run.supernet_directory,
            progress=advance,
            device=run.device,
        )
    run.supernet = supernet
    temperature = experiment.supernet.temperature.end
    gap_scorer = Scorer(  # not the search's: what that asks for must not count for the supernet
        supernet,
        run.data,
        refit_images=GAP_REFIT_IMAGES,
        score_images=GAP_SCORE_IMAGES,
        batch_size=experiment.supernet.batch_size,
        precision=experiment.supernet.precision,
        cache=None,
    )
    importance = importance_of(
        supernet,
        mixing=experiment.supernet.mixing,
        temperature=temperature,
        discretization_gap=discretization_gap(supernet, gap_scorer, temperature=temperature),
    )
    save(importance, run.path / IMPORTANCE_FILES["alpha"])
    del run.supernet  # the gap has re-fitted its batch norm; who needs it reads the file
    return [
        weights_path(run.supernet_directory),
        metrics_path(run.supernet_directory, SUPERNET),
        run.path / IMPORTANCE_FILES["alpha"],
    ]


def table_stage(run: Run) -> list[Path]:
    """Measure the latency table, and the whole nets that audit it, all interleaved, or take a bundle's."""
    table, timings = read_table_bundle(run) if run.elsewhere else _measured_table(run)
    checked = audit(table, timings)
    table_path, audit_path = run.path / table.file_name, run.path / AUDIT
    after = checked.held_out.mean_absolute_error_percent if checked.held_out else None
    table.corrected(checked.correction, held_out_error_percent=after).save(table_path)
    checked.save(audit_path)
    for stale in {*run.folder.manifest.begun["table"].replaces} - {table_path.name, audit_path.name}:
        (run.path / stale).unlink(missing_ok=True)
    for one in table.left_out:
        run.screen.line(f"  warning: stage {one.stage} is searched without {one.candidate}: {one.reason}")
    loose = sum(not entry.settled for entry in table.entries)
    between = sum(entry.interpolated for entry in table.entries)
    run.screen.line(
        f"  {len(table.entries)} entries{f', {between} of them between measured ones' if between else ''}"
        f"{f', {loose} of them not settled' if loose else ''};"
        f" on {len(checked.pairs)} whole nets: mean absolute error"
        f" {checked.mean_absolute_error_percent:.1f} % before the correction"
        + (f", {after:.1f} % after it on nets it was not fitted to" if after is not None else "")
    )
    return [table_path, audit_path]


def check_table(run: Run) -> None:
    """Raise `UserError` for what would stop the table."""
    if run.elsewhere:
        read_table_bundle(run)
    else:
        _ = run.space, run.runtime


def _measured_table(run: Run) -> tuple[LatencyTable, dict[Architecture, Timing]]:
    config = run.experiment.table
    with run.screen.bar("measuring blocks and whole nets") as advance:
        return build_table(
            run.space,
            run.runtime,
            batch_size=config.batch_size,
            rounds=config.rounds,
            copies=config.copies,
            seed=run.experiment.seeds.table,
            standard_error_percent=config.standard_error_percent,
            most_seconds=60 * config.most_minutes,
            whole_nets=run.audit_nets,
            processes=run.threads,
            journal=Journal(run.path / TABLE_JOURNAL, told=lambda line: run.screen.line(f"  {line}")),
            progress=counted(advance),
        )


def search_stage(run: Run) -> list[Path]:
    """Find, for every method and budget, an architecture whose whole net measures within the budget.

    Writes also the kinds of importance that the config asks for.
    """
    search, table = run.experiment.search, run.table
    space = run.runnable_space
    largest_ms, smallest_ms = table.latency_ms(space.largest), table.latency_ms(table.fastest(space))
    budgets = run.budgets_ms
    if budgets[0] * (1 - search.margin) < smallest_ms:
        raise BudgetUnreachable(budgets[0], smallest_ms / (1 - search.margin))
    solver = Solver(run)
    if "search" in search.methods:
        with suppress(WalkEnded):  # which is said below, of the budgets that the way does not reach
            solver.slimmed((1 - search.margin) * budgets[0], method="search")
    models: list[FoundModel] = []
    unreachable: list[UnreachableModel] = []
    paths = [run.path / IMPORTANCE_FILES[kind] for kind in measured_kinds(search)]
    for kind, path in zip(measured_kinds(search), paths, strict=True):
        save(solver.importance(kind), path)
    for job in (Job(method=method, budget_ms=budget) for method in search.methods for budget in budgets):
        try:
            delivery = solver.deliver(job)
        except Unreachable as reason:
            if job.method == "search" and not isinstance(reason, WalkEnded):
                raise
            unreachable.append(UnreachableModel(job=job, reason=str(reason)))
            run.screen.line(f"  {job.name}: {reason}")
            continue
        path = architecture_path(run.path, job)
        delivery.architecture.save(path)
        paths.append(path)
        last = delivery.delivered
        models.append(
            FoundModel(
                job=job,
                digest=last.digest,
                predicted_ms=last.predicted_ms,
                rounds=delivery.rounds,
                shortfall=delivery.shortfall,
            )
        )
        run.screen.line(
            f"  {job.name}: predicted {last.predicted_ms:.3f} ms, "
            + ("to be measured on the device" if last.measured_ms is None else f"measured {last.measured_ms:.3f} ms")
            + f" after {len(delivery.rounds)} round{'s' if len(delivery.rounds) > 1 else ''}"
            + (f"; {delivery.shortfall}" if delivery.shortfall else "")
        )
    if not models:
        raise UserError("; ".join(dict.fromkeys(one.reason for one in unreachable)))
    paths += [*solver.save_trajectories(), *solver.save_proofs()]
    result = Found(
        budgets_ms=budgets,
        largest_ms=largest_ms,
        smallest_ms=smallest_ms,
        models=tuple(models),
        unreachable=tuple(unreachable),
    )
    save(result, run.path / "found.json")
    return [*paths, run.path / "found.json"]


def retrain_stage(run: Run) -> list[Path]:
    """Retrain every architecture that was found, each standalone; on a CPU several at once."""
    models = found(run.path).models
    first = {model.digest: model.job for model in reversed(models)}  # of those who ask for the same architecture
    left = [job for job in first.values() if not trained_files(run.path / "models" / job.name)[0].exists()]
    processes = min(run.processes, len(first))  # whatever is left, so that each always has the same share of threads
    if processes > 1 and left:
        largest_first = sorted(left, key=lambda job: -cost(found_architecture(run, job)).macs)  # none is left for last
        retrain_at_once(run, largest_first, processes=processes)
    paths = []
    for number, model in enumerate(models, start=1):
        with run.screen.bar(f"training {model.job.name} ({number} of {len(models)})") as advance:
            paths += retrain_found(run, model.job, progress=advance)
    return paths


def evaluate_stage(run: Run) -> list[Path]:
    """Count the test images, once, with every delivered model."""
    delivered = exported(run.path)
    config = run.experiment.evaluate
    models = []
    with run.screen.bar("test images") as advance:
        for number, model in enumerate(delivered.models, start=1):
            folder = run.path / "delivered" / model.job.name
            file = onnx_file(delivered.precision)
            net: nn.Module
            if delivered.precision == "int8":  # what is delivered computes something else than its weights in fp32
                net = OnnxModel(folder / file, threads=run.threads)
            else:
                net = trained_model(Architecture.load(folder / "architecture.yaml"), folder / "model.safetensors")
                net.to(run.device)
            counted = accuracy(net, run.data.test, batch_size=config.batch_size, precision="fp32")
            advance(number, len(delivered.models), {"%": counted.percent})
            models.append(
                EvaluatedModel(
                    name=model.job.name,
                    method=model.job.method,
                    budget_ms=model.job.budget_ms,
                    predicted_ms=model.predicted_ms,
                    measured_ms=model.measured_ms,
                    measured_p10_ms=model.measured_p10_ms,
                    measured_p90_ms=model.measured_p90_ms,
                    within_budget=model.within_budget,
                    runtime=delivered.runtime,
                    correct=counted.correct,
                    accuracy_percent=counted.percent,
                    parameters=model.parameters,
                    macs=model.macs,
                    onnx_max_difference=model.onnx_max_difference,
                    architecture=run.folder.relative(folder / "architecture.yaml"),
                    weights=run.folder.relative(folder / "model.safetensors"),
                    onnx=run.folder.relative(folder / file),
                    start=run.experiment.train.start,
                    seed=run.experiment.seeds.train,
                )
            )
    result = Evaluation(
        test_set=run.experiment.data.path,
        test_images=len(run.data.test),
        models=tuple(models),
        unreachable=found(run.path).unreachable,
    )
    save(result, run.path / "evaluation.json")
    return [run.path / "evaluation.json"]


def report_stage(run: Run) -> list[Path]:
    """Draw the report from the files of the other stages."""
    return [write_report(run.path)]


def _of(*fields: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """The settings under these dotted names."""

    def settings(config: dict[str, Any]) -> dict[str, Any]:
        taken: dict[str, Any] = {}
        for field in fields:
            value: Any = config
            for part in field.split("."):
                value = value[part]
            taken[field] = value
        if "data" in taken:  # how many processes decode changes nothing
            taken["data"] = {name: value for name, value in taken["data"].items() if name != "workers"}
        return taken

    return settings


def _files_of(*stages: str) -> Callable[[Experiment], tuple[str, ...]]:
    return lambda experiment: stages


def _read_by_retraining(experiment: Experiment) -> tuple[str, ...]:
    return ("supernet", "search") if experiment.train.start == "inherited" else ("search",)


STAGES: tuple[Stage, ...] = (
    Stage(
        "supernet",
        train_supernet_stage,
        _of("data", "space", "supernet", "seeds.data", "seeds.supernet"),
        _files_of(),
    ),
    Stage(
        "table",
        table_stage,
        _of("data.resolution_px", "data.channels", "space", "table", "seeds.table"),
        _files_of(),
        reads_images=False,
        reads_files=lambda experiment: bundle_files(experiment.table.bundle),
        check=check_table,
    ),
    Stage(
        "search",
        search_stage,
        _of("search", "evaluate", "seeds.search"),
        _files_of("supernet", "table"),
        reads_files=device_tables,
        searches=True,
        check=check_device_tables,
    ),
    Stage(
        "retrain",
        retrain_stage,
        _of("data", "train", "seeds.data", "seeds.train"),
        _read_by_retraining,
        reads_files=lambda experiment: teacher_files(experiment.train.distillation),
        check=lambda run: check_retraining(run.data, run.experiment.train),
    ),
    Stage(
        "export",
        export_models,
        _of("data", "evaluate", "search"),
        _files_of("supernet", "table", "search", "retrain"),
        searches=True,  # a model that is too slow gives way to another net
    ),
    Stage("evaluate", evaluate_stage, _of("data", "evaluate"), _files_of("search", "export")),
    Stage(
        "report",
        report_stage,
        _of("name"),
        _files_of("supernet", "table", "search", "evaluate"),
        reads_images=False,
        builds=False,
    ),
)


def stage_named(name: str) -> Stage:
    """The stage of this name. Raises `UserError` for an unknown one."""
    for stage in STAGES:
        if stage.name == name:
            return stage
    raise UserError(f"unknown stage {name!r} (known: {', '.join(stage.name for stage in STAGES)})")


def stage_settings(name: str, experiment: Experiment) -> dict[str, Any]:
    """The settings of an experiment that a stage depends on. Raises `UserError` for an unknown one."""
    stage = stage_named(name)
    classes = {"data.num_classes": experiment.data.num_classes} if stage.builds else {}
    return stage.settings(plain(experiment)) | classes


def clear_checkpoint(stage: str, folder: Path) -> None:
    """Remove what only an interrupted stage needs, once it is on record."""
    if stage == "supernet":
        checkpoint_path(folder / "supernet", SUPERNET).unlink(missing_ok=True)
    if stage == "table":
        (folder / TABLE_JOURNAL).unlink(missing_ok=True)


def clear_working_files(stage: str, folder: Path) -> None:
    """Remove what an interrupted or finished earlier try of a stage left behind, to begin it anew."""
    leftovers = {
        "supernet": ["supernet", "scores.jsonl"],
        "table": [TABLE_JOURNAL],
        "search": [
            "scores.jsonl",
            "architectures",
            EVOLUTION,
            f"{PROOFS}.json",
            *(f"{name}.jsonl" for name in TRAJECTORIES.values()),
            *(IMPORTANCE_FILES[kind] for kind in MEASURED),
        ],
        "retrain": ["models", "again"],
        "export": ["delivered", "again"],  # not on-device/: its results took a person, and belong to their plan
    }
    for name in leftovers.get(stage, []):
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
