"""The database that holds evolution's trials: one file, or a server that workers on several machines share."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from optuna.exceptions import ExperimentalWarning
from optuna.storages import BaseStorage, RDBStorage
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError, ProgrammingError, SQLAlchemyError

from supernet import UserError

OPENINGS = 5  # tries, where several processes open a new database at once
HEARTBEAT_SECONDS = 30  # a worker that was silent for twice as long has died
SERVER = "postgresql://"
DRIVEN = "postgresql+psycopg://"  # SQLAlchemy 2.0 takes another driver unless it is named


def open_storage(url: str) -> RDBStorage:
    """The database of a URL. Raises `UserError` if it cannot be opened, without the password that the URL may hold."""
    if url.startswith(SERVER):
        url = DRIVEN + url.removeprefix(SERVER)
    for attempt in range(OPENINGS):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)  # of the heartbeat
                if url.startswith(DRIVEN) and url.partition("?")[0].count("@") > 1:
                    raise ValueError  # what follows the first would be looked up, and shown, as a host
                # A net is scored for so long that a server, or a firewall before it, may have closed the connection.
                return RDBStorage(url, {"pool_pre_ping": True}, heartbeat_interval=HEARTBEAT_SECONDS)
        except (SQLAlchemyError, ImportError, ValueError) as error:
            # Another process may be making the tables at this moment.
            again = isinstance(error, IntegrityError | OperationalError | ProgrammingError)
            if attempt == OPENINGS - 1 or not again:
                raise UserError(
                    f"search.evolution.storage: {_shown(url)} cannot be opened ({_why(error, url)})"
                ) from None
            time.sleep(0.2 * (attempt + 1))
    raise AssertionError


@contextmanager
def opened(storage: str | BaseStorage | None) -> Iterator[BaseStorage | None]:
    """A storage to work with; the database of a URL is left afterwards.

    Raises `UserError` for one that fails at work, whatever Optuna made of its error.
    """
    if not isinstance(storage, str):
        yield storage
        return
    database = open_storage(storage)
    try:
        yield database
    except Exception as error:
        cause = _of_database(error)
        if cause is None:
            raise
        raise UserError(
            f"search.evolution.storage: {_shown(storage)} failed ({_why(cause, storage)}); finished trials are kept "
            "in it, and the same command goes on"
        ) from None
    finally:
        database.remove_session()
        database.engine.dispose()


def _of_database(error: BaseException | None) -> SQLAlchemyError | None:
    """The database's error behind another one: Optuna 5.0 ends in an UnboundLocalError where it cannot tell a trial."""
    while error is not None and not isinstance(error, SQLAlchemyError):
        error = error.__cause__ or error.__context__
    return error


def _shown(url: str) -> str:
    """A database's URL without what may be secret."""
    return url.rpartition("@")[2].partition("?")[0]


def _why(error: Exception, url: str) -> str:
    """What went wrong, in one line."""
    match error:
        case ImportError() if url.startswith(DRIVEN):
            return "psycopg is missing; in a checkout of slimformer: pip install '.[postgresql]'"
        case ImportError():
            reason = str(error.__cause__ or error)
        case DBAPIError():
            reason = str(error.orig)
        case ValueError():  # it quotes what may be a part of the password
            return "not the URL of a database; in a password, @ is written %40"
        case _:
            reason = str(error)
    return " ".join(reason.split())[:200]
