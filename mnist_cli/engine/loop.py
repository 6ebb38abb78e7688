"""The loop and the evaluation: one record per epoch, nothing written, nothing printed."""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby
from typing import Literal, TypedDict

import torch
from torch import Tensor

from mnist_cli.config import AugmentConfig, Config
from mnist_cli.data.augment import Augmentation, draws
from mnist_cli.data.dataset import Dataset, Split, epoch_order
from mnist_cli.engine.capture import Captured
from mnist_cli.engine.loss import MetricAccumulator, SoftmaxLoss
from mnist_cli.engine.optimizers import Optimizer, clip_grad_norm
from mnist_cli.engine.stack import PRECISIONS, Stack
from mnist_cli.engine.tape import Call
from mnist_cli.models.losses import Loss, cross_entropy, loss_of
from mnist_cli.models.modules import build

EVAL_IMAGES = 2048  # images times replicas of one evaluation batch: they stay in the cache

State = dict[str, Tensor]

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
        average: the exponential moving average of the stack, if that is what is to be evaluated.
        decay: how much of the average a step leaves.
        step: steps done; with the stack and the optimizer, all that ever changes.
        augment: how training images are changed.
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
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    average: Stack | None = None
    decay: float = 0.0
    step: int = 0
    running: list[bool] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.running = self.running or [True] * self.stack.replicas

    @property
    def evaluated(self) -> Stack:
        """What is validated and kept: the average of the stack if there is one, or itself."""
        return self.average or self.stack

    def state_dicts(self, replica: int) -> tuple[State, dict[str, State], State | None]:
        """All that one replica goes on from: copies on the CPU.

        Returns:
            Of the plain module as it is evaluated, of its moments by name, and if what is evaluated
            is an average, of the module that the steps change.
        """
        raw = self.stack.state_dict(replica) if self.average else None
        return self.evaluated.state_dict(replica), self.optimizer.state_dict(replica), raw

    def load_state_dicts(
        self, replica: int, model: State, moments: dict[str, State], raw: State | None
    ) -> None:
        """Sets all that one replica goes on from.

        Raises:
            KeyError: something is missing.
            RuntimeError: a shape differs.
        """
        self.evaluated.load_state_dict(replica, model)
        self.stack.load_state_dict(replica, model if raw is None else raw)
        self.optimizer.load_state_dict(replica, moments)

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
    if config.train.precision == "bf16" and not config.augment.active:
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
        optimizer=Optimizer(
            [(c.optimizer, c.scheduler) for c in configs], stack.weights, stack.gradients
        ),
        data=data,
        loss=loss_of(config.loss),
        seeds=seeds,
        steps=config.steps(len(data.train)),
        batch_size=config.data.batch_size,
        shuffle=config.data.shuffle,
        reduction=config.loss.reduction,
        clip=clip.to(stack.device) if any(limits) else None,
        augment=config.augment,
        average=Stack(models, stack.device, config.train.precision) if config.train.ema else None,
        decay=config.train.ema or 0.0,
    )


def compact(run: Training, configs: Sequence[Config | None], data: Dataset) -> Training:
    """The same stack, at the same step, without some of its replicas.

    Args:
        run: the training to go on with, at the end of an epoch.
        configs: of each replica, None for one that leaves.
        data: what was given to `prepare`.
    """
    kept = [replica for replica, config in enumerate(configs) if config]
    smaller = prepare([config for config in configs if config], data)
    smaller.step, smaller.running = run.step, [run.running[replica] for replica in kept]
    for place, replica in enumerate(kept):
        smaller.load_state_dicts(place, *run.state_dicts(replica))
    return smaller


