"""Kills and full disks, for real: whatever is killed or cannot be written, nothing is lost.

What is killed are whole commands in processes of their own, at random moments of their lives; then
they are resumed, and killed again, until they end. `python -m tests.reliability` does more of it.
That what was written also outlives the power is up to the flushes in `files.py`, which a process
that is killed does not need: of them only order and presence are tested.
"""

import os
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mnist_cli.data import durable
from mnist_cli.runs.store import RunDirectory
from mnist_cli.sweeps.plan import can_fork
from tests.conftest import Mnist
from tests.reliability.crash import (
    DATA,
    FAULTS,
    MODEL,
    SWEEP,
    TRAIN,
    Laboratory,
    contents,
    directories,
    endure,
    faults,
    found,
    lives,
    strays,
    undisturbed,
)

pytestmark = pytest.mark.skipif(not can_fork(), reason="processes are forked on Linux")

SHORT = ("train", DATA, MODEL, "--epochs", "2", "--lr", "1e-2")


@pytest.fixture(scope="module")
def laboratory() -> Iterator[Laboratory]:
    with Laboratory() as made:
        yield made


# --------------------------------------------------------------------------------------- kills


def test_whatever_moment_it_is_killed_at_a_command_comes_to_the_same_bits(tmp_path: Path) -> None:
    made = lives(102, tmp_path)
    assert [life.lost for each in made.values() for life in each if life.lost] == []
    assert {name.split()[0] for name in made} == {"train", "sweep"}
    assert sum(life.kills + life.workers for each in made.values() for life in each) >= 100
    # What was hit is a matter of chance, and of the machine; workers have a test of their own.
    assert {-9, 0} <= {code for each in made.values() for life in each for code in life.codes}


def test_a_killed_worker_costs_its_own_runs_and_the_sweep_goes_on(
    laboratory: Laboratory, tmp_path: Path
) -> None:
    whole, _ = undisturbed(laboratory, SWEEP, tmp_path / "runs")
    long = tuple("30" if word == "3" else word for word in SWEEP)  # epochs: it is in the midst
    ended = laboratory.run(*long, "--runs-dir", str(tmp_path / "runs"), kill_after=0.4, worker=True)
    assert ended.killed
    assert ended.code == 3, ended.err
    folder = RunDirectory(tmp_path / "runs" / "mlp-sweep-0001")
    statuses = [trial["status"] for trial in folder.summary()["trials"]]
    assert sorted(statuses) == ["failed", "failed", "finished", "finished"]
    lost = [folder.trial(index) for index, told in enumerate(statuses) if told == "failed"]
    for run in lost:
        assert run.meta()["error"] == "its process was killed (SIGKILL)"
        assert run.name in ended.err
    assert f"go on with: mnist resume {folder.path}" in ended.err
    ended = laboratory.run("resume", str(folder.path))
    assert ended.code == 0, ended.err
    laboratory.run(*long, "--runs-dir", str(tmp_path / "whole"))
    assert contents(folder.path) == contents(tmp_path / "whole" / "mlp-sweep-0001")
    assert whole != contents(folder.path)


def test_a_sweep_killed_before_it_was_dealt_out_is_dealt_as_asked(
    laboratory: Laboratory, tmp_path: Path
) -> None:
    whole, ended = undisturbed(laboratory, SWEEP, tmp_path / "runs")
    for number in range(ended.calls["replace"], 0, -1):
        fault = {"fault": "replace", "at": number, "lasting": True}
        laboratory.run(*SWEEP, "--runs-dir", str(tmp_path / "runs"), **fault)
        folder = found(tmp_path / "runs")
        if folder and "stacks" not in RunDirectory(folder).meta():
            break
        for path in (tmp_path / "runs").iterdir():
            path.rename(tmp_path / f"{path.name}-{number}")
    assert folder
    assert laboratory.run("resume", str(folder)).code == 0
    assert RunDirectory(folder).meta()["workers"] == 2
    assert contents(folder) == whole


# -------------------------------------------------------------------------------------- faults


def test_every_call_to_the_disk_can_fail(tmp_path: Path) -> None:
    with directories(tmp_path) as there:
        made = faults(there[-1], [SHORT], all_of_them=False)
    assert [each for each in made if each.lost] == []
    assert {each.code for each in made} == {1, 2}
    assert len(made) > 50
    for name in FAULTS:
        assert any(name in each.what for each in made)


