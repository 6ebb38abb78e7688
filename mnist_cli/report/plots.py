"""The pictures of runs and sweeps, drawn from their folders alone. No figure stays open.

Where a setting ran with several seeds, a line is their mean and the band around it the 95 %
t-interval of that mean.
"""

import io
import math
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis, XAxis
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import LogFormatter, MaxNLocator, PercentFormatter

from mnist_cli.data import durable
from mnist_cli.report import series
from mnist_cli.report.series import BEST, ORDERED, TRAIN, VAL, Grid, Key, Style, Window
from mnist_cli.report.tables import (
    axis_name,
    counted,
    experiment,
    format_value,
    percent,
    seeds_needed,
)
from mnist_cli.runs.store import RunDirectory
from mnist_cli.sweeps.stats import MANY_SEEDS, Sample, SeedGroup, rank

if TYPE_CHECKING:
    from mnist_cli.report.compare import Compared
    from mnist_cli.runs.evaluate import Classified
    from mnist_cli.runs.grade import Calibration

# Its looks, what its metrics begin with, and the records of its runs, whose mean it shows.
Curve = tuple[Style, str, Sequence[Sequence[series.Record]]]
Line = tuple[Style, Sequence[Any], Sequence[Sample]]  # and where its points are, and what they are

STYLE = "seaborn-v0_8-whitegrid"
DASHES = ("-", "--", ":", "-.")
GALLERY = 24  # worst mistakes shown
TICKS = 20
COUNTED = 15  # a table with more rows or columns has no figures in its cells
SWEPT = {
    "train/loss": "training loss",
    "val/loss": "validation loss",
    "val/acc": "validation accuracy",
}


def draw(folder: RunDirectory) -> list[Path]:
    """Draws all there is to draw of a run or a sweep into its `plots/`.

    Returns:
        The pictures.

    Raises:
        UsageError: its config cannot be read.
        OSError: a picture cannot be written.
    """
    config = folder.config()
    title, summary = f"{folder.name}\n{experiment(config)}", folder.summary()
    folder.plots.mkdir(exist_ok=True)
    if config.search:
        from mnist_cli.report import search_plots  # noqa: PLC0415 - it is built of what is here

        return search_plots.draw(folder, config)
    drawn = [folder.plots / "curves.png"]
    if not folder.is_sweep:
        if not (records := folder.metrics()):
            return []
        looks = {"train": TRAIN, "val": VAL}
        lines = [(Style(name, colour), f"{name}/", [records]) for name, colour in looks.items()]
        best_epoch = (summary.get("best") or {}).get("epoch")
        _curves(drawn[0], title, {"loss": "loss", "acc": "accuracy"}, lines, None, best_epoch)
        return drawn
    trials = summary.get("trials", [])
    ranked = rank(trials, config.train.select)
    if not ranked or not ranked[0].acc:
        return []
    groups = sorted(ranked, key=lambda group: min(group.trials))  # as they were asked for
    runs = [folder.trial(index) for index in range(len(trials))]
    histories, key = [run.metrics() for run in runs], series.group_key(groups)
    lines = [
        (style, "", [histories[t] for t in group.trials])
        for group, style in zip(groups, key.styles, strict=True)
    ]
    _curves(drawn[0], title, SWEPT, lines, key)
    for axis in ranked[0].values:
        drawn.append(folder.plots / f"accuracy-{axis}.png")
        with new_figure(drawn[-1], title) as (cell,):
            _accuracy_against(cell, axis, groups, ranked[0], runs)
    for (down, across), grid in series.grids(groups).items():
        drawn.append(folder.plots / f"accuracy-{down}-{across}.png")
        _grid(drawn[-1], title, axis_name(down), axis_name(across), grid)
    return [*drawn, *_seeds(folder, title, groups)]


def _seeds(folder: RunDirectory, title: str, groups: Sequence[SeedGroup]) -> list[Path]:
    """How the accuracy of one setting is spread over many seeds."""
    (only, *others), trials = groups, folder.summary()["trials"]
    found = [acc for trial in only.trials if (acc := trials[trial]["val/acc"]) is not None]
    n_images = folder.trial(only.trials[0]).meta().get("data", {}).get("val")
    if others or len(found) < MANY_SEEDS or not n_images:
        return []
    path = folder.plots / "accuracy-seeds.png"
    seed_distribution(path, f"{title}\nvalidation accuracy", found, n_images)
    return [path]


