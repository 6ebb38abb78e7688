"""The pictures of runs and sweeps, drawn from their folders alone. No figure stays open.

Where a setting ran with several seeds, a line is their mean and the band around it the 95 %
t-interval of that mean.
"""

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from mnist_cli import config as configs
from mnist_cli.data import durable
from mnist_cli.report.tables import axis_name, experiment, percent, settings, value
from mnist_cli.runs.store import RunDirectory
from mnist_cli.sweeps.stats import SEED, Sample, Setting, axes, rank

if TYPE_CHECKING:
    from mnist_cli.runs.evaluate import Classified

Record = Mapping[str, Any]

STYLE: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e5e5e5",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
    "legend.frameon": False,
}
TRAIN, VAL, BEST = "#7a8b99", "#1f6fb4", "#d1495b"
GALLERY = 24  # worst mistakes shown
MANY = 10  # more lines than this are told apart by a colour map and not by a legend


def draw(folder: RunDirectory) -> list[Path]:
    """Draws all there is to draw of a run or a sweep into its `plots/`.

    Returns:
        The pictures.

    Raises:
        UsageError: its config cannot be read.
        OSError: a picture cannot be written.
    """
    config = configs.load_text(folder.config_text(), str(folder.config_path))
    title = f"{folder.name}\n{experiment(config)}"
    folder.plots.mkdir(exist_ok=True)
    if not folder.is_sweep:
        top = folder.summary().get("best")
        best = top.get("epoch") if top else None
        return _run_curves(folder.plots / "curves.png", title, folder.metrics(), best)
    trials = folder.summary().get("trials", [])
    ranked = rank(trials, config.train.select)
    found = sorted(ranked, key=lambda setting: min(setting.trials))  # as they were asked for
    runs = [folder.trial(index) for index in range(len(trials))]
    drawn = _sweep_curves(folder.plots / "curves.png", title, found, runs)
    for axis in axes(trials):
        if axis != SEED:
            path = folder.plots / f"accuracy-{axis}.png"
            drawn += _accuracy_against(path, title, axis, found, ranked[0], trials, runs)
    return drawn


def image_grid(path: Path, title: str, images: np.ndarray, labels: Sequence[str]) -> None:
    """Images in rows of ten, each titled with its label.

    Args:
        path: the PNG.
        title: above them.
        images: uint8, shape (n, channels, height, width).
        labels: n words.
    """
    columns = min(len(labels), 10)
    rows = -(-len(labels) // columns)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(1.3 * columns + 0.4, 1.5 * rows + 0.4), layout="constrained")
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            cell = figure.add_subplot(rows, columns, index + 1)
            _image(cell, image)
            cell.set_title(label, fontweight="bold")
        _save(figure, path, title)


def mistaken(folder: Path, title: str, split: str, seen: "Classified") -> list[Path]:
    """What a checkpoint mistakes for what: all of it in a table, the worst in a gallery.

    Returns:
        The pictures.
    """
    classes, worst = seen.classes, seen.mistakes(GALLERY)
    wrong, right = (
        int((seen.labels != seen.guesses).sum()),
        percent(np.mean(seen.labels == seen.guesses)),
    )
    table, gallery = folder / f"confusion-{split}.png", folder / f"mistakes-{split}.png"
    _confusion(table, f"{title}\naccuracy {right}", seen.counts, classes)
    told = [
        (classes[seen.labels[i]], classes[seen.guesses[i]], float(seen.confidences[i]))
        for i in worst
    ]
    if not told:
        return [table]
    surest = f"the {len(worst)} it was surest of, of {wrong} mistakes"
    _gallery(gallery, f"{title}\n{surest}", seen.images[worst], told)
    return [table, gallery]


def _confusion(path: Path, title: str, counts: np.ndarray, classes: Sequence[str]) -> None:
    """How often each true class (rows) was taken for each class (columns).

    Args:
        path: the PNG.
        title: above it.
        counts: int, shape (classes, classes).
        classes: their names.
    """
    shares = counts / counts.sum(axis=1, keepdims=True).clip(1)
    with mpl.rc_context({**STYLE, "axes.grid": False}):
        size = 0.55 * len(classes) + 1.6
        figure = Figure(figsize=(size, size), layout="constrained")
        cell = figure.add_subplot()
        # Mistakes are few: on a scale of roots they can be seen beside the diagonal.
        cell.imshow(np.sqrt(shares), cmap="Blues", vmin=0, vmax=1)
        for truth in range(len(classes)):
            for guess in range(len(classes)):
                if counts[truth, guess]:
                    ink = "white" if shares[truth, guess] > 0.4 else "#333333"
                    text = f"{counts[truth, guess]}"
                    cell.text(guess, truth, text, ha="center", va="center", color=ink, fontsize=8)
        cell.set_xticks(range(len(classes)), classes)
        if max(map(len, classes)) > 2:
            cell.tick_params(axis="x", rotation=45)
        cell.set_yticks(range(len(classes)), classes)
        cell.set_xlabel("prediction")
        cell.set_ylabel("truth")
        for spine in cell.spines.values():
            spine.set_visible(False)
        cell.tick_params(length=0)
        _save(figure, path, title)


def _gallery(
    path: Path, title: str, images: np.ndarray, told: Sequence[tuple[str, str, float]]
) -> None:
    """A gallery of mistakes, in the order given.

    Args:
        path: the PNG.
        title: above it.
        images: uint8, shape (n, channels, height, width).
        told: of each image its true class, the class it was taken for, and how surely (0 to 1).
    """
    columns = 6
    rows = max(1, math.ceil(len(told) / columns))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(1.45 * columns, 1.75 * rows + 0.6), layout="constrained")
        for place, (image, (truth, guess, confidence)) in enumerate(zip(images, told, strict=True)):
            cell = figure.add_subplot(rows, columns, place + 1)
            _image(cell, image)
            cell.set_title(f"is {truth}, said {guess}\n{percent(confidence, 1)}", fontsize=8)
        _save(figure, path, title)


