"""The interactive figures of a page, as the plain data that Plotly's JavaScript draws.

Their colours are ordered as what they stand for, told apart by colour-blind readers, and seen on
white and on black; all other looks are the page's own.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations, zip_longest
from typing import TYPE_CHECKING, Any

from mnist_cli.report.tables import axis_name, format_value, percent, settings
from mnist_cli.sweeps.stats import Sample, SeedGroup

if TYPE_CHECKING:
    from mnist_cli.runs.evaluate import Classified

Record = Mapping[str, Any]
Figure = dict[str, Any]

TRAIN, VAL, BEST = "#8a8f98", "#3b7dd8", "#d1495b"
STOPS = ("#6a51c7", "#3178c6", "#1f9e96", "#6fae3c", "#dba520")  # ever lighter
MANY = 250  # points in a figure; fewer are marked
MOST = 100  # lines that a browser draws at once
PAIRS = 6  # heat maps
TICKS = 12


def run_curves(records: Sequence[Record], best_epoch: int | None) -> dict[str, Figure]:
    """Loss, accuracy and learning rate of one run over its epochs, by their names."""
    epochs = [record["epoch"] for record in records]

    def curve(name: str, metric: str, colour: str) -> Figure:
        return _line(name, epochs, [_sample([record[metric]]) for record in records], colour)

    drawn = {}
    for name, metric in {"loss": "loss", "accuracy": "acc"}.items():
        lines = [curve("training", f"train/{metric}", TRAIN)]
        lines.append(curve("validation", f"val/{metric}", VAL))
        for record in records:
            if record["epoch"] == best_epoch:
                star = _line("best epoch", [best_epoch], [_sample([record[f"val/{metric}"]])], BEST)
                lines.append(star | {"mode": "markers", "marker": {"symbol": "star", "size": 13}})
        drawn[name] = _chart(lines, "epoch", name)
    lines = [curve("learning rate", "lr", VAL)]
    return drawn | {"learning rate": _chart(lines, "epoch", "learning rate")}


def sweep_curves(
    groups: Sequence[SeedGroup], histories: Sequence[Sequence[Record]]
) -> dict[str, Figure]:
    """A line for each setting over the epochs, the mean of its seeds with its 95 % interval.

    Args:
        groups: in the order asked for, which is that of the colours.
        histories: the records of each trial.
    """
    panels = {"training loss": "train/loss", "validation loss": "val/loss"}
    panels |= {"validation accuracy": "val/acc", "learning rate": "lr"}
    drawn = {}
    for name, metric in panels.items():
        lines = []
        for group, colour in zip(groups, _colours(len(groups)), strict=True):
            runs = [[record[metric] for record in histories[t]] for t in group.trials]
            samples = [_sample(epoch) for epoch in zip_longest(*runs)]
            label = settings(group.values) or "all seeds"
            top = 1.0 if metric == "val/acc" else math.inf
            lines.append(_line(label, [*range(1, len(samples) + 1)], samples, colour, top))
        drawn[name] = _chart(lines, "epoch", name)
    return drawn


def against(axis: str, groups: Sequence[SeedGroup]) -> Figure:
    """Validation accuracy against one swept setting, a line for each combination of the others."""
    values = [group.values[axis] for group in groups]
    numeric = _is_numeric(values)
    if numeric:
        groups = sorted(groups, key=lambda group: group.values[axis])
    lines: dict[str, list[SeedGroup]] = {}
    for group in groups:
        others = settings({key: item for key, item in group.values.items() if key != axis})
        lines.setdefault(others, []).append(group)
    drawn = [
        _line(
            name or "validation, best epoch",
            [group.values[axis] if numeric else format_value(group.values[axis]) for group in line],
            [group.acc or _sample([]) for group in line],
            colour,
            top=1.0,
        )
        for (name, line), colour in zip(lines.items(), _colours(len(lines)), strict=True)
    ]
    figure = _chart(drawn, axis_name(axis), "validation accuracy")
    scale = "log" if numeric and _is_log(axis, values) else "linear" if numeric else "category"
    figure["layout"]["xaxis"]["type"] = scale
    if numeric and len(ticks := _distinct(values)) <= TICKS:
        figure["layout"]["xaxis"] |= {"tickvals": ticks, "ticktext": [*map(format_value, ticks)]}
    return figure


def pairs(axes: Sequence[str], groups: Sequence[SeedGroup]) -> dict[str, Figure]:
    """For each two swept settings the best mean accuracy that was had with both."""
    drawn = {}
    for down, across in [*combinations(axes, 2)][:PAIRS]:
        best: dict[tuple[str, str], float] = {}
        for group in groups:
            if group.acc:
                at = format_value(group.values[down]), format_value(group.values[across])
                best[at] = max(group.acc.mean, best.get(at, 0.0))
        rows, columns = (
            [format_value(item) for item in _distinct([group.values[axis] for group in groups])]
            for axis in (down, across)
        )
        cells = [[best.get((row, column)) for column in columns] for row in rows]
        texts = [[percent(cell) for cell in row] for row in cells]
        y, x = axis_name(down), axis_name(across)
        heat = _heat_map(columns, rows, cells, texts, f"{y} %{{y}}, {x} %{{x}}: %{{text}}")
        heat["colorbar"] = {"tickformat": ".1%", "thickness": 12}
        low, high = min(best.values(), default=0.0), max(best.values(), default=1.0)
        heat |= {"zmin": min(low, high - 0.01), "zmax": high}  # a scale also where all are equal
        drawn[f"{y} and {x}"] = _chart([heat], x, y, kind="category")
    return drawn


def parallel(axes: Sequence[str], groups: Sequence[SeedGroup]) -> Figure:
    """Every setting of a sweep as a line through its values to its accuracy."""
    shown = [group for group in groups if group.acc]
    dimensions: list[Figure] = []
    for axis in axes:
        values = [group.values[axis] for group in shown]
        known = _distinct(values)
        place: Callable[[Any], float] = known.index
        if _is_numeric(values):
            place = math.log10 if _is_log(axis, values) else float
        ticks = known[:: math.ceil(len(known) / TICKS)]
        dimensions.append({"label": axis_name(axis), "values": [*map(place, values)]})
        dimensions[-1]["tickvals"] = [*map(place, ticks)]
        dimensions[-1]["ticktext"] = [*map(format_value, ticks)]
    accuracies = [group.acc.mean for group in shown if group.acc]
    dimensions.append({"label": "val acc", "values": accuracies, "tickformat": ".1%"})
    bar = {"tickformat": ".1%", "thickness": 12}
    scale = [[index / (len(STOPS) - 1), stop] for index, stop in enumerate(STOPS)]
    colour = {"color": accuracies, "colorscale": scale, "showscale": True, "colorbar": bar}
    return {"data": [{"type": "parcoords", "dimensions": dimensions, "line": colour}], "layout": {}}


def confusion(seen: "Classified") -> Figure:
    """How often each true class was taken for each, with the recall of each class beside it."""
    counts = seen.counts
    shares = counts / counts.sum(axis=1, keepdims=True).clip(1)
    recalls = [percent(share, 1) for share in shares.diagonal().tolist()]
    names = [f"{name}  {recall}" for name, recall in zip(seen.classes, recalls, strict=True)]
    texts = [[str(count or "") for count in row] for row in counts.tolist()]
    # Mistakes are few: on a scale of roots they can be seen beside the diagonal.
    heat = _heat_map(
        [*seen.classes], names, (shares**0.5).tolist(), texts,
        "is %{y}<br>said %{x}: %{text} times, %{customdata:.1%}",
    )  # fmt: skip
    marks = (0, 0.01, 0.1, 0.5, 1)
    ticks = {"tickvals": [mark**0.5 for mark in marks], "ticktext": [f"{m:.0%}" for m in marks]}
    heat |= {"zmin": 0, "zmax": 1, "customdata": shares.tolist()}
    heat["colorbar"] = ticks | {"thickness": 12}
    return _chart([heat], "prediction", "truth, recall", kind="category", reverse=True)


def _line(
    name: str, x: Sequence[Any], samples: Sequence[Sample], colour: str, top: float = math.inf
) -> Figure:
    """A line through means, with their 95 % intervals where there are any."""
    line: Figure = {"type": "scatter", "name": name, "x": x, "line": {"color": colour}}
    line["y"] = means = [sample.mean for sample in samples]
    widths = [s.ci95_half_width if math.isfinite(s.ci95_half_width) else 0.0 for s in samples]
    if any(widths):  # no accuracy or loss is negative, and no accuracy above 1
        line["error_y"] = {
            "type": "data",
            "symmetric": False,
            "array": [min(width, top - mean) for width, mean in zip(widths, means, strict=True)],
            "arrayminus": [*map(min, widths, means)],
            "color": f"{colour}80",  # half transparent
            "thickness": 1.2,
            "width": 3,
        }
    return line


def _heat_map(
    x: Sequence[str], y: Sequence[str], z: Sequence[Any], text: Sequence[Any], hover: str
) -> Figure:
    return {
        "type": "heatmap", "x": x, "y": y, "z": z, "text": text, "colorscale": "Viridis",
        "texttemplate": "%{text}", "hovertemplate": f"{hover}<extra></extra>",
        "xgap": 1, "ygap": 1,
    }  # fmt: skip


def _chart(
    lines: Sequence[Figure], x: str, y: str, kind: str | None = None, reverse: bool = False
) -> Figure:
    """Traces on two axes with names; losses and rates on a logarithmic one where they range far."""
    across: Figure = {"title": {"text": x}, "type": kind}
    down: Figure = {
        "title": {"text": y},
        "type": kind,
        "autorange": "reversed" if reverse else True,
    }
    if x == "epoch" and all(len(line["x"]) < 10 for line in lines):
        across["dtick"] = 1
    if y.endswith("accuracy"):
        down["tickformat"] = ".4~%"
    elif not kind:
        seen = [number for line in lines for number in line["y"] if math.isfinite(number)]
        wide = seen and min(seen) > 0 and max(seen) > 20 * min(seen)
        down |= {"type": "log"} if wide else {"type": "linear", "rangemode": "tozero"}
    mode = "lines" if sum(len(line["x"]) for line in lines) > MANY else "lines+markers"
    drawn = [{"mode": mode} | line if line["type"] == "scatter" else line for line in lines]
    return {"data": drawn, "layout": {"xaxis": across, "yaxis": down}}


def _sample(values: Sequence[float | None]) -> Sample:
    finite = [number for number in values if number is not None and math.isfinite(number)]
    return Sample.of(finite) if finite else Sample(0, math.nan, 0.0, math.inf)


def _distinct(values: Sequence[Any]) -> list[Any]:
    """Numbers from the least, anything else as it comes."""
    found = [item for index, item in enumerate(values) if item not in values[:index]]
    return sorted(found) if _is_numeric(found) else found


def _is_numeric(values: Sequence[Any]) -> bool:
    return all(type(value) in (int, float) for value in values)


def _is_log(axis: str, values: Sequence[float]) -> bool:
    return min(values) > 0 and (axis == "optimizer.lr" or max(values) > 20 * min(values))


def _colours(count: int) -> list[str]:
    """So many colours along the stops."""
    found = []
    for index in range(count):
        at = (len(STOPS) - 1) * (index / (count - 1) if count > 1 else 0.25)
        low = min(int(at), len(STOPS) - 2)
        pair = [[int(stop[i : i + 2], 16) for i in (1, 3, 5)] for stop in STOPS[low : low + 2]]
        mixed = [round(a + (b - a) * (at - low)) for a, b in zip(*pair, strict=True)]
        found.append("#" + "".join(f"{part:02x}" for part in mixed))
    return found
