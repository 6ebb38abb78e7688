"""What pictures and a page's figures share: the looks of lines, the part of an axis they show.

Colours are ordered as the numbers they stand for, told apart by colour-blind readers, and seen on
white and on black.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, zip_longest
from statistics import median
from typing import TYPE_CHECKING, Any

from mnist_cli.report.tables import axis_name, counted, format_value, percent, settings
from mnist_cli.sweeps.stats import Sample, SeedGroup

if TYPE_CHECKING:
    import numpy as np

    from mnist_cli.runs.evaluate import Classified

Record = Mapping[str, Any]

TRAIN, VAL, BEST = "#8a8f98", "#3b7dd8", "#d1495b"
ORDERED = ("#5a35b0", "#2f6fc4", "#1f9a94", "#7ab648", "#e6b830")  # ever lighter
# M. Okabe and K. Ito, "Color Universal Design", 2008, without black and yellow.
NAMED = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
DASHES = 4  # kinds of line
MANY = 2 * len(NAMED)  # more lines than this are not all named
FAR, NEAR = 5.0, 0.05  # times the median, and at least: losses and shares of errors not shown
SHARES = (0, 0.01, 0.1, 0.5, 1)  # marked on the scale of a confusion matrix, which is of roots
PAIRS = 6  # grids of two settings


@dataclass(frozen=True)
class Style:
    """The looks of a line.

    Attributes:
        label: what it is in the legend, alone or with others of its colour.
        colour: as #rrggbb.
        dash: which kind of line, from 0, solid, to `DASHES` - 1.
        named: whether the legend has it.
    """

    label: str
    colour: str
    dash: int = 0
    named: bool = True


@dataclass(frozen=True)
class Key:
    """What tells lines apart.

    Attributes:
        styles: of each line.
        title: the setting that the colours stand for; nothing where each line is named.
        scale: where a colour bar replaces the legend, the values on it and their colours.
    """

    styles: Sequence[Style]
    title: str = ""
    scale: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class Window:
    """The part of an axis that shows all but what is far worse than most.

    Attributes:
        low: where it begins.
        high: where it ends.
        is_log: whether it is logarithmic.
        beyond: how many points it does not show.
    """

    low: float
    high: float
    is_log: bool
    beyond: int

    def label(self, name: str) -> str:
        """The axis' name, with what it does not show."""
        beyond = counted(self.beyond, "point")
        return f"{name} ({beyond} off axis)" if beyond else name


def key(names: Sequence[str], swept: Sequence[Mapping[str, Any]], scores: Sequence[float]) -> Key:
    """How to draw lines of which each stands for some settings.

    The setting with most values has the colours, the others the kinds of line. Of more than
    `MANY` lines the colours alone are named: in a legend or, where a number has more values than
    that, by a colour bar; of so many other things the best are named and the rest is grey.

    Args:
        names: of each line.
        swept: its settings by dotted key, the same ones for all.
        scores: how good it is.
    """
    columns = {axis: [own[axis] for own in swept] for axis in swept[0]}
    values = {axis: distinct(column) for axis, column in columns.items()}
    if len(names) == 1 or not columns:
        return Key([Style(name, VAL) for name in names])
    axis = max(values, key=lambda axis: (len(values[axis]), is_numeric(values[axis])))
    known, looks = values[axis], _looks(columns[axis])
    if len(names) <= MANY:
        others = [[own[other] for other in own if other != axis] for own in swept]
        kinds = distinct(others) if len(known) < len(names) else []
        return Key([
            Style(name, colour, (dash + (kinds.index(other) if kinds else 0)) % DASHES)
            for name, (colour, dash), other in zip(names, looks, others, strict=True)
        ])  # fmt: skip
    if len(known) > MANY and not is_numeric(known):
        return Key(_best(names, scores))
    bar, texts = len(known) > MANY, [*map(format_value, columns[axis])]
    styles = [
        Style(text, *look, named=not bar and text not in texts[:index])
        for index, (text, look) in enumerate(zip(texts, looks, strict=True))
    ]
    scale = [*zip(map(format_value, known), colours(known), strict=True)] if bar else []
    return Key(styles, axis_name(axis), scale)


