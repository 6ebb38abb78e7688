"""Configs: one YAML file and some overrides make one frozen, validated `Config`; torch-free."""

from mnist_cli.config.command_line import Flag, full_key, gives_values
from mnist_cli.config.document import ConfigError
from mnist_cli.config.load import Loaded, load, load_saved, load_text, searched, with_added
from mnist_cli.config.schema import (
    SECTIONS,
    AugmentConfig,
    Config,
    FileModel,
    MlpModel,
    Reference,
    SyntheticData,
)
from mnist_cli.config.trials import with_settings
from mnist_cli.config.write import dump, json_schema, read_dumped

__all__ = [
    "SECTIONS",
    "AugmentConfig",
    "Config",
    "ConfigError",
    "FileModel",
    "Flag",
    "Loaded",
    "MlpModel",
    "Reference",
    "SyntheticData",
    "dump",
    "full_key",
    "gives_values",
    "json_schema",
    "load",
    "load_saved",
    "load_text",
    "read_dumped",
    "searched",
    "with_added",
    "with_settings",
]
