"""Durable writes: after a crash at any moment a file is as it was or as it was to become.

All files that must outlive a crash are written here. Every error names the file.
"""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_FLAGS = os.O_WRONLY | os.O_CREAT | getattr(os, "O_BINARY", 0)


def replace(path: Path, content: bytes) -> None:
    """Writes a file in full, replacing the one of that name if there is one.

    The temporary file lies in the same directory (a rename across filesystems is a copy, and can be
    seen half-done), and both it and the directory are flushed to the disk before this returns.

    Raises:
        OSError: the file is as it was (or as it was to become, if only its name could not be
            flushed); no temporary file is left.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    with _naming(path):
        try:
            _write(os.open(temporary, _FLAGS | os.O_EXCL, 0o666), content)
            os.replace(temporary, path)  # noqa: PTH105 - tests inject faults into `os` here
        finally:
            temporary.unlink(missing_ok=True)
        _sync_directory(path.parent)


def append(path: Path, content: bytes) -> None:
    """Adds to the end of a file, flushed to the disk when this returns.

    Raises:
        OSError: the file may end in a part of `content`; readers skip a last line without its end.
    """
    with _naming(path):
        _write(os.open(path, _FLAGS | os.O_APPEND, 0o666), content)


def make_folder(path: Path) -> None:
    """Makes a folder, whose name is on the disk when this returns.

    Raises:
        OSError: it is there already, or cannot be made.
    """
    with _naming(path):
        os.mkdir(path)  # noqa: PTH102
        _sync_directory(path.parent)


def clear(folder: Path) -> None:
    """Removes the temporary files, at any depth, that killed processes left behind.

    The caller holds the lock that keeps every other process from writing there.
    """
    for path in folder.rglob(".*.????????.tmp"):
        path.unlink(missing_ok=True)


def _write(handle: int, content: bytes) -> None:
    """Writes and flushes, and closes the handle in any case."""
    try:
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(handle, rest) :]
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync_directory(path: Path) -> None:
    """Flushes the names in a directory; Windows has no such call and does not need it."""
    if os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Gives errors of the system, which knows handles only, the name of the file."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
