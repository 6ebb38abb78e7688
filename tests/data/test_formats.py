"""Published formats: what is right is read exactly, what is wrong is an error naming the file."""

import contextlib
import gzip
import hashlib
import io
import pickle
import tarfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mnist_cli.data.formats import (
    Arrays,
    gunzip,
    idx_sha256,
    read_binary_batch,
    read_idx,
    read_pickle_batch,
    read_tar_gz,
    write_idx,
)
from mnist_cli.errors import DataError

IMAGES = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 1, 3, 4)


def test_idx_is_as_published() -> None:
    assert write_idx(IMAGES) == (
        b"\x00\x00\x08\x03" + b"\0\0\0\x02" + b"\0\0\0\x03" + b"\0\0\0\x04" + bytes(range(24))
    )
    assert write_idx(np.array([7, 9], np.uint8)) == b"\x00\x00\x08\x01\0\0\0\x02\x07\x09"


@pytest.mark.parametrize("shape", [(5,), (2, 1, 3, 4)])
def test_idx_round_trip(shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    np.testing.assert_array_equal(read_idx(write_idx(array), shape, "x"), array)
    assert idx_sha256(array) == hashlib.sha256(write_idx(array)).hexdigest()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "begins with nothing"),
        (b"\x00\x00\x08\x01" + write_idx(IMAGES)[4:], "begins with 00000801"),
        (b"\x00\x00\x0d\x03" + write_idx(IMAGES)[4:], "begins with 00000d03"),
        (write_idx(IMAGES)[:9], "other dimensions"),
        (write_idx(IMAGES.transpose(0, 1, 3, 2)), "other dimensions"),
        (write_idx(IMAGES)[:-1], "39 bytes long unpacked, not 40"),
        (write_idx(IMAGES) + b"\0", "41 bytes long unpacked, not 40"),
    ],
)
def test_idx_is_read_strictly(data: bytes, message: str) -> None:
    with pytest.raises(DataError, match=f"images.idx.*{message}"):
        read_idx(data, IMAGES.shape, "images.idx")


@given(st.binary(max_size=64))
def test_any_bytes_are_an_array_or_our_error(data: bytes) -> None:
    for read in (
        lambda: read_idx(data, (2, 1, 3, 4), "x"),
        lambda: gunzip(data, 40, "x"),
        lambda: read_pickle_batch(data, 1, (1, 2, 2), "x"),
        lambda: read_binary_batch(data, 1, (1, 2, 2), "x"),
        lambda: read_tar_gz(io.BytesIO(data), {"a"}, 10, "x"),
    ):
        with contextlib.suppress(DataError):
            read()


