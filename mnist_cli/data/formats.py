"""A data set in memory, and the formats it is published in: IDX files and CIFAR-10's batches.

What is parsed here has the pinned sum: that is checked before, so nothing is doubted.
"""

import gzip
import hashlib
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import cast

import numpy as np
import numpy.typing as npt

from mnist_cli.data import pickles
from mnist_cli.data.catalog import FIELDS

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Arrays:
    """A data set as published, in its published order.

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


def read_idx(data: bytes, shape: tuple[int, ...]) -> Bytes:
    """The array of that shape in an IDX file, plain or packed, as a read-only view."""
    data = gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data
    return np.frombuffer(data, np.uint8, offset=len(data) - prod(shape)).reshape(shape)


def read_batch(data: bytes, shape: tuple[int, int, int]) -> tuple[Bytes, Bytes]:
    """The images (n, c, h, w) and labels (n,) in a batch of CIFAR-10's Python version.

    Args:
        data: a pickled dict of `data` (n, c*h*w) uint8 and `labels`, n integers.
        shape: (channels, height, width) of an image.
    """
    batch = cast("dict[str, Bytes]", pickles.load(data))
    return np.asarray(batch["data"]).reshape(-1, *shape), np.array(batch["labels"], np.uint8)
