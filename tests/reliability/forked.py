"""Commands in processes of their own that cost no import: forked from the one that tests."""

import contextlib
import faulthandler
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from mnist_cli.cli import run_command
from mnist_cli.report import plots
from tests.conftest import Ended

PATIENCE = 60.0  # seconds after which a test gives up: far more than anything here takes


_started: list["Command"] = []


class Command:
    """A command line that runs beside the test, the leader of a process group.

    Args:
        folder: where its output goes.
        argv: the command line.
        before: is called in the new process first, to make it meet something.
    """

    def __init__(
        self, folder: Path, *argv: str, before: Callable[[], object] = lambda: None
    ) -> None:
        number = len(list(folder.glob("*.out")))
        self._out, self._err = folder / f"{number}.out", folder / f"{number}.err"
        self._out.touch()
        self._code: int | None = None
        with warnings.catch_warnings():
            # From Python 3.12 on, forking beside threads warns: torch's are idle.
            warnings.simplefilter("ignore", DeprecationWarning)
            self.pid = os.fork()
        if not self.pid:
            self._become(argv, before)
        with contextlib.suppress(OSError):  # whoever comes first, so that it is one from here on
            os.setpgid(self.pid, self.pid)
        _started.append(self)

    def _become(self, argv: tuple[str, ...], before: Callable[[], object]) -> None:
        code = 99
        try:
            with contextlib.suppress(OSError):
                os.setpgid(0, 0)
            sys.stdin = open(os.devnull)  # noqa: PTH123, SIM115
            sys.stdout, sys.stderr = self._out.open("w"), self._err.open("w")
            os.dup2(sys.stdout.fileno(), 1)
            os.dup2(sys.stderr.fileno(), 2)
            faulthandler.disable()
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            torch.set_num_threads(1)  # those of the parent are not here
            plots.draw = lambda folder: []  # takes longer than everything else together
            before()
            code = run_command(argv)
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)

    @property
    def err(self) -> str:
        """What it has said so far."""
        return self._err.read_text() if self._err.exists() else ""

    def running(self) -> bool:
        """Whether it has not ended yet."""
        if self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._code = os.waitstatus_to_exitcode(status) if pid else None
        return self._code is None

    def wait(self, seconds: float = PATIENCE) -> Ended:
        """How it ended; a command that does not in time is killed, and the test fails."""
        try:
            until(lambda: not self.running(), seconds, f"it goes on: {self.err}")
        except AssertionError:
            os.killpg(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            raise
        assert self._code is not None
        err = self.err
        assert "Traceback" not in err, err
        return Ended(self._code, self._out.read_text(), err)

    def kill(self) -> None:
        """Ends the process as nothing in it can notice; what it started is left to itself."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        self._code = -signal.SIGKILL


def end_all() -> None:
    """Ends whatever a test has left running, so that none runs on beside the next."""
    while _started:
        command = _started.pop()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(command.pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(command.pid, 0)


def until(condition: Callable[[], Any], seconds: float = PATIENCE, why: str = "in vain") -> None:
    """Waits for something to become true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, why
        time.sleep(0.01)


def alive(pid: int) -> bool:
    """Whether there is a process of this number that has not ended."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def children(pid: int) -> Iterator[int]:
    """The processes that a process has started."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                yield int(stat.parent.name)


def calls(
    owner: Any,
    name: str,
    at: int,
    then: Callable[[], object],
    counted: Callable[..., bool] = lambda *_, **__: True,
) -> None:
    """Has the call number `at` (from 1) of a function do something first.

    Args:
        owner: what has the function.
        name: the function's.
        at: which call.
        then: what it does.
        counted: says of its arguments whether a call counts.
    """
    whole, count = getattr(owner, name), 0

    def spy(*args: Any, **options: Any) -> Any:
        nonlocal count
        if counted(*args, **options):
            count += 1
            if count == at:
                then()
        return whole(*args, **options)

    setattr(owner, name, spy)
