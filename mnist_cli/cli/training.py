"""`mnist train`, `mnist sweep` and `mnist resume`."""

import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Self

import typer
from rich.console import Console

from mnist_cli import config as configs
from mnist_cli.cli import options as opt
from mnist_cli.cli.screen import console, human_console, print_checkpoint, print_json, print_origin
from mnist_cli.config import Config, Flag
from mnist_cli.errors import MnistError, RunError, SweepError, UsageError, in_words, remedy
from mnist_cli.report import tables
from mnist_cli.runs import interrupts, store
from mnist_cli.runs.interrupts import Terminated
from mnist_cli.sweeps.expand import Trial, expand, group, separators

if TYPE_CHECKING:
    from mnist_cli.runs.datasets import Datasets
    from mnist_cli.runs.run import Run
    from mnist_cli.sweeps.plan import Plan, StackPlan
    from mnist_cli.sweeps.sweep import Sweep


@dataclass(frozen=True)
class _Session:
    """Where the data of a command comes from, and where its results go."""

    datasets: "Datasets"
    human: Console
    as_json: bool

    @classmethod
    def start(cls, as_json: bool) -> Self:
        from mnist_cli.runs.datasets import Datasets

        interrupts.listen()
        return cls(Datasets(console(stderr=True).print), human_console(as_json), as_json)

    def show(self, document: Any, *lines: str) -> None:
        """Prints lines for people, and the document for programs."""
        for line in lines:
            self.human.print(line)
        if self.as_json:
            print_json(document)


def train(
    overrides: opt.Overrides = None,
    config: opt.ConfigOption = None,
    lr: opt.Lr = None,
    epochs: opt.Epochs = None,
    batch_size: opt.BatchSize = None,
    seed: opt.Seed = None,
    seeds: opt.Seeds = None,
    device: opt.Device = None,
    name: opt.Name = None,
    runs_dir: opt.RunsDir = None,
    fuse: opt.Fuse = "on",
    workers: opt.Workers = None,
    as_json: opt.Json = False,
) -> None:
    """Train one run: what the config says, without its sweep; or the same with several seeds."""
    flags = opt.given(
        lr=lr, epochs=epochs, batch_size=batch_size, seed=seed, device=device, name=name
    )
    axes = [Flag("--seeds", "train.seed", seeds)] if seeds is not None else []
    loaded = configs.load(config, overrides or (), flags, axes)
    swept = {"train.seed": loaded.config.sweep["train.seed"]} if axes else {}
    chosen = loaded.config.model_copy(update={"sweep": swept})
    _note_choices(loaded)

    from mnist_cli.runs import run as runs

    session, root, title = _Session.start(as_json), store.runs_root(runs_dir), chosen.name or "run"
    session.datasets.get(chosen)  # first of all: a run without its data or device leaves no folder
    if swept:
        trials = expand(chosen)  # may fail, and would leave an empty folder
        with _held(lambda: store.create(root, f"{title}-seeds")) as folder:
            made = _new_sweep(
                chosen, trials, folder, session, fuse=fuse == "on", workers=workers, test=False
            )
            _train_sweep(*made, session)
        return
    with _held(lambda: store.create(root, title)) as folder:
        run = runs.create(chosen, folder)
        session.human.print(f"{folder.name}: {tables.experiment(chosen)}")
        _train_run(run, _plan_alone(run, session), session)


