"""The loop and the evaluation: one record per epoch, nothing written, nothing printed."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby
from typing import Literal, TypedDict

import torch
from torch import Tensor

from mnist_cli.config import Config
from mnist_cli.data.dataset import Dataset, Split, epoch_order
from mnist_cli.engine.capture import Captured
from mnist_cli.engine.optimizers import Optimizer, clip_grad_norm
from mnist_cli.engine.stack import PRECISIONS, Stack
from mnist_cli.models.losses import LOSSES, Loss
from mnist_cli.models.modules import build

EVAL_IMAGES = 8192  # images times replicas of one evaluation batch: enough to fill two cores
GATHERED = (
    1 << 19
)  # numbers of small batches that are gathered at once: 2 MiB, about a core's cache

# One epoch of one replica, as it stands in metrics.jsonl. Losses are means over images, accuracies
# fractions, `lr` that of the epoch's first step, times in seconds.
Record = TypedDict(
    "Record",
    {
        "epoch": int,
        "step": int,
        "lr": float,
        "train/loss": float,
        "train/acc": float,
        "val/loss": float,
        "val/acc": float,
        "time/epoch_s": float,
        "time/eval_s": float,
    },
)


@dataclass
class Training:
    """A stack on its way: what to train, on what, how long, and how far it has come.

    Attributes:
        seeds: the seed of each replica, R of them.
        steps: how many steps there are in all.
        reduction: whether gradients are of a batch's mean loss or of its sum.
        clip: the largest norm of each replica's gradient, shape (R,), if there is one.
        compile: whether forward pass and loss go through torch.compile.
        step: steps done; with the stack and the optimizer, all that ever changes.
        running: whether each replica is still running; one whose loss is not finite stops.
    """

    stack: Stack
    optimizer: Optimizer
    data: Dataset
    loss: Loss
    seeds: list[int]
    steps: int
    batch_size: int
    shuffle: bool
    reduction: Literal["mean", "sum"]
    clip: Tensor | None = None
    compile: bool = False
    step: int = 0
    running: list[bool] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.running = self.running or [True] * self.stack.replicas

    @property
    def steps_per_epoch(self) -> int:
        """Batches in one pass over the training images, a smaller last one included."""
        return math.ceil(len(self.data.train) / self.batch_size)

    @property
    def epochs(self) -> int:
        """Records there will be; the last epoch may be cut short by `steps`."""
        return math.ceil(self.steps / self.steps_per_epoch)


def prepare(configs: Sequence[Config], data: Dataset) -> Training:
    """A stack of runs about to begin, on the device of its data.

    Args:
        configs: of each replica; they differ only in what a stack can hold apart. Replicas that
            share a seed are neighbours, best in groups of one size: they share their batches.
        data: the data set of all of them.
    """
    config = configs[0]
    if config.train.precision == "bf16":
        # A CPU makes bfloat16 of bytes so slowly that it took a fifth of E5's step.
        data = replace(data, train=data.train.astype(PRECISIONS["bf16"].products))
    seeds = [each.train.seed for each in configs]
    models = [build(config.model, data.shape, len(data.classes), seed) for seed in seeds]
    stack = Stack(models, data.train.images.device, config.train.precision)
    limits = [each.train.clip_grad_norm for each in configs]
    clip = torch.tensor(
        [math.inf if limit is None else limit for limit in limits],
        dtype=PRECISIONS[config.train.precision].weights,
    )
    return Training(
        stack=stack,
        optimizer=Optimizer([(c.optimizer, c.scheduler) for c in configs], stack.parameters),
        data=data,
        loss=LOSSES[config.loss.name],
        seeds=seeds,
        steps=config.steps(len(data.train)),
        batch_size=config.data.batch_size,
        shuffle=config.data.shuffle,
        reduction=config.loss.reduction,
        clip=clip.to(stack.device) if any(limits) else None,
        compile=config.train.compile,
    )


class Totals:
    """Sums over the images of an epoch, one for each replica: nobody waits for them till its end.

    Args:
        stack: whose replicas are counted.
    """

    def __init__(self, stack: Stack) -> None:
        zeros = partial(torch.zeros, stack.replicas, device=stack.device)
        self._loss = zeros(dtype=torch.float64)
        self._correct = zeros(dtype=torch.int64)  # images whose highest logit is the right one
        self._pending: list[tuple[Tensor, Tensor, Tensor]] = []
        # On a CPU, where calling costs more than counting, a few batches are counted at once. A
        # captured step leaves nothing to be done by others.
        self._batches = 16 if stack.device.type == "cpu" else 1

    def add(self, losses: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Counts a batch: shapes (R, batch), (R, batch, classes) and (R, batch)."""
        self._pending.append((losses, logits, labels))
        if len(self._pending) >= self._batches:
            self._count()

    def means(self, images: int) -> tuple[list[float], list[float]]:
        """Mean losses and accuracies, R of each; it is counted from nothing again after that."""
        self._count()
        found = (self._loss / images).tolist(), (self._correct.double() / images).tolist()
        self._loss.zero_()  # in place: a captured step adds to these very tensors
        self._correct.zero_()
        return found

    def _count(self) -> None:
        if not self._pending:
            return
        losses, logits, labels = (torch.cat(parts, 1) for parts in zip(*self._pending, strict=True))
        self._pending.clear()
        self._loss += losses.sum(1)
        self._correct += (logits.argmax(-1) == labels).sum(1)