def _run_curves(
    path: Path, title: str, records: Sequence[Record], best_epoch: int | None
) -> list[Path]:
    """Loss and accuracy of one run over its epochs, training and validation."""
    if not records:
        return []
    with _figure(path, title, columns=2) as (left, right):
        epochs = [record["epoch"] for record in records]
        for cell, kind in ((left, "loss"), (right, "acc")):
            for split, colour in (("train", TRAIN), ("val", VAL)):
                heights = [_number(record[f"{split}/{kind}"]) for record in records]
                cell.plot(epochs, heights, marker=_marker(epochs), color=colour, label=split)
            if best_epoch is not None and best_epoch in epochs:
                height = _number(records[epochs.index(best_epoch)][f"val/{kind}"])
                label = f"best (epoch {best_epoch})"
                cell.plot([best_epoch], [height], "*", markersize=13, color=BEST, label=label)
            cell.legend()
            _epoch_axis(cell)
        left.set_ylabel("loss")
        _accuracy_axis(right, "accuracy")
    return [path]


def _sweep_curves(
    path: Path, title: str, found: Sequence[Setting], runs: Sequence[RunDirectory]
) -> list[Path]:
    """Training loss, validation loss and validation accuracy of every setting over the epochs."""
    curves = [(s, [runs[trial].metrics() for trial in s.trials]) for s in found]
    curves = [(s, ran) for s, histories in curves if (ran := [r for r in histories if r])]
    if not curves:
        return []
    with _figure(path, title, columns=3) as cells:
        for place, (setting, histories) in enumerate(curves):
            colour = _colour(place, len(curves))
            epochs = [record["epoch"] for record in max(histories, key=len)]
            for cell, metric in zip(cells, ("train/loss", "val/loss", "val/acc"), strict=True):
                samples = [
                    _sample([_number(ran[at][metric]) for ran in histories if at < len(ran)])
                    for at in range(len(epochs))
                ]
                label = settings(setting.values) or "all seeds"
                top = 1.0 if metric == "val/acc" else math.inf
                _line(cell, epochs, samples, colour=colour, label=label, top=top)
        for cell, name in zip(cells, ("training loss", "validation loss"), strict=False):
            cell.set_ylabel(name)
        for cell in cells:
            _epoch_axis(cell)
        _accuracy_axis(cells[2], "validation accuracy")
        _legend(cells[2], len(curves))
    return [path]


