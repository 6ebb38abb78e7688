"""Settings tried in an experiment: overrides, the values of a sweep, one trial of it."""

import json
from collections.abc import Iterable, Mapping

from mnist_cli.config.check import CONFLICT, UNKNOWN, check_section
from mnist_cli.config.document import ConfigError, Path, Problem, quoted
from mnist_cli.config.schema import Config, Section, setting_keys, suggestion

# Settings that say the same thing in different words: a new value of one takes the place of what
# the config says by the others. (Said both ways at once, they are checked against each other.)
ALTERNATIVES = {
    "hidden": ("depth", "width"),
    "depth": ("hidden",),
    "width": ("hidden",),
    "epochs": ("steps",),
    "steps": ("epochs",),
}


def merged(values: Mapping[str, object], settings: Mapping[str, object]) -> dict[str, object]:
    """The values of a config with some settings (or whole sections) replaced, not validated.

    Args:
        values: the sections.
        settings: values by dotted key; whole sections count first, whatever their order.
    """
    result = {**values, **{key: value for key, value in settings.items() if "." not in key}}
    inside: dict[str, dict[str, object]] = {}
    for key, value in settings.items():
        section, dot, name = key.partition(".")
        if dot:
            inside.setdefault(section, {})[name] = value
    for section, changes in inside.items():
        old = result.get(section, {})
        old = {"name": old} if isinstance(old, str) else old
        if isinstance(old, dict):  # if not, the schema says so
            new = [name for name, value in changes.items() if value is not None]
            gone = {other for name in new for other in ALTERNATIVES.get(name, ())}
            result[section] = {k: v for k, v in old.items() if k not in gone} | changes
    return result


def with_settings(config: Config, settings: Mapping[str, object]) -> Config:
    """The config with some settings (or whole sections) replaced, and their sections validated.

    Only what was set explicitly takes part: a default that follows from another setting follows
    from the new one.

    Args:
        config: any config.
        settings: values by dotted key; whole sections first, whatever their order.

    Raises:
        ConfigError: the settings do not fit, or do not exist.
    """
    problems = [
        Problem((key,), f"is no setting{suggestion(key)}", UNKNOWN)
        for key in settings
        if key not in setting_keys()
    ]
    if problems:
        raise ConfigError(problems)
    touched = {key.partition(".")[0] for key in settings}
    explicit = config.model_dump(mode="json", include=touched, exclude_unset=True)
    values, update = merged(explicit, settings), {}
    for section in touched:
        update[section], found = check_section(section, values[section])
        problems += found
    if problems:
        raise ConfigError(problems)
    return config.model_copy(update=update)


def check_axis(
    values: Mapping[str, object], key: str, items: Iterable[object], problems: list[Problem]
) -> tuple[object, ...]:
    """The values of an axis as the schema makes them.

    Args:
        values: those of the whole config.
        key: the swept setting, or the section that is swept as a whole.
        items: what it is to be.
        problems: gets what is wrong.
    """
    section, _, name = key.partition(".")
    axis: Path = ("sweep", key)
    # A section that is wrong anyway need not be wrong once more for each value tried in it.
    broken = bool(check_section(section, values.get(section, {}))[1])
    found: dict[str, object] = {}
    for i, item in enumerate(items):
        part, faults = check_section(section, merged(values, {key: item})[section])
        for fault in faults:
            inner = fault.path[1:]
            if not name or inner[:1] == (name,):
                path = (*axis, i, *inner[bool(name) :])
                problems.append(Problem(path, fault.message, fault.kind))
            elif not broken:
                message = f"does not go with the rest: {fault.key}: {fault.message}"
                problems.append(Problem((*axis, i), message, CONFLICT))
        if part:
            full = json.dumps(part.model_dump(mode="json"), sort_keys=True)
            if full in found:
                message = f"{quoted(item)} is in the list already"
                problems.append(Problem((*axis, i), message, CONFLICT))
            found[full] = _value(part, name)
    return tuple(found.values())


def _value(part: Section, name: str) -> object:
    """A setting in plain values; a section as its explicit settings, or as its bare name."""
    if name:
        return part.model_dump(mode="json")[name]
    explicit = part.model_dump(mode="json", exclude_unset=True)
    return explicit["name"] if explicit.keys() == {"name"} else explicit
