"""The pictures of a search, drawn from its folder alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib as mpl
import numpy as np

from mnist_cli.config import Config
from mnist_cli.config.space import Range, Space, parse_space
from mnist_cli.report.plots import label_axes, new_figure
from mnist_cli.report.series import BEST, TRAIN, VAL
from mnist_cli.report.tables import axis_name, format_value
from mnist_cli.runs.store import RunDirectory
from mnist_cli.sweeps.stats import SeedGroup, rank


@dataclass(frozen=True)
class _Trials:
    """The trials of a search that did not diverge, in the order asked for.

    Attributes:
        title: above every picture.
        metric: what counts, in words.
        sign: 1 if the higher is the better, else -1.
        groups: of each its settings and what became of it.
        curves: likewise the mean over its seeds of the best so far, after each epoch all have.
        space: what each setting may be.
    """

    title: str
    metric: str
    sign: int
    groups: Sequence[SeedGroup]
    curves: Sequence[list[float]]
    space: Mapping[str, Space]


def draw(folder: RunDirectory, config: Config) -> list[Path]:
    """Draws all there is to draw of a search into its `plots/`.

    Returns:
        The pictures.
    """
    assert config.search
    trials = folder.summary().get("trials", [])
    ranked = rank(trials, config.train.select)
    groups = [g for g in sorted(ranked, key=lambda g: min(g.trials)) if g.acc and not g.n_diverged]
    if not groups:
        return []
    by_loss = config.train.select == "loss"
    trials_drawn = _Trials(
        f"{folder.name}: {len(groups)} trials",
        "validation loss" if by_loss else "validation accuracy",
        -1 if by_loss else 1,
        groups,
        [_curve(folder, group, by_loss) for group in groups],
        {key: parse_space(given) for key, given in config.search.space.items()},
    )
    drawn = []
    for picture in (_history, _settings, _parallel, _rungs, _importance):
        path = folder.plots / f"search{picture.__name__.replace('_', '-')}.png"
        if picture(path, trials_drawn) is not False:
            drawn.append(path)
    return drawn


def _curve(folder: RunDirectory, group: SeedGroup, by_loss: bool) -> list[float]:
    """The mean over a trial's seeds of the best so far, after each epoch that all have."""
    key, best = ("val/loss", min) if by_loss else ("val/acc", max)
    runs = [[r[key] for r in folder.trial(trial).metrics()] for trial in group.trials]  # type: ignore[literal-required]
    return [fmean(epoch) for epoch in zip(*(accumulate(run, best) for run in runs), strict=False)]


def _history(path: Path, trials: _Trials) -> None:
    """What each trial came to in the order asked for, and the best so far of those that ended."""
    places = np.arange(1, len(trials.groups) + 1)
    pruned = np.array([group.pruned for group in trials.groups])
    values = np.array([curve[-1] for curve in trials.curves])
    with new_figure(path, trials.title) as (cell,):
        cell.plot(places[pruned], values[pruned], "x", color=TRAIN, label="pruned")
        cell.plot(places[~pruned], values[~pruned], "o", color=VAL, label="finished")
        best = (np.fmax if trials.sign > 0 else np.fmin).accumulate(
            np.where(pruned, np.nan, values)
        )
        cell.step(places, best, where="post", color=BEST, label="best so far")
        label_axes(cell, "trial", trials.metric)
        cell.legend()


def _settings(path: Path, trials: _Trials) -> None:
    """What each trial came to against each setting; crosses were pruned."""
    with new_figure(path, trials.title, columns=len(trials.space)) as cells:
        for cell, (key, own) in zip(cells, trials.space.items(), strict=True):
            for pruned, marker, colour in ((True, "x", TRAIN), (False, "o", VAL)):
                points = [
                    (group.values[key], curve[-1])
                    for group, curve in zip(trials.groups, trials.curves, strict=True)
                    if group.pruned == pruned and group.values[key] is not None
                ]
                if isinstance(own, Range):
                    cell.set_xscale("log" if own.log else "linear")
                    cell.plot(*_columns(points), marker, color=colour)
                else:
                    words = [(format_value(value), figure) for value, figure in points]
                    cell.plot(*_columns(words), marker, color=colour)
            label_axes(cell, axis_name(key), trials.metric)


def _columns(points: Sequence[tuple[Any, float]]) -> tuple[list[Any], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _parallel(path: Path, trials: _Trials) -> None:
    """A line for each trial through the value of each setting, the better the darker."""
    order = np.argsort([curve[-1] for curve in trials.curves])[:: trials.sign]
    colours = mpl.colormaps["Blues"](np.linspace(0.15, 1, len(order)))
    with new_figure(path, f"{trials.title}\nthe darker, the better the {trials.metric}") as (cell,):
        for colour, index in zip(colours, order, strict=True):
            values = trials.groups[index].values
            heights = [_height(values[key], own) for key, own in trials.space.items()]
            cell.plot(range(len(trials.space)), heights, color=colour, lw=1.2)
        for place, own in enumerate(trials.space.values()):
            ends = own[:2] if isinstance(own, Range) else own
            for end in ends:
                where = (place, _height(end, own))
                cell.annotate(format_value(end), where, fontsize=7, color="#333333")
        cell.set_xticks(range(len(trials.space)), [axis_name(key) for key in trials.space])
        cell.set_yticks([])


def _height(value: Any, space: Space) -> float:
    """Where a value is in its space, from 0 to 1; NaN if it has none."""
    if value is None:
        return float("nan")
    if not isinstance(space, Range):
        return list(space).index(value) / (len(space) - 1)
    return space.share(value)


def _rungs(path: Path, trials: _Trials) -> None:
    """Each trial's best so far, epoch by epoch, to where it was pruned."""
    with new_figure(path, trials.title) as (cell,):
        for group, curve in sorted(
            zip(trials.groups, trials.curves, strict=True), key=lambda pair: len(pair[1])
        ):
            colour = TRAIN if group.pruned else VAL
            cell.plot(range(1, len(curve) + 1), curve, color=colour, lw=1, marker=".", alpha=0.7)
            if group.pruned:
                cell.plot([len(curve)], curve[-1:], "x", color=TRAIN)
        label_axes(cell, "epoch", f"{trials.metric}, best so far")


def _importance(path: Path, trials: _Trials) -> bool:
    """How important each setting is for what trials came to after the epochs that all had."""
    from mnist_cli.sweeps.sampling import importances  # noqa: PLC0415 - an extra

    epochs = min(map(len, trials.curves))
    values = [trials.sign * curve[epochs - 1] for curve in trials.curves]
    try:
        found = importances(trials.space, [group.values for group in trials.groups], values)
    except ImportError:
        return False
    if not found:
        return False
    title = f"{trials.title}\nimportance (PED-ANOVA) after epoch {epochs}"
    with new_figure(path, title) as (cell,):
        names, shares = zip(*reversed(found.items()), strict=True)
        cell.barh([axis_name(key) for key in names], shares, color=VAL)
        label_axes(cell, "importance", "")
    return True
