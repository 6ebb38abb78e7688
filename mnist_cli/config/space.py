"""The values that a search may give to a setting: `1e-4..1e-1`, `log:1e-4:1e-1`, or a list."""

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

from mnist_cli.config.values import parse_values

_NUMBER = r"([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)"
_RANGE = re.compile(rf"(?:(lin|log|geomspace):)?{_NUMBER}(?:\.\.|:){_NUMBER}")


class Range(NamedTuple):
    """The numbers from `low` to `high`, both included: whole ones, if both are."""

    low: float
    high: float
    log: bool

    def share(self, value: float) -> float:
        """Where a value lies in it, from 0 to 1; on a log scale, if it has one."""
        low, high, at = self.low, self.high, value
        if self.log:
            low, high, at = map(math.log, (low, high, at))
        return (at - low) / (high - low)

    def __str__(self) -> str:
        return f"{'log' if self.log else 'lin'}:{self.low!r}:{self.high!r}"


Space = Range | tuple[object, ...]


def parse_space(given: str | Sequence[object]) -> Space:
    """The range or the choices that a config gives for a setting to be searched.

    Raises:
        ValueError: there is not more than one value in it; the argument says why.
    """
    if isinstance(given, str) and (match := _RANGE.fullmatch(given)):
        low, high = (
            int(end) if end.lstrip("+-").isdigit() else float(end) for end in match.group(2, 3)
        )
        log = match[1] in ("log", "geomspace")
        if log and low <= 0:
            raise ValueError(f"a log range starts above 0, got {given}; give the end nearer to 0")
        if low >= high:
            raise ValueError(f"is empty, got {given}; a range goes from the lower end to a higher")
        return Range(low, high, log)
    choices: object = given
    if isinstance(given, str):
        read = parse_values(given, "")
        if read.problems:
            raise ValueError(read.problems[0].message)
        choices = read.values
    assert isinstance(choices, list | tuple)
    if len(choices) < 2:
        what = "one value" if choices else "no values"
        raise ValueError(
            f"has {what}; give a range (log:1e-4:1e-1) or a list, or leave it out of the space"
        )
    return tuple(choices)


def is_space(text: str) -> bool:
    """Whether the value of a `KEY=VALUE` is a range."""
    return _RANGE.fullmatch(text.partition("=")[2]) is not None
