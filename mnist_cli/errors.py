"""Every way `mnist` can fail that is somebody's to mend, and the exit code of each.

A user sees one line `error: ...` and, where there is something to do about it, one line `hint:
...`.
"""

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
