"""The runs directory: run and sweep folders, their files, and reading them back.

A folder is the whole of a run: what it was asked, where it ran, what was measured, its weights.
"""

import functools
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from mnist_cli import __version__
from mnist_cli.data import durable
from mnist_cli.errors import RunError, UsageError
from mnist_cli.runs import interrupts

RECORD = {"epoch", "lr", "train/loss", "train/acc", "val/loss", "val/acc"}  # what all epochs have
SCHEMA = 1  # of meta.json and summary.json
META_KINDS = {"status": str, "versions": dict, "resumed": list, "error": str, "workers": int}
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")  # of a folder, without its number
Status = Literal["waiting", "running", "finished", "diverged", "failed", "interrupted", "imported"]


def runs_root(given: Path | None) -> Path:
    """The runs directory: the one given, else `$MNIST_RUNS_DIR`, else `./runs`."""
    return given or Path(os.environ.get("MNIST_RUNS_DIR") or "runs")


@dataclass(frozen=True)
class RunDirectory:
    """The folder of one run, for writing while it goes on and for reading at any time.

    Attributes:
        path: the folder.
    """

    path: Path

    @property
    def name(self) -> str:
        """What the run is called: its folder, after that of its sweep if it is part of one."""
        if self.path.parent.name == "trials":
            return "/".join(self.path.parts[-3:])
        return self.path.name

    @property
    def best(self) -> Path:
        """The checkpoint of the best epoch so far."""
        return self.path / "best.pt"

    @property
    def last(self) -> Path:
        """The checkpoint of the last finished epoch, with what continuing needs."""
        return self.path / "last.pt"

    @property
    def plots(self) -> Path:
        """Where its pictures are.

        Raises:
            UsageError: it is a link.
        """
        return _no_link(self.path / "plots")

    def write_config(self, text: str, name: str = "config.yaml") -> None:
        """Saves the resolved config."""
        durable.replace(self.path / name, text.encode())

    def write_meta(self, meta: Mapping[str, Any]) -> None:
        """Saves where and how the run goes on, in place of what was said before."""
        durable.replace(self.path / "meta.json", _json(meta))

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Saves what came of it."""
        durable.replace(self.path / "summary.json", _json(summary))

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Adds one epoch's record; what is not finite becomes null, which JSON can say.

        Raises:
            UsageError: the file is a link.
        """
        durable.append(_no_link(self.path / "metrics.jsonl"), _line(record))

    def write_metrics(self, records: Sequence[Mapping[str, Any]]) -> str:
        """Makes the file of metrics hold exactly these records: what was cut off or is more goes.

        Returns:
            What was wrong with it, in words; empty if nothing was.

        Raises:
            UsageError: the file is a link.
        """
        path = _no_link(self.path / "metrics.jsonl")
        found = path.read_bytes() if path.is_file() else b""
        wanted = b"".join(_line(record) for record in records)
        if found == wanted:
            return ""
        durable.replace(path, wanted)
        if not found.startswith(wanted):
            return "lines were missing or damaged"
        extra = found[len(wanted) :].count(b"\n")
        if not extra:
            return "the last line was torn"
        return f"{extra} epoch{'s' * (extra != 1)} had not been committed"

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Keeps every other process from training this run; the system lets go if this one dies.

        What a killed process left half-written in the folder is removed. A run that has not ended
        says from then on who trains it.

        Raises:
            RunError: another process has it.
            OSError: nothing can be written there.
        """
        lock = FileLock(self.path / ".lock")
        try:
            # Not at once: whoever asks whether it is held has it for a moment.
            lock.acquire(timeout=0.5)
        except Timeout:
            meta = self.meta()
            who = f"process {meta.get('pid', 'unknown')} on {meta.get('host', 'another machine')}"
            raise RunError(
                f"{self.name} is being trained by {who}", "wait until it ends, or end it"
            ) from None
        try:
            durable.clear(self.path)
            meta = self.meta()
            if meta.get("status") in ("running", "waiting", "interrupted", "failed"):
                self.write_meta(meta | _who())
            yield
        finally:
            lock.release()

    def status(self) -> str:
        """How the run goes on, as it says; `dead` if it says that it does and nobody trains it."""
        told = self._told()
        if told not in ("running", "waiting") or self.owner._is_held():
            return told
        again = self._told()  # it may have ended before it was let go
        return "dead" if again in ("running", "waiting") else again

    def _told(self) -> str:
        return str(self.meta().get("status", "unknown"))

    @property
    def owner(self) -> "RunDirectory":
        """The folder that is trained and resumed as a whole: that of the sweep, for a trial."""
        is_trial = self.path.parent.name == "trials"
        return RunDirectory(self.path.parents[1]) if is_trial else self

    def _is_held(self) -> bool:
        path = self.path / ".lock"
        if not path.is_file():
            return False
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except (Timeout, OSError):
            return True
        lock.release()
        return False

    def interrupt(self) -> None:
        """Says of everything in it that has not ended that it was interrupted; held by the caller.

        A folder that had not become a run yet goes.
        """
        with interrupts.held():
            if not _is_run(self.path):
                shutil.rmtree(self.path, ignore_errors=True)
            for run in (*self.trials(), self):
                if (meta := run.meta()).get("status") in ("running", "waiting"):
                    run.write_meta(meta | {"status": "interrupted", "ended": now()})

    @property
    def config_path(self) -> Path:
        """The file with the resolved config."""
        return self.path / ("sweep.yaml" if self.is_sweep else "config.yaml")

    def config_text(self) -> str:
        """The resolved config.

        Raises:
            UsageError: the folder has none.
        """
        try:
            return self.config_path.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{self.config_path}: cannot be read: {error}") from error

    def meta(self) -> dict[str, Any]:
        """What `write_meta` saved, less what cannot be meant; empty when there is none to read."""
        found = _read_json(self.path / "meta.json")
        sound = {k: v for k, v in found.items() if isinstance(v, META_KINDS.get(k, object))}
        return {**sound, "versions": sound.get("versions", {})} if sound else {}

    def summary(self) -> dict[str, Any]:
        """What `write_summary` saved, with the folder's own name and place; empty without one.

        A folder may have been copied or renamed since, and a file damaged.
        """
        summary = _read_json(self.path / "summary.json")
        best, trials = summary.get("best"), summary.get("trials", [])
        sound = isinstance(trials, list) and all(
            isinstance(trial, dict) and {"run", "status", "val/loss", "val/acc"} <= trial.keys()
            for trial in trials
        )
        if not summary or not sound or not isinstance(best, dict | None):
            return {}
        if not all(map(_has_numbers, (summary, best or {}, *trials))):
            return {}
        summary["sweep" if self.is_sweep else "run"] = self.name
        summary["checkpoint"] = str(self.best) if self.best.exists() else None
        for index, trial in enumerate(trials):
            trial["run"] = self.trial(index).name
        if best and "run" in best:
            best["run"] = f"{self.name}/trials/{Path(str(best['run'])).name}"
        return summary

    def metrics(self) -> list[dict[str, Any]]:
        """One record per epoch; a last line that was cut off is not one.

        Raises:
            UsageError: a line before the last is damaged.
        """
        path = self.path / "metrics.jsonl"
        try:
            lines = path.read_bytes().split(b"\n")[:-1] if path.is_file() else []
        except OSError:
            return []
        records = []
        for number, line in enumerate(lines, 1):
            try:
                record = json.loads(line)
            except ValueError:
                record = None
            if not isinstance(record, dict) or not record.keys() >= RECORD:
                raise UsageError(f"{path}: line {number} is not the record of an epoch")
            records.append(record)
        return records

    @property
    def is_sweep(self) -> bool:
        """Whether this is the folder of a sweep, whose runs are in `trials/`."""
        return (self.path / "sweep.yaml").is_file()

    def trial(self, index: int) -> "RunDirectory":
        """One run of a sweep, by its place in the order asked for."""
        return RunDirectory(self.path / "trials" / f"{index:03d}")

    def trials(self) -> "list[RunDirectory]":
        """The runs of a sweep whose folders are there, in the order asked for."""
        found = [RunDirectory(path) for path in (self.path / "trials").glob("*") if _is_run(path)]
        return sorted(found, key=lambda run: (len(run.path.name), run.path.name))


def create(root: Path, name: str) -> RunDirectory:
    """A new folder `<name>-<number>` in the runs directory, the number above all there are.

    `mkdir` decides who gets a number, so two that ask at once get two folders.

    Raises:
        UsageError: it is no name, or the runs directory cannot be made or written to.
    """
    if not NAME.fullmatch(name):
        hint = "a name starts with a letter or digit and goes on with those, '-' and '_'"
        raise UsageError(f"{name[:100]!r} cannot be the name of a run", hint)
    try:
        root.mkdir(parents=True, exist_ok=True)
        number = max(_numbers(root, name), default=0)
        while True:
            number += 1
            path = root / f"{name}-{number:04d}"
            try:
                durable.make_folder(path)
            except FileExistsError:
                continue
            durable.make_folder(path / "plots")
            return RunDirectory(path)
    except OSError as error:
        raise UsageError(
            f"cannot make a run in {root}: {error.strerror}",
            "choose another place with --runs-dir or $MNIST_RUNS_DIR",
        ) from error


def create_trial(sweep: RunDirectory, index: int) -> RunDirectory:
    """Makes the folder of one run of a sweep, unless it is there."""
    trial = sweep.trial(index)
    for folder in (trial.path.parent, trial.path):
        if not folder.is_dir():
            durable.make_folder(folder)
    return trial


def all_runs(root: Path) -> list[RunDirectory]:
    """Every run and sweep in the runs directory, oldest first; links that lead out of it are none.

    Raises:
        UsageError: the runs directory cannot be read.
    """
    try:
        found = [path for path in root.iterdir() if _is_run(path) and _is_inside(path, root)]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UsageError(f"the runs in {root} cannot be read: {error.strerror}") from error
    return [RunDirectory(path) for path in sorted(found, key=lambda p: (_started(p), p.name))]


def find(root: Path, name: str) -> RunDirectory:
    """A run by its name in the runs directory, or by its path.

    Raises:
        UsageError: there is none, naming the nearest; or the name is a link out of that directory.
    """
    if not name.strip():
        raise UsageError("the name of a run is missing", "`mnist runs list` shows what there is")
    path = Path(name)
    if not path.is_absolute() and ".." not in path.parts and _is_run(root / path):
        if not _is_inside(root / path, root):
            hint = f"if it is meant, give the folder itself: {(root / path).resolve()}"
            raise UsageError(f"{root / path} is a link that leads out of the runs directory", hint)
        return RunDirectory(root / path)
    if _is_run(path):
        return RunDirectory(path)
    if _is_run(path, "meta.json", "last.pt"):
        raise UsageError(
            f"{path} has no config.yaml: it ended before it began, or lost it",
            "start it again with mnist train or mnist sweep",
        )
    import difflib  # noqa: PLC0415 - only an error needs it

    known = [run.path.name for run in all_runs(root)]
    near = difflib.get_close_matches(name, known, n=3)
    hint = f"did you mean {', '.join(near)}?" if near else "`mnist runs list` shows what there is"
    raise UsageError(f"no run {name!r} in {root}", hint)


def newest_checkpoint(root: Path, file_name: str) -> Path | None:
    """That file of the newest run or sweep that has it."""
    for run in reversed(all_runs(root)):
        if (run.path / file_name).is_file():
            return run.path / file_name
    return None


def new_meta(**more: Any) -> dict[str, Any]:
    """What a run tells about itself when it starts: no environment, no secrets."""
    return {
        "schema": SCHEMA,
        "status": "running",
        "started": now(),
        "argv": sys.argv[1:],
        **_who(),
        "git": _git_commit(),
        "versions": {"mnist": __version__, "python": platform.python_version()},
        **more,
    }


def _who() -> dict[str, Any]:
    return {"pid": os.getpid(), "host": platform.node()}


def now() -> str:
    """The time, as ISO 8601 in UTC, to the microsecond."""
    return datetime.now(UTC).isoformat()


def finite(value: Any) -> Any:
    """The same value with null for every number that JSON cannot say."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):  # noqa: PLR0124
        return None
    return value


