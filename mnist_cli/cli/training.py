"""`mnist train` and `mnist sweep`."""

import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from mnist_cli import config as configs
from mnist_cli.cli.options import (
    BatchSize,
    ConfigOption,
    Device,
    Epochs,
    Fuse,
    Json,
    Lr,
    Name,
    Overrides,
    RunsDir,
    Seed,
    Seeds,
    Workers,
    given,
)
from mnist_cli.cli.screen import console, human_console, print_json, tell_checkpoint, tell_origin
from mnist_cli.config import Config, Flag
from mnist_cli.errors import (
    MnistError,
    RunError,
    SweepError,
    UsageError,
    in_words,
    remedy,
)
from mnist_cli.runs import interrupts, store
from mnist_cli.runs.interrupts import Terminated

if TYPE_CHECKING:
    from mnist_cli.runs.run import Datasets, Run
    from mnist_cli.sweeps.plan import Plan
    from mnist_cli.sweeps.sweep import Sweep


def train(
    overrides: Overrides = None,
    config: ConfigOption = None,
    lr: Lr = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    seed: Seed = None,
    seeds: Seeds = None,
    device: Device = None,
    name: Name = None,
    runs_dir: RunsDir = None,
    fuse: Fuse = "on",
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Train one run: what the config says, without its sweep; or the same with several seeds."""
    flags = given(lr=lr, epochs=epochs, batch_size=batch_size, seed=seed, device=device, name=name)
    axes = [Flag("--seeds", "train.seed", seeds)] if seeds is not None else []
    loaded = configs.load(config, overrides or (), flags, axes)
    swept = {"train.seed": loaded.config.sweep["train.seed"]} if axes else {}
    chosen = loaded.config.model_copy(update={"sweep": swept})
    human = human_console(as_json)
    tell_origin(loaded)
    _tell_split(loaded.config)

    from mnist_cli.report import tables
    from mnist_cli.runs.run import Datasets, Run
    from mnist_cli.sweeps.plan import plan
    from mnist_cli.sweeps.sweep import Sweep, expand

    datasets = Datasets(console(stderr=True).print)
    datasets.get(chosen)  # first of all: a run without its data or device leaves no folder
    root, name = store.runs_root(runs_dir), chosen.name or "run"
    if swept:
        expand(chosen)  # may fail, and would leave an empty folder
        with _training(lambda: store.create(root, f"{name}-seeds")) as folder:
            fused = fuse == "on"
            made = Sweep.create(chosen, folder, test=False, fuse=fused, workers=workers)
            deal = made.deal(datasets, fuse=fused, workers=workers)
            _run_sweep(made, deal, datasets, human, as_json)
        return
    with _training(lambda: store.create(root, name)) as folder:
        run = Run.create(chosen, folder)
        human.print(f"{folder.name}: {tables.experiment(chosen)}")
        threads = plan([[0]], [chosen], [datasets.get(chosen)]).parts[0].threads
        _run_one(run, threads, datasets, human, as_json)


def _run_one(run: "Run", threads: int, datasets: "Datasets", human: Console, as_json: bool) -> None:
    """Trains a run and tells what came of it, whatever came of it."""
    from mnist_cli.report import tables
    from mnist_cli.report.live import Display
    from mnist_cli.sweeps.executors import Failed, InProcess, Part

    display = Display(console(stderr=True), {})
    with display.live(), closing(InProcess(datasets).run([Part([run], threads)])) as events:
        for event in events:
            display.show(event)
            if isinstance(event, Failed):
                raise _failure(run.folder, event.error) from event.error
    _show_reference(human, run.config, [run])
    if run.best:
        human.print(
            f"best: epoch {run.best['epoch']}, val acc {tables.percent(run.best['val/acc'])}, "
            f"val loss {tables.loss(run.best['val/loss'])}, "
            f"{tables.duration(run.seconds)} in all"
        )
        tell_checkpoint(human, run.folder.best)
    if as_json:
        print_json(run.summary())
    _draw(run.folder)  # last: whoever has no patience for pictures has seen the figures
    if run.status == "diverged":
        raise RunError(
            f"{run.folder.name} diverged: its loss is no longer finite in epoch {len(run.records)}",
            "try a lower learning rate: --lr",
        )


def _failure(folder: store.RunDirectory, error: Exception) -> MnistError:
    """What to say of a run that failed: why, and how it goes on."""
    if isinstance(error, MnistError):
        return error
    hint, goes_on = remedy(error), f"go on with: {_resume(folder)}"
    why = f"{folder.name} failed: {in_words(error)}"
    return RunError(why, f"{hint}; {goes_on}" if hint else goes_on)


def sweep(
    overrides: Overrides = None,
    config: ConfigOption = None,
    lrs: Annotated[
        str | None,
        typer.Option("--lrs", metavar="LIST", help="Learning rates: 1e-1,1e-2 or log:1e-4:1e-1:7."),
    ] = None,
    seeds: Seeds = None,
    grid: Annotated[
        list[str] | None,
        typer.Option("--grid", metavar="KEY=LIST", help="Values of any setting; may be repeated."),
    ] = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    device: Device = None,
    name: Name = None,
    runs_dir: RunsDir = None,
    fuse: Fuse = "on",
    workers: Workers = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the runs and how they are grouped; run nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Train every combination of the swept settings, rank them, and test the winner once."""
    flags = given(epochs=epochs, batch_size=batch_size, device=device, name=name)
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
    human = human_console(as_json)
    tell_origin(loaded)
    _tell_split(loaded.config)

    from mnist_cli.engine.device import resolve_device
    from mnist_cli.report import tables
    from mnist_cli.runs.run import Datasets
    from mnist_cli.sweeps.sweep import Sweep, expand, group, separators

    trials = expand(loaded.config)
    if dry_run:
        stacks = group(trials)
        why = separators(stacks)
        told = f"{tables.counted(len(trials), 'run')} in {tables.counted(len(stacks), 'stack')}"
        human.print(told + (f"; one stack has one {', one '.join(why)}" if why else ""))
        stack_of = {trial.index: n for n, stack in enumerate(stacks, 1) for trial in stack}
        human.print(tables.plan_table(trials, stack_of))
        if as_json:
            rows = [{"stack": stack_of[trial.index], **trial.settings} for trial in trials]
            print_json({"runs": rows, "separated_by": why})
        return
    datasets = Datasets(console(stderr=True).print)
    for wanted in {trial.config.train.device for trial in trials}:
        resolve_device(wanted)
    for trial in {trial.config.data.name: trial for trial in trials}.values():
        datasets.get(trial.config)
    root, name = store.runs_root(runs_dir), f"{loaded.config.name or 'run'}-sweep"
    with _training(lambda: store.create(root, name)) as folder:
        fused = fuse == "on"
        swept = Sweep.create(loaded.config, folder, fuse=fused, workers=workers)
        deal = swept.deal(datasets, fuse=fused, workers=workers)
        _run_sweep(swept, deal, datasets, human, as_json)


def resume(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="A run or a sweep: its name or folder.")
    ],
    changes: Annotated[list[str] | None, typer.Argument(hidden=True)] = None,
    epochs: Annotated[
        int | None,
        typer.Option("--epochs", metavar="N", min=1, help="Train on, to N epochs in all."),
    ] = None,
    runs_dir: RunsDir = None,
    workers: Workers = None,
    as_json: Json = False,
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
    whole = store.RunDirectory(folder.path.resolve().parents[1])
    if folder.path.resolve().parent.name == "trials" and whole.is_sweep:
        raise UsageError(f"{folder.name} goes on with its sweep", f"go on with: {_resume(whole)}")
    human = human_console(as_json)
    note = console(stderr=True).print
    with _training(lambda: folder):
        from mnist_cli.report import tables
        from mnist_cli.runs.run import Datasets, Run
        from mnist_cli.sweeps.sweep import Sweep

        datasets = Datasets(note)
        if folder.is_sweep:
            swept = Sweep.reopen(folder, epochs, note)
            if all(one.status != "waiting" for one in swept.runs) and swept.status == "finished":
                human.print(f"{folder.name} is finished: {len(swept.runs)} runs")
                if as_json:
                    print_json(swept.folder.summary())
                return
            _run_sweep(swept, swept.deal_again(datasets, workers), datasets, human, as_json)
            return
        one = Run.reopen(folder, epochs, note)
        if one.status != "waiting":
            human.print(f"{folder.name} is {one.status}: {len(one.records)} epochs")
            if as_json:
                print_json(one.summary())
            return
        done = f" from epoch {len(one.records) + 1}" if one.records else ""
        human.print(f"{folder.name} goes on{done}: {tables.experiment(one.config)}")
        threads = one.meta.get("threads")
        if not isinstance(threads, int):
            from mnist_cli.sweeps.plan import plan

            threads = plan([[0]], [one.config], [datasets.get(one.config)]).parts[0].threads
        _run_one(one, threads, datasets, human, as_json)


