"""The one process harness: commands in processes of their own, what happens to them, what is left.

A command is forked from the process that tests: it costs no import, and hundreds of them can be
killed. What it meets (a disk that fails, a limit, a call that kills it) is a function that it does
first.
"""

import contextlib
import errno
import faulthandler
import functools
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.sharedctypes import RawValue
from pathlib import Path
from typing import Any

import torch

from mnist_cli.cli import run_command
from mnist_cli.data import durable
from mnist_cli.engine import loop
from mnist_cli.errors import CheckpointError
from mnist_cli.report import plots
from mnist_cli.runs import checkpoint
from mnist_cli.runs.store import RunDirectory, all_runs
from tests.conftest import Ended

PATIENCE = 60.0  # seconds after which a test gives up: far more than anything here takes

# A life of a tenth of a second: everything a run has, on next to no data. By its loss nearly every
# epoch is the best so far, so best.pt is written each time.
DATA = "data={name: synthetic, size: 140, batch_size: 32}"
MODEL = ("model={name: mlp, width: 8, dropout: 0.2}", "train.select=loss")
TRAIN = ("train", DATA, *MODEL, "--epochs", "4", "--lr", "1e-2", "train.eval_train=true")
GRID = ("--lrs", "1e-2,1e-3", "--seeds", "2", "--workers", "2")
SWEEP = ("sweep", DATA, *MODEL, "--epochs", "3", *GRID)

# By operation, the errors that a disk gives there.
FAULTS = {
    "open": errno.ENOSPC,
    "write": errno.ENOSPC,
    "fsync": errno.EIO,
    "replace": errno.EROFS,
    "mkdir": errno.ENOSPC,
}

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
        self._began = time.monotonic()
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

    def kill_at(self, seconds: float, worker: bool = False) -> bool:
        """Kills it, or one of its workers, so long after its start, unless it has ended by then.

        Returns:
            Whether there was something to kill.
        """
        while self.running():
            if time.monotonic() - self._began >= seconds:
                for victim in list(children(self.pid))[:1] if worker else [self.pid]:
                    os.kill(victim, signal.SIGKILL)
                    return True
            time.sleep(0.0005)
        return False


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
        time.sleep(0.005)


