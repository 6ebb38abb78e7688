"""`mnist train`, `mnist sweep` and `mnist resume`."""

import json
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from mnist_cli import config as configs
from mnist_cli.cli import options as opt
from mnist_cli.cli import screen
from mnist_cli.config import Config, Flag
from mnist_cli.errors import UsageError
from mnist_cli.report import own_models
from mnist_cli.report import session as sessions
from mnist_cli.report.session import Interruption, Session
from mnist_cli.runs import store
from mnist_cli.runs.interrupts import Terminated
from mnist_cli.sweeps.expand import Trial, expand, group, separators
from mnist_cli.sweeps.sampling import require

if TYPE_CHECKING:
    from rich.console import RenderableType

    from mnist_cli.runs.run import Run
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
    keep: opt.Keep = "all",
    tensorboard: opt.TensorBoard = False,
    on: opt.On = None,
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
    chosen = loaded.config.alone(swept)
    note_choices(loaded)
    root, mode = store.runs_root(runs_dir), Mode(as_json, tensorboard, on)
    if swept:
        options = {"fuse": fuse == "on", "workers": workers, "keep": keep, "test": False}
        _start_sweep(chosen, expand(chosen), root, "seeds", options, mode)
        return
    begin = partial(store.create, root, chosen.name or "run")
    with open_session([chosen], begin, mode) as session:
        from mnist_cli.runs import run as runs

        _train_run(runs.create(chosen, session.folder), session, as_json)


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
    together: Annotated[
        list[str] | None,
        Option("--zip", metavar="KEY,KEY", help="Swept settings that move together."),
    ] = None,
    epochs: opt.Epochs = None,
    batch_size: opt.BatchSize = None,
    device: opt.Device = None,
    name: opt.Name = None,
    runs_dir: opt.RunsDir = None,
    fuse: opt.Fuse = "on",
    workers: opt.Workers = None,
    keep: opt.Keep = "all",
    tensorboard: opt.TensorBoard = False,
    on: opt.On = None,
    nuisance: Annotated[
        list[str] | None,
        Option("--nuisance", metavar="KEY", help="A swept setting of which the best is taken."),
    ] = None,
    reuse: Annotated[
        bool, Option("--reuse", help="Take finished runs from the runs directory.")
    ] = False,
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
    if nuisance:
        names = [configs.full_key(key) for key in nuisance]
        flags.append(Flag("--nuisance", "nuisance", json.dumps(names)))
    if together:
        keys = [[configs.full_key(key) for key in text.split(",")] for text in together]
        flags.append(Flag("--zip", "zip", json.dumps(keys)))
    loaded = configs.load(config, settings, flags, axes)
    fixed = {key: value for key, value in loaded.config.settings() if key in loaded.changed}
    single = {key: (fixed[key],) for key in loaded.config.sweep if key in fixed}
    swept = loaded.config.model_copy(
        update={"sweep": {**loaded.config.sweep, **single}, "search": None}
    )
    note_choices(loaded)
    from mnist_cli.report.tables import axes_line

    trials = expand(swept)
    given = {*loaded.swept, *fixed}
    screen.console(stderr=True).print(axes_line(swept, len(trials), loaded.origin, given))
    if dry_run:
        show = screen.console(stderr=True).print
        own_models.prepare((trial.config for trial in trials), show)
        _show_plan(trials, as_json)
        return
    options = {"fuse": fuse == "on", "workers": workers, "keep": keep, "test": True}
    root, mode = store.runs_root(runs_dir), Mode(as_json, tensorboard, on)
    _start_sweep(swept, trials, root, "sweep", options, mode, reuse=reuse)


def resume(
    run: opt.RunArgument = None,
    changes: Annotated[list[str] | None, Argument(hidden=True)] = None,
    epochs: Annotated[
        int | None, Option("--epochs", metavar="N", min=1, help="Train on, to N epochs in all.")
    ] = None,
    add: Annotated[
        list[str] | None,
        Option("--add", metavar="KEY=LIST", help="Of a sweep: further values of a swept setting."),
    ] = None,
    trials: Annotated[
        int | None, Option("--trials", metavar="N", min=1, help="Search on, to N trials in all.")
    ] = None,
    model: opt.Model = None,
    runs_dir: opt.RunsDir = None,
    workers: opt.Workers = None,
    tensorboard: opt.TensorBoard = False,
    on: opt.On = None,
    as_json: opt.Json = False,
) -> None:
    """Go on with an interrupted run, sweep or search, to the same bits.

    Of a sweep, finished runs are kept, and the others go on or start. --epochs extends what is
    finished: the schedule goes on by its own rule, as if it had been asked for so many epochs from
    the start.
    """
    folder = screen.find_run(run, runs_dir)
    if changes:
        another = shlex.join(["mnist", "train", "--config", str(folder.config_path), *changes])
        message = f"a run goes on as it began: {changes[0]} cannot be changed"
        raise UsageError(message, f"start another: {another}")
    asked = _asked(folder, epochs, add, trials)
    note = screen.console(stderr=True).print
    with open_session([], lambda: folder, Mode(as_json, tensorboard, on)) as session:
        from mnist_cli.runs import resume as resuming
        from mnist_cli.sweeps import sweep as sweeps

        if model:
            resuming.move_model(folder, opt.own_model(model))
        if epochs or folder.status() != "finished":
            config = folder.config()
            own = [trial.config for trial in expand(config)] if config.sweep else [config]
            own_models.prepare(own, note, session.datasets, named=model is not None)
        if asked.search:
            from mnist_cli.cli.search import train_search
            from mnist_cli.sweeps import search as searches

            search = searches.reopen(folder, trials)
            if search.status != "finished":
                train_search(search, session, as_json)
                return
            ended = f"is finished: {asked.search.trials} trials"
        elif folder.is_sweep:
            sweep = sweeps.reopen(folder, epochs, note, asked.added)
            if sweep.status != "finished":
                _train_sweep(sweep, session, as_json, workers)
                return
            ended = f"is finished: {len(sweep.runs)} runs"
        else:
            one = resuming.reopen(folder, epochs, note)
            if one.status == "waiting":
                _train_run(one, session, as_json)
                return
            ended = f"is {one.status}: {len(one.records)} epochs"
        screen.print_result(as_json, folder.summary(), f"{folder.name} {ended}")