def overlay(path: Path, compared: "Sequence[Compared]") -> bool:
    """Draws the curves of runs and sweeps into one picture, those of a sweep by its winner.

    Returns:
        Whether there was an epoch to draw.
    """
    names = [each.listed.run.name for each in compared]
    histories = [[run.metrics() for run in each.members] for each in compared]
    scores = [series.score(each.group) for each in compared]
    key = series.key(names, [{"run": name} for name in names], scores)
    if not any(any(runs) for runs in histories):
        return False
    lines = [(style, "", runs) for style, runs in zip(key.styles, histories, strict=True)]
    _curves(path, counted(len(names), "run") + " compared", SWEPT, lines, key)
    return True


def image_grid(
    path: Path, title: str, images: np.ndarray, labels: Sequence[str], columns: int = 10
) -> None:
    """Images in rows, each titled with its label: grey as ink on paper, colour as it is.

    Args:
        path: the PNG.
        title: above them.
        images: uint8, shape (n, channels, height, width).
        labels: n short texts.
        columns: how many in a row.
    """
    columns = min(len(labels), columns)
    rows = math.ceil(len(labels) / columns)
    with new_figure(path, title, rows, columns, (1.4 * columns + 0.3, 1.7 * rows + 0.5)) as cells:
        for cell in cells:
            cell.set_axis_off()
        for cell, image, label in zip(cells, images, labels, strict=False):
            pixels = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
            cell.imshow(pixels, cmap="gray_r", vmin=0, vmax=255)
            cell.set_title(label, fontsize=8)


def reliability(path: Path, title: str, measured: "Calibration") -> None:
    """Draws how often predictions are right against how confident they are."""
    with new_figure(path, title, size=(5.2, 5.0)) as (cell,):
        cell.plot([0, 1], [0, 1], ":", color=TRAIN, label="as often right as confident")
        sets = {
            f"as it is, ECE {percent(measured.ece)}": (BEST, measured.bins),
            f"temperature {measured.temperature:.2f}, ECE {percent(measured.scaled_ece)}": (
                *(VAL, measured.scaled_bins),
            ),
        }
        for label, (colour, bins) in sets.items():
            places = [each.confidence for each in bins], [each.accuracy for each in bins]
            sizes = [8 + 120 * math.sqrt(each.n / sum(one.n for one in bins)) for each in bins]
            cell.plot(*places, color=colour, lw=1, label=label)
            cell.scatter(*places, s=sizes, color=colour)
        cell.set(xlim=(0, 1.02), ylim=(-0.02, 1.02))
        label_axes(cell, "confidence", "accuracy")
        cell.legend(title="points by number of images", title_fontsize=8, fontsize=8)


def mistaken(folder: Path, title: str, split: str, seen: "Classified") -> list[Path]:
    """What a checkpoint mistakes for what: all of it in a table, the worst in a gallery.

    Returns:
        The pictures.
    """
    table, gallery = folder / f"confusion-{split}.png", folder / f"mistakes-{split}.png"
    right = seen.labels == seen.guesses
    _confusion(table, f"{title}\naccuracy {percent(right.mean())}", seen)
    worst = seen.mistakes(GALLERY)
    if not len(worst):
        return [table]
    labels = [
        f"is {seen.classes[truth]}, said {seen.classes[guess]}\n{percent(float(confidence), 1)}"
        for truth, guess, confidence in zip(
            seen.labels[worst], seen.guesses[worst], seen.confidences[worst], strict=True
        )
    ]
    title += f"\nthe {len(worst)} it was surest of, of {(~right).sum()} mistakes"
    image_grid(gallery, title, seen.images[worst], labels, columns=6)
    return [table, gallery]


def seed_distribution(path: Path, title: str, accuracies: Sequence[float], n_images: int) -> None:
    """Draws how accuracy is spread over seeds, beside what so few images alone would cause.

    That is the binomial distribution: of networks each right with the same chance, the mean
    accuracy, on as many images, drawn anew for each.

    Args:
        path: the PNG.
        title: above it.
        accuracies: of each seed, at least two, on the same images.
        n_images: how many these are.
    """
    found, measured = np.array(accuracies), Sample.of(accuracies)
    by_chance = _binomial(n_images, measured.mean)
    chance_sd = math.sqrt(measured.mean * (1 - measured.mean) / n_images)
    shown = series.window([[*map(series.one, accuracies)]], is_accuracy=True, apart=True)
    low = max(0.0, min(shown.low, measured.mean - 4 * chance_sd))
    high = min(1.0, max(shown.high, measured.mean + 4 * chance_sd))
    inside = found[(found >= low) & (found <= high)]
    # Bins of whole images, their edges between two accuracies that can be.
    width = np.ptp(np.histogram_bin_edges(inside, "auto")[:2]) if np.ptp(inside) else 0.0
    images = max(1, round(width * n_images))
    edges = np.arange(math.floor(low * n_images), high * n_images + images + 1, images) - 0.5
    expected = len(found) * np.diff(np.interp(edges, np.arange(-1, n_images + 1) + 0.5, by_chance))
    with new_figure(path, title) as (cell,):
        label = (
            f"{counted(len(found), 'seed')}: {percent(measured.mean)}, sd {percent(measured.sd)}"
        )
        cell.hist(found, [*edges / n_images], color=VAL, alpha=0.6, label=label)
        label = f"{counted(n_images, 'image')} alone: sd {percent(chance_sd)} (binomial)"
        cell.stairs(expected, edges / n_images, color=BEST, lw=1.5, label=label)
        cell.set_xlim(edges[0] / n_images, edges[-1] / n_images)
        cell.xaxis.set_major_formatter(PercentFormatter(xmax=1))
        cell.yaxis.set_major_locator(MaxNLocator(integer=True))
        lost = len(found) - len(inside)
        label_axes(cell, f"accuracy ({lost} off axis)" if lost else "accuracy", "seeds")
        _legend([cell], title=seeds_needed(accuracies))


