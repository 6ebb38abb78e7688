"""The loss at the end of a program: its gradient, and the count of losses and hits.

All losses of `models.losses` are the cross-entropy of a softmax, written in one way or another. Be
p = softmax(z) and c the right class, then the loss is -log p[c], and its gradient by the logits
p - onehot(c) (Goodfellow, Bengio and Courville 2016, section 6.2.2.3). The logarithms it takes are
kept for some steps and counted at once, so that figures cost no pass of their own.
"""

import math

import torch
from torch import Tensor

from mnist_cli.engine.program import Program
from mnist_cli.engine.tape import Call, Tape, Value, alike
from mnist_cli.models.losses import Loss, scratch_cross_entropy

KEPT = 16  # steps whose logarithms are kept on a CPU, where a call costs more than counting


class MetricAccumulator:
    """Sums over the images of an epoch, one for each replica: nothing waits for them till its end.

    Args:
        replicas: R.
        device: where they lie.
    """

    def __init__(self, replicas: int, device: torch.device) -> None:
        self._loss = torch.zeros(replicas, dtype=torch.float64, device=device)
        self._hits = torch.zeros(replicas, dtype=torch.int64, device=device)

    def add(self, logarithms: Tensor, labels: Tensor, axis: int, least: float) -> None:
        """Counts some steps.

        Args:
            logarithms: of probabilities, shape (steps, G, R/G, ...) with batch and classes behind.
            labels: the same shape with one class.
            axis: along which the classes lie.
            least: what a logarithm counts at least.
        """
        guesses = logarithms.max(axis, keepdim=True).indices  # of equal ones the first
        right = logarithms.gather(axis, labels).clamp_min_(least)
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
        kept: how many steps are counted at once.
        weight: what each image counts in the objective: 1 for their sum, 1/batch for their mean.

    Attributes:
        labels: where the labels of each kept step are put, shape (kept, G, batch).
        calls: for each kept step, what computes its logarithms and the gradient.
    """

    def __init__(
        self, program: Program, groups: int, loss: Loss, kept: int, weight: float = 1.0
    ) -> None:
        logits, tape = program.logits, program.tape
        turned = logits.data.mT.is_contiguous()  # a linear layer has the batch last in memory
        z = logits.data.mT if turned else logits.data
        shape = (groups, tape.replicas // groups, *z.shape[1:])
        exact = torch.float32 if z.dtype is torch.bfloat16 else z.dtype
        self._axis = 3 if turned else 4
        self.labels = torch.zeros(
            kept, groups, logits.data.shape[1], dtype=torch.int64, device=z.device
        )
        self._right = self.labels.unsqueeze(2).unsqueeze(self._axis)
        self._right = self._right.expand(-1, -1, shape[1], -1, -1)
        self._logarithms = z.new_zeros((kept, *shape), dtype=exact)
        # Written so it rounds: what is less probable than the smallest float has no gradient.
        rounds = loss is scratch_cross_entropy
        self._least = math.log(torch.finfo(exact).tiny) if rounds else -math.inf
        self.calls: list[list[Call]] = []
        if tape.training:
            logits.grad = alike(logits.data)
        for logarithms, right in zip(self._logarithms, self._right, strict=True):
            tape.calls = []
            into = logarithms.view(z.shape)
            source = z if exact is z.dtype else into
            if source is into:
                tape.call(into.copy_, z)
            if tape.training:
                self._gradient(tape, logits, source, right, weight)
            tape.call(torch.log_softmax, source, self._axis - 2, out=into)
            self.calls.append(tape.calls)

    def _gradient(self, tape: Tape, logits: Value, z: Tensor, right: Tensor, weight: float) -> None:
        """Dz = (p - onehot(c)) * weight; where p[c] was rounded to less than the least, 0."""
        assert logits.grad is not None
        given = logits.grad.mT if self._axis == 3 else logits.grad
        p = given if given.dtype is z.dtype else torch.empty_like(z)
        dz = p.view(*right.shape[:2], *z.shape[1:])
        minus, axis = dz.new_full((), -1.0).expand(right.shape), self._axis - 1
        tape.call(torch.softmax, z, self._axis - 2, out=p)
        if self._least > -math.inf:
            seen = dz.new_empty(right.shape)
            tape.call(torch.gather, dz, axis, right, out=seen)
            tape.call(torch.ge, seen, torch.finfo(dz.dtype).tiny, out=seen)
        tape.call(dz.scatter_add_, axis, right, minus)
        tape.call(dz.mul_, dz.new_full((), weight))
        if self._least > -math.inf:
            tape.call(dz.mul_, seen)
        if p is not given:
            tape.call(given.copy_, p)

    def count(self, totals: MetricAccumulator, steps: int) -> None:
        """Counts the first of the kept steps."""
        kept = self._logarithms[:steps], self._right[:steps]
        totals.add(*kept, self._axis, self._least)