def _accuracy_against(
    path: Path,
    title: str,
    axis: str,
    found: Sequence[Setting],
    winner: Setting,
    trials: Sequence[Record],
    runs: Sequence[RunDirectory],
) -> list[Path]:
    """Accuracy against one swept setting, a line for each combination of the others."""
    if winner.acc is None:
        return []
    lines: dict[str, list[Setting]] = {}
    for setting in found:
        others = {key: item for key, item in setting.values.items() if key != axis}
        lines.setdefault(settings(others), []).append(setting)
    with _figure(path, title, columns=1) as (cell,):
        place_of, ticks = _places(cell, axis, [setting.values[axis] for setting in found])
        for number, (name, line) in enumerate(lines.items()):
            colour = VAL if len(lines) == 1 else _colour(number, len(lines))
            line.sort(key=lambda setting: place_of(setting.values[axis]))
            places = [place_of(setting.values[axis]) for setting in line]
            if len(lines) == 1:
                train = [
                    _sample([_final_train(runs[t]) for t in setting.trials]) for setting in line
                ]
                _line(cell, places, train, colour=TRAIN, label="training, last epoch")
            best = [setting.acc or _sample([]) for setting in line]
            label = name if len(lines) > 1 else "validation, best epoch"
            _line(cell, places, best, colour=colour, label=label)
        at = place_of(winner.values[axis]), winner.acc.mean
        cell.plot([at[0]], [at[1]], "*", color=BEST, markersize=14)
        cell.annotate(
            percent(winner.acc.mean),
            at,
            xytext=(0, 9),
            textcoords="offset points",
            ha="center",
            color=BEST,
        )
        lost = [trial for trial in trials if trial["status"] == "diverged"]
        if lost:
            floor = [cell.get_ylim()[0]] * len(lost)
            spots = [place_of(trial[axis]) for trial in lost]
            cell.plot(spots, floor, "x", color=BEST, markersize=8, clip_on=False, label="diverged")
        if ticks:
            cell.set_xticks(range(len(ticks)), ticks)
        cell.margins(0.08, 0.14)
        cell.set_xlabel(axis_name(axis))
        _accuracy_axis(cell, "accuracy" if len(lines) == 1 else "validation accuracy")
        if len(lines) <= MANY:
            cell.legend(loc="best")
    return [path]


def costs(path: Path, measured: Mapping[str, Any]) -> None:
    """What a step costs each run, against how many train together.

    Args:
        path: the PNG.
        measured: what `bench.bench` returns.

    Raises:
        OSError: it cannot be written.
    """
    machine, works = measured["machine"], measured["works"]
    title = f"{machine['cpu']}, {machine['cores']} cores, {machine['device']}"
    title += f", torch {machine['torch']}\nmedians and quartiles of {measured['rounds']} rounds"
    with _figure(path, title, columns=len(works), width=2.9 if len(works) > 1 else 6.4) as cells:
        for cell, work in zip(cells, works, strict=True):
            tutorial, *stacks = [v for v in work["variants"] if v["precision"] == "fp32"]
            counts = [stack["runs"] for stack in stacks]
            for label, colour, times in (
                # The tutorial trains one run at a time, however many there are.
                ("the tutorials' loop", BEST, [tutorial["run_us"]] * len(stacks)),
                ("mnist", VAL, [stack["run_us"] for stack in stacks]),
                ("the limit", TRAIN, [stack["limit_us"] for stack in stacks]),
            ):
                low, median, high = ([t[name] for t in times] for name in ("low", "median", "high"))
                cell.plot(counts, median, marker="o", color=colour, label=label)
                cell.fill_between(counts, low, high, color=colour, alpha=0.18, lw=0)
            cell.set_title(
                f"{work['experiment']}, batch {work['batch_size']}\n{work['about']}", fontsize=9
            )
            cell.set(yscale="log", xlabel="runs together")
            cell.set_xscale("log", base=2)
            cell.set_xticks(counts, [str(count) for count in counts])
        bottoms, tops = zip(*(cell.get_ylim() for cell in cells), strict=True)
        for cell in cells:  # on one scale, to be compared
            cell.set_ylim(min(bottoms), max(tops))
            cell.yaxis.set_major_formatter("{x:,.0f}")
        cells[0].set_ylabel("µs per run and step")
        cells[0].legend(fontsize=8)


