"""Where stacks run: an executor is a function that takes jobs and yields what happens in them."""

import mmap
import threading
import time
import traceback
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from functools import partial

from mnist_cli.errors import MnistError, RunError, in_words
from mnist_cli.runs.datasets import Datasets
from mnist_cli.sweeps.jobs import Event, Failed, StackJob, Started, train_stack
from mnist_cli.sweeps.workers import Send, WorkerDied, run_jobs

PROGRESS_S = 0.1  # how often a worker says how far it is

Events = Generator[tuple[int, Event], bool | None, None]


Executor = Callable[[Sequence[StackJob]], Events]
"""Runs every job to its end, whatever becomes of the others.

Yields (which job, what happened in it). A false value sent back in answer ends that job.
"""


def in_process(jobs: Sequence[StackJob], *, datasets: Datasets) -> Events:
    """An `Executor`: jobs one after another in this process.

    Args:
        jobs: the stacks.
        datasets: where their data comes from.
    """
    for number, job in enumerate(jobs):
        for event in train_stack(job, datasets):
            if (yield number, event) is False:
                break


def local_processes(jobs: Sequence[StackJob], *, datasets: Datasets, processes: int) -> Events:
    """An `Executor`: jobs in forked processes.

    Args:
        jobs: the stacks.
        datasets: where their data comes from.
        processes: how many at a time.
    """
    # Memory that forks share, of no file: there may be a limit on how large files become.
    steps = memoryview(mmap.mmap(-1, 8 * max(len(jobs), 1))).cast("q")
    work = [
        partial(_work, job, datasets, steps[number : number + 1]) for number, job in enumerate(jobs)
    ]
    with closing(run_jobs(work, processes)) as messages, suppress(StopIteration):
        answer: bool | None = None
        while True:
            number, message = messages.send(answer)
            if isinstance(message, WorkerDied):
                message = Failed((), RunError(message.why))
            if isinstance(message, Started):
                message = replace(message, progress=partial(steps.__getitem__, number))
            answer = yield number, message


def _work(job: StackJob, datasets: Datasets, done: memoryview, send: Send) -> None:
    """Trains one stack in a worker, and sends what happens."""
    for event in train_stack(job, datasets):
        if isinstance(event, Started):
            threading.Thread(target=_publish, args=(event.progress, done), daemon=True).start()
        send(portable(event))


def portable(event: Event) -> Event:
    """An event as another process can read it: of any error the words, and no functions."""
    match event:
        case Started():
            return replace(event, progress=int)
        case Failed(error=error) if not isinstance(error, MnistError):
            sent = RunError(f"{type(error).__name__}: {in_words(error)}")
            sent.add_note("".join(traceback.format_exception(error)))  # for --debug
            return Failed((), sent)
    return event


def _publish(progress: Callable[[], int], done: memoryview) -> None:
    while True:
        done[0] = progress()
        time.sleep(PROGRESS_S)
