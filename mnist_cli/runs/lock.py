"""Who trains a run: one process at a time, and any other can see whether there is one.

The operating system releases the lock of a process however that ends.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


class HeldError(Exception):
    """Another process holds the lock."""


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Keeps every other process from training in this folder.

    Raises:
        HeldError: another process does.
        OSError: nothing can be written there.
    """
    lock = FileLock(folder / ".lock")
    try:
        # Not at once: `is_held` shares the lock for a moment.
        lock.acquire(timeout=0.5)
    except Timeout as error:
        raise HeldError(str(folder)) from error
    try:
        yield
    finally:
        lock.release()


def is_held(folder: Path) -> bool:
    """Whether a process trains in this folder.

    Any number may ask at once, also without the right to write there: where the system has shared
    locks, asking is trying for one of those.
    """
    path = folder / ".lock"
    try:
        import fcntl  # noqa: PLC0415 - there is none on Windows
    except ImportError:
        return _is_held_exclusively(path)
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def _is_held_exclusively(path: Path) -> bool:
    if not path.is_file():
        return False
    try:
        with FileLock(path, timeout=0):
            return False
    except (Timeout, OSError):
        return True
