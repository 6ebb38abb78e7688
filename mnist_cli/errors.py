"""Every error that a user can do something about, and the exit code of each.

    MnistError            1
        RunError          1  a run failed, or every run diverged
        UsageError        2  the command line or the config
        SweepError        3  a sweep with failed trials
        DataError         4  a data set
        CheckpointError   5  a checkpoint, or weights trained elsewhere

A user sees one line `error: ...` and, where there is something to do about it, one line `hint:
...`.
"""

import errno
import re
from typing import ClassVar

# Not failures: Ctrl-C, SIGTERM, and a consumer that closes a generator.
INTERRUPTIONS = (KeyboardInterrupt, SystemExit, GeneratorExit)

# C0 and C1 controls, marks that turn the direction of text (Unicode
# TR 36, "bidirectional text spoofing"), line separators, and halves of characters.
_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


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
    """A data set is missing or damaged."""

    exit_code = 4


class CheckpointError(MnistError):
    """A checkpoint is missing, damaged or unsafe, or is not of this model."""

    exit_code = 5


def printable(text: str, *, keep: str = "\n\t") -> str:
    """Text that a terminal shows and does not obey; its escapes are also those of JSON and YAML.

    Args:
        text: any text.
        keep: control characters that stay as they are.
    """
    return _UNSAFE.sub(lambda c: c[0] if c[0] in keep else f"\\u{ord(c[0]):04x}", text)


def in_words(error: BaseException) -> str:
    """One line that says what an exception of Python's or torch's is about; of a file, which."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    if _is_out_of_memory(error):
        return "there is not enough memory for it"
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def remedy(error: BaseException) -> str | None:
    """A hint what to do about an error of the operating system, if one is known."""
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
    # On a CPU torch has no type for it, and other messages for sizes beyond all memory.
    messages = (
        *("can't allocate memory", "not enough memory", "out of memory"),
        *("calculation overflowed", "Overflow when unpacking", "multiplication overflow"),
    )
    if isinstance(error, RuntimeError | TypeError):
        return any(message in str(error) for message in messages)
    return isinstance(error, MemoryError)
