"""Commands that are killed, or whose disk fails, and what they leave.

A `Laboratory` is a process that has imported everything and forks a command from itself in
milliseconds, so that hundreds of them can be killed. It computes nothing before it forks: what the
children do is what a fresh process does.
"""

import contextlib
import errno
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).parents[2]
SHM = Path("/dev/shm")  # a filesystem in memory

# A life of a tenth of a second: everything a run has, on next to no data.
DATA = "data={name: synthetic, size: 140, batch_size: 32}"
MODEL = "model={name: mlp, width: 8, dropout: 0.2}"
TRAIN = ("train", DATA, MODEL, "--epochs", "4", "--lr", "1e-2", "train.eval_train=true")
SWEEP = (
    "sweep", DATA, MODEL, "--epochs", "3", "--lrs", "1e-2,1e-3", "--seeds", "2", "--workers", "2",
)  # fmt: skip

# By operation, the errors that a disk gives there.
FAULTS = {
    "open": errno.ENOSPC,
    "write": errno.ENOSPC,
    "fsync": errno.EIO,
    "replace": errno.EROFS,
    "mkdir": errno.ENOSPC,
}


@dataclass(frozen=True)
class Job:
    """A command, and what happens to it.

    Attributes:
        kill_after: seconds after which it is killed.
        worker: whether not itself but one of its workers is killed, as soon as there is one.
        fault: the operation of `FAULTS` that fails.
        at: at which call, from 1, and in every process by itself.
        lasting: whether all calls after it fail too, of every kind.
        limit: bytes no file may exceed.
        pictures: whether pictures are drawn, which takes longer than all the rest.
    """

    argv: Sequence[str]
    kill_after: float | None = None
    worker: bool = False
    fault: str = ""
    at: int = 0
    lasting: bool = False
    limit: int | None = None
    pictures: bool = False


@dataclass(frozen=True)
class Outcome:
    """How it ended.

    Attributes:
        code: the exit code; of what was killed, less than 0.
        killed: whether it, or a worker of it, was.
        seconds: how long it took.
        calls: how often it called each operation of `FAULTS` itself.
    """

    code: int
    out: str
    err: str
    killed: bool
    seconds: float
    calls: dict[str, int] = field(default_factory=dict)