def sweep(
    overrides: opt.Overrides = None,
    config: opt.ConfigOption = None,
    lrs: Annotated[
        str | None,
        typer.Option("--lrs", metavar="LIST", help="Learning rates: 1e-1,1e-2 or log:1e-4:1e-1:7."),
    ] = None,
    seeds: opt.Seeds = None,
    grid: Annotated[
        list[str] | None,
        typer.Option("--grid", metavar="KEY=LIST", help="Values of any setting; may be repeated."),
    ] = None,
    epochs: opt.Epochs = None,
    batch_size: opt.BatchSize = None,
    device: opt.Device = None,
    name: opt.Name = None,
    runs_dir: opt.RunsDir = None,
    fuse: opt.Fuse = "on",
    workers: opt.Workers = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the runs and how they are grouped; run nothing.")
    ] = False,
    as_json: opt.Json = False,
) -> None:
    """Train every combination of the swept settings, rank them, and test the winner once."""
    flags = opt.given(epochs=epochs, batch_size=batch_size, device=device, name=name)
    axes = [Flag("--lrs", "optimizer.lr", lrs)] if lrs is not None else []
    axes += [Flag("--seeds", "train.seed", seeds)] if seeds is not None else []
    axes += [Flag("--grid", None, text) for text in grid or ()]
    loaded = configs.load(config, overrides or (), flags, axes)
    for key in loaded.changed:
        if key in loaded.config.sweep:
            raise UsageError(
                f"{key} is set on the command line, but {loaded.origin} sweeps it",
                f"give the values to sweep instead: --grid {key}=...",
            )
    _note_choices(loaded)
    trials = expand(loaded.config)
    if dry_run:
        _show_plan(trials, as_json)
        return

    from mnist_cli.engine.device import resolve_device

    session, root = _Session.start(as_json), store.runs_root(runs_dir)
    for wanted in {trial.config.train.device for trial in trials}:
        resolve_device(wanted)
    for trial in {trial.config.data.name: trial for trial in trials}.values():
        session.datasets.get(trial.config)
    with _held(lambda: store.create(root, f"{loaded.config.name or 'run'}-sweep")) as folder:
        made = _new_sweep(
            loaded.config, trials, folder, session, fuse=fuse == "on", workers=workers, test=True
        )
        _train_sweep(*made, session)


def resume(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="A run or a sweep: its name or folder.")
    ],
    changes: Annotated[list[str] | None, typer.Argument(hidden=True)] = None,
    epochs: Annotated[
        int | None,
        typer.Option("--epochs", metavar="N", min=1, help="Train on, to N epochs in all."),
    ] = None,
    runs_dir: opt.RunsDir = None,
    workers: opt.Workers = None,
    as_json: opt.Json = False,
) -> None:
    """Go on with a run or a sweep that was interrupted, to the bits it would have come to.

    Of a sweep, finished runs are kept, and the others go on or start. --epochs extends what is
    finished: the schedule goes on by its own rule, as if it had been asked for so many epochs from
    the start.
    """
    folder = store.find(store.runs_root(runs_dir), run)
    if changes:
        raise UsageError(
            f"a run goes on as it began: {changes[0]} cannot be changed",
            f"start another: mnist train --config {shlex.quote(str(folder.config_path))} "
            f"{shlex.join(changes)}",
        )
    owner = store.RunDirectory(folder.path.resolve()).owner
    if owner.path != folder.path.resolve() and owner.is_sweep:
        raise UsageError(f"{folder.name} goes on with its sweep", f"go on with: {_resume(owner)}")
    session, note = _Session.start(as_json), console(stderr=True).print
    with _held(lambda: folder):
        from mnist_cli.runs import run as runs
        from mnist_cli.sweeps import sweep as sweeps
        from mnist_cli.sweeps.plan import StackPlan

        if folder.is_sweep:
            sweep = sweeps.reopen(folder, epochs, note)
            if sweep.status == "finished":
                ended = f"{folder.name} is finished: {len(sweep.runs)} runs"
                session.show(folder.summary(), ended)
                return
            _train_sweep(sweep, sweeps.restore_partition(sweep, session.datasets, workers), session)
            return
        one = runs.reopen(folder, epochs, note)
        if one.status != "waiting":
            session.show(
                runs.summary(one), f"{folder.name} is {one.status}: {len(one.records)} epochs"
            )
            return
        done = f" from epoch {len(one.records) + 1}" if one.records else ""
        session.human.print(f"{folder.name} goes on{done}: {tables.experiment(one.config)}")
        threads = one.meta.get("threads")
        plan = StackPlan((0,), threads) if threads else _plan_alone(one, session)
        _train_run(one, plan, session)


