"""A folder that one process at a time may write into."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from supernet.schema import UserError

LOCK = ".lock"


@contextmanager
def held(folder: Path, *, as_what: str, busy: str) -> Iterator[None]:
    """Hold a folder, which is made if it is not there, until the block ends, however it ends.

    Raises `UserError` if it cannot be made or written into (then it cannot be `as_what`), and with the words `busy` if
    another process holds it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK).open("w")
    except OSError as error:
        raise UserError(f"{folder}: cannot be {as_what} ({error.strerror})") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{folder}: {busy}") from None
        yield