def test_calls_to_the_disk_of_a_sweep_can_fail(laboratory: Laboratory, tmp_path: Path) -> None:
    whole, ended = undisturbed(laboratory, SWEEP, tmp_path / "runs")
    last = ended.calls["write"]
    codes = set()
    for at in (2, last // 2, last - 1, last):
        for lasting in (False, True):
            fault = {"fault": "write", "at": at, "lasting": lasting}
            made = endure(laboratory, SWEEP, tmp_path / "runs", whole, **fault)
            assert not made.lost, made
            codes.add(made.code)
    assert {1, 3} <= codes


def test_a_file_is_flushed_before_it_has_its_name_and_its_name_before_it_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    class Seen:
        def __getattr__(self, name: str) -> Any:
            whole = getattr(os, name)
            if name not in ("write", "fsync", "replace", "link", "mkdir"):
                return whole

            def call(*args: Any) -> Any:
                kind = os.fstat(args[0]).st_mode if name == "fsync" else 0
                seen.append(name + " folder" * stat.S_ISDIR(kind))
                return whole(*args)

            return call

    monkeypatch.setattr(durable, "os", Seen())
    writes: list[tuple[Callable[[], None], str]] = [
        (lambda: durable.replace(tmp_path / "a", b"one"), "write, fsync, replace, fsync folder"),
        (lambda: durable.create(tmp_path / "b", b"one"), "write, fsync, link, fsync folder"),
        (lambda: durable.append(tmp_path / "b", b"two"), "write, fsync"),
        (lambda: durable.make_folder(tmp_path / "c"), "mkdir, fsync folder"),
    ]
    for write, wanted in writes:
        seen.clear()
        write()
        assert ", ".join(seen) == wanted
    assert (tmp_path / "b").read_bytes() == b"onetwo"


# Of these runs config and meta have less than 2,000 bytes, best.pt 28,000 and last.pt 80,000.
@pytest.mark.parametrize("limit", [1_000, 5_000, 30_000, 60_000])
def test_a_limit_on_the_size_of_files(laboratory: Laboratory, limit: int, tmp_path: Path) -> None:
    whole, _ = undisturbed(laboratory, SHORT, tmp_path / "runs")
    made = endure(laboratory, SHORT, tmp_path / "runs", whole, limit=limit)
    assert not made.lost, made
    assert made.code == 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem with room for 160 kB."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=160k", "tmpfs", str(place)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("nothing can be mounted here")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_is_full(laboratory: Laboratory, small_disk: Path, tmp_path: Path) -> None:
    whole, _ = undisturbed(laboratory, TRAIN, tmp_path / "runs")
    ended = laboratory.run(*TRAIN, "--runs-dir", str(small_disk / "runs"))
    assert ended.code == 1
    place = small_disk / "runs" / "mlp-0001"
    lines = ended.err.splitlines()
    assert lines[-2].startswith(f"error: mlp-0001 failed: {place}/")
    assert lines[-2].endswith(": No space left on device")
    assert lines[-1] == f"hint: make room there; go on with: mnist resume {place}"
    assert not strays(small_disk)
    ended = laboratory.run("resume", str(place))
    assert ended.code == 1  # it still is
    assert "No space left on device" in ended.err
    subprocess.run(["mount", "-o", "remount,size=10m", str(small_disk)], check=True)
    assert laboratory.run("resume", str(place)).code == 0
    assert contents(place) == whole


def test_pictures_that_cannot_be_written_are_told_and_not_left_half_done(
    laboratory: Laboratory, tmp_path: Path
) -> None:
    ended = laboratory.run(*SHORT, "--runs-dir", str(tmp_path / "whole"), pictures=True)
    at = ended.calls["write"]  # the last there is
    runs = tmp_path / "runs"
    ended = laboratory.run(
        *SHORT, "--runs-dir", str(runs), pictures=True, fault="write", at=at, lasting=True
    )
    assert ended.code == 0
    assert "warning: the pictures could not be drawn: " in ended.err
    assert list((runs / "mlp-0001" / "plots").iterdir()) == []
    assert RunDirectory(runs / "mlp-0001").meta()["status"] == "finished"


def test_a_copied_config_is_whole_or_not_there(
    mnist: Mnist, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        def __getattr__(self, name: str) -> object:
            return getattr(__import__("os"), name)

        def write(self, handle: int, content: bytes) -> int:
            raise OSError(28, "No space left on device")

    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(durable, "os", Full())
        ended = mnist("config", "copy", "cnn")
    assert ended.code == 2
    assert "error: cnn.yaml: No space left on device" in ended.err
    assert list(tmp_path.iterdir()) == []
    assert mnist("config", "copy", "cnn").code == 0
    before = Path("cnn.yaml").read_bytes()
    ended = mnist("config", "copy", "mlp", "cnn.yaml")
    assert (ended.code, "File exists" in ended.err) == (2, True)
    assert Path("cnn.yaml").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["cnn.yaml"]


def test_a_filesystem_without_links_does_for_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(*_: object) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", link)
    durable.create(tmp_path / "a", b"one")
    with pytest.raises(FileExistsError):
        durable.create(tmp_path / "a", b"two")
    assert (tmp_path / "a").read_bytes() == b"one"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