def test_gunzip_to_a_known_size() -> None:
    packed = gzip.compress(bytes(1000))
    assert gunzip(packed, 1000, "x") == bytes(1000)
    flipped = bytearray(packed)
    flipped[-5] ^= 1  # in gzip's own sum
    for data in (packed[:-1], packed[:-9], packed[: len(packed) // 2], bytes(flipped), b"PK\3\4"):
        with pytest.raises(DataError, match=r"labels\.gz is not a whole gzip file"):
            gunzip(data, 1000, "labels.gz")
    with pytest.raises(DataError, match=r"labels\.gz unpacks to 1,000 bytes, not 1,001"):
        gunzip(packed, 1001, "labels.gz")


def test_a_gzip_bomb_is_not_unpacked() -> None:
    bomb = gzip.compress(bytes(100_000_000), compresslevel=1)
    with pytest.raises(DataError, match="unpacks to more than 1,000 bytes"):
        gunzip(bomb, 1000, "bomb.gz")


def test_the_sum_of_arrays_is_of_everything() -> None:
    labels = np.arange(2, dtype=np.uint8)
    whole = Arrays(IMAGES, labels, IMAGES, labels)
    assert Arrays(IMAGES.copy(), labels, IMAGES.copy(order="F"), labels).sha256 == whole.sha256
    flipped = IMAGES.copy()
    flipped[1, 0, 2, 3] ^= 1
    others = [
        Arrays(flipped, labels, IMAGES, labels),
        Arrays(IMAGES, labels, flipped, labels),
        Arrays(IMAGES, labels[::-1], IMAGES, labels),
        Arrays(IMAGES.reshape(2, 1, 4, 3), labels, IMAGES, labels),
        Arrays(IMAGES, labels, IMAGES[:1], labels),
    ]
    assert len({arrays.sha256 for arrays in [whole, *others]}) == 6


SHAPE = (3, 2, 2)


def _batch(**changes: object) -> bytes:
    batch = {
        b"batch_label": b"training batch 1 of 5",
        b"labels": [3, 0],
        b"data": np.arange(24, dtype=np.uint8).reshape(2, 12),
        b"filenames": [b"a.png", b"b.png"],
    } | {key.encode(): value for key, value in changes.items()}
    return pickle.dumps(batch, protocol=2)


def test_pickled_batch() -> None:
    images, labels = read_pickle_batch(_batch(), 2, SHAPE, "x")
    assert images.dtype == labels.dtype == np.uint8
    np.testing.assert_array_equal(images, np.arange(24).reshape(2, 3, 2, 2))
    assert labels.tolist() == [3, 0]


@pytest.mark.parametrize(
    "data",
    [
        _batch(labels=[3]),
        _batch(labels=[3, 256]),
        _batch(labels=[3, -1]),
        _batch(labels=[3, 1.0]),
        _batch(labels=None),
        _batch(data=None),
        _batch(data=np.zeros((2, 12), np.int8)),
        _batch(data=np.zeros((12, 2), np.uint8)),
        _batch(data=np.zeros((2, 12), object)),
        pickle.dumps([1, 2]),
        pickle.dumps(DataError),
    ],
)
def test_pickled_batch_is_read_strictly(data: bytes) -> None:
    with pytest.raises(DataError, match="data_batch_1 "):
        read_pickle_batch(data, 2, SHAPE, "data_batch_1")


def test_binary_batch() -> None:
    data = b"\x03" + bytes(range(12)) + b"\x00" + bytes(range(12, 24))
    images, labels = read_binary_batch(data, 2, SHAPE, "x")
    np.testing.assert_array_equal(images, np.arange(24).reshape(2, 3, 2, 2))
    assert labels.tolist() == [3, 0]
    with pytest.raises(DataError, match=r"b\.bin is 25 bytes long, not 26"):
        read_binary_batch(data[:-1], 2, SHAPE, "b.bin")


def _tar(*members: tarfile.TarInfo | tuple[str, bytes]) -> io.BytesIO:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                archive.addfile(info, io.BytesIO(member[1]))
    stream.seek(0)
    return stream


def test_tar_members_are_read_in_memory() -> None:
    stream = _tar(("f/a", b"one"), ("../evil", b"x"), ("f/b", b"two"), ("f/other", b"x" * 100))
    assert read_tar_gz(stream, {"f/a", "f/b"}, 10, "x") == {"f/a": b"one", "f/b": b"two"}


def test_tar_is_read_strictly() -> None:
    link = tarfile.TarInfo("f/a")
    link.type, link.linkname = tarfile.SYMTYPE, "f/b"
    for stream, message in [
        (_tar(("f/b", b"two")), "holds no f/a"),
        (_tar(("f/a", b"x" * 11)), "holds a f/a that is no batch"),
        (_tar(link, ("f/b", b"two")), "holds a f/a that is no batch"),
        (io.BytesIO(_tar(("f/a", bytes(3))).read()[:-30]), "is not a whole"),
        (io.BytesIO(b"no archive"), "is not a whole"),
    ]:
        with pytest.raises(DataError, match=f"archive {message}"):
            read_tar_gz(stream, {"f/a"}, 10, "archive")
