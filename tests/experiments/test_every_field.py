"""Every config field changes something: an option that does nothing is a lie.

Each field of an experiment is named here once, with the test that shows what it changes: a run of one stage of the
tiny experiment in this file, or a test of the room that the field belongs to. A new field without one fails.
"""

from __future__ import annotations

import copy
import importlib
import json
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from experiments.artifacts import RunFolder
from experiments.experiment import Experiment
from experiments.stages import STAGES
from supernet.schema import Record

Slimformer = Callable[..., Any]


@dataclass(frozen=True)
class Shown:
    """A test elsewhere that shows what a field changes; `change` is the field's name in that test's table."""

    module: str
    test: str
    change: str | None = None


@dataclass(frozen=True)
class Ran:
    """One stage of the tiny experiment run with other values: these files must differ from the original's."""

    stage: str
    files: str
    overrides: tuple[str, ...]


def ran(stage: str, files: str, *overrides: str) -> Ran:
    return Ran(stage, files, overrides)


def in_a_run(test: str) -> Shown:
    return Shown("tests.experiments.test_run", test)


SUPERNET = "tests.train.test_supernet_training"
RETRAINING = "tests.train.test_retraining"
DATA = "tests.train.test_data"
AUGMENT = "tests.train.test_augment"
DISTILLATION = "tests.train.test_distillation"
CLI = "tests.experiments.test_cli"
SOLVING = "tests.experiments.test_solving"

AUDIT, FOUND, WEIGHTS = "latency-audit.json", "found.json", "models/*/retrain.safetensors"
FIRST = "space.stages.1"

AUGMENTATION: dict[str, Shown] = {
    **{
        name: Shown(AUGMENT, "test_every_option_changes_the_batch", name)
        for name in ("crop_padding_px", "min_crop_scale", "flip", "erase_probability")
    },
    "mixup_alpha": Shown(AUGMENT, "test_mixup_mixes_images_and_targets_alike"),
    "cutmix_alpha": Shown(AUGMENT, "test_cutmix_pastes_a_box_and_weighs_targets_by_its_area"),
    "mix_probability": Shown(AUGMENT, "test_mixing_touches_the_given_share_of_batches"),
    "randaugment": in_a_run("test_randaugment_changes_images_that_stream"),
}

OPTIMIZATION = (  # what the supernet's training and retraining have in common
    "epochs",
    "batch_size",
    "optimizer",
    "learning_rate",
    "warmup_epochs",
    "min_learning_rate",
    "weight_decay",
    "label_smoothing",
    "gradient_clip_norm",
    "precision",
)

