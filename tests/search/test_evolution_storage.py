"""Evolution's storage, a file or a real PostgreSQL server: shared by workers, gone on with, and told when it fails."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from search import evolution, evolution_storage
from search.evolution import GIVEN, evolve
from search.evolution_storage import opened
from search.front import Scored
from supernet.architecture import Architecture
from supernet.schema import UserError
from supernet.space import SearchSpace

POPULATION = 8


def score(architecture: Architecture) -> float:
    return sum(0.02 * number * stage.width_channels for number, stage in enumerate(architecture.stages, start=1))


class PostgreSQL:
    """A server of its own in a temporary folder, reached through a socket there; root runs it as another user."""

    def __init__(self, binaries: Path, folder: Path, user: str | None) -> None:
        self.binaries, self.folder, self.user = binaries, folder, user
        self.databases = 0
        self._run("initdb", "--pgdata", folder / "data", "--username", "me", "--auth", "trust", "--no-sync")
        self.start()

    def _run(self, name: str, *words: object) -> None:
        rights = {} if self.user is None else {"user": self.user, "group": self.user, "extra_groups": ()}
        command = [str(self.binaries / name), *map(str, words)]
        log = self.folder / "log"  # a pipe would stay open for as long as the server lives
        with log.open("ab") as out:
            done = subprocess.run(command, cwd=self.folder, stdout=out, stderr=out, timeout=60, **rights)
        assert done.returncode == 0, log.read_text()

    def start(self) -> None:
        options = f"-c unix_socket_directories={self.folder} -c listen_addresses= -c fsync=off"
        self._run("pg_ctl", "--pgdata", self.folder / "data", "--wait", "--options", options, "start")

    def stop(self) -> None:
        self._run("pg_ctl", "--pgdata", self.folder / "data", "--wait", "--mode", "immediate", "stop")

    def url(self, database: str) -> str:
        return f"postgresql+psycopg://me:secret@/{database}?host={self.folder}"

    def new(self) -> str:
        """The URL of a new database."""
        self.databases += 1
        self._run("createdb", "--host", self.folder, "--username", "me", f"studies{self.databases}")
        return self.url(f"studies{self.databases}")

    def cut_connections(self) -> None:
        """End every session, as a server that is started again does."""
        ended = "select pg_terminate_backend(pid) from pg_stat_activity where backend_type = 'client backend'"
        command = ["--host", self.folder, "--username", "me", "--dbname", "postgres", "--command"]
        self._run("psql", *command, f"{ended} and pid <> pg_backend_pid()")


def server_binaries() -> Path | None:
    """Where initdb and pg_ctl are; Debian has them outside the PATH."""
    on_path = shutil.which("pg_ctl")
    folders = [] if on_path is None else [Path(on_path).resolve().parent]
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: -float(path.parent.name))
    return next((path for path in folders if (path / "initdb").exists() and (path / "createdb").exists()), None)


def other_user() -> str | None:
    """Whom root runs the server as: it refuses to run as root."""
    import pwd

    names = {entry.pw_name for entry in pwd.getpwall()}
    return next((name for name in ("postgres", "nobody") if name in names), None)


@pytest.fixture(scope="module")
def server() -> Iterator[PostgreSQL]:
    pytest.importorskip("psycopg", reason="the driver is not installed: pip install '.[postgresql]'")
    if sys.platform == "win32" or (binaries := server_binaries()) is None:
        pytest.skip("no PostgreSQL server is installed (on Debian: apt install postgresql)")
    user = other_user() if os.getuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="postgresql-"))  # pytest's own are closed to other users
    try:
        if user is not None:
            shutil.chown(folder, user)
        running = PostgreSQL(binaries, folder, user)
        yield running
        running.stop()
    finally:
        shutil.rmtree(folder)


@pytest.fixture(params=["sqlite", "postgresql"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a new database, of either kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'study.db'}"
    url: str = request.getfixturevalue("server").new()
    return url


@pytest.fixture
def search(space: SearchSpace, table: Any) -> Callable[..., list[Scored]]:
    """Evolves with a few trials; options change it."""

    def evolved(**options: Any) -> list[Scored]:
        settings = {"table": table, "score": score, "most_ms": 4.5, "trials": 12, "population": POPULATION, "seed": 0}
        return list(evolve(space, **settings | options).scored)

    return evolved


def trials_of(storage: str) -> list[FrozenTrial]:
    with opened(storage) as database:
        return optuna.load_study(study_name="evolution", storage=database).get_trials()


class _LoggedScore:
    """A score that writes down which process asked, and takes its time, from the second call on another."""

    def __init__(self, log: Path, seconds: float, then: float | None = None) -> None:
        self.log, self.seconds = log, seconds
        self.then = seconds if then is None else then

    def __call__(self, architecture: Architecture) -> float:
        with self.log.open("a") as file:
            file.write(f"{os.getpid()} {architecture.digest}\n")
        time.sleep(self.seconds)
        self.seconds = self.then
        return score(architecture)


def _work(space: SearchSpace, table: Any, storage: str, log: Path, everyone: Any, then: float) -> None:
    evolution_storage.HEARTBEAT_SECONDS = 1
    everyone.wait(60)  # all open a new database at once
    evolve(
        space,
        table=table,
        score=_LoggedScore(log, 0.3, then),
        most_ms=4.5,
        trials=30,
        population=POPULATION,
        seed=0,
        storage=storage,
        alone=False,
    )


def test_workers_on_one_storage_share_the_trials_and_survive_one_that_is_killed(
    space: SearchSpace, table: Any, search: Callable[..., list[Scored]], tmp_path: Path, storage: str
) -> None:
    log, context = tmp_path / "log", multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # so that torch and optuna are imported once for all workers
    arguments = (space, table, storage, log, context.Barrier(3))
    # The first never ends its second score, so that it is killed while a trial is under way.
    workers = [context.Process(target=_work, args=(*arguments, then), daemon=True) for then in (600.0, 0.3, 0.3)]
    for worker in workers:
        worker.start()

    def evaluated() -> list[str]:
        return [line.split()[0] for line in log.read_text().splitlines()] if log.exists() else []

    deadline = time.monotonic() + 120
    while len(set(evaluated())) < 3 or evaluated().count(str(workers[0].pid)) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert workers[0].pid is not None
    os.kill(workers[0].pid, signal.SIGKILL)
    for worker in workers[1:]:
        worker.join(120)
        assert worker.exitcode == 0
    trials = trials_of(storage)
    finished = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    assert [trial.state for trial in trials if trial not in finished] == [TrialState.FAIL]  # the killed worker's
    assert len(finished) in (30, 31)  # one may be under way in the other worker when the last is finished
    assert len(trials) - len(evaluated()) in (0, 1)  # 1: it was killed before it wrote a line
    given = [trial.user_attrs[GIVEN] for trial in finished if trial.user_attrs[GIVEN] is not None]
    assert sorted(given) == list(range(POPULATION))  # each of the first ones once, the killed worker's too

    again: list[Architecture] = []

    def counted(architecture: Architecture) -> float:
        again.append(architecture)
        return score(architecture)

    found = search(score=counted, storage=storage, trials=34)
    assert len(found) == 34
    assert len(again) == 34 - len(finished)
    assert [one.percent for one in found[: len(finished)]] == [trial.values[0] for trial in finished]


def test_a_server_gives_the_trials_of_a_file_though_it_ends_every_connection(
    server: PostgreSQL, search: Callable[..., list[Scored]]
) -> None:
    def cutting(architecture: Architecture) -> float:
        server.cut_connections()
        return score(architecture)

    assert search(score=cutting, storage=server.new()) == search()


def test_a_server_that_fails_at_work_is_one_line_and_the_search_goes_on_from_what_it_holds(
    server: PostgreSQL, search: Callable[..., list[Scored]]
) -> None:
    storage, scored = server.new(), 0

    def failing(architecture: Architecture) -> float:
        nonlocal scored
        scored += 1
        if scored == 5:
            server.stop()
        return score(architecture)

    try:
        with pytest.raises(
            UserError, match=r"^search.evolution.storage: .* failed \(.*the same command goes on$"
        ) as told:
            search(score=failing, storage=storage)
    finally:
        server.start()
    assert "\n" not in str(told.value)
    assert "secret" not in str(told.value)
    assert search(score=failing, storage=storage) == search()
    assert scored == 12 + 1  # the fifth was lost


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("sqlite:////nowhere/study.db", "unable to open database file"),
        ("postgresql://me:secret@localhost:1/studies", "Connection refused"),
        ("nosuchdatabase://me:secret@somewhere/studies", "nosuchdatabase"),
        ("postgresql://me:secret@secret@localhost/studies", "written %40"),
        ("postgresql:me:secret@localhost", "URL"),
    ],
)
def test_a_storage_that_cannot_be_opened_is_one_line_without_its_password(
    search: Callable[..., list[Scored]], url: str, reason: str
) -> None:
    if url.startswith("postgresql://"):
        pytest.importorskip("psycopg", reason="the driver is not installed: pip install '.[postgresql]'")
    with pytest.raises(UserError, match=r"^search.evolution.storage: .* cannot be opened") as refused:
        search(storage=url)
    assert reason in str(refused.value)
    assert "\n" not in str(refused.value)
    assert "secret" not in str(refused.value)


def test_a_database_that_the_server_does_not_have_is_named(
    server: PostgreSQL, search: Callable[..., list[Scored]]
) -> None:
    with pytest.raises(UserError, match=r'/other cannot be opened \(.*database "other" does not exist\)') as refused:
        search(storage=server.url("other"))
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("url", ["postgresql://me@localhost/studies", "postgresql+psycopg://me@localhost/studies"])
def test_a_missing_driver_is_named_with_the_extra_that_has_it(
    search: Callable[..., list[Scored]], monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(
        UserError, match=r"psycopg is missing; in a checkout of slimformer: pip install '\.\[postgresql\]'"
    ):
        search(storage=url)


def test_two_workers_that_begin_at_once_take_different_ones_of_the_first_generation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first: list[dict[str, Any]] = [{"width": index} for index in range(4)]
    storage = optuna.storages.InMemoryStorage()

    def worker() -> optuna.Study:
        sampler = evolution._Numbered("nsga2", first, seed=0, alone=False)
        return optuna.create_study(study_name="shared", storage=storage, sampler=sampler, load_if_exists=True)

    def width(trial: optuna.Trial) -> int:
        return trial.suggest_int("width", 0, 3)

    one, other, third = worker().ask(), worker().ask(), worker().ask()
    assert (width(third), width(one), width(other)) == (2, 0, 1)  # and nobody has said yet which one it took
    monkeypatch.setattr(evolution, "HEARTBEAT_SECONDS", 0)
    assert width(worker().ask()) == 0  # those that were silent for too long have died