def alive(pid: int) -> bool:
    """Whether there is a process of this number that has not ended."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def children(pid: int) -> Iterator[int]:
    """The processes that a process has forked."""
    with contextlib.suppress(OSError):
        yield from map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())


# ---------------------------------------------------------------------------- what happens to it


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


def at_step(steps: int, stack: int, then: Callable[[], object]) -> None:
    """Has a process do something when a stack, its first or second and so on, has made so many."""
    made = ("step", steps)
    calls(loop.Training, "__setattr__", stack, then, counted=lambda _, *to: to == made)


def alone(mark: Path) -> bool:
    """Whether this process is the first of several here."""
    with contextlib.suppress(FileExistsError):
        mark.mkdir()
        return True
    return False


def dies() -> None:
    """Ends this process as nothing in it can notice."""
    os.kill(os.getpid(), signal.SIGKILL)


def file_limit(size: int) -> Callable[[], None]:
    """No file may become longer than so many bytes, as with `ulimit -f`."""
    return partial(resource.setrlimit, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


class Disk:
    """The module `os` as durable writes see it, with one call that fails, or all from then on.

    Args:
        fault: the operation of `FAULTS`.
        at: at which call, from 1; 0 for none.
        lasting: whether all calls after it fail too, of every kind.
    """

    def __init__(self, fault: str = "", at: int = 0, lasting: bool = False) -> None:
        self._fault, self._at, self._lasting = fault, at, lasting
        self._failing = False
        self._calls = {name: RawValue("i", 0) for name in FAULTS}  # in memory shared with forks

    def install(self) -> None:
        """From now on durable writes meet it."""
        vars(durable)["os"] = self

    @property
    def calls(self) -> dict[str, int]:
        """How often each operation was called, in whichever process."""
        return {name: count.value for name, count in self._calls.items()}

    def __getattr__(self, name: str) -> Any:
        whole = getattr(os, name)
        if name not in FAULTS:
            return whole

        def call(*args: Any, **options: Any) -> Any:
            self._calls[name].value += 1
            now = name == self._fault and self._calls[name].value == self._at
            if now or self._failing:
                self._failing = self._lasting
                number = FAULTS[name if now else self._fault]
                if name == "write":  # a full disk takes what still fits
                    os.write(args[0], bytes(args[1])[: len(args[1]) // 2])
                raise OSError(number, os.strerror(number))
            return whole(*args, **options)

        return call


# --------------------------------------------------------------------------------- what is left


def contents(folder: Path) -> dict[str, Any]:
    """All that a run or a sweep came to, but for times, names and places: equal is the same bits.

    Raises:
        MnistError: something in it is damaged.
    """
    run = RunDirectory(folder)
    own = run.name.partition("/")[0]  # one that was killed before it began left its number taken
    found = {**run.summary(), "checkpoint": run.best.exists()}
    return {
        "status": run.meta().get("status"),
        "error": run.meta().get("error"),
        "config": run.config_path.read_text(),
        "summary": str(_timeless(found)).replace(own, "RUN"),
        "metrics": _timeless(run.metrics()),
        "best": _weights(run.best),
        "last": _weights(run.last),
        "trials": {trial.path.name: contents(trial.path) for trial in run.trials()},
    }


def _weights(path: Path) -> Any:
    return plain(_timeless(vars(checkpoint.load(path)))) if path.exists() else None


def plain(value: Any) -> Any:
    """Values that are equal if and only if they were, tensors to the bit."""
    match value:
        case torch.Tensor():
            return str(value.dtype), tuple(value.shape), value.numpy().tobytes()
        case dict():
            return {key: plain(item) for key, item in value.items()}
        case list() | tuple():
            return [plain(item) for item in value]
        case _:
            return repr(value)


def _timeless(value: Any) -> Any:
    """Without times, and without the length and sum of lines in which times stand."""
    if isinstance(value, dict):
        return {
            key: _timeless(item)
            for key, item in value.items()
            if key not in ("seconds", "bytes", "sha256") and not str(key).startswith("time/")
        }
    return [_timeless(item) for item in value] if isinstance(value, list) else value


def disagreements(folder: Path) -> list[str]:
    """Where a run or a sweep says of itself what its checkpoints do not hold; nowhere, if empty."""
    run = RunDirectory(folder)
    summary, trials = run.summary(), run.trials()
    wrong = [each for trial in trials for each in disagreements(trial.path)]
    wrong += [f"{path} is left" for path in strays(folder)]
    try:
        best = checkpoint.load(run.best) if run.best.exists() else None
        last = checkpoint.load(run.last) if run.last.exists() else None
    except CheckpointError as error:
        return [*wrong, error.message]
    if not summary:
        return wrong
    if run.is_sweep:
        rows = summary["trials"]
        for row, trial in zip(rows, trials, strict=False):
            wrong += _differing(f"{run.name}: {trial.name}", row, trial.best)
        winner = summary["best"]
        if winner and "test/acc" in winner and any(row["status"] == "failed" for row in rows):
            wrong.append(f"{run.name}: the test set was opened")
        if winner and winner["status"] == "failed":
            wrong.append(f"{run.name}: {winner['run']} failed, and won")
        return wrong + (_differing(run.name, winner, run.best) if winner and best else [])
    epochs = summary["epochs"]
    if len(run.metrics()) != epochs:
        wrong.append(f"{run.name}: {epochs} epochs, but {len(run.metrics())} records")
    if summary["status"] != "diverged" and epochs != (last.epoch if last else 0):
        wrong.append(f"{run.name}: {epochs} epochs, but last.pt is not of that")
    if (best.epoch if best else None) != (summary["best"] or {"epoch": None})["epoch"]:
        wrong.append(f"{run.name}: best.pt is not of {summary['best']}")
    return wrong + _differing(run.name, summary["best"] or {}, run.best)


def _differing(what: str, row: dict[str, Any], path: Path) -> list[str]:
    """Whether a row with figures has other ones than the checkpoint they are of."""
    figures = {key: row[key] for key in ("val/loss", "val/acc") if row.get(key) is not None}
    held = checkpoint.load(path).metrics if figures and path.exists() else {}
    return [] if figures.items() <= held.items() else [f"{what}: {figures} is not of {path}"]


def strays(folder: Path) -> list[Path]:
    """Temporary files that are still there."""
    return list(folder.rglob("*.tmp"))


def found(runs: Path) -> Path | None:
    """The run in a runs directory that can be gone on with: of several, there must be none."""
    runs_there = all_runs(runs)
    assert len(runs_there) <= 1, runs_there
    return runs_there[0].path if runs_there else None


# ------------------------------------------------------------------------- many lives of a command


@dataclass
class Attacks:
    """What was done to a command, and what came of it.

    Attributes:
        tried: how many attacks.
        workers: how many of them on a worker.
        hit: how many ended the command or cost it a run.
        runs: how many runs or sweeps were brought to their end.
        codes: how each attempt ended.
        lost: what differed from the undisturbed run, or was refused, in words; empty if nothing.
    """

    tried: int = 0
    workers: int = 0
    hit: int = 0
    runs: int = 0
    codes: list[int] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)


@dataclass
class Undisturbed:
    """What a command comes to that nothing happens to.

    Attributes:
        contents: of what it leaves.
        seconds: how long it takes.
        calls: how often it calls each operation of `FAULTS`.
    """

    contents: dict[str, Any]
    seconds: float
    calls: dict[str, int]


@functools.cache
def undisturbed(*argv: str) -> Undisturbed:
    """Runs a command twice (the first is slower) where nothing happens to it."""
    for _ in range(2):
        with tempfile.TemporaryDirectory() as place:
            disk, began, runs = Disk(), time.monotonic(), Path(place) / "runs"
            command = Command(Path(place), *argv, "--runs-dir", str(runs), before=disk.install)
            ended = command.wait()
            assert ended.code == 0, ended.err
            seconds, folder = time.monotonic() - began, found(runs)
            assert folder
            whole = Undisturbed(contents(folder), seconds, disk.calls)
    return whole


class Subject:
    """A command that things happen to, in a folder of its own.

    Args:
        start: the command line, without its runs directory.
        place: the folder, in which there is nothing yet.
    """

    def __init__(self, start: Sequence[str], place: Path) -> None:
        self.start, self._place = start, place
        self.whole = undisturbed(*start)
        place.mkdir(parents=True, exist_ok=True)

    @property
    def runs(self) -> Path:
        """Its runs directory."""
        return self._place / "runs"

    @property
    def folder(self) -> Path:
        """The run that there is."""
        folder = found(self.runs)
        assert folder
        return folder

    def go(self, before: Callable[[], object] = lambda: None) -> Command:
        """Starts the command, or goes on with what is there of it."""
        folder = found(self.runs)
        argv = ["resume", str(folder)] if folder else [*self.start, "--runs-dir", str(self.runs)]
        return Command(self._place, *argv, before=before)

    def clear(self) -> None:
        """Removes what is there of it."""
        shutil.rmtree(self._place)
        self._place.mkdir()

    def differences(self) -> list[str]:
        """What is left other than in an undisturbed life, in words."""
        there, whole = contents(self.folder), self.whole.contents
        return [key for key in whole if there[key] != whole[key]]


def kills(subject: Subject, count: int, dice: random.Random) -> Attacks:
    """Kills a command at random moments and resumes it until it ends, until so many were killed.

    Nothing waits until the workers of a killed command have noticed that they are alone.
    """
    made = Attacks()
    while not made.lost:
        worker = "--workers" in subject.start and dice.random() < 0.3
        command = subject.go()
        moment = dice.uniform(0, subject.whole.seconds) if made.tried < count else PATIENCE
        killed = command.kill_at(moment, worker)
        code, err = (ended := command.wait()).code, ended.err
        made.codes.append(code)
        made.tried += killed
        made.workers += killed and worker
        made.hit += killed and code != 0
        if code not in ((0, 3 if worker else -signal.SIGKILL) if killed else (0,)):
            made.lost.append(f"exit code {code}: {err}")
        if (folder := found(subject.runs)) and code != -signal.SIGKILL:
            made.lost += disagreements(folder)
        if code == 0:
            made.runs += 1
            made.lost += subject.differences()
            subject.clear()
            if made.tried >= count:
                break
    return made


def endure(subject: Subject, before: Callable[[], object], what: str = "") -> Attacks:
    """Runs a command that meets something, looks at what it left, and resumes it."""
    ended = subject.go(before).wait()
    wrong = _after_failing(subject.runs, ended)
    if not ended.code:
        wrong += subject.differences()
    after = subject.go().wait()
    wrong += [f"resumed with exit code {after.code}: {after.err}"] * (after.code != 0)
    wrong += [*subject.differences(), *disagreements(subject.folder)]
    subject.clear()
    lost = [f"{subject.start[0]} {what}: {'; '.join(wrong)}"] if wrong else []
    return Attacks(1, hit=ended.code != 0, runs=1, codes=[ended.code], lost=lost)


def faults(subject: Subject, first: int = 0, step: int = 1) -> Attacks:
    """Has calls of every operation fail, one in each life, by itself or with all that come after.

    Args:
        subject: the command.
        first: which of all these points is the first.
        step: how many points further the next one is; odd, so that it fails in both ways by turns.
    """
    points = [
        (name, at, lasting)
        for name, count in subject.whole.calls.items()
        for at in range(1, count + 1)
        for lasting in (False, True)
    ]
    made = Attacks()
    for point in points[first::step]:
        add(made, endure(subject, Disk(*point).install, str(point)))
    return made


def add(total: Attacks, more: Attacks) -> None:
    """Counts attacks with others."""
    for name, value in vars(more).items():
        vars(total)[name] += value


def _after_failing(runs: Path, ended: Ended) -> list[str]:
    """What is wrong with how a command failed, and with what it left."""
    folder = found(runs)
    wrong = disagreements(folder) if folder else [f"{path} is left" for path in strays(runs)]
    lines = ended.err.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    hints = [line for line in lines if line.startswith("hint: ")]
    if ended.code not in (0, 1, 2, 3) or (len(errors), len(hints)) != (bool(ended.code),) * 2:
        return [*wrong, f"exit code {ended.code}, not with one error and one hint: {ended.err}"]
    if ended.code in (1, 2) and str(runs) not in errors[0]:
        wrong.append(f"no file is named: {errors[0]}")
    if ended.code in (1, 3) and folder and "mnist resume" not in hints[0]:
        wrong.append(f"not how it goes on: {hints[0]}")
    return wrong
