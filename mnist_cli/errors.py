"""Every way `mnist` can fail that is somebody's to mend, and the exit code of each.

A user sees one line `error: ...` and, where there is something to do about it, one line `hint:
...`.
"""

import errno
from typing import ClassVar

# Somebody wants it to end: Ctrl-C, SIGTERM, or a consumer that stops asking for more.
INTERRUPTIONS = (KeyboardInterrupt, SystemExit, GeneratorExit)


class MnistError(Exception):
    """A failure with a sentence for the user; never shown as a traceback.

    Args:
        message: what is wrong and where, in one sentence.
        hint: what to do about it, in one sentence.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class RunError(MnistError):
    """A run failed: it crashed, or every run of it diverged."""

    exit_code = 1


class UsageError(MnistError):
    """The command line or the config asks for something that cannot be done."""

    exit_code = 2


class SweepError(MnistError):
    """A sweep ended with failed (not merely diverged) trials."""

    exit_code = 3


class DataError(MnistError):
    """A data set is missing, or is not what it should be."""

    exit_code = 4


class CheckpointError(MnistError):
    """A checkpoint cannot be trusted or does not fit."""

    exit_code = 5


def in_words(error: BaseException) -> str:
    """What somebody else's exception says, in one line: of the system's, which file and why."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    if _is_out_of_memory(error):
        return "there is not enough memory for it"
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def remedy(error: BaseException) -> str | None:
    """What to do about an error of the system, if that is known."""
    if _is_out_of_memory(error):
        return "take a smaller batch (--batch-size) or a smaller model"
    full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    closed = (errno.EROFS, errno.EACCES, errno.EPERM)
    number = error.errno if isinstance(error, OSError) else None
    if number in full:
        return "make room there"
    if number in closed:
        return "make it possible to write there, or choose another place"
    return "see whether that disk is failing" if number == errno.EIO else None


def _is_out_of_memory(error: BaseException) -> bool:
    # torch has no type for it on a CPU, and for sizes beyond all memory words of their own.
    words = (
        *("can't allocate memory", "not enough memory", "out of memory"),
        *("calculation overflowed", "Overflow when unpacking", "multiplication overflow"),
    )
    told = isinstance(error, RuntimeError | TypeError) and any(w in str(error) for w in words)
    return told or isinstance(error, MemoryError)
