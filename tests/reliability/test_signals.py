"""Ctrl-C and SIGTERM, wherever they meet a command: what was finished is safe and can go on."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mnist_cli.data import dataset, durable, sources
from mnist_cli.data.catalog import DATASETS, FIELDS
from mnist_cli.data.formats import Arrays
from mnist_cli.engine import loop as train
from mnist_cli.report import plots
from mnist_cli.runs import checkpoint as checkpoints
from mnist_cli.runs import interrupts, run, store
from mnist_cli.runs.store import RunDirectory
from mnist_cli.sweeps import executors, sweep
from tests.conftest import Mnist
from tests.reliability.forked import Command, alive, calls, until

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
GIVES_UP = 5.0  # seconds after the signal within which a command has ended
EPOCHS = 3
# 112 training images in 4 batches, so 4 steps an epoch
SMALL = ("data={name: synthetic, size: 140, batch_size: 32}", f"train.epochs={EPOCHS}")
# By its loss every epoch is better than the one before, so best.pt is written each time.
TRAIN = ("train", *SMALL, "model.dropout=0.3", "train.select=loss")
LRS = ("--lrs", "1e-2,1e-3,1e-4")
SWEEP = ("sweep", *SMALL, *LRS, "--fuse", "off", "--workers", "1")
WORKERS = ("sweep", *SMALL, *LRS, "--fuse", "off", "--workers", "2")
both = pytest.mark.parametrize("number", CODES, ids=["SIGINT", "SIGTERM"])


pytestmark = pytest.mark.usefixtures("forked_alone")


def strike(number: int) -> None:
    """A signal to the command and its workers, as a terminal sends it."""
    os.killpg(os.getpgrp(), number)


def ended_in_time(command: Command) -> Any:
    began = time.monotonic()
    ended = command.wait()
    assert time.monotonic() - began < GIVES_UP
    return ended


def bits(folder: Path) -> tuple[Any, ...]:
    """All that training came to: metrics but for times, and the weights of last.pt and best.pt."""
    records = [
        {key: value for key, value in record.items() if not key.startswith("time/")}
        for record in RunDirectory(folder).metrics()
    ]
    weights = [
        {name: value.numpy().tobytes() for name, value in checkpoints.load(path).model.items()}
        for path in (folder / "last.pt", folder / "best.pt")
    ]
    return records, *weights


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[tuple[str, ...]], list[Any]]:
    """The bits of every run of a command that nobody interrupts."""
    known: dict[tuple[str, ...], list[Any]] = {}

    def of(argv: tuple[str, ...]) -> list[Any]:
        if argv not in known:
            folder = tmp_path_factory.mktemp("whole")
            assert Command(folder, *argv, "--runs-dir", str(folder / "runs")).wait().code == 0
            known[argv] = [bits(path) for path in members(folder / "runs")]
        return known[argv]

    return of


def members(runs: Path) -> list[Path]:
    """The folder of the only run in a runs directory; of a sweep, those of its runs."""
    (folder,) = runs.iterdir()
    return sorted((folder / "trials").iterdir()) if (folder / "trials").is_dir() else [folder]


Whole = Callable[[tuple[str, ...]], list[Any]]


# ------------------------------------------------------------------------- nothing has begun yet


BEFORE: dict[str, tuple[Any, str]] = {
    "mkdir": (durable, "make_folder"),
    "the lock": (RunDirectory, "hold"),
    "prepare": (dataset, "synthesize"),
    "the folder": (store, "new_meta"),
    "the config": (RunDirectory, "write_config"),
}


@both
@pytest.mark.parametrize("phase", BEFORE)
@pytest.mark.parametrize("argv", [TRAIN, SWEEP], ids=["train", "sweep"])
def test_interrupted_before_there_is_a_run_it_leaves_one_line(
    argv: tuple[str, ...], phase: str, number: signal.Signals, tmp_path: Path
) -> None:
    before = partial(calls, *BEFORE[phase], 1, partial(strike, number))
    ended = ended_in_time(Command(tmp_path, *argv, "--json", before=before))
    assert ended.code == CODES[number]
    assert ended.out == ""
    lines = ended.err.splitlines()
    assert [line for line in lines if "interrupted" in line] == lines[-1:]
    assert "resume" not in ended.err
    assert not list((tmp_path / "runs").glob("*"))


@both
@pytest.mark.parametrize("module", ["pydantic", "torch.nn.functional"])
def test_interrupted_while_it_starts(module: str, number: signal.Signals, tmp_path: Path) -> None:
    """The signal comes when a module is looked for, in the midst of importing others."""
    code = (
        "import os, sys\n"
        "class Finder:\n"
        "    @staticmethod\n"
        "    def find_spec(name, *_):\n"
        f"        if name == {module!r} and not Finder.met:\n"
        "            Finder.met = True\n"
        f"            os.kill(os.getpid(), {int(number)})\n"
        "    met = False\n"
        "sys.meta_path.insert(0, Finder)\n"
        "from mnist_cli.__main__ import main\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *TRAIN],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == CODES[number], done.stderr
    told = done.stderr.splitlines()
    assert told[-1].startswith("interrupted")
    assert "Traceback" not in done.stderr
    assert len(told) <= 3  # two say which config was taken
    assert not (tmp_path / "runs").exists()


class Mirror:
    """What torchvision says of a data set: one mirror, where nobody listens."""

    mirrors = ("http://127.0.0.1:9/",)
    resources = (("train-images-idx3-ubyte.gz", ""),)


@both
@pytest.mark.parametrize("where", ["mirror", "pip"])
def test_interrupted_while_it_fetches(
    where: str, number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of the download is left, neither its process nor its files."""
    scratch, pip = tmp_path / "scratch", tmp_path / "pip"
    scratch.mkdir()
    # A pip that outlives every signal but one, and which interrupts who started it.
    lines = ["#!/bin/sh", f"echo $$ > {pip}.pid", "trap '' INT TERM", f"kill -{int(number)} $PPID"]
    pip.write_text("\n".join([*lines, "exec sleep 60", ""]))
    pip.chmod(0o700)
    monkeypatch.setenv("TMPDIR", str(scratch))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.delenv("MNIST_OFFLINE")

    def before() -> None:
        modules: dict[str, Any] = vars(sys)["modules"]
        modules["torchvision"] = SimpleNamespace(datasets=SimpleNamespace(MNIST=Mirror))
        if where == "mirror":
            calls(sources, "download", 1, partial(strike, number))
        vars(sys)["executable"] = str(pip)

    ended = ended_in_time(Command(tmp_path, "train", before=before))
    assert ended.code == CODES[number]
    assert "asking torchvision's mirrors" in ended.err
    assert ended.err.splitlines()[-1].startswith("interrupted")
    if where == "pip":
        pid = int(Path(f"{pip}.pid").read_text())
        until(lambda: not alive(pid), 2)
    assert not list(scratch.iterdir())
    assert not (tmp_path / "runs").exists()
    assert [path.name for path in (tmp_path / "data").iterdir()] == [".mnist.lock"]


