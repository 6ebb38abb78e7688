"""Lists of values as people type them: `1e-1,1e-2`, `1..5`, `log:1e-4:1e-1:7`, `lin:0:1:5`."""

import re

from mnist_cli.config.document import Document, Problem, parse

MAX_ITEMS = 10_000

_WHOLE = r"[-+]?[0-9]{1,18}"
_RANGE = re.compile(rf"({_WHOLE})\.\.({_WHOLE})")
_SPACED = re.compile(r"(lin|log|geomspace):([-+.0-9eE]+):([-+.0-9eE]+):([0-9]{1,9})")


def parse_values(text: str, name: str, *, count: bool = False) -> Document:
    """Reads a list: YAML's, whose brackets may be left out, with items that stand for several.

    Such an item is whole numbers from one to another (`1..5`), or numbers evenly spaced on a scale
    (`lin:0:1:5`) or on a logarithmic one (`log:1e-4:1e-1:7`, or `geomspace:...`), both ends
    included.

    Args:
        text: the list.
        name: what error messages call it.
        count: whether one whole number N alone stands for the numbers 0, 1, ... N-1.

    Returns:
        The list, and what is wrong with it.
    """
    if count and re.fullmatch(_WHOLE, text.strip()):
        if int(text) < 1:
            return Document([], {}, [Problem((), "must be at least 1: it is how many there are")])
        text = f"0..{int(text) - 1}"
    read = parse(f"[{text}]", name)
    items = read.values if isinstance(read.values, list) else []
    if len(items) == 1 and isinstance(items[0], list):
        items = items[0]
    values: list[object] = []
    try:
        for item in items:
            values += _expand(item) if isinstance(item, str) else [item]
            if len(values) > MAX_ITEMS:
                raise ValueError(f"more than {MAX_ITEMS} values")
        if not values and not read.problems:
            raise ValueError("has no values")
    except ValueError as error:
        read.problems.append(Problem((), str(error)))
    return read._replace(values=values)


def _expand(item: str) -> list[object]:
    """The values that an item stands for.

    Raises:
        ValueError: it looks like several and cannot be; the argument says why.
    """
    if match := _RANGE.fullmatch(item):
        values = range(int(match[1]), int(match[2]) + 1)
        if not values:
            raise ValueError(f"{item} has no values: it counts down")
        return [*values[: MAX_ITEMS + 1]]
    if match := _SPACED.fullmatch(item):
        return [*_spaced(match[1], match[2], match[3], int(match[4]))]
    return [item]


def _spaced(scale: str, begin: str, end: str, count: int) -> list[int] | list[float]:
    """Numbers evenly spaced, both ends included; whole ones, if all of them and the ends are."""
    if not 2 <= count <= MAX_ITEMS:
        raise ValueError(f"{scale}:FIRST:LAST:COUNT makes from 2 to {MAX_ITEMS} values")
    first, last = float(begin), float(end)
    parts = [i / (count - 1) for i in range(1, count - 1)]
    if scale == "lin":
        inner = [float(f"{first + (last - first) * part:.12g}") for part in parts]
    elif first > 0 and last > 0:
        # Six digits, so that powers of ten come out as people write them.
        inner = [float(f"{first * (last / first) ** part:.6g}") for part in parts]
    else:
        raise ValueError(f"both ends of a {scale}: scale must be greater than 0")
    if re.fullmatch(f"{_WHOLE} {_WHOLE}", f"{begin} {end}") and all(x.is_integer() for x in inner):
        return [int(value) for value in (first, *inner, last)]
    return [first, *inner, last]
