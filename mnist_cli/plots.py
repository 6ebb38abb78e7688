"""Records in, pictures out. Nothing here knows a screen or keeps a figure open."""

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from mnist_cli import files
from mnist_cli.report import axis_name, settings, value

Record = Mapping[str, Any]

STYLE: Any = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e5e5e5",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
    "legend.frameon": False,
    "figure.dpi": 150,
    "svg.hashsalt": "mnist",
}
TRAIN, VAL, BEST = "#7a8b99", "#1f6fb4", "#d1495b"
MANY = 10  # more curves than this are told apart by a colour map and not by a legend


def run_curves(path: Path, title: str, records: Sequence[Record], best_epoch: int | None) -> None:
    """Loss and accuracy of one run over its epochs, training and validation."""
    with _figure(path, title, columns=2) as (left, right):
        epochs = [record["epoch"] for record in records]
        for axes, kind in ((left, "loss"), (right, "acc")):
            for split, colour in (("train", TRAIN), ("val", VAL)):
                heights = [_number(record[f"{split}/{kind}"]) for record in records]
                axes.plot(epochs, heights, marker=_marker(epochs), color=colour, label=split)
            for record in records:
                if record["epoch"] == best_epoch:
                    height = _number(record[f"val/{kind}"])
                    label = f"best (epoch {best_epoch})"
                    axes.plot(
                        [record["epoch"]], [height], "*", markersize=13, color=BEST, label=label
                    )
            axes.legend()
            _epoch_axis(axes)
        _name_axes(left, right)


def sweep_curves(
    path: Path, title: str, runs: Sequence[tuple[Mapping[str, Any], Sequence[Record]]]
) -> None:
    """Validation loss and accuracy of every run of a sweep over its epochs.

    Args:
        path: the PNG.
        title: above it.
        runs: of each run its swept settings and its records.
    """
    with _figure(path, title, columns=2) as (left, right):
        colours = mpl.colormaps["tab10" if len(runs) <= MANY else "viridis"]
        for place, (own, records) in enumerate(runs):
            colour = colours(place if len(runs) <= MANY else place / (len(runs) - 1))
            epochs = [record["epoch"] for record in records]
            for axes, kind in ((left, "loss"), (right, "acc")):
                heights = [_number(record[f"val/{kind}"]) for record in records]
                axes.plot(
                    epochs, heights, marker=_marker(epochs), color=colour, label=settings(own)
                )
        for axes in (left, right):
            _epoch_axis(axes)
        _name_axes(left, right, "validation ")
        if len(runs) <= MANY:
            right.legend(loc="center left", bbox_to_anchor=(1.02, 0.5))


def accuracy_against(path: Path, title: str, axis: str, trials: Sequence[Record]) -> None:
    """Best validation accuracy of each run against one swept setting; runs without one are marked.

    Args:
        path: the PNG.
        title: above it.
        axis: the setting, a dotted key of the trials.
        trials: as in the sweep's summary.
    """
    with _figure(path, title, columns=1) as (axes,):
        places, ticks = _places(axes, [trial[axis] for trial in trials])
        heights = np.array([_number(trial["val/acc"]) for trial in trials])
        means = {
            place: float(np.mean(found))
            for place in sorted(set(places))
            if len(found := heights[(np.array(places) == place) & np.isfinite(heights)])
        }
        axes.plot(list(means), list(means.values()), color=VAL, alpha=0.6)
        finite = np.isfinite(heights)
        axes.plot(np.array(places)[finite], heights[finite], "o", color=VAL, label="one run")
        if not finite.all():
            lost = np.array(places)[~finite]
            floor = min(means.values(), default=0.0)
            axes.plot(lost, [floor] * len(lost), "x", color=BEST, markersize=8, label="diverged")
        if finite.any():
            top = int(np.nanargmax(heights))
            axes.plot(places[top], heights[top], "*", color=BEST, markersize=15, label="best")
            axes.annotate(
                f"{100 * heights[top]:.2f} %",
                (places[top], heights[top]),
                xytext=(8, 6),
                textcoords="offset points",
                color=BEST,
            )
        if ticks:
            axes.set_xticks(range(len(ticks)), ticks)
        axes.margins(0.08, 0.12)
        axes.set_xlabel(axis_name(axis))
        axes.set_ylabel("validation accuracy")
        axes.yaxis.set_major_formatter(PercentFormatter(xmax=1))
        axes.legend(loc="best")


def image_row(path: Path, title: str, images: np.ndarray, labels: Sequence[str]) -> None:
    """Images in a row, each titled with its label.

    Args:
        path: the PNG.
        title: above them.
        images: uint8, shape (n, channels, height, width).
        labels: n words.
    """
    figure = Figure(figsize=(1.3 * len(labels) + 0.4, 1.9), layout="constrained")
    with mpl.rc_context(STYLE):
        for place, (image, label) in enumerate(zip(images, labels, strict=True)):
            axes = figure.add_subplot(1, len(labels), place + 1)
            pixels = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
            axes.imshow(pixels, cmap="gray_r", vmin=0, vmax=255)
            axes.set_title(label, loc="center")
            axes.set_axis_off()
        figure.suptitle(title, x=0.01, ha="left", fontsize=9, color="#555555")
        _save(figure, path)


@contextmanager
def _figure(path: Path, title: str, columns: int) -> Iterator[list[Axes]]:
    """A row of axes under one title, saved as PNG when the block ends well."""
    with mpl.rc_context(STYLE):
        figure = Figure(
            figsize=(5.2 * columns + (0.8 if columns == 1 else 0), 3.8), layout="constrained"
        )
        axes = [figure.add_subplot(1, columns, column + 1) for column in range(columns)]
        figure.suptitle(title, x=0.01, ha="left", fontsize=8.5, color="#555555")
        yield axes
        _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    files.replace(path, buffer.getvalue())


def _name_axes(left: Axes, right: Axes, kind: str = "") -> None:
    left.set_ylabel(f"{kind}loss")
    right.set_ylabel(f"{kind}accuracy")
    right.yaxis.set_major_formatter(PercentFormatter(xmax=1))


def _epoch_axis(axes: Axes) -> None:
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _marker(epochs: Sequence[int]) -> str | None:
    """Points are marked while there are few enough to tell apart."""
    return "o" if len(epochs) <= 30 else None


def _number(found: float | None) -> float:
    return math.nan if found is None else found


def _places(axes: Axes, values: Sequence[Any]) -> tuple[list[float], list[str]]:
    """Where each value lies on the x axis, and the axis's labels if it is not an axis of numbers.

    An axis of numbers that spans more than a factor of 20 is logarithmic.
    """
    if all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        if min(values) > 0 and max(values) / min(values) > 20:
            axes.set_xscale("log")
        return [float(v) for v in values], []
    names = [value(v) for v in values]
    ticks = list(dict.fromkeys(names))
    return [float(ticks.index(name)) for name in names], ticks
