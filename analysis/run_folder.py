"""Reading a run folder: what is there becomes records, what is not becomes a line with the command that makes it."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.architecture_outline import ArchitectureOutline
from analysis.files import (
    EvaluationFile,
    ExperimentFile,
    ImportanceFile,
    LatencyAuditFile,
    LatencyTableFile,
    ManifestFile,
    MetricRow,
    ModelRecord,
    ProofsFile,
    ProvenOptimum,
    SearchSettings,
    StepRecord,
)
from supernet.schema import UserError, load, parse, read_data


@dataclass(frozen=True)
class Missing:
    """A file that the folder lacks, what it would have shown, and the command that writes it."""

    file: str
    shows: str
    command: str


@dataclass(frozen=True)
class Run:
    """Everything a report is made of; a part is None or empty where its file is missing."""

    directory: Path
    experiment: ExperimentFile | None
    manifest: ManifestFile | None
    importance: ImportanceFile | None
    further_importances: tuple[ImportanceFile, ...]
    metrics: tuple[MetricRow, ...]
    audit: LatencyAuditFile | None
    tables: dict[str, LatencyTableFile]
    trajectory: tuple[StepRecord, ...]
    frontier: tuple[StepRecord, ...]
    programs: tuple[ProvenOptimum, ...]
    evaluation: EvaluationFile | None
    architectures: dict[str, dict[str, Any]]
    missing: tuple[Missing, ...]

    @property
    def budgets_ms(self) -> tuple[float, ...]:
        """The budgets in milliseconds, ascending: those of the models, or of the configuration."""
        if self.evaluation is not None and self.evaluation.models:
            return tuple(sorted({model.budget_ms for model in self.evaluation.models}))
        search = self.experiment.search if self.experiment is not None else SearchSettings()
        shares = search.budgets_of_largest if self.largest is not None else None
        largest_ms = 0.0 if self.largest is None else self.largest.latency_ms
        return tuple(sorted(search.budgets_ms or [share * largest_ms for share in shares or ()]))

    @property
    def largest(self) -> StepRecord | None:
        """Where every trajectory begins: the largest architecture of the search, or None without a trajectory."""
        return next(iter(self.trajectory or self.frontier), None)

    @property
    def name(self) -> str:
        """The experiment's name, or the folder's where no file says it."""
        if self.experiment is not None:
            return self.experiment.name
        return self.manifest.experiment if self.manifest is not None else self.directory.resolve().name

    def outline(self, model: ModelRecord) -> ArchitectureOutline | None:
        """The drawing data of a model's architecture, or None where its file is missing."""
        data = self.architectures.get(model.name)
        return None if data is None else outline(data, source=model.architecture)


_EXPECTED: tuple[tuple[str, str, str], ...] = (
    ("config.json", "name, seed, budgets and data", "run"),
    ("manifest.json", "environment and cost of each stage", "run"),
    ("supernet/supernet-metrics.csv", "training of the supernet", "supernet"),
    ("importance.json", "importance of every MetaPath", "supernet"),
    ("latency-*.json", "conditions of the latency table", "table"),
    ("latency-audit.json", "predicted against measured latency", "table"),
    ("trajectory.jsonl", "the search, step by step", "search"),
    ("trajectory-frontier.jsonl", "the search over the whole frontier, step by step", "search"),
    ("exact.json", "what the integer programs were solved to", "search"),
    ("evaluation.json", "the delivered models, the Pareto front and the comparison", "evaluate"),
)
_METHODS = {"trajectory.jsonl": "search", "trajectory-frontier.jsonl": "frontier", "exact.json": "exact"}  # whose it is


