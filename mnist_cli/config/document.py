"""Strict YAML with positions: the unsurprising part of YAML 1.2, and errors that show the place.

PyYAML reads, and marks where everything stands. What a word means is decided here, because its own
answer is YAML 1.1: there `1e-3` is text, `no` is false and `1:30` is ninety. Whatever could make
one part of a config depend on another (aliases, merge keys) or on code (tags) is refused.
"""

import json
import math
import re
from collections.abc import Iterable
from typing import NamedTuple

import yaml
from yaml.reader import ReaderError

from mnist_cli.errors import UsageError

MAX_SHOWN = 100  # problems printed, and characters of the line that one is in

KEY = "[key]"  # the way to a key itself ends in this, as pydantic has it
Path = tuple[int | str, ...]
"""The way to a value: keys of mappings and indices of lists."""
Position = yaml.Mark | str
"""Where a value stands: a mark in a file, or which argument of the command line it is."""


class Problem(NamedTuple):
    """One thing that is wrong: with which setting, what, and where (if it is written anywhere)."""

    path: Path
    message: str
    kind: str = "syntax"
    """`syntax`, or pydantic's name for the rule that was broken."""
    position: Position | None = None

    @property
    def key(self) -> str:
        """The setting, dotted."""
        parts = (f"[{p}]" if isinstance(p, int) else f".{p}" for p in self.path if p != KEY)
        return "".join(parts).removeprefix(".")

    def __str__(self) -> str:
        where, snippet = self.position, ""
        if isinstance(where, yaml.Mark):
            snippet = f"\n{where.get_snippet(max_length=MAX_SHOWN)}"
            where = f"{where.name}:{where.line + 1}:{where.column + 1}"
        return ": ".join(filter(None, (where, self.key, self.message))) + snippet


class Document(NamedTuple):
    """A text of YAML as plain values, and where they stand."""

    values: object
    positions: dict[Path, Position]
    problems: list[Problem]
    """What is wrong with it. If it cannot be read to its end, the values are None."""


class ConfigError(UsageError):
    """A config that cannot be used, with everything that is wrong with it in the order it stands.

    Args:
        problems: what is wrong.
    """

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = sorted(dict.fromkeys(problems), key=_place)
        shown = [str(problem) for problem in self.problems[:MAX_SHOWN]]
        more = len(self.problems) - len(shown)
        super().__init__("\n".join([*shown, f"... and {more} more"] if more else shown))


def _place(problem: Problem) -> float:
    """The order of problems: as they stand in a file, then those of the command line."""
    return problem.position.index if isinstance(problem.position, yaml.Mark) else math.inf


def quoted(value: object) -> str:
    """A value on one line and cut to a sane length."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:60]}..."


class Loader(yaml.SafeLoader):
    """The numbers and words of YAML 1.2, and nothing that refers to something else."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 - that is how PyYAML has it

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """The node of the next event, if it may be in a config."""
        event = self.peek_event()  # type: ignore[no-untyped-call]
        why = None
        if event.anchor is not None:
            why = "anchors and aliases (&name, *name) are not allowed; write the value out"
        elif event.tag is not None:
            why = "tags (!name) are not allowed"
        if why:
            raise yaml.MarkedYAMLError(problem=why, problem_mark=event.start_mark)
        return super().compose_node(parent, index)


for _tag, _pattern in (
    ("null", r"|~|null|Null|NULL"),
    ("bool", r"true|True|TRUE|false|False|FALSE"),
    ("int", r"[-+]?[0-9]{1,40}|0o[0-7]{1,40}|0x[0-9a-fA-F]{1,40}"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"),
):
    _regex = re.compile(rf"(?:{_pattern})\Z")
    Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _regex, None)
Loader.add_constructor(  # `010` is ten
    "tag:yaml.org,2002:int",
    lambda _, node: int(node.value, 0 if node.value[1:2] in ("o", "x") else 10),
)


def parse(text: str, name: str) -> Document:
    """Reads a text of YAML.

    Args:
        text: the text; bytes that are no UTF-8 as surrogates (`errors="surrogateescape"`).
        name: what error messages call it.
    """
    document = Document(None, {}, [])
    mark: Position | None = name
    try:
        loader = Loader(text)
        loader.name = name  # what its marks call it
        if node := loader.get_single_node():
            return document._replace(values=_plain(loader, node, (), document))
        return document
    except ReaderError as error:
        before, code = text[: error.position], ord(text[error.position])
        line, column = before.count("\n"), len(before) - before.rfind("\n") - 1
        mark = yaml.Mark(name, len(before), line, column, text + "\0", len(before))
        message = f"the character U+{code:04X} is not allowed in a config"
        if 0xDC80 <= code <= 0xDCFF:
            message = f"the byte 0x{code - 0xDC00:02x} is not UTF-8 text"
    except yaml.MarkedYAMLError as error:
        problem = error.problem or ""
        marks = [error.problem_mark, error.context_mark]
        if "end of stream" in problem or "<stream end>" in problem:
            marks.reverse()  # where the bracket is that is never closed
        message = f"{error.context}: {problem}" if error.context else problem
        mark = marks[0] or marks[1]
    except RecursionError:
        message = "more levels deep than any config"
    document.problems.append(Problem((), message, position=mark))
    return document


def _plain(loader: Loader, node: yaml.Node, path: Path, document: Document) -> object:
    """The value of a node; where it and all in it stand is noted, and what is wrong with it."""
    document.positions[path] = node.start_mark
    if isinstance(node, yaml.SequenceNode):
        return [_plain(loader, item, (*path, i), document) for i, item in enumerate(node.value)]
    if not isinstance(node, yaml.MappingNode):
        return loader.construct_object(node)
    found: dict[str, object] = {}
    for key_node, value_node in node.value:
        key, why = key_node.value, None
        if key_node.tag != loader.DEFAULT_SCALAR_TAG:
            why = "a key must be text"
        elif key == "<<":
            why = "merge keys (<<) are not allowed; write the settings out"
        elif key in found:
            why = f"duplicate key {key!r}"
        if why:
            document.problems.append(Problem(path, why, position=key_node.start_mark))
        else:
            document.positions[*path, key, KEY] = key_node.start_mark
            found[key] = _plain(loader, value_node, (*path, key), document)
    return found
