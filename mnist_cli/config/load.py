"""From a file and a command line to one validated config, or to everything that is wrong in them.

Overrides are put into the values of the file before their one validation, so that a value is
checked in the same way, and its position shown, wherever it comes from.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from mnist_cli.config.check import AT_KEY, check, check_section
from mnist_cli.config.command_line import Flag, Given, read_arguments
from mnist_cli.config.document import KEY, ConfigError, Document, Problem, parse, quoted
from mnist_cli.config.presets import MAX_BYTES, find, read
from mnist_cli.config.schema import SECTIONS, Config, setting_keys
from mnist_cli.config.trials import check_axis, merged

MAX_RUNS = 10_000

# Settings that make another run of the same experiment and not another experiment.
REPEATS = ("train.seed", "train.device", "train.compile", "data.seed")


class Loaded(NamedTuple):
    """A config and where it comes from."""

    config: Config
    origin: str
    """The path as it was given, or the preset's name."""
    is_preset: bool
    changed: tuple[str, ...]
    """Dotted keys that the command line sets, in its order."""
    reference_dropped_by: tuple[str, ...]
    """Settings by which this is no longer the experiment that the published figures are of."""
    axes_dropped: tuple[str, ...]
    """Axes inside a section that is swept as a whole."""


def load(
    config: str | None = None,
    overrides: Sequence[str] = (),
    flags: Sequence[Flag] = (),
    axes: Sequence[Flag] = (),
) -> Loaded:
    """Reads a config, puts into it what the command line says, and validates the whole.

    Args:
        config: a path or the name of a preset (`mlp`, if not given).
        overrides: `KEY=VALUE`, with a dotted key and a value in YAML.
        flags: options that set one setting each.
        axes: options that give an axis of the sweep each, in place of that of the config or new.

    Raises:
        ConfigError: something in the config or on the command line is wrong.
        UsageError: there is no such config, or it cannot be read.
    """
    found = find(config)
    name = found.path.name if found.is_preset else found.origin
    document = parse(read(found.path, name), name)
    loaded = _resolved(document, read_arguments(overrides, flags, axes))
    named = loaded.config.model_copy(update={"name": loaded.config.name or found.name})
    return loaded._replace(config=named, origin=found.origin, is_preset=found.is_preset)


def load_text(text: str, name: str) -> Config:
    """Reads a config from text, such as the one saved with a run.

    Args:
        text: YAML.
        name: what error messages call it.

    Raises:
        ConfigError: something in it is wrong.
    """
    return _resolved(parse(text, name), Given({}, {}, [])).config


def load_saved(
    saved: Mapping[str, object],
    name: str,
    overrides: Sequence[str] = (),
    flags: Sequence[Flag] = (),
) -> Config:
    """Reads a config from plain values, such as those in a checkpoint, which nothing vouches for.

    Args:
        saved: what `Config.resolved` gave.
        name: what error messages call it.
        overrides: as for `load`.
        flags: as for `load`.

    Raises:
        ConfigError: something in it or on the command line is wrong.
    """
    try:  # whether they are plain, and as many as a config has
        if len(json.dumps(saved)) > MAX_BYTES:
            raise ValueError("longer than any config")
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError([Problem((), "this is not a config", position=name)]) from error
    document = Document(dict(saved), {(): name}, [])
    return _resolved(document, read_arguments(overrides, flags, ())).config


def _resolved(document: Document, given: Given) -> Loaded:
    """The config that a document and a command line make.

    Raises:
        ConfigError: there are problems in either.
    """
    problems = [*document.problems, *given.problems]
    file = {} if document.values is None and not document.problems else document.values
    if not isinstance(file, dict):
        message = f"must be sections, got {quoted(file)}"
        problems = problems or [Problem((), message, position=document.positions.get(()))]
        raise ConfigError(problems)
    values = merged(file, given.values)
    result, found = check(values)
    sweep, dropped = _checked_sweep(values, found)
    if result is None or problems or found:
        raise ConfigError([*problems, *_placed(found, document, given)])
    result = result.model_copy(update={"sweep": sweep})
    if changes := _changes(file, result, given):
        result = result.model_copy(update={"reference": None})
    changed = tuple(key for key in given.values if not key.startswith("sweep."))
    return Loaded(result, "", False, changed, changes, dropped)


def _checked_sweep(
    values: Mapping[str, object], problems: list[Problem]
) -> tuple[dict[str, tuple[object, ...]], tuple[str, ...]]:
    """Makes the values of the axes the schema's own.

    Args:
        values: those of the whole config.
        problems: what the schema says of the config; gets what else is wrong with its sweep.

    Returns:
        The axes, and the keys of those that are not among them, as their whole section is swept.
    """
    sweep = values.get("sweep")
    axes: dict[str, Sequence[object]] = {
        key: axis
        for key, axis in (sweep.items() if isinstance(sweep, dict) else ())
        if key in setting_keys() and isinstance(axis, list | tuple)
    }
    dropped = tuple(key for key in axes if "." in key and key.partition(".")[0] in axes)
    axes = {key: axis for key, axis in axes.items() if key not in dropped}
    if (runs := math.prod(map(len, axes.values()))) > MAX_RUNS:
        message = f"makes {runs:,} runs, and at most {MAX_RUNS:,} can be"
        problems.append(Problem(("sweep",), message))
        return {}, ()
    found = {key: check_axis(values, key, items, problems) for key, items in axes.items()}
    return found, dropped


def _placed(problems: Sequence[Problem], document: Document, given: Given) -> list[Problem]:
    """The problems with their places: in the file, or by the argument that a setting is from."""
    positions = dict(document.positions)
    for key, argument in sorted(given.arguments.items(), key=lambda item: "." in item[0]):
        path = tuple(key.split(".", 1))
        positions = {p: mark for p, mark in positions.items() if p[: len(path)] != path}
        # What is said of the section as a whole is most likely due to the change in it.
        positions[path] = positions[path[:1]] = positions[path[0], KEY] = argument
    placed = []
    for problem in problems:
        place = problem.path
        while place and place not in positions:
            place = place[:-1]
        at_key = positions.get((*place, KEY)) if problem.kind in AT_KEY else None
        placed.append(problem._replace(position=at_key or positions.get(place)))
    return placed


def _changes(file: Mapping[str, object], result: Config, given: Given) -> tuple[str, ...]:
    """The settings by which a config is another experiment than the one with published figures."""
    if result.reference is None or any(key.startswith("reference") for key in given.values):
        return ()
    touched = {key.partition(".")[0] for key in given.values} & SECTIONS.keys()
    parts = {section: check_section(section, file.get(section, {}))[0] for section in touched}
    before = result.model_copy(update={key: part for key, part in parts.items() if part})
    old, new = dict(before.settings()), dict(result.settings())
    keys = [key for key in {**new, **old} if old.get(key) != new.get(key)]
    for key, values in result.sweep.items():
        if any(value != new.get(key) for value in values):
            keys.append(key)
    when = [key for run in result.reference.runs for key in run.when]
    swept = file.get("sweep")
    free = {*REPEATS, *when, *(swept if isinstance(swept, dict) else ())}
    return tuple(key for key in dict.fromkeys(keys) if key not in free)
