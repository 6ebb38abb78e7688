"""What the command line says about a config, as values by dotted key."""

from collections.abc import Iterable
from typing import NamedTuple

from mnist_cli.config.document import Document, Path, Problem, parse, quoted
from mnist_cli.config.schema import SECTIONS, setting_keys
from mnist_cli.config.trials import SPACE
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


def read_arguments(
    overrides: Iterable[str],
    flags: Iterable[Flag],
    axes: Iterable[Flag],
    spaces: Iterable[Flag] = (),
) -> Given:
    """Reads the command line; what it says of one setting twice must agree.

    Args:
        overrides: `KEY=VALUE`, with a key that `full_key` knows and a value in YAML.
        flags: options that set one setting each.
        axes: options that give the values of one axis each.
        spaces: options that give what one setting may be in a search each.
    """
    given = Given({}, {}, [])
    options = [(flag, "") for flag in (*flags, *(Flag("", None, text) for text in overrides))]
    options += [(axis, "sweep.") for axis in axes] + [(space, SPACE) for space in spaces]
    for option, lead in options:
        argument = f"{option.flag} {option.text}".strip()
        argument = argument if len(argument) <= 100 else f"{argument[:100]}..."
        key, (value, _, problems) = _read(option, lead, argument)
        if not problems and key in given.values and value != given.values[key]:
            message = f"is {quoted(value)} here, but {given.arguments[key]} says otherwise"
            problems = [Problem((), message)]
        if not problems:
            given.values[key], given.arguments[key] = value, argument
        for problem in problems:
            path = (*key_path(key), *problem.path)
            given.problems.append(problem._replace(path=path, position=argument))
    for key, by in given.arguments.items():
        for axis, argument in given.arguments.items():
            if axis != key and f"sweep.{key.removeprefix('sweep.')}.".startswith(f"{axis}."):
                message = f"is swept, but {by} sets it, or a part of it"
                given.problems.append(Problem(key_path(axis), message, position=argument))
    return given


def key_path(key: str) -> Path:
    """The way to a setting of that dotted key: the section and the name, or the section alone."""
    if key.startswith(SPACE):
        return ("search", "space", key.removeprefix(SPACE))
    return tuple(key.split(".", 1)) if key else ()


def full_key(key: str) -> str:
    """A dotted key, whose section may be left out where only one has a setting of that name.

    But `name` is what the runs are called.
    """
    found = [known for known in setting_keys() if known.endswith(f".{key}")]
    return found[0] if len(found) == 1 and key != "name" else key


def gives_values(text: str) -> bool:
    """Whether `KEY=VALUE` says several values, and not one: `lr=1e-3,1e-2`, but not `[1, 2]`."""
    key, _, value = text.partition("=")
    items = parse(f"[{value}]", "").values
    if full_key(key).partition(".")[0] not in SECTIONS or not isinstance(items, list):
        return False
    several = len(items) == 1 and isinstance(items[0], str)
    return len(items) > 1 or (several and parse_values(value, "").values != items)


def _read(option: Flag, lead: str, argument: str) -> tuple[str, Document]:
    """The key that an option is about, and what it says."""
    key, equals, text = option.text.partition("=")
    if option.key is not None:
        key, text = option.key, option.text
    elif not equals or not all(key.removeprefix("sweep.").split(".")):
        problem = Problem((), "must be KEY=VALUE, like optimizer.lr=1e-2")
        return "", Document(None, {}, [problem])
    key = full_key(key)
    if lead == SPACE:
        return lead + key, Document(text, {}, [])
    if lead:  # `--seeds 3` is three of them
        return lead + key, parse_values(text, argument, count=option.flag == "--seeds")
    if key == "name" and text:  # always text, and all of it: a run may well be called 7
        return key, Document(text, {}, [])
    if not text.strip():
        return key, Document(None, {}, [Problem((), "has no value (null stands for none)")])
    return key, parse(text, argument)
