"""Ctrl-C and SIGTERM, wherever they meet a command: what was finished is safe and can go on."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import cycle
from pathlib import Path
from subprocess import PIPE
from typing import Any

import filelock
import numpy as np
import pytest

from mnist_cli.data import dataset, durable, sources
from mnist_cli.data.catalog import DATASETS, FIELDS
from mnist_cli.data.formats import Arrays
from mnist_cli.engine import loop
from mnist_cli.report import plots
from mnist_cli.runs import interrupts
from mnist_cli.runs.store import RunDirectory
from tests.conftest import Ended, Mnist
from tests.reliability.harness import (
    Command,
    alive,
    alone,
    at_step,
    calls,
    contents,
    undisturbed,
    until,
)

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
GIVES_UP = 10.0  # seconds after the signal within which a command has ended
EPOCHS = 3
# 112 training images in 4 batches, so 4 steps an epoch
SMALL = ("data={name: synthetic, size: 140, batch_size: 32}", f"train.epochs={EPOCHS}")
# By its loss every epoch is better than the one before, so best.pt is written each time.
TRAIN = ("train", *SMALL, "model.dropout=0.3", "train.select=loss")
LRS = ("--lrs", "1e-2,1e-3,1e-4")
SWEEP = ("sweep", *SMALL, *LRS, "--fuse", "off", "--workers", "1")
WORKERS = ("sweep", *SMALL, *LRS, "--fuse", "off", "--workers", "2")
Then = Callable[[], object]
When = Callable[[Then], object]  # has a command meet something at one moment of its life

pytestmark = pytest.mark.usefixtures("forked_alone")


def strike(number: int) -> None:
    """A signal to the command and its workers, as a terminal sends it."""
    os.killpg(os.getpgrp(), number)


def at_call(owner: Any, name: str, at: int = 1) -> When:
    """The call number `at` of a function."""
    return partial(calls, owner, name, at)


def at_write(file: str, at: int = 1, how: str = "replace") -> When:
    """When a file of this name is written for that time."""
    return partial(calls, durable, how, at, counted=lambda path, _: path.name == file)


def struck(folder: Path, argv: tuple[str, ...], when: When, number: int) -> Ended:
    """How a command ends that is struck by a signal, which must be soon."""
    return ended_in_time(Command(folder, *argv, before=partial(when, partial(strike, number))))


def ended_in_time(command: Command) -> Ended:
    began = time.monotonic()
    ended = command.wait()
    assert time.monotonic() - began < GIVES_UP
    return ended


def assert_only_its_code(ended: Ended) -> None:
    """That nothing is on stdout but, with --json, that it was interrupted."""
    assert not ended.out or json.loads(ended.out)["error"]["code"] == ended.code


def check_resume(argv: tuple[str, ...], ended: Ended, number: signal.Signals, mnist: Mnist) -> None:
    """That a command was interrupted and says so everywhere, and comes to the same bits at last."""
    (folder,) = Path(os.environ["MNIST_RUNS_DIR"]).iterdir()
    found = RunDirectory(folder)
    assert ended.code == CODES[number]
    assert_only_its_code(ended)
    assert ended.err.endswith(f"hint: go on with: mnist resume {folder}\n")
    assert found.status() == "interrupted"
    assert {trial.status() for trial in found.trials()} <= {"finished", "interrupted"}
    assert mnist("resume", folder.name).code == 0
    assert contents(folder) == undisturbed(*argv).contents


# ------------------------------------------------------------------------- nothing has begun yet


def catches(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_interrupted_at_any_moment_of_its_start_it_is_silent(tmp_path: Path) -> None:
    """From the moment that its own code runs, which imports for a second or two."""
    dice = random.Random(0)
    command = [sys.executable, "-m", "mnist_cli", *TRAIN]
    for number in 4 * list(CODES):
        process = subprocess.Popen(command, stdout=PIPE, stderr=subprocess.STDOUT, text=True)
        until(partial(catches, process.pid, signal.SIGTERM))
        time.sleep(dice.uniform(0, 0.6))
        process.send_signal(number)
        said, _ = process.communicate(timeout=60)
        assert process.returncode == CODES[number], said
        assert "Traceback" not in said
        if not list((tmp_path / "runs").glob("*")):  # it was not so fast that training began
            assert "interrupted" not in said


BEFORE: dict[str, tuple[tuple[str, ...], When]] = {
    "mkdir": (TRAIN, at_call(durable, "make_folder")),
    "the lock": (SWEEP, at_call(filelock.FileLock, "acquire")),
    "prepare": (SWEEP, at_call(dataset, "synthesize")),
    "the folder": (TRAIN, at_write("meta.json")),
    "the config": (TRAIN, at_write("config.yaml")),
    "the sweep's config": (SWEEP, at_write("sweep.yaml")),
}


@pytest.mark.parametrize(("phase", "number"), [*zip(BEFORE, cycle(CODES), strict=False)])
def test_interrupted_before_there_is_a_run_it_leaves_one_line(
    phase: str, number: signal.Signals, tmp_path: Path
) -> None:
    argv, when = BEFORE[phase]
    ended = struck(tmp_path, (*argv, "--json"), when, number)
    assert ended.code == CODES[number]
    assert_only_its_code(ended)
    lines = ended.err.splitlines()
    assert [line for line in lines if "interrupted" in line] == lines[-1:]
    assert "resume" not in ended.err
    assert not list((tmp_path / "runs").glob("*"))


def test_interrupted_while_it_fetches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the download is left, neither its process nor its files."""
    scratch, pip = tmp_path / "scratch", tmp_path / "pip"
    scratch.mkdir()
    # A pip that outlives every signal but one, and which interrupts who started it.
    lines = [f"echo $$ > {pip}.pid", "trap '' INT TERM", "sleep 0.2", "kill -TERM $PPID"]
    pip.write_text("\n".join(["#!/bin/sh", *lines, "exec sleep 60", ""]))
    pip.chmod(0o700)
    monkeypatch.setenv("TMPDIR", str(scratch))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr("sys.executable", str(pip))
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.delenv("MNIST_OFFLINE")
    ended = ended_in_time(Command(tmp_path, "train"))
    until(lambda: not alive(int(Path(f"{pip}.pid").read_text())), 2)
    assert ended.code == CODES[signal.SIGTERM]
    assert ended.err.splitlines()[-1].startswith("interrupted")
    assert not list(scratch.iterdir())
    assert not (tmp_path / "runs").exists()
    assert [path.name for path in (tmp_path / "data").iterdir()] == [".mnist.lock"]