def _looks(column: Sequence[Any]) -> list[tuple[str, int]]:
    """Colour and kind of line of each value: names take the next kind where colours repeat."""
    known = distinct(column)
    turn = len(known) if is_numeric(known) else len(NAMED)
    dashes = [known.index(value) // turn for value in column]
    return [*zip(colours(column), dashes, strict=True)]


def _best(names: Sequence[str], scores: Sequence[float]) -> list[Style]:
    best = sorted(range(len(names)), key=lambda index: -scores[index])[:MANY]
    looks = dict(zip(sorted(best), _looks([names[index] for index in sorted(best)]), strict=True))
    rest = [index for index in range(len(names)) if index not in looks]
    return [
        Style(name, *looks[index])
        if index in looks
        else Style(f"{len(rest)} others", TRAIN, named=index == rest[0])
        for index, name in enumerate(names)
    ]


def colours(values: Sequence[Any]) -> list[str]:
    """A colour for each value: ever lighter for greater numbers, and one for each other thing."""
    known = distinct(values)
    if is_numeric(known):
        last = len(known) - 1
        table = [_mixed(index / last if last else 0.25) for index in range(len(known))]
    else:
        table = [NAMED[index % len(NAMED)] for index in range(len(known))]
    return [table[known.index(value)] for value in values]


def _mixed(share: float) -> str:
    """The colour at that share of the way along the ordered ones."""
    at = share * (len(ORDERED) - 1)
    low = min(int(at), len(ORDERED) - 2)
    pair = [[int(stop[i : i + 2], 16) for i in (1, 3, 5)] for stop in ORDERED[low : low + 2]]
    mixed = [round(a + (b - a) * (at - low)) for a, b in zip(*pair, strict=True)]
    return "#" + "".join(f"{part:02x}" for part in mixed)


def over_epochs(runs: Sequence[Sequence[Record]], metric: str) -> list[Sample]:
    """A metric in each epoch, over those runs that have come to it."""
    return [sample(e) for e in zip_longest(*([record[metric] for record in run] for run in runs))]


def one(value: float) -> Sample:
    """The sample of one value."""
    return Sample.of([value])


def sample(values: Sequence[float | None]) -> Sample:
    """The sample of those values that are finite; NaN, which is not drawn, of none."""
    finite = [number for number in values if number is not None and math.isfinite(number)]
    return Sample.of(finite) if finite else Sample(0, math.nan, 0.0, math.inf)


def group_key(groups: Sequence[SeedGroup]) -> Key:
    """How to draw one line for each group."""
    names = []
    for group in groups:
        diverged = (
            f" ({group.n_diverged} of {len(group.trials)} diverged)" if group.n_diverged else ""
        )
        names.append((settings(group.values) or "all seeds") + diverged)
    return key(names, [group.values for group in groups], [*map(score, groups)])


def along(axis: str, groups: Sequence[SeedGroup]) -> tuple[list[list[SeedGroup]], Key]:
    """The lines of a picture against one swept setting: one for each combination of the others."""
    if is_numeric([group.values[axis] for group in groups]):
        groups = sorted(groups, key=lambda group: group.values[axis])
    lines: dict[str, list[SeedGroup]] = {}
    others = []
    for group in groups:
        rest = {key: item for key, item in group.values.items() if key != axis}
        if settings(rest) not in lines:
            others.append(rest)
        lines.setdefault(settings(rest), []).append(group)
    scores = [max(map(score, line)) for line in lines.values()]
    return [*lines.values()], key([*lines], others, scores)


def score(group: SeedGroup) -> float:
    """Its mean validation accuracy, and 0 without one."""
    return group.acc.mean if group.acc else 0.0


@dataclass(frozen=True)
class Grid:
    """The best mean accuracy that was had with each two values of two settings.

    Attributes:
        rows: the values of the one setting.
        columns: those of the other.
        cells: accuracies, None where there is none.
        low: where the colours begin: far worse ones have the first.
        high: where they end.
    """

    rows: list[str]
    columns: list[str]
    cells: list[list[float | None]]
    low: float
    high: float


def grids(groups: Sequence[SeedGroup]) -> dict[tuple[str, str], Grid]:
    """For each two swept settings, at most `PAIRS` times, what was had with both."""
    found = {}
    for down, across in [*combinations(groups[0].values, 2)][:PAIRS]:
        best: dict[tuple[str, str], float] = {}
        for group in groups:
            if group.acc:
                at = format_value(group.values[down]), format_value(group.values[across])
                best[at] = max(group.acc.mean, best.get(at, 0.0))
        rows, columns = (
            [*map(format_value, distinct([group.values[axis] for group in groups]))]
            for axis in (down, across)
        )
        cells = [[best.get((row, column)) for column in columns] for row in rows]
        shown = window([[*map(one, best.values())]], is_accuracy=True, apart=True)
        found[down, across] = Grid(rows, columns, cells, max(shown.low, 0.0), min(shown.high, 1.0))
    return found


def window(lines: Sequence[Sequence[Sample]], *, is_accuracy: bool, apart: bool = False) -> Window:
    """What an axis shows of lines: all means but those far worse than most.

    Those are losses, or shares of errors, above `FAR` times the median of what the lines begin
    with, or of all points if `apart`. Losses that range over more than a factor of 20 are on a
    logarithmic axis.
    """

    def cost(mean: float) -> float:
        return 1 - mean if is_accuracy else mean

    drawn = [[each for each in line if math.isfinite(each.mean)] for line in lines]
    firsts = [each for line in drawn for each in (line if apart else line[:1])]
    most = max(FAR * median([cost(each.mean) for each in firsts] or [1.0]), NEAR)
    kept = [[each for each in line if cost(each.mean) <= most] for line in drawn]
    beyond = sum(map(len, drawn)) - sum(map(len, kept))
    shown = [each for line in kept for each in line] or [one(0.0), one(1.0)]
    least, top = (max(1 - most, 0.0), 1.0) if is_accuracy else (0.0, most)
    low = max(least, min(each.mean - half_width(each) for each in shown))
    high = min(top, max(each.mean + half_width(each) for each in shown))
    means = [each.mean for each in shown]
    if not is_accuracy and is_wide(means):
        low = max(low, min(means) / 2)
        margin = (high / low) ** 0.04
        return Window(low / margin, high * margin, is_log=True, beyond=beyond)
    margin = 0.04 * (high - low) or 0.01
    return Window(low - margin, high + margin, is_log=False, beyond=beyond)


def recalls(seen: "Classified") -> "tuple[np.ndarray, list[str]]":
    """The confusion matrix in shares of the true class; and the classes, each with its recall."""
    counts = seen.counts
    shares = counts / counts.sum(axis=1, keepdims=True).clip(1)
    named = zip(seen.classes, shares.diagonal().tolist(), strict=True)
    return shares, [f"{short(name, 24)}  {percent(share, 1)}" for name, share in named]


def short(text: str, most: int) -> str:
    """A text of no more letters than that."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def half_width(each: Sample) -> float:
    """Half the width of its 95 % interval, and 0 where there is none."""
    return each.ci95_half_width if math.isfinite(each.ci95_half_width) else 0.0


def interval_label(lines: Sequence[Sequence[Sample]]) -> str:
    """What a drawn interval is: `95 % interval over 5 seeds`; nothing if none is drawn."""
    seeds = sorted({each.n for line in lines for each in line if half_width(each)})
    if not seeds:
        return ""
    span = f"{seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else f"{seeds[0]}"
    return f"95 % interval over {span} seeds"


def distinct(values: Sequence[Any]) -> list[Any]:
    """Numbers from the least, anything else as it comes."""
    found = [item for index, item in enumerate(values) if item not in values[:index]]
    return sorted(found) if is_numeric(found) else found


def is_numeric(values: Sequence[Any]) -> bool:
    """Whether they are all numbers, which truth values are not."""
    return all(type(value) in (int, float) for value in values)


def is_log(axis: str, values: Sequence[float]) -> bool:
    """Whether an axis for that setting is logarithmic: of learning rates, and of a wide range."""
    return min(values) > 0 and (axis == "optimizer.lr" or is_wide(values))


def is_wide(values: Sequence[float]) -> bool:
    """Whether they are positive and span more than a factor of 20."""
    return min(values) > 0 and max(values) > 20 * min(values)
