"""A document against the schema: a config, or everything that is wrong with it, in plain words."""

import re
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from mnist_cli.config.document import Node, Problem, plain, quoted
from mnist_cli.config.schema import (
    DEVICE_PATTERN,
    NAME_PATTERN,
    SECTIONS,
    Config,
    Reference,
    ReferenceRun,
    Section,
    variants,
)

# Kinds of problems. Where a rule of the schema is broken, it is pydantic's name for the rule.
UNKNOWN = "extra_forbidden"
MISSING = "missing"
CONFLICT = "conflict"

# What pydantic puts into a path where it chose between types: names of the schema, not of the user.
_CHOICES = ("last", "each", "[key]")

_PATTERNS = {
    NAME_PATTERN: "must start with a letter or digit and go on with those, '-' and '_', up to 64",
    DEVICE_PATTERN: "must be auto, cpu, cuda or cuda:N",
}
_TYPES = {
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "string_unicode": "must be valid Unicode text",
    "tuple_type": "must be a list",
    "dict_type": "must be a mapping of keys to values",
    "model_type": "must be a section of settings",
    "model_attributes_type": "must be a section of settings",
}
_LIMITS = {
    "greater_than": ("must be greater than", "gt"),
    "greater_than_equal": ("must be at least", "ge"),
    "less_than": ("must be less than", "lt"),
    "less_than_equal": ("must be at most", "le"),
}


def check(root: Node) -> tuple[Config | None, list[Problem]]:
    """Validates a whole config.

    Args:
        root: its mapping.

    Returns:
        The config, or None if there are problems; and the problems.
    """
    try:
        return Config.model_validate(plain(root)), []
    except ValidationError as error:
        details = error.errors(include_url=False)
    return None, list(dict.fromkeys(_problem(detail, root) for detail in details))


def nearest(word: str, names: Iterable[str]) -> str | None:
    """The name most similar to a word, if any is similar."""
    return next(iter(get_close_matches(word[:100], list(names), n=1)), None)


def _problem(detail: ErrorDetails, root: Node) -> Problem:
    """What pydantic found, at its place in the document and in the words of a user."""
    kind, loc = detail["type"], detail["loc"]
    path, node = _walk(loc, root)
    at_key = kind in (UNKNOWN, MISSING, "value_error") or loc[-1] == "[key]"
    if kind == MISSING and isinstance(path[-1], int):  # the second of a pair, say: blame the pair
        path.pop()
        at_key, message = False, f"has too few values, got {quoted(plain(node))}"
    elif kind == "union_tag_invalid" and isinstance(node.value, dict):
        path, node = [*path, "name"], node.value["name"]
        message = _message(detail)
    else:
        message = _message(detail)
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return Problem((at_key and node.key) or node.where, key.removeprefix("."), message, kind)


def _walk(loc: tuple[int | str, ...], root: Node) -> tuple[list[int | str], Node]:
    """The path that a user would recognise in pydantic's, and the last node there is along it."""
    section = str(loc[0])
    if section in SECTIONS and len(set(variants(section).values())) > 1:
        loc = loc[:1] + loc[2:]  # the second is the variant
    path: list[int | str] = []
    node = root
    for part in loc:
        value = node.value
        if isinstance(part, int):
            known = isinstance(value, list) and part < len(value)
        else:
            known = isinstance(value, dict) and part in value
        if known:
            node = value[part]
        elif part in _CHOICES:
            continue
        path.append(part)
    return path, node


def _message(detail: ErrorDetails) -> str:
    """The sentence for what pydantic found."""
    kind, value, context = detail["type"], detail["input"], detail.get("ctx", {})
    got = f", got {quoted(value)}"
    if kind == UNKNOWN:
        return _unknown(detail["loc"])
    if kind == MISSING:
        return "is missing and has no default"
    if kind == "value_error":
        return str(context["error"])
    if kind in _LIMITS:
        words, name = _LIMITS[kind]
        limit = context[name]
        return f"{words} {int(limit) if limit == int(limit) else limit}{got}"
    if kind in ("literal_error", "union_tag_invalid"):
        choices = re.findall(r"'([^']*)'", context.get("expected") or context["expected_tags"])
        word = value["name"] if kind == "union_tag_invalid" else value
        return f"must be {_either(choices)}, got {quoted(word)}" + _did_you_mean(word, choices)
    if kind == "string_pattern_mismatch":
        return _PATTERNS[context["pattern"]] + got
    if kind in ("too_short", "too_long"):
        limit = context["min_length" if kind == "too_short" else "max_length"]
        bound = "least" if kind == "too_short" else "most"
        return f"must have at {bound} {limit} value{'s'[: limit != 1]}{got}"
    if kind == "int_type" and isinstance(value, float) and value.is_integer():
        return f"{_TYPES[kind]}{got}; write {quoted(int(value))}"
    if kind == "string_type" and isinstance(value, int | float):
        return f"{_TYPES[kind]}{got}; put it in quotes"
    return _TYPES[kind] + got if kind in _TYPES else detail["msg"]


def _unknown(loc: tuple[int | str, ...]) -> str:
    """What to do about a key that the schema does not have: the nearest one, or all there are."""
    *parents, name = map(str, loc)
    if not parents:
        homes = {field: [field] for field in Config.model_fields}
        for section in SECTIONS:
            for field in set().union(*(kind.model_fields for kind in variants(section).values())):
                homes.setdefault(field, []).append(f"{section}.{field}")
        if close := nearest(name, homes):
            return f"unknown setting; did you mean {' or '.join(map(repr, homes[close]))}?"
        return f"unknown setting; there are {', '.join(Config.model_fields)}"
    owner: type[Section]
    if parents[0] == "reference":
        owner = ReferenceRun if "runs" in parents else Reference
    else:
        kinds = variants(parents[0])
        owner = kinds[parents[1]] if len(parents) > 1 else next(iter(kinds.values()))
        others = [other for other, kind in kinds.items() if name in kind.model_fields]
        if others:
            have = "have" if len(others) > 1 else "has"
            return f"not a setting of {parents[1]} ({', '.join(others)} {have} it)"
    fields = owner.model_fields
    return "unknown setting" + (_did_you_mean(name, fields) or f"; there are {', '.join(fields)}")


def _did_you_mean(word: Any, names: Iterable[str]) -> str:
    close = nearest(word, names) if isinstance(word, str) else None
    return f"; did you mean {close!r}?" if close else ""


def _either(choices: list[str]) -> str:
    return " or ".join(filter(None, [", ".join(choices[:-1]), choices[-1]]))
