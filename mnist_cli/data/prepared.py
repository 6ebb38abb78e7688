"""The prepared data: one file per data set in the data directory, checked each time it is read."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from mnist_cli.data import durable, sources
from mnist_cli.data.catalog import DATASETS, FIELDS, DatasetSpec
from mnist_cli.data.formats import Arrays
from mnist_cli.data.sources import Report
from mnist_cli.errors import DataError

__all__ = ["Arrays", "data_dir", "fetch", "find", "prepare", "verify"]


def data_dir() -> Path:
    """Where data lies: `$MNIST_DATA_DIR`, or `mnist` in the user's cache directory."""
    if chosen := os.environ.get("MNIST_DATA_DIR"):
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        cache = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        cache = Path.home() / "Library" / "Caches"
    else:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "mnist"


def find(name: str) -> Path | None:
    """The prepared file of a data set, if there is one. It is not looked into."""
    path = _path(DATASETS[name])
    return path if path.is_file() else None


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
    path = _path(spec)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(spec, report):
            if find(name) is None or force:
                if source_dir is None:
                    arrays = sources.obtain(spec, path.parent, report)
                else:
                    arrays = sources.from_folder(spec, source_dir.expanduser())
                _write(spec, arrays)
            else:
                _load(spec)
                if source_dir is not None:
                    report(f"{spec.title} is prepared already; --force prepares it anew")
    except OSError as error:
        raise DataError(
            f"{path.parent} cannot be written to: {error.strerror or error}",
            hint="set MNIST_DATA_DIR to a folder that can",
        ) from error
    return path


def verify(name: str) -> str:
    """Checks the prepared file, and where they are pinned the files it was made from, rebuilt.

    Returns:
        The sum of its arrays, `Arrays.sha256`.

    Raises:
        DataError: it is not there, or is not what it should be.
    """
    spec = DATASETS[name]
    arrays = _load(spec)
    sources.check_idx_sums(spec, arrays, str(_path(spec)))
    return arrays.sha256


# --------------------------------------------------------------------------------- the file itself
#
# A line of text with the sum, then the bytes of the arrays and nothing else, as their shapes are
# known. A .npz takes twice as long to read: zip sums and copies what is summed here anyway.


def _path(spec: DatasetSpec) -> Path:
    return data_dir() / f"{spec.name}.prepared"


def _header(spec: DatasetSpec, sha256: str) -> bytes:
    return f"mnist-cli prepared 1 {spec.name} {sha256}\n".encode()


def _load(spec: DatasetSpec) -> Arrays:
    path = _path(spec)
    shapes = {field: spec.array_shape(field) for field in FIELDS}
    start = len(_header(spec, "0" * 64))
    size = start + sum(map(prod, shapes.values()))
    again = f"run `mnist data fetch {spec.name} --force` to prepare it anew"
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size != size:
                raise DataError(f"{path} is not {size:,} bytes long, as prepared data is", again)
            header = file.read(start)
            arrays = Arrays(
                **{
                    field: np.fromfile(file, np.uint8, prod(shape)).reshape(shape)
                    for field, shape in shapes.items()
                }
            )
    except FileNotFoundError as error:
        raise DataError(
            f"{spec.title} is not in {path.parent}", hint=f"run `mnist data fetch {spec.name}`"
        ) from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}", again) from error
    if header != _header(spec, arrays.sha256) or spec.sha256 not in (None, arrays.sha256):
        raise DataError(f"{path} is damaged: its sum is not {spec.title}'s", again)
    return arrays


def _write(spec: DatasetSpec, arrays: Arrays) -> None:
    for partial in data_dir().glob(f".{_path(spec).name}.*.tmp"):
        partial.unlink(missing_ok=True)  # left by a process that was killed: we hold the lock
    parts = (np.ascontiguousarray(getattr(arrays, field)).data for field in FIELDS)
    durable.replace(_path(spec), b"".join([_header(spec, arrays.sha256), *parts]))


@contextmanager
def _locked(spec: DatasetSpec, report: Report) -> Iterator[None]:
    """Holds the data set's lock, which the system frees even of a process that is killed."""
    lock = FileLock(_path(spec).with_name(f".{spec.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        report(f"waiting for another process that is preparing {spec.title}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
