"""The prepared data: one file per data set in the data directory, checked each time it is read.

What it is checked against is not in the file itself. For most data sets it is the pinned sum; where
only sums of published archives are known, it is the sum that was computed when those were checked,
kept in a file beside it.
"""

import os
from contextlib import AbstractContextManager
from math import prod
from pathlib import Path
from typing import Literal

import numpy as np
from filelock import FileLock, Timeout

from mnist_cli.data import durable, sources
from mnist_cli.data.catalog import DATASETS, FIELDS, DatasetSpec
from mnist_cli.data.formats import Arrays
from mnist_cli.data.sources import Report
from mnist_cli.errors import DataError


def data_dir() -> Path:
    """Where data lies: `$MNIST_DATA_DIR`, or `mnist` in the user's cache directory (as torch's)."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("MNIST_DATA_DIR") or f"{cache}/mnist").expanduser()


def find(name: str) -> Path | None:
    """The prepared file of a data set, if there is one that can be checked. It is not opened."""
    spec = DATASETS[name]
    path = _file(spec)
    return path if path.is_file() and (spec.sha256 or _file(spec, "sha256").is_file()) else None


def prepare(name: str, *, report: Report) -> Arrays:
    """A data set, fetched first if it is not there.

    Args:
        name: a key of `DATASETS`.
        report: takes a sentence when something is fetched or waited for.

    Returns:
        Its arrays, writable and the caller's own.

    Raises:
        DataError: it cannot be had from any source, or the prepared file is not what it should be.
    """
    if find(name) is None:
        fetch(name, report=report)
    return _load(DATASETS[name])


def fetch(
    name: str, *, source_dir: Path | None = None, force: bool = False, report: Report
) -> Path:
    """Prepares a data set, unless it already is. Of several processes at once, one does.

    Args:
        name: a key of `DATASETS`.
        source_dir: a folder with its published files, the only source if given.
        force: whether to prepare it again if it already is.
        report: takes a sentence when something is fetched or waited for.

    Returns:
        The prepared file.

    Raises:
        DataError: it cannot be had, or (without `force`) the file there is not what it should be.
    """
    spec = DATASETS[name]
    path = _file(spec)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(spec.name, spec.title, report):
            if force or not find(name):
                local = source_dir and sources.from_folder(spec, source_dir.expanduser())
                _write(spec, local or sources.fetch(spec, path.parent, report))
            else:
                _load(spec)
                if source_dir:
                    report(f"{spec.title} is prepared already; --force prepares it anew")
    except OSError as error:
        raise DataError(
            f"{path.parent} cannot be written to: {error.strerror or error}",
            hint="set MNIST_DATA_DIR to a folder that can",
        ) from error
    return path


def verify(name: str) -> bool:
    """Checks the prepared file, every byte of it.

    Returns:
        Whether its content has the published sums. If not, it is as it was when it was prepared,
        from files that had them.

    Raises:
        DataError: it is not there, or is not what it should be.
    """
    _load(DATASETS[name])
    return DATASETS[name].sha256 is not None


# --------------------------------------------------------------------------------- the file itself
#
# The bytes of the arrays and nothing else, as their shapes are known (what a former version wrote
# begins with a line of text). A .npz takes twice as long to read: zip sums and copies what is
# summed here anyway.


def _file(spec: DatasetSpec, suffix: Literal["prepared", "sha256"] = "prepared") -> Path:
    return data_dir() / f"{spec.name}.{suffix}"


def _load(spec: DatasetSpec) -> Arrays:
    again = f"run `mnist data fetch {spec.name}"
    if not (path := find(spec.name)):
        raise DataError(f"{spec.title} is not in {data_dir()}", f"{again}`")
    shapes = [spec.array_shape(field) for field in FIELDS]
    ends = np.cumsum([prod(shape) for shape in shapes])
    try:
        expected = spec.sha256 or _file(spec, "sha256").read_text()[:64]
        parts = np.split(np.fromfile(path, np.uint8)[-ends[-1] :], ends[:-1])
        arrays = Arrays(*(part.reshape(s) for part, s in zip(parts, shapes, strict=True)))
        if arrays.sha256 != expected:
            raise ValueError(f"its sum is not that of {spec.title}")
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is damaged: {error}", f"{again} --force`") from error
    return arrays


def _write(spec: DatasetSpec, arrays: Arrays) -> None:
    for partial in data_dir().glob(f".{spec.name}.*.tmp"):
        partial.unlink(missing_ok=True)  # left by a process that was killed: we hold the lock
    parts = (np.ascontiguousarray(getattr(arrays, field)).data for field in FIELDS)
    durable.replace(_file(spec), b"".join(parts))
    if not spec.sha256:
        line = f"{arrays.sha256}  {spec.title} as it was when the published files were checked\n"
        durable.replace(_file(spec, "sha256"), line.encode())


def locked(name: str, title: str, report: Report) -> AbstractContextManager[object]:
    """Holds the lock of a prepared file, which the system frees even of a process that is killed.

    Args:
        name: the file's stem.
        title: what is prepared.
        report: takes a sentence if another process has the lock.
    """
    lock = FileLock(data_dir() / f".{name}.lock")
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        report(f"waiting for another process that is preparing {title}")
        return lock.acquire()