@contextmanager
def _figure(
    path: Path, title: str, columns: int, width: float | None = None
) -> Iterator[list[Axes]]:
    """A row of axes, each so many inches wide, under one title; saved when the block ends well."""
    with mpl.rc_context(STYLE):
        width = width or (6.4 if columns == 1 else 4.6)
        figure = Figure(figsize=(width * columns, 4.0), layout="constrained")
        yield [figure.add_subplot(1, columns, column + 1) for column in range(columns)]
        _save(figure, path, title)


def _save(figure: Figure, path: Path, title: str) -> None:
    figure.suptitle(title, x=0.01, ha="left", fontsize=8.5, color="#555555")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    durable.replace(path, buffer.getvalue())


def _image(cell: Axes, image: np.ndarray) -> None:
    """One image (channels, height, width): grey as ink on paper, colour as it is."""
    pixels = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
    cell.imshow(pixels, cmap="gray_r", vmin=0, vmax=255)
    cell.set_axis_off()


def _line(
    cell: Axes,
    places: Sequence[float],
    samples: Sequence[Sample],
    *,
    colour: Any,
    label: str,
    top: float = 1.0,
) -> None:
    """A line through means and the band of their intervals, kept to what can be: 0 to `top`."""
    means = np.array([sample.mean for sample in samples])
    halves = np.array([sample.half if math.isfinite(sample.half) else 0.0 for sample in samples])
    cell.plot(places, means, marker=_marker(places), color=colour, label=label)
    if halves.any() and len(places) == 1:
        bar = [means - (means - halves).clip(0, top), (means + halves).clip(0, top) - means]
        cell.errorbar(places, means, yerr=bar, color=colour, capsize=4)
    elif halves.any():
        low, high = (means - halves).clip(0, top), (means + halves).clip(0, top)
        cell.fill_between(places, low, high, color=colour, alpha=0.18, lw=0)


def _sample(values: Sequence[float]) -> Sample:
    """The sample of those values that are finite; NaN, which is not drawn, of none."""
    finite = [number for number in values if math.isfinite(number)]
    return Sample.of(finite) if finite else Sample(0, math.nan, 0.0, math.inf)


def _final_train(run: RunDirectory) -> float:
    """Training accuracy with the final weights, else the last epoch's running mean; NaN if lost."""
    final, records = run.summary().get("final", {}), run.metrics()
    if not records or records[-1]["train/loss"] is None:
        return math.nan
    return _number(final.get("train/acc", records[-1]["train/acc"]))


def _number(found: float | None) -> float:
    return math.nan if found is None else found


def _colour(place: int, count: int) -> Any:
    if count <= MANY:
        return mpl.colormaps["tab10"](place)
    return mpl.colormaps["viridis"](place / (count - 1))


def _legend(cell: Axes, count: int) -> None:
    if count <= MANY:
        cell.legend(loc="center left", bbox_to_anchor=(1.02, 0.5))


def _epoch_axis(cell: Axes) -> None:
    cell.set_xlabel("epoch")
    cell.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _accuracy_axis(cell: Axes, name: str) -> None:
    cell.set_ylabel(name)
    cell.yaxis.set_major_formatter(PercentFormatter(xmax=1))


def _marker(places: Sequence[float]) -> str | None:
    """Points are marked while there are few enough to tell apart."""
    return "o" if len(places) <= 30 else None


def _places(cell: Axes, axis: str, values: Sequence[Any]) -> tuple[Any, list[str]]:
    """Where each value lies on the x axis, and its labels if it is not an axis of numbers.

    An axis of learning rates is logarithmic, and so is one that spans more than a factor of 20.
    """
    if all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        if min(values) > 0 and (axis == "optimizer.lr" or max(values) / min(values) > 20):
            cell.set_xscale("log")
        elif all(isinstance(v, int) for v in values):
            cell.xaxis.set_major_locator(MaxNLocator(integer=True))
        return float, []
    ticks = list(dict.fromkeys(value(v) for v in values))
    return (lambda v: float(ticks.index(value(v)))), ticks
