"""A data set of sixteen images, published in all the ways the real ones are."""

import gzip
import hashlib
import io
import pickle
import struct
import tarfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from mnist_cli.data.catalog import DATASETS, FIELDS, IDX_FILES, DatasetSpec
from mnist_cli.data.formats import Arrays, Bytes


def random_arrays(spec: DatasetSpec) -> Arrays:
    """Random images, and labels of ten classes, in a data set's shapes."""
    random = np.random.default_rng(0)
    shapes = map(spec.array_shape, FIELDS)
    return Arrays(*(random.integers(0, 256 if s[1:] else 10, s, np.uint8) for s in shapes))


def idx_file(array: Bytes) -> bytes:
    """An array of shape (n,) or (n, 1, h, w) as an IDX file, written from its specification."""
    dims = array.shape[:1] + array.shape[2:]
    return struct.pack(f">HBB{len(dims)}I", 0, 8, len(dims), *dims) + array.tobytes()


def no_report(text: str) -> None:
    """For where nothing is to be reported."""
    raise AssertionError(f"unexpected report: {text}")


def md5(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


TINY = DatasetSpec(
    name="tiny",
    title="Tiny",
    classes=("a", "b"),
    torchvision="TINY",
    files={},
    shape=(1, 4, 5),
    train=12,
    test=4,
)
ARRAYS = random_arrays(TINY)
PLAIN = {name: idx_file(getattr(ARRAYS, field)) for field, name in IDX_FILES.items()}
PACKED = {f"{name}.gz": gzip.compress(data, mtime=0) for name, data in PLAIN.items()}
# As MNIST, whose content is pinned, and as KMNIST, of which the packed files are.
BY_CONTENT = replace(
    TINY, files={name: sha256(data) for name, data in PLAIN.items()}, sha256=ARRAYS.sha256
)
BY_PACKED = replace(TINY, files={name: md5(data) for name, data in PACKED.items()})


def cifar(spec: DatasetSpec, arrays: Arrays) -> tuple[DatasetSpec, dict[str, bytes], bytes]:
    """A data set as CIFAR-10 is published: its spec, its six batches by name, and the archive."""
    names = [f"data_batch_{number}" for number in range(1, 6)]
    batches = {}
    images = [*np.split(arrays.train_images, 5), arrays.test_images]
    labels = [*np.split(arrays.train_labels, 5), arrays.test_labels]
    for name, pixels, classes in zip([*names, "test_batch"], images, labels, strict=True):
        batch = {"labels": classes.tolist(), "data": pixels.reshape(len(pixels), -1)}
        batches[name] = pickle.dumps(batch, protocol=2)
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, data in {**batches, "readme.html": b"<html>"}.items():
            info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    files = {name: md5(data) for name, data in batches.items()}
    made = replace(spec, files=files, archive=DATASETS["cifar10"].archive)
    return made, batches, stream.getvalue()


def write(folder: Path, files: Mapping[str, bytes]) -> Path:
    """Puts files into a folder, which is made if it has to be."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def flipped(data: bytes, place: int = -1) -> bytes:
    """The same bytes but for one bit."""
    damaged = bytearray(data)
    damaged[place] ^= 1
    return bytes(damaged)
