"""Figures of runs for other programs, from the files of the runs."""

import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mnist_cli.data import durable
from mnist_cli.errors import UsageError, in_words
from mnist_cli.runs.store import RunDirectory

Row = dict[str, Any]
MEASURED = ("lr", "train/", "val/", "time/")  # how the names of figures begin


@dataclass(frozen=True)
class Figures:
    """What a run was asked, by dotted key, and what it measured, a record for each epoch."""

    run: str
    settings: Row
    records: Sequence[Row]

    def scalars(self) -> Iterator[tuple[int, Row]]:
        """Each epoch, and its figures by name."""
        for record in self.records:
            yield record["epoch"], scalars(record)


def scalars(record: Mapping[str, Any]) -> Row:
    """The figures in a record."""
    return {key: value for key, value in record.items() if key.startswith(MEASURED)}


class EventFiles(AbstractContextManager["EventFiles"]):
    """What TensorBoard reads, for any number of runs; also while they are trained."""

    def __init__(self) -> None:
        with needing("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter
        self._open: Callable[..., Any] = SummaryWriter
        self._writers: dict[Path, Any] = {}

    def add(self, folder: Path, record: Mapping[str, Any]) -> None:
        """Adds an epoch; of earlier files in the folder, that epoch and later ones count no more.

        Args:
            folder: of the run's event files.
            record: what was measured in the epoch.
        """
        if folder not in self._writers:
            self._writers[folder] = self._open(str(folder), purge_step=record["epoch"])
        for key, value in scalars(record).items():
            self._writers[folder].add_scalar(key, value, record["epoch"])

    def __exit__(self, *_: object) -> None:
        for writer in self._writers.values():
            writer.close()


def read(runs: Sequence[RunDirectory]) -> list[Figures]:
    """The figures of runs, and of every run of a sweep.

    Raises:
        UsageError: the config or the metrics of a run cannot be read.
    """
    each = [one for run in runs for one in (run.trials() if run.is_sweep else [run])]
    return [
        Figures(run.name, dict(run.config().settings()), [{**row} for row in run.metrics()])
        for run in each
    ]


def rows(found: Sequence[Figures]) -> list[Row]:
    """A row for each epoch of each run, with the settings in which the runs differ."""
    keys = dict.fromkeys(key for run in found for key in run.settings)
    first = found[0].settings if found else {}
    differ = [key for key in keys if any(r.settings.get(key) != first.get(key) for r in found)]
    return [
        {"run": run.run, **{key: run.settings.get(key) for key in differ}, **record}
        for run in found
        for record in run.records
    ]


@contextmanager
def needing(package: str) -> Iterator[None]:
    """A block that imports an optional package.

    Raises:
        UsageError: it is not installed; says what installs it.
    """
    try:
        yield
    except ImportError as error:
        hint = f"pip install {package}"
        raise UsageError(f"this needs {package}, which is not installed here", hint) from error


def write_csv(found: Sequence[Figures], path: Path) -> None:
    """One table; settings that are lists or sections are as Python writes them."""
    table = rows(found)
    columns = dict.fromkeys(key for row in table for key in row)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    durable.replace(path, text.getvalue().encode())


def write_parquet(found: Sequence[Figures], path: Path) -> None:
    """One table, by pyarrow; settings that are no numbers are text."""
    with needing("pyarrow"):
        import pyarrow
        import pyarrow.parquet

    table = rows(found)
    keys = dict.fromkeys(key for row in table for key in row)
    columns = {key: _column([row.get(key) for row in table]) for key in keys}
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), buffer)
    durable.replace(path, buffer.getvalue())


def write_tensorboard(found: Sequence[Figures], path: Path) -> None:
    """A folder with one of event files for each run: every figure by its epoch."""
    with EventFiles() as files:
        for run in found:
            for record in run.records:
                files.add(path / run.run, record)


def write_mlflow(found: Sequence[Figures], path: Path) -> None:
    """An SQLite file that `mlflow ui --backend-store-uri sqlite:///FILE` shows."""
    with needing("mlflow"):
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

    client = MlflowClient(tracking_uri=f"sqlite:///{path.absolute()}")
    experiment = client.create_experiment("mnist", f"{path.absolute().as_uri()}-artifacts")
    for run in found:
        logged = client.create_run(experiment, run_name=run.run).info.run_id
        settings = [Param(key, str(value)) for key, value in run.settings.items()]
        client.log_batch(logged, params=settings)
        for epoch, figures in run.scalars():
            metrics = [Metric(key, value, 0, epoch) for key, value in figures.items()]
            client.log_batch(logged, metrics=metrics)
        client.set_terminated(logged)


def write_wandb(found: Sequence[Figures], path: Path) -> None:
    """A folder of offline runs, which `wandb sync` sends."""
    with needing("wandb"):
        import wandb

    path.mkdir()
    for run in found:
        options = {"mode": "offline", "dir": path, "project": "mnist", "name": run.run}
        with wandb.init(**options, config=run.settings, reinit="finish_previous") as logged:
            for epoch, figures in run.scalars():
                logged.log(figures, step=epoch)


WRITERS: dict[str, Callable[[Sequence[Figures], Path], None]] = {
    "csv": write_csv,
    "parquet": write_parquet,
    "tensorboard": write_tensorboard,
    "mlflow": write_mlflow,
    "wandb": write_wandb,
}


def export(runs: Sequence[RunDirectory], to: str, path: Path) -> int:
    """Writes the figures of runs to a new file; for TensorBoard and W&B to a new folder.

    Returns:
        How many epochs they are of.

    Raises:
        UsageError: there is nothing to write, something is there already, a package is missing, or
            it cannot be written.
    """
    found = read(runs)
    if not any(run.records for run in found):
        raise UsageError("these runs have no figures yet")
    if path.exists():
        raise UsageError(f"{path} is there already", "choose another place with -o")
    try:
        WRITERS[to](found, path)
    except OSError as error:
        raise UsageError(in_words(error), "choose another place with -o") from error
    return sum(len(run.records) for run in found)


def _column(values: Sequence[Any]) -> list[Any]:
    plain = all(value is None or isinstance(value, int | float) for value in values)
    return list(values) if plain else [None if v is None else str(v) for v in values]
