"""A config as YAML that reads back as the same config, and the schema for editors."""

import functools
import re
from typing import Any

import yaml

from mnist_cli.config.document import Loader
from mnist_cli.config.schema import SECTIONS, Config


class _Dumper(yaml.SafeDumper):
    """Quotes what a reader of either YAML, 1.1 or 1.2, takes for something else than text."""

    yaml_implicit_resolvers = (
        yaml.SafeDumper.yaml_implicit_resolvers | Loader.yaml_implicit_resolvers
    )

    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002 - PyYAML's name
        return True


def dump(config: Config) -> str:
    """The config as YAML, defaults filled in.

    A section of which the name is swept or searched shows only what was set explicitly: each of the
    variants has other defaults.
    """
    values = config.resolved()
    explicit = config.model_dump(mode="json", exclude_none=True, exclude_unset=True)
    tried = {*config.sweep, *(config.search.space if config.search else ())}
    for section in SECTIONS:
        if f"{section}.name" in tried:
            values[section] = explicit.get(section, {})
    values = {key: value for key, value in values.items() if value not in ({}, [])}
    return yaml.dump(
        values,
        Dumper=_Dumper,
        default_flow_style=None,
        sort_keys=False,
        allow_unicode=True,
        width=100,
    )


def read_dumped(text: str) -> dict[str, Any]:
    """The sections that `dump` wrote, unchecked, and so a hundred times as fast as `load_text`.

    What is not the plain YAML of a mapping is none.
    """
    sections: dict[str, Any] = {}
    for section in re.split(r"\n(?=\S)", text):
        sections |= _read_section(section)
    return sections


@functools.lru_cache(1024)  # runs have most of their sections in common
def _read_section(text: str) -> dict[str, Any]:
    try:
        values = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def json_schema() -> dict[str, object]:
    """A JSON Schema of what a config may be, with sections as bare names or without a name."""
    return Config.model_json_schema()
