"""What the command line says about a config, put into the document before it is validated."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from mnist_cli.config.check import CONFLICT
from mnist_cli.config.document import (
    Node,
    NotASectionError,
    Position,
    Problem,
    Source,
    parse,
    placed,
    plain,
    quoted,
)
from mnist_cli.config.trials import displaced
from mnist_cli.config.values import parse_values


@dataclass(frozen=True, slots=True)
class Flag:
    """An option of the command line that sets a setting, or gives the values of an axis."""

    flag: str
    """As it is typed: `--lr`."""
    key: str | None
    """Dotted key of the setting; None, if the text is `KEY=VALUE`."""
    text: str
    """The value: of a setting in YAML, of an axis as a list (see `values.parse_values`)."""


class _Word(NamedTuple):
    """A key on the command line, and where its value starts."""

    source: Source
    path: tuple[tuple[str, Position], ...]
    start: int

    @property
    def key(self) -> str:
        return ".".join(part for part, _ in self.path)


class CommandLine:
    """Puts the command line into a document, and notes what is wrong with it.

    Args:
        problems: gets what is wrong.
    """

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = problems
        self.set: list[str] = []
        self.swept: list[str] = []
        self.count = 0

    def applied(
        self,
        root: Node,
        overrides: Iterable[str],
        flags: Iterable[Flag],
        axes: Iterable[Flag],
    ) -> Node:
        """The document with everything that the command line says."""
        options = [*flags, *(Flag("", None, override) for override in overrides)]
        pairs = [(word, self.value(word)) for option in options if (word := self.word(option))]
        self.set = list(dict.fromkeys(word.key for word, _ in pairs))
        root = displaced(
            root, [word.key for word, node in pairs if node and node.value is not None]
        )
        # Whole sections first: then `optimizer.lr=0.1 optimizer=sgd` means both, in any order.
        for word, node in sorted(pairs, key=lambda pair: len(pair[0].path)):
            root = self.merged(root, word, node) if node else root
        words = {word.key: word for word, _ in pairs}
        for axis in axes:
            if not (word := self.word(axis)):
                continue
            if twice := words.get(word.key):
                given = quoted(twice.source.text)
                self.conflict(word, f"is set by {given} and cannot be swept too")
            count = axis.flag == "--seeds"  # `--seeds 3` is three of them
            key = f"sweep.{word.key}"
            node = parse_values(word.source, word.start, key, self.problems, count=count)
            where = word.path[0][1]
            self.swept.append(word.key)
            swept = word._replace(path=(("sweep", where), (word.key, where)))
            if node:
                root = self.merged(root, swept, node, again="is swept")
        return root

    def word(self, option: Flag) -> _Word | None:
        """The key of an option, or None if it has none."""
        self.count += 1
        lead = f"{option.flag} " if option.flag else ""
        source = Source("command line", lead + option.text, self.count)
        if option.key is not None:
            where = Position(source, 0, len(option.flag))
            return _Word(source, tuple((p, where) for p in option.key.split(".")), len(lead))
        key, equals, _ = option.text.partition("=")
        whole = Position(source, len(lead), len(source.text))
        parts = key.split(".", 1) if key.startswith("sweep.") else key.split(".")
        path, at = [], len(lead)
        for part in parts:
            path.append((part, Position(source, at, at + len(part))))
            at += len(part) + 1
        if not equals:
            self.problems.append(Problem(whole, "", "must be KEY=VALUE, like optimizer.lr=1e-2"))
        elif not all(parts):
            self.problems.append(Problem(whole, "", "the key before '=' is missing or incomplete"))
        else:
            return _Word(source, tuple(path), at)
        return None

    def value(self, word: _Word) -> Node | None:
        """The value after a key, or None if it cannot be read."""
        text = word.source.text[word.start :]
        if text and word.key == "name":  # always text, and all of it: a run may well be called 7
            return Node(text, Position(word.source, word.start, len(word.source.text)))
        if text.strip():
            return parse(word.source, self.problems, word.start, key=word.key)
        message = f"has no value; {word.key}=null stands for none"
        if word.key == "name":
            message = "has no value"
        where = Position(word.source, 0, len(word.source.text))
        self.problems.append(Problem(where, word.key, message))
        return None

    def merged(self, root: Node, word: _Word, node: Node, again: str = "") -> Node:
        """The document with one value in its place, unless the command line has set it already."""
        old: Node | None = root
        for part, _ in word.path:
            inner = old.value.get(part) if old and isinstance(old.value, dict) else None
            bare = old and part == "name" and isinstance(old.value, str)
            old = old if bare else inner
        if old and old.where and old.where.source.argument:
            given = quoted(old.where.source.text)
            if again:
                self.conflict(word, f"{again} by {given} too; give its values once")
            elif plain(old) != plain(node):
                self.conflict(word, f"is {quoted(plain(node))} here, but {given} says otherwise")
            return root
        try:
            return placed(root, word.path, node)
        except NotASectionError as error:
            self.problems.append(Problem(word.path[0][1], word.key, str(error)))
            return root

    def conflict(self, word: _Word, message: str) -> None:
        """Notes that the command line says two things about one key."""
        where = Position(word.source, word.path[0][1].start, len(word.source.text))
        self.problems.append(Problem(where, word.key, message, CONFLICT))
