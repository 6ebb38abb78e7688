"""From a file and a command line to one validated config, or to everything that is wrong in them.

Overrides are put into the values of the file before their one validation, so that a value is
checked in the same way, and its position shown, wherever it comes from.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from mnist_cli.config.check import AT_KEY, check
from mnist_cli.config.command_line import Flag, Given, key_path, read_arguments
from mnist_cli.config.document import KEY, ConfigError, Document, Problem, parse, quoted
from mnist_cli.config.presets import MAX_BYTES, find, name_of, read
from mnist_cli.config.schema import (
    SECTIONS,
    Config,
    FileModel,
    SearchConfig,
    is_setting,
    meant,
    setting_keys,
)
from mnist_cli.config.space import Range, parse_space
from mnist_cli.config.trials import check_axis, merged
from mnist_cli.errors import UsageError

MAX_RUNS = 10_000

# Settings that make another run of the same experiment and not another experiment.
REPEATS = ("train.seed", "train.device", "train.compile", "data.seed")


class Loaded(NamedTuple):
    """A config and where it comes from."""

    config: Config
    origin: str
    """The path as it was given, or the preset's name."""
    changed: tuple[str, ...]
    """Dotted keys that the command line sets, in its order."""
    notes: tuple[str, ...]
    """What was decided where more than one thing could have been meant, a sentence each."""
    swept: tuple[str, ...] = ()
    """The axes that the command line gives."""


def load(
    config: str | Mapping[str, object] | None = None,
    overrides: Sequence[str] = (),
    flags: Sequence[Flag] = (),
    axes: Sequence[Flag] = (),
    spaces: Sequence[Flag] = (),
) -> Loaded:
    """Reads a config, puts into it what the command line says, and validates the whole.

    Args:
        config: a path, the name of a preset (`mlp`, if not given), or the values of its sections.
        overrides: `KEY=VALUE`, with a key that `full_key` knows and a value in YAML; without a
            `config`, the first that is no `KEY=VALUE` is the config.
        flags: options that set one setting each.
        axes: options that give an axis of the sweep each, in place of that of the config or new.
        spaces: options that say likewise what one setting may be in a search.

    Raises:
        ConfigError: something in the config or on the command line is wrong.
        UsageError: there is no such config, or it cannot be read.
    """
    if isinstance(config, Mapping):
        given = read_arguments(overrides, flags, axes, spaces)
        result, notes = _resolved(_plain_document(config, "config"), given)
        named = result.model_copy(update={"name": result.name or result.model.name})
        return Loaded(named, "the config", _changed(given), tuple(notes), _swept(given))
    words = [text for text in overrides if "=" not in text]
    if config is None and words:
        config, overrides = words[0], [text for text in overrides if text != words[0]]
    path, is_preset = find(config)
    origin = path.stem if is_preset else str(config)
    name = path.name if is_preset else origin
    given = read_arguments(overrides, flags, axes, spaces)
    document = parse(read(path, name), name)
    if is_preset and '"name": "file"' in json.dumps(document.values):
        raise UsageError(f"the shipped {origin} names code, which only a user may", f"copy {path}")
    result, notes = _resolved(document, given)
    if is_preset:
        notes.insert(0, f"config: the shipped {origin}")
    source = Path(result.model.path) if is_preset and isinstance(result.model, FileModel) else path
    named = result.model_copy(update={"name": result.name or name_of(source)})
    return Loaded(named, origin, _changed(given), tuple(notes), _swept(given))


def searched(loaded: Loaded) -> Config:
    """The config of a search: without a sweep, and without what the command line sets.

    Raises:
        UsageError: there is nothing to search.
    """
    section = loaded.config.search
    space = {k: v for k, v in section.space.items() if k not in loaded.changed} if section else {}
    if not section or not space:
        raise UsageError(
            "nothing to search: the config has no search.space",
            "say what a setting may be, such as lr=log:1e-4:1e-1 or optimizer.name=adam,sgd",
        )
    search = section.model_copy(update={"space": space})
    return loaded.config.alone().model_copy(update={"search": search, "reference": None})


def with_added(config: Config, add: Sequence[str]) -> Config:
    """A sweep's config with further values of settings that it sweeps.

    Raises:
        UsageError: they are not swept, or are swept over these values already.
    """
    axes = [Flag("--add", None, text) for text in add]
    found = load(config.alone().resolved(), axes=axes).config.sweep
    had = {key: [*config.sweep.get(key, ())] for key in found}
    for added in config.added:
        for key in had:
            had[key] += added.get(key, ())
    new = {key: tuple(v for v in found[key] if v not in had[key]) for key in found}
    for key in found:
        if key not in config.sweep:
            swept = ", ".join(config.sweep) or "nothing"
            raise UsageError(f"--add {key}: this sweep is not over it, but over {swept}")
        if not new[key]:
            raise UsageError(f"--add {key}: it is swept over all of these values already")
    return config.model_copy(update={"added": (*config.added, new)})


def load_text(text: str, name: str) -> Config:
    """Reads a config from text, such as the one saved with a run.

    Args:
        text: YAML.
        name: what error messages call it.

    Raises:
        ConfigError: something in it is wrong.
    """
    return _resolved(parse(text, name), Given({}, {}, []))[0]


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
    document = _plain_document(saved, name)
    return _resolved(document, read_arguments(overrides, flags, ()))[0]


