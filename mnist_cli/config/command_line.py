"""What the command line says about a config, as values by dotted key."""

from collections.abc import Iterable
from typing import NamedTuple

from mnist_cli.config.check import CONFLICT
from mnist_cli.config.document import Document, Path, Problem, parse, quoted
from mnist_cli.config.values import parse_values


class Flag(NamedTuple):
    """An option of the command line that sets a setting, or gives the values of an axis."""

    flag: str
    """As it is typed: `--lr`."""
    key: str | None
    """Dotted key of the setting; None, if the text is `KEY=VALUE`."""
    text: str
    """The value: of a setting in YAML, of an axis as a list (see `values.parse_values`)."""


class Given(NamedTuple):
    """What the command line says: an axis has the key `sweep.KEY`."""

    values: dict[str, object]
    arguments: dict[str, str]
    """The argument that each key comes from, as error messages call it."""
    problems: list[Problem]


def read_arguments(overrides: Iterable[str], flags: Iterable[Flag], axes: Iterable[Flag]) -> Given:
    """Reads the command line; what it says twice must agree.

    Args:
        overrides: `KEY=VALUE`, with a dotted key and a value in YAML.
        flags: options that set one setting each.
        axes: options that give the values of one axis each.
    """
    given = Given({}, {}, [])
    for option in (*flags, *(Flag("", None, override) for override in overrides)):
        _read(option, given)
    for option in axes:
        _read(option, given, lead="sweep.")
    for key, argument in given.arguments.items():
        section, _, name = key.partition(".")
        outer = given.values.get(section)
        outer = {"name": outer} if isinstance(outer, str) else outer
        if name and isinstance(outer, dict) and name in outer:
            _agree(given, key, given.values[key], argument, section, outer[name])
        for other in given.arguments if section == "sweep" and name else ():
            if other == name or other.startswith(f"{name}."):
                message = f"is swept, but {given.arguments[other]} sets it, or a part of it"
                given.problems.append(Problem(_path(key), message, CONFLICT, argument))
    return given


def _read(option: Flag, given: Given, lead: str = "") -> None:
    """Notes what an option says about a setting, or with `lead` about an axis."""
    argument = f"{option.flag} {option.text}".strip()
    argument = argument if len(argument) <= 100 else f"{argument[:100]}..."
    key, equals, text = option.text.partition("=")
    if option.key is not None:
        key, text = option.key, option.text
    elif not equals or not all(key.removeprefix("sweep.").split(".")):
        message = "must be KEY=VALUE, like optimizer.lr=1e-2"
        given.problems.append(Problem((), message, position=argument))
        return
    key = lead + key
    if lead:  # `--seeds 3` is three of them
        document = parse_values(text, argument, count=option.flag == "--seeds")
    elif key == "name" and text:  # always text, and all of it: a run may well be called 7
        document = Document(text, {}, [])
    elif text.strip():
        document = parse(text, argument)
    else:
        document = Document(None, {}, [Problem((), "has no value (null stands for none)")])
    given.problems.extend(
        problem._replace(path=(*_path(key), *problem.path), position=argument)
        for problem in document.problems
    )
    if key in given.values:
        _agree(given, key, document.values, argument, key, given.values[key])
    elif document.values or not document.problems:
        given.values[key], given.arguments[key] = document.values, argument


def _agree(
    given: Given, key: str, value: object, argument: str, other: str, other_value: object
) -> None:
    if value != other_value:
        message = f"is {quoted(value)} here, but {given.arguments[other]} says otherwise"
        given.problems.append(Problem(_path(key), message, CONFLICT, argument))


def _path(key: str) -> Path:
    return tuple(key.split(".", 1))