def test_interrupted_while_another_process_fetches(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with filelock.FileLock(tmp_path / "data" / ".mnist.lock"):
        command = Command(tmp_path, "data", "fetch", "mnist")
        until(lambda: "waiting for another process" in command.err)
        os.kill(command.pid, signal.SIGTERM)
        assert ended_in_time(command).code == 143


def test_interrupted_while_it_writes_prepared_data(tmp_path: Path) -> None:
    def before() -> None:
        spec = DATASETS["mnist"]
        arrays = Arrays(*(np.zeros(spec.array_shape(field), np.uint8) for field in FIELDS))
        vars(sources)["fetch"] = lambda *_: arrays
        calls(os, "fsync", 1, partial(strike, signal.SIGINT))

    ended = ended_in_time(Command(tmp_path, "data", "fetch", "mnist", before=before))
    assert ended.code == CODES[signal.SIGINT]
    assert not [path for path in (tmp_path / "data").iterdir() if path.name != ".mnist.lock"]


# -------------------------------------------------------------------------- runs are being trained


# In the second epoch or at its end, so that there is something to lose.
DURING: dict[str, tuple[tuple[str, ...], When, str]] = {
    "prepare": (TRAIN, at_call(loop.Training, "__post_init__"), "0 finished epochs"),
    "train": (TRAIN, partial(at_step, 6, 1), "1 finished epochs"),
    "evaluate": (TRAIN, at_call(loop.Evaluation, "measure", 2), "1 finished epochs"),
    "write metrics": (TRAIN, at_write("metrics.jsonl", 2, "append"), "2 finished epochs"),
    "write best.pt": (TRAIN, at_write("best.pt", 2), "2 finished epochs"),
    "write last.pt": (TRAIN, at_write("last.pt", 2), "2 finished epochs"),
    "the first run": (SWEEP, partial(at_step, 6, 1), "0 of 3 runs"),
    "between runs": (SWEEP, at_call(loop.Training, "__post_init__", 2), "1 of 3 runs"),
    "the last run": (SWEEP, partial(at_step, 6, 3), "2 of 3 runs"),
    "test": (SWEEP, at_call(loop.Evaluation, "measure", 3 * EPOCHS + 1), "3 of 3 runs"),
}


@pytest.mark.parametrize(
    ("phase", "number"), [*zip(DURING, cycle(CODES), strict=False), ("train", signal.SIGTERM)]
)
def test_what_was_interrupted_goes_on_to_the_same_bits(
    phase: str, number: signal.Signals, mnist: Mnist, tmp_path: Path
) -> None:
    argv, when, said = DURING[phase]
    ended = struck(tmp_path, (*argv, "--json"), when, number)
    assert f"interrupted: {said}" in ended.err
    check_resume(argv, ended, number, mnist)


@pytest.mark.parametrize(
    ("argv", "when", "number"),
    [
        (TRAIN, at_write("summary.json"), signal.SIGINT),
        (SWEEP, at_call(plots, "draw"), signal.SIGTERM),
    ],
)
def test_interrupted_when_all_is_done_it_is_done(
    argv: tuple[str, ...], when: When, number: signal.Signals, tmp_path: Path
) -> None:
    ended = struck(tmp_path, argv, when, number)
    assert ended.code == CODES[number]
    assert ended.err.splitlines()[-1] == "interrupted: everything that was finished is saved"
    (folder,) = (tmp_path / "runs").iterdir()
    assert contents(folder) == undisturbed(*argv).contents


def deafen() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


@pytest.mark.parametrize(
    ("number", "to", "first"),
    [
        (signal.SIGINT, "all of them", int),
        pytest.param(signal.SIGTERM, "the parent", int, marks=pytest.mark.slow),
        (signal.SIGTERM, "the parent", deafen),  # who does not listen is ended
    ],
)
def test_with_workers_too(
    number: signal.Signals, to: str, first: Then, mnist: Mnist, tmp_path: Path
) -> None:
    def then() -> None:
        first()
        if alone(tmp_path / "met"):
            os.kill(os.getppid(), number) if to == "the parent" else strike(number)
        time.sleep(60)

    command = Command(tmp_path, *WORKERS, "--json", before=partial(at_step, 6, 1, then))
    ended = ended_in_time(command)
    until(lambda: not group(command.pid), 1)
    check_resume(WORKERS, ended, number, mnist)


def group(pid: int) -> bool:
    """Whether anybody is left in a process group."""
    with suppress(ProcessLookupError):
        os.killpg(pid, 0)
        return True
    return False


# ----------------------------------------------------------------------------------- a second one


@pytest.mark.parametrize(("argv", "second"), [(TRAIN, signal.SIGINT), (WORKERS, signal.SIGTERM)])
def test_a_second_signal_leaves_at_once_and_harms_nothing(
    argv: tuple[str, ...], second: signal.Signals, mnist: Mnist, tmp_path: Path
) -> None:
    """The first finds it saving what it has, and slow at that; the second does not wait for it."""
    met, saving = tmp_path / "met", tmp_path / "saving"

    def before() -> None:
        command, replace = os.getpid(), durable.replace

        def slow(path: Path, content: bytes) -> None:
            if path.name == "summary.json" and met.exists():
                saving.touch()
                time.sleep(60)
            replace(path, content)

        def then() -> None:
            if alone(met):
                os.kill(command, signal.SIGINT)
            if os.getpid() != command:
                time.sleep(60)

        durable.replace = slow
        at_step(6, 1, then)

    command = Command(tmp_path, *argv, before=before)
    until(saving.exists, 20)
    os.kill(command.pid, second)
    assert ended_in_time(command).code == CODES[second]
    until(lambda: not group(command.pid), 2)
    (folder,) = (tmp_path / "runs").iterdir()
    assert RunDirectory(folder).status() == "dead"
    met.rmdir()
    assert mnist("resume", folder.name).code == 0
    assert contents(folder) == undisturbed(*argv).contents


def test_who_was_told_to_ignore_ctrl_c_does(tmp_path: Path) -> None:
    """As a shell tells what it starts in the background, and nohup."""

    def before() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        at_step(6, 1, partial(strike, signal.SIGINT))

    assert Command(tmp_path, *TRAIN, before=before).wait().code == 0


@pytest.mark.parametrize("number", CODES)
def test_what_is_held_is_finished_and_then_interrupted(number: signal.Signals) -> None:
    done = []

    def finish() -> None:
        with interrupts.held():
            with interrupts.held():
                os.kill(os.getpid(), number)
                done.append("inner")
            done.append("outer")
        done.append("never")

    for _ in range(2):  # whoever handled signals before the block does so again, time and again
        done.clear()
        with pytest.raises((KeyboardInterrupt, interrupts.Terminated)), interrupts.listening():
            finish()
        assert done == ["inner", "outer"]
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
