"""Models as files and as folders: written whole, read back, and told from a changed one."""

from __future__ import annotations

from pathlib import Path

import pytest

from search import bundle_script
from search.model_files import ModelFile, content_of, file_suffix, files_of, sha256_of, size_bytes, write_model
from supernet.schema import UserError

FOLDER: ModelFile = {"Manifest.json": b"{}", "Data/weights.bin": b"12345"}


@pytest.mark.parametrize("content", [b"a model", FOLDER])
def test_a_model_comes_back_as_it_was_written(tmp_path: Path, content: ModelFile) -> None:
    path = tmp_path / "nets" / "model"
    write_model(path, b"another" if isinstance(content, bytes) else {"left.bin": b"of an earlier model"})
    write_model(path, content)
    assert content_of(path) == content
    assert sum(file.stat().st_size for file in files_of(path)) == size_bytes(content) == 7
    assert [file.name for file in path.parent.iterdir()] == ["model"]


def test_a_folder_takes_the_place_of_a_file(tmp_path: Path) -> None:
    write_model(tmp_path / "model", b"a model")
    write_model(tmp_path / "model", FOLDER)
    assert content_of(tmp_path / "model") == FOLDER


@pytest.mark.parametrize("content", [b"a model", FOLDER])
def test_the_devices_script_sees_the_same_sha256(tmp_path: Path, content: ModelFile) -> None:
    write_model(tmp_path / "model", content)
    assert bundle_script.sha256_of(tmp_path / "model") == sha256_of(content)


@pytest.mark.parametrize(
    "changed",
    [
        {"Manifest.json": b"{}", "Data/weights.bin": b"12346"},
        {"Manifest.json": b"{}", "Data/weights": b"12345"},
        {"Manifest.json": b"{}"},
        {**FOLDER, "more": b""},
    ],
)
def test_a_changed_folder_has_another_sha256(changed: ModelFile) -> None:
    assert sha256_of(changed) != sha256_of(FOLDER)


def test_a_folder_that_cannot_be_written_is_refused_and_the_old_one_kept(tmp_path: Path) -> None:
    write_model(tmp_path / "model", FOLDER)
    with pytest.raises(UserError, match="cannot be written"):
        write_model(tmp_path / "model", {"a": b"a file", "a/b": b"below a file"})
    assert content_of(tmp_path / "model") == FOLDER


def test_runtimes_without_a_format_of_their_own_run_onnx() -> None:
    runtimes = ("onnxruntime", "openvino", "mnn", "my_own", "executorch", "coreml")
    assert [file_suffix(runtime) for runtime in runtimes] == [".onnx"] * 4 + [".pte", ".mlpackage"]
