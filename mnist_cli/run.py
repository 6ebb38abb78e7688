"""From configs to finished run folders: builds the stack, drains the loop into the store."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from mnist_cli import checkpoint as checkpoints
from mnist_cli import config as configs
from mnist_cli import store
from mnist_cli.checkpoint import Checkpoint
from mnist_cli.config import Config
from mnist_cli.data.dataset import Dataset, load
from mnist_cli.errors import INTERRUPTIONS, UsageError
from mnist_cli.losses import LOSSES
from mnist_cli.models import build
from mnist_cli.optim import build_optimizer, build_scheduler
from mnist_cli.stack import Stack
from mnist_cli.store import RunDirectory, Status
from mnist_cli.train import Record, Training, evaluate, train

# Multiply-adds of a forward pass from which more than one thread pays. Threads that wait for each
# other spin: on two cores an epoch of E1's sweep (7 million) takes 1.5 s with two threads and 1.7 s
# with one, but beside another busy process up to 60 s with two and 2 s with one. E5's depth 5 (600
# million) takes 0.9 s with two and 1.6 s with one.
THREADS_PAY = 20_000_000

DTYPES = {"fp32": torch.float32, "fp64": torch.float64}


def resolve_device(name: str) -> torch.device:
    """The device of a config's `train.device`.

    Raises:
        UsageError: it is not there; names those that are.
    """
    available = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if name == "auto":
        return torch.device(available[1] if len(available) > 1 else "cpu")
    wanted = "cuda:0" if name == "cuda" else name
    if wanted not in available:
        raise UsageError(
            f"train.device: there is no {name} here", f"available: {', '.join(available)}"
        )
    return torch.device(wanted)


def describe_device(device: torch.device) -> str:
    """A device in words: what it is, and on a CPU with how many threads."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    threads = torch.get_num_threads()
    return f"cpu, {threads} thread{'s' * (threads > 1)}"


class Datasets:
    """Loads the data of configs, keeping the last: runs after one another mostly share theirs.

    Args:
        report: takes a sentence about data being fetched.
    """

    def __init__(self, report: Callable[[str], None]) -> None:
        self._report = report
        self._last: tuple[str, Dataset] | None = None

    def get(self, config: Config) -> Dataset:
        """The data of a config, on its device.

        Raises:
            UsageError: the device is not there.
            DataError: the data is missing or not what it should be.
        """
        device = resolve_device(config.train.device)
        key = f"{device} {config.data.model_dump_json(exclude={'batch_size', 'shuffle'})}"
        if self._last is None or self._last[0] != key:
            self._last = None  # two at once would only cost memory
            self._last = key, load(config.data, device, self._report)
        return self._last[1]


@dataclass
class Run:
    """One run on its way: its config, its folder, and what it has come to.

    Attributes:
        records: one per epoch.
        best: the record of the best epoch, if any epoch was finite.
        final: what was measured once after the last epoch (with `train.eval_train`).
        seconds: how long it has trained, with the stack it is part of.
    """

    config: Config
    folder: RunDirectory
    status: Status = "waiting"
    records: list[Record] = field(default_factory=list)
    best: Record | None = None
    final: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    meta: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """The folder can be looked at from the first moment."""
        self.folder.write_config(configs.dump(self.config))
        self.tell(**store.new_meta(status=self.status))

    def tell(self, **more: Any) -> None:
        """Says in the folder how the run goes on."""
        self.meta |= more
        self.folder.write_meta(self.meta)

    def summary(self) -> dict[str, Any]:
        """What `train --json` prints and summary.json holds."""
        best = self.best
        return {
            "run": self.folder.name,
            "status": self.status,
            "epochs": len(self.records),
            "seconds": round(self.seconds, 3),
            "best": best and {key: best[key] for key in ("epoch", "val/loss", "val/acc")},
            **({"final": self.final} if self.final else {}),
            "checkpoint": str(self.folder.best) if best else None,
        }

    def figures(self, metric: str) -> list[float]:
        """A metric epoch by epoch; the last one measured with the final weights, if it was."""
        found = [float(record[metric]) for record in self.records if metric in record]  # type: ignore[literal-required]
        return [*found[:-1], self.final[metric]] if metric in self.final else found

    def end(self, status: Status, error: str | None = None) -> None:
        """Says in the folder how the run ended."""
        self.status = status
        why = {} if error is None else {"error": error}
        self.tell(status=status, ended=store.now(), seconds=round(self.seconds, 3), **why)
        self.folder.write_summary(self.summary())


def goodness(record: Record, select: str) -> tuple[float, float]:
    """How good an epoch is, by `train.select`: accuracy, then loss; or loss alone."""
    if select == "loss":
        return -record["val/loss"], 0.0
    return record["val/acc"], -record["val/loss"]


