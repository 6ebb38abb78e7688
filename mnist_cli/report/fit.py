"""Tables in the width there is: columns are left out and words wrapped, and no figure is cut."""

import re
from collections.abc import Sequence

from rich.cells import cell_len
from rich.console import RenderableType
from rich.table import Column, Table

from mnist_cli.errors import printable

BESIDE = 3  # what a column takes beside its text, and the table one more
FIGURE = 20  # no figure is longer: longer cells have several, between which they may wrap
FIGURES = 14  # what those have at least
WORD = 15  # what a long word may keep before a column is left out for it
LEAST = 6  # what it keeps if nothing more can be left out


class FittedTable(Table):
    """A table that knows which of its columns matter least.

    Attributes:
        least: the headers of those that are left out first; after them go those on the right. The
            first two stay.
    """

    least: Sequence[str] = ()

    def fit(self, width: int) -> Table:
        """The same table, no wider than a terminal if that can be."""
        columns, order = [*self.columns], [*self.least, *(c.header for c in self.columns[:1:-1])]
        floors = {id(column): _floor(column) for column in columns}
        while order and _total([min(floors[id(c)], WORD) for c in columns]) > width:
            columns = [column for column in columns if column.header != order[0]]
            order.pop(0)
        words = [floors[id(column)] for column in columns]
        least = [LEAST if column.justify == "left" else floors[id(column)] for column in columns]
        words = _reduced(words, least, width)
        widths = _reduced([max(map(cell_len, _texts(column))) for column in columns], words, width)
        made = Table(box=self.box)
        for column, chosen in zip(columns, widths, strict=True):
            made.add_column(column.header, justify=column.justify, width=chosen)
        cells = [
            [_shortened(cell, word) for cell in column.cells]
            for column, word in zip(columns, words, strict=True)
        ]
        for row, line in zip(self.rows, zip(*cells, strict=True), strict=True):
            made.add_row(*line, style=row.style)
        return made


def _reduced(widths: Sequence[int], least: Sequence[int], total: int) -> list[int]:
    """Widths of columns, of which the widest give way until the table fits or all are least."""
    reduced = [*widths]
    while _total(reduced) > total:
        spare = [(width > low) * width for width, low in zip(reduced, least, strict=True)]
        if not any(spare):
            break
        reduced[spare.index(max(spare))] -= 1
    return reduced


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + BESIDE * len(widths) + 1


def _texts(column: Column) -> list[str]:
    return [printable(str(cell)) for cell in (column.header, *column.cells)]


def _floor(column: Column) -> int:
    """The least width in which nothing is cut: of the longest word, or of the longest figure."""
    header, *cells = _texts(column)
    words = max(cell_len(word) for cell in (header, *cells, "-") for word in cell.split())
    full = max(map(cell_len, cells), default=0)
    if column.justify == "left":
        return words
    return max(words, full if full <= FIGURE else FIGURES)


def _shortened(cell: RenderableType, width: int) -> RenderableType:
    """A cell whose words are no longer than that: of a path the end is kept, else the beginning."""
    if not isinstance(cell, str):
        return cell

    def cut(word: re.Match[str]) -> str:
        return f"…{word[0][1 - width :]}" if "/" in word[0] else f"{word[0][: width - 1]}…"

    return re.sub(rf"\S{{{width + 1},}}", cut, printable(cell))
