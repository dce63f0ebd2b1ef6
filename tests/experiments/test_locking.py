"""One process at a time writes into a folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.locking import held
from supernet.schema import UserError

WORDS = {"as_what": "a shelf", "busy": "another hand is on this shelf"}


def test_a_folder_is_made_and_held_by_one_at_a_time(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "shelf"
    busy = pytest.raises(UserError, match=f"{folder}: another hand is on this shelf")
    with held(folder, **WORDS), busy, held(folder, **WORDS):
        pass
    with held(folder, **WORDS):
        pass


def test_a_folder_is_let_go_when_the_work_fails(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), held(tmp_path, **WORDS):
        raise KeyboardInterrupt
    with held(tmp_path, **WORDS):
        pass


def test_a_file_is_no_folder_to_hold(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file" / "shelf"):
        with pytest.raises(UserError, match=f"{path}: cannot be a shelf"), held(path, **WORDS):
            pass
