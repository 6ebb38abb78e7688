"""Kills and full disks, for real: whatever is killed or cannot be written, nothing is lost.

What is killed are whole commands in processes of their own, at random moments of their lives; then
they are resumed, and killed again, until they end. `python -m tests.reliability` does more of it.
That what was written also outlives the power is up to the flushes in `durable.py`, which a process
that is killed does not need: of them only order and presence are tested.
"""

import os
import random
import signal
import stat
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mnist_cli.data import durable
from mnist_cli.runs import checkpoint
from mnist_cli.runs.store import RunDirectory
from mnist_cli.sweeps import sweep as sweeps
from mnist_cli.sweeps.plan import can_fork
from tests.conftest import Mnist
from tests.reliability.harness import (
    DATA,
    FAULTS,
    MODEL,
    SWEEP,
    TRAIN,
    Disk,
    Subject,
    alone,
    at_step,
    calls,
    dies,
    disagreements,
    endure,
    faults,
    file_limit,
    kills,
)

pytestmark = [
    pytest.mark.skipif(not can_fork(), reason="processes are forked on Linux"),
    pytest.mark.usefixtures("forked_alone"),
]

SHORT = ("train", DATA, *MODEL, "--epochs", "2", "--lr", "1e-2")


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder in memory: another filesystem than that of temporary files, and a fast one."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


# --------------------------------------------------------------------------------------- kills


@pytest.mark.parametrize(
    ("start", "where", "count"),
    [
        (TRAIN, "tmp_path", 8),
        (SWEEP, "memory", 4),
        pytest.param(TRAIN, "memory", 40, marks=pytest.mark.slow),
        pytest.param(SWEEP, "tmp_path", 20, marks=pytest.mark.slow),
    ],
)
def test_whatever_moment_it_is_killed_at_a_command_comes_to_the_same_bits(
    start: tuple[str, ...], where: str, count: int, request: pytest.FixtureRequest
) -> None:
    place = request.getfixturevalue(where)
    made = kills(Subject(start, place / "lives"), count, random.Random(where))
    assert made.lost == []
    assert made.tried >= count
    assert {-signal.SIGKILL, 0} <= set(made.codes)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_worker_costs_its_own_runs_and_the_sweep_goes_on(
    number: signal.Signals, memory: Path
) -> None:
    def killed() -> None:
        if alone(memory / "met"):
            os.kill(os.getpid(), number)

    subject = Subject(SWEEP, memory / "lives")
    ended = subject.go(lambda: at_step(6, 1, killed)).wait()  # in the second epoch
    assert ended.code == 3, ended.err
    folder = RunDirectory(subject.folder)
    rows = folder.summary()["trials"]
    assert sorted(row["status"] for row in rows) == ["failed", "failed", "finished", "finished"]
    why = "by signal 9" if number == signal.SIGKILL else "with exit code 143"
    for trial, row in zip(folder.trials(), rows, strict=True):
        failed = row["status"] == "failed"
        assert (why in (trial.meta().get("error") or "")) == (trial.name in ended.err) == failed
        assert not failed or len(trial.metrics()) == 1
    assert f"go on with: mnist resume {folder.path}" in ended.err
    assert disagreements(folder.path) == []
    assert subject.go().wait().code == 0
    assert subject.differences() == []


def test_a_sweep_killed_before_it_was_dealt_out_is_dealt_as_asked(memory: Path) -> None:
    subject = Subject(SWEEP, memory / "lives")
    subject.go(lambda: calls(sweeps, "partition", 1, dies)).wait()
    assert "stacks" not in RunDirectory(subject.folder).meta()
    assert subject.go().wait().code == 0
    assert RunDirectory(subject.folder).meta()["workers"] == 2
    assert subject.differences() == []


# -------------------------------------------------------------------------------------- faults


@pytest.mark.parametrize("step", [11, pytest.param(3, marks=pytest.mark.slow)])
def test_calls_to_the_disk_can_fail(step: int, memory: Path) -> None:
    subject = Subject(SHORT, memory / "lives")
    made = faults(subject, step=step)
    assert made.lost == []
    assert set(made.codes) == {1, 2}
    assert made.tried > 8
    assert subject.whole.calls.keys() == FAULTS.keys()
    assert min(subject.whole.calls.values()) > 0