def test_interrupted_while_another_process_fetches(tmp_path: Path) -> None:
    from filelock import FileLock

    (tmp_path / "data").mkdir()
    with FileLock(tmp_path / "data" / ".mnist.lock"):
        command = Command(tmp_path, "data", "fetch", "mnist")
        until(lambda: "waiting for another process" in command.err)
        os.kill(command.pid, signal.SIGTERM)
        assert ended_in_time(command).code == 143


@both
def test_interrupted_while_it_writes_prepared_data(number: signal.Signals, tmp_path: Path) -> None:
    def before() -> None:
        spec = DATASETS["mnist"]
        arrays = Arrays(*(np.zeros(spec.array_shape(field), np.uint8) for field in FIELDS))
        vars(sources)["fetch"] = lambda *_: arrays
        calls(os, "fsync", 1, partial(strike, number))

    ended = ended_in_time(Command(tmp_path, "data", "fetch", "mnist", before=before))
    assert ended.code == CODES[number]
    assert not [path for path in (tmp_path / "data").iterdir() if path.name != ".mnist.lock"]


# ------------------------------------------------------------------------------- a run is trained


# A phase by the function that is called in it, and which call of it: in the second epoch or at its
# end, so that there is something to lose.
DURING: dict[str, tuple[Any, str, int]] = {
    "build": (run, "build", 1),
    "train": (train, "_step", 6),
    "evaluate": (train, "evaluate", 2),
    "write metrics": (RunDirectory, "append_metrics", 2),
    "write best.pt": (checkpoints, "save", 3),
    "write last.pt": (checkpoints, "save", 4),
}


