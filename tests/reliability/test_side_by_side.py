"""Processes that do not know of each other in one runs directory: none harms what another does."""

import json
import os
import platform
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mnist_cli.data import durable
from mnist_cli.runs import checkpoint as checkpoints
from mnist_cli.runs import lock, store
from mnist_cli.runs import run as runs
from mnist_cli.runs.datasets import Datasets
from mnist_cli.runs.store import RunDirectory
from mnist_cli.sweeps import executors
from mnist_cli.sweeps.jobs import Event, StackJob, train_stack
from tests.conftest import Ended, Mnist
from tests.reliability.harness import Command, alive, calls, children, dies, until

SMALL = ("data={name: synthetic, size: 140, batch_size: 32}",)
TRAIN = ("train", *SMALL, "--epochs", "3")
LONG = ("train", *SMALL, "--epochs", "100000")
WORKERS = ("--lrs", "1e-2,1e-3", "--fuse", "off", "--workers", "2")
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


def refused(ended: Ended, seconds: float, name: str, holder: Command) -> None:
    assert ended.code == 1
    assert ended.err == (
        f"error: {name} is being trained by process {holder.pid} on {platform.node()}\n"
        "hint: wait until it ends, or end it\n"
    )
    assert ended.out == ""
    assert seconds < AT_ONCE


def resume(tmp_path: Path, name: str) -> tuple[Ended, float]:
    began = time.monotonic()
    ended = Command(tmp_path, "resume", name).wait()
    return ended, time.monotonic() - began


@pytest.mark.parametrize("argv", [LONG, ("sweep", *LONG[1:], *WORKERS)], ids=["train", "workers"])
def test_a_run_that_is_being_trained_is_not_resumed(argv: tuple[str, ...], tmp_path: Path) -> None:
    holder = Command(tmp_path, *argv)
    name = "mlp-0001" if argv is LONG else "mlp-sweep-0001"
    folder = tmp_path / "runs" / name
    one = folder if argv is LONG else folder / "trials" / "000"
    until(lambda: begun(one))
    before = (folder / "meta.json").read_bytes()
    refused(*resume(tmp_path, name), name, holder)
    assert (folder / "meta.json").read_bytes() == before
    epochs = len(RunDirectory(one).metrics())
    until(lambda: begun(one, epochs + 2))  # it was not disturbed
    os.kill(holder.pid, signal.SIGTERM)
    assert holder.wait().code == 143


def test_of_two_that_resume_a_run_one_does(tmp_path: Path) -> None:
    stopped = Command(tmp_path, *LONG)
    folder = tmp_path / "runs" / "mlp-0001"
    until(lambda: begun(folder))
    os.kill(stopped.pid, signal.SIGINT)
    assert stopped.wait().code == 130
    pair = [Command(tmp_path, "resume", "mlp-0001") for _ in range(2)]
    began = time.monotonic()
    until(lambda: not all(command.running() for command in pair))
    seconds = time.monotonic() - began
    (loser,) = (command for command in pair if not command.running())
    (winner,) = (command for command in pair if command.running())
    refused(loser.wait(), seconds, "mlp-0001", winner)
    epochs = len(RunDirectory(folder).metrics())
    until(lambda: begun(folder, epochs + 2))
    assert status(folder) == "running"
    assert RunDirectory(folder).meta()["pid"] == winner.pid
    os.kill(winner.pid, signal.SIGINT)
    assert winner.wait().code == 130


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
    epochs = len(RunDirectory(folder).metrics())
    until(lambda: begun(folder, epochs + 2))
    assert status(folder) == "running"
    again.kill()


def test_the_line_to_resume_a_run_elsewhere_names_its_folder(mnist: Mnist, tmp_path: Path) -> None:
    elsewhere = str(tmp_path / "else where")

    def before() -> None:
        calls(checkpoints, "save", 3, dies)

    command = Command(tmp_path, *TRAIN, "--runs-dir", elsewhere, before=before)
    until(lambda: not command.running())
    page = mnist("runs", "show", "mlp-0001", "--runs-dir", elsewhere).out
    assert page.splitlines()[-1].endswith(f"mnist resume '{elsewhere}/mlp-0001'")
    assert mnist("resume", f"{elsewhere}/mlp-0001").code == 0