FIELDS: dict[str, Shown | Ran] = {
    "schema_version": Shown(
        "tests.experiments.test_experiment",
        "test_a_wrong_field_is_refused_with_its_name_and_what_is_allowed",
    ),
    "name": Shown(CLI, "test_the_run_folder_is_named_after_the_experiment"),
    "device": in_a_run("test_the_device_is_the_one_asked_for"),
    "threads": in_a_run("test_a_stage_runs_with_the_threads_asked_for"),
    "processes": Shown("tests.experiments.test_workers", "test_so_many_models_are_retrained_at_once"),
    "seeds.data": ran("supernet", "importance.json", "seeds.data=1"),
    "seeds.supernet": ran("supernet", "importance.json", "seeds.supernet=1"),
    "seeds.table": ran("table", AUDIT, "seeds.table=2"),
    "seeds.search": ran("search", FOUND, "seeds.search=1"),
    "seeds.train": ran("retrain", WEIGHTS, "seeds.train=1"),
    "data.path": Shown(DATA, "test_a_folder_is_read_with_its_classes_and_splits"),
    **{
        f"data.{name}": Shown(DATA, "test_every_field_changes_the_data", name)
        for name in (
            "resolution_px",
            "channels",
            "held_out_fraction",
            "alpha_fraction",
            "mean",
            "std",
            "crop_fraction",
            "in_memory",
        )
    },
    "data.workers": in_a_run("test_images_stream_through_the_workers_asked_for"),
    "data.num_classes": Shown(DATA, "test_the_number_of_classes_must_agree_with_the_folders"),
    "data.num_images": Shown(CLI, "test_a_plan_needs_no_images_where_their_number_is_given"),
    "space.granularity": ran("table", AUDIT, "space.granularity=4"),
    "space.stem.strides": ran("table", AUDIT, "space.stem.strides=[1, 2]"),
    "space.stem.activation": ran("table", AUDIT, "space.stem.activation=gelu"),
    "space.stem.pooling": ran("table", AUDIT, "space.stem.pooling=max"),
    "space.downsampling_stride": ran("table", AUDIT, "space.downsampling_stride=1"),
    "space.downsampling_pooling": ran("table", AUDIT, "space.downsampling_pooling=max"),
    "space.distillation_head": ran("table", AUDIT, "space.distillation_head=true"),
    "space.head_norm": ran("table", AUDIT, "space.head_norm=identity"),
    "space.head_pooling": ran("supernet", "importance.json", "space.head_pooling=max"),
    "space.stages.depth": ran("table", AUDIT, f"{FIRST}.depth=2"),
    "space.stages.width_channels.smallest": ran("table", AUDIT, f"{FIRST}.width_channels.smallest=16"),
    "space.stages.width_channels.largest": ran("table", AUDIT, f"{FIRST}.width_channels.largest=24"),
    "space.stages.candidates.type": ran("table", AUDIT, f"{FIRST}.candidates.1=separable_conv"),
    "space.stages.candidates.options": ran("table", AUDIT, f"{FIRST}.candidates.1.mlp_ratio=3"),
    "space.stages.candidates.name": ran("supernet", "importance.json", f"{FIRST}.candidates.1.name=pooling"),
    **{
        f"supernet.{name}": Shown(SUPERNET, "test_every_field_changes_the_training", name)
        for name in (
            *OPTIMIZATION,
            "mixing",
            "noise",
            "temperature.end",
            "temperature.schedule",
            "alpha.learning_rate",
            "alpha.weight_decay",
            "alpha.warmup_fraction",
            "alpha.every",
            "widths.sampling",
            "widths.random",
            "widths.largest_first",
            "widths.warmup_fraction",
            "widths.teacher",
            "distill_weight",
        )
    },
    "supernet.temperature.start": Shown(SUPERNET, "test_every_field_changes_the_training", "temperature"),
    "supernet.channels_last": Shown(SUPERNET, "test_channels_last_is_the_layout_of_the_weights"),
    **{f"supernet.augment.{name}": shown for name, shown in AUGMENTATION.items()},
    "table.runtime": ran("table", "latency-*-t?.json", "table.runtime=virtual_too"),
    "table.precision": ran("table", "latency-*-t?.json", "table.precision=bf16"),
    "table.threads": ran("table", AUDIT, "table.threads=2"),
    "table.batch_size": ran("table", AUDIT, "table.batch_size=3"),
    "table.rounds": ran("table", "latency-*-t?.json", "table.rounds=3"),
    "table.standard_error_percent": in_a_run("test_a_table_is_measured_on_as_asked_for"),
    "table.most_minutes": in_a_run("test_a_table_is_measured_on_as_asked_for"),
    "table.copies": ran("table", "latency-*-t?.json", "table.copies=3"),
    "table.bundle": Shown(
        "tests.experiments.test_bundles", "test_a_run_with_a_table_from_a_phone_delivers_what_the_phone_measured"
    ),
    "evaluate.calibration_images": Shown(
        "tests.experiments.test_bundles", "test_in_int8_the_rounded_file_is_measured_and_tested"
    ),
    "table.audit_nets": ran("table", AUDIT, "table.audit_nets=5"),
    "search.budgets_ms": ran("search", FOUND, "search.budgets_of_largest=null", "search.budgets_ms=[0.15]"),
    "search.budgets_of_largest": ran("search", FOUND, "search.budgets_of_largest=[0.71]"),
    "search.methods": ran("search", FOUND, "search.methods=[search]"),
    **{
        f"search.frontier.{name}": in_a_run("test_the_frontier_is_searched_as_its_config_says")
        for name in (
            "gain",
            "mes.size_unit_millions",
            "mes.size_exponent",
            "mes.latency_unit_ms",
            "mes.latency_exponent",
        )
    },
    **{
        f"search.evolution.{name}": in_a_run("test_evolution_searches_as_its_config_says")
        for name in ("trials", "population", "sampler", "storage")
    },
    "search.importance": Shown(
        "tests.experiments.test_importances", "test_the_slimming_goes_by_the_importance_that_is_asked_for"
    ),
    "search.further_importances": Shown(
        "tests.experiments.test_importances",
        "test_a_search_writes_the_importances_that_it_is_asked_for_and_no_others",
    ),
    **{
        f"search.limits.{name}": Shown(SOLVING, "test_the_exact_method_keeps_to_sizes_as_well")
        for name in ("parameters", "macs", "peak_activation_mb")
    },
    **{
        f"search.limits.devices.{name}": Shown(
            SOLVING, "test_the_exact_method_keeps_to_the_milliseconds_of_another_device"
        )
        for name in ("table", "at_most_ms")
    },
    "search.slack": in_a_run("test_a_net_that_leaves_room_is_given_up_for_a_slower_one"),
    "search.margin": ran("search", FOUND, "search.margin=0.2"),
    "search.refit_images": in_a_run("test_the_scorer_of_a_run_has_the_images_that_its_config_says"),
    "search.score_images": in_a_run("test_the_scorer_of_a_run_has_the_images_that_its_config_says"),
    **{
        f"train.{name}": Shown(RETRAINING, "test_every_field_of_the_recipe_changes_the_weights", name)
        for name in (
            *OPTIMIZATION,
            "ema_decay",
            "drop_path_rate",
        )
    },
    "train.channels_last": in_a_run("test_channels_last_is_the_layout_of_a_retrained_models_weights"),
    **{f"train.augment.{name}": shown for name, shown in AUGMENTATION.items()},
    "train.distillation.teacher": Shown(RETRAINING, "test_a_teacher_changes_what_is_learnt"),
    "train.distillation.weights": Shown(DISTILLATION, "test_our_own_architecture_can_teach"),
    **{
        f"train.distillation.{name}": Shown(DISTILLATION, "test_every_field_changes_the_loss", name)
        for name in ("weight", "temperature", "hard")
    },
    "train.start": ran("retrain", WEIGHTS, "train.start=inherited"),
    "train.use_held_out": ran("retrain", WEIGHTS, "train.use_held_out=false"),
    "evaluate.batch_size": in_a_run("test_the_scorer_of_a_run_has_the_images_that_its_config_says"),
    "evaluate.parity_images": in_a_run("test_parity_is_checked_on_so_many_images"),
    "evaluate.latency_rounds": in_a_run("test_delivered_models_are_measured_in_so_many_rounds"),
}

