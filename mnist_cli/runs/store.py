"""The runs directory: run and sweep folders, where their files are, and reading them back.

A folder is the whole of a run: what it was asked, where it ran, what was measured, its weights.
Nothing here changes a run: `runs.run`, `sweeps.sweep` and `runs.manage` write.
"""

import difflib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import Timeout

from mnist_cli import config as configs
from mnist_cli.config import Config
from mnist_cli.config.presets import read
from mnist_cli.data import durable
from mnist_cli.errors import RunError, UsageError
from mnist_cli.runs import lock
from mnist_cli.runs.documents import Meta, Summary, read_json, write_json
from mnist_cli.runs.metrics import read_records

if TYPE_CHECKING:
    from mnist_cli.engine.loop import Record

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")  # of a folder, without its number
CHECKPOINTS = ("best.pt", "last.pt")


def runs_root(given: Path | None) -> Path:
    """The runs directory: the one given, else `$MNIST_RUNS_DIR`, else `./runs`."""
    return given or Path(os.environ.get("MNIST_RUNS_DIR") or "runs")


@dataclass(frozen=True)
class RunDirectory:
    """The folder of a run or a sweep, read at any time, also while it is being trained.

    Attributes:
        path: the folder.
    """

    path: Path

    @property
    def name(self) -> str:
        """What the run is called: its folder, after that of its sweep if it is part of one."""
        return "/".join(self.path.parts[-3:]) if self.is_trial else self.path.name

    @property
    def best(self) -> Path:
        """The checkpoint of the best epoch so far."""
        return self.path / "best.pt"

    @property
    def last(self) -> Path:
        """The checkpoint of the last committed epoch, with what continuing needs."""
        return self.path / "last.pt"

    @property
    def metrics_path(self) -> Path:
        """One JSON object per epoch, one on each line."""
        return self.path / "metrics.jsonl"

    @property
    def plots(self) -> Path:
        """Where its plots are.

        Raises:
            UsageError: it is a link.
        """
        return refuse_link(self.path / "plots")

    @property
    def is_sweep(self) -> bool:
        """Whether this is the folder of a sweep, whose runs are in `trials/`."""
        return (self.path / "sweep.yaml").is_file()

    @property
    def is_trial(self) -> bool:
        """Whether this is the folder of one run of a sweep."""
        return self.path.parent.name == "trials"

    @property
    def owner(self) -> "RunDirectory":
        """The folder that is trained and resumed as a whole: that of the sweep, for a trial."""
        return RunDirectory(self.path.parents[1]) if self.is_trial else self

    def trial(self, index: int) -> "RunDirectory":
        """One run of a sweep, by its place in the order asked for."""
        return RunDirectory(self.path / "trials" / f"{index:03d}")

    def trials(self) -> "list[RunDirectory]":
        """The runs of a sweep whose folders are there, in the order asked for."""
        found = [RunDirectory(path) for path in (self.path / "trials").glob("*") if _is_run(path)]
        return sorted(found, key=lambda run: (len(run.path.name), run.path.name))

    @property
    def config_path(self) -> Path:
        """The file with the resolved config."""
        return self.path / ("sweep.yaml" if self.is_sweep else "config.yaml")

    def config(self) -> Config:
        """The resolved config.

        Raises:
            ConfigError: something in it is wrong.
            UsageError: the folder has none.
        """
        try:
            text = self.config_path.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{self.config_path}: cannot be read: {error}") from error
        return configs.load_text(text, str(self.config_path))

    def saved_config(self) -> dict[str, Any]:
        """The sections of the resolved config, unchecked; empty when it cannot be read."""
        try:
            return configs.read_dumped(read(self.config_path, self.config_path.name))
        except UsageError:
            return {}

    def meta(self) -> Meta:
        """How the run goes on, where and by whom; empty when there is none to read."""
        return read_json(Meta, self.path / "meta.json") or {}

    def write_meta(self, meta: Meta) -> None:
        """Says how the run goes on, in place of what was said.

        Raises:
            OSError: it could not be written.
        """
        write_json(self.path / "meta.json", meta)

    def summary(self) -> dict[str, Any]:
        """What came of it (see `Summary`), with the folder's own name and place.

        A folder may have been copied or renamed since. Empty without a sound summary.
        """
        summary: dict[str, Any] = {**(read_json(Summary, self.path / "summary.json") or {})}
        if not summary:
            return {}
        summary["sweep" if self.is_sweep else "run"] = self.name
        summary["checkpoint"] = str(self.best.absolute()) if self.best.exists() else None
        for index, trial in enumerate(summary.get("trials", ())):
            trial["run"] = self.trial(index).name
        best = summary.get("best")
        if best and "run" in best:
            best["run"] = f"{self.name}/trials/{Path(best['run']).name}"
        return summary

    def status(self) -> str:
        """How the run goes on, as it says.

        But `dead` if it says that it does and no process trains it, and `damaged` if its summary
        cannot be read.
        """
        said = self.meta().get("status", "unknown")
        if said in ("waiting", "running"):
            if lock.is_held(self.owner.path):
                return said
            said = self.meta().get("status", "unknown")  # it may have ended before it was released
            return "dead" if said in ("waiting", "running") else said
        damaged = (self.path / "summary.json").exists() and not self.summary()
        return "damaged" if damaged else said

    def metrics(self) -> "list[Record]":
        """One record per epoch; a last line that was cut off is not one.

        Raises:
            UsageError: a line before the last is damaged.
        """
        try:
            content = self.metrics_path.read_bytes() if self.metrics_path.is_file() else b""
        except OSError:
            return []
        return read_records(content, self.metrics_path)


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
        numbered = re.compile(re.escape(name) + r"-(\d{4,})")
        taken = [numbered.fullmatch(entry.name) for entry in root.iterdir()]
        number = max((int(found[1]) for found in taken if found), default=0)
        while True:
            number += 1
            path = root / f"{name}-{number:04d}"
            with suppress(FileExistsError):
                durable.make_folder(path)
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
    runs = [RunDirectory(path) for path in found]
    return sorted(runs, key=lambda run: (run.meta().get("started", ""), run.name))


