"""The configs that come with the package, and how `--config X` finds one."""

import os
import re
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

from mnist_cli.config.document import printable
from mnist_cli.config.schema import RESERVED_NAME
from mnist_cli.errors import UsageError

DEFAULT = "mlp"
SCHEMA_LINE = "# yaml-language-server: $schema=schema.json\n"
"""By the first line of a shipped config editors find the schema that is beside it."""
MAX_BYTES = 300_000


class Preset(NamedTuple):
    """A config that comes with the package."""

    name: str
    path: Path

    @property
    def description(self) -> str:
        """The first line of its file, a comment."""
        text = self.path.read_text("utf-8").removeprefix(SCHEMA_LINE)
        return text.partition("\n")[0].removeprefix("# ")


class Found(NamedTuple):
    """The file that `--config` means."""

    path: Path
    origin: str
    """The path as it was given, or the preset's name."""
    is_preset: bool

    @property
    def name(self) -> str:
        """The file's stem, made into what a config may be called."""
        name = re.sub(r"[^A-Za-z0-9_-]+", "-", self.path.stem).lstrip("-_")[:64]
        return "config" if not name or RESERVED_NAME.fullmatch(name) else name


def presets() -> list[Preset]:
    """The presets by name: inside an installed package, beside it in a checkout."""
    package = Path(__file__).parents[1]
    inside = package / "configs"
    folder = inside if inside.is_dir() else package.parent / "configs"
    return [Preset(path.stem, path) for path in sorted(folder.glob("*.yaml"))]


def find_preset(name: str) -> Preset:
    """The preset of a name, with or without its `.yaml`.

    Raises:
        UsageError: there is none.
    """
    known = {preset.name: preset for preset in presets()}
    if preset := known.get(name.removesuffix(".yaml")):
        return preset
    near = get_close_matches(name[:100], known, n=1)
    raise UsageError(
        f"there is no preset {name!r}; there are {', '.join(known)}",
        hint=f"did you mean {near[0]}?" if near else None,
    )


def find(config: str | None) -> Found:
    """The file that `--config` means: an existing one, else the preset of that name.

    Raises:
        UsageError: there is neither, or it is no regular file.
    """
    if config is not None and os.path.isfile(config):  # noqa: PTH113 - a Path's raises
        return Found(Path(config), config, is_preset=False)
    try:
        preset = find_preset(DEFAULT if config is None else config)
    except UsageError as error:
        if config == "" or os.path.lexists(config or ""):
            raise UsageError(f"{config!r} is no regular file, so no config") from None
        where = printable(str(Path(config or "").absolute()))
        told = f"there is no config {config!r}: no file {where}, and {error.message}"
        raise UsageError(told, error.hint) from None
    return Found(preset.path, preset.name, is_preset=True)


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
