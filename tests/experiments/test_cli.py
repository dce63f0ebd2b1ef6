"""The command line: a user's mistake is one clear line on standard error and exit code 2, and nothing is lost."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import typer

from experiments.artifacts import RunFolder
from experiments.cli import STAGE_HELP, app
from experiments.stages import STAGES
from search.latency_table import LatencyTable
from search.trajectory import Trajectory
from supernet import list_models
from train.checkpoint import load_checkpoint
from train.loop import checkpoint_path
from train.supernet_training import SupernetTraining

Slimformer = Callable[..., Any]
Contents = Callable[[Path], dict[str, bytes]]

PLUGIN = """
from typing import Literal

import torch
from torch import nn

from search.runtimes import register_runtime
from supernet import Block, register_block


class Twice(Block):
    type: Literal["test_twice"] = "test_twice"
    hidden_channels: int


@register_block(Twice)
class TwiceModule(nn.Module):
    def __init__(self, block, *, width_channels, grid, drop_path):
        super().__init__()
        self.fc1 = nn.Conv2d(width_channels, block.hidden_channels, 1)
        self.fc2 = nn.Conv2d(block.hidden_channels, width_channels, 1)

    def forward(self, x):
        return x + self.fc2(self.fc1(x))


@register_runtime("test_double")
class DoubleRuntime:
    name, precision, version = "test_double", "fp64", torch.__version__

    def __init__(self, *, threads):
        self.threads = threads

    def build(self, module, input_shape):
        module, images = module.double(), torch.randn(input_shape).double()
        return lambda: module(images)
