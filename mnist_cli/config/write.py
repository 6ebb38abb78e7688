"""A config as YAML that reads back as the same config, and the schema for editors."""

import json
import re
from collections.abc import Iterator
from typing import Any

from mnist_cli.config.schema import SECTIONS, Config, Section, variants

# Text that no reader of YAML takes for anything else; whatever else there is gets quotes.
_PLAIN = re.compile(r"(?!(?i:null|true|false|yes|no|on|off|y|n)$)[A-Za-z_][A-Za-z0-9_./-]*")


def dump(config: Config) -> str:
    """The config as YAML, defaults filled in: a block for each section, a line for each setting.

    Where a swept setting decides what the defaults of its section are (another optimizer, or
    `steps` for `epochs`), the section shows only what was set explicitly.
    """
    values = config.resolved()
    for section, _, name in (key.partition(".") for key in config.sweep):
        part = getattr(config, section)
        field = type(part).model_fields.get(name)
        if field and (name == "name" or field.default is None):
            values[section] = part.model_dump(mode="json", exclude_none=True, exclude_unset=True)
    blocks = (_block(key, value) for key, value in values.items() if value != {})
    return "".join(f"{line}\n" for block in blocks for line in block)


def json_schema() -> dict[str, Any]:
    """A JSON Schema of what a config may be, with sections as bare names or without a name."""
    schema = Config.model_json_schema()
    for section in SECTIONS:
        kinds = variants(section)
        field = schema["properties"][section]
        if "name" not in field["default"]:
            continue
        default = schema["$defs"][kinds[field["default"]["name"]].__name__]
        default["required"] = [key for key in default.get("required", ()) if key != "name"]
        bare = [name for name, kind in kinds.items() if not _needs_more(kind)]
        choices = field.pop("oneOf", None) or [{"$ref": field.pop("$ref")}]
        field.pop("discriminator", None)  # a word of OpenAPI, not of JSON Schema
        field["anyOf"] = [{"enum": bare}, *choices]
    return schema


def _needs_more(kind: type[Section]) -> bool:
    """Whether a section has settings without a default, besides its name."""
    return any(field.is_required() for key, field in kind.model_fields.items() if key != "name")


def _block(key: str, value: Any, indent: str = "") -> Iterator[str]:
    """The lines of a key and its value; sections and lists of mappings spread over several."""
    if not indent and isinstance(value, dict):
        yield f"{key}:"
        for name, item in value.items():
            yield from _block(name, item, "  ")
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        yield f"{indent}{_flow(key)}:"
        yield from (f"{indent}  - {_flow(item)}" for item in value)
    else:
        yield f"{indent}{_flow(key)}: {_flow(value)}"


def _flow(value: Any) -> str:
    """A value on one line."""
    match value:
        case dict():
            return f"{{{', '.join(f'{_flow(key)}: {_flow(item)}' for key, item in value.items())}}}"
        case list():
            return f"[{', '.join(map(_flow, value))}]"
        case str() if _PLAIN.fullmatch(value):
            return value
        case _:  # for the rest, JSON is YAML
            return json.dumps(value, ensure_ascii=False)
