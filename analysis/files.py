"""Records for reading the files of a run folder: what the report needs of them, and nothing else.

The rooms that write these files define them completely; analysis may not import those rooms, so it reads the fields
it draws and ignores the rest. An unknown schema version, a missing field and a wrong type are refused, never guessed.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from supernet.schema import Record

Share = Annotated[float, Field(ge=0, le=1)]
Milliseconds = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]


class FileRecord(Record):
    """A record that reads a file written by another room: frozen and strict, but blind to fields it does not draw."""

    model_config = ConfigDict(extra="ignore")


# ------------------------------------------------------------------------------------------------- config, manifest
class DataSource(FileRecord):
    """Where the images came from."""

    path: str


class SearchSettings(FileRecord):
    """The budgets: milliseconds, or shares of the largest architecture's predicted latency."""

    budgets_ms: tuple[Milliseconds, ...] | None = None
    budgets_of_largest: tuple[Share, ...] | None = None
    methods: tuple[str, ...] = ("search", "uniform", "random")
    importance: str = "alpha"
    further_importances: tuple[str, ...] = ()


class ExperimentFile(FileRecord):
    """`config.json`: the name, the seeds, the budgets and the data of an experiment."""

    schema_version: Literal[1]
    name: str
    seeds: dict[str, int] = {}
    search: SearchSettings = SearchSettings()
    data: DataSource | None = None


class Environment(FileRecord):
    """What an experiment ran on: versions, machine, commit, command."""

    python: str
    packages: dict[str, str] = {}
    machine: dict[str, Any] = {}
    threads: int | None = None
    commit: str | None = None
    dirty: bool | None = None
    command: str | None = None

    @property
    def without_command(self) -> str:
        """What two stages have in common if they ran in the same environment: everything but the command."""
        return self.model_copy(update={"command": None}).model_dump_json()


class StageRun(FileRecord):
    """One finished stage of the pipeline: its wall time in seconds, the seeds it used and what it ran on."""

    seconds: Annotated[float, Field(ge=0)]
    started: str | None = None
    seeds: dict[str, int] = {}
    environment: Environment | None = None


class ManifestFile(FileRecord):
    """`manifest.json`: stages in the order in which they ran, and the environment of the last one."""

    schema_version: Literal[1]
    experiment: str
    environment: Environment | None = None
    stages: dict[str, StageRun] = {}


# ----------------------------------------------------------------------------------------------------------- supernet
class MetaPathImportance(FileRecord):
    """The learned probabilities of the candidates at one position (stage and block count from 1), and its score."""

    stage: Annotated[int, Field(ge=1)]
    block: Annotated[int, Field(ge=1)]
    candidates: Annotated[tuple[str, ...], Field(min_length=1)]
    probabilities: tuple[Share, ...]
    score: float | None

    @model_validator(mode="after")
    def _one_probability_a_candidate(self) -> MetaPathImportance:
        if len(self.probabilities) != len(self.candidates):
            raise ValueError(
                f"stage {self.stage} block {self.block}: {len(self.probabilities)} probabilities "
                f"for {len(self.candidates)} candidates"
            )
        if abs(sum(self.probabilities) - 1) > 1e-3:
            raise ValueError(
                f"stage {self.stage} block {self.block}: probabilities add to {sum(self.probabilities):g}, not 1"
            )
        return self


class StageImportance(FileRecord):
    """The score of a stage: the sum over its MetaPaths."""

    stage: Annotated[int, Field(ge=1)]
    score: float | None


class DiscretizationGap(FileRecord):
    """Held-out accuracy of the soft mixture against the one path that was chosen, percent."""

    soft_accuracy_percent: float
    hard_accuracy_percent: float
    gap_points: float


class ImportanceFile(FileRecord):
    """`importance.json` and `importance-*.json`: how much every MetaPath matters, by one kind of score."""

    schema_version: Literal[1]
    kind: Literal["alpha", "removal", "taylor"] = "alpha"
    mixing: str | None = None
    temperature: float | None = None
    metapaths: Annotated[tuple[MetaPathImportance, ...], Field(min_length=1)]
    stages: tuple[StageImportance, ...]
    discretization_gap: DiscretizationGap | None = None

    @property
    def positions(self) -> tuple[tuple[int, int], ...]:
        """Stage and block number of every MetaPath, in the order of the file."""
        return tuple((metapath.stage, metapath.block) for metapath in self.metapaths)


class MetricRow(FileRecord):
    """One epoch of `supernet-metrics.csv`; an empty cell is None. Entropy is the MetaPaths' mean, in nats."""

    epoch: float | None = None
    train_loss: float | None = None
    held_out_loss: float | None = None
    alpha_entropy: float | None = None


# ------------------------------------------------------------------------------------------------------------ latency
class LatencyPair(FileRecord):
    """One whole net: the milliseconds that the table predicted and those measured (median, p10, p90)."""

    digest: str = ""
    predicted_ms: Milliseconds
    measured_ms: Milliseconds
    measured_p10_ms: Milliseconds | None = None
    measured_p90_ms: Milliseconds | None = None
    parameters: int = 0
    numbers: int = 0
    kinds_ms: dict[str, float] = {}


class Crowding(FileRecord):
    """What finds no room in a cache: ms a million parameters, or numbers of weights and maps, above so many million."""

    of: Literal["parameters", "numbers"] = "parameters"
    above_millions: float
    ms_per_million: float


