"""The pictures of runs and sweeps, drawn from their folders alone. No figure stays open.

Where a setting ran with several seeds, a line is their mean and the band around it the 95 %
t-interval of that mean.
"""

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from mnist_cli.data import durable
from mnist_cli.report.tables import axis_name, experiment, format_value, percent, settings
from mnist_cli.runs.store import RunDirectory
from mnist_cli.sweeps.stats import SEED, Sample, SeedGroup, axes, rank

if TYPE_CHECKING:
    from mnist_cli.report.compare import Compared
    from mnist_cli.runs.evaluate import Classified
    from mnist_cli.runs.grade import Calibration

Record = Mapping[str, Any]
# Label, colour, what its metrics begin with, and the records of its runs, whose mean it shows.
Line = tuple[str, Any, str, Sequence[Sequence[Record]]]


STYLE = "seaborn-v0_8-whitegrid"
TRAIN, VAL, BEST = "#7a8b99", "#1f6fb4", "#d1495b"
GALLERY = 24  # worst mistakes shown
SWEPT = {
    "train/loss": "training loss",
    "val/loss": "validation loss",
    "val/acc": "validation accuracy",
}
MANY = 10  # more lines than this are told apart by a colour map and not by a legend


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
    drawn = [folder.plots / "curves.png"]
    if not folder.is_sweep:
        if not (records := folder.metrics()):
            return []
        lines = [("train", TRAIN, "train/", [records]), ("val", VAL, "val/", [records])]
        best_epoch = (summary.get("best") or {}).get("epoch")
        _curves(drawn[0], title, {"loss": "loss", "acc": "accuracy"}, lines, best_epoch)
        return drawn
    trials = summary.get("trials", [])
    ranked = rank(trials, config.train.select)
    if not ranked or not ranked[0].acc:
        return []
    groups = sorted(ranked, key=lambda group: min(group.trials))  # as they were asked for
    runs = [folder.trial(index) for index in range(len(trials))]
    histories = [run.metrics() for run in runs]
    lines = [
        (settings(group.values) or "all seeds", colour, "", [histories[t] for t in group.trials])
        for group, colour in zip(groups, _colours(len(groups)), strict=True)
    ]
    _curves(drawn[0], title, SWEPT, lines)
    for axis in axes(trials):
        if axis != SEED:
            drawn.append(folder.plots / f"accuracy-{axis}.png")
            with _figure(drawn[-1], title) as (cell,):
                _accuracy_against(cell, axis, groups, ranked[0], runs)
    return drawn


def overlay(path: Path, compared: "Sequence[Compared]") -> bool:
    """Draws the curves of runs and sweeps into one picture, those of a sweep by its winner.

    Returns:
        Whether there was an epoch to draw.
    """
    colours = _colours(len(compared))
    lines: list[Line] = []
    for each, colour in zip(compared, colours, strict=True):
        histories = [run.metrics() for run in each.members]
        lines.append((each.listed.run.name, colour, "", histories))
    if any(any(histories) for *_, histories in lines):
        _curves(path, "compared: " + ", ".join(name for name, *_ in lines), SWEPT, lines)
        return True
    return False


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
    with _figure(path, title, rows, columns, (1.4 * columns + 0.3, 1.7 * rows + 0.5)) as cells:
        for cell in cells:
            cell.set_axis_off()
        for cell, image, label in zip(cells, images, labels, strict=False):
            pixels = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
            cell.imshow(pixels, cmap="gray_r", vmin=0, vmax=255)
            cell.set_title(label, fontsize=8)


def reliability(path: Path, title: str, measured: "Calibration") -> None:
    """Draws how often predictions are right against how confident they are."""
    with _figure(path, title, size=(5.2, 5.0)) as (cell,):
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
        _label(cell, "confidence", "accuracy")
        cell.legend(title="points by number of images", title_fontsize=8, fontsize=8)


def mistaken(folder: Path, title: str, split: str, seen: "Classified") -> list[Path]:
    """What a checkpoint mistakes for what: all of it in a table, the worst in a gallery.

    Returns:
        The pictures.
    """
    table, gallery = folder / f"confusion-{split}.png", folder / f"mistakes-{split}.png"
    right = seen.labels == seen.guesses
    _confusion(table, f"{title}\naccuracy {percent(right.mean())}", seen.counts, seen.classes)
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


def _confusion(path: Path, title: str, counts: np.ndarray, classes: Sequence[str]) -> None:
    """How often each true class (rows) was taken for each class (columns); shape (n, n)."""
    shares = counts / counts.sum(axis=1, keepdims=True).clip(1)
    size = 0.55 * len(classes) + 1.6
    with _figure(path, title, size=(size, size)) as (cell,):
        # Mistakes are few: on a scale of roots they can be seen beside the diagonal.
        cell.imshow(np.sqrt(shares), cmap="Blues", vmin=0, vmax=1)
        for truth, guess in np.argwhere(counts):
            ink = "white" if shares[truth, guess] > 0.4 else "#333333"
            text = str(counts[truth, guess])
            cell.text(guess, truth, text, ha="center", va="center", color=ink, fontsize=8)
        long = max(map(len, classes)) > 2
        cell.set_xticks(range(len(classes)), classes, rotation=45 if long else 0)
        cell.set_yticks(range(len(classes)), classes)
        cell.set(xlabel="prediction", ylabel="truth", frame_on=False)
        cell.grid(visible=False)


