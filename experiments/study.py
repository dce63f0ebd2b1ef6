"""Study: what is trained to find out whether scores rank and whether search pays, as one validated, frozen value."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from experiments.artifacts import RunFolder
from experiments.console import Screen
from experiments.experiment import (
    Experiment,
    Fraction,
    Method,
    Milliseconds,
    Positive,
    check_methods,
    load_experiment,
    load_overridden,
    source_of,
)
from experiments.external_nets import ExternalName
from experiments.run import Run
from experiments.stages import stage_settings
from supernet.schema import Record, UserError, parse, plain
from train.retraining import RetrainConfig

Seed = Annotated[int, Field(ge=0)]
VariantName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]*$")]
SeedList = Annotated[tuple[Seed, ...], Field(min_length=1)]

NEEDED = ("supernet", "table")  # the stages of a run that a study reads


class CeilingConfig(Record):
    """So many of the architectures, spread over the latencies, are trained with another seed too.

    How well two trainings of the same nets agree is as much as any score can be asked for.
    """

    architectures: Annotated[int, Field(ge=3)]
    seed: Seed


class RankConfig(Record):
    """Which architectures are trained alone, and with which seeds, to be ranked by every score.

    They are drawn by `draw_seed`, as many in each of ten equal parts of the range of predicted latencies as there are;
    the smallest and the largest are always among them, and more of them begin with those that fewer would be.

    `variants` are an ablation: supernets trained otherwise than the run's, each by the fields that it changes (as after
    --set, all of `supernet`, `seeds.supernet` or `data.alpha_fraction`), whose scores rank the same nets beside those
    of the run's.
    """

    architectures: Annotated[int, Field(ge=5)] = 50
    draw_seed: Seed = 0
    seeds: SeedList = (0,)
    ceiling: CeilingConfig | None = None
    variants: dict[VariantName, Annotated[tuple[str, ...], Field(min_length=1)]] = {}

    @model_validator(mode="after")
    def _seeds_differ(self) -> RankConfig:
        if self.ceiling is not None and self.ceiling.seed in self.seeds:
            raise ValueError(f"ceiling.seed: {self.ceiling.seed} is among the seeds; give another one")
        if self.ceiling is not None and self.ceiling.architectures > self.architectures:
            raise ValueError(
                f"ceiling.architectures: {self.ceiling.architectures} of {self.architectures} architectures"
            )
        return self

    @field_validator("seeds")
    @classmethod
    def _once(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        return _distinct(seeds)


class CompareConfig(Record):
    """Which methods deliver for which budgets, with which seeds they search and their nets are retrained.

    Margin, slack and images are the experiment's (`search`), so is the cost of evolution and random search unless
    `trials` says otherwise. `external` are models of timm's, as wide as they may be within each budget.
    """

    budgets_ms: tuple[Milliseconds, ...] | None = None
    budgets_of_largest: tuple[Fraction, ...] | None = None
    methods: Annotated[tuple[Method, ...], Field(min_length=1)]
    search_seeds: SeedList = (0, 1, 2)
    retrain_seeds: SeedList = (0, 1, 2)
    trials: Positive | None = None
    external: tuple[ExternalName, ...] = ()

    @model_validator(mode="after")
    def _one_kind_of_budget(self) -> CompareConfig:
        if bool(self.budgets_ms) == bool(self.budgets_of_largest):
            raise ValueError("give either budgets_ms or budgets_of_largest, with at least one budget")
        if len(set(self.methods)) < len(self.methods):
            raise ValueError("methods: each at most once")
        if len(set(self.external)) < len(self.external):
            raise ValueError("external: each at most once")
        return self

    @field_validator("search_seeds", "retrain_seeds")
    @classmethod
    def _once(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        return _distinct(seeds)


class Study(Record):
    """A study of one finished run: `experiment` is its YAML file, `run` its folder, with a supernet and a table.

    `train` is the recipe of every training of the study. `device`, `threads` and `processes` are as in an experiment.
    """

    schema_version: Literal[1] = 1
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    experiment: str
    run: str
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Annotated[int, Field(ge=0)] = 0
    processes: Annotated[int, Field(ge=0)] = 0
    train: RetrainConfig
    rank: RankConfig | None = None
    compare: CompareConfig | None = None

    @model_validator(mode="after")
    def _something_to_do(self) -> Study:
        if self.rank is None and self.compare is None:
            raise ValueError("a study needs a section: rank, compare or both")
        if self.compare is not None and self.compare.external and self.train.start == "inherited":
            raise ValueError("compare.external: timm's models inherit nothing from the supernet; train.start: scratch")
        return self


def load_study(path: Path, *, overrides: tuple[str, ...] = ()) -> Study:
    """Read a study from YAML or JSON, with overrides such as "rank.architectures=10". Raises `UserError`."""
    study = load_overridden(Study, path, overrides)
    if study.compare is not None:
        check_methods(study.compare.methods, source=source_of(path, overrides), field="compare.methods")
    return study


def studied_run(study: Study, screen: Screen, *, command: str, plugins: Sequence[Path]) -> Run:
    """The run that a study is of, with the study's recipe in the place of its own.

    Raises `UserError` if the folder holds no finished supernet and table of the experiment, or files that changed.
    """
    experiment = load_experiment(Path(study.experiment))
    folder = RunFolder(Path(study.run))
    if not folder.exists:
        raise UserError(f"run: {study.run} holds no run; slimformer run {study.experiment} --out {study.run} makes one")
    finished = folder.manifest.stages
    for name in NEEDED:
        if name not in finished:
            raise UserError(f"run: {study.run} has no {name} yet; slimformer {name} {study.run} makes it")
        asked, there = stage_settings(name, experiment), stage_settings(name, folder.config)
        changed = [field for field in asked if asked[field] != there[field]]
        if changed:
            raise UserError(
                f"run: {study.run} has a {name} of other settings than {study.experiment} ({', '.join(changed)})"
            )
        folder.check_artifacts(name)
    fields = {"device": study.device, "threads": study.threads, "processes": study.processes}
    data = plain(experiment) | fields | {"train": plain(study.train)}
    studied = parse(Experiment, data, source=f"study {study.name!r}")
    return Run(studied, folder, screen, command=command, plugins=plugins)


def _distinct(seeds: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(seeds)) < len(seeds):
        raise ValueError("each seed at most once")
    return seeds
