"""A user's own images: a folder of picture files, or the arrays of an `.npz` file.

Picture files are read once, into one file of the data directory, and again when their names, sizes
or times have changed, or that file is damaged. An `.npz` file is read as it is.
"""

import hashlib
import os
import warnings
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from mnist_cli.config.schema import FolderData, OwnData
from mnist_cli.data.formats import Bytes
from mnist_cli.data.pictures import FORMATS, fitted
from mnist_cli.data.prepared import data_dir, locked
from mnist_cli.data.sources import Report
from mnist_cli.errors import DataError, in_words, remedy

SPLITS = ("train", "val", "test")
SUFFIXES = {".png", ".jpg", ".jpeg", ".gif", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}
MAX_BYTES = 16 << 30  # of pixels: all of them are held in memory
SHOWN = 20  # images named in an error
BATCH = 5_000  # images read between two reports


@dataclass(frozen=True, eq=False)
class OwnImages:
    """Images of a user's own, in the order of the splits they come in.

    Attributes:
        images: (n, channels, height, width) uint8.
        labels: (n,) integers.
        classes: the name of each label.
        counts: how many images each of `SPLITS` has; the training images are always given.
    """

    images: Bytes
    labels: np.ndarray
    classes: tuple[str, ...]
    counts: tuple[int, ...]

    @cached_property
    def sha256(self) -> str:
        """The sum of all of it, as hex digits."""
        total = hashlib.sha256(ascii((self.images.shape, self.classes, self.counts)).encode())
        total.update(self.images.data)
        total.update(self.labels.astype("<i8").data)
        return total.hexdigest()


def read(config: OwnData, report: Report) -> OwnImages:
    """The images of a config.

    Args:
        config: the data section.
        report: takes a sentence when picture files are read, or waited for.

    Raises:
        DataError: they are missing, or are not what they should be; or nothing can be written to
            the data directory.
    """
    try:
        if not isinstance(config, FolderData):
            return _read_npz(Path(config.path))
        pictures = _list(Path(config.path))
        settings = config.model_dump_json(include={"path", "size", "grey"})
        path = data_dir() / f"folder-{hashlib.sha256(settings.encode()).hexdigest()[:16]}.npz"
        identity = _identity(pictures)
        if not (found := _load(path, identity)):
            path.parent.mkdir(parents=True, exist_ok=True)
            with locked(path.stem, config.path, report):
                found = _load(path, identity) or _read_folder(config, pictures, report)
                new = path.with_suffix(".new.npz")
                np.savez(new, identity=identity, **vars(found))
                new.replace(path)
    except (OSError, MemoryError) as error:
        hint = remedy(error) if isinstance(error, OSError) else "take fewer images, or smaller ones"
        raise DataError(f"{config.path}: {in_words(error)}", hint) from error
    return found


def _refuse_too_large(path: str | Path, size: int) -> None:
    if size > MAX_BYTES:
        what = f"{path}: its images take {size / 2**30:,.1f} GiB, and all are held in memory"
        raise DataError(what, "take fewer, or smaller ones (of a folder: data.size=28)")


# ------------------------------------------------------------------------------------- a folder


@dataclass(frozen=True)
class _Picture:
    split: str
    class_name: str
    path: Path


def _list(root: Path) -> list[_Picture]:
    """The picture files of a folder, in the order of `SPLITS`, then of the names.

    A folder that holds `train/` with further folders in it comes in splits. Hidden files and links
    to folders count for nothing.

    Raises:
        DataError: there are none, or not where they should be.
    """
    if not root.is_dir():
        raise DataError(f"data.path: there is no folder {root}")
    inside, places = _folders(root), {"train": root}
    if "train" in inside and _folders(root / "train"):
        places = {name: root / name for name in SPLITS if name in inside}
        if len(places) < len(inside):
            what = f"{root} has {', '.join(f'{name}/' for name in inside[:SHOWN])}"
            raise DataError(what, f"beside train/ there can be {' and '.join(SPLITS[1:])} alone")
    classes, found = _folders(places["train"]), []
    if len(classes) < 2:
        what = f"{places['train']} has {len(classes)} folders of images, and needs two or more"
        raise DataError(what, "put the images of each class into a folder of their own")
    for split, place in places.items():
        if not (names := _folders(place)) or (others := set(names) - set(classes)):
            what = f"has {min(others)}/, which is no class of train/" if names else "has no folders"
            raise DataError(f"{place} {what}")
        for name in names:
            if not (paths := _pictures(place / name)):
                hint = f"images end in {' '.join(sorted(SUFFIXES))}"
                raise DataError(f"{place / name} has no images", hint)
            found += [_Picture(split, name, path) for path in paths]
    return found