def _confusion(path: Path, title: str, seen: "Classified") -> None:
    """How often each true class (rows) was taken for each class (columns)."""
    shares, names = series.recalls(seen)
    size = min(max(0.55 * len(names), 2.5), 12.0) + 2.0
    with new_figure(path, title, size=(size + 0.8, size)) as (cell,):
        # Mistakes are few: on a scale of roots they can be seen beside the diagonal.
        drawn = cell.imshow(np.sqrt(shares), cmap="Blues", vmin=0, vmax=1)
        bar = cell.figure.colorbar(drawn, ax=cell, shrink=0.6, label="share of the true class")
        bar.set_ticks(
            [share**0.5 for share in series.SHARES],
            labels=[f"{share:.0%}" for share in series.SHARES],
        )
        texts = [[str(count or "") for count in row] for row in seen.counts.tolist()]
        _label_cells(cell, texts, shares > 0.4, seen.classes, names)
        label_axes(cell, "prediction", "truth, recall")


def _grid(path: Path, title: str, y: str, x: str, grid: Grid) -> None:
    """The best accuracy that was had with each two values of two settings."""
    accuracies = np.array(grid.cells, float)  # NaN for none
    size = (
        max(5.0, min(0.75 * len(grid.columns), 12) + 2),
        max(3.0, min(0.4 * len(grid.rows), 9) + 2),
    )
    with new_figure(path, title, size=size) as (cell,):
        colours = LinearSegmentedColormap.from_list("ordered", ORDERED)
        drawn = cell.imshow(accuracies, cmap=colours, vmin=grid.low, vmax=grid.high, aspect="auto")
        form = PercentFormatter(xmax=1)
        cell.figure.colorbar(drawn, ax=cell, label="validation accuracy", format=form)
        dark = accuracies < (grid.low + grid.high) / 2
        texts = [[percent(each, 1)[:-2] for each in row] for row in grid.cells]
        _label_cells(cell, texts, dark, grid.columns, grid.rows)
        label_axes(cell, x, y)


def _label_cells(
    cell: Axes,
    texts: Sequence[Sequence[str]],
    dark: np.ndarray,
    columns: Sequence[str],
    rows: Sequence[str],
) -> None:
    """Names rows and columns of a table, and writes into its cells if they are not too many."""
    if max(len(rows), len(columns)) <= COUNTED:
        for (row, column), is_dark in np.ndenumerate(dark):
            ink, text = "white" if is_dark else "#333333", texts[row][column]
            cell.text(column, row, text, ha="center", va="center", color=ink, fontsize=8)
    _name_ticks(cell.xaxis, columns)
    _name_ticks(cell.yaxis, rows)
    cell.grid(visible=False)


def _name_ticks(axis: Axis, names: Sequence[str]) -> None:
    """Names at 0, 1, ..., those across turned where they are too long to stand side by side."""
    every = math.ceil(len(names) / TICKS)
    axis.set_ticks(range(0, len(names), every), [series.short(name, 36) for name in names[::every]])
    if isinstance(axis, XAxis) and len(names[::every]) * max(map(len, names)) > 40:
        axis.set_tick_params(rotation=35)
        for label in axis.get_ticklabels():
            label.set(ha="right", rotation_mode="anchor")


