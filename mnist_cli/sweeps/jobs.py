"""A stack of runs as a job: data in, events out, and no file touched.

The same generator runs in this process, in a forked worker, or wherever an executor takes it. Who
gets the events writes the run folders: there is one path from the loop to the disk, and a worker
that is killed, stopped or slow cannot leave anything half-done.
"""

import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mnist_cli.config import Config
from mnist_cli.data.dataset import Dataset
from mnist_cli.engine.device import computing, describe_device
from mnist_cli.engine.loop import Record, compact, evaluate, prepare, train
from mnist_cli.runs.datasets import Datasets
from mnist_cli.runs.documents import Meta
from mnist_cli.runs.run import ReplicaState, Run
from mnist_cli.runs.stopping import leaves


@dataclass(frozen=True)
class StackJob:
    """Runs that train as one stack, in the order of its replicas.

    A run that goes on has its place in the stack as it had before, and so have its neighbours that
    are ahead of it or have ended: they ride along, for a replica's bits depend on how many there
    are (though never on what they hold). One that stopped early or diverged leaves the stack after
    the very epoch after which it left, which its records say.

    Attributes:
        configs: of each replica; they differ only in what a stack can hold apart.
        starts: where each replica that is to be trained goes on from; None is the beginning. The
            others only ride along.
        records: what there is of each replica.
        threads: CPU threads to compute with.
        until: the epoch after which the job ends for now, if it is not to come to its end.
    """

    configs: Sequence[Config]
    starts: Mapping[int, ReplicaState | None]
    records: Sequence[Sequence[Record]]
    threads: int
    until: int | None = None


@dataclass(frozen=True)
class Started:
    """A job is about to train.

    Attributes:
        runs: those of the job, added by who knows them; likewise below.
        steps: how many there will be in all.
        epochs: likewise.
        where: what computes, on which data: for the `meta.json` of each run.
        progress: steps done; may be asked at any time and from any thread.
    """

    runs: Sequence[Run]
    steps: int
    epochs: int
    where: Meta
    progress: Callable[[], int]


@dataclass(frozen=True)
class Epoch:
    """One epoch of a job.

    Attributes:
        records: of each replica; None for one that rides along, has ended or left.
        states: likewise; None also for one whose loss is no longer finite.
        seconds: since the epoch before, or since the job began.
    """

    runs: Sequence[Run]
    records: Sequence[Record | None]
    states: Sequence[ReplicaState | None]
    seconds: float


@dataclass(frozen=True)
class Ended:
    """Some runs of a job came to their end.

    Attributes:
        final: what was measured of each once more, with its final weights; None for the others.
    """

    runs: Sequence[Run]
    final: Sequence[dict[str, float] | None]


@dataclass(frozen=True)
class Failed:
    """A job, or some of its runs, crashed."""

    runs: Sequence[Run]
    error: Exception


Event = Started | Epoch | Ended | Failed


def train_stack(job: StackJob, datasets: Datasets) -> Iterator[Event]:
    """Trains a stack to its end.

    Args:
        job: the stack.
        datasets: where its data comes from.

    Yields:
        What happens; if there is an error, whatever it is, last of all `Failed`.
    """
    try:
        yield from _train_stack(job, datasets)
    except Exception as error:  # noqa: BLE001 - it is reported with its runs
        yield Failed((), error)


