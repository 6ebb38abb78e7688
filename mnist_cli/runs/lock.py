"""Whether a process trains a run, which any other can ask (`runs.run.hold` is the answer's cause).

The operating system releases the lock of a process however that ends.
"""

import sys
from pathlib import Path

from filelock import FileLock


def of(folder: Path) -> FileLock:
    """The lock of a run's or sweep's folder; who trains there holds it."""
    return FileLock(folder / ".lock")


def is_held(folder: Path) -> bool:
    """Whether a process trains in this folder.

    Any number may ask at once, also without the right to write there: where the system has shared
    locks, asking is trying for one of those.
    """
    path = folder / ".lock"
    try:
        if sys.platform == "win32":
            if path.is_file():
                of(folder).acquire(timeout=0).lock.release()
        else:
            import fcntl  # noqa: PLC0415 - there is none on Windows

            with path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:  # also that of a time-out
        return True
    return False
