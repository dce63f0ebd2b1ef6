"""Solving: every method behind one call, one trajectory for all budgets, and whole nets measured."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from experiments.artifacts import RunFolder, digest_of
from experiments.console import Screen
from experiments.experiment import DeviceLimit, LimitsConfig
from experiments.models import Job, Proofs
from experiments.plugins import file_of_method, import_plugins, without_methods
from experiments.run import Run
from experiments.solving import Solver, architecture_path
from search import runtimes
from search.correction import Correction
from search.limits import LimitsUnreachable
from search.refining import refined
from search.slimming import BudgetUnreachable
from supernet import Architecture, UserError, cost
from supernet.activation_memory import peak_activations
from supernet.schema import load


@pytest.fixture
def run(copied: Path) -> Run:
    """The tiny experiment, its supernet and table finished."""
    folder = RunFolder(copied)
    return Run(folder.config, folder, Screen(), command="")


@pytest.mark.parametrize("method", ["search", "frontier"])
def test_budgets_share_one_trajectory_that_is_made_as_long_as_needed(run: Run, method: Any) -> None:
    solver, table, space = Solver(run), run.table, run.space
    largest_ms, smallest_ms = table.latency_ms(space.largest), table.latency_ms(space.smallest)
    asked = [largest_ms - share * (largest_ms - smallest_ms) for share in (0.3, 0.1, 0.9)]
    found, lengths = [], []
    for asked_ms in asked:
        found.append(solver.slimmed(asked_ms, method=method))
        lengths.append(len(solver.trajectories[method].steps))
    assert lengths[0] == lengths[1] < lengths[2]  # a larger budget lies on the way
    for asked_ms, architecture in zip(asked, found, strict=True):
        step = solver.trajectories[method].at(asked_ms)
        assert step is not None
        assert step.architecture == architecture
        assert table.latency_ms(architecture) <= asked_ms
    assert list(solver.trajectories) == [method]
    assert solver.trajectories[method].replay(space).digest == solver.trajectories[method].steps[-1].digest


@pytest.mark.parametrize("method", ["search", "frontier"])
def test_a_search_that_goes_on_scores_nothing_again(run: Run, monkeypatch: pytest.MonkeyPatch, method: Any) -> None:
    first = Solver(run)
    first.slimmed(run.table.latency_ms(run.space.smallest), method=method)
    monkeypatch.setattr("experiments.scoring.inherit", lambda *_, **__: pytest.fail("scored again"))
    again = Solver(run)
    again.slimmed(run.table.latency_ms(run.space.smallest), method=method)
    assert again.trajectories == first.trajectories


@pytest.mark.parametrize("method", ["search", "frontier", "exact", "uniform", "random"])
def test_every_method_solves_within_what_is_asked_and_repeatably(run: Run, method: Any) -> None:
    largest_ms = run.table.latency_ms(run.space.largest)
    solved: list[list[Architecture]] = [
        [Solver(run).method(Job(method=method, budget_ms=1.0))(share * largest_ms) for share in (0.9, 0.6)]
        for _ in range(2)
    ]
    assert solved[0] == solved[1]
    assert solved[0][0] != solved[0][1]
    for share, architecture in zip((0.9, 0.6), solved[0], strict=True):
        assert run.table.latency_ms(architecture) <= share * largest_ms
        run.space.check(architecture)


def test_random_baselines_of_two_budgets_are_drawn_apart(run: Run) -> None:
    largest_ms = run.table.latency_ms(run.space.largest)
    solvers = [Solver(run).method(Job(method="random", budget_ms=budget_ms)) for budget_ms in (1.0, 2.0, 3.0, 4.0)]
    drawn = [{solve(share * largest_ms).digest for solve in solvers} for share in (0.5, 0.6, 0.7, 0.8, 0.9)]
    assert max(len(digests) for digests in drawn) > 1


def test_random_search_answers_nearly_the_same_question_from_what_it_has_scored(run: Run) -> None:
    solver, job = Solver(run), Job(method="random_search", budget_ms=1.0)
    largest_ms = run.table.latency_ms(run.space.largest)
    first = solver.random_searched(job, 0.8 * largest_ms)
    scored = set(solver.scorer.known)
    again = solver.random_searched(job, 0.8001 * largest_ms)
    assert (again, set(solver.scorer.known)) == (first, scored)
    lower = solver.random_searched(job, 0.5 * largest_ms)
    assert run.table.latency_ms(lower) <= 0.5 * largest_ms
    assert set(solver.scorer.known) > scored


@pytest.mark.parametrize("method", ["search", "frontier", "exact", "evolution", "random_search", "uniform"])
@pytest.mark.parametrize("scale", [1.0, 0.95, 0.77])
def test_a_delivered_net_measures_within_its_budget_whatever_the_table_says(
    run: Run, scale: float, method: Any
) -> None:
    budget_ms = 0.8 * run.table.latency_ms(run.space.largest)
    there = run.table.correction
    run.table = run.table.corrected(Correction(scale=scale * there.scale, scales=there.scales))
    delivery = Solver(run).deliver(Job(method=method, budget_ms=budget_ms))
    assert delivery.measured_ms <= 0.98 * budget_ms
    last = delivery.delivered
    assert scale * last.measured_ms == pytest.approx(last.predicted_ms, rel=1e-3)


@pytest.mark.parametrize("slowdown", [0.6, 1.7])
def test_a_machine_that_changed_its_speed_since_the_table_changes_nothing_of_what_is_found(
    run: Run, device: Any, slowdown: float
) -> None:
    job = Job(method="search", budget_ms=0.8 * run.table.latency_ms(run.space.largest))
    before = Solver(run).deliver(job)
    device.slowdown = slowdown
    after = Solver(run).deliver(job)
    assert [round_.digest for round_ in after.rounds] == [round_.digest for round_ in before.rounds]
    assert after.measured_ms == pytest.approx(before.measured_ms, rel=1e-3)


def test_a_budget_out_of_reach_says_the_smallest_that_is_not(run: Run) -> None:
    smallest_ms = run.table.latency_ms(run.space.smallest)
    with pytest.raises(BudgetUnreachable) as refused:
        Solver(run).deliver(Job(method="search", budget_ms=smallest_ms))
    assert refused.value.budget_ms == smallest_ms
    assert refused.value.smallest_ms == pytest.approx(smallest_ms / 0.98)


def test_fields_that_came_later_leave_the_name_of_an_evolutions_study_as_it_was(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = []
    monkeypatch.setattr("search.evolution.evolve", lambda *_, study_name, **__: names.append(study_name) or [])
    _ = Solver(run).evolved
    search, seeds = run.experiment.search, run.experiment.seeds
    before = search.model_dump(mode="json", exclude={"frontier", "importance", "further_importances", "limits"})
    before["evolution"] = search.evolution.model_dump(exclude={"storage"})
    came_from = [run.folder.manifest.stages[name].artifacts for name in ("supernet", "table")]
    content = [came_from, [before, run.experiment.evaluate.batch_size, seeds.search]]
    assert names == [f"tiny-{digest_of(content)[:16]}"]


def test_a_job_is_named_after_its_method_and_budget() -> None:
    job = Job(method="search", budget_ms=2.0)
    assert job.name == "search-2ms"
    assert architecture_path(Path("runs/a"), job) == Path("runs/a/architectures/search/architecture-2ms.yaml")
    assert Job(method="random", budget_ms=0.125).name == "random-0.125ms"


@pytest.mark.parametrize(
    ("there", "line"),
    [
        (True, "localhost:1/studies cannot be opened (connection failed"),
        (False, "in a checkout of slimformer: pip install '.[postgresql]'"),
    ],
)
def test_a_storage_out_of_reach_is_one_line(
    copied: Path, slimformer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, there: bool, line: str
) -> None:
    if there:
        pytest.importorskip("psycopg", reason="the driver is not installed: pip install '.[postgresql]'")
    else:
        monkeypatch.setitem(sys.modules, "psycopg", None)
    storage = "search.evolution.storage=postgresql+psycopg://me:secret@localhost:1/studies"
    outcome = slimformer("search", copied, "--set", "search.methods=[evolution]", "--set", storage, "--redo")
    assert line in outcome.mistake
    assert "secret" not in outcome.mistake


def limited(run: Run, **limits: Any) -> Solver:
    """A solver of the tiny experiment with the exact method and limits besides milliseconds."""
    search = run.experiment.search.model_copy(update={"methods": ("exact",), "limits": LimitsConfig(**limits)})
    run.experiment = run.experiment.model_copy(update={"search": search})
    return Solver(run)


def solved(solver: Solver) -> Architecture:
    return solver.method(Job(method="exact", budget_ms=1.0))(solver.run.table.latency_ms(solver.run.space.largest))


def test_the_exact_method_keeps_to_sizes_as_well(run: Run) -> None:
    free = solved(limited(run))
    size, peak = cost(free), peak_activations(free)
    smaller = solved(limited(run, parameters=size.parameters - 1))
    assert cost(smaller).parameters < size.parameters
    assert cost(solved(limited(run, macs=size.macs - 1))).macs < size.macs
    assert peak_activations(solved(limited(run, peak_activation_mb=4e-6 * (peak - 1)))) < peak
    kept = limited(run, parameters=size.parameters, macs=size.macs, peak_activation_mb=4e-6 * peak)
    assert solved(kept) == free


def test_the_exact_method_keeps_to_the_milliseconds_of_another_device(run: Run, tmp_path: Path) -> None:
    table = run.table
    other = tmp_path / "phone.json"
    table.model_copy(update={"machine": table.machine.model_copy(update={"cpu": "a phone"})}).save(other)
    middle_ms = (table.latency_ms(run.space.largest) + table.latency_ms(run.space.smallest)) / 2
    found = solved(limited(run, devices=(DeviceLimit(table=str(other), at_most_ms=middle_ms),)))
    assert table.latency_ms(found) <= middle_ms
    table.model_copy(update={"resolution_px": (64, 32)}).save(other)
    with pytest.raises(UserError, match=r"phone\.json: is of 64x32 pixels, but the experiment has 8x8"):
        solved(limited(run, devices=(DeviceLimit(table=str(other), at_most_ms=middle_ms),)))


def test_what_was_proven_is_written_down(run: Run) -> None:
    solver = limited(run, parameters=10**9)
    found = solved(solver)
    (path,) = solver.save_proofs()
    programs = load(Proofs, path).programs
    assert found.digest in {program.digest for program in programs}
    for program in programs:
        assert program.modelled_percent <= program.bound_percent == pytest.approx(program.modelled_percent, abs=1e-4)
        assert program.used.keys() == program.at_most.keys() == {"ms", "parameters"}
        assert all(program.used[name] <= program.at_most[name] for name in program.used)


def test_what_is_proven_for_a_budget_is_written_apart_where_the_search_is_at_work(run: Run, tmp_path: Path) -> None:
    solver = Solver(run, working=tmp_path)
    largest_ms = run.table.latency_ms(run.space.largest)
    for budget_ms in (1.0, 2.0):
        solver.exact(Job(method="exact", budget_ms=budget_ms), 0.4 * budget_ms * largest_ms)
    (path,) = solver.save_proofs(suffix="-of-2", budget_ms=2.0)
    assert path == tmp_path / "exact-of-2.json"
    assert {program.budget_ms for program in load(Proofs, path).programs} == {2.0}
    assert solver.save_proofs(budget_ms=3.0) == []


def test_what_the_exact_method_finds_does_not_depend_on_the_budgets_before(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[dict[Architecture, float]] = []

    def watched(*words: Any, scored: dict[Architecture, float], **options: Any) -> Architecture:
        given.append(dict(scored))
        return refined(*words, scored=scored, **options)

    monkeypatch.setattr("experiments.solving.refined", watched)
    largest_ms = run.table.latency_ms(run.space.largest)
    solver, first, second = Solver(run), Job(method="exact", budget_ms=1.0), Job(method="exact", budget_ms=2.0)
    solver.exact(first, 0.7 * largest_ms)
    found = solver.exact(second, 0.8 * largest_ms)
    assert found == Solver(run).exact(second, 0.8 * largest_ms)  # after a stop between the two
    solver.exact(second, 0.75 * largest_ms)
    assert given[0] == given[1] == given[2] == {}
    assert given[3]  # another question about one budget knows what was scored for it


def test_limits_out_of_reach_end_with_the_smallest_value(run: Run) -> None:
    fewest = cost(run.space.smallest).parameters
    with pytest.raises(LimitsUnreachable, match=rf"parameters at most 1 \(smallest: {fewest}\)"):
        solved(limited(run, parameters=1))


METHOD = '''
from search.front import Front, Scored
from search.methods import register_method


@register_method("test_widest")
def widest(space, *, table, budget_ms, score, generator, **_):
    """Of eight random architectures within the budget, the one whose last stage is widest."""
    nets = [net for _ in range(200) if table.latency_ms(net := space.random(generator)) <= budget_ms][:8]
    widest = max(nets, key=lambda net: (net.stages[-1].width_channels, net.digest))
    return Front((Scored(widest, score(widest), table.latency_ms(widest)),))
'''


def test_a_method_of_a_users_own_is_one_of_the_run_and_asks_for_no_new_supernet(
    copied: Path, tmp_path: Path, slimformer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("search.methods._OWN", {})
    plugin = tmp_path / "test_own_method.py"
    plugin.write_text(METHOD)
    words = ("run", copied, "--until", "search", "--set", "search.methods=[test_widest, uniform]")
    assert "unknown search method 'test_widest' (known: " in slimformer(*words).mistake
    before = RunFolder(copied).manifest.stages
    plan = slimformer(*words, "--plan", "--redo", "--plugin", plugin)
    assert " images, and those of test_widest" in " ".join(plan.out.split()), plan.err
    monkeypatch.setattr("search.methods._OWN", {})
    outcome = slimformer(*words, "--redo", "--plugin", plugin)
    assert outcome.code == 0, outcome.err
    found = sorted(path.name for path in (copied / "architectures" / "test_widest").glob("*.yaml"))
    assert found == sorted(path.name for path in (copied / "architectures" / "uniform").glob("*.yaml"))
    assert found
    after = RunFolder(copied).manifest.stages
    assert [after[name] == before[name] for name in ("supernet", "table", "search")] == [True, True, False]
    plugin.write_text(METHOD.replace("eight", "its eight"))
    monkeypatch.setattr("search.methods._OWN", {})
    assert slimformer(*words, "--redo", "--plugin", plugin).code == 0
    edited = RunFolder(copied).manifest.stages
    assert [edited[name] == after[name] for name in ("supernet", "table", "search")] == [True, True, False]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return space.smallest.widths", r"test_wrong_method.py, line 6: AttributeError: 'Architecture' object has no"),
        ("return None", r"search method test_wrong: answers with NoneType, not with a Trajectory or a Front"),
        ("raise ValueError('two\\nlines')", r"test_wrong_method.py, line 6: ValueError: two lines$"),
    ],
)
def test_a_mistake_in_a_method_of_a_users_own_is_one_line(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, message: str
) -> None:
    monkeypatch.setattr("search.methods._OWN", {})
    plugin = tmp_path / "test_wrong_method.py"
    plugin.write_text(
        "from search.methods import register_method\n\n\n@register_method('test_wrong')\n"
        f"def wrong(space, **_):\n    {body}\n"
    )
    import_plugins([plugin])
    solve = Solver(run).method(Job(method="test_wrong", budget_ms=1.0))
    with pytest.raises(UserError, match=message) as raised:
        solve(run.table.latency_ms(run.space.largest))
    assert "\n" not in str(raised.value)


def test_a_file_with_methods_alone_changes_no_model_and_one_with_a_runtime_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("search.methods._OWN", {})
    monkeypatch.setattr("search.runtimes._FACTORIES", dict(runtimes._FACTORIES))
    alone, both = tmp_path / "test_methods_alone.py", tmp_path / "test_methods_and_more.py"
    alone.write_text(METHOD)
    more = "from search.runtimes import register_runtime\nregister_runtime('test_other')(lambda threads: None)\n"
    both.write_text(METHOD.replace("test_widest", "test_other") + more)
    import_plugins([alone, both])
    assert without_methods([alone, both]) == (both,)
    assert [file_of_method(name) for name in ("test_widest", "test_other", "exact")] == [alone, both, None]
    with pytest.raises(UserError, match="another is called 'test_methods_alone' too; give the file another name"):
        import_plugins([alone, tmp_path / "other" / alone.name])
