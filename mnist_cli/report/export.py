"""Figures of runs for other programs, from the files of the runs: CSV, Parquet, TensorBoard."""

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mnist_cli.data import durable
from mnist_cli.errors import UsageError, in_words
from mnist_cli.runs.store import RunDirectory

Row = dict[str, Any]


def rows(runs: Sequence[RunDirectory]) -> list[Row]:
    """A row for each epoch of each run, of a sweep's too, with the settings in which runs differ.

    Raises:
        UsageError: the config or the metrics of a run cannot be read.
    """
    each = [one for run in runs for one in (run.trials() if run.is_sweep else [run])]
    settings = [dict(run.config().settings()) for run in each]
    keys = dict.fromkeys(key for found in settings for key in found)
    differ = [key for key in keys if any(s.get(key) != settings[0].get(key) for s in settings)]
    return [
        {"run": run.name, **{key: own.get(key) for key in differ}, **record}
        for run, own in zip(each, settings, strict=True)
        for record in run.metrics()
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


def write_csv(found: Sequence[Row], path: Path) -> None:
    """One table; settings that are lists or sections are as Python writes them."""
    columns = dict.fromkeys(key for row in found for key in row)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(found)
    durable.replace(path, text.getvalue().encode())


def write_parquet(found: Sequence[Row], path: Path) -> None:
    """One table, by pyarrow; settings that are no numbers are text."""
    with needing("pyarrow"):
        import pyarrow
        import pyarrow.parquet

    columns = dict.fromkeys(key for row in found for key in row)
    table = {key: _column([row.get(key) for row in found]) for key in columns}
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(table), buffer)
    durable.replace(path, buffer.getvalue())


def write_tensorboard(found: Sequence[Row], path: Path) -> None:
    """A folder with one of event files for each run: every metric by its epoch."""
    with needing("tensorboard"):
        from torch.utils.tensorboard import SummaryWriter

    for name in dict.fromkeys(row["run"] for row in found):
        with SummaryWriter(str(path / name)) as writer:
            for row in (row for row in found if row["run"] == name):
                for key, value in row.items():
                    if key == "lr" or key.startswith(("train/", "val/", "time/")):
                        writer.add_scalar(key, value, row["epoch"])


WRITERS: dict[str, Callable[[Sequence[Row], Path], None]] = {
    "csv": write_csv,
    "parquet": write_parquet,
    "tensorboard": write_tensorboard,
}


def export(runs: Sequence[RunDirectory], to: str, path: Path) -> int:
    """Writes the figures of runs to a new file, or for TensorBoard a new folder.

    Returns:
        How many epochs they are of.

    Raises:
        UsageError: there is nothing to write, something is there already, a package is missing, or
            it cannot be written.
    """
    found = rows(runs)
    if not found:
        raise UsageError("these runs have no figures yet")
    if path.exists():
        raise UsageError(f"{path} is there already", "choose another place with -o")
    try:
        WRITERS[to](found, path)
    except OSError as error:
        raise UsageError(in_words(error), "choose another place with -o") from error
    return len(found)


def _column(values: Sequence[Any]) -> list[Any]:
    plain = all(value is None or isinstance(value, int | float) for value in values)
    return list(values) if plain else [None if v is None else str(v) for v in values]
