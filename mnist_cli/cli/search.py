"""`mnist search`: settings that are found, and not all tried."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Option

from mnist_cli import config as configs
from mnist_cli.cli import options as opt
from mnist_cli.cli import screen, training
from mnist_cli.config import Config, Flag
from mnist_cli.config.space import is_space
from mnist_cli.errors import UsageError
from mnist_cli.report import session as sessions
from mnist_cli.report.session import Session
from mnist_cli.runs import store
from mnist_cli.sweeps.sampling import require

if TYPE_CHECKING:
    from mnist_cli.sweeps.sweep import Sweep


def search(
    overrides: opt.Overrides = None,
    config: opt.ConfigOption = None,
    model: opt.Model = None,
    trials: Annotated[
        str | None, Option("--trials", metavar="N", help="How many are tried (search.trials) [64].")
    ] = None,
    seeds: Annotated[
        str | None, Option("--seeds", metavar="N", help="Seeds of each (search.seeds) [1].")
    ] = None,
    sampler: Annotated[
        str | None,
        Option("--sampler", metavar="S", help="tpe, random, qmc or gp (search.sampler) [tpe]."),
    ] = None,
    pruner: Annotated[
        str | None,
        Option("--pruner", metavar="P", help="halving, median or none (search.pruner) [halving]."),
    ] = None,
    storage: Annotated[
        str | None,
        Option("--storage", metavar="URL", help="Also keep the trials there, for Optuna's tools."),
    ] = None,
    epochs: opt.Epochs = None,
    batch_size: opt.BatchSize = None,
    device: opt.Device = None,
    name: opt.Name = None,
    runs_dir: opt.RunsDir = None,
    workers: opt.Workers = None,
    tensorboard: opt.TensorBoard = False,
    on: opt.On = None,
    as_json: opt.Json = False,
) -> None:
    """Search settings with Optuna, train its trials as stacks.

    What a setting may be is said as lr=log:1e-4:1e-1, model.dropout=0..0.5 or
    optimizer.name=adam,sgd, or by the config. Trials are trained in batches; at each rung the
    losers leave their stack. The winner, by its validation figures, is measured on the test images,
    and once. The same search with more --trials goes on with the finished one.
    """
    given = {"trials": trials, "seeds": seeds, "sampler": sampler, "pruner": pruner}
    flags = opt.given(epochs=epochs, batch_size=batch_size, device=device, name=name)
    flags += opt.own_model(model) + [
        Flag(f"--{key}", f"search.{key}", text) for key, text in given.items() if text is not None
    ]
    several = [text for text in overrides or () if is_space(text) or configs.gives_values(text)]
    settings = [text for text in overrides or () if text not in several]
    spaces = [Flag("", None, text) for text in several]
    loaded = configs.load(config, settings, flags, spaces=spaces)
    chosen = configs.searched(loaded)
    require()
    training.note_choices(loaded)
    root = store.runs_root(runs_dir)
    earlier = _extended(root, chosen)
    begin = partial(store.create, root, f"{chosen.name or 'run'}-search")
    mode = training.Mode(as_json, tensorboard, on)
    with training.open_session([chosen], lambda: earlier or begin(), mode) as session:
        from mnist_cli.sweeps import search as searches

        if earlier:
            assert chosen.search
            screen.console(stderr=True).print(f"{earlier.name} was this search: it goes on")
            made = searches.reopen(earlier, chosen.search.trials)
        else:
            made = searches.begin(chosen, session.folder, storage, workers)
        train_search(made, session, as_json)


def train_search(search: "Sweep", session: Session, as_json: bool) -> None:
    """Trains a search and shows what came of it."""
    from mnist_cli.report import search as reports
    from mnist_cli.sweeps import sweep as sweeps

    failures = reports.train_search(search, session)
    summary = sweeps.summary(search)
    shown = [*reports.outcome(summary, search.config)] if search.runs else []
    training.show_outcome(search, search.runs, summary, shown, as_json)
    session.draw()
    sessions.refuse_failed(search, failures)


def _extended(root: Path, config: Config) -> store.RunDirectory | None:
    """The newest finished search that is this one but for fewer trials."""
    for folder in reversed(store.all_runs(root)):
        if folder.is_sweep and folder.status() == "finished":
            try:
                had = folder.config()
            except UsageError:  # another's, which is damaged
                continue
            if had.search and config.search and had.search.trials < config.search.trials:
                search = had.search.model_copy(update={"trials": config.search.trials})
                if had.model_copy(update={"search": search}) == config:
                    return folder
    return None
