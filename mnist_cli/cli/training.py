"""`mnist train`, `mnist sweep` and `mnist resume`."""

import shlex
import sys
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from mnist_cli import config as configs
from mnist_cli.cli import models, screen
from mnist_cli.cli import options as opt
from mnist_cli.config import Config, FileModel, Flag
from mnist_cli.errors import MnistError, RunError, SweepError, UsageError, in_words, remedy
from mnist_cli.report.painter import Draw, painter
from mnist_cli.runs import interrupts, store
from mnist_cli.runs.interrupts import Terminated
from mnist_cli.sweeps.expand import Trial, expand, group, separators

if TYPE_CHECKING:
    from rich.console import RenderableType

    from mnist_cli.runs.datasets import Datasets
    from mnist_cli.runs.run import Run
    from mnist_cli.sweeps.jobs import Event
    from mnist_cli.sweeps.plan import Plan
    from mnist_cli.sweeps.sweep import Sweep


def train(
    overrides: opt.Overrides = None,
    config: opt.ConfigOption = None,
    model: opt.Model = None,
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
    """Train one run as the config says, or the same with several seeds.

    What the config sweeps is left to `mnist sweep`.
    """
    flags = opt.given(
        lr=lr, epochs=epochs, batch_size=batch_size, seed=seed, device=device, name=name
    ) + opt.own_model(model)
    axes = opt.given(seeds=seeds)
    loaded = configs.load(config, overrides or (), flags, axes)
    swept = {"train.seed": loaded.config.sweep["train.seed"]} if axes else {}
    chosen = loaded.config.model_copy(update={"sweep": swept})
    _note_choices(loaded)
    root = store.runs_root(runs_dir)
    if swept:
        options = {"fuse": fuse == "on", "workers": workers, "test": False}
        _start_sweep(chosen, expand(chosen), root, "seeds", options, as_json)
        return
    begin = partial(store.create, root, chosen.name or "run")
    with _session([chosen], begin, as_json) as session:
        from mnist_cli.runs import run as runs

        _train_run(runs.create(chosen, session.folder), session)


def sweep(
    overrides: opt.Overrides = None,
    config: opt.ConfigOption = None,
    model: opt.Model = None,
    lrs: Annotated[
        str | None,
        Option("--lrs", metavar="LIST", help="Learning rates: 1e-1,1e-2 or log:1e-4:1e-1:7."),
    ] = None,
    seeds: opt.Seeds = None,
    grid: Annotated[
        list[str] | None,
        Option("--grid", metavar="KEY=LIST", help="Values of any setting; may be repeated."),
    ] = None,
    epochs: opt.Epochs = None,
    batch_size: opt.BatchSize = None,
    device: opt.Device = None,
    name: opt.Name = None,
    runs_dir: opt.RunsDir = None,
    fuse: opt.Fuse = "on",
    workers: opt.Workers = None,
    dry_run: Annotated[
        bool, Option("--dry-run", help="List the runs and how they are grouped; run nothing.")
    ] = False,
    as_json: opt.Json = False,
) -> None:
    """Train all combinations of settings, rank them, test the winner.

    Settings are swept by the config, by --lrs, --seeds and --grid, or as KEY=VALUE,VALUE. Only the
    winner is measured on the test images, and once.
    """
    flags = opt.given(epochs=epochs, batch_size=batch_size, device=device, name=name)
    flags += opt.own_model(model)
    axes = opt.given(lrs=lrs, seeds=seeds) + [Flag("--grid", None, text) for text in grid or ()]
    axes += [Flag("", None, text) for text in overrides or () if configs.gives_values(text)]
    settings = [text for text in overrides or () if not configs.gives_values(text)]
    loaded = configs.load(config, settings, flags, axes)
    for key in loaded.changed:
        if key in loaded.config.sweep:
            raise UsageError(
                f"{key} is set on the command line, but {loaded.origin} sweeps it",
                f"give the values to sweep instead: {key}=VALUE,VALUE or --grid {key}=VALUE",
            )
    _note_choices(loaded)
    trials = expand(loaded.config)
    if dry_run:
        models.prepare(trial.config for trial in trials)
        _show_plan(trials, as_json)
        return
    options = {"fuse": fuse == "on", "workers": workers, "test": True}
    _start_sweep(loaded.config, trials, store.runs_root(runs_dir), "sweep", options, as_json)


def resume(
    run: opt.RunArgument = None,
    changes: Annotated[list[str] | None, Argument(hidden=True)] = None,
    epochs: Annotated[
        int | None, Option("--epochs", metavar="N", min=1, help="Train on, to N epochs in all.")
    ] = None,
    model: opt.Model = None,
    runs_dir: opt.RunsDir = None,
    workers: opt.Workers = None,
    as_json: opt.Json = False,
) -> None:
    """Go on with an interrupted run or sweep, to the same bits.

    Of a sweep, finished runs are kept, and the others go on or start. --epochs extends what is
    finished: the schedule goes on by its own rule, as if it had been asked for so many epochs from
    the start.
    """
    folder = screen.find_run(run, runs_dir)
    if changes:
        another = shlex.join(["mnist", "train", "--config", str(folder.config_path), *changes])
        message = f"a run goes on as it began: {changes[0]} cannot be changed"
        raise UsageError(message, f"start another: {another}")
    owner = store.RunDirectory(folder.path.resolve()).owner
    if owner.path != folder.path.resolve() and owner.is_sweep:
        raise UsageError(
            f"{folder.name} goes on with its sweep", f"go on with: {screen.resume_command(owner)}"
        )
    note = screen.console(stderr=True).print
    with _session([], lambda: folder, as_json) as session:
        from mnist_cli.runs import resume as resuming
        from mnist_cli.sweeps import sweep as sweeps

        if model:
            resuming.move_model(folder, opt.own_model(model))
        if epochs or folder.status() != "finished":
            config = folder.config()
            own = [trial.config for trial in expand(config)] if folder.is_sweep else [config]
            models.prepare(own, session.datasets, named=model is not None)
        if folder.is_sweep:
            sweep = sweeps.reopen(folder, epochs, note)
            if sweep.status != "finished":
                plan = sweeps.partition(sweep, session.datasets, workers)
                _train_sweep(sweep, plan, session)
                return
            ended = f"is finished: {len(sweep.runs)} runs"
        else:
            one = resuming.reopen(folder, epochs, note)
            if one.status == "waiting":
                _train_run(one, session)
                return
            ended = f"is {one.status}: {len(one.records)} epochs"
        screen.print_result(as_json, folder.summary(), f"{folder.name} {ended}")


@dataclass(frozen=True)
class _Session:
    """What a command that trains works with.

    Attributes:
        folder: the run's or sweep's, held by this process.
        datasets: where its data comes from.
        draw: draws the pictures of a folder.
        as_json: whether programs read stdout.
    """

    folder: store.RunDirectory
    datasets: "Datasets"
    draw: Draw
    as_json: bool


@contextmanager
def _session(
    needed: Sequence[Config], begin: Callable[[], store.RunDirectory], as_json: bool
) -> Iterator[_Session]:
    """A command that trains in a folder, from before torch is loaded.

    Args:
        needed: whose data and devices must be there before there is a folder.
        begin: makes or finds the folder.
        as_json: whether programs read stdout.
    """
    with painter() as draw:
        from mnist_cli.runs.datasets import Datasets

        interrupts.listen()  # from now on there is something to save
        datasets = Datasets(screen.console(stderr=True).print)
        for config in needed:
            datasets.get(config)
        models.prepare(needed, datasets)
        with _held(begin) as folder:
            yield _Session(folder, datasets, draw, as_json)


def _start_sweep(
    config: Config,
    trials: Sequence[Trial],
    root: Path,
    kind: str,
    options: Mapping[str, Any],
    as_json: bool,
) -> None:
    """Makes a sweep in a folder of its own and trains it; `options` are those of `sweep.create`."""
    kinds: dict[object, Config] = {
        (getattr(t.config.data, "path", t.config.data.name), t.config.train.device): t.config
        for t in trials
    }
    kinds |= {t.config.model: t.config for t in trials if isinstance(t.config.model, FileModel)}
    begin = partial(store.create, root, f"{config.name or 'run'}-{kind}")
    with _session([*kinds.values()], begin, as_json) as session:
        from mnist_cli.sweeps import sweep as sweeps

        sweep = sweeps.create(config, trials, session.folder, **options)
        _train_sweep(sweep, sweeps.partition(sweep, session.datasets), session)


def _train_run(run: "Run", session: _Session) -> None:
    """Trains a run and shows what came of it."""
    from mnist_cli.report import tables
    from mnist_cli.runs.run import summary
    from mnist_cli.sweeps.driver import drive
    from mnist_cli.sweeps.executors import in_process
    from mnist_cli.sweeps.plan import StackPlan, plan

    begins = f" goes on from epoch {len(run.records) + 1}" if run.records else ""
    about = f"{run.folder.name}{begins}: {tables.experiment(run.config)}"
    screen.human_console(session.as_json).print(about)
    datasets = session.datasets
    stacks = plan([[0]], [run.config], [datasets.get(run.config)]).stacks
    if threads := run.meta.get("threads"):  # as many as before, which decide its bits
        stacks = (StackPlan((0,), threads),)
    failures = _watch(
        drive([run], stacks, partial(in_process, datasets=datasets)), [run], {}, datasets
    )
    if failures:
        raise _failure(run.folder, failures[0]) from failures[0]
    parts = []
    if best := run.best:
        accuracy, loss = tables.percent(best["val/acc"]), tables.loss(best["val/loss"])
        parts.append(f"best: epoch {best['epoch']}, val acc {accuracy}, val loss {loss}")
    _show_outcome(run, [run], summary(run), parts, session)
    if run.status == "diverged":
        raise RunError(
            f"{run.folder.name} diverged: its loss is no longer finite in epoch {len(run.records)}",
            "try a lower learning rate: --lr",
        )


def _train_sweep(sweep: "Sweep", plan: "Plan", session: _Session) -> None:
    """Trains a sweep and shows what came of it."""
    from mnist_cli.report import tables
    from mnist_cli.sweeps import sweep as sweeps
    from mnist_cli.sweeps.executors import Executor, in_process, local_processes

    stacks = tables.counted(len(plan.stacks), "stack")
    datasets = session.datasets
    executor: Executor = partial(in_process, datasets=datasets)
    if plan.workers > 1:
        stacks += f" in {plan.workers} processes"
        executor = partial(local_processes, datasets=datasets, processes=plan.workers)
    screen.human_console(session.as_json).print(
        f"{sweep.folder.name}: {tables.counted(len(sweep.runs), 'run')} in {stacks}: "
        f"{tables.experiment(sweep.config)}"
    )
    labels = {
        run.folder.name: trial.settings for run, trial in zip(sweep.runs, sweep.trials, strict=True)
    }
    events = sweeps.run(sweep, plan.stacks, executor, datasets)
    failures = _watch(events, sweep.runs, labels, datasets)
    summary = sweeps.summary(sweep)
    ranking = [*tables.ranking(summary, sweep.config.train.select)]
    _show_outcome(sweep, sweep.runs, summary, ranking, session)
    failed = [run.folder.name for run in sweep.runs if run.status == "failed"]
    if failed:
        cause = failures[0] if failures else None  # which --debug shows
        raise SweepError(
            f"{len(failed)} of {len(sweep.runs)} runs failed: {', '.join(failed)}",
            f"the meta.json of each says why; go on with: {screen.resume_command(sweep.folder)}",
        ) from cause
    if sweep.status == "diverged":
        raise RunError("every run diverged", "try lower learning rates: --lrs")


def _watch(
    events: "Generator[Event, None, None]",
    runs: Sequence["Run"],
    labels: Mapping[str, Mapping[str, Any]],
    datasets: "Datasets",
) -> list[Exception]:
    """Shows what happens until all has ended; returns what failed."""
    from mnist_cli.report.live import Display
    from mnist_cli.sweeps.jobs import Failed

    steps = 0
    for run in runs:
        data = datasets.get(run.config, run.meta.get("data", {}).get("sha256"))
        steps += run.config.steps(len(data.train)) if run.status == "waiting" else 0
    display = Display(screen.console(stderr=True), labels, steps)
    failures = []
    with display.live(), closing(events):
        for event in events:
            display.show(event)
            if isinstance(event, Failed):
                failures.append(event.error)
    return failures


def _show_outcome(
    trained: "Run | Sweep",
    runs: Sequence["Run"],
    summary: Mapping[str, Any],
    parts: "Sequence[RenderableType]",
    session: _Session,
) -> None:
    """What came of a run or a sweep, beside what was published, in numbers and in pictures."""
    from mnist_cli.report import tables

    if reference := trained.config.reference:
        measured = [(dict(run.config.settings()), run.figures) for run in runs]
        winner = summary["best"] if "sweep" in summary else None
        parts = [*parts, *tables.published(reference, measured, winner or {})]
    if summary["best"]:
        took = f"{tables.duration(trained.seconds)} in all"
        made = f"report:          mnist report {screen.run_argument(trained.folder)}"
        parts = [*parts, took, *screen.checkpoint_lines(trained.folder.best), made]
    screen.print_result(session.as_json, summary, *parts)
    try:  # last: by now the figures are on the screen
        pictures = session.draw(trained.folder)
    except Exception as error:  # noqa: BLE001 - whatever it is, the run is finished and saved
        print(f"warning: the pictures could not be drawn: {error}", file=sys.stderr)
        return
    if pictures:
        named = f"pictures:        {', '.join(map(str, pictures))}"
        screen.human_console(session.as_json).print(named)


def _show_plan(trials: Sequence[Trial], as_json: bool) -> None:
    """The runs of a sweep and which of them train together; nothing is run."""
    from mnist_cli.report import tables

    stacks = group(trials)
    keys = separators(stacks)
    counts = f"{tables.counted(len(trials), 'run')} in {tables.counted(len(stacks), 'stack')}"
    counts += f"; one stack has one {', one '.join(keys)}" if keys else ""
    stack_of = {trial.index: n for n, stack in enumerate(stacks, 1) for trial in stack}
    rows = [{"stack": stack_of[trial.index], **trial.settings} for trial in trials]
    document = {"runs": rows, "separated_by": keys}
    screen.print_result(as_json, document, counts, tables.plan_table(rows))


def _note_choices(loaded: configs.Loaded) -> None:
    screen.print_notes(loaded)
    config = loaded.config
    if "official" in {config.data.split, *config.sweep.get("data.split", ())}:
        screen.console(stderr=True).print(
            "note: the test set validates (data.split: official), so selection sees it"
        )


def _failure(folder: store.RunDirectory, error: Exception) -> MnistError:
    """What to say of a run that failed: why, and how it goes on."""
    if isinstance(error, MnistError):
        return error
    hint, go_on = remedy(error), f"go on with: {screen.resume_command(folder)}"
    why = f"{folder.name} failed: {in_words(error)}"
    return RunError(why, f"{hint}; {go_on}" if hint else go_on)


@contextmanager
def _held(begin: Callable[[], store.RunDirectory]) -> Iterator[store.RunDirectory]:
    """Keeps a run to this process; if it is interrupted, it says so, and how to go on.

    Args:
        begin: makes or finds its folder.
    """
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
            if folder.status() != "interrupted":  # it had ended, or had not begun
                raise
            print(f"interrupted: {_saved(folder)} in {folder.path}", file=sys.stderr)
            print(f"hint: go on with: {screen.resume_command(folder)}", file=sys.stderr)
            code = interruption.code if isinstance(interruption, Terminated) else 130
            raise SystemExit(code) from None
        except OSError as error:
            if not folder or not folder.config_path.is_file():  # it had not begun
                raise
            raise _failure(folder, error) from error


def _saved(folder: store.RunDirectory) -> str:
    if not folder.is_sweep:
        return f"{folder.summary().get('epochs', 0)} finished epochs are saved"
    statuses = [trial.meta().get("status") for trial in folder.trials()]
    finished = f"{statuses.count('finished')} of {len(statuses)} runs are finished"
    return f"{finished}, finished epochs of the others saved"