class Correction(FileRecord):
    """What takes a prediction to a better one: constant_ms + scale * (scales[kind] * ms, summed up) + crowding."""

    constant_ms: float
    scale: float
    scales: dict[str, float] = {}
    crowding: Crowding | None = None

    def of(self, pair: LatencyPair) -> float:
        """The corrected prediction of a net, in ms."""
        known = pair.kinds_ms or {"": pair.predicted_ms}  # records from before there were kinds
        crowded_ms = 0.0
        if self.crowding is not None:
            count = pair.numbers if self.crowding.of == "numbers" else pair.parameters
            above_millions = max(0.0, count / 1e6 - self.crowding.above_millions)
            crowded_ms = self.crowding.ms_per_million * above_millions
        scaled_ms = self.scale * sum(self.scales.get(kind, 1.0) * ms for kind, ms in known.items())
        return self.constant_ms + scaled_ms + crowded_ms


class HeldOut(FileRecord):
    """A correction fitted on the first `fitted` nets, and its errors on the other ones."""

    fitted: Count
    correction: Correction
    mean_absolute_error_percent: float
    worst_percent: float | None = None


class LatencyAuditFile(FileRecord):
    """`latency-audit.json`: whole nets, predicted by the table before any correction, and measured."""

    schema_version: Literal[1]
    runtime: str
    precision: str
    threads: int
    pairs: Annotated[tuple[LatencyPair, ...], Field(min_length=1)]
    mean_absolute_error_percent: float
    bias_percent: float | None = None
    worst_percent: float | None = None
    kendall_tau: float | None = None
    remeasurement_percent: float | None = None
    correction: Correction | None = None
    held_out: HeldOut | None = None


class Runtime(FileRecord):
    """The program that ran the nets."""

    name: str
    version: str = ""


class LatencyTableFile(FileRecord):
    """`latency-*.json`: the conditions of a latency table and how many entries it has."""

    schema_version: Literal[1]
    runtime: Runtime
    precision: str
    threads: int
    batch_size: int
    resolution_px: tuple[int, int] | None = None
    machine: dict[str, Any] = {}
    date: str | None = None
    entries: list[Any]

    @property
    def between(self) -> int:
        """How many entries were not measured but lie between measured ones."""
        return self._marked("interpolated", True)

    @property
    def loose(self) -> int:
        """How many entries are not known as well as was asked for."""
        return self._marked("settled", False)

    def _marked(self, field: str, value: bool) -> int:
        return sum(isinstance(entry, dict) and entry.get(field) is value for entry in self.entries)


# --------------------------------------------------------------------------------------------------------- trajectory
class ActionRecord(FileRecord):
    """One step smaller. Which of the numbers are set depends on the kind; they count from 1."""

    kind: str
    stage: int | None = None
    block: int | None = None
    width_channels: int | None = None
    candidate: str | None = None


class AlternativeRecord(FileRecord):
    """An action that was scored at a step, chosen or not, and why not."""

    action: ActionRecord
    latency_ms: float | None = None
    accuracy_percent: float | None = None
    saved_ms: float | None = None
    accuracy_drop_points: float | None = None
    drop_per_ms: float | None = None
    drop_per_mes: float | None = None
    chosen: bool = False
    reason: str | None = None

    @property
    def drop_per_gain(self) -> float | None:
        """The drop in points per millisecond saved, or per point of the score that the search went by instead."""
        return self.drop_per_ms if self.drop_per_mes is None else self.drop_per_mes


class StepRecord(FileRecord):
    """One line of a trajectory; step 0 is the largest architecture and has no action."""

    step: Count
    action: ActionRecord | None
    architecture: dict[str, Any]
    latency_ms: Milliseconds
    accuracy_percent: float | None
    saved_ms: float | None = None
    accuracy_drop_points: float | None = None
    alternatives: tuple[AlternativeRecord, ...] = ()


# --------------------------------------------------------------------------------------------------------- evaluation
class ModelRecord(FileRecord):
    """One retrained, exported and measured model. Paths are relative to the run folder."""

    name: str
    method: str
    budget_ms: Milliseconds
    predicted_ms: Milliseconds
    measured_ms: Milliseconds
    measured_p10_ms: Milliseconds | None = None
    measured_p90_ms: Milliseconds | None = None
    runtime: str
    correct: Count
    accuracy_percent: Annotated[float, Field(ge=0, le=100)]
    parameters: Count
    macs: Count
    onnx_max_difference: float | None = None
    architecture: str
    weights: str | None = None
    onnx: str | None = None
    start: str = "scratch"
    seed: int | None = None

    @property
    def within_budget(self) -> bool:
        """Whether the median latency of the whole exported net is at most the budget."""
        return self.measured_ms <= self.budget_ms


class JobRecord(FileRecord):
    """One model that was asked for."""

    method: str
    budget_ms: Milliseconds


class UnreachableRecord(FileRecord):
    """A method that has no model within a budget, and why."""

    job: JobRecord
    reason: str


class ProvenOptimum(FileRecord):
    """What one integer program was solved to; scores in percent, `used` and `at_most` by limit."""

    budget_ms: Milliseconds
    modelled_percent: float
    bound_percent: float
    used: dict[str, float]
    at_most: dict[str, float]


class ProofsFile(FileRecord):
    """`exact.json`: the integer programs of a search, in order."""

    schema_version: Literal[1]
    programs: tuple[ProvenOptimum, ...]


class EvaluationFile(FileRecord):
    """`evaluation.json`: every model, tested once on the same test images."""

    schema_version: Literal[1]
    test_images: Annotated[int, Field(gt=0)]
    test_set: str | None = None
    models: tuple[ModelRecord, ...]
    unreachable: tuple[UnreachableRecord, ...] = ()

    @model_validator(mode="after")
    def _counts_agree(self) -> EvaluationFile:
        for model in self.models:
            percent = 100 * model.correct / self.test_images
            if abs(percent - model.accuracy_percent) > 0.06:
                raise ValueError(
                    f"{model.name}: {model.correct} of {self.test_images} images correct is {percent:.2f} %, "
                    f"not {model.accuracy_percent:g} %"
                )
        return self