def read_run(directory: Path) -> Run:
    """Read every file of a run folder that is there.

    Raises `UserError` if the folder is missing or holds none of the files of an experiment, and, with the file's
    name, for a file that is malformed or of an unknown schema version.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise UserError(f"{directory}: no such folder")
    tables = sorted(path for path in directory.glob("latency-*.json") if path.name != "latency-audit.json")
    experiment = directory / "config.json"
    described = load(ExperimentFile, experiment) if experiment.exists() else None
    expected = _expected(SearchSettings() if described is None else described.search)
    absent = {file for file, _, _ in expected if not (tables if "*" in file else (directory / file).exists())}
    if len(absent) == len(expected):
        raise UserError(f"{directory}: holds no experiment (neither config.json nor any artifact)")

    def there(file: str) -> Path | None:
        return directory / file if file in {entry[0] for entry in expected} - absent else None

    importance = load(ImportanceFile, path) if (path := there("importance.json")) else None
    evaluation = load(EvaluationFile, path) if (path := there("evaluation.json")) else None
    architectures, lost = _architectures(directory, evaluation)
    return Run(
        directory=directory,
        experiment=described,
        manifest=load(ManifestFile, path) if (path := there("manifest.json")) else None,
        importance=importance,
        further_importances=_further_importances(directory, importance),
        metrics=read_metrics(path) if (path := there("supernet/supernet-metrics.csv")) else (),
        audit=load(LatencyAuditFile, path) if (path := there("latency-audit.json")) else None,
        tables={path.name: load(LatencyTableFile, path) for path in tables},
        trajectory=read_trajectory(path) if (path := there("trajectory.jsonl")) else (),
        frontier=read_trajectory(path) if (path := there("trajectory-frontier.jsonl")) else (),
        programs=load(ProofsFile, path).programs if (path := there("exact.json")) else (),
        evaluation=evaluation,
        architectures=architectures,
        missing=tuple(
            Missing(file, shows, f"slimformer {stage} {_shown(directory)}")
            for file, shows, stage in (*expected, *lost)
            if file in absent or (file, shows, stage) in lost
        ),
    )


def _expected(search: SearchSettings) -> tuple[tuple[str, str, str], ...]:
    """The files of a finished run with these settings."""
    asked = {search.importance, *search.further_importances} - {"alpha"}
    measured = [(f"importance-{kind}.json", f"importance by {kind}", "search") for kind in sorted(asked)]
    kept = [entry for entry in _EXPECTED if entry[0] not in _METHODS or _METHODS[entry[0]] in search.methods]
    after = 1 + [file for file, _, _ in kept].index("latency-audit.json")
    return (*kept[:after], *measured, *kept[after:])


def _further_importances(directory: Path, importance: ImportanceFile | None) -> tuple[ImportanceFile, ...]:
    """Every kind of importance that was measured. Raises `UserError` for one of other MetaPaths."""
    found = []
    for path in sorted(directory.glob("importance-*.json")):
        found.append(load(ImportanceFile, path))
        if importance is not None and found[-1].positions != importance.positions:
            raise UserError(f"{path}: has other MetaPaths than importance.json; redo the search stage")
    return tuple(found)


def read_metrics(path: Path) -> tuple[MetricRow, ...]:
    """Read the supernet's metrics, one row an epoch. Raises `UserError` that names a line which is not all numbers."""
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        rows = []
        for cells in reader:
            where = f"{path}: line {reader.line_num}"
            known = {name: cells.get(name) for name in MetricRow.model_fields}
            rows.append(parse(MetricRow, {k: _number(v, f"{where}, {k}") for k, v in known.items()}, source=where))
    return tuple(rows)


def read_trajectory(path: Path) -> tuple[StepRecord, ...]:
    """Read a trajectory, one step a line. Raises `UserError` that names the line which is cut short or wrong."""
    steps = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            data = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}: line {number} is not valid JSON ({error.msg}); redo the search stage") from None
        steps.append(parse(StepRecord, data, source=f"{path}: line {number}"))
    return tuple(steps)


def outline(data: dict[str, Any], *, source: str) -> ArchitectureOutline:
    """What a drawing shows of an architecture's plain data. Raises `UserError` that begins with `source`."""
    return parse(ArchitectureOutline, data, source=source)


def _architectures(
    directory: Path, evaluation: EvaluationFile | None
) -> tuple[dict[str, dict[str, Any]], list[tuple[str, str, str]]]:
    found: dict[str, dict[str, Any]] = {}
    lost = []
    for model in evaluation.models if evaluation else ():
        path = directory / model.architecture
        if not path.exists():
            lost.append((model.architecture, f"the drawing of {model.name}", "export"))
            continue
        data = read_data(path)
        if not isinstance(data, dict):
            raise UserError(f"{path}: expected a mapping of fields, found {type(data).__name__}")
        found[model.name] = data
    return found, lost


def _number(cell: str | None, where: str) -> float | None:
    if cell is None or not cell.strip():
        return None
    try:
        value = float(cell)
    except ValueError:
        raise UserError(f"{where}: {cell!r} is not a number") from None
    return value if abs(value) < float("inf") else None


def _shown(directory: Path) -> str:
    """The folder as a reader of the report would type it: relative where it lies below the working directory."""
    resolved, here = directory.resolve(), Path.cwd()
    return str(resolved.relative_to(here)) if resolved.is_relative_to(here) and resolved != here else resolved.name