def _new_sweep(
    config: Config,
    trials: Sequence[Trial],
    folder: store.RunDirectory,
    session: _Session,
    **options: Any,
) -> "tuple[Sweep, Plan]":
    from mnist_cli.sweeps import sweep as sweeps

    sweep = sweeps.create(config, trials, folder, **options)
    return sweep, sweeps.partition(sweep, session.datasets)


def _plan_alone(run: "Run", session: _Session) -> "StackPlan":
    from mnist_cli.sweeps.plan import plan

    return plan([[0]], [run.config], [session.datasets.get(run.config)]).stacks[0]


def _train_run(run: "Run", plan: "StackPlan", session: _Session) -> None:
    """Trains a run and shows what came of it."""
    from mnist_cli.report.live import Display
    from mnist_cli.runs.run import summary
    from mnist_cli.sweeps.driver import drive
    from mnist_cli.sweeps.executors import InProcess
    from mnist_cli.sweeps.jobs import Failed

    display = Display(console(stderr=True), {}, _steps([run], session))
    with display.live(), closing(drive([run], [plan], InProcess(session.datasets))) as events:
        for event in events:
            display.show(event)
            if isinstance(event, Failed):
                raise _failure(run.folder, event.error) from event.error
    _show_reference(session.human, run.config, [run])
    if run.best:
        session.human.print(
            f"best: epoch {run.best['epoch']}, val acc {tables.percent(run.best['val/acc'])}, "
            f"val loss {tables.loss(run.best['val/loss'])}, "
            f"{tables.duration(run.seconds)} in all"
        )
        print_checkpoint(session.human, run.folder.best)
    session.show(summary(run))
    _draw(run.folder)  # last: whoever has no patience for pictures has seen the figures
    if run.status == "diverged":
        raise RunError(
            f"{run.folder.name} diverged: its loss is no longer finite in epoch {len(run.records)}",
            "try a lower learning rate: --lr",
        )


def _train_sweep(sweep: "Sweep", plan: "Plan", session: _Session) -> None:
    """Trains a sweep and shows what came of it."""
    from mnist_cli.report.live import Display
    from mnist_cli.sweeps import executors
    from mnist_cli.sweeps import sweep as sweeps
    from mnist_cli.sweeps.jobs import Failed

    processes = f" in {plan.workers} processes" if plan.workers > 1 else ""
    session.human.print(
        f"{sweep.folder.name}: {tables.counted(len(sweep.runs), 'run')} in "
        f"{tables.counted(len(plan.stacks), 'stack')}{processes}: "
        f"{tables.experiment(sweep.config)}"
    )
    executor: executors.Executor = (
        executors.LocalProcesses(session.datasets, plan.workers)
        if plan.workers > 1
        else executors.InProcess(session.datasets)
    )
    labels = {
        run.folder.name: trial.settings for run, trial in zip(sweep.runs, sweep.trials, strict=True)
    }
    display = Display(console(stderr=True), labels, _steps(sweep.runs, session))
    failures: list[Exception] = []
    with (
        display.live(),
        closing(sweeps.run(sweep, plan.stacks, executor, session.datasets)) as events,
    ):
        for event in events:
            display.show(event)
            failures += [event.error] if isinstance(event, Failed) else []
    summary = sweeps.summary(sweep)
    for part in tables.ranking(summary, sweep.config.train.select):
        session.human.print(part)
    _show_reference(session.human, sweep.config, sweep.runs, sweep.test)
    if summary["best"]:
        session.human.print(f"{tables.duration(sweep.seconds)} in all")
        print_checkpoint(session.human, sweep.folder.best)
    session.show(summary)
    _draw(sweep.folder)
    failed = [run.folder.name for run in sweep.runs if run.status == "failed"]
    if failed:
        cause = failures[0] if failures else None  # which --debug shows
        raise SweepError(
            f"{len(failed)} of {len(sweep.runs)} runs failed: {', '.join(failed)}",
            f"the meta.json of each says why; go on with: {_resume(sweep.folder)}",
        ) from cause
    if sweep.status == "diverged":
        raise RunError("every run diverged", "try lower learning rates: --lrs")