@both
@pytest.mark.parametrize("phase", DURING)
def test_an_interrupted_run_goes_on_to_the_same_bits(
    phase: str, number: signal.Signals, mnist: Mnist, tmp_path: Path, whole: Whole
) -> None:
    before = partial(calls, *DURING[phase], partial(strike, number))
    ended = ended_in_time(Command(tmp_path, *TRAIN, "--json", before=before))
    folder = tmp_path / "runs" / "mlp-0001"
    assert ended.code == CODES[number]
    assert ended.out == ""
    assert ended.err.endswith(f"hint: go on with: mnist resume {folder}\n")
    found = RunDirectory(folder)
    assert found.status() == "interrupted"
    epochs = len(found.metrics())
    assert f"interrupted: {epochs} finished epochs are saved in {folder}" in ended.err
    assert epochs == (0 if phase == "build" else 2 if "write" in phase else 1)
    assert found.summary().get("epochs", 0) == epochs
    if epochs:
        assert checkpoints.load(found.last).epoch == epochs
    assert mnist("resume", "mlp-0001").code == 0
    assert found.status() == "finished"
    assert bits(folder) == whole(TRAIN)[0]


@both
@pytest.mark.parametrize("argv", [TRAIN, SWEEP], ids=["train", "sweep"])
def test_interrupted_when_all_is_done_it_is_done(
    argv: tuple[str, ...], number: signal.Signals, tmp_path: Path, whole: Whole
) -> None:
    def before() -> None:
        plots.draw = lambda _: strike(number)  # type: ignore[assignment, return-value]

    ended = ended_in_time(Command(tmp_path, *argv, before=before))
    assert ended.code == CODES[number]
    assert ended.err.splitlines()[-1] == "interrupted: everything that was finished is saved"
    (folder,) = (tmp_path / "runs").iterdir()
    assert RunDirectory(folder).status() == "finished"
    assert [bits(path) for path in members(tmp_path / "runs")] == whole(argv)


def test_what_is_being_written_when_a_run_ends_is_written(tmp_path: Path, whole: Whole) -> None:
    def before() -> None:
        calls(RunDirectory, "write_summary", 1, partial(strike, signal.SIGINT))

    assert ended_in_time(Command(tmp_path, *TRAIN, before=before)).code == 130
    found = RunDirectory(tmp_path / "runs" / "mlp-0001")
    assert (found.status(), found.summary()["status"]) == ("finished", "finished")
    assert bits(found.path) == whole(TRAIN)[0]


# ------------------------------------------------------------------------------- several are


BETWEEN: dict[str, tuple[Any, str, int]] = {
    "in the first": (train, "_step", 6),
    "between runs": (run, "prepare", 2),
    "in the last": (train, "_step", 30),
    "testing the winner": (sweep, "measure", 1),
}


@both
@pytest.mark.parametrize("phase", BETWEEN)
def test_an_interrupted_sweep_goes_on_to_the_same_bits(
    phase: str, number: signal.Signals, mnist: Mnist, tmp_path: Path, whole: Whole
) -> None:
    before = partial(calls, *BETWEEN[phase], partial(strike, number))
    ended = ended_in_time(Command(tmp_path, *SWEEP, "--json", before=before))
    check_sweep(ended, number, mnist, tmp_path)
    done = list(BETWEEN).index(phase)
    assert f"interrupted: {done} of 3 runs are finished" in ended.err
    assert [bits(path) for path in members(tmp_path / "runs")] == whole(SWEEP)


