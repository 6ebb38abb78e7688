"""Strict YAML with positions: the unsurprising part of YAML 1.2, and errors that show the place.

PyYAML's parser supplies the events. What they mean is decided here, because PyYAML's own answer is
YAML 1.1: there `1e-3` is text, `no` is false and `1:30` is ninety. Whatever could make one part of
a config depend on another (aliases, merge keys) or on code (tags) is refused.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import yaml

from mnist_cli.errors import UsageError

MAX_DEPTH = 50
MAX_VALUES = 12_000
MAX_DIGITS = 40
MAX_SHOWN = 100  # problems printed, and columns of a source line

# Control characters, the line breaks that only YAML 1.1 knows, lone surrogates, noncharacters.
REFUSED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufffe\uffff]")

_INT = re.compile(r"[-+]?[0-9]+")
_BASED_INT = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_WORDS = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}


@dataclass(frozen=True, slots=True)
class Source:
    """A text that settings are read from: a file or, from 1 up, an argument of the command line."""

    name: str
    text: str
    argument: int = 0


@dataclass(frozen=True, slots=True)
class Position:
    """A stretch of a source, in characters from its start."""

    source: Source
    start: int
    end: int

    @property
    def line(self) -> int:
        """Line of its first character, from 1."""
        return self.source.text.count("\n", 0, self.start) + 1

    @property
    def column(self) -> int:
        """Column of its first character, from 1."""
        return self.start - self.source.text.rfind("\n", 0, self.start)

    def __contains__(self, other: "Position") -> bool:
        inside = self.start <= other.start and other.end <= self.end
        return inside and self.source is other.source

    def __str__(self) -> str:
        name = printable(self.source.name)
        return name if self.source.argument else f"{name}:{self.line}:{self.column}"

    def excerpt(self) -> str:
        """The line it starts on, or the part of it around the place, with carets underneath."""
        text, begin = self.source.text, self.start - self.column + 1
        stop = text.find("\n", begin)
        line = text[begin : stop if stop >= 0 else len(text)].rstrip()
        at, to = self.start - begin, max(self.start - begin + 1, min(self.end - begin, len(line)))
        first = max(0, min(at - MAX_SHOWN // 3, len(line) - MAX_SHOWN))
        last = first + MAX_SHOWN
        left, right = "..." * (first > 0), "..." * (last < len(line))
        gutter = "" if self.source.argument else str(self.line)
        carets = "^" * max(1, _cells(line[at : min(to, last)]))
        indent = " " * _cells(left + line[first:at])
        shown = left + printable(line[first:last]) + right
        return f"{gutter:>4} | {shown}\n{'':>4} | {indent}{carets}"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: where (if it is written anywhere), with which setting, and what."""

    where: Position | None
    key: str
    message: str
    kind: str = "syntax"
    """`syntax`, `conflict`, or the schema's own name for the rule that was broken."""

    def __str__(self) -> str:
        parts = [str(self.where)] if self.where else []
        text = ": ".join([*parts, *([printable(self.key)] if self.key else []), self.message])
        return f"{text}\n{self.where.excerpt()}" if self.where else text


class ConfigError(UsageError):
    """A config that cannot be used, with everything that is wrong with it in the order it stands.

    Args:
        problems: what is wrong.
        hint: what to do about it, in one sentence.
    """

    def __init__(self, problems: Iterable[Problem], hint: str | None = None) -> None:
        self.problems = tuple(sorted(dict.fromkeys(problems), key=_order))
        shown = [str(problem) for problem in self.problems[:MAX_SHOWN]]
        if more := len(self.problems) - len(shown):
            shown.append(f"... and {more} more")
        super().__init__("\n".join(shown), hint)


@dataclass(frozen=True, slots=True)
class Node:
    """A value and where it stands: plain, a list of nodes, or a mapping from text to nodes."""

    value: Any
    where: Position | None = None
    key: Position | None = None
    """Where the key stands that it is the value of."""


def plain(node: Node) -> Any:
    """The value of a node without the positions."""
    if isinstance(node.value, dict):
        return {key: plain(child) for key, child in node.value.items()}
    return [plain(child) for child in node.value] if isinstance(node.value, list) else node.value


def tree(value: Any) -> Node:
    """A node without positions of a plain value: what `plain` makes plain again."""
    if isinstance(value, dict):
        return Node({key: tree(child) for key, child in value.items()})
    return Node([tree(child) for child in value] if isinstance(value, list | tuple) else value)


class NotASectionError(Exception):
    """A path leads through something that holds no settings; the argument is its dotted key."""

    def __str__(self) -> str:
        return f"{self.args[0]} is not a section of settings"


