"""An executor for tasks on other machines, which may be lost at any moment.

A task trains one stack and sends numbered messages. They are taken once and in order: one that
comes twice is dropped, and where one is missing the task counts as lost. The stack of a lost task
goes on as another task, from the last commit that was taken, so that nothing is trained twice that
the driver has on the disk, and nothing is left out.
"""

import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

from mnist_cli.errors import RunError
from mnist_cli.runs.datasets import Datasets
from mnist_cli.sweeps.executors import Events, portable
from mnist_cli.sweeps.jobs import Ended, Epoch, Event, Failed, StackJob, Started, train_stack
from mnist_cli.sweeps.workers import pickled

MAX_LOSSES = 10  # of a job, without a commit in between


class Key(NamedTuple):
    """A task: the number of its job, and of the attempt at it."""

    job: int
    attempt: int


@dataclass(frozen=True)
class Lost:
    """A task ended before its job did.

    Attributes:
        why: in words.
        for_good: whether another attempt would end likewise.
    """

    why: str
    for_good: bool = False


class Tasks(Protocol):
    """Where tasks run; they end when whoever made this does."""

    def submit(self, key: Key, job: StackJob) -> None:
        """Starts a task as soon as there is room for it."""

    def poll(self) -> Iterable[tuple[Key, bytes | Lost]]:
        """Waits a moment for messages: what `messages` yields, or that a task was lost."""

    def cancel(self, key: Key) -> None:
        """Ends a task, if it has not ended."""


def messages(job: StackJob, datasets: Datasets) -> Iterator[bytes]:
    """What a task sends: numbered events, and at the end that this was all."""
    number = 0
    for event in train_stack(job, datasets):
        yield pickled((number, portable(event)))
        number += 1
    yield pickled((number, None))


def remote_tasks(
    jobs: Sequence[StackJob], *, tasks: Tasks, report: Callable[[str], None]
) -> Events:
    """An `Executor`: every job as a task, all at once.

    Args:
        jobs: the stacks.
        tasks: where they run.
        report: takes a sentence about a task that was lost.
    """
    states = [_JobState(number, job) for number, job in enumerate(jobs)]
    try:
        for state in states:
            tasks.submit(state.key, state.job)
        while not all(state.over for state in states):
            for key, message in tasks.poll():
                state = states[key.job]
                if state.over or key != state.key:
                    continue  # sent by a task that has been given up
                for event in state.take(message):
                    if (yield key.job, event) is False:
                        state.over = True
                        tasks.cancel(key)
                if key != state.key:
                    tasks.cancel(key)
                    report(f"a task was lost ({state.why}): its runs go on from their last commit")
                    tasks.submit(state.key, state.job)
    finally:
        for state in states:
            if not state.over:
                tasks.cancel(state.key)


class _JobState:
    """A job on its way.

    Args:
        number: which job.
        job: the job.

    Attributes:
        key: the task that is at it.
        over: whether it has come to its end.
        why: its last task was lost.
    """

    def __init__(self, number: int, job: StackJob) -> None:
        self.key = Key(number, 0)
        self.over = False
        self.why = ""
        self._job = job
        self._starts = dict(job.starts)
        self._records = [list(records) for records in job.records]
        self._taken = 0  # messages of this task
        self._losses = 0

    @property
    def job(self) -> StackJob:
        """What is left to do, from the last commit of each run."""
        return replace(self._job, starts=self._starts, records=self._records)

    def take(self, message: bytes | Lost) -> Iterator[Event]:
        """Takes a message in, or leaves it; yields the event in it, if it is a new one."""
        if isinstance(message, Lost):
            yield from self._lose(message)
            return
        number, event = pickle.loads(message)  # noqa: S301 - of a task of ours
        if number > self._taken:
            yield from self._lose(Lost("a message of it is missing"))
        elif number == self._taken:
            self._taken += 1
            if event is None:
                self.over = True
                return
            self._keep(event)
            yield replace(event, progress=self._step) if isinstance(event, Started) else event

    def _step(self) -> int:
        return max((records[-1]["step"] for records in self._records if records), default=0)

    def _keep(self, event: Event) -> None:
        match event:
            case Epoch(records=records, states=commits):
                for run, (record, commit) in enumerate(zip(records, commits, strict=True)):
                    if record is None:
                        continue
                    self._losses = 0
                    self._records[run].append(record)
                    if commit is None:  # it has diverged
                        del self._starts[run]
                    else:
                        self._starts[run] = commit
            case Ended(final=final):
                for run, measured in enumerate(final):
                    if measured is not None:
                        del self._starts[run]

    def _lose(self, lost: Lost) -> Iterator[Event]:
        self._losses += 1
        self.why = lost.why
        if lost.for_good or self._losses == MAX_LOSSES:
            self.over = True
            times = "" if lost.for_good else f", {MAX_LOSSES} times without a commit in between"
            yield Failed((), RunError(f"its task was lost{times}: {lost.why}"))
        elif not self._starts:
            self.over = True
        else:
            self.key, self._taken = Key(self.key.job, self.key.attempt + 1), 0
