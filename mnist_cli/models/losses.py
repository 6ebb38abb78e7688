"""Losses, image by image: how a batch of them becomes one number is the loop's business."""

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from mnist_cli.config.schema import LossConfig
from mnist_cli.models import scratch

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class CrossEntropy:
    """Cross-entropy of each image, as `torch.nn.CrossEntropyLoss` has it.

    Attributes:
        label_smoothing: the share of a target that is spread evenly over all classes (Szegedy et
            al. 2016, section 7).
    """

    label_smoothing: float = 0.0

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Losses of a batch.

        Args:
            logits: scores before softmax, shape (..., classes).
            labels: class numbers, int64, shape (...).

        Returns:
            Losses in nats, shape (...).
        """
        flat = F.cross_entropy(
            *(logits.flatten(0, -2), labels.flatten()),
            reduction="none",
            label_smoothing=self.label_smoothing,
        )
        return flat.view(labels.shape)


cross_entropy = CrossEntropy()


def nll(logits: Tensor, labels: Tensor) -> Tensor:
    """Negative log-likelihood of log-softmax: `cross_entropy` in two steps, shapes as there."""
    log_probabilities = F.log_softmax(logits, dim=-1).flatten(0, -2)
    return F.nll_loss(log_probabilities, labels.flatten(), reduction="none").view(labels.shape)


def scratch_nll(logits: Tensor, labels: Tensor) -> Tensor:
    """`nll` without `torch.nn`, shapes as there."""
    return scratch.nll(scratch.log_softmax(logits), labels)


def scratch_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of probabilities against one-hot targets, shapes as in `cross_entropy`.

    The same number while no probability is rounded to 0; see `scratch.cross_entropy`.
    """
    targets = scratch.one_hot(labels, logits.shape[-1])
    return scratch.cross_entropy(scratch.softmax(logits), targets)


LOSSES: dict[str, Loss] = {
    "cross_entropy": cross_entropy,
    "nll": nll,
    "scratch_nll": scratch_nll,
    "scratch_cross_entropy": scratch_cross_entropy,
}


def loss_of(config: LossConfig) -> Loss:
    """The loss that a config asks for, image by image."""
    if config.label_smoothing:
        return CrossEntropy(config.label_smoothing)
    return LOSSES[config.name]