def test_no_worker_outlives_its_parent(mnist: Mnist, tmp_path: Path) -> None:
    command = Command(tmp_path, "sweep", *SMALL, "--epochs", "100000", *WORKERS)
    folder = tmp_path / "runs" / "mlp-sweep-0001"
    until(lambda: begun(folder / "trials/000") and begun(folder / "trials/001"))
    workers = list(children(command.pid))
    assert len(workers) == 2
    assert {trial.meta()["pid"] for trial in RunDirectory(folder).trials()} == {command.pid}
    command.kill()
    until(lambda: not any(map(alive, workers)), 2, "a worker goes on")
    assert status(folder) == "dead"
    assert status(folder / "trials" / "000") == "dead"
    page = mnist("runs", "show", "mlp-sweep-0001/trials/001").out
    assert page.rstrip().endswith("mnist resume mlp-sweep-0001")  # the whole of it goes on
    again = Command(tmp_path, "resume", "mlp-sweep-0001")
    epochs = len(RunDirectory(folder / "trials/001").metrics())
    until(lambda: begun(folder / "trials/001", epochs + 2))
    again.kill()


@pytest.mark.parametrize("stopped", [False, True], ids=["busy", "stopped"])
def test_the_workers_of_a_killed_command_change_nothing(stopped: bool, tmp_path: Path) -> None:
    """They may be alive when it is resumed, but they never write."""
    command = Command(tmp_path, "sweep", *SMALL, "--epochs", "100000", *WORKERS)
    folder = tmp_path / "runs" / "mlp-sweep-0001"
    until(lambda: begun(folder / "trials/000") and begun(folder / "trials/001"))
    workers = list(children(command.pid))
    for pid in workers if stopped else ():
        os.kill(pid, signal.SIGSTOP)
    command.kill()
    again = Command(tmp_path, "resume", "mlp-sweep-0001")
    epochs = len(RunDirectory(folder / "trials/001").metrics())
    until(lambda: begun(folder / "trials/001", epochs + 2) or not again.running())
    for pid in workers if stopped else ():
        os.kill(pid, signal.SIGCONT)
    until(lambda: not any(map(alive, workers)), 2, "a worker goes on")
    more = len(RunDirectory(folder / "trials/001").metrics())
    until(lambda: begun(folder / "trials/001", more + 2) or not again.running())
    assert again.running(), again.err
    again.kill()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("at", [1, 2], ids=["first epoch", "second epoch"])
def test_a_killed_worker_fails_its_own_runs_only(
    at: int, number: signal.Signals, mnist: Mnist, tmp_path: Path
) -> None:
    def before() -> None:
        def dies(job: StackJob, datasets: Datasets) -> Iterator[Event]:
            for number_of_event, event in enumerate(whole(job, datasets)):
                if job.configs[0].optimizer.lr == 1e-3 and number_of_event == at:
                    os.kill(os.getpid(), number)
                yield event

        whole = train_stack
        vars(executors)["train_stack"] = dies

    victim = tmp_path / "runs" / "mlp-sweep-0001" / "trials" / "001"
    lrs = ("--lrs", "1e-2,1e-3,1e-4", "--fuse", "off", "--workers", "2")
    command = Command(tmp_path, "sweep", *SMALL, "--epochs", "3", *lrs, "--json", before=before)
    ended = command.wait()
    assert ended.code == 3
    trials = ended.json["trials"]
    assert [trial["status"] for trial in trials] == ["finished", "failed", "finished"]
    assert ended.json["status"] == "failed"
    assert ended.json["best"]["run"] != trials[1]["run"]
    assert "error: 1 of 3 runs failed: mlp-sweep-0001/trials/001\n" in ended.err
    meta = RunDirectory(victim).meta()
    assert meta["status"] == "failed"
    why = "killed (SIGKILL)" if number == signal.SIGKILL else "ended with exit code 143"
    assert why in meta["error"]
    assert mnist("resume", "mlp-sweep-0001").code == 0
    assert {trial.status() for trial in RunDirectory(victim.parents[1]).trials()} == {"finished"}


# ------------------------------------------------------------------------------------ looking on