def _line(record: Mapping[str, Any]) -> bytes:
    return json.dumps(finite(record)).encode() + b"\n"


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(finite(value), indent=2).encode() + b"\n"


def _has_numbers(figures: Mapping[str, Any]) -> bool:
    """Whether what should be numbers are some, or null."""
    keys = (key for key in figures if key in ("epoch", "epochs", "seconds") or "/" in key)
    return all(isinstance(figures[key], int | float | None) for key in keys)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text()) if path.is_file() else {}  # a pipe would block
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _is_run(path: Path, *names: str) -> bool:
    """Whether a folder has the file that makes it a run, or one of others."""
    try:
        return any((path / name).is_file() for name in names or ("config.yaml", "sweep.yaml"))
    except (OSError, ValueError):  # a name that is too long, say, or a folder that is not ours
        return False


def _is_inside(path: Path, root: Path) -> bool:
    """Whether a path lies in a directory, wherever links lead."""
    return path.resolve().is_relative_to(root.resolve())


def _no_link(path: Path) -> Path:
    """The same path, which is about to be written to: through a link that could be anywhere."""
    if path.is_symlink():
        raise UsageError(f"{path} is a link, through which nothing is written", "remove the link")
    return path


def _numbers(root: Path, name: str) -> Iterator[int]:
    pattern = re.compile(re.escape(name) + r"-(\d{4,})")
    for entry in root.iterdir():
        if match := pattern.fullmatch(entry.name):
            yield int(match[1])


def _started(path: Path) -> str:
    """When a run began; one that cannot say so counts as the oldest."""
    return str(_read_json(path / "meta.json").get("started", ""))


@functools.cache  # every run of a sweep asks, and one process is started where one will do
def _git_commit() -> str | None:
    """The commit of the working directory's repository, `+` after it if files differ; else None."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+"],  # noqa: S607
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip() or None