def train(run: Training) -> Iterator[list[Record]]:
    """Trains to the end, epoch by epoch; a caller that stops asking stops the training.

    Yields:
        A record for each replica after each epoch (R of them).
    """
    stack, optimizer, totals = run.stack, run.optimizer, Totals(run.stack)
    objective = torch.compile(_objective) if run.compile else _objective
    step: Callable[[Tensor, Tensor], None] = partial(_step, run, objective, totals)
    if stack.device.type == "cuda":
        step = Captured(step)
    while run.step < run.steps and any(run.running):
        began = time.perf_counter()
        epoch = run.step // run.steps_per_epoch
        optimizer.begin(epoch, run.step)
        rates = optimizer.rates()
        images_seen = 0
        for images, labels in batches(run, epoch):
            optimizer.begin(epoch, run.step)
            stack.train(run.step)
            step(images, labels)
            images_seen += labels.shape[1]
            run.step += 1
        train_loss, train_acc = totals.means(images_seen)  # the epoch's one wait for the device
        trained = time.perf_counter()
        val_loss, val_acc = evaluate(stack, run.data.val, run.loss)
        ended = time.perf_counter()
        run.running = [
            was and math.isfinite(a) and math.isfinite(b)
            for was, a, b in zip(run.running, train_loss, val_loss, strict=True)
        ]
        yield [
            {
                "epoch": epoch + 1,
                "step": run.step,
                "lr": rates[r],
                "train/loss": train_loss[r],
                "train/acc": train_acc[r],
                "val/loss": val_loss[r],
                "val/acc": val_acc[r],
                "time/epoch_s": trained - began,
                "time/eval_s": ended - trained,
            }
            for r in range(stack.replicas)
        ]


def _step(
    run: Training, objective: "Objective", totals: Totals, images: Tensor, labels: Tensor
) -> None:
    """One step of every replica: nothing in it waits for the device or depends on its results.

    Args:
        run: what is trained.
        objective: forward pass and loss.
        totals: where the batch is counted.
        images: shape (G, batch, channels, height, width).
        labels: shape (G, batch).
    """
    losses, logits, labels = objective(run.stack, run.loss, images, labels)
    gradients = run.stack.gradients(losses, 1 / losses.shape[1] if run.reduction == "mean" else 1.0)
    if run.clip is not None:
        clip_grad_norm(gradients, run.clip)
    run.optimizer.update(gradients)
    totals.add(losses.detach(), logits.detach(), labels)


Objective = Callable[[Stack, Loss, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


def _objective(
    stack: Stack, loss: Loss, images: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses (R, B), logits (R, B, classes) and labels (R, B) of a batch for each group."""
    logits = stack(images)
    if len(labels) < stack.replicas:
        labels = labels.repeat_interleave(stack.replicas // len(labels), 0)
    return loss(logits, labels), logits, labels


def batches(run: Training, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of an epoch, from the run's own step on.

    Yields:
        Images (G, batch, channels, height, width) and labels (G, batch), for each of G groups of
        R/G neighbouring replicas its own.
    """
    seeds = _groups(run.seeds) if run.shuffle else run.seeds[:1]
    orders = {s: epoch_order(s, epoch, len(run.data.train), run.shuffle) for s in set(seeds)}
    order = torch.stack([orders[seed] for seed in seeds]).to(run.stack.device)
    first = epoch * run.steps_per_epoch
    order = order[:, (run.step - first) * run.batch_size : (run.steps - first) * run.batch_size]
    one = len(seeds) * run.batch_size * run.data.train.images[0].numel()
    for index in order.split(max(1, GATHERED // one) * run.batch_size, dim=1):
        images, labels = run.data.train.batch(index, run.stack.dtype)
        yield from zip(
            images.split(run.batch_size, 1), labels.split(run.batch_size, 1), strict=True
        )


def _groups(seeds: list[int]) -> list[int]:
    """The seeds of groups of neighbouring replicas that see the same, if all are of one size.

    Else every replica is a group of its own.
    """
    groups = [(seed, len(list(alike))) for seed, alike in groupby(seeds)]
    one_size = len({size for _, size in groups}) == 1
    return [seed for seed, _ in groups] if one_size else seeds


@torch.no_grad()
def evaluate(stack: Stack, split: Split, loss: Loss) -> tuple[list[float], list[float]]:
    """Loss and accuracy of every replica on a whole split, each image counted once.

    Returns:
        Mean losses and fractions of images whose highest logit is the right one, R of each.
    """
    totals = Totals(stack)
    for logits, labels in _passed(stack, split):
        totals.add(loss(logits, labels), logits, labels)
    return totals.means(len(split))


@torch.no_grad()
def probabilities(stack: Stack, split: Split) -> Tensor:
    """How probable every replica finds each class of each image: float64, (R, images, classes)."""
    return torch.cat([logits.double().softmax(-1) for logits, _ in _passed(stack, split)], dim=1)


def _passed(stack: Stack, split: Split) -> Iterator[tuple[Tensor, Tensor]]:
    """A split in large batches: logits (R, batch, classes) and labels (R, batch)."""
    stack.eval()
    everything = torch.arange(len(split), device=stack.device)[None]
    for index in everything.split(max(1, EVAL_IMAGES // stack.replicas), dim=1):
        images, labels = split.batch(index, stack.dtype)
        logits = stack(images)
        yield logits, labels.expand(logits.shape[:2])
