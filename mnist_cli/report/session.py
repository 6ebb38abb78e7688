"""Training in a folder, shown as it happens: what the command line and the Python API share.

torch is imported inside the functions, after the process that draws was started.
"""

import shlex
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from mnist_cli.config import Config, Loaded
from mnist_cli.errors import MnistError, RunError, SweepError, in_words, remedy
from mnist_cli.report import own_models
from mnist_cli.report.export import EventFiles
from mnist_cli.report.painter import Draw, painter
from mnist_cli.runs import interrupts
from mnist_cli.runs.interrupts import Terminated
from mnist_cli.runs.store import RunDirectory

if TYPE_CHECKING:
    from rich.console import Console

    from mnist_cli.runs.datasets import Datasets
    from mnist_cli.runs.run import Run
    from mnist_cli.sweeps.executors import Executor
    from mnist_cli.sweeps.jobs import Event
    from mnist_cli.sweeps.on_ray import Cluster
    from mnist_cli.sweeps.plan import Machines
    from mnist_cli.sweeps.sweep import Sweep

Interruption = KeyboardInterrupt | Terminated


@dataclass(frozen=True)
class Session:
    """What a training works with.

    Attributes:
        folder: the run's or sweep's, held by this process.
        datasets: where its data comes from.
        results: where results go.
        progress: where everything on the way goes.
        events: what TensorBoard reads, if it shall.
        cluster: where runs train, if not on this machine.
    """

    folder: RunDirectory
    datasets: "Datasets"
    results: "Console"
    progress: "Console"
    events: "EventFiles | None"
    cluster: "Cluster | None"
    _draw: Draw

    def machines(self, config: Config) -> "Machines | None":
        """What there is for the runs of a config, if they do not train on this machine."""
        return self.cluster.machines(config) if self.cluster else None

    def executor(self, processes: int) -> "Executor":
        """What trains stacks; on this machine in so many processes."""
        from mnist_cli.sweeps.executors import in_process, local_processes

        if self.cluster:
            return self.cluster.executor
        if processes > 1:
            return partial(local_processes, datasets=self.datasets, processes=processes)
        return partial(in_process, datasets=self.datasets)

    def add_events(
        self, runs: Sequence["Run"], records: Sequence[Mapping[str, Any] | None]
    ) -> None:
        """Has TensorBoard see an epoch of some runs, if it shall."""
        if self.events:
            for run, record in zip(runs, records, strict=True):
                if record:
                    self.events.add(run.folder.path / "tensorboard", record)

    def draw(self) -> None:
        """Draws the pictures; comes last, as by now everything else is saved and shown."""
        try:
            pictures = self._draw(self.folder)
        except Exception as error:  # noqa: BLE001 - whatever it is, the run is finished and saved
            sys.stderr.write(f"warning: the pictures could not be drawn: {error}\n")
            return
        if pictures:
            self.results.print(f"pictures:        {', '.join(map(str, pictures))}")


@contextmanager
def session(
    configs: Sequence[Config],
    begin: Callable[[], RunDirectory],
    results: "Console",
    progress: "Console",
    interrupted: Callable[[RunDirectory, Interruption], None],
    *,
    tensorboard: bool = False,
    on: str | None = None,
) -> Iterator[Session]:
    """A training in a folder, from before torch is loaded.

    Args:
        configs: whose data and devices must be there before there is a folder.
        begin: makes or finds the folder.
        results: where results go.
        progress: where everything on the way goes.
        interrupted: called with the folder once what an interruption left is saved.
        tensorboard: whether every run gets files for TensorBoard, epoch by epoch.
        on: a Ray cluster to train on (see `on_ray.cluster`), if not on this machine.

    Raises:
        MnistError: data, a device or a package are not there, another process trains in the
            folder, or nothing can be written to it.
    """
    with painter() as draw:
        from mnist_cli.runs.datasets import Datasets

        if threading.current_thread() is threading.main_thread():
            interrupts.listen()  # from now on there is something to save
        datasets, cluster = Datasets(progress.print, "cpu" if on else None), None
        kinds = {(getattr(c.data, "path", c.data.name), c.train.device): c for c in configs}
        for config in kinds.values():
            datasets.get(config)
        own_models.prepare(configs, progress.print, datasets)
        with ExitStack() as stack:
            events = stack.enter_context(EventFiles()) if tensorboard else None
            if on:
                from mnist_cli.sweeps import on_ray

                cluster = stack.enter_context(on_ray.cluster(on, datasets, progress.print))
            folder = stack.enter_context(_held(begin, interrupted))
            yield Session(folder, datasets, results, progress, events, cluster, draw)


def train_run(run: "Run", session: Session) -> None:
    """Trains a run.

    Raises:
        MnistError: it failed.
    """
    from mnist_cli.report import tables
    from mnist_cli.sweeps.driver import drive
    from mnist_cli.sweeps.plan import StackPlan, plan

    begins = f" goes on from epoch {len(run.records) + 1}" if run.records else ""
    session.results.print(f"{run.folder.name}{begins}: {tables.experiment(run.config)}")
    datasets = session.datasets
    machines = session.machines(run.config)
    stacks = plan([[0]], [run.config], [datasets.get(run.config)], machines=machines).stacks
    if threads := run.meta.get("threads"):  # as many as before, which decide its bits
        stacks = (StackPlan((0,), threads),)
    events = drive([run], stacks, session.executor(1))
    if failures := _watch(events, [run], {}, session):
        raise _failure(run.folder, failures[0]) from failures[0]