def _asked(
    folder: store.RunDirectory, epochs: int | None, add: Sequence[str] | None, trials: int | None
) -> Config:
    """The config of what is to go on, with further values of a sweep.

    Raises:
        UsageError: it does not go on by itself, or not so.
    """
    owner = store.RunDirectory(folder.path.resolve()).owner
    if owner.path != folder.path.resolve() and owner.is_sweep:
        raise UsageError(
            f"{folder.name} goes on with its sweep", f"go on with: {sessions.resume_command(owner)}"
        )
    asked = folder.config()
    if asked.search and epochs:
        raise UsageError("--epochs: the trials of a search are compared at the epochs they had")
    if trials and not asked.search:
        raise UsageError(f"--trials: {folder.name} is no search")
    if asked.search and add:
        raise UsageError("--add: a search finds its values itself", "--trials N makes more trials")
    if asked.search:
        require()
    return configs.with_added(asked, add) if add else asked


@dataclass(frozen=True)
class Mode:
    """How a command trains, whatever it trains.

    Attributes:
        as_json: whether programs read stdout.
        tensorboard: whether every run gets files for TensorBoard.
        on: a Ray cluster to train on, if not on this machine.
    """

    as_json: bool
    tensorboard: bool
    on: str | None


@contextmanager
def open_session(
    configs: Sequence[Config], begin: Callable[[], store.RunDirectory], mode: Mode
) -> Iterator[Session]:
    """A `session` of a command; if it is interrupted, it says so, and how to go on."""

    def interrupted(folder: store.RunDirectory, interruption: Interruption) -> None:
        for line in sessions.interruption_lines(folder):
            print(line, file=sys.stderr)
        code = interruption.code if isinstance(interruption, Terminated) else 130
        raise SystemExit(code) from None

    results, progress = screen.human_console(mode.as_json), screen.console(stderr=True)
    with sessions.session(
        configs, begin, results, progress, interrupted, tensorboard=mode.tensorboard, on=mode.on
    ) as session:
        yield session


def _start_sweep(
    config: Config,
    trials: Sequence[Trial],
    root: Path,
    kind: str,
    options: Mapping[str, Any],
    mode: Mode,
    *,
    reuse: bool = False,
) -> None:
    """Makes a sweep in a folder of its own and trains it; `options` are those of `sweep.create`."""
    begin = partial(store.create, root, f"{config.name or 'run'}-{kind}")
    with open_session([trial.config for trial in trials], begin, mode) as session:
        from mnist_cli.sweeps import sweep as sweeps

        sweep = sweeps.create(config, trials, session.folder, **options)
        if reuse:
            sweeps.reuse(sweep, root, session.datasets, session.progress.print)
        _train_sweep(sweep, session, mode.as_json)


def _train_run(run: "Run", session: Session, as_json: bool) -> None:
    """Trains a run and shows what came of it."""
    from mnist_cli.report import tables
    from mnist_cli.runs.run import summary

    sessions.train_run(run, session)
    parts = []
    if best := run.best:
        accuracy, loss = tables.percent(best["val/acc"]), tables.loss(best["val/loss"])
        parts.append(f"best: epoch {best['epoch']}, val acc {accuracy}, val loss {loss}")
    show_outcome(run, [run], summary(run), parts, as_json)
    session.draw()
    sessions.refuse_diverged(run)


def _train_sweep(
    sweep: "Sweep", session: Session, as_json: bool, workers: int | None = None
) -> None:
    """Trains a sweep and shows what came of it."""
    from mnist_cli.report import tables
    from mnist_cli.sweeps import sweep as sweeps

    failures = sessions.train_sweep(sweep, session, workers)
    summary = sweeps.summary(sweep)
    ranking = [*tables.ranking(summary, sweep.config.train.select, sweep.config.nuisance)]
    show_outcome(sweep, sweep.runs, summary, ranking, as_json)
    session.draw()
    sessions.refuse_failed(sweep, failures)


def show_outcome(
    trained: "Run | Sweep",
    runs: Sequence["Run"],
    summary: Mapping[str, Any],
    parts: "Sequence[RenderableType]",
    as_json: bool,
) -> None:
    """What came of a run or a sweep, beside what was published, in numbers."""
    from mnist_cli.report import tables

    if reference := trained.config.reference:
        measured = [(dict(run.config.settings()), run.figures) for run in runs]
        winner = summary["best"] if "sweep" in summary else None
        parts = [*parts, *tables.published(reference, measured, winner or {})]
    if summary["best"]:
        took = f"{tables.duration(trained.seconds)} in all"
        made = f"report:          mnist report {screen.run_argument(trained.folder)}"
        parts = [*parts, took, *screen.checkpoint_lines(trained.folder.best), made]
    screen.print_result(as_json, summary, *parts)


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


def note_choices(loaded: configs.Loaded) -> None:
    """Says what was decided of a config that is to be trained."""
    for note in sessions.notes(loaded):
        screen.console(stderr=True).print(note)
