"""Using a checkpoint: its loss and accuracy on a split, its predictions, its mistakes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from mnist_cli.config import Config, load_saved
from mnist_cli.data.dataset import Dataset, Split, scale
from mnist_cli.engine import loop
from mnist_cli.engine.device import resolve_device
from mnist_cli.engine.stack import Stack
from mnist_cli.errors import UsageError
from mnist_cli.models.losses import loss_of
from mnist_cli.models.modules import build
from mnist_cli.runs import checkpoint as checkpoints
from mnist_cli.runs import grade
from mnist_cli.runs.checkpoint import Checkpoint
from mnist_cli.runs.datasets import Datasets

AS_SEEN = {"batch_size", "shuffle", "normalize", "path"}
"""Settings of data that do not change which images are in a split."""


def module(state: Checkpoint, config: Config) -> nn.Module:
    """A checkpoint's model as a plain module on the CPU.

    Raises:
        CheckpointError: the weights are not those of the config's model.
    """
    shape, classes = state.form
    model = build(config.model, shape, len(classes), config.train.seed)
    checkpoints.fit(model, state)
    return model


def restore(state: Checkpoint, config: Config) -> Stack:
    """A checkpoint's model, ready to use on the device of a config: a stack of one.

    Args:
        state: the checkpoint.
        config: its config, or one that differs in data of the same shape and in device.

    Raises:
        CheckpointError: the weights are not those of the config's model.
        UsageError: the device is not there.
    """
    model = module(state, config)
    return Stack([model], resolve_device(config.train.device), config.train.precision)


def evaluate(
    state: Checkpoint, config: Config, split: str, datasets: Datasets
) -> tuple[float, float, int]:
    """Loss and accuracy of a checkpoint on one split.

    Args:
        state: the checkpoint.
        config: its config, or one that differs in data and device.
        split: `train`, `val` or `test`.
        datasets: where the data comes from.

    Returns:
        The mean loss, the fraction of images classified rightly, and the number of images.

    Raises:
        CheckpointError: the weights are not those of the config's model.
        UsageError: the images are of another shape, or of another number of classes.
        MnistError: the data or the device are not there.
    """
    stack, images = restore(state, config), _data(state, config, datasets).split(split)
    (loss,), (accuracy,) = loop.evaluate(stack, images, loss_of(config.loss))
    return loss, accuracy, len(images)


def _data(state: Checkpoint, config: Config, datasets: Datasets) -> Dataset:
    """The data of a config, which a checkpoint can be used on.

    Raises:
        UsageError: the images are of another shape, or of another number of classes.
        MnistError: the data or the device are not there.
    """
    data, (shape, classes) = datasets.get(config), state.form
    if (data.shape, len(data.classes)) != (shape, len(classes)):
        what = f"{data.name} has images of {data.shape} in {len(data.classes)} classes"
        raise UsageError(f"{what}, but the checkpoint is for {shape} in {len(classes)}")
    return data


def probabilities(state: Checkpoint, config: Config, images: np.ndarray) -> np.ndarray:
    """The probability that a checkpoint gives each class, for each image.

    Args:
        state: the checkpoint.
        config: its config, or one that differs in device.
        images: uint8, shape (n, channels, height, width), as the data set has them.

    Returns:
        Float, shape (n, classes).

    Raises:
        CheckpointError: the weights are not those of the config's model.
        UsageError: the device is not there, or the images are of another shape or type.
    """
    shape, classes = state.form
    if images.dtype != np.uint8 or images.shape[1:] != shape:
        got = f"{images.dtype} of shape {images.shape}"
        raise UsageError(f"images: must be uint8 of shape (n, {str(shape)[1:]}, got {got}")
    if not len(images):
        return np.zeros((0, len(classes)))
    stack = restore(state, config)
    pixels = torch.from_numpy(np.ascontiguousarray(images)).to(stack.device)
    labels = torch.zeros(len(pixels), dtype=torch.int64, device=stack.device)  # unknown, unused
    _, _, (rows,) = loop.predictions(stack, Split(pixels, labels, scale(config.data)))
    found: np.ndarray = rows.cpu().numpy()
    return found


@dataclass(frozen=True)
class Classified:
    """The predictions of a checkpoint on a split.

    Attributes:
        images: uint8, shape (n, channels, height, width).
        labels: the true classes, int64, shape (n,).
        probabilities: of each class, float64, shape (n, classes).
        classes: the name of each class.
        loss: the mean, as `evaluate` gives it.
        accuracy: likewise.
    """

    images: np.ndarray
    labels: np.ndarray
    probabilities: np.ndarray
    classes: tuple[str, ...]
    loss: float
    accuracy: float

    @property
    def guesses(self) -> np.ndarray:
        """The most probable classes, int64, shape (n,)."""
        guesses: np.ndarray = self.probabilities.argmax(1)
        return guesses

    @property
    def confidences(self) -> np.ndarray:
        """Their probabilities, float64, shape (n,)."""
        confidences: np.ndarray = self.probabilities.max(1)
        return confidences

    @property
    def counts(self) -> np.ndarray:
        """The confusion matrix: true classes in rows, predicted in columns."""
        table = np.zeros((len(self.classes), len(self.classes)), np.int64)
        np.add.at(table, (self.labels, self.guesses), 1)
        return table

    def mistakes(self, most: int) -> np.ndarray:
        """Indices of the most confident mistakes, the most confident first, `most` at most."""
        wrong = np.flatnonzero(self.labels != self.guesses)
        return wrong[np.argsort(-self.confidences[wrong], kind="stable")][:most]


def classify(state: Checkpoint, config: Config, split: str, datasets: Datasets) -> Classified:
    """The predictions of a checkpoint on a split; arguments and errors as `evaluate`."""
    stack, data = restore(state, config), _data(state, config, datasets)
    images = data.split(split)
    (loss,), (accuracy,), found = loop.predictions(stack, images, loss_of(config.loss))
    return Classified(
        images=images.images.cpu().numpy(),
        labels=images.labels.cpu().numpy(),
        probabilities=found[0].cpu().numpy(),
        classes=data.classes,
        loss=loss,
        accuracy=accuracy,
    )


def check_same_data(states: Sequence[Checkpoint]) -> None:
    """Sees to it that checkpoints were trained on the same images, split in the same way.

    Raises:
        UsageError: they were not.
    """
    data = [load_saved(state.config, "its config").data for state in states]
    known = zip(data, states, strict=True)
    if len({(d.model_dump_json(exclude=AS_SEEN), s.data.get("sha256")) for d, s in known}) > 1:
        raise UsageError("the runs were trained on different data, or on different splits of it")


def ensemble(predictions: Sequence[Classified]) -> Classified:
    """The predictions by the mean of the probabilities that several give the same images."""
    mean = np.mean([each.probabilities for each in predictions], axis=0)
    together = replace(predictions[0], probabilities=mean)
    right = together.guesses == together.labels
    loss = grade.nll(mean, together.labels)
    return replace(together, loss=loss, accuracy=float(right.mean()))
