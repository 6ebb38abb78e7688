"""Durable writes: a file is as it was or as it was to become, and nothing else is left."""

import errno
import os
from pathlib import Path

import pytest

from mnist_cli.data import durable


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_what_fails_leaves_the_file_as_it_was(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    durable.replace(path, b"old")

    def fails(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, fails)
    with pytest.raises(OSError, match="No space") as caught:
        durable.replace(path, b"new")
    assert caught.value.filename == str(path)
    assert [*tmp_path.iterdir()] == [path]
    assert path.read_bytes() == b"old"


def test_all_of_it_is_written_and_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, flushed = os.write, list[int]()
    monkeypatch.setattr(os, "write", lambda handle, data: write(handle, data[:1]))
    monkeypatch.setattr(os, "fsync", flushed.append)
    durable.make_folder(tmp_path / "folder")
    path = tmp_path / "folder" / "file"
    durable.replace(path, b"one")
    durable.append(path, b" two")
    assert path.read_bytes() == b"one two"
    assert len(flushed) == 4  # the folder's name, the file, its name, the file


def test_what_killed_processes_left_is_removed(tmp_path: Path) -> None:
    durable.make_folder(tmp_path / "deep")
    for name in (".file.0a1b2c3d.tmp", "deep/.file.0a1b2c3d.tmp", "deep/file", ".other.tmp"):
        (tmp_path / name).touch()
    durable.clear(tmp_path)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    assert left == {"deep", "deep/file", ".other.tmp"}