class Pass:
    """What a stack computes from one batch, for batches of one shape; all its memory is kept.

    Args:
        stack: whose.
        split: where the images come from.
        loss: which one.
        shape: G, and how many images are in a batch.
        totals: where losses and hits are counted.
        weight: in training, what each image counts in the objective; None in evaluation.
        augment: how images are changed.

    Attributes:
        index: where the places of a batch's images in the split are put, shape (G, batch).
        augmentation: what changes them, if anything does.
        logits: shape (R, batch, classes), or (parts, batch / parts, classes).
        count: to be called in the end, counts the batches that are not yet counted.
    """

    def __init__(
        self,
        stack: Stack,
        split: Split,
        loss: Loss,
        shape: tuple[int, int],
        totals: MetricAccumulator,
        weight: float | None = None,
        augment: AugmentConfig | None = None,
    ) -> None:
        self.index = torch.zeros(shape, dtype=torch.int64, device=stack.device)
        images = split.images.new_zeros(*shape, *split.images.shape[1:], dtype=stack.dtype)
        parts = images.unflatten(1, (stack.parts(shape[1]), -1)).flatten(0, 1)
        flat = images.flatten(0, 1)
        self.augmentation = Augmentation(augment, split.scale, flat) if augment else None
        program = stack.program(parts, training=weight is not None)
        if program.without_rule and len(parts) > len(images):
            # What we know nothing of may mind what else is in its batch.
            parts, program = images, stack.program(images, training=weight is not None)
        self.logits = program.logits.data
        objective = SoftmaxLoss(program, len(parts), loss, totals, weight or 1.0)
        self.count = objective.count
        self._calls: list[Call] = [
            partial(_take, split.labels, self.index.flatten(), objective.labels.flatten()),
            *_gather(split, self.index.flatten(), flat, self.augmentation),
            *program.forward,
            *objective.calls,
            *(program.backward() if weight is not None else []),
        ]

    def __call__(self) -> None:
        """Computes all that there is to compute from the batch at `index`."""
        for call in self._calls:
            call()


def _take(rows: Tensor, index: Tensor, out: Tensor) -> None:
    torch.index_select(rows, 0, index, out=out)


def _gather(
    split: Split, index: Tensor, images: Tensor, augmentation: Augmentation | None
) -> list[Call]:
    """The calls that bring a batch's images to where they are read, scaled."""
    if augmentation:
        return [partial(_take, split.images, index, augmentation.pixels), augmentation]
    if split.images.dtype is images.dtype:
        return [partial(_take, split.images, index, images)]
    pixels = torch.empty_like(images, dtype=split.images.dtype)
    scale = torch.tensor(1 / split.scale, dtype=torch.float64)
    take = partial(_take, split.images, index, pixels)
    return [take, partial(images.copy_, pixels), partial(images.mul_, scale)]


def train(run: Training) -> Iterator[list[Record]]:
    """Trains to the end, epoch by epoch; a caller that stops asking stops the training.

    Yields:
        A record for each replica after each epoch (R of them).
    """
    totals = MetricAccumulator(run.stack.replicas, run.stack.device)
    steps: dict[int, tuple[Pass, Call]] = {}
    validation = Evaluation(run.evaluated, run.data.val, run.loss)
    while run.step < run.steps and any(run.running):
        began = time.perf_counter()
        epoch = run.step // run.steps_per_epoch
        run.optimizer.begin(epoch, run.step)
        rates = run.optimizer.learning_rates()
        images_seen = _make_steps(run, epoch, steps, totals)
        train_loss, train_acc = totals.means(images_seen)  # the epoch's one wait for the device
        trained = time.perf_counter()
        run.evaluated.refresh()
        val_loss, val_acc = validation.measure()
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
            for r in range(run.stack.replicas)
        ]


def _make_steps(
    run: Training, epoch: int, steps: dict[int, tuple[Pass, Call]], totals: MetricAccumulator
) -> int:
    """Makes the steps of an epoch, from the run's own step on.

    Args:
        run: the training.
        epoch: which one, counted from 0.
        steps: by the size of a batch what `_step` gave; gets what is missing.
        totals: where losses and hits are counted.

    Returns:
        How many images they were of.
    """
    images_seen = 0
    order = batches(run, epoch)
    rows = draws(run.augment, group_seeds(run), run.data.shape[1:], run.step, order)
    for index in order:
        groups, size = index.shape
        if size not in steps:
            steps[size] = _step(run, (groups, size), totals)
        one, step = steps[size]
        run.optimizer.begin(epoch, run.step)
        run.stack.begin(run.step)
        one.index.copy_(index)
        if one.augmentation:
            one.augmentation.rows.copy_(next(rows).flatten(0, 1))
        step()
        images_seen += size
        run.step += 1
    for one, _ in steps.values():
        one.count()
    return images_seen


