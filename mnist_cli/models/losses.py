"""Losses, image by image: how a batch of them becomes one number is the loop's business."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from mnist_cli.models import scratch

Loss = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each image.

    Args:
        logits: scores before softmax, shape (..., classes).
        labels: class numbers, int64, shape (...).

    Returns:
        Losses in nats, shape (...).
    """
    flat = F.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="none")
    return flat.view(labels.shape)


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