def _steps(runs: Sequence["Run"], session: _Session) -> int:
    """How many steps the runs that are still to end have together."""
    configs = [run.config for run in runs if run.status == "waiting"]
    return sum(c.steps(len(session.datasets.get(c).split("train"))) for c in configs)


def _show_plan(trials: Sequence[Trial], as_json: bool) -> None:
    """The runs of a sweep and which of them train together; nothing is run."""
    human = human_console(as_json)
    stacks = group(trials)
    keys = separators(stacks)
    counts = f"{tables.counted(len(trials), 'run')} in {tables.counted(len(stacks), 'stack')}"
    human.print(counts + (f"; one stack has one {', one '.join(keys)}" if keys else ""))
    stack_of = {trial.index: n for n, stack in enumerate(stacks, 1) for trial in stack}
    human.print(tables.plan_table(trials, stack_of))
    if as_json:
        rows = [{"stack": stack_of[trial.index], **trial.settings} for trial in trials]
        print_json({"runs": rows, "separated_by": keys})


def _note_choices(loaded: configs.Loaded) -> None:
    print_origin(loaded)
    config = loaded.config
    if "official" in {config.data.split, *config.sweep.get("data.split", ())}:
        console(stderr=True).print(
            "note: the test set validates (data.split: official), so selection sees it"
        )


def _show_reference(
    human: Console, config: Config, runs: Sequence["Run"], best: dict[str, float] | None = None
) -> None:
    if config.reference is None:
        return
    measured = [(dict(run.config.settings()), run.figures) for run in runs]
    listing = tables.reference_table(config.reference, measured, best or {})
    if listing:
        human.print(f"published: {config.reference.source}")
        human.print(listing)


def _draw(folder: store.RunDirectory) -> None:
    """Draws the plots of a finished run; what was trained is not lost if they cannot be."""
    from mnist_cli.report import plots

    try:
        plots.draw(folder)
    except Exception as error:  # noqa: BLE001 - whatever it is, the run is finished and saved
        print(f"warning: the pictures could not be drawn: {error}", file=sys.stderr)


def _failure(folder: store.RunDirectory, error: Exception) -> MnistError:
    """What to say of a run that failed: why, and how it goes on."""
    if isinstance(error, MnistError):
        return error
    hint, go_on = remedy(error), f"go on with: {_resume(folder)}"
    why = f"{folder.name} failed: {in_words(error)}"
    return RunError(why, f"{hint}; {go_on}" if hint else go_on)


def _resume(folder: store.RunDirectory) -> str:
    """The command that goes on with a run."""
    return f"mnist resume {shlex.quote(str(folder.path))}"


@contextmanager
def _held(begin: Callable[[], store.RunDirectory]) -> Iterator[store.RunDirectory]:
    """Keeps a run to this process; if it is interrupted, it says so, and how to go on.

    Args:
        begin: makes or finds its folder.
    """
    from mnist_cli.runs.run import hold, mark_interrupted

    folder = None
    try:
        with ExitStack() as held:
            try:
                with interrupts.held():
                    folder = begin()
                    held.enter_context(hold(folder))
                yield folder
            except (KeyboardInterrupt, Terminated):
                if folder:
                    with suppress(OSError):
                        mark_interrupted(folder)
                raise
    except (KeyboardInterrupt, Terminated) as interruption:
        if not folder or folder.status() != "interrupted":  # it had ended, or had not begun
            raise
        if folder.is_sweep:
            statuses = [trial.meta().get("status") for trial in folder.trials()]
            saved = (
                f"{statuses.count('finished')} of {len(statuses)} runs are finished, "
                "finished epochs of the others saved"
            )
        else:
            saved = f"{folder.summary().get('epochs', 0)} finished epochs are saved"
        print(f"interrupted: {saved} in {folder.path}", file=sys.stderr)
        print(f"hint: go on with: {_resume(folder)}", file=sys.stderr)
        code = interruption.code if isinstance(interruption, Terminated) else 130
        raise SystemExit(code) from None
    except OSError as error:
        if not folder or not folder.config_path.is_file():  # it had not begun
            raise
        raise _failure(folder, error) from error