def test_calls_to_the_disk_of_a_sweep_can_fail(memory: Path) -> None:
    subject, codes = Subject(SWEEP, memory / "lives"), set()
    writes = subject.whole.calls["write"]
    for at, lasting in ((writes // 2, False), (writes // 2, True), (writes, False)):
        made = endure(subject, Disk("write", at, lasting).install, f"write {at} {lasting}")
        assert made.lost == []
        codes |= set(made.codes)
    assert {1, 3} <= codes


# Of these runs config and meta have less than 2,000 bytes, best.pt 28,000 and last.pt 80,000.
@pytest.mark.parametrize(
    ("start", "limit", "code"),
    [(SHORT, 1_000, 1), (SHORT, 30_000, 1), (SHORT, 60_000, 1), (SWEEP, 2_500, 3)],
)
def test_a_limit_on_the_size_of_files(
    start: tuple[str, ...], limit: int, code: int, memory: Path
) -> None:
    made = endure(Subject(start, memory / "lives"), file_limit(limit))
    assert (made.lost, made.codes) == ([], [code])


def test_a_disk_that_fills_up_in_the_midst_of_a_sweep(memory: Path) -> None:
    """A failed run has no epoch that was not committed, wins nothing, and opens no test set."""
    argv = ("sweep", DATA, "model={name: mlp, width: 1}", "train.select=loss", "optimizer=sgd")
    subject = Subject((*argv, "--lrs", "1e-1,1e-2", "--epochs", "40"), memory / "lives")
    ended = subject.go(file_limit(8_000)).wait()  # about as long as the records of 30 epochs
    assert ended.code == 3, ended.err
    folder = RunDirectory(subject.folder)
    summary = folder.summary()
    assert [row["status"] for row in summary["trials"]] == ["failed"] * 2
    assert [row["val/loss"] for row in summary["trials"]] == [None] * 2
    assert summary["best"] is None
    for trial in folder.trials():
        done = trial.summary()["epochs"]
        assert 0 < done < 40
        assert len(trial.metrics()) == done == checkpoint.load(trial.last).epoch
        assert trial.summary()["best"]["epoch"] == checkpoint.load(trial.best).epoch
    assert disagreements(folder.path) == []
    assert subject.go().wait().code == 0
    assert subject.differences() == []


@pytest.mark.pictures
def test_pictures_that_cannot_be_written_are_told_and_not_left_half_done(
    mnist: Mnist, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, disk = str(tmp_path / "runs"), Disk()
    with monkeypatch.context() as patched:
        patched.setattr(durable, "os", disk)
        assert mnist(*SHORT, "--runs-dir", runs).code == 0
        patched.setattr(durable, "os", Disk("write", disk.calls["write"], lasting=True))
        ended = mnist(*SHORT, "--runs-dir", runs)
    assert ended.code == 0
    assert "warning: the pictures could not be drawn: " in ended.err
    run = RunDirectory(tmp_path / "runs" / "mlp-0002")
    assert list(run.plots.iterdir()) == []
    assert run.meta()["status"] == "finished"


# ------------------------------------------------------------------------------- durable writes


@pytest.mark.parametrize(
    ("write", "wanted"),
    [
        (partial(durable.replace, content=b"one"), "write, fsync, replace, fsync folder"),
        (partial(durable.append, content=b"one"), "write, fsync"),
        (durable.make_folder, "mkdir, fsync folder"),
    ],
)
def test_a_file_is_flushed_before_it_has_its_name_and_its_name_before_it_counts(
    write: Callable[[Path], None], wanted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def spied(name: str) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            kind = os.fstat(args[0]).st_mode if name == "fsync" else 0
            seen.append(name + " folder" * stat.S_ISDIR(kind))
            return getattr(os, name)(*args)

        return call

    spies = {name: spied(name) for name in ("write", "fsync", "replace", "mkdir")}
    monkeypatch.setattr(durable, "os", SimpleNamespace(**{**vars(os), **spies}))
    write(tmp_path / "a")
    assert ", ".join(seen) == wanted