@pytest.mark.parametrize("argv", [("train",), ("sweep", *WORKERS)], ids=["train", "workers"])
def test_who_looks_on_sees_nothing_torn(
    argv: tuple[str, ...], mnist: Mnist, tmp_path: Path
) -> None:
    """Whatever is polled at any moment is whole and agrees with itself."""
    command = Command(tmp_path, *argv, *SMALL, "--epochs", "40")
    name = "mlp-0001" if argv == ("train",) else "mlp-sweep-0001"
    seen: list[str] = []
    most = 0
    while command.running():
        rows = mnist("runs", "list", "--json")
        assert (rows.code, rows.err) == (0, "")
        for row in rows.json:
            seen.append(row["status"])
            assert row["name"] == name
            if row["status"] == "finished":
                assert row["best"]["val/acc"] > 0
                assert row["checkpoint"]
        if not rows.json:
            continue
        one = name if argv == ("train",) else f"{name}/trials/001"
        if not (tmp_path / "runs" / one / "config.yaml").exists():
            continue
        page = mnist("runs", "show", one, "--json")
        assert (page.code, page.err) == (0, "")
        epochs = [record["epoch"] for record in page.json["metrics"]]
        assert epochs == list(range(1, len(epochs) + 1))
        assert len(epochs) >= most  # it only grows
        most = len(epochs)
        if page.json["meta"]["status"] == "finished":
            assert page.json["summary"]["epochs"] == most == 40
        assert mnist("runs", "show", one).code == 0
    assert command.wait().code == 0
    assert set(seen) <= {"waiting", "running", "finished"}, seen  # never dead, never unknown
    assert "running" in seen
    assert most > 0
    assert mnist("runs", "list", "--json").json[0]["status"] == "finished"


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


def test_who_may_not_write_sees_that_a_run_is_dead_and_who_trains_is_not_kept_out() -> None:
    """Many ask at once, and asking is not holding: each time it can be gone on with."""
    place = Path(tempfile.mkdtemp())
    place.chmod(0o755)
    runs_dir = ("--runs-dir", str(place / "runs"))
    command = Command(place, *LONG, *runs_dir)
    until(lambda: begun(place / "runs" / "mlp-0001"))
    command.kill()

    def looks() -> None:
        if os.getuid() == 0:
            os.setuid(65534)

    folder = RunDirectory(place / "runs" / "mlp-0001")
    try:
        readers = [
            Command(place, "runs", "list", "--json", *runs_dir, before=looks) for _ in range(4)
        ]
        while any(reader.running() for reader in readers):
            with runs.hold(folder):
                time.sleep(0.001)
            time.sleep(0.02)
        said = [reader.wait() for reader in readers]
        assert {ended.code for ended in said} == {0}, said
        last = Command(place, "runs", "list", "--json", *runs_dir, before=looks).wait()
        assert [row["status"] for row in last.json] == ["dead"]
    finally:
        shutil.rmtree(place)


@pytest.mark.parametrize(
    "argv", [TRAIN, ("sweep", *TRAIN[1:], "--lrs", "1e-2")], ids=["run", "sweep"]
)
def test_who_says_that_it_ended_has_said_how(
    argv: tuple[str, ...], mnist: Mnist, monkeypatch: pytest.MonkeyPatch
) -> None:
    told, write = [], durable.replace

    def spy(path: Path, content: bytes) -> None:
        if path.name == "meta.json" and json.loads(content)["status"] == "finished":
            folder = RunDirectory(path.parent)
            told.append((folder.name, folder.summary().get("status")))
        write(path, content)

    monkeypatch.setattr(durable, "replace", spy)
    assert mnist(*argv).code == 0
    assert {status for _, status in told} == {"finished"}
    assert len({name for name, _ in told}) == (1 if argv is TRAIN else 2)


def test_who_only_looks_keeps_nobody_from_training(tmp_path: Path) -> None:
    stopped = Command(tmp_path, *LONG)
    folder = RunDirectory(tmp_path / "runs" / "mlp-0001")
    until(lambda: begun(folder.path))
    stopped.kill()
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            folder.status()
            time.sleep(0.001)

    threads = [threading.Thread(target=look) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(10):
            with runs.hold(folder):
                pass
    finally:
        over.set()
        for thread in threads:
            thread.join()


def test_a_holder_says_who_it_is_from_the_first_moment(tmp_path: Path) -> None:
    folder = store.create(tmp_path / "runs", "mlp")
    meta: dict[str, Any] = {"status": "interrupted", "pid": 1, "host": "elsewhere"}

    def write(document: dict[str, Any]) -> None:
        runs.write_json(folder.path / "meta.json", document)

    write(meta)
    with runs.hold(folder):
        told = json.loads((folder.path / "meta.json").read_text())
        assert (told["pid"], told["host"]) == (os.getpid(), platform.node())
        assert told["status"] == "interrupted"
    write(meta | {"status": "finished"})
    with runs.hold(folder):  # of what has ended it stays written who trained it
        assert folder.meta()["pid"] == 1