# What says where a run happens, but not what comes out: a run may go on with other values.
PLACE = {"schema_version", "device", "threads", "processes", "data.workers"}
# The stages that must be done again when a field changes, by the longest beginning of its name that stands here.
TOUCHED: dict[str, set[str]] = {
    "name": {"report"},
    "seeds.data": {"supernet", "retrain"},
    "seeds.supernet": {"supernet"},
    "seeds.table": {"table"},
    "seeds.search": {"search"},
    "seeds.train": {"retrain"},
    "data": {"supernet", "retrain", "export", "evaluate"},
    "data.resolution_px": {"supernet", "table", "retrain", "export", "evaluate"},
    "data.channels": {"supernet", "table", "retrain", "export", "evaluate"},
    "space": {"supernet", "table"},
    "supernet": {"supernet"},
    "table": {"table"},
    "search": {"search", "export"},
    "search.refit_images": {"search", "export"},
    "search.score_images": {"search", "export"},
    "train": {"retrain"},
    "evaluate": {"search", "export"},
    "evaluate.batch_size": {"search", "export", "evaluate"},
}


def record_in(annotation: Any) -> type[Record] | None:
    """The record class inside an annotation, such as in `tuple[StageSpace, ...]` or `DistillationConfig | None`."""
    if isinstance(annotation, type) and issubclass(annotation, Record):
        return annotation
    return next(filter(None, map(record_in, typing.get_args(annotation))), None)


