"""Settings tried in an experiment: the values of a sweep, published runs, the runs of a sweep."""

from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from mnist_cli.config.check import CONFLICT, MISSING, UNKNOWN, check
from mnist_cli.config.document import (
    ConfigError,
    Node,
    NotASectionError,
    Position,
    Problem,
    placed,
    plain,
    quoted,
    tree,
    without,
)
from mnist_cli.config.schema import SECTIONS, Config

_NO_SETTING = f"is no setting of {', '.join(SECTIONS[:-1])} or {SECTIONS[-1]}"


# Settings that say the same thing in different words: a new value of one takes the place of what
# the config says by the others. (Said both ways at once, they are checked against each other.)
ALTERNATIVES = {
    "model.hidden": ("depth", "width"),
    "model.depth": ("hidden",),
    "model.width": ("hidden",),
    "train.epochs": ("steps",),
    "train.steps": ("epochs",),
}


def displaced(root: Node, keys: Iterable[str]) -> Node:
    """The document without what new values of some settings take the place of."""
    for key in keys:
        if others := ALTERNATIVES.get(key):
            root = without(root, key.partition(".")[0], others)
    return root


def with_settings(config: Config, settings: Mapping[str, Any]) -> Config:
    """The config with some settings (or whole sections) replaced, validated anew.

    Only what was set explicitly takes part: a default that follows from another setting follows
    from the new one.

    Args:
        config: any config.
        settings: values by dotted key; whole sections first, whatever their order.

    Raises:
        ConfigError: the settings do not fit, or do not exist.
    """
    explicit = config.model_dump(mode="json", include=set(SECTIONS), exclude_unset=True)
    root, problems = displaced(tree(explicit), settings), list[Problem]()
    for key, value in sorted(settings.items(), key=lambda setting: setting[0].count(".")):
        try:
            root = placed(root, _path(key), tree(value))
        except NotASectionError:
            problems.append(Problem(None, key, _NO_SETTING, UNKNOWN))
    result, found = check(root)
    if result is None or problems:
        raise ConfigError([*problems, *found])
    kept = {name: getattr(config, name) for name in ("name", "sweep", "reference")}
    return result.model_copy(update=kept)


def checked_sweep(root: Node, problems: list[Problem]) -> dict[str, tuple[Any, ...]]:
    """The axes of a document's sweep; every value is tried alone in its experiment."""
    axes = root.value.get("sweep")
    if axes is None or not isinstance(axes.value, dict):
        return {}
    experiment = _experiment(root)
    _, faults = check(experiment)
    # A section that is wrong anyway need not be wrong once more for each value tried in it.
    broken = {fault.key.partition(".")[0] for fault in faults}
    return {
        key: tuple(_axis(experiment, broken, key, axis, problems))
        for key, axis in axes.value.items()
        if isinstance(axis.value, list)
    }


def _axis(
    experiment: Node, broken: set[str], key: str, axis: Node, problems: list[Problem]
) -> Iterator[Any]:
    """The values of one axis as the schema makes them."""
    dotted = f"sweep.{key}"
    try:
        path = _path(key, axis.key)
        rest = displaced(experiment, [key])
        trials = [(item, placed(rest, path, replace(item, key=None))) for item in axis.value]
    except NotASectionError:
        problems.append(Problem(axis.key, dotted, _NO_SETTING, UNKNOWN))
        return
    seen: set[Hashable] = set()
    for item, trial in trials:
        config, faults = check(trial)
        for fault in faults:
            inside = fault.where and item.where and fault.where in item.where
            if fault.kind == UNKNOWN and fault.where == axis.key:
                problems.append(replace(fault, key=f"sweep.{fault.key}"))
                return
            if inside or fault.where == axis.key:
                where = fault.where if inside else item.where
                problems.append(replace(fault, where=where, key=f"sweep.{fault.key}"))
            elif fault.key.partition(".")[0] not in broken:
                message = f"does not go with the rest: {fault.key}: {fault.message}"
                problems.append(replace(fault, where=item.where, key=dotted, message=message))
        if config:
            value = _value(config, key)
            if (frozen := _frozen(value)) in seen:
                message = f"{quoted(value)} is in the list already"
                problems.append(Problem(item.where, dotted, message, CONFLICT))
            seen.add(frozen)
            yield value


def checked_whens(
    reference: Node | None, root: Node, problems: list[Problem]
) -> list[dict[str, Any]]:
    """The settings by which each published run of a document's experiment is recognised."""
    runs = reference.value.get("runs") if reference and isinstance(reference.value, dict) else None
    experiment = _experiment(root)
    config, _ = check(experiment)
    whens: list[dict[str, Any]] = []
    for i, run in enumerate(runs.value if runs and isinstance(runs.value, list) else ()):
        when = run.value.get("when") if isinstance(run.value, dict) else None
        if when is None or config is None or not isinstance(when.value, dict):
            whens.append({})
            continue
        faults: list[Problem] = []
        whens.append(_when(experiment, config, when.value, faults))
        problems += [replace(p, key=f"reference.runs[{i}].when.{p.key}") for p in faults]
    return whens


def _when(
    experiment: Node, config: Config, when: Mapping[str, Node], problems: list[Problem]
) -> dict[str, Any]:
    """Settings as the schema makes them, put into an experiment all at once."""
    # Names first: the settings of another model are checked in a section of that model.
    for key, node in sorted(when.items(), key=lambda setting: not setting[0].endswith(".name")):
        section, _, name = key.partition(".")
        try:
            path = _path(key, node.key)
            if not name:
                raise NotASectionError(key)
            named = getattr(getattr(config, section, None), "name", None)
            if name == "name" and named != node.value:
                experiment = placed(experiment, path[:1], Node({}, node.where, node.key))
            experiment = placed(experiment, path, node)
        except NotASectionError:
            problems.append(Problem(node.key, key, _NO_SETTING, UNKNOWN))
            return {}
    places = [place for node in when.values() for place in (node.where, node.key) if place]
    result, faults = check(experiment)
    problems += [
        fault
        for fault in faults
        if fault.kind != MISSING  # a pattern need not be complete
        and any(fault.where in place for place in places if fault.where)
    ]
    return {key: _value(result, key) if result else plain(node) for key, node in when.items()}


def _experiment(root: Node) -> Node:
    """The part of a document that holds settings."""
    return replace(root, value={key: root.value[key] for key in SECTIONS if key in root.value})


def _path(key: str, where: Position | None = None) -> list[tuple[str, Position | None]]:
    """The way to a setting or to a whole section of settings.

    Raises:
        NotASectionError: it leads elsewhere. (Whether there is such a setting, the schema knows.)
    """
    section, *rest = key.split(".")
    if len(rest) > 1:
        raise NotASectionError(".".join([section, rest[0]]))
    if section in Config.model_fields and section not in SECTIONS:
        raise NotASectionError(section)
    return [(part, where) for part in (section, *rest)]


def _value(config: Config, key: str) -> Any:
    """A setting in plain values; a section as its explicit settings, or as its bare name."""
    section, _, name = key.partition(".")
    part = getattr(config, section)
    if name:
        return part.model_dump(mode="json")[name]
    explicit: dict[str, Any] = part.model_dump(mode="json", exclude_unset=True)
    return explicit["name"] if explicit.keys() == {"name"} else explicit


def _frozen(value: Any) -> Hashable:
    """Something equal for equal values that can be in a set."""
    if isinstance(value, dict):
        return frozenset((key, _frozen(item)) for key, item in value.items())
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value
