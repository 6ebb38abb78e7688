"""A config as YAML that reads back as the same config, and the schema for editors."""

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

    A section of which the name is swept shows only what was set explicitly: each of the variants
    has other defaults.
    """
    values = config.resolved()
    explicit = config.model_dump(mode="json", exclude_none=True, exclude_unset=True)
    for section in SECTIONS:
        if f"{section}.name" in config.sweep:
            values[section] = explicit.get(section, {})
    values = {key: value for key, value in values.items() if value != {}}
    return yaml.dump(
        values,
        Dumper=_Dumper,
        default_flow_style=None,
        sort_keys=False,
        allow_unicode=True,
        width=100,
    )


def json_schema() -> dict[str, object]:
    """A JSON Schema of what a config may be, with sections as bare names or without a name."""
    return Config.model_json_schema()
