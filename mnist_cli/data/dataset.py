"""A data set in memory: uint8 images on the device, split in three, batches by index."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mnist_cli.config.schema import DataConfig, OwnData, SyntheticData
from mnist_cli.data.catalog import DATASETS
from mnist_cli.data.formats import Arrays
from mnist_cli.data.own import SPLITS, read
from mnist_cli.data.prepared import prepare
from mnist_cli.data.seeds import derive
from mnist_cli.errors import DataError, UsageError


@dataclass(frozen=True)
class Split:
    """Images and their labels, in a fixed order.

    Attributes:
        images: shape (n, channels, height, width); uint8, or of a floating-point type and scaled.
        labels: int64, shape (n,).
        scale: what a pixel is divided by when a batch is made (255 or 1).
    """

    images: Tensor
    labels: Tensor
    scale: float

    def __len__(self) -> int:
        return len(self.labels)

    def astype(self, dtype: torch.dtype) -> "Split":
        """The same split with its images scaled and converted once, and not at every step."""
        images = self.images.to(dtype).div_(self.scale)
        return Split(images, self.labels, self.scale)


@dataclass(frozen=True)
class Dataset:
    """The three splits of one data set, on one device.

    Attributes:
        name: as in the config.
        classes: the name of each class.
        sha256: sum of the images and labels that the splits were made from.
    """

    name: str
    classes: tuple[str, ...]
    sha256: str
    train: Split
    val: Split
    test: Split

    def split(self, name: str) -> Split:
        """A split by name: `train`, `val` or `test`."""
        return {"train": self.train, "val": self.val, "test": self.test}[name]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width


def load(config: DataConfig, device: torch.device, report: Callable[[str], None]) -> Dataset:
    """The data set of a config, fetched first if it has to be.

    Args:
        config: the data section.
        device: where the images shall lie.
        report: takes a sentence about what is being fetched.

    Raises:
        DataError: it is missing and cannot be fetched, or is not what it should be.
    """
    if isinstance(config, OwnData):
        own = read(config, report)
        images, labels, classes, sha256 = own.images, own.labels, own.classes, own.sha256
        splits = _split_own(config, own.counts, report)
    else:
        if isinstance(config, SyntheticData):
            holdout, arrays = config.size // 7, synthesize(config.size, config.seed)
        else:
            holdout, arrays = DATASETS[config.name].holdout, prepare(config.name, report=report)
        images = np.concatenate([arrays.train_images, arrays.test_images])
        labels = np.concatenate([arrays.train_labels, arrays.test_labels])
        classes, sha256 = form(config)[1], arrays.sha256
        splits = _split(config, len(labels), len(arrays.train_labels), holdout)
    train, val, test = (
        Split(
            torch.from_numpy(images[index]).to(device),
            torch.from_numpy(labels[index].astype(np.int64)).to(device),
            scale=scale(config),
        )
        for index in splits
    )
    return Dataset(config.name, classes, sha256, train, val, test)


def form(config: DataConfig) -> tuple[tuple[int, int, int], tuple[str, ...]]:
    """The shape (channels, height, width) of an image and the name of each class.

    Nothing is fetched or read for it: a model can be built without its data.

    Raises:
        UsageError: it is of a user's own, whose config does not say.
    """
    if isinstance(config, OwnData):
        raise UsageError(f"of {config.path} nothing is known before a run has read it")
    if isinstance(config, SyntheticData):
        return (1, 28, 28), tuple("0123456789")
    spec = DATASETS[config.name]
    return spec.shape, spec.classes


def scale(config: DataConfig) -> float:
    """What a pixel of 0..255 is divided by."""
    return 255 if config.normalize else 1


def epoch_order(seed: int, epoch: int, images: int, shuffle: bool) -> Tensor:
    """The order in which one epoch visits the training images: a pure function of its arguments.

    Returns:
        A permutation of 0..images-1, int64, on the CPU, whatever device trains.
    """
    if not shuffle:
        return torch.arange(images)
    generator = torch.Generator().manual_seed(derive(seed, "order", epoch))
    return torch.randperm(images, generator=generator)


def synthesize(size: int, seed: int) -> Arrays:
    """Ten smooth random shapes, each shifted, dimmed and covered with noise: small and learnable.

    Args:
        size: images in all; six of seven are training images.
        seed: the images are a function of it.
    """
    random = np.random.default_rng(derive(seed, "synthetic"))
    coarse = random.random((10, 7, 7)) ** 2
    shapes = np.kron(coarse, np.ones((4, 4)))  # (10, 28, 28)
    labels = random.integers(0, 10, size)
    shifts = random.integers(-3, 4, (size, 2))
    images = np.empty((size, 1, 28, 28), np.uint8)
    for index, (label, shift) in enumerate(zip(labels, shifts, strict=True)):
        shape = np.roll(shapes[label], shift, axis=(0, 1)) * random.uniform(0.5, 1.0)
        noisy = shape + random.normal(0, 0.15, (28, 28))
        images[index, 0] = (noisy.clip(0, 1) * 255).astype(np.uint8)
    train = size - size // 7
    digits = labels.astype(np.uint8)
    return Arrays(images[:train], digits[:train], images[train:], digits[train:])


def _split(
    config: DataConfig, size: int, train: int, holdout: int
) -> tuple[slice | np.ndarray, ...]:
    """Which of all images train, validate and test; what a split means is said in the schema.

    Args:
        config: says how to split.
        size: images in all.
        train: how many of them, the first, are training images.
        holdout: how many of those, the last, may be held out.
    """
    if config.split == "official":
        return slice(train), slice(train, None), slice(train, None)
    if config.split == "holdout":
        return slice(train - holdout), slice(train - holdout, train), slice(train, None)
    order = np.random.default_rng(derive(config.seed, "split")).permutation(size)
    return tuple(np.split(order, [size - size // 10 * 2, size - size // 10]))


def _split_own(
    config: OwnData, counts: Sequence[int], report: Callable[[str], None]
) -> tuple[slice | np.ndarray, ...]:
    """As `_split`, for images that come in splits, or lack some of them.

    Args:
        config: says how to split.
        counts: how many images are for training, validation and testing; 0: they lack that split.
        report: takes a sentence about what is drawn.

    Raises:
        DataError: there are too few images, or no test images to validate on.
    """
    ends = np.cumsum(counts)
    train, val, test = (slice(end - n, end) for n, end in zip(counts, ends, strict=True))
    if config.split == "official":
        if not counts[2]:
            raise DataError(f"{config.path} has no test images, so data.split cannot be official")
        return train, test, test
    lacking = [name for name, count in zip(SPLITS, counts, strict=True) if not count]
    if not lacking:
        return train, val, test
    number, tenth = counts[0], counts[0] // 10
    what = f"{config.path}: {' and '.join(lacking)}: a tenth of {number:,} training images"
    if not tenth:
        raise DataError(f"{what} is none")
    report(f"{what}, drawn by data.seed")
    order = np.random.default_rng(derive(config.seed, "split")).permutation(number)
    rest, *drawn = np.split(order, [number - tenth * n for n in range(len(lacking), 0, -1)])
    return rest, val if counts[1] else drawn[0], test if counts[2] else drawn[-1]
