"""Losses, image by image: how a batch of them becomes one number is the loop's business."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

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


LOSSES: dict[str, Loss] = {"cross_entropy": cross_entropy, "nll": nll}