def _tell_split(config: Config) -> None:
    splits = {config.data.split, *config.sweep.get("data.split", ())}
    if "official" in splits:
        console(stderr=True).print(
            "note: the test set validates (data.split: official), so selection sees it"
        )


def _run_sweep(
    swept: "Sweep", deal: "Plan", datasets: "Datasets", human: Console, as_json: bool
) -> None:
    """Trains a sweep and tells what came of it, whatever came of it."""
    from mnist_cli.report import tables
    from mnist_cli.report.live import Display
    from mnist_cli.sweeps import executors

    processes = f" in {deal.workers} processes" if deal.workers > 1 else ""
    human.print(
        f"{swept.folder.name}: {tables.counted(len(swept.runs), 'run')} in "
        f"{tables.counted(len(deal.parts), 'stack')}{processes}: "
        f"{tables.experiment(swept.config)}"
    )
    executor: executors.Executor = (
        executors.Workers(datasets, deal.workers)
        if deal.workers > 1
        else executors.InProcess(datasets)
    )
    labels = {
        run.folder.name: trial.settings for run, trial in zip(swept.runs, swept.trials, strict=True)
    }
    display, failures = Display(console(stderr=True), labels), list[Exception]()
    with display.live(), closing(swept.run(executor, deal.parts, datasets)) as events:
        for event in events:
            display.show(event)
            failures += [event.error] if isinstance(event, executors.Failed) else []
    summary = swept.summary()
    for part in tables.ranking(summary, swept.config.train.select):
        human.print(part)
    _show_reference(human, swept.config, swept.runs, swept.test)
    if swept.winner:
        human.print(f"{tables.duration(summary['seconds'])} in all")
        tell_checkpoint(human, swept.folder.best)
    if as_json:
        print_json(summary)
    _draw(swept.folder)
    _exit_of_sweep(swept, failures)


