"""Where stacks run. An executor has one method: it takes parts and yields what happens in them."""

import threading
import time
import traceback
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.sharedctypes import RawValue
from typing import Any, Protocol, cast

from mnist_cli.engine.loop import Record
from mnist_cli.errors import INTERRUPTIONS, MnistError, RunError, in_words
from mnist_cli.runs.run import Datasets, Run, StackRun, ending
from mnist_cli.runs.store import Status
from mnist_cli.sweeps.workers import Died, Send, in_processes

PROGRESS_S = 0.1  # how often a worker tells how far it is


@dataclass(frozen=True)
class Part:
    """Runs that train as one stack, in the order of its replicas.

    Attributes:
        threads: CPU threads to compute with.
    """

    runs: Sequence[Run]
    threads: int


@dataclass(frozen=True)
class Started:
    """A part is about to train.

    Attributes:
        steps: how many there will be in all.
        epochs: likewise.
        progress: steps done; may be asked at any time and from any thread.
    """

    runs: Sequence[Run]
    steps: int
    epochs: int
    progress: Callable[[], int]


@dataclass(frozen=True)
class Epoch:
    """One epoch of a part is on the disk: a record for each run that was still running."""

    runs: Sequence[Run]
    records: list[Record | None]


@dataclass(frozen=True)
class Ended:
    """Every run of a part has ended, and its folder says how."""

    runs: Sequence[Run]


@dataclass(frozen=True)
class Failed:
    """A part crashed. Its runs say so in their folders; the next part goes on."""

    runs: Sequence[Run]
    error: Exception


Event = Started | Epoch | Ended | Failed


class Executor(Protocol):
    """Somewhere to run stacks."""

    def run(self, parts: Sequence[Part]) -> Generator[Event, None, None]:
        """Runs every part to its end, whatever becomes of the others."""
        ...


class InProcess:
    """Parts one after another in this process.

    Args:
        datasets: where their data comes from.
    """

    def __init__(self, datasets: Datasets) -> None:
        self._datasets = datasets

    def run(self, parts: Sequence[Part]) -> Generator[Event, None, None]:
        """See `Executor`."""
        for part in parts:
            try:
                with ending(part.runs):
                    stack = StackRun(
                        part.runs, self._datasets.get(part.runs[0].config), part.threads
                    )
                    training = stack.training
                    done = partial(getattr, training, "step")
                    yield Started(part.runs, training.steps, training.epochs, done)
                    for records in stack.train():
                        yield Epoch(part.runs, records)
                yield Ended(part.runs)
            except Exception as error:  # noqa: BLE001 - whatever it was, it is reported with its runs
                yield Failed(part.runs, error)


class Workers:
    """Parts in processes of their own, several at a time.

    Args:
        datasets: where their data comes from.
        processes: how many at a time.
    """

    def __init__(self, datasets: Datasets, processes: int) -> None:
        self._inside = InProcess(datasets)
        self._processes = processes

    def run(self, parts: Sequence[Part]) -> Generator[Event, None, None]:
        """See `Executor`."""
        steps = [RawValue("q", 0) for _ in parts]
        jobs = [partial(self._work, part, done) for part, done in zip(parts, steps, strict=True)]
        with closing(in_processes(jobs, self._processes)) as messages:
            try:
                for number, message in messages:
                    runs, done = parts[number].runs, steps[number]
                    if isinstance(message, Died):
                        event: Event = Failed((), RunError(message.why))
                        _end(runs, "failed", message.why)
                    else:
                        event, states = message
                        for run, state in zip(runs, states, strict=True):
                            vars(run).update(state)
                    if isinstance(event, Epoch):
                        for run, record in zip(runs, event.records, strict=True):
                            run.records += [record] if record else []
                    if isinstance(event, Started):
                        event = replace(event, progress=partial(getattr, done, "value"))
                    yield replace(event, runs=runs)
            except INTERRUPTIONS:
                messages.close()  # first of all the workers end
                for part in parts:
                    _end(part.runs, "interrupted")
                raise

    def _work(self, part: Part, done: Any, send: Send) -> None:
        """Runs one part in the worker, and tells all that the parent's copies of its runs lack."""
        for event in self._inside.run([part]):
            if isinstance(event, Started):
                threading.Thread(target=_tell, args=(event.progress, done), daemon=True).start()
                event = replace(event, progress=int)  # noqa: PLW2901
            if isinstance(event, Failed) and not isinstance(event.error, MnistError):
                told = RunError(f"{type(event.error).__name__}: {in_words(event.error)}")
                told.add_note("".join(traceback.format_exception(event.error)))  # for --debug
                event = replace(event, error=told)  # noqa: PLW2901  # not any error can travel
            send((replace(event, runs=()), [_state(run) for run in part.runs]))


def _state(run: Run) -> dict[str, Any]:
    """What changes about a run while it trains, but for its records."""
    return {key: getattr(run, key) for key in ("status", "best", "final", "seconds", "meta")}


def _tell(progress: Callable[[], int], done: Any) -> None:
    while True:
        done.value = progress()
        time.sleep(PROGRESS_S)


def _end(runs: Sequence[Run], status: Status, error: str | None = None) -> None:
    """Says how runs ended whose worker did not come to it; what it did say stands.

    But a worker that was interrupted when nobody here asked it to has failed.
    """
    for run in runs:
        if run.status not in ("waiting", "running", "interrupted"):
            continue
        told = cast("Status", run.folder.meta().get("status", "running"))
        if told in ("waiting", "running") or (told == "interrupted" and status == "failed"):
            run.end(status, error)
        elif not run.read_end():  # it may have come further than it could tell
            run.status = told
