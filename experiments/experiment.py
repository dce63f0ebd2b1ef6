"""Experiment: a whole run as one validated, frozen value, read from YAML; a variant changes one line of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import yaml
from pydantic import Field, field_validator, model_validator

from search.efficiency import MobileEfficiency
from search.importance import ImportanceKind
from search.methods import search_method, takes_importance
from supernet.schema import Record, RecordT, UserError, parse, parse_yaml, read_data
from supernet.space import SearchSpace, SpaceShape
from train.data import DataConfig
from train.retraining import RetrainConfig
from train.supernet_training import SupernetConfig

Positive = Annotated[int, Field(gt=0)]
Milliseconds = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(gt=0, lt=1)]


Method = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
"""The name of a search method (`search.methods`); that there is one is checked where it is asked for."""


class Seeds(Record):
    """One seed for each thing that is drawn, so that a search can be repeated with other retrainings."""

    data: int = 0
    supernet: int = 0
    table: int = 0
    search: int = 0
    train: int = 0


class TableConfig(Record):
    """Where and how latency is measured.

    `precision` is a number format that the runtime has (null: its usual one, fp32 for those of the project);
    `rounds` interleaved visits of every net; a block's time is that of `copies` more copies in a small net, divided
    (of fewer where the stage is not that deep; 4 know it within a tenth as well as the best number does in the same
    time, because noise grows nearly as a net's time: LOG.md).
    After the rounds, nets are measured on until the standard error of every entry, and of every whole net, is at most
    `standard_error_percent` of it (of an entry also a tenth of that of the largest net). `most_minutes` after the
    beginning all that ends, the first rounds too, and what is not known as well is marked; where nets take long to
    build it ends later, because half of these minutes are for measuring.
    `audit_nets` whole nets, spread over the range, are measured against their predictions. `bundle` is the folder of a
    bundle that was measured on another device (`slimformer table --bundle`): the table, and all latencies of the run,
    are that one's.
    """

    added_later: ClassVar[frozenset[str]] = frozenset({"bundle"})

    runtime: str = "onnxruntime"
    precision: str | None = None
    threads: Positive = 1
    batch_size: Positive = 1
    rounds: Annotated[int, Field(ge=2)] = 30
    standard_error_percent: Annotated[float, Field(gt=0)] = 1.0
    most_minutes: Annotated[float, Field(ge=0)] = 3.0
    copies: Positive = 4
    audit_nets: Annotated[int, Field(ge=4)] = 20
    bundle: str | None = None


class FrontierConfig(Record):
    """What greedy slimming over the whole frontier divides an action's loss of accuracy by.

    `gain` is milliseconds saved ("ms"), or what the Mobile Efficiency Score of size and latency rises by ("mes"), whose
    constants `mes` holds.
    """

    gain: Literal["ms", "mes"] = "ms"
    mes: MobileEfficiency = MobileEfficiency()


class EvolutionConfig(Record):
    """Evolution through Optuna, and random search at equal cost: each scores `trials` architectures in all.

    (Random search as many again where a net measures so much other than predicted that few of its own are close below
    the latency that is asked for then.)
    `population` is the size of a generation. `storage` is the URL of a database that several machines share, each with
    a copy of one run folder that has its supernet and its table (null: a file in the run folder):
    postgresql+psycopg://user@host/name, with the extra `postgresql`. The run folder keeps the URL, so a password
    belongs into ~/.pgpass or PGPASSWORD.
    """

    trials: Positive = 200
    population: Annotated[int, Field(ge=2)] = 20
    sampler: Literal["nsga2", "nsga3", "tpe"] = "nsga2"
    storage: str | None = None


class DeviceLimit(Record):
    """At most so many ms by the latency table of another device: `table` is its file, measured for the same space."""

    table: str
    at_most_ms: Milliseconds


class LimitsConfig(Record):
    """What a net must keep to besides its budget: sizes, and milliseconds on further devices.

    `peak_activation_mb` are 10^6 bytes for one image, at the width of the number format in which latency counts: the
    most that is alive at once (`supernet.activation_memory`).
    """

    parameters: Positive | None = None
    macs: Positive | None = None
    peak_activation_mb: Annotated[float, Field(gt=0)] | None = None
    devices: tuple[DeviceLimit, ...] = ()

    @field_validator("devices")
    @classmethod
    def _once(cls, devices: tuple[DeviceLimit, ...]) -> tuple[DeviceLimit, ...]:
        if len({device.table for device in devices}) < len(devices):
            raise ValueError("each table at most once")
        return devices


class SearchConfig(Record):
    """What is asked of the search.

    Budgets are given in milliseconds, or as shares of the largest architecture's predicted latency, for an experiment
    that should run on any device. `methods` are all delivered at every budget: the published slimming ("search"), the
    same over every legal action of a step ("frontier"), the integer program over choices that are scored one by one
    ("exact"), evolution, the best-scored of many random architectures ("random_search"), uniform scaling, one random
    architecture, and methods of your own (`search.methods.register_method`). A net must measure `margin` below its
    budget before it is retrained; one that measures more than `slack` of that below it is given up for a slower one, if
    the method has any. Scores re-fit batch-norm statistics on `refit_images` training images, in equal batches of at
    most `evaluate.batch_size`, and count `score_images` of the held-out part (null: all of it).

    `importance` is what the published slimming goes by: the supernet's alphas as published, the rise of the loss of
    those images when a block alone is left out, or the gradients of that loss in gates on the blocks. The report shows
    it, `further_importances` beside it, and the alphas' in any case.

    `limits` are kept by "exact" alone, so with them there is no other method.
    """

    added_later: ClassVar[frozenset[str]] = frozenset(
        {"frontier", "evolution", "importance", "further_importances", "limits"}
    )

    budgets_ms: tuple[Milliseconds, ...] | None = None
    budgets_of_largest: tuple[Fraction, ...] | None = None
    methods: Annotated[tuple[Method, ...], Field(min_length=1)] = ("search", "uniform", "random")
    margin: Annotated[float, Field(ge=0, lt=0.5)] = 0.02
    slack: Annotated[float, Field(gt=0, le=1)] = 0.03
    refit_images: Positive = 1024
    score_images: Positive | None = None
    frontier: FrontierConfig = FrontierConfig()
    importance: ImportanceKind = "alpha"
    further_importances: tuple[Literal["removal", "taylor"], ...] = ()
    evolution: EvolutionConfig = EvolutionConfig()
    limits: LimitsConfig | None = None

    @model_validator(mode="after")
    def _one_kind_of_budget(self) -> SearchConfig:
        if bool(self.budgets_ms) == bool(self.budgets_of_largest):
            raise ValueError("give either budgets_ms or budgets_of_largest, with at least one budget")
        named = {f"{budget_ms:g}" for budget_ms in self.budgets_ms or ()}
        if len(named) < len(set(self.budgets_ms or ())):
            raise ValueError("budgets_ms: two are the same in six digits, by which their files are named")
        if len(set(self.methods)) < len(self.methods):
            raise ValueError("methods: each at most once")
        if len(set(self.further_importances)) < len(self.further_importances):
            raise ValueError("further_importances: each at most once")
        if self.limits is not None and self.methods != ("exact",):
            raise ValueError("limits: only the method exact keeps them; methods: [exact]")
        return self


class EvaluateConfig(Record):
    """How a finished model is checked: numeric parity of the export, latency of the whole net, test accuracy.

    Where latency counts in int8 (`table.precision`), the export is rounded with the ranges of activations on
    `calibration_images` training images, and the test images are counted with that file.
    """

    added_later: ClassVar[frozenset[str]] = frozenset({"calibration_images"})

    batch_size: Positive = 256
    parity_images: Positive = 16
    calibration_images: Positive = 256
    latency_rounds: Positive = 50


class Experiment(Record):
    """Everything that a run is made of. `device` auto means CUDA where there is one; `threads` 0 means all cores.

    On a CPU, `processes` models are retrained at once, each on its share of the threads; 0 means one a thread, but not
    more than 4.
    """

    schema_version: Literal[1] = 1
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Annotated[int, Field(ge=0)] = 0
    processes: Annotated[int, Field(ge=0)] = 0
    seeds: Seeds = Seeds()
    data: DataConfig
    space: SpaceShape
    supernet: SupernetConfig
    table: TableConfig = TableConfig()
    search: SearchConfig
    train: RetrainConfig
    evaluate: EvaluateConfig = EvaluateConfig()

    @field_validator("name")
    @classmethod
    def _no_dots_only(cls, name: str) -> str:
        if set(name) <= {"."}:
            raise ValueError("a name needs a letter or digit")
        return name

    @model_validator(mode="after")
    def _heads_agree(self) -> Experiment:
        teacher = self.train.distillation
        if teacher is not None and teacher.hard and not self.space.distillation_head:
            raise ValueError("train.distillation.hard needs space.distillation_head: true")
        return self

    @model_validator(mode="after")
    def _alphas_are_trained(self) -> Experiment:
        if "search" in self.search.methods and (mistake := self._by_untrained_alphas("search")):
            raise ValueError(mistake)
        return self

    def _by_untrained_alphas(self, method: str) -> str | None:
        """What is wrong if a method goes by importance, and that by alphas that are never trained."""
        if self.search.importance != "alpha" or self.supernet.alpha.warmup_fraction < 1:
            return None
        return (
            f"supernet.alpha.warmup_fraction: 1 never trains the alphas, and the method {method} goes by them; take"
            " less, search.importance: removal, or other search.methods"
        )

    def check_methods(self, *, source: str) -> None:
        """Raise `UserError` for a search method that is not known, or goes by alphas that are never trained."""
        check_methods(self.search.methods, source=source, field="search.methods")
        for name in filter(takes_importance, self.search.methods):
            if mistake := self._by_untrained_alphas(name):
                raise UserError(f"{source}: {mistake}")

    def search_space(self, *, num_classes: int) -> SearchSpace:
        """The search space for the experiment's images, of so many classes."""
        data = self.data
        return SearchSpace.of(
            self.space, in_channels=data.channels, resolution_px=data.resolution_px, num_classes=num_classes
        )


def load_experiment(path: Path, *, overrides: tuple[str, ...] = ()) -> Experiment:
    """Read an experiment from YAML or JSON, with overrides such as "train.epochs=5".

    Raises `UserError` with one line for anything that is wrong.
    """
    experiment = load_overridden(Experiment, path, overrides)
    experiment.check_methods(source=source_of(path, overrides))
    return experiment


def check_methods(methods: Sequence[str], *, source: str, field: str) -> None:
    """Raise `UserError` for a search method that is not known, with its place in the field."""
    for number, name in enumerate(methods, start=1):
        try:
            search_method(name)
        except UserError as error:
            raise UserError(f"{source}: {field}.{number}: {error}") from None


def overridden(experiment: Experiment, overrides: Sequence[str], *, source: str) -> Experiment:
    """An experiment with dotted fields set otherwise. Raises `UserError` with one line that begins with `source`."""
    data = experiment.model_dump(mode="json")
    for override in overrides:
        _override(data, override, where=f"{source}: {override}")
    return parse(Experiment, data, source=source)


def load_overridden(record: type[RecordT], path: Path, overrides: tuple[str, ...]) -> RecordT:
    """Read a record from YAML or JSON, with dotted fields set otherwise. Raises `UserError`."""
    data = read_data(path)
    if not isinstance(data, dict):
        raise UserError(f"{path}: expected a mapping of fields, found {type(data).__name__}")
    for override in overrides:
        _override(data, override, where=f"--set {override}")
    return parse(record, data, source=source_of(path, overrides))


def source_of(path: Path, overrides: Sequence[str]) -> str:
    """A file and what was set otherwise, as mistakes name them."""
    return " ".join([str(path), *(f"--set {override}" for override in overrides)])


def _override(data: dict[str, Any], override: str, *, where: str) -> None:
    """Set one dotted field (list items count from 1); its value is read as YAML, so 5, true and [a, b] have types."""
    name, separator, text = override.partition("=")
    if not separator or not name:
        raise UserError(f"{where}: expected FIELD=VALUE, such as train.epochs=5")
    try:
        value = parse_yaml(text)
    except (yaml.YAMLError, ValueError):  # YAML reads 2026-02-30 as a date, and finds that there is none
        raise UserError(f"{where}: the value is not valid YAML") from None
    *sections, field = name.split(".")
    place: Any = data
    for section in sections:
        place = place[int(section) - 1] if _is_index(place, section) else _section(place, section, where=where)
    if _is_index(place, field):
        place[int(field) - 1] = value
    elif isinstance(place, dict):
        place[field] = value
    else:
        raise UserError(f"{where}: {'.'.join(sections)} has no fields")


def _is_index(place: object, part: str) -> bool:
    return isinstance(place, list) and part.isdigit() and 0 < int(part) <= len(place)


def _section(place: object, section: str, *, where: str) -> object:
    if not isinstance(place, dict):
        raise UserError(f"{where}: there is nothing named {section} there")
    if place.get(section) is None:
        place[section] = {}
    return place[section]


def differences(first: Record, second: Record) -> list[str]:
    """The dotted names (list items count from 1) and both values of the fields in which two records differ."""

    def walk(a: object, b: object, name: str) -> list[str]:
        if isinstance(a, dict) and isinstance(b, dict):
            keys = [*a, *(key for key in b if key not in a)]
            return [line for key in keys for line in walk(a.get(key), b.get(key), f"{name}.{key}" if name else key)]
        if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
            pairs = enumerate(zip(a, b, strict=True), start=1)
            return [line for index, (x, y) in pairs for line in walk(x, y, f"{name}.{index}")]
        return [] if a == b else [f"{name} ({a} there, {b} here)"]

    return walk(first.model_dump(mode="json"), second.model_dump(mode="json"), "")
