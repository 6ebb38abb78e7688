"""Lists of values as people type them: `1e-1,1e-2`, `1..5`, `log:1e-4:1e-1:7`, `lin:0:1:5`."""

import math
import re
from collections.abc import Iterator, Sequence

from mnist_cli.config.document import Node, Position, Problem, Source, parse

MAX_ITEMS = 10_000

_COUNT = re.compile(r"\+?[0-9]{1,18}")
_RANGE = re.compile(r"([-+]?[0-9]{1,18})\.\.([-+]?[0-9]{1,18})")
_SPACED = re.compile(r"(lin|log):([^:]*):([^:]*):([^:]*)")


def parse_values(
    source: Source, start: int, key: str, problems: list[Problem], *, count: bool = False
) -> Node | None:
    """Reads a list from a place in a source to its end.

    Items stand between commas; brackets around them all may be left out. An item is a value, whole
    numbers from one to another (`1..5`), or numbers evenly spaced on a scale (`lin:0:1:5`) or on a
    logarithmic one (`log:1e-4:1e-1:7`), both ends included.

    Args:
        source: the text.
        start: where the list begins.
        key: dotted key for the problems.
        problems: gets what is wrong.
        count: whether one whole number N alone stands for the numbers 0, 1, ... N-1.

    Returns:
        A list of the items that can be read, each where it is written; None if there are none.
    """
    text = source.text
    start, end = _trimmed(text, start, len(text))
    items = list(_split(text, start, end))
    if len(items) == 1 and text[start:end].startswith("[") and text[start:end].endswith("]"):
        items, count = list(_split(text, start + 1, end - 1)), False
    nodes: list[Node] = []
    for first, last in items:
        where = Position(source, first, last)
        try:
            if count and len(items) == 1 and _COUNT.fullmatch(text, first, last):
                values: Sequence[int | float] = _first(int(text[first:last]))
            elif match := _RANGE.fullmatch(text, first, last):
                values = _whole(int(match[1]), int(match[2]))
            elif match := _SPACED.fullmatch(text, first, last):
                values = _spaced(match[1], *(_number(match[i]) for i in (2, 3, 4)))
            elif first == last:
                raise ValueError("a value is missing here")
            else:
                node = parse(source, problems, first, last, key)
                nodes += [node] if node else []
                continue
        except ValueError as error:
            problems.append(Problem(where, key, str(error)))
            continue
        nodes += [Node(value, where) for value in values]
        if len(nodes) > MAX_ITEMS:
            break
    if max(len(nodes), len(items)) > MAX_ITEMS:
        problems.append(Problem(Position(source, start, end), key, f"more than {MAX_ITEMS} values"))
        return None
    return Node(nodes, Position(source, start, end)) if nodes else None


def _split(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """The stretches between commas that stand in no bracket and no quotes."""
    depth, quote, first = 0, "", start
    for at in range(start, end):
        char = text[at]
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        elif char in "[{":
            depth += 1
        elif char in "]}":
            depth -= 1
        elif char == "," and depth <= 0:
            yield _trimmed(text, first, at)
            first = at + 1
    yield _trimmed(text, first, end)


def _trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    """The stretch without the space around it."""
    inner = text[start:end]
    start += len(inner) - len(inner.lstrip())
    return start, max(start, start + len(inner.strip()))


def _first(count: int) -> range:
    """That many whole numbers from 0."""
    if count < 1:
        raise ValueError("must be at least 1: it is how many there are")
    return _whole(0, count - 1)


def _whole(first: int, last: int) -> range:
    """Whole numbers, both ends included."""
    if last < first:
        raise ValueError(f"{first}..{last} counts down: there is nothing in it")
    if last - first >= MAX_ITEMS:
        raise ValueError(f"more than {MAX_ITEMS} values")
    return range(first, last + 1)


def _spaced(scale: str, first: float, last: float, number: float) -> list[int] | list[float]:
    """Numbers evenly spaced, both ends included; whole ones, if all of them and the ends are."""
    if not (isinstance(number, int) and 2 <= number <= MAX_ITEMS):
        raise ValueError(f"the last of {scale}:FIRST:LAST:COUNT is a number from 2 to {MAX_ITEMS}")
    parts = [i / (number - 1) for i in range(1, number - 1)]
    if scale == "lin":
        inner = [float(f"{first + (last - first) * part:.12g}") for part in parts]
    elif first > 0 and last > 0:
        low, high = math.log(first), math.log(last)
        # Six digits, so that powers of ten come out as people write them.
        inner = [float(f"{math.exp(low + (high - low) * part):.6g}") for part in parts]
    else:
        raise ValueError("both ends of a log: scale must be greater than 0")
    values = [first, *inner, last]
    if isinstance(first, int) and isinstance(last, int) and all(x == int(x) for x in inner):
        return [int(value) for value in values]
    return [float(value) for value in values]


def _number(text: str) -> float:
    """A number as our YAML has it."""
    node = parse(Source("", text), [])
    if node and isinstance(node.value, int | float) and math.isfinite(node.value):
        return node.value
    raise ValueError(f"{text!r} is not a number")