def placed(root: Node, path: Sequence[tuple[str, Position | None]], node: Node) -> Node:
    """A copy of a mapping with a node at a path of keys (and where those keys stand).

    Sections on the way are made where there are none, and a section that is a bare name
    (`model: mlp`) becomes one with that `name`.

    Raises:
        NotASectionError: something on the way is not a section.
    """
    (head, where), *rest = path
    node = replace(node, key=node.key or where)
    if rest:
        inner = root.value.get(head, Node({}, where, where))
        if isinstance(inner.value, str) and len(path) == 2:
            inner = replace(inner, value={"name": inner})
        if not isinstance(inner.value, dict):
            raise NotASectionError(head)
        try:
            node = placed(inner, rest, replace(node, key=None))
        except NotASectionError as error:
            raise NotASectionError(f"{head}.{error.args[0]}") from None
    return replace(root, value={**root.value, head: node})


def without(root: Node, section: str, settings: Iterable[str]) -> Node:
    """A copy of a mapping of sections with some settings of one section taken out."""
    old = root.value.get(section)
    if old is None or not isinstance(old.value, dict):
        return root
    gone = set(settings)
    kept = {key: node for key, node in old.value.items() if key not in gone}
    return replace(root, value={**root.value, section: replace(old, value=kept)})


def quoted(value: Any, limit: int = 60) -> str:
    """A value as a config would write it, on one line and cut to a sane length."""
    match value:
        case dict():
            pairs = [f"{key}: {quoted(item)}" for key, item in list(value.items())[:limit]]
            text = f"{{{', '.join(pairs)}}}"
        case list() | tuple():
            text = f"[{', '.join(quoted(item) for item in value[:limit])}]"
        case str():
            text = repr(value[: limit + 2])
        case None | bool():
            text = {None: "null", True: "true", False: "false"}[value]
        case _:
            text = str(value)
    return text if len(text) <= limit else f"{text[:limit]}..."


def printable(text: str) -> str:
    """Text that cannot move the cursor or change colours, character for character as long."""
    return "".join(" " if c == "\t" else c if c.isprintable() else "\ufffd" for c in text)


def parse(
    source: Source, problems: list[Problem], start: int = 0, end: int | None = None, key: str = ""
) -> Node | None:
    """Reads the YAML between two places of a source.

    Args:
        source: the text.
        problems: gets what is wrong.
        start: where the YAML begins.
        end: where it ends (the end of the text, if not given).
        key: dotted key of the setting whose value it is.

    Returns:
        The value, or None if the text cannot be read to its end. An empty one has the value None.
    """
    end = len(source.text) if end is None else end

    def report(first: int, last: int, message: str) -> None:
        problems.append(Problem(Position(source, start + first, start + last), key, message))

    text = source.text[start:end]
    if bad := REFUSED.search(text):
        report(*bad.span(), f"the character U+{ord(bad[0]):04X} is not allowed in a config")
        return None
    try:
        return _Composer(source, start, text, problems).document(key)
    except _TooMuch as stop:
        problems.append(stop.problem)
    except yaml.MarkedYAMLError as error:
        mark, message = _sentence(error)
        at = min(mark.index, len(text)) if mark else 0
        report(at, at + 1, message)
    return None


