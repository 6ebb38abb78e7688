"""Values against the schema: a config, or everything that is wrong with it, in plain words."""

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from mnist_cli.config import schema
from mnist_cli.config.document import KEY, Path, Problem, quoted
from mnist_cli.config.own_model import resolve
from mnist_cli.config.schema import Config, FileModel

OF_ANOTHER = "of_another_variant"
AT_KEY = ("extra_forbidden", "missing", "value_error", OF_ANOTHER)
"""Kinds of problems that are shown at the key of a setting, not at its value."""

# Where pydantic's own words speak of Python.
_WORDS = {
    "bool_type": "must be true or false",
    "tuple_type": "must be a list",
    "model_type": "must be a section of settings",
    "model_attributes_type": "must be a section of settings",
    schema.NAME_PATTERN: "must begin with a letter or digit and be up to 64 of those, - and _",
    schema.TEXT_PATTERN: "must be one line of text",
    schema.DEVICE_PATTERN: "must be auto, cpu, cuda or cuda:N",
}


def check(values: Mapping[str, object]) -> tuple[Config | None, list[Problem]]:
    """Validates a config, or some sections of one (the others have their defaults).

    Returns:
        The config, or None if there are problems; and the problems.
    """
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        return None, [p for detail in error.errors() for p in _problems(detail, values)]
    if not isinstance(config.model, FileModel):
        return config, []
    model, problems = resolve(config.model)
    return None if problems else config.model_copy(update={"model": model}), problems


def _problems(detail: ErrorDetails, values: Mapping[str, object]) -> Iterator[Problem]:
    """What pydantic found, in the words of a user and with the path as a user writes it."""
    kind, value, path = detail["type"], detail["input"], _path(detail, values)
    section = str(path[0])
    kinds = schema.variants(section) if section in schema.SECTIONS else {}
    message = re.sub(r"^\w+ should ", "must ", detail["msg"])
    message = _WORDS.get(kind) or _WORDS.get(detail.get("ctx", {}).get("pattern", "")) or message
    message = f"{message}, got {quoted(value)}"
    if kind == "missing":
        message = "is missing and has no default"
    elif kind == "value_error":
        message = str(detail["ctx"]["error"])
    elif kind == "literal_error":
        message += schema.meant(value, re.findall(r"'([^']*)'", detail["msg"]))
    elif kind == "union_tag_invalid":
        name, path = value["name"], (section, "name")
        message = f"must be one of {', '.join(map(repr, kinds))}, got {quoted(name)}"
        message += schema.meant(name, kinds)
        # What else is wrong, as the variant with the most similar name would have it.
        near = [*schema.nearest(name, kinds), *kinds]
        others = check({section: {**value, "name": near[0]}})[1]
        yield from (p for p in others if p.kind not in ("missing", "value_error", OF_ANOTHER))
    elif kind == "extra_forbidden":
        message = f"unknown setting{schema.meant('.'.join(map(str, path)), schema.setting_keys())}"
        owners = [name for name, fields in kinds.items() if path[-1] in fields.model_fields]
        if owners:
            variant = detail["loc"][1]
            kind, message = OF_ANOTHER, f"not a setting of {variant}, but of {', '.join(owners)}"
    yield Problem(path, message, kind)


def _path(detail: ErrorDetails, values: Any) -> Path:
    """The way to a value as it is written: pydantic's also names the variants that it tried."""
    *_, last = detail["loc"]
    path: Path = ()
    for part in detail["loc"]:
        with suppress(LookupError, TypeError):
            values = values[part]
            path = (*path, part)
    return (*path, last) if detail["type"] == "missing" or last == KEY else path
