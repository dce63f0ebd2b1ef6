"""`slimformer study`: many trainings against scores and between methods, resumable unit by unit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from scipy import stats

from analysis import ranking
from experiments import rank_study, studying
from experiments.compare_study import WITHOUT_RANDOMNESS
from experiments.console import Screen
from experiments.experiment import load_experiment
from experiments.models import Proofs
from experiments.study import Study, load_study, studied_run
from experiments.study_units import Training, distinct
from supernet.schema import load, save
from tests.experiments.test_solving import METHOD
from train.loop import LossDiverged

Slimformer = Callable[..., Any]
Contents = Callable[[Path], dict[str, bytes]]
WriteStudy = Callable[..., Path]

SHIPPED = sorted((Path(studying.__file__).parent / "studies").glob("*.yaml"))
RECIPE = {"epochs": 1, "batch_size": 256, "learning_rate": 2.0e-2, "precision": "fp32"}
RANK = {"architectures": 5, "seeds": [0], "ceiling": {"architectures": 3, "seed": 1}}
TRAININGS = 8
COMPARE = {
    "budgets_of_largest": [0.8],
    "methods": ["random_search", "search", "uniform", "random"],
    "search_seeds": [0, 1],
    "retrain_seeds": [0, 1],
    "trials": 3,
}


def written_study(folder: Path, finished: Path, **sections: Any) -> Path:
    """A study of the finished tiny run as a YAML file."""
    data = {
        "schema_version": 1,
        "name": "small",
        "experiment": str(finished.parent / "tiny.yaml"),
        "run": str(finished),
        "device": "cpu",
        "threads": 1,
        "train": RECIPE,
    }
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(data | sections))
    return path


@pytest.fixture
def write(tmp_path: Path, finished: Path) -> WriteStudy:
    """Writes a study of the finished tiny run: `write(rank=RANK)` is the path of a YAML file."""
    return lambda **sections: written_study(tmp_path, finished, **sections)


@pytest.fixture(scope="module", autouse=True)
def _small() -> Iterator[None]:
    """Fewer draws and bootstrap samples than a study makes of a real space."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rank_study, "DRAWS", 100)
        patch.setattr(ranking, "SAMPLES", 50)
        yield


@pytest.fixture(scope="module")
def ranked(tmp_path_factory: pytest.TempPathFactory, _finished: Path, slimformer: Slimformer) -> Any:
    """A finished rank study, to read: its folder and what the command said; `before` is the run as it was."""
    folder = tmp_path_factory.mktemp("ranked")
    before = {path: path.read_bytes() for path in _finished.rglob("*") if path.is_file()}
    outcome = slimformer("study", written_study(folder, _finished, rank=RANK), "--out", folder / "out")
    assert outcome.code == 0, outcome.err
    assert {path: path.read_bytes() for path in _finished.rglob("*") if path.is_file()} == before
    return folder / "out", outcome