def _train_stack(job: StackJob, datasets: Datasets) -> Iterator[Event]:
    began = time.perf_counter()
    config = job.configs[0]
    data = datasets.get(config)
    stack = _JobStack(job, data)
    with computing(job.threads, config.train.precision):
        device = describe_device(stack.training.stack.device)
        where: Meta = {
            "device": device,
            "attempts": [{"host": platform.node(), "device": device}],
            "threads": torch.get_num_threads(),
            "data": {
                "name": data.name,
                "split": config.data.split,
                "sha256": data.sha256,
                "val": len(data.val),
                "shape": list(data.shape),
                "classes": list(data.classes),
            },
            "runs_in_stack": len(job.configs),
            "versions": {"torch": torch.__version__, "numpy": np.__version__},
        }
        steps, epochs = stack.training.steps, stack.training.epochs
        yield Started((), steps, epochs, where, lambda: stack.training.step)
        pause = (job.until or 0) * stack.training.steps_per_epoch or None
        training = train(stack.training)
        while True:
            stack.join()
            if ended := stack.end():
                yield Ended((), ended)
            if not stack.starts or stack.training.step == pause:
                return
            if stack.compact():
                training = train(stack.training)
            records, now = next(training), time.perf_counter()
            yield stack.count(records, now - began)
            began = now


class _JobStack:
    """The runs of a job that are in its stack.

    Args:
        job: the job.
        data: what it trains on.

    Attributes:
        training: the stack, which has a place for each member.
        starts: of each run that is trained, after how many steps it was committed.
    """

    def __init__(self, job: StackJob, data: Dataset) -> None:
        self.starts = {run: state.step if state else 0 for run, state in job.starts.items()}
        self._job, self._data = job, data
        self._records = [list(records) for records in job.records]
        self._left: dict[int, int] = {}  # after how many steps
        for run in range(len(job.configs)):
            self._see_whether_it_leaves(run)
        step = min(self.starts.values())
        everyone = range(len(job.configs))
        self._members = [run for run in everyone if self._left.get(run, step) >= step]
        self.training = prepare([job.configs[run] for run in self._members], data)
        self.training.step = step
        self.training.running = [run in self.starts for run in self._members]

    def join(self) -> None:
        """Puts every run that was committed at this very step into its place."""
        training = self.training
        for place, run in enumerate(self._members):
            start, state = self.starts.get(run, -1), self._job.starts.get(run)
            if start >= training.step:
                training.running[place] = True  # whatever was computed in its place
            if start == training.step and state:
                training.load_state_dicts(place, state.model, state.optimizer, state.raw)

    def end(self) -> list[dict[str, float] | None]:
        """What is measured of the runs that have come to their end; nothing if there are none."""
        training = self.training
        over = training.step == training.steps
        ended = [r for r in self.starts if over or self._left.get(r) == training.step]
        if not ended:
            return []
        found: list[dict[str, float] | None] = [None] * len(self._records)
        measured = None
        if self._job.configs[0].train.eval_train:
            measured = evaluate(training.evaluated, training.data.train, training.loss)
        for run in ended:
            del self.starts[run]
            found[run] = {}
            if measured:
                losses, accuracies = measured
                place = self._members.index(run)
                found[run] = {"train/loss": losses[place], "train/acc": accuracies[place]}
        return found

    def compact(self) -> bool:
        """Makes the stack smaller, if runs have left it."""
        staying = [r for r in self._members if self._left.get(r) != self.training.step]
        if staying == self._members:
            return False
        configs = [self._job.configs[r] if r in staying else None for r in self._members]
        self.training = compact(self.training, configs, self._data)
        self._members = staying
        return True

    def count(self, records: Sequence[Record], seconds: float) -> Epoch:
        """An epoch of the runs that are trained and were not yet that far."""
        found: list[Record | None] = [None] * len(self._records)
        states: list[ReplicaState | None] = [None] * len(self._records)
        for place, (run, record) in enumerate(zip(self._members, records, strict=True)):
            if record["step"] <= self.starts.get(run, record["step"]):
                continue
            found[run] = record
            self._records[run].append(record)
            self._see_whether_it_leaves(run)
            if self.training.running[place]:
                own = self.training.state_dicts(place)
                states[run] = ReplicaState(self.training.step, *own)
            else:
                del self.starts[run]
        return Epoch((), found, states, seconds)

    def _see_whether_it_leaves(self, run: int) -> None:
        records = self._records[run]
        if leaves(records, self._job.configs[run].train):
            self._left[run] = records[-1]["step"]