def refuse_diverged(run: "Run") -> None:
    """Sees to it that a run has not diverged.

    Raises:
        RunError: it has.
    """
    if run.status == "diverged":
        raise RunError(
            f"{run.folder.name} diverged: its loss is no longer finite in epoch {len(run.records)}",
            "try a lower learning rate: --lr",
        )


def train_sweep(sweep: "Sweep", session: Session, workers: int | None = None) -> list[Exception]:
    """Trains every run of a sweep that waits; returns what failed.

    Args:
        sweep: the sweep.
        session: in which it is trained.
        workers: how many processes, if the sweep does not say.
    """
    from mnist_cli.report import tables
    from mnist_cli.sweeps import sweep as sweeps

    machines = session.machines(sweep.trials[0].config)
    plan = sweeps.partition(sweep, session.datasets, workers, machines)
    stacks = tables.counted(len(plan.stacks), "stack") or "no stack"
    if session.cluster:
        stacks += " on Ray"
    elif plan.workers > 1:
        stacks += f" in {plan.workers} processes"
    session.results.print(
        f"{sweep.folder.name}: {tables.counted(len(sweep.runs), 'run')} in {stacks}: "
        f"{tables.experiment(sweep.config)}"
    )
    labels = {
        run.folder.name: trial.settings for run, trial in zip(sweep.runs, sweep.trials, strict=True)
    }
    events = sweeps.run(sweep, plan.stacks, session.executor(plan.workers), session.datasets)
    return _watch(events, sweep.runs, labels, session)


def refuse_failed(sweep: "Sweep", failures: Sequence[Exception]) -> None:
    """Sees to it that no run of a sweep has failed, and that not all have diverged.

    Args:
        sweep: the sweep, ended.
        failures: what `train_sweep` returned.

    Raises:
        SweepError: runs have failed.
        RunError: every run has diverged.
    """
    failed = [run.folder.name for run in sweep.runs if run.status == "failed"]
    if failed:
        cause = failures[0] if failures else None  # which --debug shows
        raise SweepError(
            f"{len(failed)} of {len(sweep.runs)} runs failed: {', '.join(failed)}",
            f"the meta.json of each says why; go on with: {resume_command(sweep.folder)}",
        ) from cause
    if sweep.status == "diverged":
        raise RunError("every run diverged", "try lower learning rates")


def notes(loaded: Loaded) -> Iterator[str]:
    """What was decided of a config that is to be trained, a sentence each."""
    yield from loaded.notes
    config = loaded.config
    if "official" in {config.data.split, *config.sweep.get("data.split", ())}:
        yield "note: the test set validates (data.split: official), so selection sees it"


def resume_command(folder: RunDirectory) -> str:
    """The command that goes on with a run."""
    return f"mnist resume {shlex.quote(str(folder.path))}"


def interruption_lines(folder: RunDirectory) -> tuple[str, str]:
    """What is saved of a training that was interrupted, and how it goes on."""
    if folder.is_sweep:
        statuses = [trial.meta().get("status") for trial in folder.trials()]
        saved = f"{statuses.count('finished')} of {len(statuses)} runs are finished"
        saved += f", {pruned} pruned" if (pruned := statuses.count("pruned")) else ""
        saved += ", finished epochs of the others saved"
    else:
        saved = f"{folder.summary().get('epochs', 0)} finished epochs are saved"
    go_on = f"hint: go on with: {resume_command(folder)}"
    return f"interrupted: {saved} in {folder.path}", go_on


def _watch(
    events: "Generator[Event, None, None]",
    runs: Sequence["Run"],
    labels: Mapping[str, Mapping[str, Any]],
    session: Session,
) -> list[Exception]:
    """Shows what happens until all has ended; returns what failed."""
    from mnist_cli.report.live import Display
    from mnist_cli.sweeps.jobs import Epoch, Failed

    steps = 0
    for run in runs:
        data = session.datasets.get(run.config, run.meta.get("data", {}).get("sha256"))
        steps += run.config.steps(len(data.train)) if run.status == "waiting" else 0
    display = Display(session.progress, labels, steps)
    failures = []
    with display.live(), closing(events):
        for event in events:
            display.show(event)
            if isinstance(event, Epoch):
                session.add_events(event.runs, event.records)
            if isinstance(event, Failed):
                failures.append(event.error)
    return failures


def _failure(folder: RunDirectory, error: Exception) -> MnistError:
    """What to say of a run that failed: why, and how it goes on."""
    if isinstance(error, MnistError):
        return error
    hint, go_on = remedy(error), f"go on with: {resume_command(folder)}"
    why = f"{folder.name} failed: {in_words(error)}"
    return RunError(why, f"{hint}; {go_on}" if hint else go_on)


@contextmanager
def _held(
    begin: Callable[[], RunDirectory], interrupted: Callable[[RunDirectory, Interruption], None]
) -> Iterator[RunDirectory]:
    """Keeps a run to this process; if it is interrupted, its folder says so."""
    from mnist_cli.runs.run import hold, mark_interrupted

    folder, is_ours = None, False
    with ExitStack() as held:
        try:
            with interrupts.held():
                folder = begin()
                held.enter_context(hold(folder))
                is_ours = True
            yield folder
        except (KeyboardInterrupt, Terminated) as interruption:
            if not folder or not is_ours:  # else another process trains it, and goes on
                raise
            with suppress(OSError):
                mark_interrupted(folder)
            if folder.status() == "interrupted":  # else it had ended, or had not begun
                interrupted(folder, interruption)
            raise
        except OSError as error:
            if not folder or not folder.config_path.is_file():  # it had not begun
                raise
            raise _failure(folder, error) from error