class _TooMuch(Exception):  # noqa: N818 - a signal within this file, not an error for anyone
    """The text is larger than any config is; there is no point in reading on."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem


class _Composer:
    """Makes nodes of PyYAML's events; a dotted key goes along for the error messages."""

    def __init__(self, source: Source, start: int, text: str, problems: list[Problem]) -> None:
        self.source, self.start, self.problems = source, start, problems
        self.events: Iterator[Any] = yaml.parse(text, Loader=yaml.SafeLoader)
        self.count = 0

    def document(self, key: str) -> Node:
        """The one document of the text."""
        next(self.events)  # the start of the stream
        node = Node(None, self.where(next(self.events)))  # the start of a document, or the end
        if event := next(self.events, None):
            node = self.node(event, key, 0)
            next(self.events)  # the end of the document
            if not isinstance(again := next(self.events), yaml.StreamEndEvent):
                self.report(again, key, "a second document starts here; a config is only one")
        return node

    def where(self, first: Any, last: Any = None) -> Position:
        """The stretch of text from the start of one event to the end of another."""
        last = last or first
        return Position(
            self.source, self.start + first.start_mark.index, self.start + last.end_mark.index
        )

    def report(self, event: Any, key: str, message: str) -> None:
        """Notes what is wrong with an event; reading goes on."""
        self.problems.append(Problem(self.where(event), key, message))

    def node(self, event: Any, key: str, depth: int) -> Node:
        """The value that starts with an event."""
        self.count += 1
        if depth > MAX_DEPTH:
            raise _TooMuch(Problem(self.where(event), "", f"more than {MAX_DEPTH} levels deep"))
        if self.count > MAX_VALUES:
            raise _TooMuch(Problem(self.where(event), "", f"more than {MAX_VALUES} values"))
        if isinstance(event, yaml.AliasEvent):
            self.report(event, key, "aliases (*name) are not allowed; write the value out")
            return Node(None, self.where(event))
        if event.anchor is not None:
            self.report(event, key, "anchors (&name) are not allowed")
        if event.tag is not None:
            self.report(event, key, "tags (!name) are not allowed")
        if isinstance(event, yaml.ScalarEvent):
            return Node(self.scalar(event, key), self.where(event))
        if isinstance(event, yaml.SequenceStartEvent):
            items: list[Node] = []
            while not isinstance(inner := next(self.events), yaml.SequenceEndEvent):
                items.append(self.node(inner, f"{key}[{len(items)}]", depth + 1))
            return Node(items, self.where(event, inner))
        pairs: dict[str, Node] = {}
        while not isinstance(inner := next(self.events), yaml.MappingEndEvent):
            self.pair(inner, key, depth + 1, pairs, flow=bool(event.flow_style))
        return Node(pairs, self.where(event, inner))

    def pair(self, event: Any, key: str, depth: int, pairs: dict[str, Node], *, flow: bool) -> None:
        """Reads a key, which starts with an event, and its value, and adds them to the others."""
        name = self.node(event, key, depth)
        at = name.where or self.where(event)
        dotted = f"{key}.{name.value}" if key else str(name.value)
        value = self.node(next(self.events), dotted, depth)
        empty = value.where is None or value.where.start == value.where.end
        if not isinstance(name.value, str):
            self.report(event, key, f"a key must be text, got {quoted(plain(name))}")
        elif name.value == "<<" and event.style is None:
            self.report(event, key, "merge keys (<<) are not allowed; write the settings out")
        elif name.value in pairs:
            first = pairs[name.value].key
            line = f", first given on line {first.line}" if first else ""
            self.report(event, dotted, f"duplicate key{line}")
        elif flow and empty and event.style is None and ":" in name.value:
            pair = name.value.replace(":", ": ", 1)
            self.report(event, key, f"a ':' needs a space after it: {quoted(pair)[1:-1]}")
        else:
            pairs[name.value] = replace(value, where=at if empty else value.where, key=at)

    def scalar(self, event: Any, key: str) -> Any:
        """What a piece of text means."""
        text: str = event.value
        if bad := REFUSED.search(text):
            self.report(event, key, f"the character U+{ord(bad[0]):04X} is not allowed in a config")
        if event.style is not None:  # it is quoted
            return text
        if text in _WORDS:
            return _WORDS[text]
        if _INT.fullmatch(text) or _BASED_INT.fullmatch(text):
            if len(text) <= MAX_DIGITS:
                return int(text, 0 if _BASED_INT.fullmatch(text) else 10)
            self.report(event, key, f"a number of {len(text)} digits is too long")
            return 0
        if _FLOAT.fullmatch(text):
            return float(text)
        return float(text.replace(".", "")) if _NOT_FINITE.fullmatch(text) else text


def _sentence(error: yaml.MarkedYAMLError) -> tuple[yaml.Mark | None, str]:
    """Where PyYAML could not read on, and why, in words that need no knowledge of its grammar."""
    problem, context = error.problem or "cannot be read", error.context or ""
    if r"'\t'" in problem:
        return error.problem_mark, "a tab cannot stand here; indent with spaces"
    if "end of stream" in problem or "<stream end>" in problem:
        what = "quote" if "quoted" in context else "bracket"
        return error.context_mark or error.problem_mark, f"this {what} is never closed"
    if "expected ':'" in problem:
        return error.context_mark, "this is not `key: value`"
    if "mapping values are not allowed" in problem:
        return error.problem_mark, "a ':' cannot stand here; quote the text or mend the indentation"
    if "<block end>" in problem or "<document start>" in problem:
        return error.problem_mark, "this does not fit the lines above; is it indented as they are?"
    if expected := re.match(r"expected (',' or '.')", problem):
        return error.problem_mark, f"expected {expected[1]} here"
    if found := re.match(r"expected the node content, but found (.+)", problem):
        return error.problem_mark, f"expected a value here, not {found[1]}"
    if start := re.match(r"found character (.+) that cannot start any token", problem):
        return error.problem_mark, f"text that starts with {start[1]} must be quoted"
    return error.problem_mark, problem


def _order(problem: Problem) -> tuple[int, int]:
    where = problem.where
    return (where.source.argument, where.start) if where else (0, 0)


def _cells(text: str) -> int:
    """How many columns of a terminal a text takes."""
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )
