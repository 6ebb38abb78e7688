"""The configs that come with the package, and how `--config X` finds one."""

import os
import re
from pathlib import Path
from typing import NamedTuple

from mnist_cli.config.document import printable
from mnist_cli.config.schema import RESERVED_NAME, nearest
from mnist_cli.errors import UsageError

DEFAULT = "mlp"
SCHEMA_LINE = "# yaml-language-server: $schema=schema.json\n"
"""By the first line of a shipped config editors find the schema that is beside it."""
MAX_BYTES = 300_000


class ConfigFile(NamedTuple):
    """The file of a config."""

    path: Path
    origin: str
    """The path as it was given, or the preset's name."""
    is_preset: bool = True

    @property
    def name(self) -> str:
        """The file's stem, made into what a config may be called."""
        name = re.sub(r"[^A-Za-z0-9_-]+", "-", self.path.stem).lstrip("-_")[:64]
        return "config" if not name or RESERVED_NAME.fullmatch(name) else name

    @property
    def description(self) -> str:
        """What a preset is, by the first line of its file."""
        text = self.path.read_text("utf-8").removeprefix(SCHEMA_LINE)
        return text.partition("\n")[0].removeprefix("# ")


def presets() -> list[ConfigFile]:
    """The configs that come with the package (inside it, or in a checkout beside it), by name."""
    package = Path(__file__).parents[1]
    folders = [package / "configs", package.parent / "configs"]
    found = sorted(path for folder in folders for path in folder.glob("*.yaml"))
    return [ConfigFile(path, path.stem) for path in found]


def find_preset(name: str, lead: str = "") -> ConfigFile:
    """The preset of a name, with or without its `.yaml`.

    Args:
        name: the name.
        lead: how the error begins, if there is none.

    Raises:
        UsageError: there is none.
    """
    known = {preset.name: preset for preset in presets()}
    if preset := known.get(name.removesuffix(".yaml")):
        return preset
    near = nearest(name, known)
    raise UsageError(
        f"{lead}there is no preset {name!r}; there are {', '.join(known)}",
        hint=f"did you mean {near[0]}?" if near else None,
    )


def find(config: str | None) -> ConfigFile:
    """The file that `--config` means: a regular one, else the preset of that name.

    Raises:
        UsageError: there is neither.
    """
    if config is None:
        return find_preset(DEFAULT)
    if os.path.isfile(config):  # noqa: PTH113 - a Path's raises
        return ConfigFile(Path(config), config, is_preset=False)
    path = printable(str(Path(config).absolute()))
    return find_preset(config, f"no config {config!r}: {path} is no file, and ")


def read(path: Path, name: str) -> str:
    """The text of a config: bytes that are no UTF-8 are surrogates.

    Args:
        path: a regular file.
        name: what error messages call it.

    Raises:
        UsageError: it cannot be read, or is larger than any config.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{name} cannot be read: {error.strerror}") from error
    if len(data) > MAX_BYTES:
        raise UsageError(f"{name} is larger than {MAX_BYTES:,} bytes, which no config is")
    return data.decode("utf-8-sig", errors="surrogateescape")
