"""Settings tried in an experiment: overrides, the values of a sweep, one trial of it."""

from collections.abc import Iterable, Mapping

from mnist_cli.config.check import check
from mnist_cli.config.document import ConfigError, Problem, quoted
from mnist_cli.config.schema import Config, Section

# Settings that say the same thing in different words: a new value of one takes the place of what
# the config says by the others. (Said both ways at once, they are checked against each other.)
ALTERNATIVES = {
    "hidden": ("depth", "width"),
    "depth": ("hidden",),
    "width": ("hidden",),
    "epochs": ("steps",),
    "steps": ("epochs",),
    "path": ("sha256",),
}


def merged(values: Mapping[str, object], settings: Mapping[str, object]) -> dict[str, object]:
    """The values of a config with some settings (or whole sections) replaced, not validated.

    Args:
        values: the sections.
        settings: values by dotted key; whole sections count first, whatever their order.
    """
    result = {**values, **{key: value for key, value in settings.items() if "." not in key}}
    model = result.get("model")
    if settings.get("model.name") == "file" and not _is_file(model):
        result["model"] = {}  # whose settings are of another model
    for key, value in settings.items():
        section, dot, name = key.partition(".")
        old = result.get(section, {})
        old = {"name": old} if isinstance(old, str) else old
        if dot and isinstance(old, dict):  # if it is none, the schema says so
            others = ALTERNATIVES.get(name, ()) if value is not None else ()
            others = others if name == "path" or not _is_file(old) else ()  # its own words
            gone = {other for other in others if f"{section}.{other}" not in settings}
            result[section] = {k: v for k, v in old.items() if k not in gone} | {name: value}
    return result


def _is_file(model: object) -> bool:
    return isinstance(model, dict) and model.get("name") == "file"


def with_settings(config: Config, settings: Mapping[str, object]) -> Config:
    """The config with some settings (or whole sections) replaced, and their sections validated.

    Only what was set explicitly takes part: a default that follows from another setting follows
    from the new one.

    Args:
        config: any config.
        settings: values by dotted key; whole sections first, whatever their order.

    Raises:
        ConfigError: the settings do not fit.
    """
    touched = {key.partition(".")[0] for key in settings}
    explicit = config.model_dump(mode="json", include=touched, exclude_unset=True)
    checked, problems = check(merged(explicit, settings))
    if checked is None:
        raise ConfigError(problems)
    return config.model_copy(update={section: getattr(checked, section) for section in touched})


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
    section, *name = setting = tuple(key.split(".", 1))
    own = {section: values.get(section, {})}
    # What is wrong with a section anyway need not be said once more for each value tried in it.
    known = check(own)[1]
    found: dict[Section, object] = {}
    for i, item in enumerate(items):
        checked, faults = check(merged(own, {key: item}))
        at = ("sweep", key, i)
        for fault in faults:
            if fault.path[: len(setting)] == setting:
                problems.append(fault._replace(path=(*at, *fault.path[len(setting) :])))
            elif fault not in known:
                message = f"does not go with the rest: {fault.key}: {fault.message}"
                problems.append(Problem(at, message))
        part: Section | None = getattr(checked, section, None)
        if part in found:
            problems.append(Problem(at, f"{quoted(item)} is in the list already"))
        elif part:
            found[part] = _value(part, *name)
    return tuple(found.values())


def _value(part: Section, name: str | None = None) -> object:
    """A setting in plain values; a section as its explicit settings, or as its bare name."""
    if name:
        return part.model_dump(mode="json")[name]
    explicit = part.model_dump(mode="json", exclude_unset=True)
    return explicit["name"] if explicit.keys() == {"name"} else explicit