def _curves(
    path: Path,
    title: str,
    panels: Mapping[str, str],
    curves: Sequence[Curve],
    key: Key | None = None,
    best_epoch: int | None = None,
) -> None:
    """Metrics over the epochs, each in a panel with a name."""
    with new_figure(path, title, columns=len(panels)) as cells:
        drawn: list[Line] = []
        for cell, (metric, name) in zip(cells, panels.items(), strict=True):
            lines: list[Line] = []
            for style, kind, runs in curves:
                samples = series.over_epochs(runs, kind + metric)
                lines.append((style, [*range(1, len(samples) + 1)], samples))
            if all(len(samples) == 1 for *_, samples in lines):  # points side by side
                apart = np.linspace(0.7, 1.3, len(lines) + 2)[1:-1, None]
                lines = [(line[0], x, line[2]) for line, x in zip(lines, apart, strict=True)]
                cell.set_xlim(0.5, 1.5)
            shown = _lines(cell, lines, name, is_accuracy=metric.endswith("acc"))
            if best_epoch:
                cell.axvline(best_epoch, color=BEST, ls=":", label=f"best (epoch {best_epoch})")
            label_axes(cell, "epoch", shown)
            drawn += lines
        _legend(cells, drawn, key)


def _accuracy_against(
    cell: Axes,
    axis: str,
    groups: Sequence[SeedGroup],
    winner: SeedGroup,
    runs: Sequence[RunDirectory],
) -> None:
    """Accuracy against one swept setting, a line for each combination of the others."""
    values = [group.values[axis] for group in groups]
    numeric = series.is_numeric(values)
    known = series.distinct(values)
    place: Callable[[Any], float] = float if numeric else known.index  # in the order asked for
    split, key = series.along(axis, groups)
    alone = len(split) == 1
    lines: list[Line] = []
    for style, line in zip(key.styles, split, strict=True):
        places = [place(group.values[axis]) for group in line]
        if alone:
            train = [series.sample([_final_train(runs[t]) for t in group.trials]) for group in line]
            lines.append((Style("training, last epoch", TRAIN), places, train))
        best = Style("validation, best epoch", style.colour) if alone else style
        lines.append((best, places, [group.acc or series.sample([]) for group in line]))
    if numeric:
        _number_axis(cell, axis, values)
    else:
        _name_ticks(cell.xaxis, [*map(format_value, known)])
    name = "accuracy" if alone else "validation accuracy"
    shown = _lines(cell, lines, name, is_accuracy=True, apart=True)
    top, at = winner.acc.mean if winner.acc else math.nan, place(winner.values[axis])
    cell.plot([at], [top], "*", color=BEST, markersize=14, label=f"winner, {percent(top)}")
    if diverged := [place(group.values[axis]) for group in groups if group.n_diverged]:
        floor = [cell.get_ylim()[0]] * len(diverged)
        cell.plot(diverged, floor, "x", color=BEST, clip_on=False, label="diverged")
    label_axes(cell, axis_name(axis), shown)
    _legend([cell], lines, key)


@contextmanager
def new_figure(
    path: Path,
    title: str,
    rows: int = 1,
    columns: int = 1,
    size: tuple[float, float] | None = None,
    **options: Any,
) -> Iterator[list[Axes]]:
    """Axes under one title, `size` in inches; saved when the block ends well."""
    with mpl.style.context(STYLE):
        size = size or (6.4 if columns == 1 else 4.6 * columns, 4.0)
        figure = Figure(figsize=size, layout="constrained")
        yield list(figure.subplots(rows, columns, squeeze=False, **options).flat)
        width = int(14 * figure.get_figwidth())  # in letters
        title = "\n".join(textwrap.fill(line, width) for line in title.split("\n"))
        figure.suptitle(title, x=0.01, ha="left", fontsize=8.5, color="#555555")
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=150)
    durable.replace(path, buffer.getvalue())


def _lines(
    cell: Axes, lines: Sequence[Line], name: str, *, is_accuracy: bool, apart: bool = False
) -> str:
    """Lines through means with the bands of their intervals, and marks of what lies beyond.

    Args:
        cell: where.
        lines: the lines.
        name: of what is measured.
        is_accuracy: whether it is an accuracy; otherwise a loss.
        apart: whether each point of a line is judged alone, as points over epochs are not.

    Returns:
        The name, with what the axis does not show.
    """
    samples = [samples for *_, samples in lines]
    shown = series.window(samples, is_accuracy=is_accuracy, apart=apart)
    for style, places, line in lines:
        _line(cell, style, places, line, shown)
    if shown.is_log:
        cell.set_yscale("log")
        cell.yaxis.set(major_formatter=_Plain(), minor_formatter=_Plain())
    if is_accuracy:
        cell.yaxis.set_major_formatter(PercentFormatter(xmax=1))
    cell.set_ylim(shown.low, shown.high)
    return textwrap.fill(shown.label(name), 30)


