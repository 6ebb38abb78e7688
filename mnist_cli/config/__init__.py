"""Configs: one YAML file and some overrides make one frozen, validated `Config`; torch-free."""

from mnist_cli.config.command_line import Flag
from mnist_cli.config.document import ConfigError
from mnist_cli.config.load import Loaded, load, load_saved, load_text
from mnist_cli.config.presets import SCHEMA_LINE, find_preset, presets
from mnist_cli.config.schema import SECTIONS, Config, MlpModel, Reference, SyntheticData
from mnist_cli.config.trials import with_settings
from mnist_cli.config.write import dump, json_schema

__all__ = [
    "SCHEMA_LINE",
    "SECTIONS",
    "Config",
    "ConfigError",
    "Flag",
    "Loaded",
    "MlpModel",
    "Reference",
    "SyntheticData",
    "dump",
    "find_preset",
    "json_schema",
    "load",
    "load_saved",
    "load_text",
    "presets",
    "with_settings",
]
