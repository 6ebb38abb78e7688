"""Durable writes: after a crash at any moment a file is as it was or as it shall be."""

import os
import tempfile
from pathlib import Path


def replace(path: Path, content: bytes) -> None:
    """Puts a whole file in place of another, or of none.

    The temporary file lies in the same directory (a rename across filesystems is a copy, and can be
    seen half-done), and both it and the directory are flushed to the disk before this returns.

    Raises:
        OSError: nothing has changed; no temporary file is left.
    """
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            # mkstemp makes private files; what is published follows the user's umask, as open()
            # does.
            Path(temporary).chmod(0o666 & ~_umask())
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    _sync_directory(path.parent)


def append(path: Path, content: bytes) -> None:
    """Adds to the end of a file, flushed to the disk when this returns.

    Raises:
        OSError: the file may end in a part of `content`; readers skip a last line without its end.
    """
    with path.open("ab") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _umask() -> int:
    """The umask, which the system only tells by setting it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def _sync_directory(path: Path) -> None:
    """Flushes the names in a directory; Windows has no such call and does not need it."""
    if os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