@pytest.fixture
def trained_nets(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """The digest and seed of every training that is begun in this process."""
    begun: list[tuple[str, int]] = []
    train = studying.train_net

    def watched(run: Any, task: Any, progress: Any) -> None:
        begun.append((task.name, task.seed))
        train(run, task, progress)

    monkeypatch.setattr(studying, "train_net", watched)
    return begun


@pytest.fixture
def scored(ranked: Any, tmp_path: Path) -> Path:
    """The folder of a rank study in which nothing is trained yet, but every score is there, which takes seconds."""
    out = tmp_path / "out"
    shutil.copytree(ranked[0], out, ignore=shutil.ignore_patterns("trained", "rank_study.*"))
    return out


def record(folder: Path, name: str) -> Any:
    """A record without what is timed."""
    data = json.loads((folder / name).read_text())
    for timed in ("environment", "training_minutes", "speed"):
        data.pop(timed, None)
    for result in data.get("results", ()):
        result.pop("minutes")
        result.pop("search_minutes")
    return data


def units(folder: Path) -> set[str]:
    """The trainings that left a file."""
    return {file.relative_to(folder).as_posix() for file in folder.glob("trained/*/*")}


def test_a_rank_study_trains_every_net_and_ranks_every_score(ranked: Any) -> None:
    out, outcome = ranked
    found = record(out, "rank_study.json")
    assert (found["trainings"], found["missing"], found["seed_ceiling_architectures"]) == (TRAININGS, 0, 3)
    assert len(units(out)) == TRAININGS
    nets = {net["digest"]: net for net in found["architectures"]}
    assert len(nets) == 5
    by_ms = sorted(nets.values(), key=lambda net: net["table_ms"])
    twice = [net["digest"] for net in by_ms if set(net["accuracy_percent"]) == {"0", "1"}]
    assert twice == [by_ms[0]["digest"], by_ms[2]["digest"], by_ms[4]["digest"]]  # the ceiling is spread
    first, second = ([nets[name]["accuracy_percent"][seed] for name in twice] for seed in ("0", "1"))
    interval = ranking.tau_interval(first, second, seed=rank_study.BOOTSTRAP_SEED)
    assert found["seed_ceiling_interval_95"] == (None if interval is None else list(interval))
    names = [scorer["scorer"] for scorer in found["scorers"]]
    assert len(names) == len(set(names)) >= 9
    for scorer in found["scorers"]:
        assert scorer["num_architectures"] == 5
        assert scorer["seed_ceiling_tau"] == found["seed_ceiling_tau"]
        ours = [net["scores"][scorer["scorer"]] for net in by_ms]
        tau = stats.kendalltau(ours, [net["accuracy_percent"]["0"] for net in by_ms]).statistic
        assert scorer["kendall_tau"] == pytest.approx(tau)
    for net in nets.values():
        assert set(net["scores"]) == set(names)
        assert net["scores"]["macs"] == net["macs"]
        assert net["scores"]["table_ms"] == net["table_ms"]
    for word in (f"Kendall's tau of {TRAININGS} trainings", "supernet, accuracy", "rank_study.svg"):
        assert word in outcome.out
    assert (out / "rank_study.svg").read_text().startswith("<svg")


def test_an_ablation_ranks_the_same_nets_by_supernets_trained_otherwise(
    ranked: Any, write: WriteStudy, slimformer: Slimformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Path(shutil.copytree(ranked[0], tmp_path / "out"))
    as_it_is, soft = "supernet.epochs=2", ["supernet.mixing=soft", "supernet.distill_weight=0.0"]
    fewer = "data.alpha_fraction=0.2"
    path = write(rank=RANK | {"variants": {"the same": [as_it_is], "soft": soft, "fewer images": [fewer]}})
    outcome = slimformer("study", path, "--out", out)
    assert outcome.code == 0, outcome.err
    assert "of 3 variants: soft" in outcome.out
    found = {scorer["scorer"]: scorer for scorer in record(out, "rank_study.json")["scorers"]}
    assert len([name for name in found if "/" in name]) == 12
    assert "fewer images/supernet_accuracy" in found
    for score in ("supernet_accuracy", "supernet_accuracy_no_refit", "supernet_loss", "alpha_importance"):
        same, other, own = found[f"the same/{score}"], found[f"soft/{score}"], found[score]
        assert own["tau_difference"] is None
        if same["kendall_tau"] is not None:
            assert (same["kendall_tau"], same["tau_difference"]) == (own["kendall_tau"], 0.0)
            assert other["tau_difference"] == pytest.approx(other["kendall_tau"] - own["kendall_tau"])
    for net in record(out, "rank_study.json")["architectures"]:
        assert net["scores"]["the same/supernet_loss"] == pytest.approx(net["scores"]["supernet_loss"], rel=1e-5)
    monkeypatch.setattr("experiments.supernet_variants.train_supernet_stage", lambda run: pytest.fail("trained again"))
    assert slimformer("study", path, "--out", out).code == 0


def test_an_interrupted_study_leaves_a_valid_record_and_ends_in_the_same_one(
    ranked: Any, scored: Path, write: WriteStudy, slimformer: Slimformer, trained_nets: list[tuple[str, int]]
) -> None:
    path, parts = write(rank=RANK), scored
    watched = studying.train_net

    def interrupted(run: Any, task: Any, progress: Any) -> None:
        def until_a_step_of_the_sixth(done: int, total: int, figures: dict[str, float]) -> None:
            progress(done, total, figures)
            if len(trained_nets) == 6:
                raise KeyboardInterrupt

        watched(run, task, until_a_step_of_the_sixth)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(studying, "train_net", interrupted)
        assert slimformer("study", path, "--out", parts).code == 130
    partial = record(parts, "rank_study.json")
    assert (partial["trainings"], partial["missing"]) == (TRAININGS, 3)
    assert {scorer["num_architectures"] for scorer in partial["scorers"]} == {5}
    assert slimformer("study", path, "--out", parts).code == 0
    assert len(trained_nets) == TRAININGS + 1  # one was begun twice
    assert record(parts, "rank_study.json") == record(ranked[0], "rank_study.json")
    assert units(parts) == units(ranked[0])
    assert all(unit.endswith(".json") for unit in units(parts))


def test_two_processes_give_the_accuracies_of_one(
    ranked: Any, scored: Path, write: WriteStudy, slimformer: Slimformer
) -> None:
    at_once = ("--set", "threads=2", "--set", "processes=2")  # a thread a training, as with one
    outcome = slimformer("study", write(rank={"architectures": 5}), "--out", scored, *at_once)
    assert outcome.code == 0, outcome.err
    assert "5 of 5: " in outcome.out
    found, expected = (record(folder, "rank_study.json")["architectures"] for folder in (scored, ranked[0]))
    accuracies = [{net["digest"]: net["accuracy_percent"]["0"] for net in nets} for nets in (found, expected)]
    assert accuracies[0] == accuracies[1]


def test_a_training_that_diverges_is_named_and_left_out_and_the_others_go_on(
    ranked: Any,
    write: WriteStudy,
    slimformer: Slimformer,
    tmp_path: Path,
    trained_nets: list[tuple[str, int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = Path(shutil.copytree(ranked[0], tmp_path / "out"))
    before = record(out, "rank_study.json")
    lost = before["architectures"][2]["digest"]
    for unit in out.glob(f"trained/*/{lost}-seed0.json"):
        unit.unlink()

    def diverging(*words: Any, directory: Path, **options: Any) -> Any:
        directory.mkdir(parents=True)
        raise LossDiverged("model: train_loss became nan in epoch 1, step 1")

    monkeypatch.setattr("experiments.study_units.retrain", diverging)
    for begun in ([(lost, 0)], []):  # the second time it is not tried again
        trained_nets.clear()
        outcome = slimformer("study", write(rank=RANK), "--out", out)
        assert outcome.code == 0, outcome.err
        assert trained_nets == begun
        assert f"{lost}, seed 0, failed and is left out: model: train_loss became nan" in outcome.out
        assert f"Kendall's tau of {TRAININGS - 1} trainings" in outcome.out
        found = record(out, "rank_study.json")
        assert (found["trainings"], found["missing"]) == (TRAININGS, 0)
        (failure,) = found["failed"]
        assert (failure["name"], failure["seed"]) == (lost, 0)
        assert failure["reason"] == "model: train_loss became nan in epoch 1, step 1"
        assert {scorer["num_architectures"] for scorer in found["scorers"]} == {4}
    left = {file.name for file in out.glob(f"trained/*/{lost}-seed0*")}
    assert left == {f"{lost}-seed0.failed.json"}


def test_trainings_that_diverge_in_processes_do_not_end_a_study(
    scored: Path, write: WriteStudy, slimformer: Slimformer
) -> None:
    at_once = ("--set", "threads=2", "--set", "processes=2")
    path = write(rank={"architectures": 5}, train=RECIPE | {"learning_rate": 1e30})
    outcome = slimformer("study", path, "--out", scored, *at_once)
    assert outcome.code == 0, outcome.err
    found = record(scored, "rank_study.json")
    assert (found["trainings"], found["missing"], len(found["failed"])) == (5, 0, 5)
    assert {net["digest"] for net in found["architectures"]} == {failure["name"] for failure in found["failed"]}
    assert found["scorers"] == []


def test_a_comparison_that_was_stopped_finds_the_same_and_keeps_what_was_proven(
    write: WriteStudy, tmp_path: Path
) -> None:
    path = write(compare=COMPARE | {"methods": ["exact"], "budgets_of_largest": [0.6, 0.8]})

    def searched(out: Path, *, stopped: bool) -> Any:
        study = load_study(path)
        opened = studying.OpenStudy(study, studied_run(study, Screen(), command="", plugins=()), out)
        assert opened.compare is not None
        compare = opened.compare
        if stopped:
            with pytest.MonkeyPatch.context() as patch:
                searches = compare.searches[:1]
                patch.setattr(type(compare), "searches", property(lambda _: searches))
                compare.search()
            return searched(out, stopped=False)
        compare.search()
        found = [compare.found(job, seed) for job, seed in compare.searches]
        return [each.delivery.architecture.digest for each in found if each is not None and each.delivery is not None]

    whole = searched(tmp_path / "whole", stopped=False)
    assert len(whole) == 2
    assert searched(tmp_path / "parts", stopped=True) == whole
    for out in (tmp_path / "whole", tmp_path / "parts"):
        proofs = [load(Proofs, file) for file in sorted(out.glob("searches/*/exact-seed0/exact-proofs-*ms.json"))]
        assert len(proofs) == 2
        proven = [{program.budget_ms for program in proof.programs} for proof in proofs]
        assert [len(budgets) for budgets in proven] == [1, 1]
        assert proven[0] != proven[1]


def test_scores_of_another_runnable_space_are_kept_apart(ranked: Any, write: WriteStudy, tmp_path: Path) -> None:
    study = load_study(write(rank=RANK))
    run = studied_run(study, Screen(), command="", plugins=())
    out = Path(shutil.copytree(ranked[0], tmp_path / "out"))
    (before,) = (folder.name for folder in out.glob("scores/*"))
    left_out = [name.name for name in run.space.candidates(1)][-1]
    run.runnable_space = run.space.without([(1, left_out)])
    opened = studying.OpenStudy(study, run, out)
    assert opened.rank is not None
    assert opened.rank.score_key != before
    run.runnable_space = run.space
    assert opened.rank.score_key == before


def test_a_comparison_delivers_and_trains_what_is_shared_once(
    scored: Path,
    write: WriteStudy,
    slimformer: Slimformer,
    tmp_path: Path,
    trained_nets: list[tuple[str, int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = scored
    outcome = slimformer("study", write(rank={"architectures": 5}, compare=COMPARE), "--out", out)
    assert outcome.code == 0, outcome.err
    found = record(out, "study.json")
    assert found["missing"] == found["searches_missing"] == 0
    results = {result["method"]: result for result in found["results"]}
    assert list(results) == COMPARE["methods"]
    (budget_ms,) = found["budgets_ms"]
    nets = {net["digest"] for result in results.values() for net in result["nets"]}
    ranked = {net["digest"] for net in record(out, "rank_study.json")["architectures"]}
    assert set(trained_nets) == {(name, 0) for name in ranked} | {(name, seed) for name in nets for seed in (0, 1)}
    assert len(trained_nets) == len(set(trained_nets))
    for method, result in results.items():
        assert result["search_seeds"] == ([0] if method in WITHOUT_RANDOMNESS else [0, 1])
        assert len(result["accuracy_percent"]) == 2 * len(result["nets"]) > 0
        assert result["missing"] == 0
        assert result["mean"] == pytest.approx(sum(result["accuracy_percent"]) / len(result["accuracy_percent"]))
        assert all(0 < ms <= budget_ms for ms in result["measured_ms"])
        assert len(result["measured_ms"]) == len(result["nets"])
        reference = results["random_search"]
        if method == "random_search":
            assert result["difference_to_random"] is None
        else:
            assert result["difference_to_random"] == pytest.approx(result["mean"] - reference["mean"])
            low, high = result["difference_interval_95"]
            assert low <= result["difference_to_random"] <= high
            assert "seeds" in result["difference_by"]
    means = {each["method"]: each for each in found["overall"]}
    assert means.keys() == results.keys()
    against = means["search"]["against"]
    assert against["random_search"]["mean"] == pytest.approx(results["search"]["difference_to_random"])
    assert against["random_search"]["interval_95"] == pytest.approx(results["search"]["difference_interval_95"])
    assert against["uniform"]["mean"] == pytest.approx(results["search"]["mean"] - results["uniform"]["mean"])
    assert "Mean over the budgets" in outcome.out
    assert means["random"]["nets_scored"] == means["uniform"]["nets_scored"] == 0
    assert means["random_search"]["nets_scored"] >= 3  # trials
    assert means["search"]["nets_scored"] > 3
    assert all(0 < mean["share_of_budget"] <= 1 for mean in means.values())
    assert (out / "study.svg").exists()
    trained_nets.clear()
    again = slimformer("study", tmp_path / "study.yaml", "--out", out)
    assert again.code == 0, again.err
    assert trained_nets == []
    assert record(out, "study.json") == found
    monkeypatch.setattr("search.methods._OWN", {})
    plugin = tmp_path / "test_studied_method.py"
    plugin.write_text(METHOD)
    words = ("--set", "compare.methods=[random_search, test_widest]", "--plugin", plugin)
    beside = slimformer("study", tmp_path / "study.yaml", "--out", out, *words)
    assert beside.code == 0, beside.err
    random_search, own = record(out, "study.json")["results"]
    assert random_search["accuracy_percent"] == results["random_search"]["accuracy_percent"]
    assert (own["method"], own["search_seeds"], own["missing"]) == ("test_widest", [0, 1], 0)
    assert set(trained_nets) <= {(net["digest"], seed) for net in own["nets"] for seed in (0, 1)}
    monkeypatch.setattr("search.methods._OWN", {})  # the folder is read without the plugin by who does not ask for it
    reported = slimformer("study", tmp_path / "study.yaml", "--out", out, "--report")
    assert reported.code == 0, reported.err
    assert record(out, "study.json")["results"] == found["results"]


def test_timms_models_are_as_wide_as_the_budget_and_trained_and_measured_like_the_others(
    write: WriteStudy, slimformer: Slimformer, tmp_path: Path, trained_nets: list[tuple[str, int]]
) -> None:
    out, asked = tmp_path / "out", {"budgets_of_largest": None, "budgets_ms": [5.0], "methods": ["uniform"]}
    path = write(compare=COMPARE | asked | {"external": ["resnet18d", "mobilenetv3_small"]})
    outcome = slimformer("study", path, "--out", out)
    assert outcome.code == 0, outcome.err
    found = record(out, "study.json")
    assert found["missing"] == found["searches_missing"] == 0
    uniform, resnet, mobilenet = found["results"]
    assert [resnet["method"], mobilenet["method"]] == ["timm:resnet18d", "timm:mobilenetv3_small"]
    assert (mobilenet["nets"], mobilenet["missing"]) == ([], 0)
    (reason,) = mobilenet["unreachable"]
    assert reason.startswith("0.5 of mobilenetv3_small's width, the narrowest, takes ")
    (net,) = resnet["nets"]
    assert net["digest"].startswith("timm-")
    assert set(net["accuracy_percent"]) == {"0", "1"}
    assert sorted(trained_nets) == sorted((each["digest"], seed) for each in (*uniform["nets"], net) for seed in (0, 1))
    assert 0.6 * 5.0 < net["measured_ms"] <= 0.98 * 5.0  # the next sixteenth is wider by far at this width
    assert net["measured_ms"] == pytest.approx(0.010 + 20e-6 * net["parameters"], rel=1e-3)
    assert net["predicted_ms"] is None
    assert resnet["mean"] == pytest.approx(sum(resnet["accuracy_percent"]) / 2)
    assert "timm's resnet18d" in outcome.out
    trained_nets.clear()
    assert slimformer("study", path, "--out", out).code == 0
    assert trained_nets == []
    assert record(out, "study.json") == found


def test_nets_that_are_asked_for_twice_are_trained_once() -> None:
    def task(name: str, seed: int) -> Training:
        unit = Path("trained") / f"{name}-seed{seed}.json"
        return Training(name=name, seed=seed, architecture=Path(f"{name}.yaml"), unit=unit, macs=1)

    asked = [task("a", 0), task("b", 0), task("a", 0), task("a", 1)]
    assert distinct(asked) == [task("a", 0), task("b", 0), task("a", 1)]


def test_another_recipe_trains_anew_and_what_was_trained_stays(
    ranked: Any, write: WriteStudy, slimformer: Slimformer, tmp_path: Path, trained_nets: list[tuple[str, int]]
) -> None:
    path, out = write(rank=RANK), Path(shutil.copytree(ranked[0], tmp_path / "out"))
    assert slimformer("study", path, "--out", out, "--set", "train.learning_rate=1e-3").code == 0
    assert len(trained_nets) == TRAININGS
    first = record(ranked[0], "rank_study.json")
    assert record(out, "rank_study.json")["architectures"] != first["architectures"]
    assert slimformer("study", path, "--out", out).code == 0
    assert len(trained_nets) == TRAININGS
    assert record(out, "rank_study.json") == first


@pytest.mark.parametrize(
    ("override", "changed"),
    [
        ("rank.architectures=6", "trainings"),
        ("rank.draw_seed=1", "trainings"),
        ("rank.seeds=[0, 2]", "trainings"),
        ("rank.ceiling.architectures=4", "trainings"),
        ("rank.ceiling.seed=2", "trainings"),
        ("train.start=inherited", "trainings"),
        ("compare.budgets_of_largest=[0.7]", "searches"),
        ("compare.methods=[exact]", "searches"),
        ("compare.search_seeds=[0, 4]", "searches"),
        ("compare.trials=5", "key"),
        ("compare.external=[resnet18d]", "external"),
        ("threads=3", "threads"),
        ("processes=2", "processes"),
    ],
)
def test_a_setting_changes_what_is_asked_for(write: WriteStudy, tmp_path: Path, override: str, changed: str) -> None:
    path = write(rank=RANK, compare=COMPARE)

    def asked(*overrides: str) -> dict[str, Any]:
        study = load_study(path, overrides=overrides)
        run = studied_run(study, Screen(), command="", plugins=())
        opened = studying.OpenStudy(study, run, tmp_path / "out")
        assert opened.rank is not None
        assert opened.compare is not None
        return {
            "trainings": {task.unit for task in opened.rank.trainings},
            "searches": opened.compare.searches,
            "key": opened.compare.key,
            "external": opened.compare.external.missing,
            "threads": run.threads,
            "processes": run.processes,
        }

    before, after = asked(), asked(override)
    assert changed in {name for name in before if before[name] != after[name]}


def test_budgets_may_be_milliseconds(write: WriteStudy, tmp_path: Path) -> None:
    path = write(compare={**COMPARE, "budgets_of_largest": None, "budgets_ms": [0.2, 0.1]})
    study = load_study(path)
    opened = studying.OpenStudy(study, studied_run(study, Screen(), command="", plugins=()), tmp_path / "out")
    assert opened.compare is not None
    assert {job.budget_ms for job, _ in opened.compare.searches} == {0.1, 0.2}
    assert opened.trainings == []  # nothing is found yet


def test_a_report_of_what_is_done_trains_nothing(
    ranked: Any, write: WriteStudy, slimformer: Slimformer, tmp_path: Path, trained_nets: list[tuple[str, int]]
) -> None:
    out = Path(shutil.copytree(ranked[0], tmp_path / "out"))
    more = RANK | {"architectures": 7}
    outcome = slimformer("study", write(rank=more, compare=COMPARE), "--out", out, "--report")
    assert outcome.code == 0, outcome.err
    assert trained_nets == []
    found = record(out, "rank_study.json")
    assert 2 <= found["missing"] < found["trainings"] == 10
    assert {scorer["num_architectures"] for scorer in found["scorers"]} == {5}  # more begin with the same ones
    assert record(out, "study.json")["searches_missing"] == 6
    assert "trainings are missing" in outcome.out


@pytest.mark.parametrize(
    ("sections", "line"),
    [
        ({}, "a study needs a section: rank, compare or both"),
        ({"rank": {"architecturs": 9}}, "rank.architecturs: unknown key (did you mean architectures?)"),
        ({"rank": {"architectures": 4}}, "rank.architectures: "),
        ({"rank": {"seeds": [1, 1]}}, "rank.seeds: each seed at most once"),
        ({"rank": {"ceiling": {"architectures": 3, "seed": 0}}}, "ceiling.seed: 0 is among the seeds"),
        ({"rank": {"architectures": 5, "ceiling": {"architectures": 6, "seed": 1}}}, "6 of 5 architectures"),
        ({"rank": RANK | {"variants": {"x": ["train.epochs=1"]}}}, "only fields of supernet, seeds.supernet and data"),
        (
            {"rank": RANK | {"variants": {"x": ["data.alpha_fraction=0.6"]}}},
            "alphas images that all supernets are scored on",
        ),
        ({"rank": RANK | {"variants": {"x": ["supernet.mixin=soft"]}}}, "rank.variants.x: supernet.mixin: unknown key"),
        ({"rank": RANK | {"variants": {"x": ["supernet.mixing"]}}}, "rank.variants.x: supernet.mixing: expected FIELD"),
        ({"rank": RANK, "train": RECIPE | {"distillation": {"teacher": "x.pth"}}}, "study 'small': train.distillation"),
        ({"rank": RANK | {"variants": {"a/b": ["supernet.epochs=1"]}}}, "rank.variants.a/b"),
        ({"compare": COMPARE | {"budgets_ms": [0.1]}}, "give either budgets_ms or budgets_of_largest"),
        ({"compare": COMPARE | {"methods": ["exact", "exact"]}}, "methods: each at most once"),
        ({"compare": COMPARE | {"methods": ["exakt"]}}, "compare.methods.1: "),
        ({"compare": COMPARE | {"external": ["resnet19"]}}, "compare.external.1: "),
        ({"compare": COMPARE | {"external": ["resnet18d", "resnet18d"]}}, "external: each at most once"),
        (
            {"compare": COMPARE | {"external": ["resnet18d"]}, "train": RECIPE | {"start": "inherited"}},
            "compare.external: timm's models inherit nothing",
        ),
        ({"rank": RANK, "schema_version": 2}, "schema_version"),
        ({"rank": RANK, "run": "nowhere"}, "run: nowhere holds no run"),
        ({"rank": RANK, "experiment": "nowhere.yaml"}, "nowhere.yaml: no such file"),
        ({"rank": {"architectures": 100_000}}, "rank.architectures: 100000, but 100 random ones"),
    ],
)
def test_a_mistake_in_a_study_is_one_line_and_nothing_is_written(
    write: WriteStudy, slimformer: Slimformer, tmp_path: Path, sections: dict[str, Any], line: str
) -> None:
    outcome = slimformer("study", write(**sections), "--out", tmp_path / "out")
    assert line in outcome.mistake
    assert not list((tmp_path / "out").glob("*.json"))


def test_a_run_without_a_table_or_of_other_settings_is_refused(
    write: WriteStudy, slimformer: Slimformer, tmp_path: Path, copied: Path
) -> None:
    path = write(rank=RANK, run=str(copied))
    manifest = json.loads((copied / "manifest.json").read_text())
    del manifest["stages"]["table"]
    (copied / "manifest.json").write_text(json.dumps(manifest))
    assert "has no table yet" in slimformer("study", path, "--out", tmp_path / "out").mistake
    config = json.loads((copied / "config.json").read_text())
    config["supernet"]["epochs"] = 3
    (copied / "config.json").write_text(json.dumps(config))
    mistake = slimformer("study", path, "--out", tmp_path / "out").mistake
    assert "a supernet of other settings" in mistake
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_not_written_into(
    write: WriteStudy, slimformer: Slimformer, copied: Path, contents: Contents
) -> None:
    before = contents(copied)
    assert "holds no study" in slimformer("study", write(rank=RANK), "--out", copied).mistake
    assert contents(copied) == before


def test_a_folder_of_another_study_is_not_written_into(
    write: WriteStudy, slimformer: Slimformer, tmp_path: Path, contents: Contents
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    save(load_study(write(rank=RANK)), out / studying.CONFIG)
    before = contents(out)
    mistake = slimformer("study", write(rank=RANK, name="other"), "--out", out).mistake
    assert "belongs to the study 'small', not to 'other'" in mistake
    assert contents(out) == before


def test_two_processes_cannot_work_on_one_study(write: WriteStudy, slimformer: Slimformer, tmp_path: Path) -> None:
    path, out = write(rank=RANK), tmp_path / "out"
    with studying.locked(out, load_study(path)):
        mistake = slimformer("study", path, "--out", out).mistake
    assert f"{out}: another process is at work on this study" in mistake


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_study_that_comes_with_the_project_is_of_its_experiment(path: Path) -> None:
    study = load_study(path)
    root = path.parents[2]
    assert load_experiment(root / study.experiment).name == Path(study.run).name
    assert study.name == path.stem
    assert study.train.start == "scratch"
    assert load_study(path, overrides=("threads=3",)) == Study(**{**dict(study), "threads": 3})


def test_there_are_studies_to_load() -> None:
    assert len(SHIPPED) >= 2
