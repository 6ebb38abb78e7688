"""The interactive figures of a page, as the plain data that Plotly's JavaScript draws.

Their colours are those of the pictures (see `series`); all other looks are the page's own.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mnist_cli.report import series
from mnist_cli.report.series import BEST, ORDERED, TRAIN, VAL, Key, Style, Window
from mnist_cli.report.tables import axis_name, format_value, percent
from mnist_cli.sweeps.stats import Sample, SeedGroup

if TYPE_CHECKING:
    from mnist_cli.runs.evaluate import Classified

Record = Mapping[str, Any]
Figure = dict[str, Any]
Line = tuple[Style, Sequence[Any], Sequence[Sample]]  # and where its points are, and what they are

SCALE = [[index / (len(ORDERED) - 1), stop] for index, stop in enumerate(ORDERED)]
KINDS = ("solid", "dash", "dot", "dashdot")
MANY = 250  # points in a figure; fewer are marked
MOST = 100  # lines that a browser draws at once
TICKS = 12


def run_curves(records: Sequence[Record], best_epoch: int | None) -> dict[str, Figure]:
    """Loss, accuracy and learning rate of one run over its epochs, by their names."""
    epochs: list[int] = [record["epoch"] for record in records]

    def curve(name: str, metric: str, colour: str) -> Line:
        return Style(name, colour), epochs, series.over_epochs([records], metric)

    drawn = {}
    for name, metric in {"loss": "loss", "accuracy": "acc"}.items():
        lines = [curve("training", f"train/{metric}", TRAIN)]
        lines.append(curve("validation", f"val/{metric}", VAL))
        drawn[name] = _chart(lines, "epoch", name)
        for record in records:
            if record["epoch"] == best_epoch:
                mark = {"symbol": "star", "size": 13, "color": BEST}
                star = {"type": "scatter", "name": "best epoch", "mode": "markers", "marker": mark}
                star |= {"x": [record["epoch"]], "y": [record[f"val/{metric}"]]}
                drawn[name]["data"].append(star)
    lines = [curve("learning rate", "lr", VAL)]
    return drawn | {"learning rate": _chart(lines, "epoch", "learning rate")}


def sweep_curves(
    groups: Sequence[SeedGroup], histories: Sequence[Sequence[Record]]
) -> dict[str, Figure]:
    """A line for each setting over the epochs, the mean of its seeds with its 95 % interval.

    Args:
        groups: in the order asked for.
        histories: the records of each trial.
    """
    panels = {"training loss": "train/loss", "validation loss": "val/loss"}
    panels |= {"validation accuracy": "val/acc", "learning rate": "lr"}
    key, drawn = series.group_key(groups), {}
    for name, metric in panels.items():
        lines: list[Line] = []
        for group, style in zip(groups, key.styles, strict=True):
            samples = series.over_epochs([histories[t] for t in group.trials], metric)
            lines.append((style, [*range(1, len(samples) + 1)], samples))
        drawn[name] = _chart(lines, "epoch", name, key)
    return drawn


def against(axis: str, groups: Sequence[SeedGroup]) -> Figure:
    """Validation accuracy against one swept setting, a line for each combination of the others."""
    values = [group.values[axis] for group in groups]
    numeric = series.is_numeric(values)
    split, key = series.along(axis, groups)
    lines: list[Line] = []
    for style, line in zip(key.styles, split, strict=True):
        places = [group.values[axis] for group in line]
        accuracies = [group.acc or series.sample([]) for group in line]
        lines.append((style, places if numeric else [*map(format_value, places)], accuracies))
    figure = _chart(lines, axis_name(axis), "validation accuracy", key)
    scale = "log" if numeric and series.is_log(axis, values) else "linear"
    figure["layout"]["xaxis"]["type"] = scale if numeric else "category"
    if numeric and len(ticks := series.distinct(values)) <= TICKS:
        figure["layout"]["xaxis"] |= {"tickvals": ticks, "ticktext": [*map(format_value, ticks)]}
    return figure


def pairs(groups: Sequence[SeedGroup]) -> dict[str, Figure]:
    """For each two swept settings the best mean accuracy that was had with both."""
    drawn = {}
    for (down, across), grid in series.grids(groups).items():
        texts = [[percent(cell) for cell in row] for row in grid.cells]
        y, x = axis_name(down), axis_name(across)
        hover = f"{y} %{{y}}, {x} %{{x}}: %{{text}}"
        heat = _heat_map(grid.columns, grid.rows, grid.cells, texts, hover)
        heat |= {"zmin": grid.low, "zmax": grid.high}
        heat["colorbar"] = {"tickformat": ".1%", "thickness": 12}
        drawn[f"{y} and {x}"] = _heat_chart(heat, x, y)
    return drawn


def parallel(groups: Sequence[SeedGroup]) -> Figure:
    """Every setting of a sweep as a line through its values to its accuracy."""
    shown = [group for group in groups if group.acc]
    dimensions: list[Figure] = []
    for axis in groups[0].values:
        values = [group.values[axis] for group in shown]
        known = series.distinct(values)
        place: Callable[[Any], float] = known.index
        if series.is_numeric(values):
            place = math.log10 if series.is_log(axis, values) else float
        ticks = known[:: math.ceil(len(known) / TICKS)]
        dimensions.append({"label": axis_name(axis), "values": [*map(place, values)]})
        dimensions[-1]["tickvals"] = [*map(place, ticks)]
        dimensions[-1]["ticktext"] = [*map(format_value, ticks)]
    accuracies = [group.acc.mean for group in shown if group.acc]
    dimensions.append({"label": "val acc", "values": accuracies, "tickformat": ".1%"})
    bar = {"tickformat": ".1%", "thickness": 12}
    colour = {"color": accuracies, "colorscale": SCALE, "showscale": True, "colorbar": bar}
    return {"data": [{"type": "parcoords", "dimensions": dimensions, "line": colour}], "layout": {}}


def confusion(seen: "Classified") -> Figure:
    """How often each true class was taken for each, with the recall of each class beside it."""
    shares, names = series.recalls(seen)
    texts = [[str(count or "") for count in row] for row in seen.counts.tolist()]
    # Mistakes are few: on a scale of roots they can be seen beside the diagonal.
    heat = _heat_map(
        [*seen.classes], names, (shares**0.5).tolist(), texts,
        "is %{y}<br>said %{x}: %{text} times, %{customdata:.1%}",
    )  # fmt: skip
    heat |= {"zmin": 0, "zmax": 1, "customdata": shares.tolist()}
    heat["colorbar"] = {"thickness": 12, "title": {"text": "of the class"}}
    heat["colorbar"]["tickvals"] = [share**0.5 for share in series.SHARES]
    heat["colorbar"]["ticktext"] = [f"{share:.0%}" for share in series.SHARES]
    return _heat_chart(heat, "prediction", "truth, recall", reverse=True)


def _chart(lines: Sequence[Line], x: str, y: str, key: Key | None = None) -> Figure:
    """Lines on two axes with names, and in the legend, or beside a colour bar."""
    across: Figure = {"title": {"text": x}}
    down: Figure = {"title": {"text": y}}
    if x == "epoch" and all(len(places) < 10 for _, places, _ in lines):
        across["dtick"] = 1
    is_accuracy = y.endswith("accuracy")
    if is_accuracy:
        down["tickformat"] = ".4~%"
    if y == "learning rate":
        means = [each.mean for *_, samples in lines for each in samples]
        down |= {"type": "log"} if series.is_wide(means) else {"rangemode": "tozero"}
    else:
        samples = [samples for *_, samples in lines]
        down |= _range(series.window(samples, is_accuracy=is_accuracy, apart=x != "epoch"), y)
    marked = sum(len(places) for _, places, _ in lines) <= MANY
    data = [_line(*line, marked or len(line[1]) == 1, is_accuracy) for line in lines]
    if key and key.scale:
        data.append(_colour_bar(key))
    legend = {"title": {"text": key.title if key else ""}}
    return {"data": data, "layout": {"xaxis": across, "yaxis": down, "legend": legend}}


def _range(shown: Window, y: str) -> Figure:
    ends = [shown.low, shown.high]
    return {
        "title": {"text": shown.label(y)},
        "type": "log" if shown.is_log else "linear",
        "range": [*map(math.log10, ends)] if shown.is_log else ends,
    }


def _line(
    style: Style, x: Sequence[Any], samples: Sequence[Sample], marked: bool, is_accuracy: bool
) -> Figure:
    """A line through means, with their 95 % intervals where there are any."""
    means, widths = [each.mean for each in samples], [*map(series.half_width, samples)]
    line: Figure = {
        "type": "scatter", "name": style.label, "x": x, "y": means,
        "mode": "lines+markers" if marked else "lines",
        "line": {"color": style.colour, "dash": KINDS[style.dash]},
        "showlegend": style.named, "legendgroup": style.label,
    }  # fmt: skip
    if any(widths):  # no accuracy or loss is negative, and no accuracy above 1
        top = 1.0 if is_accuracy else math.inf
        line["error_y"] = {
            "type": "data",
            "symmetric": False,
            "array": [min(width, top - mean) for width, mean in zip(widths, means, strict=True)],
            "arrayminus": [*map(min, widths, means)],
            "color": f"{style.colour}80",  # half transparent
            "thickness": 1.2,
            "width": 3,
        }
    return line


def _colour_bar(key: Key) -> Figure:
    """A trace that draws nothing but the bar, of the values in steps of equal height."""
    texts, stops = zip(*key.scale, strict=True)
    last = len(texts) - 1
    ticks = range(0, len(texts), math.ceil(len(texts) / TICKS))
    bar = {"title": {"text": key.title}, "thickness": 12, "tickvals": [*ticks]}
    bar["ticktext"] = [texts[tick] for tick in ticks]
    scale = [[index / last, stop] for index, stop in enumerate(stops)]
    marker = {"color": [0], "cmin": 0, "cmax": last, "colorscale": scale, "colorbar": bar}
    shown = {"showscale": True, **marker}
    return {
        "type": "scatter",
        "x": [None],
        "y": [None],
        "mode": "markers",
        "marker": shown,
        "showlegend": False,
    }


def _heat_chart(heat: Figure, x: str, y: str, *, reverse: bool = False) -> Figure:
    across = {"title": {"text": x}, "type": "category"}
    down = {"title": {"text": y}, "type": "category", "autorange": "reversed" if reverse else True}
    return {"data": [heat], "layout": {"xaxis": across, "yaxis": down}}


def _heat_map(
    x: Sequence[str], y: Sequence[str], z: Sequence[Any], text: Sequence[Any], hover: str
) -> Figure:
    return {
        "type": "heatmap", "x": x, "y": y, "z": z, "text": text, "colorscale": SCALE,
        "texttemplate": "%{text}", "hovertemplate": f"{hover}<extra></extra>",
        "xgap": 1, "ygap": 1,
    }  # fmt: skip