def _step(run: Training, shape: tuple[int, int], totals: MetricAccumulator) -> tuple[Pass, Call]:
    """A training step for batches of one shape: nothing in it waits for the device.

    Returns:
        The pass, in whose `index` a batch is put, and what makes the step then.
    """
    weight = 1 / shape[1] if run.reduction == "mean" else 1.0
    augment = run.augment if run.augment.active else None
    one = Pass(run.stack, run.data.train, run.loss, shape, totals, weight, augment)

    def step() -> None:
        one()
        run.stack.collect()
        if run.clip is not None:
            clip_grad_norm(list(run.stack.gradients.views.values()), run.clip)
        run.optimizer.update()
        run.stack.refresh()
        if run.average is not None:
            # As torch's AveragedModel with use_buffers: it begins with what the first step makes.
            run.average.average_in(run.stack, 1 - run.decay if run.step else 1.0)

    return one, Captured(step) if run.stack.device.type == "cuda" else step


def batches(run: Training, epoch: int) -> list[Tensor]:
    """The batches of an epoch, from the run's own step on.

    Returns:
        For each the places of its images in the training split, shape (G, batch): a row for each
        of G groups of R/G neighbouring replicas.
    """
    seeds = group_seeds(run)
    orders = {s: epoch_order(s, epoch, len(run.data.train), run.shuffle) for s in set(seeds)}
    first = epoch * run.steps_per_epoch
    left = slice((run.step - first) * run.batch_size, (run.steps - first) * run.batch_size)
    order = torch.stack([orders[seed][left] for seed in seeds]).to(run.stack.device)
    return list(order.split(run.batch_size, dim=1))


def group_seeds(run: Training) -> list[int]:
    """The seeds of groups of neighbouring replicas that see the same, if all are of one size.

    Else every replica is a group of its own.
    """
    if not run.shuffle and not run.augment.active:
        return run.seeds[:1]
    groups = [(seed, len(list(alike))) for seed, alike in groupby(run.seeds)]
    one_size = len({size for _, size in groups}) == 1
    return [seed for seed, _ in groups] if one_size else run.seeds


class Evaluation:
    """Forward passes over a whole split, in large batches; all its memory is kept.

    Args:
        stack: whose.
        split: the images.
        loss: which one.
    """

    def __init__(self, stack: Stack, split: Split, loss: Loss) -> None:
        self._totals = MetricAccumulator(stack.replicas, stack.device)
        self._images = len(split)
        everything = torch.arange(len(split), device=stack.device)[None]
        self._indices = everything.split(max(1, EVAL_IMAGES // stack.replicas), dim=1)
        self._passes = {
            size: Pass(stack, split, loss, (1, size), self._totals)
            for size in {index.shape[1] for index in self._indices}
        }

    def passes(self) -> Iterator[Pass]:
        """One after another, each when it has computed its batch."""
        for index in self._indices:
            one = self._passes[index.shape[1]]
            one.index.copy_(index)
            one()
            yield one

    def measure(self) -> tuple[list[float], list[float]]:
        """Mean losses and accuracies, R of each."""
        for _ in self.passes():
            pass
        return self.means()

    def means(self) -> tuple[list[float], list[float]]:
        """Mean losses and accuracies of the passes that were made, R of each."""
        return self._totals.means(self._images)


def evaluate(stack: Stack, split: Split, loss: Loss) -> tuple[list[float], list[float]]:
    """Loss and accuracy of every replica on a whole split, each image counted once.

    Returns:
        Mean losses and fractions of images whose highest logit is the right one, R of each.
    """
    return Evaluation(stack, split, loss).measure()


def predictions(
    stack: Stack, split: Split, loss: Loss = cross_entropy
) -> tuple[list[float], list[float], Tensor]:
    """What `evaluate` gives, and the predictions that this is of.

    Returns:
        Mean losses and accuracies, R of each, and how probable every replica finds each class of
        each image: float64, shape (R, images, classes).
    """
    evaluation = Evaluation(stack, split, loss)
    found = [one.logits.double().softmax(-1).flatten(0, 1) for one in evaluation.passes()]
    rows = [each.unflatten(0, (stack.replicas, -1)) for each in found]
    return *evaluation.means(), torch.cat(rows, dim=1)
