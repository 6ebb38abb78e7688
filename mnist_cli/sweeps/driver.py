"""From jobs to run folders: the one place that applies what happens in a job to its runs."""

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import replace

from mnist_cli.errors import INTERRUPTIONS, MnistError, in_words
from mnist_cli.runs import interrupts
from mnist_cli.runs.documents import Meta, Status
from mnist_cli.runs.run import Run, commit, record_divergence, record_outcome, update_meta
from mnist_cli.runs.stopping import stop_reason
from mnist_cli.sweeps.executors import Executor
from mnist_cli.sweeps.jobs import Ended, Epoch, Event, Failed, StackJob, Started
from mnist_cli.sweeps.plan import StackPlan


def drive(
    runs: Sequence[Run],
    plans: Sequence[StackPlan],
    executor: Executor,
    until: int | None = None,
) -> Generator[Event, None, None]:
    """Trains every run that waits, and puts what comes of it on the disk.

    However it ends, the folder of every run says so; a run that cannot be written fails alone.

    Args:
        runs: all of them.
        plans: which of them train together.
        executor: where.
        until: the epoch after which runs wait, to go on from there another time.

    Yields:
        What happened, with the runs it happened to, once it is on the disk.
    """
    stacks = [([runs[i] for i in plan.members], plan.threads) for plan in plans]
    left = [stack for stack in stacks if any(waits(run, until) for run in stack[0])]
    jobs = [_job(*stack, until) for stack in left]
    answer: bool | None = None
    with _outcomes_recorded(runs, until), closing(executor(jobs)) as events:
        while True:
            try:
                number, event = events.send(answer)
            except StopIteration:
                return
            members = left[number][0]
            with interrupts.held():  # so that the files of a run agree, and those of all runs
                happened = list(_applied(event, members, until))
            answer = any(_goes_on(run) for run in members)
            yield from happened


def waits(run: Run, until: int | None = None) -> bool:
    """Whether a run waits to be trained, if only to the end of some epoch."""
    return run.status == "waiting" and (until is None or len(run.records) < until)


def _job(members: Sequence[Run], threads: int, until: int | None) -> StackJob:
    starts = {r: run.committed for r, run in enumerate(members) if waits(run, until)}
    records = [list(run.records) for run in members]
    return StackJob([run.config for run in members], starts, records, threads, until)


def _goes_on(run: Run) -> bool:
    return run.status in ("waiting", "running")


def _applied(event: Event, members: Sequence[Run], until: int | None) -> Iterator[Event]:
    """What an event of a job means for its runs, written down; then what has happened."""
    failures: list[Failed] = []
    for replica, run in enumerate(members):
        if run.status == "running" or waits(run, until):
            try:
                _apply(event, replica, run, until)
            except OSError as error:
                _record_end(run, "failed", error)
                failures.append(Failed([run], error))
    yield replace(event, runs=members)
    yield from failures


def _apply(event: Event, replica: int, run: Run, until: int | None) -> None:
    """Applies an event to one run of its job.

    Raises:
        OSError: the run's folder could not be written to.
    """
    match event:
        case Started(where=where):
            run.status, run.committed = "running", None
            versions = {**run.meta.get("versions", {}), **where.get("versions", {})}
            attempts = [*run.meta.get("attempts", []), *where.get("attempts", [])]
            now: Meta = {"status": "running", "versions": versions, "attempts": attempts}
            update_meta(run, {**where, **now})
        case Epoch(records=records, states=states):
            record, state = records[replica], states[replica]
            run.seconds += event.seconds
            if record and state:
                commit(run, record, state)
                if len(run.records) == until and not stop_reason(run.records, run.config.train):
                    run.status, run.committed = "waiting", state
            elif record:
                record_divergence(run, record)
        case Ended(final=final):
            if (measured := final[replica]) is not None:
                run.final = measured
                record_outcome(run, "finished")
        case Failed(error=error):
            _record_end(run, "failed", error)


def _record_end(run: Run, status: Status, error: BaseException | None = None) -> None:
    """Says how a run ended before its time; true also where its folder cannot be written."""
    why = f"{type(error).__name__}: {in_words(error)}" if error else None
    with suppress(OSError):
        record_outcome(run, status, error.message if isinstance(error, MnistError) else why)


@contextmanager
def _outcomes_recorded(runs: Sequence[Run], until: int | None) -> Iterator[None]:
    """If the block ends before its time, no run is left waiting or running."""
    status: Status | None = "interrupted"
    error = None
    try:
        yield
        if until is not None:
            status = None
    except INTERRUPTIONS:
        raise
    except BaseException as exception:
        status, error = "failed", exception
        raise
    finally:
        with interrupts.held():
            for run in runs:
                if status and _goes_on(run):
                    _record_end(run, status, error)