def check_sweep(ended: Any, number: signal.Signals, mnist: Mnist, tmp_path: Path) -> None:
    """That a sweep was interrupted and says so everywhere, and that it can be resumed."""
    folder = RunDirectory(tmp_path / "runs" / "mlp-sweep-0001")
    assert ended.code == CODES[number]
    assert ended.out == ""
    assert ended.err.endswith(f"hint: go on with: mnist resume {folder.path}\n")
    assert folder.status() == "interrupted"
    assert {trial.status() for trial in folder.trials()} <= {"finished", "interrupted"}
    resumed = mnist("resume", "mlp-sweep-0001", "--json")
    assert resumed.code == 0
    assert [trial["status"] for trial in resumed.json["trials"]] == ["finished"] * 3
    assert "test/acc" in resumed.json["best"]


@both
@pytest.mark.parametrize("to", ["all of them", "the parent"])
def test_with_workers_too(
    to: str, number: signal.Signals, mnist: Mnist, tmp_path: Path, whole: Whole
) -> None:
    def then() -> None:
        if to == "the parent":
            os.kill(os.getppid(), number)
        else:
            strike(number)
        time.sleep(0.05)  # an epoch takes less, and then it would be over

    before = partial(calls, train, "_step", 6, then)
    command = Command(tmp_path, *WORKERS, "--json", before=before)
    ended = ended_in_time(command)
    with pytest.raises(ProcessLookupError):
        os.killpg(command.pid, 0)  # nobody of its group is left
    check_sweep(ended, number, mnist, tmp_path)
    assert [bits(path) for path in members(tmp_path / "runs")] == whole(WORKERS)


def test_a_worker_that_does_not_listen_is_ended(mnist: Mnist, tmp_path: Path) -> None:
    def deaf() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.kill(os.getppid(), signal.SIGTERM)
        time.sleep(60)

    before = partial(calls, train, "_step", 6, deaf)
    ended = ended_in_time(Command(tmp_path, *WORKERS, "--json", before=before))
    check_sweep(ended, signal.SIGTERM, mnist, tmp_path)


# ----------------------------------------------------------------------------------- a second one


@pytest.mark.parametrize("second", CODES, ids=["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("argv", [TRAIN, WORKERS], ids=["train", "workers"])
def test_a_second_signal_leaves_at_once_and_harms_nothing(
    argv: tuple[str, ...],
    second: signal.Signals,
    mnist: Mnist,
    tmp_path: Path,
    whole: Whole,
) -> None:
    """The first finds it saving what it has, and slow at that; the second does not wait for it."""
    met = tmp_path / "met"

    def slow(*_: object, **__: object) -> None:
        met.touch()
        time.sleep(60)

    def before() -> None:
        def then() -> None:
            os.kill(os.getpid() if argv is TRAIN else os.getppid(), signal.SIGINT)

        if argv is TRAIN:
            store.RunDirectory.write_summary = slow  # type: ignore[method-assign]
        else:
            executors._end = slow
        calls(train, "_step", 6, then)

    command = Command(tmp_path, *argv, before=before)
    until(met.exists)
    os.kill(command.pid, second)
    ended = ended_in_time(command)
    assert ended.code == CODES[second]
    until(lambda: not group(command.pid), 2)
    (folder,) = (tmp_path / "runs").iterdir()
    assert RunDirectory(folder).status() == "dead"
    assert mnist("resume", folder.name).code == 0
    assert [bits(path) for path in members(tmp_path / "runs")] == whole(argv)


def group(pid: int) -> bool:
    """Whether anybody is left in a process group."""
    try:
        os.killpg(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_who_was_told_to_ignore_ctrl_c_does(tmp_path: Path) -> None:
    """As a shell tells what it starts in the background, and nohup."""

    def before() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        calls(train, "_step", 6, partial(strike, signal.SIGINT))

    assert Command(tmp_path, *TRAIN, before=before).wait().code == 0


def test_what_is_held_is_finished_and_then_interrupted() -> None:
    before = {number: signal.getsignal(number) for number in CODES}
    done = []

    def finish(number: signal.Signals) -> None:
        with interrupts.held():
            with interrupts.held():
                os.kill(os.getpid(), number)
                done.append("inner")
            done.append("outer")
        done.append("never")

    try:
        interrupts.listen()
        with pytest.raises(KeyboardInterrupt):
            finish(signal.SIGINT)
        interrupts.listen()
        with pytest.raises(interrupts.Terminated):
            finish(signal.SIGTERM)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert done == ["inner", "outer"] * 2
