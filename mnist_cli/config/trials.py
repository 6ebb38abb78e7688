"""Settings tried in an experiment: overrides, the values of a sweep, one trial of it."""

from collections.abc import Iterable, Mapping

from mnist_cli.config.check import check
from mnist_cli.config.document import ConfigError, Path, Problem, quoted
from mnist_cli.config.schema import Config, FileModel, Section, variants

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


SPACE = "search.space."  # what the key of a setting that is searched begins with


def merged(values: Mapping[str, object], settings: Mapping[str, object]) -> dict[str, object]:
    """The values of a config with some settings (or whole sections) replaced, not validated.

    Args:
        values: the sections.
        settings: values by dotted key; whole sections count first, whatever their order.
    """
    result = {**values, **{key: value for key, value in settings.items() if "." not in key}}
    spaces = {k.removeprefix(SPACE): v for k, v in settings.items() if k.startswith(SPACE)}
    search = result.get("search") or {}
    if spaces and isinstance(search, dict):  # of a space, each setting is replaced by itself
        result["search"] = {**search, "space": {**search.get("space", {}), **spaces}}
        settings = {key: value for key, value in settings.items() if not key.startswith(SPACE)}
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
    values: Mapping[str, object],
    key: str,
    items: Iterable[object],
    problems: list[Problem],
    axes: Mapping[str, object],
    place: Path = ("sweep",),
) -> tuple[object, ...]:
    """The values of an axis as the schema makes them.

    Args:
        values: those of the whole config.
        key: the swept setting, or the section that is swept as a whole.
        items: what it is to be.
        problems: gets what is wrong.
        axes: all axes: a setting may be of a variant that another one chooses.
        place: the way to the axes.
    """
    section, *name = setting = tuple(key.split(".", 1))
    own = {section: _with_variant(values.get(section, {}), key, axes.get(f"{section}.name"))}
    # What is wrong with a section anyway need not be said once more for each value tried in it.
    known = check(own)[1]
    found: dict[Section, object] = {}
    for i, item in enumerate(items):
        checked, faults = check(merged(own, {key: item}))
        at = (*place, key, i)
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


def _with_variant(values: object, key: str, names: object) -> object:
    """The values of a section; of the first variant that has a setting, if its name is swept."""
    old = {"name": values} if isinstance(values, str) else values
    for name in names if isinstance(names, list | tuple) else ():
        if isinstance(old, dict) and applies(key, str(name)) and not key.endswith(".name"):
            known = variants(key.partition(".")[0])[str(name)].model_fields
            return {k: value for k, value in old.items() if k in known} | {"name": name}
    return values


def applies(key: str, name: str | None) -> bool:
    """Whether the variant of that name of a section has a setting; a model from a file has all."""
    section, _, setting = key.partition(".")
    kind = variants(section).get(name or "")
    return kind is FileModel or (kind is not None and setting in kind.model_fields)


def _value(part: Section, name: str | None = None) -> object:
    """A setting in plain values; a section as its explicit settings, or as its bare name."""
    if name:
        return part.model_dump(mode="json")[name]
    explicit = part.model_dump(mode="json", exclude_unset=True)
    return explicit["name"] if explicit.keys() == {"name"} else explicit