def _folders(place: Path) -> list[str]:
    paths = [path for path in place.iterdir() if path.is_dir() and not path.is_symlink()]
    return sorted(path.name for path in paths if not path.name.startswith("."))


def _pictures(folder: Path) -> list[Path]:
    """The picture files in a folder and in the folders in it."""
    inside = len(str(folder))
    paths = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    return sorted(path for path in paths if f"{os.sep}." not in str(path)[inside:])


def _identity(pictures: Sequence[_Picture]) -> str:
    """A sum of the names, sizes and times of picture files."""
    total = hashlib.sha256()
    for picture in pictures:
        with suppress(OSError):  # reading it says why
            status = picture.path.stat()
            total.update(f"{status.st_size} {status.st_mtime_ns} ".encode())
        total.update(os.fsencode(picture.path) + b"\0")
    return total.hexdigest()


def _load(path: Path, identity: str) -> OwnImages | None:
    """What was read before, if that was of the same files and is whole, by the CRCs in it."""
    with suppress(Exception), np.load(path) as saved:  # on a damaged file it raises anything
        if saved["identity"] == identity:
            classes, counts = tuple(saved["classes"].tolist()), tuple(saved["counts"].tolist())
            return OwnImages(saved["images"], saved["labels"], classes, counts)
    return None


def _read_folder(config: FolderData, pictures: Sequence[_Picture], report: Report) -> OwnImages:
    """Reads picture files, one by one into the array of all.

    Raises:
        DataError: some cannot be read or are of another size, or they are too many to hold.
    """
    with warnings.catch_warnings(action="ignore"):  # Pillow's, of oddities that do no harm
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        shape = _shape(config, pictures)
        _refuse_too_large(config.path, len(pictures) * prod(shape))
        images = np.empty((len(pictures), *shape), np.uint8)
        failures = _decode(pictures, images, config.size, report)
    if failures:
        what = f"{config.path}: {len(failures):,} of {len(pictures):,} images cannot be used:"
        more = [f"  ... and {len(failures) - SHOWN} more"] if len(failures) > SHOWN else []
        hint = "repair or remove them"
        if not config.size:
            hint += "; data.size=28, or =[height,width], makes images of different sizes equal"
        raise DataError("\n".join([what, *failures[:SHOWN], *more]), hint)
    label = {name: n for n, name in enumerate(sorted({p.class_name for p in pictures}))}
    labels = np.array([label[picture.class_name] for picture in pictures])
    splits = Counter(picture.split for picture in pictures)
    return OwnImages(images, labels, tuple(label), tuple(splits[name] for name in SPLITS))


def _shape(config: FolderData, pictures: Sequence[_Picture]) -> tuple[int, ...]:
    """That of every image: with the size asked for, or that of the first that can be read."""
    channels = 1 if config.grey else 3
    for picture in () if config.size else pictures:
        with suppress(Exception):  # what is damaged is named when all are read
            return _pixels(picture.path, channels, None).shape
    return (channels, *(config.size or (0, 0)))


def _decode(
    pictures: Sequence[_Picture], images: Bytes, size: tuple[int, int] | None, report: Report
) -> list[str]:
    """Reads pictures into an array; says which cannot be and why."""

    def read(index: int) -> str | None:
        path = pictures[index].path
        try:
            pixels = _pixels(path, images.shape[1], size)
            if pixels.shape != images.shape[1:]:
                has, others = ("x".join(map(str, s[-2:])) for s in (pixels.shape, images.shape))
                raise ValueError(f"is {has} pixels, the first image {others}")
            images[index] = pixels
        except Exception as error:  # noqa: BLE001 - decoders raise anything on a damaged file
            return f"  {path}: {in_words(error).removeprefix(f'{path}: ')}"
        return None

    outcomes: list[str | None] = []
    with ThreadPoolExecutor(4) as pool:
        for begin in range(0, len(pictures), BATCH):
            end = min(begin + BATCH, len(pictures))
            report(f"reading images {begin + 1:,} to {end:,} of {len(pictures):,}")
            outcomes += pool.map(read, range(begin, end))
    return [*filter(None, outcomes)]


def _pixels(path: Path, channels: int, size: tuple[int, int] | None) -> Bytes:
    if not path.is_file():  # of a pipe, say, nothing may ever come
        raise ValueError("is not a regular file")
    with Image.open(path, formats=FORMATS) as picture:
        if size:
            picture.draft(None, (2 * max(size), 2 * max(size)))  # large JPEGs are decoded smaller
        return fitted(ImageOps.exif_transpose(picture), channels, size)


# ------------------------------------------------------------------------------------ an npz file


def _read_npz(path: Path) -> OwnImages:
    """The arrays of a file, checked.

    Raises:
        DataError: it is no such file, or its arrays are not images and their labels.
    """
    if not path.is_file():
        raise DataError(f"data.path: there is no file {path}")
    try:
        with zipfile.ZipFile(path) as archive:
            _refuse_too_large(path, sum(entry.file_size for entry in archive.infolist()))
        with np.load(path) as arrays:
            parts = [_labelled(arrays, split) for split in ("train", "test")]
        images, labels = map(np.concatenate, zip(*parts, strict=True))
    except (DataError, MemoryError):
        raise
    except Exception as error:  # on a damaged file the libraries raise anything
        hint = "make it with: numpy.savez(FILE, x_train=..., y_train=..., x_test=..., y_test=...)"
        raise DataError(f"{path}: {in_words(error)}", hint) from error
    found, train = np.unique(parts[0][1]), len(parts[0][1])
    if len(found) < 2 or list(found) != [*range(len(found))] or not set(labels) <= set(found):
        what = f"{path}: y_train has {len(found)} labels from {found[0]} to {found[-1]}"
        what += f", y_test from {parts[1][1].min()} to {parts[1][1].max()}"
        hint = "number two or more classes from 0, with training images of each"
        raise DataError(what, hint)
    return OwnImages(images, labels, tuple(map(str, found)), (train, 0, len(labels) - train))


def _labelled(arrays: Mapping[str, np.ndarray], split: str) -> tuple[Bytes, np.ndarray]:
    """Images as (n, channels, height, width) and labels as (n,), from how Keras has them.

    Raises:
        ValueError: they are not images and labels.
    """
    images, labels = arrays[f"x_{split}"], arrays[f"y_{split}"]
    if images.dtype != np.uint8:
        raise ValueError(f"x_{split} is {images.dtype}, not uint8 with pixels from 0 to 255")
    shape = images.shape if images.ndim == 4 else (*images.shape, 1)
    if len(shape) != 4 or shape[3] not in (1, 3) or 0 in shape:
        raise ValueError(f"x_{split} has shape {images.shape}, not (n, h, w) or (n, h, w, 1 or 3)")
    if labels.dtype.kind not in "iu" or labels.size != len(images):
        what = f"y_{split} is {labels.dtype} of shape {labels.shape}"
        raise ValueError(f"{what}, not {len(images)} integers, one for each image of x_{split}")
    pixels = np.ascontiguousarray(images.reshape(shape).transpose(0, 3, 1, 2))
    return pixels, labels.reshape(-1).astype(np.int64)
