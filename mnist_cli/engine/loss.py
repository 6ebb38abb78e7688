"""The loss at the end of a program: its gradient, and the count of losses and hits.

All losses of `models.losses` are the cross-entropy of a softmax, written in one way or another. Be
p = softmax(z) and q what p should be, then the loss is -sum(q log p), and its gradient by the
logits p - q (Goodfellow, Bengio and Courville 2016, section 6.2.2.3). Of K classes the right one
has q = 1 - e + e/K and every other e/K, where e is the label smoothing. The logits of some steps
are kept and counted at once, so that figures cost a step no more than a copy.
"""

import math

import torch
from torch import Tensor

from mnist_cli.engine.program import Program
from mnist_cli.engine.tape import Call, Tape, alike
from mnist_cli.models.losses import CrossEntropy, Loss, scratch_cross_entropy

KEPT = 16  # steps whose logits are kept on a CPU, where a call costs more than counting


class MetricAccumulator:
    """Sums over the images of an epoch, one for each replica: nothing waits for them till its end.

    Args:
        replicas: R.
        device: where they lie.
    """

    def __init__(self, replicas: int, device: torch.device) -> None:
        self._loss = torch.zeros(replicas, dtype=torch.float64, device=device)
        self._hits = torch.zeros(replicas, dtype=torch.int64, device=device)

    def add(
        self, logits: Tensor, labels: Tensor, axis: int, least: float, smoothing: float = 0.0
    ) -> None:
        """Counts some steps.

        Args:
            logits: shape (steps, G, R/G, ...) with batch and classes behind.
            labels: the same with one class, as of one replica in each group.
            axis: along which the classes lie.
            least: what the logarithm of a probability counts at least.
            smoothing: of the labels.
        """
        logarithms = logits.log_softmax(axis)
        guesses = logarithms.max(axis, keepdim=True).indices  # of equal ones the first
        right = torch.take_along_dim(logarithms, labels, axis).clamp_min_(least)
        if smoothing:
            right = right * (1 - smoothing) + logarithms.mean(axis, keepdim=True) * smoothing
        rows = len(self._hits), -1  # in parts, if a batch is taken so
        self._hits += (guesses == labels).sum((0, 3, 4)).view(rows).sum(1)
        self._loss -= right.sum((0, 3, 4), dtype=torch.float64).view(rows).sum(1)

    def means(self, images: int) -> tuple[list[float], list[float]]:
        """Mean losses and accuracies, R of each; it is counted from nothing again after that."""
        found = (self._loss / images).tolist(), (self._hits.double() / images).tolist()
        self._loss.zero_()  # in place: a captured step adds to these very tensors
        self._hits.zero_()
        return found


class SoftmaxLoss:
    """The loss of a program's logits.

    Args:
        program: whose; if it trains, its `logits.grad` is made here.
        groups: G.
        loss: which one.
        totals: where losses and hits are counted.
        weight: what each image counts in the objective: 1 for their sum, 1/batch for their mean.

    Attributes:
        labels: where the labels of a batch are put, shape (G, batch).
        calls: what computes the gradient, if the program trains, and keeps what is to be counted.
    """

    def __init__(
        self,
        program: Program,
        groups: int,
        loss: Loss,
        totals: MetricAccumulator,
        weight: float = 1.0,
    ) -> None:
        logits, tape = program.logits, program.tape
        turned = logits.data.mT.is_contiguous()  # a linear layer has the batch last in memory
        z, self._axis = (logits.data.mT, -2) if turned else (logits.data, -1)
        self._z = z.unflatten(0, (groups, -1))
        exact = torch.float32 if z.dtype is torch.bfloat16 else z.dtype
        # Written so it rounds: what is less probable than the smallest float has no gradient.
        rounds = loss is scratch_cross_entropy
        self._smoothing = loss.label_smoothing if isinstance(loss, CrossEntropy) else 0.0
        self._least = math.log(torch.finfo(exact).tiny) if rounds else -math.inf
        # A captured step leaves nothing to be done by others.
        kept = KEPT if tape.training and z.device.type == "cpu" else 1
        self.labels = torch.zeros(groups, logits.data.shape[1], device=z.device).long()
        self._labels = self.labels.new_zeros(kept, *self.labels.shape)
        self._logits = z.new_zeros(kept, *self._z.shape, dtype=exact)
        self._places = list(zip(self._logits, self._labels, strict=True))
        self._totals, self._kept = totals, 0
        tape.calls = []
        if tape.training:
            logits.grad = alike(logits.data)
            self._gradient(tape, logits.grad.mT if turned else logits.grad, weight)
        self.calls: list[Call] = [*tape.calls, self._keep]

    def _gradient(self, tape: Tape, dz: Tensor, weight: float) -> None:
        """Dz = (p - q) * weight; where p[c] was rounded to less than the least, 0."""
        dz, exact = dz.view(self._z.shape), self._logits.dtype
        p = dz if dz.dtype is exact else torch.empty_like(dz, dtype=exact)
        right = self._beside(self.labels).expand_as(p.narrow(self._axis, 0, 1))
        tape.call(torch.softmax, self._z, self._axis, dtype=exact, out=p)
        if self._least > -math.inf:
            seen = p.new_empty(right.shape)
            tape.call(torch.gather, p, self._axis, right, out=seen)
            tape.call(torch.ge, seen, torch.finfo(exact).tiny, out=seen)
        if self._smoothing:
            tape.call(p.sub_, self._smoothing / p.shape[self._axis])
        certain = p.new_full((), self._smoothing - 1).expand(right.shape)
        tape.call(p.scatter_add_, self._axis, right, certain)
        tape.call(p.mul_, p.new_full((), weight))
        if self._least > -math.inf:
            tape.call(p.mul_, seen)
        if p is not dz:
            tape.call(dz.copy_, p)

    def _beside(self, labels: Tensor) -> Tensor:
        """Labels, (..., G, batch), with the axes of logits: (..., G, R/G, ...), these of size 1."""
        return labels.unsqueeze(-2).unsqueeze(self._axis)

    def _keep(self) -> None:
        logits, labels = self._places[self._kept]
        logits.copy_(self._z)
        labels.copy_(self.labels)
        self._kept += 1
        if self._kept == len(self._places):
            self.count()

    def count(self) -> None:
        """Counts the batches that are kept."""
        kept, self._kept = self._kept, 0
        if kept:
            right = self._beside(self._labels[:kept])
            self._totals.add(self._logits[:kept], right, self._axis, self._least, self._smoothing)
