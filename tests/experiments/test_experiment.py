"""Experiments: overrides, refusals in one line, and every file that is shipped."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from analysis.run_folder import read_run
from experiments.experiment import Experiment, differences, load_experiment
from experiments.models import Found
from experiments.solving import architecture_path
from supernet.architecture import Architecture
from supernet.schema import UserError, load, save

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = sorted((ROOT / "experiments").glob("*.yaml"))


def refusal(path: Path, *overrides: str) -> str:
    """The one line with which an experiment is refused."""
    with pytest.raises(UserError) as refused:
        load_experiment(path, overrides=overrides)
    line = str(refused.value)
    assert "\n" not in line
    return line


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_shipped_experiment_loads_and_its_space_can_be_built(path: Path, tmp_path: Path) -> None:
    experiment = load_experiment(path)
    assert experiment.name == path.stem
    space = experiment.search_space(num_classes=experiment.data.num_classes or 10)
    for architecture in (space.largest, space.smallest, space.scaled(0.5)):
        space.check(architecture)
    save(experiment, tmp_path / "config.json")
    assert load(Experiment, tmp_path / "config.json") == experiment
    assert load_experiment(tmp_path / "config.json") == experiment


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_shipped_experiment_begins_with_what_it_is_and_what_it_promises(path: Path) -> None:
    header = list(itertools.takewhile(lambda line: line.startswith("#"), path.read_text().splitlines()))
    assert len(header) >= 2
    assert "slimformer" in " ".join(header)  # the command


def test_the_shipped_experiments_are_there() -> None:
    assert {"quickstart", "cifar10"} <= {path.stem for path in SHIPPED}


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("train.epochs=7", lambda e: e.train.epochs == 7),
        ("train.learning_rate=1e-4", lambda e: e.train.learning_rate == 1e-4),
        ("search.budgets_of_largest=[0.5, 0.25]", lambda e: e.search.budgets_of_largest == (0.5, 0.25)),
        ("search.score_images=null", lambda e: e.search.score_images is None),
        ("supernet.channels_last=false", lambda e: e.supernet.channels_last is False),
        ("supernet.augment.flip=true", lambda e: e.supernet.augment.flip is True),
        ("seeds.train=3", lambda e: e.seeds.train == 3),  # a section that the file does not have
        ("space.stages.2.depth=3", lambda e: [stage.depth for stage in e.space.stages] == [1, 3]),
        ("space.stages.1.width_channels.largest=32", lambda e: e.space.stages[0].width_channels.largest == 32),
        (
            "space.stages.2.candidates.3=separable_conv",
            lambda e: e.space.stages[1].candidates[2].name == "separable_conv",
        ),
        ("data={path: other, resolution_px: 16}", lambda e: (e.data.path, e.data.channels) == ("other", 3)),
        ("name=a=b", None),
        ("name='1'", lambda e: e.name == "1"),
    ],
)
def test_an_override_sets_one_field_by_its_dotted_name_and_lists_count_from_one(
    tiny: Callable[..., Path], override: str, read: Callable[[Any], bool] | None
) -> None:
    if read is None:
        assert "name: " in refusal(tiny(), override)
        return
    assert read(load_experiment(tiny(), overrides=(override,)))


def test_later_overrides_win_and_others_are_kept(tiny: Callable[..., Path]) -> None:
    found = load_experiment(tiny(), overrides=("train.epochs=7", "seeds.data=4", "train.epochs=8"))
    assert (found.train.epochs, found.seeds.data) == (8, 4)


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        # misspelt: the nearest name
        ("train.epoch=5", ("train.epoch: unknown key", "did you mean epochs?")),
        ("trian.epochs=5", ("trian: unknown key", "did you mean train?")),
        ("space.stages.1.dept=2", ("space.stages.1.dept: unknown key", "did you mean depth?")),
        ("supernet.alpha.evry=2", ("supernet.alpha.evry: unknown key", "did you mean every?")),
        ("table.runtim=eager", ("table.runtim: unknown key", "did you mean runtime?")),
        # wrong type or range: the field, the value, and what is allowed
        ("train.epochs=many", ("train.epochs: ", "valid integer", "got 'many'")),
        ("train.epochs=2.5", ("train.epochs: ", "integer", "got 2.5")),
        ("train.epochs=0", ("train.epochs: ", "greater than 0", "got 0")),
        ("train.epochs=", ("train.epochs: ", "integer", "got None")),
        ("train.epochs=true", ("train.epochs: ", "integer", "got True")),
        ("supernet.channels_last=no?", ("supernet.channels_last: ", "boolean", "got 'no?'")),
        ("supernet.mixing=sometimes", ("supernet.mixing: ", "'soft' or 'hard'", "got 'sometimes'")),
        ("search.margin=0.5", ("search.margin: ", "less than 0.5", "got 0.5")),
        (
            "search.methods=[search, grid]",
            (
                "search.methods.2: unknown search method 'grid' (known: evolution, exact, frontier, random,",
                " random_search, search, uniform); a method of your own needs --plugin FILE",
            ),
        ),
        ("search.methods=[search, search]", ("search: methods: each at most once",)),
        ("search.methods=[]", ("search.methods: ", "at least 1 item")),
        ("search.budgets_ms=[2.0]", ("search: give either budgets_ms or budgets_of_largest",)),
        ("search.budgets_of_largest=null", ("search: give either budgets_ms or budgets_of_largest",)),
        (
            "search={budgets_ms: [0.06, 0.06000001]}",
            ("search: budgets_ms: two are the same in six digits, by which their files are named",),
        ),
        ("search.budgets_of_largest=[1.5]", ("search.budgets_of_largest.1: ", "less than 1", "got 1.5")),
        ("table.audit_nets=3", ("table.audit_nets: ", "greater than or equal to 4", "got 3")),
        ("device=tpu", ("device: ", "'auto', 'cpu' or 'cuda'", "got 'tpu'")),
        ("name=../elsewhere", ("name: ", "got '../elsewhere'")),
        ("name=.", ("name: ",)),
        ("schema_version=2", ("schema_version: ", "got 2")),
        ("data.resolution_px=[8]", ("data.resolution_px",)),
        ("space.stages.1.width_channels.largest=13", ("stage 1: width 13 is not a multiple of 8 (nearest: 8, 16)",)),
        ("supernet.temperature={start: 2.0}", ("a constant schedule cannot go from 2 to 1",)),
        (
            "train.distillation={teacher: 'timm:resnet18'}",
            ("train.distillation.hard needs space.distillation_head: true",),
        ),
    ],
)
def test_a_wrong_field_is_refused_with_its_name_and_what_is_allowed(
    tiny: Callable[..., Path], override: str, parts: tuple[str, ...]
) -> None:
    line = refusal(tiny(), override)
    for part in (f"--set {override}", *parts):
        assert part in line


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epochs", "expected FIELD=VALUE, such as train.epochs=5"),
        ("=5", "expected FIELD=VALUE"),
        ("train.epochs=[1", "the value is not valid YAML"),
        ("name=2026-02-30", "the value is not valid YAML"),
        ("name.first=a", "name has no fields"),
        ("name.first.second=a", "there is nothing named first there"),
        ("space.stages.3.depth=1", "there is nothing named 3 there"),
        ("space.stages.0.depth=1", "there is nothing named 0 there"),
        ("space.stages.3=1", "space.stages has no fields"),
    ],
)
def test_an_override_that_leads_nowhere_is_refused(tiny: Callable[..., Path], override: str, message: str) -> None:
    assert refusal(tiny(), override).startswith(f"--set {override}: {message}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a mapping of fields, found NoneType"),
        ("- 1", "expected a mapping of fields, found list"),
        ("name: [", "not valid YAML"),
        ("name: a\nname: b", "the key 'name' occurs twice"),
        ("name: a", "data: required, but missing"),
    ],
)
def test_a_file_that_is_no_experiment_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    line = refusal(path)
    assert line.startswith(f"{path}: ")
    assert message in line


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "nothing.yaml") == f"{tmp_path / 'nothing.yaml'}: no such file"


def test_differences_are_the_dotted_names_of_the_fields_that_differ(tiny: Callable[..., Path]) -> None:
    first = load_experiment(tiny())
    assert differences(first, first) == []
    second = load_experiment(
        tiny(), overrides=("train.ema_decay=0.9", "search.methods=[search]", "seeds.table=1", "space.stages.1.depth=2")
    )
    found = differences(first, second)
    names = [line.split(" ")[0] for line in found]
    assert names == ["seeds.table", "space.stages.1.depth", "search.methods", "train.ema_decay"]
    assert found[:2] == ["seeds.table (0 there, 1 here)", "space.stages.1.depth (1 there, 2 here)"]
    assert found[-1] == "train.ema_decay (None there, 0.9 here)"


def test_an_experiment_cannot_be_changed(tiny: Callable[..., Path]) -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_experiment(tiny()).name = "other"


def test_every_record_has_what_its_report_is_drawn_from() -> None:
    records = sorted(path.parent for path in ROOT.glob("experiments/records/*/config.json"))
    assert records
    for record in records:
        assert read_run(record).missing == (), record


def test_every_architecture_in_the_records_can_still_be_read_and_has_its_recorded_digest() -> None:
    records = sorted(ROOT.glob("experiments/records/*/found.json"))
    assert records
    for record in records:
        for model in load(Found, record).models:
            architecture = Architecture.load(architecture_path(record.parent, model.job))
            assert architecture.digest == model.digest