def _curves(
    path: Path,
    title: str,
    panels: Mapping[str, str],
    lines: Sequence[Line],
    best_epoch: int | None = None,
) -> None:
    """Metrics over the epochs, each in a panel with a name."""
    with _figure(path, title, columns=len(panels)) as cells:
        for cell, (metric, name) in zip(cells, panels.items(), strict=True):
            for label, colour, kind, runs in lines:
                epochs = zip_longest(*([record[kind + metric] for record in run] for run in runs))
                samples = [_sample(figures) for figures in epochs]
                top = 1.0 if metric.endswith("acc") else math.inf
                _line(cell, range(1, len(samples) + 1), samples, top, color=colour, label=label)
            if best_epoch:
                cell.axvline(best_epoch, color=BEST, ls=":", label=f"best (epoch {best_epoch})")
            _label(cell, "epoch", name)
        if len(lines) <= MANY:
            cells[-1].legend(loc="center left", bbox_to_anchor=(1.02, 0.5))


def _accuracy_against(
    cell: Axes,
    axis: str,
    groups: Sequence[SeedGroup],
    winner: SeedGroup,
    runs: Sequence[RunDirectory],
) -> None:
    """Accuracy against one swept setting, a line for each combination of the others."""
    values = [group.values[axis] for group in groups]
    numeric = all(type(value) in (int, float) for value in values)
    place = float if numeric else format_value  # words stand in the order asked for
    if numeric:
        _number_axis(cell, axis, values)
        groups = sorted(groups, key=lambda group: group.values[axis])
    lines: dict[str, list[SeedGroup]] = {}
    for group in groups:
        others = settings({key: item for key, item in group.values.items() if key != axis})
        lines.setdefault(others, []).append(group)
    alone = len(lines) == 1
    for (name, line), colour in zip(lines.items(), _colours(len(lines)), strict=True):
        places = [place(group.values[axis]) for group in line]
        if alone:
            train = [_sample([_final_train(runs[t]) for t in group.trials]) for group in line]
            _line(cell, places, train, 1.0, color=TRAIN, label="training, last epoch")
        best = [group.acc or _sample([]) for group in line]
        label = "validation, best epoch" if alone else name
        _line(cell, places, best, 1.0, color=colour, label=label)
    top, at = winner.acc.mean if winner.acc else math.nan, place(winner.values[axis])
    label = f"winner, {percent(top)}"
    cell.plot([at], [top], "*", color=BEST, markersize=14, label=label)
    if diverged := [place(group.values[axis]) for group in groups if group.n_diverged]:
        floor = [cell.get_ylim()[0]] * len(diverged)
        cell.plot(diverged, floor, "x", color=BEST, clip_on=False, label="diverged")
    _label(cell, axis_name(axis), "accuracy" if alone else "validation accuracy")
    if len(lines) <= MANY:
        cell.legend()


@contextmanager
def _figure(
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
        figure.suptitle(title, x=0.01, ha="left", fontsize=8.5, color="#555555")
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=150)
    durable.replace(path, buffer.getvalue())


def _line(
    cell: Axes, places: Sequence[Any], samples: Sequence[Sample], top: float, **style: Any
) -> None:
    """A line through means and the band of their intervals, kept to what can be: 0 to `top`."""
    means = np.array([sample.mean for sample in samples])
    # Points are marked while there are few enough to tell apart.
    cell.plot(places, means, marker="o" if len(places) <= 30 else None, **style)
    halves = np.array([sample.ci95_half_width for sample in samples])
    halves[~np.isfinite(halves)] = 0.0
    low, high = (means - halves).clip(0, top), (means + halves).clip(0, top)
    if halves.any():  # the edge is what there is to see of a single point's
        cell.fill_between(places, low, high, color=style["color"], alpha=0.18, lw=1)


def _sample(values: Sequence[float | None]) -> Sample:
    """The sample of those values that are finite; NaN, which is not drawn, of none."""
    finite = [number for number in values if number is not None and math.isfinite(number)]
    return Sample.of(finite) if finite else Sample(0, math.nan, 0.0, math.inf)


def _final_train(run: RunDirectory) -> float | None:
    """Training accuracy with the final weights, else the last epoch's running mean; if finite."""
    records, final = run.metrics(), run.summary().get("final", {})
    if not records or not math.isfinite(records[-1]["train/loss"]):
        return None
    return float(final.get("train/acc", records[-1]["train/acc"]))


def _colours(count: int) -> Any:
    names = "tab10" if count <= MANY else "viridis"
    return mpl.colormaps[names](range(count) if count <= MANY else np.linspace(0, 1, count))


def _label(cell: Axes, x: str, y: str) -> None:
    cell.set(xlabel=x, ylabel=y)
    if x == "epoch":
        cell.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if y.endswith("accuracy"):
        cell.yaxis.set_major_formatter(PercentFormatter(xmax=1))


def _number_axis(cell: Axes, axis: str, values: Sequence[float]) -> None:
    """Logarithmic for learning rates, and for what spans more than a factor of 20."""
    if min(values) > 0 and (axis == "optimizer.lr" or max(values) / min(values) > 20):
        cell.set_xscale("log")
    elif all(isinstance(value, int) for value in values):
        cell.xaxis.set_major_locator(MaxNLocator(integer=True))