def leaves(record: type[Record], prefix: str = "") -> Iterator[str]:
    """The dotted names of all fields that hold a value; items of lists have no number in them."""
    for name, field in record.model_fields.items():
        inner = record_in(field.annotation)
        if inner is None:
            yield prefix + name
        else:
            yield from leaves(inner, f"{prefix}{name}.")


def changes_of(shown: Shown) -> set[str]:
    """The names in the table of changes behind a test: its parameters, or the module's dicts of changes."""
    module = importlib.import_module(shown.module)
    test = getattr(module, shown.test)
    found: set[str] = set()
    for mark in getattr(test, "pytestmark", []):
        if mark.name == "parametrize":
            for value in mark.args[1]:
                found |= set(value) if isinstance(value, dict) else {value} if isinstance(value, str) else set()
    for name in ("CHANGES", "RECIPE_CHANGES"):
        if name in test.__code__.co_names:
            found |= set(getattr(module, name))
    return found


def test_every_field_of_an_experiment_is_named_here_with_what_it_changes() -> None:
    assert sorted(leaves(Experiment)) == sorted(FIELDS)


@pytest.mark.parametrize("shown", sorted({s for s in FIELDS.values() if isinstance(s, Shown)}, key=repr), ids=str)
def test_the_test_that_shows_what_a_field_changes_exists_and_knows_the_field(shown: Shown) -> None:
    assert callable(getattr(importlib.import_module(shown.module), shown.test))
    assert shown.change is None or shown.change in changes_of(shown)


def without_protocol(files: dict[str, bytes]) -> dict[str, Any]:
    """The content of files, and of tables what was measured rather than how and when."""
    return {
        name: {k: v for k, v in json.loads(data).items() if k not in ("date", "protocol")} if "-t1" in name else data
        for name, data in files.items()
    }


@pytest.mark.parametrize("field", [name for name, value in FIELDS.items() if isinstance(value, Ran)])
def test_a_field_changes_what_its_stage_writes(
    finished: Path, copied: Path, slimformer: Slimformer, field: str
) -> None:
    # that without a change the same bytes are written is shown in test_resuming.py
    change = FIELDS[field]
    assert isinstance(change, Ran)
    words = [word for override in change.overrides for word in ("--set", override)]
    outcome = slimformer(change.stage, copied, *words, "--redo")
    assert outcome.code == 0, outcome.err

    def written(folder: Path) -> dict[str, Any]:
        found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.glob(change.files)}
        assert found
        return without_protocol(found)

    assert written(copied) != written(finished)


def touched_stages(experiment: Experiment, field: str) -> set[str]:
    """The stages whose settings change when this field does."""
    plain = experiment.model_dump(mode="json")
    changed = copy.deepcopy(plain)
    *sections, last = field.split(".")
    place: Any = changed
    for section in sections:
        within, place = place, place[section]
        if not place:  # a section that is left out, such as train.distillation, or a list of none
            within[section] = {last: "other"}
            break
        place = place[0] if isinstance(place, list) else place
    else:
        place[last] = "other"
    return {stage.name for stage in STAGES if stage.settings(plain) != stage.settings(changed)}


@pytest.mark.parametrize("field", sorted(FIELDS))
def test_a_changed_field_makes_the_stages_that_it_touches_be_done_again(finished: Path, field: str) -> None:
    experiment = RunFolder(finished).config
    found = touched_stages(experiment, field)
    if field in PLACE:
        assert found == set()
        return
    beginnings = [beginning for beginning in TOUCHED if field == beginning or field.startswith(f"{beginning}.")]
    assert found >= TOUCHED[max(beginnings, key=len)]


@pytest.mark.parametrize("field", ["search.refit_images", "search.score_images", "evaluate.batch_size"])
def test_what_the_search_asks_for_does_not_train_the_supernet_again(finished: Path, field: str) -> None:
    assert "supernet" not in touched_stages(RunFolder(finished).config, field)
