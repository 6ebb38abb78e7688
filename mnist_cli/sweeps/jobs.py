"""A stack of runs as a job: data in, events out, and no file touched.

The same generator runs in this process, in a forked worker, or wherever an executor takes it. Who
gets the events writes the run folders: there is one path from the loop to the disk, and a worker
that is killed, stopped or slow cannot leave anything half-done.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from mnist_cli.config import Config
from mnist_cli.engine.device import computing, describe_device
from mnist_cli.engine.loop import Record, Training, evaluate, prepare, train
from mnist_cli.runs.datasets import Datasets
from mnist_cli.runs.run import ReplicaState, Run
from mnist_cli.runs.store import Meta


@dataclass(frozen=True)
class StackJob:
    """Runs that train as one stack, in the order of its replicas.

    A run that goes on has its place in the stack as it had before, and so have its neighbours that
    are ahead of it or have ended: they ride along, for a replica's bits depend on how many there
    are (though never on what they hold).

    Attributes:
        configs: of each replica; they differ only in what a stack can hold apart.
        waiting: whether each replica is to be trained, and does not only ride along.
        committed: where each one goes on from; None is the start.
        threads: CPU threads to compute with.
    """

    configs: tuple[Config, ...]
    waiting: tuple[bool, ...]
    committed: tuple[ReplicaState | None, ...]
    threads: int


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
        records: of each replica; None for one that rides along or has ended.
        states: likewise; None also for one whose loss is no longer finite.
        seconds: since the job began.
    """

    runs: Sequence[Run]
    records: Sequence[Record | None]
    states: Sequence[ReplicaState | None]
    seconds: float


@dataclass(frozen=True)
class Ended:
    """A job came to its end.

    Attributes:
        final: what was measured of each replica once more, with its final weights.
    """

    runs: Sequence[Run]
    final: Sequence[dict[str, float]]


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
    """
    began = time.perf_counter()
    data = datasets.get(job.configs[0])
    training = prepare(job.configs, data)
    starts = {r: state.step if state else 0 for r, state in _waiting(job)}
    training.running = [r in starts for r in range(len(job.configs))]
    training.step = min(starts.values())
    with computing(job.threads, job.configs[0].train.precision):
        where: Meta = {
            "device": describe_device(training.stack.device),
            "threads": torch.get_num_threads(),
            "data": {"name": data.name, "split": job.configs[0].data.split, "sha256": data.sha256},
            "runs_in_stack": len(job.configs),
            "versions": {"torch": torch.__version__, "numpy": np.__version__},
        }
        yield Started(
            (), training.steps, training.epochs, where, partial(getattr, training, "step")
        )
        _join(training, job, starts)
        for records in train(training):
            counted = [
                record if r in starts and record["step"] > starts[r] else None
                for r, record in enumerate(records)
            ]
            states = [
                _state(training, r) if record and training.running[r] else None
                for r, record in enumerate(counted)
            ]
            yield Epoch((), counted, states, time.perf_counter() - began)
            for r, record in enumerate(counted):
                if record and not training.running[r]:
                    del starts[r]
            _join(training, job, starts)
        yield Ended((), _final(training, job))


def _waiting(job: StackJob) -> Iterator[tuple[int, ReplicaState | None]]:
    for replica, (waits, state) in enumerate(zip(job.waiting, job.committed, strict=True)):
        if waits:
            yield replica, state


def _join(training: Training, job: StackJob, starts: Mapping[int, int]) -> None:
    """Puts every run that was committed at this very step into its place."""
    for replica, start in starts.items():
        state = job.committed[replica]
        if start >= training.step:
            training.running[replica] = True  # whatever was computed in its place
        if start == training.step and state:
            training.stack.load_state_dict(replica, state.model)
            training.optimizer.load_state_dict(replica, state.optimizer)


def _state(training: Training, replica: int) -> ReplicaState:
    return ReplicaState(
        training.step,
        training.stack.state_dict(replica),
        training.optimizer.state_dict(replica),
    )


def _final(training: Training, job: StackJob) -> list[dict[str, float]]:
    if not job.configs[0].train.eval_train:
        return [{} for _ in job.configs]
    measured = evaluate(training.stack, training.data.train, training.loss)
    return [{"train/loss": loss, "train/acc": acc} for loss, acc in zip(*measured, strict=True)]
