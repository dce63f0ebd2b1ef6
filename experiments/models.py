"""Which models a run makes: one for each method and budget, and what the stages write down about them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from experiments.experiment import Method
from search.delivery import DeliveryRound
from search.model_files import file_suffix
from supernet import Architecture, MetaFormer
from supernet.schema import Record, load
from train.checkpoint import load_weights


class Job(Record):
    """One model to make."""

    method: Method
    budget_ms: float

    @property
    def name(self) -> str:
        """The model's name and folder, such as search-2ms."""
        return f"{self.method}-{self.budget_ms:g}ms"


class FoundModel(Record):
    """An architecture whose whole net, with random weights, measured within its budget.

    `shortfall` is why it is faster than it had to be, if it is by more than `search.slack`.
    """

    job: Job
    digest: str
    predicted_ms: float
    rounds: tuple[DeliveryRound, ...]
    shortfall: str | None = None


class UnreachableModel(Record):
    """A method that has nothing within a budget, and why."""

    job: Job
    reason: str


class Found(Record):
    """What the search stage found: `architectures/NAME.yaml` for each model."""

    schema_version: Literal[1] = 1
    budgets_ms: tuple[float, ...]
    largest_ms: float
    smallest_ms: float
    models: tuple[FoundModel, ...]
    unreachable: tuple[UnreachableModel, ...]


class ProvenOptimum(Record):
    """What one integer program was solved to: no architecture within the limits has a modelled score above the bound.

    `used` and `at_most` are by limit. Scores correct the model, so it is another one in every program.
    """

    budget_ms: float
    digest: str
    modelled_percent: float
    bound_percent: float
    used: dict[str, float]
    at_most: dict[str, float]


class Proofs(Record):
    """Every integer program of a search, in order."""

    schema_version: Literal[1] = 1
    programs: tuple[ProvenOptimum, ...]


class ExportedModel(Record):
    """A trained model, exported and measured: latencies in ms, the ONNX file's largest difference in logits.

    `tries` counts trainings: above 1, the measured latency of an earlier net was over the budget. `measurements` counts
    those of this net: above 1, the first was over the budget, and the fastest of all is the one that stands here.
    `at_tables_speed_ms` is what the net takes at the speed that the machine had when the table was measured, judged by
    whole nets of the audit in the same rounds; null where another device measured.
    """

    job: Job
    digest: str
    predicted_ms: float
    measured_ms: float
    measured_p10_ms: float
    measured_p90_ms: float
    at_tables_speed_ms: float | None = None
    within_budget: bool
    tries: int
    measurements: int
    onnx_max_difference: float
    onnx_max_relative_difference: float
    parameters: int
    macs: int


DELIVERED_FILES = ("architecture.yaml", "model.safetensors", "model.onnx", "preprocessing.json")


def onnx_file(precision: str) -> str:
    """Which of a delivered model's ONNX files computes in this number format; in int8 it is tested too."""
    return "model-int8.onnx" if precision == "int8" else "model.onnx"


def measured_file(runtime: str, precision: str) -> str:
    """Which of a delivered model's files, or which folder, is measured."""
    suffix = file_suffix(runtime)
    return onnx_file(precision) if suffix == ".onnx" else f"model{suffix}"


class Exported(Record):
    """What the export stage delivered: `delivered/NAME/` holds `DELIVERED_FILES`, and `measured_file` beside them."""

    schema_version: Literal[1] = 1
    runtime: str
    precision: str
    threads: int
    batch_size: int
    models: tuple[ExportedModel, ...]


class EvaluatedModel(Record):
    """One delivered model with all of its figures; files are relative to the run folder."""

    name: str
    method: Method
    budget_ms: float
    predicted_ms: float
    measured_ms: float
    measured_p10_ms: float
    measured_p90_ms: float
    within_budget: bool
    runtime: str
    correct: int
    accuracy_percent: float
    parameters: int
    macs: int
    onnx_max_difference: float
    architecture: str
    weights: str
    onnx: str
    start: Literal["scratch", "inherited"]
    seed: int


class Evaluation(Record):
    """The last figures of a run: test images are counted once, here."""

    schema_version: Literal[1] = 1
    test_set: str
    test_images: int
    models: tuple[EvaluatedModel, ...]
    unreachable: tuple[UnreachableModel, ...]


def trained_model(architecture: Architecture, weights: Path) -> MetaFormer:
    """A model with trained weights, in eval mode."""
    model = MetaFormer(architecture)
    load_weights(model, weights)
    return model.eval()


def found(path: Path) -> Found:
    """Read what the search stage of a run folder found."""
    return load(Found, path / "found.json")


def exported(path: Path) -> Exported:
    """Read what the export stage of a run folder delivered."""
    return load(Exported, path / "exported.json")