def _show_reference(
    human: Console, config: Config, runs: Sequence["Run"], best: dict[str, float] | None = None
) -> None:
    from mnist_cli.report import tables

    if config.reference is None:
        return
    measured = [(dict(run.config.settings()), run.figures) for run in runs]
    listing = tables.reference_table(config.reference, measured, best or {})
    if listing:
        human.print(f"published: {config.reference.source}")
        human.print(listing)


def _draw(folder: store.RunDirectory) -> None:
    """Draws the pictures of a finished run; what was trained is not lost if they cannot be."""
    from mnist_cli.report import plots

    try:
        plots.draw(folder)
    except Exception as error:  # noqa: BLE001 - whatever it is, the run is finished and saved
        print(f"warning: the pictures could not be drawn: {error}", file=sys.stderr)


def _exit_of_sweep(swept: "Sweep", failures: Sequence[Exception]) -> None:
    failed = [run.folder.name for run in swept.runs if run.status == "failed"]
    if failed:
        cause = failures[0] if failures else None  # which --debug shows
        raise SweepError(
            f"{len(failed)} of {len(swept.runs)} runs failed: {', '.join(failed)}",
            f"the meta.json of each says why; go on with: {_resume(swept.folder)}",
        ) from cause
    if swept.status == "diverged":
        raise RunError("every run diverged", "try lower learning rates: --lrs")


def _resume(folder: store.RunDirectory) -> str:
    """The command that goes on with a run."""
    return f"mnist resume {shlex.quote(str(folder.path))}"


@contextmanager
def _training(begin: Callable[[], store.RunDirectory]) -> Iterator[store.RunDirectory]:
    """Keeps a run to this process; if it is interrupted, it says so, and how to go on.

    Args:
        begin: makes or finds its folder.
    """
    folder = None
    try:
        with ExitStack() as held:
            try:
                with interrupts.held():
                    folder = begin()
                    held.enter_context(folder.hold())
                yield folder
            except (KeyboardInterrupt, Terminated):
                if folder:
                    with suppress(OSError):
                        folder.interrupt()
                raise
    except (KeyboardInterrupt, Terminated) as interruption:
        if not folder or folder.status() != "interrupted":  # it had ended, or had not begun
            raise
        if folder.is_sweep:
            statuses = [str(trial.meta().get("status")) for trial in folder.trials()]
            told = f"{statuses.count('finished')} of {len(statuses)} runs are finished, "
            told += "finished epochs of the others saved"
        else:
            told = f"{folder.summary().get('epochs', 0)} finished epochs are saved"
        print(f"interrupted: {told} in {folder.path}", file=sys.stderr)
        print(f"hint: go on with: {_resume(folder)}", file=sys.stderr)
        code = interruption.code if isinstance(interruption, Terminated) else 130
        raise SystemExit(code) from None
    except OSError as error:
        if not folder or not folder.config_path.is_file():  # it had not begun
            raise
        raise _failure(folder, error) from error