class Laboratory:
    """A process that has imported everything; used as a context."""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.reliability.crash"],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1", "MNIST_OFFLINE": "1", "COLUMNS": "120"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        self._process.wait(timeout=30)
        self._process.stdout.close()

    def run(self, *argv: str, **what: Any) -> Outcome:
        """Runs a command to its end, whatever that is; `what` happens to it is as in `Job`."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(asdict(Job(argv, **what))) + "\n")
        self._process.stdin.flush()
        return Outcome(**json.loads(self._process.stdout.readline()))


def serve() -> None:
    """Runs the jobs that come as lines of JSON, and answers with their outcomes likewise."""
    for name in ("sweeps.sweep", "runs.evaluate", "report.plots"):
        import_module(f"mnist_cli.{name}")
    from mnist_cli.cli import run_command

    for line in sys.stdin:
        outcome = _perform(Job(**json.loads(line)), run_command)
        sys.stdout.write(json.dumps(asdict(outcome)) + "\n")
        sys.stdout.flush()


def _perform(job: Job, command: Callable[[Sequence[str]], int]) -> Outcome:
    with tempfile.TemporaryDirectory() as scratch:
        told = {name: Path(scratch, name) for name in ("out", "err", "calls")}
        began = time.perf_counter()
        pid = os.fork()
        if not pid:
            _become(job, command, told)
        code, killed = _watch(pid, job, began)
        texts = {name: path.read_text() if path.exists() else "" for name, path in told.items()}
    calls = json.loads(texts["calls"] or "{}")
    seconds = time.perf_counter() - began
    return Outcome(code, texts["out"], texts["err"], killed, seconds, calls)


def _watch(pid: int, job: Job, began: float) -> tuple[int, bool]:
    killed = False
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status), killed
        due = job.kill_after is not None and time.perf_counter() - began >= job.kill_after
        if due and not killed:
            victims = [pid]
            if job.worker:
                children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
                victims = [int(child) for child in children][:1]
            for victim in victims:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(victim, signal.SIGKILL)
                    killed = True
        time.sleep(0.0005)


def _become(job: Job, command: Callable[[Sequence[str]], int], told: dict[str, Path]) -> None:
    """What the forked process does."""
    from mnist_cli.data import durable
    from mnist_cli.report import plots

    code = 99
    try:
        sys.stdin = open(os.devnull)  # noqa: PTH123, SIM115
        sys.stdout, sys.stderr = told["out"].open("w"), told["err"].open("w")
        system = Disk(job)
        vars(durable)["os"] = system
        if not job.pictures:
            vars(plots)["draw"] = lambda _: []
        if job.limit is not None:
            hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
            resource.setrlimit(resource.RLIMIT_FSIZE, (job.limit, hard))
        code = command(job.argv)
        sys.stdout.flush()
        sys.stderr.flush()
        resource.setrlimit(resource.RLIMIT_FSIZE, resource.getrlimit(resource.RLIMIT_FSIZE))
        told["calls"].write_text(json.dumps(system.calls))
    finally:
        os._exit(code)


class Disk:
    """The module `os` as `files` sees it, with one call that fails, or all from then on."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._failing = False
        self.calls = dict.fromkeys(FAULTS, 0)

    def __getattr__(self, name: str) -> Any:
        whole = getattr(os, name)
        if name not in FAULTS:
            return whole

        def call(*args: Any, **options: Any) -> Any:
            self.calls[name] += 1
            now = name == self._job.fault and self.calls[name] == self._job.at
            if now or self._failing:
                self._failing = self._job.lasting
                number = FAULTS[name if now else self._job.fault]
                if name == "write":  # a full disk takes what still fits
                    os.write(args[0], bytes(args[1])[: len(args[1]) // 2])
                raise OSError(number, os.strerror(number))
            return whole(*args, **options)

        return call


# ------------------------------------------------------------------------------- what is left


def contents(folder: Path) -> dict[str, Any]:
    """All that a run or a sweep came to, but for times, names and places: equal is the same bits.

    Raises:
        MnistError: something in it is damaged.
    """
    from mnist_cli.runs.store import RunDirectory

    run = RunDirectory(folder)
    trials = sorted(folder.glob("trials/*"))
    summary = {"checkpoint": None} | _timeless(run.summary())
    own = run.name.partition("/")[0]  # one that was killed before it began left its number taken
    named = json.dumps(summary | {"checkpoint": bool(summary["checkpoint"])}).replace(own, "RUN")
    return {
        "status": run.meta().get("status"),
        "error": run.meta().get("error"),
        "config": run.config_text(),
        "summary": named,
        "metrics": _timeless(run.metrics()),
        "best": _weights(run.best),
        "last": _weights(run.last),
        "trials": {trial.name: contents(trial) for trial in trials},
    }


def _weights(path: Path) -> Any:
    from mnist_cli.runs import checkpoint

    return plain(_timeless(vars(checkpoint.load(path)))) if path.exists() else None


def plain(value: Any) -> Any:
    """Values that are equal if and only if they were, tensors to the bit."""
    import torch

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


def strays(folder: Path) -> list[Path]:
    """Temporary files that are still there."""
    return list(folder.rglob("*.tmp"))


def found(runs: Path) -> Path | None:
    """The run in a runs directory that can be gone on with: of several, there must be none."""
    from mnist_cli.runs.store import all_runs

    runs_there = all_runs(runs)
    assert len(runs_there) <= 1, runs_there
    return runs_there[0].path if runs_there else None


def again(runs: Path, start: Sequence[str]) -> list[str]:
    """The command that goes on with what is there, or starts it."""
    folder = found(runs)
    if folder is None:
        return [*start, "--runs-dir", str(runs)]
    return ["resume", str(folder)]


@dataclass
class Life:
    """What came of a command that was killed and resumed until it ended by itself.

    Attributes:
        kills: how often it was killed.
        workers: how often a worker of it was.
        lost: what differed from the undisturbed run, or was refused, in words; empty if nothing.
        codes: how each attempt ended.
    """

    kills: int = 0
    workers: int = 0
    lost: str = ""
    codes: list[int] = field(default_factory=list)


def live(
    laboratory: Laboratory,
    start: Sequence[str],
    runs: Path,
    whole: dict[str, Any],
    dice: random.Random,
    span: float,
) -> Life:
    """Kills a command at random moments and resumes it until it ends by itself.

    Nothing waits until the workers of a killed command have noticed that they are alone.

    Args:
        laboratory: where it runs.
        start: the command.
        runs: an empty runs directory, which is removed if nothing was lost.
        whole: the contents it must come to.
        dice: of the moments.
        span: seconds that it takes undisturbed.
    """
    life = Life()
    while True:
        worker = "--workers" in start and dice.random() < 0.3
        moment = dice.uniform(0, span)
        ended = laboratory.run(*again(runs, start), kill_after=moment, worker=worker)
        life.codes.append(ended.code)
        life.kills += ended.killed and not worker
        life.workers += ended.killed and worker
        allowed = (0, 3 if worker else -signal.SIGKILL) if ended.killed else (0,)
        if "is being trained by" in ended.err:  # workers notice in a moment that they are alone
            time.sleep(0.01)
        elif ended.code not in allowed or "Traceback" in ended.err:
            life.lost = f"exit code {ended.code}: {ended.err}"
            return life
        elif ended.code == 0:
            break
        if len(life.codes) > 100:
            life.lost = "it never came to its end"
            return life
    folder = found(runs)
    assert folder
    after = contents(folder)
    life.lost = ", ".join(sorted(key for key in whole if after[key] != whole[key]))
    if strays(folder):
        life.lost += f" {strays(folder)}"
    if not life.lost:
        shutil.rmtree(runs)
    return life


def undisturbed(laboratory: Laboratory, start: Sequence[str], runs: Path) -> tuple[Any, Outcome]:
    """The contents of a run that nothing happens to, and how it ended; it is removed."""
    laboratory.run(*start, "--runs-dir", str(runs / "first"))  # which is slower
    ended = laboratory.run(*start, "--runs-dir", str(runs))
    assert ended.code == 0, ended.err
    folder = found(runs)
    assert folder
    whole = contents(folder)
    shutil.rmtree(runs)
    return whole, ended


@contextlib.contextmanager
def directories(temporary: Path) -> Iterator[list[Path]]:
    """Runs directories on as many filesystems as there are: a folder for temporary files, shm."""
    there = [temporary]
    if SHM.is_dir() and os.access(SHM, os.W_OK) and SHM.stat().st_dev != temporary.stat().st_dev:
        there.append(Path(tempfile.mkdtemp(prefix="mnist-", dir=SHM)))
    try:
        yield there
    finally:
        for path in there[1:]:
            shutil.rmtree(path, ignore_errors=True)


def lives(count: int, place: Path, seed: int = 0) -> dict[str, list[Life]]:
    """Kills commands until there were so many kills, in two laboratories at once.

    Args:
        count: how many kills, those of workers included.
        place: where runs directories go, if not to another filesystem.
        seed: of all moments.

    Returns:
        By command and by whether the runs directory is on the filesystem of temporary files.
    """
    made: dict[str, list[Life]] = {}

    def work(number: int) -> None:
        dice = random.Random(f"{seed} {number}")
        with Laboratory() as laboratory, directories(place) as there:
            cases = [
                (f"{start[0]} in {_filesystem(path)}", start, path / f"runs-{number}")
                for start in (TRAIN, SWEEP)
                for path in there
            ]
            known = {name: undisturbed(laboratory, s, runs) for name, s, runs in cases}
            # Not the time: on a busy machine both would do as much.
            done, share = 0, -(-count // 2)
            counts = dict.fromkeys(known, 0)
            while done < share:
                name, start, runs = min(cases, key=lambda case: counts[case[0]])
                whole, ended = known[name]
                life = live(laboratory, start, runs, whole, dice, ended.seconds)
                made.setdefault(name, []).append(life)
                counts[name] += life.kills + life.workers
                done = sum(counts.values())
                if life.lost:
                    return

    _side_by_side(work)
    return made


@dataclass(frozen=True)
class Endured:
    """What came of a command whose disk failed.

    Attributes:
        what: the command and the fault.
        code: its exit code.
        lost: what was wrong then or after `mnist resume`, in words; empty if nothing.
    """

    what: str
    code: int
    lost: str


def faults(place: Path, starts: Sequence[Sequence[str]], *, all_of_them: bool) -> list[Endured]:
    """Has every call of every operation fail, one in each life, in two laboratories at once.

    Args:
        place: where runs directories go.
        starts: the commands.
        all_of_them: whether each fails once by itself and once with all that come after it. If not,
            it is one or the other by turns.
    """
    made: list[Endured] = []

    def work(number: int) -> None:
        with Laboratory() as laboratory:
            for start in starts:
                runs = place / f"faults-{number}"
                whole, ended = undisturbed(laboratory, start, runs)
                points = [
                    (name, at, lasting)
                    for name, calls in ended.calls.items()
                    # A worker counts on from where its parent was.
                    for at in range(1, calls + 1 + 15 * ("--workers" in start))
                    for lasting in (False, True)
                    if all_of_them or lasting == bool(at % 2)
                ]
                for name, at, lasting in points[number::2]:
                    fault = {"fault": name, "at": at, "lasting": lasting}
                    made.append(endure(laboratory, start, runs, whole, **fault))

    _side_by_side(work)
    return made


def endure(
    laboratory: Laboratory, start: Sequence[str], runs: Path, whole: dict[str, Any], **what: Any
) -> Endured:
    """Runs a command to which something happens, looks at what it left, and resumes it.

    Args:
        laboratory: where it runs.
        start: the command.
        runs: an empty runs directory, which is removed if nothing was lost.
        whole: the contents it must come to.
        what: happens to it, as in `Job`.
    """
    ended = laboratory.run(*start, "--runs-dir", str(runs), **what)
    wrong = _after_failing(runs, ended)
    folder = found(runs)
    if ended.code == 0 and (not folder or contents(folder) != whole):
        wrong.append("it said that all is well")
    after = laboratory.run(*again(runs, start))
    folder = found(runs)
    left = contents(folder) if folder else {}
    wrong += [f"resumed with exit code {after.code}: {after.err}"] * (after.code != 0)
    wrong += [key for key in whole if left.get(key) != whole[key]]
    wrong += [f"{path} is left" for path in strays(runs)]
    if not wrong:
        shutil.rmtree(runs)
    return Endured(f"{start[0]} {what}", ended.code, "; ".join(wrong))


def _after_failing(runs: Path, ended: Outcome) -> list[str]:
    """What is wrong with how a command failed, and with what it left."""
    from mnist_cli.errors import CheckpointError
    from mnist_cli.runs import checkpoint

    wrong = [f"{path} is left" for path in strays(runs)]
    for path in runs.rglob("*.pt"):
        try:
            checkpoint.load(path)
        except CheckpointError as error:
            wrong.append(error.message)
    lines = ended.err.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    hints = [line for line in lines if line.startswith("hint: ")]
    if ended.code and (len(errors), len(hints)) != (1, 1):
        wrong.append(f"not one error and one hint: {ended.err}")
    if ended.code not in (0, 1, 2, 3) or "Traceback" in ended.err:
        wrong.append(f"exit code {ended.code}: {ended.err}")
    if ended.code in (1, 2) and str(runs) not in errors[0]:
        wrong.append(f"no file is named: {errors[0]}")
    if ended.code in (1, 3) and found(runs) and "mnist resume" not in hints[0]:
        wrong.append(f"not how it goes on: {hints[0]}")
    return wrong


def _filesystem(path: Path) -> str:
    return str(SHM) if path.is_relative_to(SHM) else tempfile.gettempdir()


def _side_by_side(work: Callable[[int], None]) -> None:
    """Does work number 0 and 1 at once, and raises what they raise."""
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, range(2)))


if __name__ == "__main__":
    serve()
