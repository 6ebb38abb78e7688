"""From a file and a command line to one validated config, or to everything that is wrong in them.

Overrides are put into the document before its one validation, so that a value is checked in the
same way, and shown where it was written, wherever it comes from.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mnist_cli.config.check import UNKNOWN, check
from mnist_cli.config.command_line import CommandLine, Flag
from mnist_cli.config.document import ConfigError, Node, Problem, Source, parse, plain, quoted
from mnist_cli.config.presets import MAX_BYTES, find, read
from mnist_cli.config.schema import SECTIONS, Config
from mnist_cli.config.trials import checked_sweep, checked_whens

# Settings that make another run of the same experiment and not another experiment.
REPEATS = ("train.seed", "train.device", "train.compile", "data.seed")


@dataclass(frozen=True, slots=True)
class Loaded:
    """A config and where it comes from."""

    config: Config
    origin: str
    """The path as it was given, or the preset's name."""
    is_preset: bool
    changed: tuple[str, ...]
    """Dotted keys that the command line sets, in its order."""
    reference_dropped_by: tuple[str, ...]
    """Settings by which this is no longer the experiment that the published figures are of."""


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
    source = read(found.path, found.path.name if found.is_preset else found.origin)
    command_line, result, dropped = _read(source, overrides, flags, axes)
    if result.name is None:
        result = result.model_copy(update={"name": found.name})
    return Loaded(result, found.origin, found.is_preset, tuple(command_line.set), dropped)


def load_text(
    text: str, name: str, overrides: Sequence[str] = (), flags: Sequence[Flag] = ()
) -> Config:
    """Reads a config from text, such as the one saved with a run.

    Args:
        text: YAML.
        name: what error messages call it.
        overrides: as for `load`.
        flags: as for `load`.

    Raises:
        ConfigError: something in it or on the command line is wrong.
    """
    return _read(Source(name, text), overrides, flags)[1]


def load_saved(
    saved: Mapping[str, Any], name: str, overrides: Sequence[str] = (), flags: Sequence[Flag] = ()
) -> Config:
    """Reads a config from plain values, such as those in a checkpoint, which nobody vouches for.

    Args:
        saved: what `Config.resolved` gave.
        name: what error messages call it.
        overrides: as for `load`.
        flags: as for `load`.

    Raises:
        ConfigError: something in it or on the command line is wrong.
    """
    try:
        text = json.dumps(saved, ensure_ascii=False, indent=1)  # which is YAML
        if len(text) > MAX_BYTES:
            raise ValueError("longer than any config")
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError([Problem(None, "", f"{name}: this is not a config")]) from error
    return load_text(text, name, overrides, flags)


def _read(
    source: Source,
    overrides: Iterable[str] = (),
    flags: Iterable[Flag] = (),
    axes: Iterable[Flag] = (),
) -> tuple[CommandLine, Config, tuple[str, ...]]:
    """What the command line says, the config that results, and what dropped its reference."""
    problems: list[Problem] = []
    root = _document(source, problems)
    command_line = CommandLine(problems)
    merged = command_line.applied(root or Node({}), overrides, flags, axes)
    if root is None:
        raise ConfigError(problems)
    before, _ = check(root)
    # The published figures belong to the file as it is, so they are checked against that.
    result = _validated(merged, root if before else merged, problems)
    if result.reference is None or any(key.startswith("reference") for key in command_line.set):
        return command_line, result, ()
    dropped = _changes(before, result, command_line)
    if dropped:
        result = result.model_copy(update={"reference": None})
    return command_line, result, dropped


def _document(source: Source, problems: list[Problem]) -> Node | None:
    """The mapping that a config is, or None if it cannot be read."""
    root = parse(source, problems)
    if root is None or isinstance(root.value, dict):
        return root
    if root.value is not None:
        problems.append(Problem(root.where, "", f"must be sections, got {quoted(plain(root))}"))
        return None
    return replace(root, value={})


def _validated(root: Node, published: Node, problems: list[Problem]) -> Config:
    """The config that a document is, the values of its sweep and reference made the schema's own.

    Args:
        root: the whole document.
        published: the document that the published figures are of.
        problems: what is wrong already.

    Raises:
        ConfigError: there are problems, old or new.
    """
    result, found = check(root)
    sweep = checked_sweep(root, found)
    whens = checked_whens(root.value.get("reference"), published, found)
    # What has been reported as unreadable need not be reported as invalid too.
    known = {(p.where.source, p.where.start) for p in problems if p.where}
    problems += [p for p in found if not p.where or (p.where.source, p.where.start) not in known]
    if result is None or problems:
        raise ConfigError(problems, _hint(root, problems))
    update: dict[str, Any] = {"sweep": sweep}
    if result.reference:
        pairs = zip(result.reference.runs, whens, strict=True)
        runs = tuple(run.model_copy(update={"when": when}) for run, when in pairs)
        update["reference"] = result.reference.model_copy(update={"runs": runs})
    return result.model_copy(update=update)


def _changes(before: Config | None, after: Config, command_line: CommandLine) -> tuple[str, ...]:
    """The settings by which `after` is another experiment than the one with published figures."""
    runs = after.reference.runs if after.reference else ()
    free = {*REPEATS, *(key for run in runs for key in run.when)}
    new = dict(after.settings())
    if before is None:  # only the command line makes it valid: there are no old values to compare
        keys = [key for key in command_line.set if key.split(".")[0] in SECTIONS]
    else:
        old = dict(before.settings())
        keys = [key for key in {**new, **old} if old.get(key) != new.get(key)]
        free |= before.sweep.keys()
    swept = ((key, after.sweep[key]) for key in command_line.swept)
    keys += [key for key, values in swept if any(value != new.get(key) for value in values)]
    return tuple(key for key in dict.fromkeys(keys) if key not in free)


def _hint(root: Node, problems: Iterable[Problem]) -> str | None:
    """How to choose another variant on the command line, if the file's settings do not fit it."""
    for problem in problems:
        section, _, setting = problem.key.partition(".")
        node = root.value.get(section)
        if problem.kind == UNKNOWN and setting and node and isinstance(node.value, dict):
            name = node.value.get("name")
            in_file = problem.where is None or not problem.where.source.argument
            if name and name.where and name.where.source.argument and in_file:
                return f"give the whole section instead: '{section}={{name: {name.value}, ...}}'"
    return None
