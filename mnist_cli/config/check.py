"""Values against the schema: a config, or everything that is wrong with it, in plain words."""

import re
from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from mnist_cli.config.document import Path, Problem, quoted
from mnist_cli.config.schema import (
    DEVICE_PATTERN,
    NAME_PATTERN,
    SECTIONS,
    TEXT_PATTERN,
    Config,
    Section,
    suggestion,
    variants,
)

# Kinds of problems. Where a rule of the schema is broken, it is pydantic's name for the rule.
UNKNOWN = "extra_forbidden"
MISSING = "missing"
NO_VARIANT = "union_tag_invalid"
OF_ANOTHER = "of_another_variant"
CONFLICT = "conflict"
AT_KEY = (UNKNOWN, OF_ANOTHER, MISSING, "value_error")
"""Those that are shown at the key of a setting, not at its value."""

# Where pydantic's own words speak of Python.
_WORDS = {
    "bool_type": "must be true or false",
    "tuple_type": "must be a list",
    "dict_type": "must be a mapping of keys to values",
    "model_type": "must be a section of settings",
    "model_attributes_type": "must be a section of settings",
    NAME_PATTERN: "must start with a letter or digit and go on with those, '-' and '_', up to 64",
    TEXT_PATTERN: "must be one line of text",
    DEVICE_PATTERN: "must be auto, cpu, cuda or cuda:N",
}


def check(values: Mapping[str, object]) -> tuple[Config | None, list[Problem]]:
    """Validates a whole config.

    Returns:
        The config, or None if there are problems; and the problems.
    """
    try:
        return Config.model_validate(values), []
    except ValidationError as error:
        problems = _problems(error)
    for section in [str(problem.path[0]) for problem in problems if problem.kind == NO_VARIANT]:
        # What else is wrong with it, as the variant with the most similar name would have it.
        part = values[section]
        if isinstance(part, dict):
            kinds = variants(section)
            near = get_close_matches(str(part["name"])[:100], kinds, n=1) or [*kinds]
            found = check_section(section, {**part, "name": near[0]})[1]
            problems += [p for p in found if p.kind not in (MISSING, OF_ANOTHER, "value_error")]
    return None, problems


def check_section(section: str, values: object) -> tuple[Section | None, list[Problem]]:
    """Validates one section of a config."""
    try:
        return _adapter(section).validate_python(values), []
    except ValidationError as error:
        return None, _problems(error, section)


@cache
def _adapter(section: str) -> TypeAdapter[Section]:
    return TypeAdapter(SECTIONS[section])


def _problems(error: ValidationError, *prefix: str) -> list[Problem]:
    """What pydantic found, with the path and the words of a user."""
    problems = []
    for detail in error.errors(include_url=False):
        loc: Path = (*prefix, *detail["loc"])
        section, variant = str(loc[0]), None
        if len(loc) > 1 and section in SECTIONS and loc[1] in variants(section):
            variant, loc = loc[1], (section, *loc[2:])
        elif section == "reference":  # how many figures there are is no part of the way to them
            loc = tuple(part for part in loc if part not in ("last", "each"))
        kind, message = detail["type"], _message(detail)
        if kind == NO_VARIANT:
            loc = (*loc, "name")
        elif kind == UNKNOWN:
            kinds = variants(section) if section in SECTIONS else {}
            others = [other for other, fields in kinds.items() if loc[-1] in fields.model_fields]
            message = f"unknown setting{suggestion('.'.join(map(str, loc)))}"
            if others:
                kind, message = (
                    OF_ANOTHER,
                    f"not a setting of {variant}, but of {', '.join(others)}",
                )
        problems.append(Problem(loc, message, kind))
    return problems


def _message(detail: ErrorDetails) -> str:
    """The sentence for what pydantic found."""
    kind, value, context = detail["type"], detail["input"], detail.get("ctx", {})
    if kind == MISSING:
        return "is missing and has no default"
    if kind == "value_error":
        return str(context["error"])
    words = _WORDS.get(kind) or _WORDS.get(context.get("pattern", ""))
    words = words or re.sub(r"^\w+ should ", "must ", detail["msg"])
    if kind == NO_VARIANT:
        words, value = f"must be one of {context['expected_tags']}", value["name"]
    advice = ""
    if kind in (NO_VARIANT, "literal_error"):
        near = get_close_matches(str(value)[:100], re.findall(r"'([^']*)'", words), n=1)
        advice = f"; did you mean {near[0]!r}?" if near else ""
    return f"{words}, got {quoted(value)}{advice}"
