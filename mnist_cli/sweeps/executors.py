"""Where stacks run. An executor has one method: it takes jobs and yields what happens in them."""

import mmap
import threading
import time
import traceback
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import Protocol

from mnist_cli.errors import MnistError, RunError, in_words
from mnist_cli.runs.datasets import Datasets
from mnist_cli.sweeps.jobs import Event, Failed, StackJob, Started, train_stack
from mnist_cli.sweeps.workers import Send, WorkerDied, run_jobs

PROGRESS_S = 0.1  # how often a worker says how far it is

Events = Generator[tuple[int, Event], bool | None, None]


class Executor(Protocol):
    """Somewhere to run stacks."""

    def run(self, jobs: Sequence[StackJob]) -> Events:
        """Runs every job to its end, whatever becomes of the others.

        Yields:
            (which job, what happened in it). A false value sent back in answer ends that job.
        """
        ...


class InProcess:
    """Jobs one after another in this process.

    Args:
        datasets: where their data comes from.
    """

    def __init__(self, datasets: Datasets) -> None:
        self._datasets = datasets

    def run(self, jobs: Sequence[StackJob]) -> Events:
        """See `Executor`."""
        for number, job in enumerate(jobs):
            try:
                for event in train_stack(job, self._datasets):
                    if (yield number, event) is False:
                        break
            except Exception as error:  # noqa: BLE001 - whatever it was, it is reported with its runs
                yield number, Failed((), error)


class LocalProcesses:
    """Jobs in forked processes, several at a time.

    Args:
        datasets: where their data comes from.
        processes: how many at a time.
    """

    def __init__(self, datasets: Datasets, processes: int) -> None:
        self._datasets = datasets
        self._processes = processes

    def run(self, jobs: Sequence[StackJob]) -> Events:
        """See `Executor`."""
        # Memory that forks share, of no file: there may be a limit on how large files become.
        steps = memoryview(mmap.mmap(-1, 8 * max(len(jobs), 1))).cast("q")
        work = [
            partial(_work, job, self._datasets, steps[number : number + 1])
            for number, job in enumerate(jobs)
        ]
        with closing(run_jobs(work, self._processes)) as messages:
            answer: bool | None = None
            while True:
                try:
                    number, message = messages.send(answer)
                except StopIteration:
                    return
                if isinstance(message, WorkerDied):
                    message = Failed((), RunError(message.why))
                if isinstance(message, Started):
                    message = replace(message, progress=partial(steps.__getitem__, number))
                answer = yield number, message


def _work(job: StackJob, datasets: Datasets, done: memoryview, send: Send) -> None:
    """Trains one stack in a worker, and sends what happens."""
    try:
        for event in train_stack(job, datasets):
            if isinstance(event, Started):
                threading.Thread(target=_publish, args=(event.progress, done), daemon=True).start()
                event = replace(event, progress=int)  # noqa: PLW2901
            send(event)
    except Exception as error:  # noqa: BLE001 - whatever it was, it is reported with its runs
        if isinstance(error, MnistError):
            send(Failed((), error))
            return
        sent = RunError(f"{type(error).__name__}: {in_words(error)}")  # not any error can travel
        sent.add_note("".join(traceback.format_exception(error)))  # for --debug
        send(Failed((), sent))


def _publish(progress: Callable[[], int], done: memoryview) -> None:
    while True:
        done[0] = progress()
        time.sleep(PROGRESS_S)
