"""A search as a person sees it: while it goes on, and what came of it."""

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType
from rich.progress import BarColumn, Progress, TaskProgressColumn, TimeElapsedColumn

from mnist_cli.config import Config
from mnist_cli.config.space import Range, parse_space
from mnist_cli.errors import in_words
from mnist_cli.report import tables
from mnist_cli.report.session import Session
from mnist_cli.sweeps import stats

if TYPE_CHECKING:
    from mnist_cli.sweeps.sweep import Sweep

SHOWN = 10  # of the ranking

EDGE = 0.05  # a value so near to the end of its range, as a share of it, may well lie beyond


def train_search(search: "Sweep", session: Session) -> list[Exception]:
    """Trains all trials of a search; returns what failed.

    Args:
        search: as `sweeps.search` gives it.
        session: in which it is trained.

    Raises:
        UsageError: it cannot go on, or its storage cannot be written to.
    """
    from mnist_cli.sweeps import search as searches  # noqa: PLC0415 - after what draws was started
    from mnist_cli.sweeps.jobs import Epoch, Failed  # noqa: PLC0415
    from mnist_cli.sweeps.sampling import Sampler  # noqa: PLC0415
    from mnist_cli.sweeps.sweep import recorded, summary  # noqa: PLC0415

    asked, failures = search.config.search, []
    assert asked
    datasets, progress = session.datasets, session.progress
    session.results.print(_header(search))
    sampler = Sampler(search.config)
    training = searches.train(search, sampler, datasets, session.executor, progress.print)
    shown = progress.is_terminal and not progress.quiet
    columns = (BarColumn(bar_width=24), TaskProgressColumn(), TimeElapsedColumn())
    bar = Progress(*columns, console=progress, transient=True, disable=not shown)
    task = bar.add_task("", total=asked.trials)
    with bar:
        for event in recorded(search, training, datasets):
            match event:
                case Epoch(runs=runs, records=records):
                    session.add_events(runs, records)
                    done = sum(run.status not in ("waiting", "running") for run in search.runs)
                    bar.update(task, completed=done / asked.seeds)
                case Failed(runs=runs, error=error):
                    failures.append(error)
                    names = ", ".join(run.folder.name for run in runs)
                    progress.print(f"failed: {names}: {in_words(error)}")
                case searches.Batch(number, count, trials, pruned):
                    best = _best(summary(search), search.config)
                    ended = f", {pruned} pruned" if pruned else ""
                    line = f"batch {number}/{count}: {trials} trials{ended}; {best}"
                    progress.print(line)
    return failures


def _header(search: "Sweep") -> str:
    """What is searched, how and where, in one line."""
    from mnist_cli.sweeps.search import rungs  # noqa: PLC0415 - likewise

    asked, epochs = search.config.search, search.config.train.epochs
    assert asked
    ends = [str(rung) for rung in rungs(asked, epochs) if rung]
    shown = [*ends[:3], "..."] if len(ends) > 4 else ends
    pruner = f", {asked.pruner} after epoch {', '.join(shown)} of {epochs}" if ends else ""
    seeds = f" x {asked.seeds} seeds" if asked.seeds > 1 else ""
    return (
        f"{search.folder.name}: {asked.trials} trials{seeds}, {asked.sampler}{pruner}: "
        f"{tables.experiment(search.config)}"
    )


def outcome(summary: Mapping[str, Any], config: Config) -> Iterator[RenderableType]:
    """What came of a search: its best trials, the winner, and what to make of it."""
    assert config.search
    ranked = stats.best_over(stats.rank(summary["trials"], config.train.select), config.nuisance)
    yield tables.ranking_table(ranked[:SHOWN], ["not judged"] * SHOWN, summary["trials"])
    if len(ranked) > SHOWN:
        yield f"and {len(ranked) - SHOWN} more trials"
    if not summary["best"] or not ranked[0].acc:
        return
    yield _best(summary, config, "winner: ")
    yield from _at_the_edge(ranked[0].values, config)
    yield from _seeds_needed(ranked, config)


def _best(summary: Mapping[str, Any], config: Config, title: str = "best so far: ") -> str:
    ranked = stats.rank(summary["trials"], config.train.select)
    if not ranked or not ranked[0].acc or not ranked[0].loss:
        return "all have diverged"
    best, tested = ranked[0], (summary["best"] or {}).get("test/acc")
    figure = f"val acc {tables.spread(ranked[0].acc)}"
    if config.train.select == "loss":
        figure = f"val loss {tables.loss(ranked[0].loss.mean)}, {figure}"
    test = f"; test acc {tables.percent(tested)}" if tested is not None else ""
    given = {key: value for key, value in best.values.items() if value is not None}
    return f"{title}{figure}{test} ({tables.settings(given)})"


def _at_the_edge(best: Mapping[str, Any], config: Config) -> Iterator[str]:
    """Warnings of best values at the end of their range: better ones may lie beyond."""
    assert config.search
    for key, given in config.search.space.items():
        space, value = parse_space(given), best.get(key)
        if not isinstance(space, Range) or value is None:
            continue
        share = space.share(value)
        if not EDGE <= share <= 1 - EDGE:
            end = "lower" if share < EDGE else "upper"
            yield (
                f"warning: {tables.axis_name(key)} {tables.format_value(value)} is at the {end} "
                f"end of its range ({space}): better values may lie beyond"
            )


def _seeds_needed(ranked: list[stats.SeedGroup], config: Config) -> Iterator[str]:
    """How many seeds it takes to tell the first two apart."""
    by_loss = config.train.select == "loss"
    samples = [group.loss if by_loss else group.acc for group in ranked[:2]]
    first, second = (*samples, None)[:2]
    if not first or not second or first.n < 2 or second.n < 2:
        return
    gain, sd = abs(first.mean - second.mean), math.hypot(first.sd, second.sd) / math.sqrt(2)
    if gain and (needed := stats.seeds_to_show(sd, gain)) > first.n:
        about = f"{needed:,}" if needed < 1000 else "over 1,000"
        yield f"the first two differ by less than noise: it takes about {about} seeds to tell"
