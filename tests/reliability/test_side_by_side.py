"""Processes that do not know of each other in one runs directory: none harms what another does."""

import json
import os
import platform
import signal
import tempfile
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from mnist_cli.data import durable
from mnist_cli.runs import checkpoint as checkpoints
from mnist_cli.runs import lock, store
from mnist_cli.runs import run as runs
from mnist_cli.runs.documents import write_json
from mnist_cli.runs.store import RunDirectory
from tests.conftest import Mnist
from tests.reliability.harness import Command, alive, calls, children, dies, until

SMALL = ("data={name: synthetic, size: 140, batch_size: 32}",)
TRAIN = ("train", *SMALL, "--epochs", "3")
LONG = ("train", *SMALL, "--epochs", "100000")
WORKERS = ("--lrs", "1e-2,1e-3", "--fuse", "off", "--workers", "2")
SWEEP = ("sweep", *LONG[1:], *WORKERS)
AT_ONCE = 2.0  # seconds a refusal may take: it waits half a second for whoever only looks


pytestmark = pytest.mark.usefixtures("forked_alone")


def status(folder: Path) -> str:
    return RunDirectory(folder).status()


def begun(folder: Path, epochs: int = 2) -> bool:
    return len(RunDirectory(folder).metrics()) >= epochs


# ------------------------------------------------------------------------------------- creating


def test_many_that_begin_at_the_same_moment_have_folders_of_their_own(tmp_path: Path) -> None:
    gate, count = tmp_path / "gate", 8

    def before() -> None:
        calls(durable, "make_folder", 1, lambda: until(gate.exists))  # all have the same number

    commands = [
        Command(tmp_path, "train", *SMALL, "train.epochs=null", "train.steps=1", before=before)
        for _ in range(count)
    ]
    time.sleep(0.2)
    gate.touch()
    said = [command.wait() for command in commands]
    assert [ended.code for ended in said] == [0] * count, said
    names = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert names == [f"mlp-{number:04d}" for number in range(1, count + 1)]
    assert sorted(ended.out.partition(":")[0] for ended in said) == names
    pids = {RunDirectory(tmp_path / "runs" / name).meta()["pid"] for name in names}
    assert pids == {command.pid for command in commands}
    assert all(checkpoints.load(tmp_path / "runs" / n / "last.pt").step == 1 for n in names)


# ------------------------------------------------------------------------------------- resuming


def refused(command: Command, name: str, holder: Command) -> None:
    """That a command, which was just started, is refused at once, because of another."""
    ended = command.wait(AT_ONCE)
    assert (ended.code, ended.out) == (1, "")
    assert ended.err == (
        f"error: {name} is being trained by process {holder.pid} on {platform.node()}\n"
        "hint: wait until it ends, or end it\n"
    )


def goes_on(folder: Path) -> None:
    """Waits until a run has made two more epochs."""
    epochs = len(RunDirectory(folder).metrics())
    until(lambda: begun(folder, epochs + 2))


@pytest.mark.parametrize("argv", [LONG, SWEEP], ids=["train", "workers"])
def test_a_run_that_is_being_trained_is_not_resumed(argv: tuple[str, ...], tmp_path: Path) -> None:
    holder = Command(tmp_path, *argv)
    name = "mlp-0001" if argv is LONG else "mlp-sweep-0001"
    folder = tmp_path / "runs" / name
    one = folder if argv is LONG else folder / "trials" / "000"
    until(lambda: begun(one))
    before = (folder / "meta.json").read_bytes()
    refused(Command(tmp_path, "resume", name), name, holder)
    assert (folder / "meta.json").read_bytes() == before
    goes_on(one)


def test_of_two_that_resume_a_run_one_does(tmp_path: Path) -> None:
    stopped = Command(tmp_path, *LONG)
    folder = tmp_path / "runs" / "mlp-0001"
    until(lambda: begun(folder))
    stopped.kill()
    pair = [Command(tmp_path, "resume", "mlp-0001") for _ in range(2)]
    until(lambda: not all(command.running() for command in pair), AT_ONCE)
    loser, winner = sorted(pair, key=Command.running)
    refused(loser, "mlp-0001", winner)
    goes_on(folder)
    assert status(folder) == "running"
    assert RunDirectory(folder).meta()["pid"] == winner.pid


# --------------------------------------------------------------------------------- killed holders