def find(root: Path, name: str) -> RunDirectory:
    """A run by its name in the runs directory, or by its path, or by that of its checkpoint.

    Raises:
        UsageError: there is none, naming the nearest; or the name is a link out of that directory.
    """
    path = Path(name)
    if path.name in CHECKPOINTS:
        path = path.parent
    if not path.is_absolute() and ".." not in path.parts and _is_run(root / path):
        if not _is_inside(root / path, root):
            hint = f"if it is meant, give the folder itself: {(root / path).resolve()}"
            raise UsageError(f"{root / path} is a link that leads out of the runs directory", hint)
        return RunDirectory(root / path)
    if _is_run(path):
        return RunDirectory(path if path.name else path.resolve())
    near = difflib.get_close_matches(name, [run.name for run in all_runs(root)], n=3)
    hint = f"did you mean {', '.join(near)}?" if near else "`mnist runs list` shows what there is"
    raise UsageError(f"no run {name!r} in {root}: a run is a folder with a config.yaml", hint)


def run_of(checkpoint: Path) -> RunDirectory | None:
    """The run or sweep in whose folder a checkpoint is."""
    folder = checkpoint.absolute().parent
    return RunDirectory(folder) if _is_run(folder) else None


def newest(root: Path) -> RunDirectory:
    """The run or sweep that was started last.

    Raises:
        UsageError: there is none.
    """
    if not (found := all_runs(root)):
        raise UsageError(f"there are no runs in {root} yet", "`mnist train` makes one")
    return found[-1]


def newest_checkpoint(root: Path, file_name: str) -> Path | None:
    """That file of the newest run or sweep that has it."""
    found = (run.path / file_name for run in reversed(all_runs(root)))
    return next((path for path in found if path.is_file()), None)


@contextmanager
def held(folder: RunDirectory) -> Iterator[None]:
    """Keeps every other process from training a run or sweep.

    Raises:
        RunError: another process trains it.
        OSError: nothing can be written there.
    """
    try:
        holder = lock.of(folder.path).acquire(timeout=0.5)  # `is_held` shares it for a moment
    except Timeout:
        meta = folder.meta()
        who = f"process {meta.get('pid', 'unknown')} on {meta.get('host', 'another machine')}"
        raise RunError(
            f"{folder.name} is being trained by {who}", "wait until it ends, or end it"
        ) from None
    with holder:
        yield


def refuse_link(path: Path) -> Path:
    """The same path, which is about to be written to: through a link that could be anywhere.

    Raises:
        UsageError: it is a link.
    """
    if path.is_symlink():
        raise UsageError(f"{path} is a link, through which nothing is written", "remove the link")
    return path


def _is_run(path: Path) -> bool:
    try:
        return any((path / name).is_file() for name in ("config.yaml", "sweep.yaml"))
    except (OSError, ValueError):  # a name that is too long, say, or a folder that is not ours
        return False


def _is_inside(path: Path, root: Path) -> bool:
    return path.resolve().is_relative_to(root.resolve())