def _plain_document(values: Mapping[str, object], name: str) -> Document:
    """Values that nothing vouches for as a document.

    Raises:
        ConfigError: they are not plain, or more than a config has.
    """
    try:
        if len(json.dumps(values)) > MAX_BYTES:
            raise ValueError("longer than any config")
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError([Problem((), "this is not a config", position=name)]) from error
    return Document(dict(values), {(): name}, [])


def _swept(given: Given) -> tuple[str, ...]:
    return tuple(key.removeprefix("sweep.") for key in given.values if key.startswith("sweep."))


def _changed(given: Given) -> tuple[str, ...]:
    return tuple(key for key in given.values if not key.startswith(("sweep.", "search.")))


def _resolved(document: Document, given: Given) -> tuple[Config, list[str]]:
    """The config that a document and a command line make, and notes on what was decided.

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
    sweep, notes = _checked_sweep(values, result, found)
    search = _checked_search(values, result, found)
    if result is None or problems or found:
        raise ConfigError([*problems, *_placed(found, document, given)])
    result = result.model_copy(update={"sweep": sweep, "search": search})
    if others := _other_experiment(file, result, given):
        result = result.model_copy(update={"reference": None})
        notes.append(f"published figures: not shown, as they are of another {', '.join(others)}")
    return result, notes


def _checked_sweep(
    values: Mapping[str, object], config: Config | None, problems: list[Problem]
) -> tuple[dict[str, tuple[object, ...]], list[str]]:
    """The axes, their values as the schema makes them; and notes on those that are left out.

    Args:
        values: those of the whole config.
        config: what they make, if it is one.
        problems: what the schema says of the config; gets what else is wrong with its sweep.
    """
    sweep = values.get("sweep")
    axes: dict[str, Sequence[object]] = {
        key: axis
        for key, axis in (sweep.items() if isinstance(sweep, dict) else ())
        if is_setting(key, config and config.model) and isinstance(axis, list | tuple)
    }
    inside = [key for key in axes if "." in key and key.partition(".")[0] in axes]
    notes = [f"{key} is not swept as the config says: its whole section is swept" for key in inside]
    axes = {key: axis for key, axis in axes.items() if key not in inside}
    for keys in config.zip if config else ():
        if len({len(axes.get(key, ())) for key in keys}) != 1 or not {*keys} <= axes.keys():
            named = ", ".join(keys)
            problems.append(Problem(("zip",), f"{named} must be swept, over as many values each"))
    if (runs := math.prod(map(len, axes.values()))) > MAX_RUNS:
        message = f"makes {runs:,} runs, and at most {MAX_RUNS:,} can be"
        problems.append(Problem(("sweep",), message))
        return {}, notes
    checked = {key: check_axis(values, key, axes[key], problems, axes) for key in axes}
    return checked, notes


def _checked_search(
    values: Mapping[str, object], config: Config | None, problems: list[Problem]
) -> SearchConfig | None:
    """The search, its ranges and choices in the types of their settings."""
    if config is None or config.search is None:
        return None
    search, place = config.search, ("search", "space")
    space = {key: parse_space(given) for key, given in search.space.items()}
    found: dict[str, str | tuple[object, ...]] = {}
    for key, own in space.items():
        if not is_setting(key, config.model) or "." not in key:
            problems.append(Problem((*place, key), f"is no setting{meant(key, setting_keys())}"))
            continue
        ends = own[:2] if isinstance(own, Range) else own
        typed = check_axis(values, key, ends, problems, space, place)
        if isinstance(own, Range) and len(typed) == 2:
            found[key] = str(Range(*typed, own.log))  # type: ignore[arg-type]  # numbers
        else:
            found[key] = typed
    if search.pruner != "none" and ("train.epochs" in space or config.train.epochs is None):
        message = "needs one number of train.epochs for all trials; give pruner: none"
        problems.append(Problem(("search", "pruner"), message))
    return search.model_copy(update={"space": found})


def _placed(problems: Sequence[Problem], document: Document, given: Given) -> list[Problem]:
    """The problems with their places: in the file, or by the argument that a setting is from."""
    positions = dict(document.positions)
    for key, argument in sorted(given.arguments.items(), key=lambda item: "." in item[0]):
        path = key_path(key)
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


def _other_experiment(file: Mapping[str, object], result: Config, given: Given) -> tuple[str, ...]:
    """The sections by which a config is not the experiment that its published figures are of."""
    if result.reference is None or any(key.startswith("reference") for key in given.values):
        return ()
    before, _ = check({section: file.get(section, {}) for section in SECTIONS})
    old = dict(before.settings()) if before else {}
    new = {key: (value,) for key, value in result.settings()} | result.sweep
    when = [key for run in result.reference.runs for key in run.when]
    swept = file.get("sweep")
    free = {*REPEATS, *when, *(swept if isinstance(swept, dict) else ())}
    others = [
        key
        for key in {**new, **old}
        if key not in free and any(value != old.get(key) for value in new.get(key, (None,)))
    ]
    return tuple(dict.fromkeys(key.partition(".")[0] for key in others))