def test_who_was_killed_keeps_nobody_from_its_run(mnist: Mnist, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "mlp-0001"
    command = Command(tmp_path, *LONG)
    until(lambda: begun(folder))
    assert status(folder) == "running"
    assert "resume" not in mnist("runs", "show", "mlp-0001").out
    command.kill()
    assert status(folder) == "dead"
    (row,) = mnist("runs", "list", "--json").json
    assert row["status"] == "dead"
    assert " dead " in mnist("runs", "list").out
    page = mnist("runs", "show", "mlp-0001").out
    assert "status   dead\n" in page
    assert page.splitlines()[-1].split(":")[1].strip() == "mnist resume mlp-0001"
    again = Command(tmp_path, "resume", "mlp-0001")
    goes_on(folder)
    assert (again.running(), status(folder)) == (True, "running")


def test_the_line_to_resume_a_run_elsewhere_names_its_folder(mnist: Mnist, tmp_path: Path) -> None:
    elsewhere = str(tmp_path / "else where")

    def before() -> None:
        calls(checkpoints, "save", 3, dies)

    command = Command(tmp_path, *TRAIN, "--runs-dir", elsewhere, before=before)
    until(lambda: not command.running())
    page = mnist("runs", "show", "mlp-0001", "--runs-dir", elsewhere).out
    assert page.splitlines()[-1].endswith(f"mnist resume '{elsewhere}/mlp-0001'")
    assert mnist("resume", f"{elsewhere}/mlp-0001").code == 0


@pytest.mark.parametrize("stopped", [False, True], ids=["busy", "stopped"])
def test_no_worker_outlives_its_parent_for_long_and_none_writes(
    stopped: bool, mnist: Mnist, tmp_path: Path
) -> None:
    """They may be alive when it is resumed."""
    command = Command(tmp_path, *SWEEP)
    folder = tmp_path / "runs" / "mlp-sweep-0001"
    until(lambda: begun(folder / "trials/000") and begun(folder / "trials/001"))
    workers = list(children(command.pid))
    assert len(workers) == 2
    assert {trial.meta()["pid"] for trial in RunDirectory(folder).trials()} == {command.pid}
    for pid in workers if stopped else ():
        os.kill(pid, signal.SIGSTOP)
    command.kill()
    assert (status(folder), status(folder / "trials" / "000")) == ("dead", "dead")
    page = mnist("runs", "show", "mlp-sweep-0001/trials/001").out
    assert page.rstrip().endswith("mnist resume mlp-sweep-0001")  # the whole of it goes on
    again = Command(tmp_path, "resume", "mlp-sweep-0001")
    goes_on(folder / "trials/001")
    for pid in workers if stopped else ():
        # A kernel continues and hangs up a stopped group that has nobody left to continue it.
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
    until(lambda: not any(map(alive, workers)), 2, "a worker goes on")
    goes_on(folder / "trials/001")
    assert again.running(), again.err


# ------------------------------------------------------------------------------------ looking on


def test_who_looks_on_sees_nothing_torn(mnist: Mnist, tmp_path: Path) -> None:
    """Whatever is polled at any moment is whole and agrees with itself."""
    command = Command(tmp_path, "sweep", *SMALL, *WORKERS, "--epochs", "40")
    one, most = "mlp-sweep-0001/trials/001", 0
    seen = {"running"}
    while command.running():
        rows = mnist("runs", "list", "--json")
        assert (rows.code, rows.err) == (0, "")
        for row in rows.json:
            seen.add(row["status"])
            assert row["status"] != "finished" or (row["best"]["val/acc"] and row["checkpoint"])
        if (tmp_path / "runs" / one / "config.yaml").exists():
            page = mnist("runs", "show", one, "--json").json
            epochs = [record["epoch"] for record in page["metrics"]]
            assert epochs == list(range(1, len(epochs) + 1))
            assert len(epochs) >= most  # it only grows
            most = len(epochs)
            assert page["meta"]["status"] != "finished" or page["summary"]["epochs"] == most == 40
            assert mnist("runs", "show", one).code == 0
    assert command.wait().code == 0
    assert seen <= {"waiting", "running", "finished"}, seen  # never dead
    assert status(tmp_path / "runs" / "mlp-sweep-0001") == "finished"


def test_a_run_that_ends_while_it_is_looked_at_is_not_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was running when its status was read, and had let go when its lock was tried."""
    folder = store.create(tmp_path / "runs", "mlp")
    (folder.path / "meta.json").write_text('{"status": "running"}')

    def ends(_: Path) -> bool:
        (folder.path / "meta.json").write_text('{"status": "finished"}')
        return False

    monkeypatch.setattr(lock, "is_held", ends)
    assert folder.status() == "finished"


def test_who_may_not_write_sees_whether_a_run_is_trained_and_keeps_nobody_from_it() -> None:
    """Many ask at once, and asking is not holding."""

    def other_user() -> None:
        if os.getuid() == 0:
            os.setuid(65534)

    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        folder = store.create(Path(place), "mlp")
        (folder.path / "config.yaml").write_text("{}")
        write_json(folder.path / "meta.json", {"status": "running"})
        argv = ("runs", "list", "--json", "--runs-dir", place)
        look = partial(Command, folder.path, *argv, before=other_user)
        with runs.hold(folder):
            assert [row["status"] for row in look().wait().json] == ["running"]
        readers = [look() for _ in range(4)]
        while any(reader.running() for reader in readers):
            with runs.hold(folder):
                time.sleep(0.001)
            time.sleep(0.02)
        assert {reader.wait().code for reader in readers} == {0}
        assert [row["status"] for row in look().wait().json] == ["dead"]


def test_who_says_that_it_ended_has_said_how(mnist: Mnist, monkeypatch: pytest.MonkeyPatch) -> None:
    said, write = [], durable.replace

    def spy(path: Path, content: bytes) -> None:
        if path.name == "meta.json" and json.loads(content)["status"] == "finished":
            folder = RunDirectory(path.parent)
            said.append((folder.name, folder.summary().get("status")))
        write(path, content)

    monkeypatch.setattr(durable, "replace", spy)
    assert mnist("sweep", *TRAIN[1:], "--lrs", "1e-2").code == 0
    assert {status for _, status in said} == {"finished"}
    assert len({name for name, _ in said}) == 2  # the sweep and its run