"""


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("--set", "train.epoch=5"), ("train.epoch: unknown key", "did you mean epochs?")),
        (("--set", "train.epochs=many"), ("train.epochs: ", "valid integer", "got 'many'")),
        (("--set", "search.margin=0.7"), ("search.margin: ", "less than 0.5", "got 0.7")),
        (("--set", "train.epochs"), ("--set train.epochs: expected FIELD=VALUE",)),
        (
            ("--set", "space.stages.1.width_channels.largest=13"),
            ("stage 1: width 13 is not a multiple of 8 (nearest: 8, 16)",),
        ),
        (("--set", "space.stages.2.candidates=[mb5d]"), ("unknown block type 'mb5d'", "did you mean mb")),
        (("--set", "data.path=nowhere/at/all"), ("nowhere/at/all: no such image folder",)),
        (("--set", "supernet.alpha.warmup_fraction=1.0"), ("1 never trains the alphas", "search.importance: removal")),
        (("--set", "search.limits.macs=1000000"), ("limits: only the method exact keeps them",)),
        (
            ("--set", "search.methods=[exact]", "--set", "search.limits.devices=[{table: phone.json, at_most_ms: 2}]"),
            ("search.limits.devices: phone.json: no such file",),
        ),
        (("--until", "serch"), ("unknown stage 'serch'", "known: supernet, table, search")),
        (("--plugin", "missing.py"), ("--plugin missing.py: no such Python file",)),
        (("--set", "table.runtime=virtul"), ("unknown runtime 'virtul'", "did you mean virtual?")),
        (("--set", "train.augment={randaugment: rand-m9}"), ("augment.randaugment: works in worker processes only",)),
        (
            ("--set", "train.distillation={teacher: 'timm:resnet19', hard: false}"),
            ("timm has no model 'resnet19'", "did you mean"),
        ),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2_before_anything_is_written(
    tiny: Callable[..., Path], tmp_path: Path, slimformer: Slimformer, words: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    mistake = slimformer("run", tiny(), "--out", tmp_path / "run", *words).mistake
    for part in parts:
        assert part in mistake
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("device=cuda", ("device: cuda was asked for, but torch finds no CUDA device here",)),
        ("table.runtime=virtul", ("unknown runtime 'virtul'", "did you mean virtual?")),
        ("data.num_classes=12", ("data.num_classes: 12, but digits has 10 classes",)),
        ("data.in_memory=false", ("data.in_memory: the embedded digits are always in memory",)),
        ("data.held_out_fraction=0.001", ("data.held_out_fraction: 0.001 holds out 0 of the",)),
        ("supernet.augment={randaugment: rand-m9}", ("augment.randaugment: works in worker processes only",)),
    ],
)
def test_what_does_not_fit_the_data_or_the_machine_is_one_line_too(
    tiny: Callable[..., Path],
    tmp_path: Path,
    slimformer: Slimformer,
    monkeypatch: pytest.MonkeyPatch,
    override: str,
    parts: tuple[str, ...],
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    stage = "table" if override.startswith("table") else "supernet"
    mistake = slimformer(stage, tiny(), "--out", tmp_path / "run", "--set", override).mistake
    for part in parts:
        assert part in mistake


def emptied(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


@pytest.mark.parametrize("command", ["run", "supernet"])
@pytest.mark.parametrize(
    ("spoil", "parts"),
    [
        (shutil.rmtree, ("images: no such image folder",)),
        (emptied, ("has no folder train/",)),
        (lambda root: shutil.rmtree(root / "val"), ("has neither test/ nor val/",)),
        (lambda root: [path.unlink() for path in (root / "train" / "cat").iterdir()], ("train/cat: no images",)),
        (lambda root: (root / "val" / "dog").rename(root / "val" / "dig"), ("class folders differ", "val/ lacks dog")),
    ],
    ids=["missing", "empty", "no test images", "empty class", "classes differ"],
)
def test_an_image_folder_that_cannot_be_used_is_one_line(
    tiny: Callable[..., Path],
    tmp_path: Path,
    image_folder: Path,
    slimformer: Slimformer,
    command: str,
    spoil: Callable[[Path], object],
    parts: tuple[str, ...],
) -> None:
    spoil(image_folder)
    path = tiny(**{"data.path": str(image_folder), "data.channels": 3})
    mistake = slimformer(command, path, "--out", tmp_path / "run").mistake
    for part in parts:
        assert part in mistake
    assert str(image_folder) in mistake


def test_an_unreadable_image_is_named(
    tiny: Callable[..., Path], tmp_path: Path, image_folder: Path, slimformer: Slimformer
) -> None:
    broken = image_folder / "train" / "dog" / "03.png"
    broken.write_bytes(broken.read_bytes()[:60])
    path = tiny(**{"data.path": str(image_folder), "data.channels": 3, "data.held_out_fraction": 0.4})
    mistake = slimformer("run", path, "--out", tmp_path / "run").mistake
    assert f"{broken}: unreadable image" in mistake


@pytest.mark.parametrize(("first", "nothing_kept"), [(1e30, True), (None, False)])
def test_a_loss_that_diverges_is_named_with_its_step_and_the_last_good_checkpoint_is_kept(
    tiny: Callable[..., Path],
    tmp_path: Path,
    slimformer: Slimformer,
    monkeypatch: pytest.MonkeyPatch,
    first: float | None,
    nothing_kept: bool,
) -> None:
    words: tuple[Any, ...] = ("run", tiny(), "--out", tmp_path / "run", "--until", "supernet")
    if first is None:  # in the second epoch
        step = SupernetTraining.step

        def poisoned(self: Any, batch: Any, *, epoch: int, step: int, original: Any = step) -> Any:
            losses = original(self, batch, epoch=epoch, step=step)
            return losses | {"train_loss": torch.tensor(float("nan"))} if (epoch, step) == (1, 3) else losses

        monkeypatch.setattr(SupernetTraining, "step", poisoned)
    else:
        words += ("--set", f"supernet.learning_rate={first}")
    mistake = slimformer(*words).mistake
    assert "supernet: " in mistake
    assert "became nan" in mistake
    assert ("epoch 1, step " if nothing_kept else "epoch 2, step 4") in mistake
    assert "learning_rate" in mistake
    checkpoint = checkpoint_path(tmp_path / "run" / "supernet", "supernet")
    assert checkpoint.exists() != nothing_kept
    if not nothing_kept:
        tensors, state = load_checkpoint(checkpoint)
        assert state["epoch"] == 1
        assert all(bool(tensor.isfinite().all()) for tensor in tensors.values())
        monkeypatch.undo()
        assert slimformer(*words).code == 0  # and goes on from there


def test_a_budget_below_the_fastest_architecture_says_the_smallest_that_can_be_reached(
    copied: Path, slimformer: Slimformer
) -> None:
    words = ("--set", "search.budgets_of_largest=null", "--set", "search.budgets_ms=[0.001, 0.2]", "--redo")
    mistake = slimformer("run", copied, *words).mistake
    smallest_ms = RunFolder(copied).path / "found.json"
    assert "budget 0.001 ms is out of reach: the fastest architecture of the space takes " in mistake
    assert smallest_ms.exists()
    reached = float(mistake.split(" takes ")[1].split(" ms")[0])
    words = ("--set", f"search.budgets_ms=[{1.001 * reached}]", "--redo", "--until", "search")
    assert slimformer("run", copied, *words).code == 0


def test_a_search_takes_its_methods_and_budgets_from_the_command_line(copied: Path, slimformer: Slimformer) -> None:
    largest_ms = Trajectory.load(copied / "trajectory.jsonl").steps[0].latency_ms
    fast_ms, slow_ms = (float(f"{share * largest_ms:.3g}") for share in (0.7, 0.95))
    words = ("--method", "random", "--method", "uniform", "--budget-ms", slow_ms, "--budget-ms", fast_ms)
    assert "add --redo" in slimformer("search", copied, *words).mistake
    manifest = json.loads((copied / "manifest.json").read_text())
    manifest["stages"] = {name: manifest["stages"][name] for name in ("supernet", "table")}
    (copied / "manifest.json").write_text(json.dumps(manifest))
    assert slimformer("search", copied, *words).code == 0  # as in a run that ended with its table
    found = {path.relative_to(copied / "architectures").as_posix() for path in copied.glob("architectures/*/*.yaml")}
    assert found == {
        f"{method}/architecture-{budget:g}ms.yaml" for method in ("random", "uniform") for budget in (fast_ms, slow_ms)
    }
    assert (
        "search method 'serach' (did you mean search?)"
        in slimformer("search", copied, "--method", "serach", "--redo").mistake
    )
    assert "search.budgets_ms" in slimformer("search", copied, "--budget-ms", "-1", "--redo").mistake


def test_a_folder_of_another_experiment_is_refused_and_nothing_is_lost(
    copied: Path, tiny: Callable[..., Path], slimformer: Slimformer, contents: Contents
) -> None:
    before = contents(copied)
    mistake = slimformer("run", tiny(name="other"), "--out", copied, "--redo").mistake
    assert f"{copied}: belongs to the experiment 'tiny', not to 'other'" in mistake
    assert contents(copied) == before


def test_a_folder_with_other_files_is_refused(
    tiny: Callable[..., Path], image_folder: Path, slimformer: Slimformer
) -> None:
    assert "is not empty and holds no run" in slimformer("run", tiny(), "--out", image_folder).mistake
    assert "holds no run (no config.json)" in slimformer("run", image_folder).mistake


def test_a_run_folder_is_given_once(copied: Path, tmp_path: Path, slimformer: Slimformer) -> None:
    mistake = slimformer("report", copied, "--out", tmp_path / "other").mistake
    assert f"the run folder {copied} is given already" in mistake
    assert slimformer("report", copied, "--out", copied).code == 0


def test_a_folder_at_work_is_refused(copied: Path, slimformer: Slimformer) -> None:
    with RunFolder(copied).locked():
        assert "another run is at work in this folder" in slimformer("run", copied).mistake
    assert slimformer("report", copied).code == 0


def test_a_file_that_is_no_experiment_is_refused(tmp_path: Path, slimformer: Slimformer) -> None:
    assert slimformer("run", tmp_path / "no.yaml").mistake == f"{tmp_path / 'no.yaml'}: no such file"
    (tmp_path / "no.yaml").write_text("a: [")
    assert "no.yaml: not valid YAML" in slimformer("run", tmp_path / "no.yaml").mistake


def test_an_unknown_option_or_command_has_exit_code_2(tiny: Callable[..., Path], slimformer: Slimformer) -> None:
    assert slimformer("run", tiny(), "--untill", "table").code == 2
    assert slimformer("rum").code == 2
    assert slimformer("run").code == 2


def test_the_run_folder_is_named_after_the_experiment(
    tiny: Callable[..., Path], tmp_path: Path, slimformer: Slimformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert slimformer("run", tiny(name="named"), "--until", "supernet", "--set", "supernet.epochs=1").code == 0
    assert RunFolder(tmp_path / "runs" / "named").config.supernet.epochs == 1


def test_a_run_ends_with_its_models_the_verdict_and_where_the_report_is(copied: Path, slimformer: Slimformer) -> None:
    out = slimformer("run", copied).out
    for job in ("search", "uniform", "random"):
        assert f"{job}-" in out
    assert str((copied / "report.html").resolve()) in out
    assert "Search " in out.splitlines()[-2]


def test_a_plan_says_what_would_be_done_and_writes_nothing(
    tiny: Callable[..., Path],
    tmp_path: Path,
    slimformer: Slimformer,
    monkeypatch: pytest.MonkeyPatch,
    contents: Contents,
) -> None:
    path = tiny()
    monkeypatch.chdir(tmp_path)
    before = contents(tmp_path)
    outcome = slimformer("run", path, "--plan")
    assert outcome.code == 0, outcome.err
    assert contents(tmp_path) == before
    assert not (tmp_path / "runs").exists()
    for name in [stage.name for stage in STAGES if stage.name != "report"]:
        assert name in outcome.out
    for word in ("1,438 training and 359 test images", "largest", "smallest", "supernet", "minutes", "6 models"):
        assert word in outcome.out


def test_a_plan_needs_no_images_where_their_number_is_given(
    tiny: Callable[..., Path], tmp_path: Path, slimformer: Slimformer, contents: Contents
) -> None:
    path = tiny(**{"data.path": str(tmp_path / "nowhere")})
    assert "no such image folder" in slimformer("run", path, "--plan").mistake
    words = ("--set", "data.num_classes=7", "--set", "data.num_images=5000")
    outcome = slimformer("run", path, "--plan", *words)
    assert outcome.code == 0, outcome.err
    assert "5,000 training" in outcome.out
    for command in ("run", "supernet"):
        assert "no such image folder" in slimformer(command, path, *words, "--out", tmp_path / "run").mistake
    assert not (tmp_path / "run").exists()


def test_a_table_needs_no_images_where_their_classes_are_given(
    tiny: Callable[..., Path], tmp_path: Path, slimformer: Slimformer
) -> None:
    path, run = tiny(**{"data.path": str(tmp_path / "nowhere")}), tmp_path / "run"

    def classes() -> set[int]:
        (table,) = run.glob("latency-virtual-*.json")
        return {entry.out_channels for entry in LatencyTable.load(table).entries if entry.part == "head"}

    assert "no such image folder" in slimformer("table", path, "--out", run).mistake
    assert not run.exists()
    words = ("table", path, "--out", run, "--set")
    assert slimformer(*words, "data.num_classes=7").code == 0
    assert classes() == {7}
    assert slimformer(*words, "data.num_classes=7").skipped == ["table"]
    assert "holds this experiment with other settings" in slimformer(*words, "data.num_classes=8").mistake
    assert slimformer(*words, "data.num_classes=8", "--redo").code == 0
    assert classes() == {8}


def test_a_plan_takes_the_settings_into_account(tiny: Callable[..., Path], slimformer: Slimformer) -> None:
    words = ("--set", "search.methods=[search]", "--set", "supernet.epochs=77")
    out = slimformer("run", tiny(), "--plan", *words).out
    assert "2 models" in out
    assert "77 epochs" in out


def test_a_plan_of_a_finished_run_has_nothing_left(copied: Path, slimformer: Slimformer) -> None:
    assert "Left 0 min" in slimformer("run", copied, "--plan").out
    assert "In all" in slimformer("run", copied, "--plan", "--set", "supernet.epochs=77").out


def test_a_plan_adds_the_teachers_time_to_the_retraining(
    tiny: Callable[..., Path], slimformer: Slimformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("experiments.plan.stopwatch_seconds", lambda work: 1.0)

    def planned(teacher: str | None) -> Any:
        distillation = None if teacher is None else {"teacher": teacher, "hard": False}
        return slimformer("run", tiny(**{"train.distillation": distillation}), "--plan")

    def minutes(outcome: Any) -> float:
        (row,) = (line for line in outcome.out.splitlines() if "6 models, 1 at once" in line)
        return float(row.split("│")[3])

    alone, taught = planned(None), planned("timm:resnet10t")
    assert minutes(taught) == pytest.approx(2 * minutes(alone), abs=0.11)  # a look takes as long as a step here
    assert "did you mean resnet10t?" in planned("timm:resnet10tt").mistake


@pytest.mark.parametrize(
    ("methods", "scores"),
    # 3 positions and 5 widths, at most one left out or narrowed at a step, three actions a step; 13 single choices, and
    # for each of 2 budgets 8 rounds of an optimum and 4 neighbours; over the frontier 5 other candidates and 3 smaller
    # widths to go to, each step from among 5 candidates, 2 widths and the first token block
    [
        (["search"], 24),
        (["frontier"], 64),
        (["exact"], 93),
        (["search", "frontier", "exact", "random"], 181),
        (["uniform"], 0),
    ],
)
def test_a_plan_counts_the_scores_of_the_methods(
    tiny: Callable[..., Path], slimformer: Slimformer, methods: list[str], scores: int
) -> None:
    assert f"at most {scores} scores of" in slimformer("run", tiny(**{"search.methods": methods}), "--plan").out


def test_models_lists_every_published_model_with_its_size(slimformer: Slimformer) -> None:
    out = slimformer("models").out
    assert len(list_models()) == 37
    assert all(f" {name} " in out for name in list_models())
    assert "12,289,928" in out
    assert "224x224" in out
    assert "efficientformer_l3" not in slimformer("models", "*_l1").out
    assert "no published model matches 'resnet*' (known: " in slimformer("models", "resnet*").mistake


def test_every_stage_has_its_own_command_with_what_it_does() -> None:
    assert list(STAGE_HELP) == [stage.name for stage in STAGES]
    assert all(text.endswith(".") for text in STAGE_HELP.values())


def test_help_names_every_command(slimformer: Slimformer) -> None:
    outcome = slimformer("--help")
    assert outcome.code == 0
    for name in ("run", "quickstart", "models", *STAGE_HELP):
        assert f" {name} " in outcome.out
    for option in ("--out", "--until", "--set", "--redo", "--plan", "--plugin"):
        assert option in slimformer("run", "--help").out


def test_a_plugins_block_and_runtime_can_be_named_in_the_experiment(
    tiny: Callable[..., Path], tmp_path: Path, slimformer: Slimformer
) -> None:
    plugin = tmp_path / "test_my_plugin.py"
    plugin.write_text(PLUGIN)
    words = (
        "--set",
        "space.stages.1.candidates=[{type: test_twice, hidden_ratio: 2}, identity]",
        "--set",
        "table.runtime=test_double",
    )
    path, out = tiny(), tmp_path / "run"
    assert "unknown block type 'test_twice'" in slimformer("table", path, "--out", out, *words).mistake
    outcome = slimformer("table", path, "--out", out, *words, "--plugin", plugin)
    assert outcome.code == 0, outcome.err
    (table,) = out.glob("latency-test_double-*-fp64-b1-t1.json")
    assert '"test_twice"' in table.read_text()


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("\nx =\n", ("line 2: SyntaxError: invalid syntax",)),
        ("import nothing_like_it", ("line 1: ModuleNotFoundError: No module named 'nothing_like_it'",)),
        ("def f():\n    return {}['key']\n\nf()", ("line 2: KeyError: 'key'",)),
    ],
)
def test_a_plugin_that_fails_is_one_line_that_says_where(
    tiny: Callable[..., Path],
    tmp_path: Path,
    slimformer: Slimformer,
    monkeypatch: pytest.MonkeyPatch,
    text: str,
    parts: tuple[str, ...],
) -> None:
    plugin, path = tmp_path / "test_failing_plugin.py", tiny()
    plugin.write_text(text)
    monkeypatch.chdir(tmp_path)
    for named in (plugin, plugin.name):
        mistake = slimformer("run", path, "--out", tmp_path / "run", "--plugin", named).mistake
        for part in (f"--plugin {named}, ", *parts):
            assert part in mistake
    assert not (tmp_path / "run").exists()


def test_a_plugin_that_would_take_the_place_of_a_module_is_refused(
    tiny: Callable[..., Path], tmp_path: Path, slimformer: Slimformer
) -> None:
    plugin = tmp_path / "torch.py"
    plugin.write_text("")
    mistake = slimformer("run", tiny(), "--out", tmp_path / "run", "--plugin", plugin).mistake
    assert f"--plugin {plugin}: there is a module 'torch' already" in mistake
    assert sys.modules["torch"] is torch


def test_the_installed_script_answers_a_mistake_without_a_traceback(tmp_path: Path) -> None:
    script = Path(sysconfig.get_path("scripts")) / "slimformer"
    command = [str(script)] if script.exists() else [sys.executable, "-m", "experiments.cli"]
    root = Path(__file__).resolve().parents[2]
    where = tmp_path if script.exists() else root
    done = subprocess.run([*command, "run", "nothing.yaml"], cwd=where, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "slimformer: nothing.yaml: no such file\n"
    assert done.stdout == ""


def test_help_answers_without_loading_torch() -> None:
    code = "import sys; import experiments.cli; print('torch' in sys.modules)"
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_help_names_the_commands_in_the_order_of_their_use() -> None:
    tools = ["models", "predict", "convert", "measure", "audit", "study"]
    commands: Any = typer.main.get_command(app)
    assert list(commands.commands) == ["run", "quickstart", *tools, *STAGE_HELP]