def better(a: Record, b: Record | None, select: str = "acc") -> bool:
    """Whether epoch `a` is better than `b`.

    What is not finite is never better than anything, and anything finite is better than nothing.
    """
    if not (math.isfinite(a["val/loss"]) and math.isfinite(a["val/acc"])):
        return False
    return b is None or goodness(a, select) > goodness(b, select)


@contextmanager
def ending(runs: Sequence[Run]) -> Iterator[None]:
    """However the block ends, the folder of every run says so."""
    status: Status = "finished"
    error = None
    try:
        yield
    except INTERRUPTIONS:
        status = "interrupted"
        raise
    except BaseException as exception:
        status, error = "failed", f"{type(exception).__name__}: {exception}"
        raise
    finally:
        for run in runs:
            if run.status in ("waiting", "running"):
                run.end(status, error)


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """Computes with so many CPU threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class StackRun:
    """Runs that train together, each becoming an ordinary folder.

    Args:
        runs: the runs; their configs differ only in what a stack can hold apart.
        data: the data set of all of them.
    """

    def __init__(self, runs: Sequence[Run], data: Dataset) -> None:
        self.runs = list(runs)
        config = runs[0].config
        device = data.train.images.device
        seeds = [run.config.train.seed for run in runs]
        models = [build(config.model, data.shape, len(data.classes), seed) for seed in seeds]
        stack = Stack(models, device, DTYPES[config.train.precision])
        optimizer = build_optimizer([run.config.optimizer for run in runs], stack.rows())
        steps_per_epoch = math.ceil(len(data.train) / config.data.batch_size)
        self.training = Training(
            stack=stack,
            optimizer=optimizer,
            scheduler=build_scheduler(config.scheduler, optimizer),
            data=data,
            loss=LOSSES[config.loss.name],
            seeds=seeds,
            steps=config.train.steps or (config.train.epochs or 0) * steps_per_epoch,
            batch_size=config.data.batch_size,
            shuffle=config.data.shuffle,
            reduction=config.loss.reduction,
            interval=getattr(config.scheduler, "interval", "epoch"),
        )

    @property
    def threads(self) -> int:
        """How many CPU threads its steps are large enough for."""
        stack, batch = self.training.stack, self.training.batch_size
        work = stack.parameters * min(batch, len(self.training.data.train))
        return torch.get_num_threads() if work >= THREADS_PAY else 1

    def train(self) -> Iterator[list[Record | None]]:
        """Trains to the end.

        Yields:
            After each epoch, once it is on the disk: a record for each run, None for one that had
            ended before.
        """
        began = time.perf_counter()
        with _threads(self.threads):
            for run in self.runs:
                self._open(run)
            for records in train(self.training):
                elapsed = time.perf_counter() - began
                yield [self._commit(r, record, elapsed) for r, record in enumerate(records)]
            self._finish()

    def _finish(self) -> None:
        if self.runs[0].config.train.eval_train:
            measured = evaluate(self.training.stack, self.training.data.train, self.training.loss)
            for run, loss, accuracy in zip(self.runs, *measured, strict=True):
                if run.status == "running":
                    run.final = {"train/loss": loss, "train/acc": accuracy}

    def _open(self, run: Run) -> None:
        data, device = self.training.data, self.training.stack.device
        run.status = "running"
        run.tell(
            status=run.status,
            started=store.now(),
            device=describe_device(device),
            threads=torch.get_num_threads(),
            data={"name": data.name, "split": run.config.data.split, "sha256": data.sha256},
            runs_in_stack=len(self.runs),
            versions=run.meta["versions"] | {"torch": torch.__version__, "numpy": np.__version__},
        )

    def _commit(self, replica: int, record: Record, elapsed: float) -> Record | None:
        """Puts one epoch of one run on the disk."""
        run = self.runs[replica]
        if run.status != "running":
            return None
        run.records.append(record)
        run.seconds = elapsed
        run.folder.append_metrics(record)
        if not self.training.running[replica]:
            run.end("diverged")
            return record
        state = Checkpoint(
            config=run.config.resolved(),
            epoch=record["epoch"],
            step=record["step"],
            metrics=dict(record),
            model=self.training.stack.state_dict(replica),
        )
        if better(record, run.best, run.config.train.select):
            run.best = record
            checkpoints.save(run.folder.best, state)
        checkpoints.save(run.folder.last, self._resumable(state, replica))
        return record

    def _resumable(self, state: Checkpoint, replica: int) -> Checkpoint:
        """The same checkpoint with what continuing takes: the optimizer's state and the history."""
        run, optimizer = self.runs[replica], self.training.optimizer
        (row,) = optimizer.param_groups[replica]["params"]
        # Copied: saving a view would save the whole stack it looks into.
        moments = {
            key: value.detach().to("cpu", copy=True) if torch.is_tensor(value) else value
            for key, value in optimizer.state[row].items()
        }
        resume = {
            "optimizer": moments,
            "records": [dict(record) for record in run.records],
            "best_epoch": run.best["epoch"] if run.best else None,
        }
        return Checkpoint(**{**vars(state), "resume": resume})