def _line(
    cell: Axes, style: Style, places: Sequence[Any], samples: Sequence[Sample], shown: Window
) -> None:
    """A line, its band where it is on the axis, and marks at the edge where it is beyond."""
    means = np.array([each.mean for each in samples])
    halves = np.array([*map(series.half_width, samples)])
    looks: Any = {"ls": DASHES[style.dash], "label": style.label if style.named else None}
    # Points are marked while there are few enough to tell apart.
    mark = "o" if len(places) <= 30 else None
    cell.plot(places, means, marker=mark, markersize=4, color=style.colour, **looks)
    halves[(means < shown.low) | (means > shown.high)] = 0
    if halves.any() and len(places) > 1:
        low, high = (means - halves).clip(0), means + halves
        cell.fill_between(places, low, high, color=style.colour, alpha=0.18, lw=1)
    elif halves.any():
        cell.errorbar(places, means, halves, color=style.colour, capsize=3)
    for beyond, edge, sign in ((means < shown.low, 0, "v"), (means > shown.high, 1, "^")):
        if out := [place for place, is_out in zip(places, beyond, strict=True) if is_out]:
            edges: Any = [edge] * len(out)
            across = cell.get_xaxis_transform()
            cell.plot(out, edges, sign, color=style.colour, transform=across, clip_on=False)


def _legend(
    cells: Sequence[Axes], lines: Sequence[Line] = (), key: Key | None = None, title: str = ""
) -> None:
    """Names lines below the axes, or beside them in a colour bar, and what their intervals are."""
    figure: Any = cells[0].figure
    handles, labels = cells[-1].get_legend_handles_labels()
    if interval := series.interval_label([samples for *_, samples in lines]):
        handles.append(Patch(color=TRAIN, alpha=0.4))
        labels.append(interval)
    if key and key.scale:
        texts, colours = zip(*key.scale, strict=True)
        scale = ScalarMappable(Normalize(-0.5, len(texts) - 0.5), ListedColormap(colours))
        ticks = range(0, len(texts), math.ceil(len(texts) / TICKS))
        bar = figure.colorbar(scale, ax=cells, label=key.title)
        bar.set_ticks(ticks, labels=[texts[tick] for tick in ticks])
    labels = [textwrap.fill(label, 60) for label in labels]
    if labels:
        longest = max(len(line) for label in labels for line in label.split("\n"))
        columns = max(1, int(13 * figure.get_figwidth() / (longest + 7)))
        rows = math.ceil(len(labels) / columns) + bool(key and key.title) + bool(title)
        figure.set_figheight(figure.get_figheight() + 0.2 * rows)
        title = title or (key.title if key and not key.scale else "")
        figure.legend(
            handles,
            labels,
            loc="outside lower left",
            ncols=columns,
            fontsize=8,
            title=title,
            title_fontsize=8,
        )


def _final_train(run: RunDirectory) -> float | None:
    """Training accuracy with the final weights, else the last epoch's running mean; if finite."""
    records, final = run.metrics(), run.summary().get("final", {})
    if not records or not math.isfinite(records[-1]["train/loss"]):
        return None
    return float(final.get("train/acc", records[-1]["train/acc"]))


def _binomial(n: int, share: float) -> np.ndarray:
    """P(K < k) for k in 0..n + 1, shape (n + 2,), where each of n is right with that chance."""
    share = min(max(share, 0.5 / n), 1 - 0.5 / n)
    k = np.arange(1, n + 1)
    steps = np.log((n - k + 1) / k * share / (1 - share))  # of P(K = k) over P(K = k - 1)
    logs = n * math.log1p(-share) + np.concatenate([[0.0], np.cumsum(steps)])
    return np.concatenate([[0.0], np.cumsum(np.exp(logs))])


def label_axes(cell: Axes, x: str, y: str) -> None:
    """Names the axes of a cell."""
    cell.set(xlabel=x, ylabel=y)
    if x == "epoch":
        cell.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


class _Plain(LogFormatter):
    """Labels as many ticks of a logarithmic axis as LogFormatter does, as 0.3 and not 3e-01."""

    def __call__(self, value: float, place: int | None = None) -> str:
        return f"{value:g}" if super().__call__(value, place) else ""


def _number_axis(cell: Axes, axis: str, values: Sequence[float]) -> None:
    """Logarithmic for learning rates, and for what spans more than a factor of 20."""
    if min(values) > 0 and (axis == "optimizer.lr" or max(values) / min(values) > 20):
        cell.set_xscale("log")
    elif all(isinstance(value, int) for value in values):
        cell.xaxis.set_major_locator(MaxNLocator(integer=True))
