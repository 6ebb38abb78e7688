"""The formats data sets are published in: IDX files, gzip, CIFAR-10's batches and tar archives.

Everything is read in memory and to a size known beforehand, so no file can expand to more than the
data set it claims to be. Every error is a `DataError` naming the file.
"""

import gzip
import hashlib
import io
import struct
import tarfile
import zlib
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from mnist_cli.data import pickles
from mnist_cli.data.catalog import FIELDS
from mnist_cli.errors import DataError

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Arrays:
    """A whole data set as published, in its published order.

    Args:
        train_images: (train, channels, height, width) uint8, pixels 0..255.
        train_labels: (train,) uint8.
        test_images: (test, channels, height, width) uint8.
        test_labels: (test,) uint8.
    """

    train_images: Bytes
    train_labels: Bytes
    test_images: Bytes
    test_labels: Bytes

    @cached_property
    def sha256(self) -> str:
        """The sum of all of it: name, type, shape and bytes of each array, as hex digits."""
        total = hashlib.sha256()
        for field in FIELDS:
            array: Bytes = getattr(self, field)
            total.update(f"{field} {array.dtype.str} {array.shape}\n".encode())
            total.update(np.ascontiguousarray(array).data)
        return total.hexdigest()


# ------------------------------------------------------------------------------------ IDX, gzip


def idx_header(shape: tuple[int, ...]) -> bytes:
    """The header of an IDX file of bytes.

    Args:
        shape: of our array. IDX knows no channels: of (n, 1, h, w) it holds (n, h, w).
    """
    dims = shape[:1] + shape[2:]
    return struct.pack(f">HBB{len(dims)}I", 0, 8, len(dims), *dims)


def write_idx(array: Bytes) -> bytes:
    """An array of shape (n,) or (n, 1, h, w) as the bytes of an IDX file."""
    return idx_header(array.shape) + array.tobytes()


def idx_sha256(array: Bytes) -> str:
    """The SHA-256 sum of the IDX file that an array of shape (n,) or (n, 1, h, w) makes."""
    total = hashlib.sha256(idx_header(array.shape))
    total.update(np.ascontiguousarray(array).data)
    return total.hexdigest()


def read_idx(data: bytes, shape: tuple[int, ...], name: str) -> Bytes:
    """The array in an IDX file.

    Args:
        data: the whole unpacked file.
        shape: the shape it must have, (n,) or (n, 1, h, w).
        name: what errors call the file.

    Returns:
        A read-only array of that shape, a view of `data`.

    Raises:
        DataError: the magic number, the dimensions or the length are others.
    """
    header = idx_header(shape)
    if data[:4] != header[:4]:
        raise DataError(
            f"{name} begins with {data[:4].hex() or 'nothing'}, "
            f"and an IDX file of its kind with {header[:4].hex()}"
        )
    if data[: len(header)] != header:
        raise DataError(f"{name} has other dimensions than {shape[:1] + shape[2:]}")
    if len(data) != len(header) + prod(shape):
        raise DataError(
            f"{name} is {len(data):,} bytes long unpacked, not {len(header) + prod(shape):,}"
        )
    return np.frombuffer(data, np.uint8, offset=len(header)).reshape(shape)


def gunzip(data: bytes, size: int, name: str) -> bytes:
    """Unpacks gzipped data that must be `size` bytes long unpacked.

    Raises:
        DataError: it is not gzip, is cut short or damaged, or is of another length. It is never
            unpacked beyond that length.
    """
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as stream:
            # One byte more, so that the end is reached and with it the check of gzip's own sum.
            unpacked = stream.read(size + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{name} is not a whole gzip file: {error}") from error
    if len(unpacked) != size:
        length = f"{len(unpacked):,}" if len(unpacked) < size else f"more than {size:,}"
        raise DataError(f"{name} unpacks to {length} bytes, not {size:,}")
    return unpacked


# ------------------------------------------------------------------------------------- CIFAR-10


def read_pickle_batch(
    data: bytes, count: int, shape: tuple[int, int, int], name: str
) -> tuple[Bytes, Bytes]:
    """The images and labels in a batch of CIFAR-10's Python version.

    Args:
        data: the whole file, a pickled dict of `data` (count, c*h*w) uint8 and `labels`.
        count: how many images it must hold.
        shape: (channels, height, width) of an image.
        name: what errors call the file.

    Returns:
        Images (count, c, h, w) uint8 and labels (count,) uint8.

    Raises:
        DataError: it is not such a batch.
    """
    try:
        batch = pickles.load(data)
    except pickles.UnsafePickleError as error:
        raise DataError(f"{name} {error}") from error
    images = batch.get("data") if isinstance(batch, dict) else None
    labels = batch.get("labels") if isinstance(batch, dict) else None
    if (
        not isinstance(images, np.ndarray)
        or images.dtype != np.uint8
        or images.shape != (count, prod(shape))
        or not isinstance(labels, list)
        or len(labels) != count
        or not all(type(label) is int and 0 <= label <= 255 for label in labels)
    ):
        raise DataError(f"{name} does not hold {count:,} images of {shape} with their labels")
    return images.reshape(count, *shape), np.array(labels, np.uint8)


def read_binary_batch(
    data: bytes, count: int, shape: tuple[int, int, int], name: str
) -> tuple[Bytes, Bytes]:
    """The images and labels in a batch of CIFAR-10's binary version.

    Args:
        data: the whole file, for each image a byte for the label and then c*h*w of pixels.
        count: how many images it must hold.
        shape: (channels, height, width) of an image.
        name: what errors call the file.

    Returns:
        Images (count, c, h, w) uint8 and labels (count,) uint8, views of `data`.

    Raises:
        DataError: it is of another length.
    """
    record = 1 + prod(shape)
    if len(data) != count * record:
        raise DataError(f"{name} is {len(data):,} bytes long, not {count * record:,}")
    records = np.frombuffer(data, np.uint8).reshape(count, record)
    return records[:, 1:].reshape(count, *shape), records[:, 0]


def read_tar_gz(
    stream: BinaryIO, wanted: Collection[str], limit: int, name: str
) -> dict[str, bytes]:
    """The contents of some members of a `.tar.gz`, none of which touches the disk.

    Args:
        stream: the archive, at its beginning.
        wanted: paths of the members to read.
        limit: the most bytes that a member may have.
        name: what errors call the file.

    Raises:
        DataError: it is damaged, a member is missing, is no regular file or is larger than `limit`.
    """
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=stream, mode="r|gz") as archive:
            for member in archive:
                if member.name not in wanted:
                    continue
                content = archive.extractfile(member) if member.isreg() else None
                if content is None or member.size > limit:
                    raise DataError(f"{name} holds a {member.name} that is no batch of images")
                found[member.name] = content.read()
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise DataError(f"{name} is not a whole .tar.gz file: {error}") from error
    if missing := sorted(set(wanted) - found.keys()):
        raise DataError(f"{name} holds no {missing[0]}")
    return found
