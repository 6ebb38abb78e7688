"""From jobs to run folders: the one place that applies what happens in a job to its runs."""

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import replace

from mnist_cli.errors import INTERRUPTIONS, MnistError, in_words
from mnist_cli.runs import interrupts, store
from mnist_cli.runs.run import (
    Run,
    commit,
    record_divergence,
    record_outcome,
    this_process,
    update_meta,
)
from mnist_cli.sweeps.executors import Executor
from mnist_cli.sweeps.jobs import Ended, Epoch, Event, Failed, StackJob, Started
from mnist_cli.sweeps.plan import StackPlan


def drive(
    runs: Sequence[Run], plans: Sequence[StackPlan], executor: Executor
) -> Generator[Event, None, None]:
    """Trains every run that waits, and puts what comes of it on the disk.

    However it ends, the folder of every run says so; a run that cannot be written fails alone.

    Args:
        runs: all of them.
        plans: which of them train together.
        executor: where.

    Yields:
        What happened, with the runs it happened to, once it is on the disk.
    """
    parts = [[runs[i] for i in plan.members] for plan in plans]
    left = [
        (part, plan.threads)
        for part, plan in zip(parts, plans, strict=True)
        if any(run.status == "waiting" for run in part)
    ]
    before = {id(run): run.seconds for run in runs}
    answer: bool | None = None
    with _outcomes_recorded(runs), closing(executor.run([_job(*each) for each in left])) as events:
        while True:
            try:
                number, event = events.send(answer)
            except StopIteration:
                return
            part = left[number][0]
            with interrupts.held():  # so that the files of a run agree, and those of all runs
                happened = list(_applied(event, part, before))
            answer = any(run.status in ("waiting", "running") for run in part)
            yield from happened


def _job(part: Sequence[Run], threads: int) -> StackJob:
    return StackJob(
        configs=tuple(run.config for run in part),
        waiting=tuple(run.status == "waiting" for run in part),
        committed=tuple(run.committed for run in part),
        threads=threads,
    )


def _applied(event: Event, part: Sequence[Run], before: dict[int, float]) -> Iterator[Event]:
    """What an event of a job means for its runs, written down; then what has happened."""
    failures: list[Failed] = []
    for replica, run in enumerate(part):
        if run.status not in ("waiting", "running"):
            continue
        try:
            _apply(event, replica, run, before[id(run)])
        except OSError as error:
            with suppress(OSError):
                record_outcome(run, "failed", _why(error))
            failures.append(Failed([run], error))
    yield replace(event, runs=part)
    yield from failures


def _apply(event: Event, replica: int, run: Run, seconds: float) -> None:
    """Applies an event to one run of its job.

    Raises:
        OSError: the run's folder could not be written to.
    """
    match event:
        case Started(where=where):
            run.status, run.committed = "running", None
            versions = {**run.meta.get("versions", {}), **where.get("versions", {})}
            update_meta(run, {**where, **this_process(), "status": "running", "versions": versions})
        case Epoch(records=records, states=states):
            record, state = records[replica], states[replica]
            run.seconds = seconds + event.seconds
            if record and state:
                commit(run, record, state)
            elif record:
                record_divergence(run, record)
        case Ended(final=final):
            run.final = final[replica]
            record_outcome(run, "finished")
        case Failed(error=error):
            with suppress(OSError):  # it has failed, whatever its folder says
                record_outcome(run, "failed", _why(error))


def _why(error: BaseException) -> str:
    if isinstance(error, MnistError):
        return error.message
    return f"{type(error).__name__}: {in_words(error)}"


@contextmanager
def _outcomes_recorded(runs: Sequence[Run]) -> Iterator[None]:
    """However the block ends, no run is left waiting or running."""
    status: store.Status = "finished"
    error = None
    try:
        yield
    except INTERRUPTIONS:
        status = "interrupted"
        raise
    except BaseException as exception:
        status, error = "failed", _why(exception)
        raise
    finally:
        with interrupts.held():
            for run in runs:
                if run.status in ("waiting", "running"):
                    with suppress(OSError):  # the others may still be able to say it
                        record_outcome(run, status, error)
