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
from mnist_cli.runs.documents import Meta
from mnist_cli.runs.run import ReplicaState, Run


@dataclass(frozen=True)
class StackJob:
    """Runs that train as one stack, in the order of its replicas.

    A run that goes on has its place in the stack as it had before, and so have its neighbours that
    are ahead of it or have ended: they ride along, for a replica's bits depend on how many there
    are (though never on what they hold).

    Attributes:
        configs: of each replica; they differ only in what a stack can hold apart.
        starts: where each replica that is to be trained goes on from; None is the beginning. The
            others only ride along.
        threads: CPU threads to compute with.
    """

    configs: Sequence[Config]
    starts: Mapping[int, ReplicaState | None]
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
        seconds: since the epoch before, or since the job began.
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

    Yields:
        What happens; last of all `Ended` or, whatever the error was, `Failed`.
    """
    try:
        yield from _train_stack(job, datasets)
    except Exception as error:  # noqa: BLE001 - it is reported with its runs
        yield Failed((), error)


def _train_stack(job: StackJob, datasets: Datasets) -> Iterator[Event]:
    began = time.perf_counter()
    config = job.configs[0]
    data = datasets.get(config)
    training = prepare(job.configs, data)
    going = {replica: state.step if state else 0 for replica, state in job.starts.items()}
    training.step = min(going.values())
    training.running = [False] * len(job.configs)
    with computing(job.threads, config.train.precision):
        where: Meta = {
            "device": describe_device(training.stack.device),
            "threads": torch.get_num_threads(),
            "data": {"name": data.name, "split": config.data.split, "sha256": data.sha256},
            "runs_in_stack": len(job.configs),
            "versions": {"torch": torch.__version__, "numpy": np.__version__},
        }
        progress = partial(getattr, training, "step")
        yield Started((), training.steps, training.epochs, where, progress)
        _join(training, job, going)
        for records in train(training):
            counted = [
                record if replica in going and record["step"] > going[replica] else None
                for replica, record in enumerate(records)
            ]
            states = [
                _state(training, replica) if record and training.running[replica] else None
                for replica, record in enumerate(counted)
            ]
            now = time.perf_counter()
            yield Epoch((), counted, states, now - began)
            began = now
            for replica, record in enumerate(counted):
                if record and not training.running[replica]:
                    del going[replica]
            _join(training, job, going)
        yield Ended((), _final(training, job))


def _join(training: Training, job: StackJob, going: Mapping[int, int]) -> None:
    """Puts every run that was committed at this very step into its place."""
    for replica, start in going.items():
        state = job.starts[replica]
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
