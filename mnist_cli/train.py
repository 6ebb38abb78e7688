"""The loop and the evaluation: one record per epoch, nothing written, nothing printed."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, TypedDict

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from mnist_cli.data.dataset import Dataset, Split, epoch_order
from mnist_cli.losses import Loss
from mnist_cli.stack import Stack

EVAL_IMAGES = 8192  # images times replicas of one evaluation batch: enough to fill two cores

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
        interval: whether the schedule counts epochs or steps.
        step: steps done; with the stack, the optimizer and the scheduler, all that ever changes.
        running: whether each replica is still running; one whose loss is not finite stops.
    """

    stack: Stack
    optimizer: Optimizer
    scheduler: LRScheduler
    data: Dataset
    loss: Loss
    seeds: list[int]
    steps: int
    batch_size: int
    shuffle: bool
    reduction: Literal["mean", "sum"]
    interval: Literal["epoch", "step"]
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


def train(run: Training) -> Iterator[list[Record]]:
    """Trains to the end, epoch by epoch; a caller that stops asking stops the training.

    Yields:
        A record for each replica after each epoch (R of them).
    """
    stack, optimizer, split = run.stack, run.optimizer, run.data.train
    while run.step < run.steps and any(run.running):
        began = time.perf_counter()
        epoch = run.step // run.steps_per_epoch
        rates = [float(group["lr"]) for group in optimizer.param_groups]
        loss_sum = torch.zeros(stack.replicas, dtype=torch.float64, device=stack.device)
        correct = torch.zeros(stack.replicas, dtype=torch.int64, device=stack.device)
        images_seen = 0
        for index in epoch_batches(run, epoch):
            images, labels = split.batch(index, stack.dtype)  # (G, B, C, H, W) and (G, B)
            stack.train(run.step)
            logits = stack(images)  # (R, B, classes)
            labels = labels.expand(logits.shape[:2])  # (R, B)
            losses = run.loss(logits, labels)  # (R, B)
            stack.backward(losses.mean(1) if run.reduction == "mean" else losses.sum(1))
            optimizer.step()
            if run.interval == "step":
                run.scheduler.step()
            loss_sum += losses.detach().sum(1)
            correct += (logits.argmax(-1) == labels).sum(1)
            images_seen += index.shape[1]
            run.step += 1
        if run.interval == "epoch":
            run.scheduler.step()
        train_loss = (loss_sum / images_seen).tolist()  # the epoch's one wait for the device
        train_acc = (correct.double() / images_seen).tolist()
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


def epoch_batches(run: Training, epoch: int) -> Iterator[Tensor]:
    """Where each batch of an epoch lies, from the run's own step on.

    Yields:
        int64 indices of training images, shape (G, batch): G is 1 when all replicas have one order.
    """
    seeds = run.seeds if run.shuffle and len(set(run.seeds)) > 1 else run.seeds[:1]
    orders = {s: epoch_order(s, epoch, len(run.data.train), run.shuffle) for s in set(seeds)}
    order = torch.stack([orders[seed] for seed in seeds]).to(run.stack.device)
    batches = order.split(run.batch_size, dim=1)
    first = epoch * run.steps_per_epoch
    yield from batches[run.step - first : run.steps - first]


@torch.no_grad()
def evaluate(stack: Stack, split: Split, loss: Loss) -> tuple[list[float], list[float]]:
    """Loss and accuracy of every replica on a whole split, each image counted once.

    Returns:
        Mean losses and fractions of images whose highest logit is the right one, R of each.
    """
    loss_sum = torch.zeros(stack.replicas, dtype=torch.float64, device=stack.device)
    correct = torch.zeros(stack.replicas, dtype=torch.int64, device=stack.device)
    for logits, labels in _passed(stack, split):
        loss_sum += loss(logits, labels).sum(1)
        correct += (logits.argmax(-1) == labels).sum(1)
    return (loss_sum / len(split)).tolist(), (correct.double() / len(split)).tolist()


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
