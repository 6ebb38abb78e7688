"""The configs that come with the package, and how `--config X` finds one."""

import os
import re
import sys
from contextlib import nullcontext
from pathlib import Path

from mnist_cli.config.schema import meant
from mnist_cli.errors import UsageError

DEFAULT = "mlp"
SCHEMA_LINE = "# yaml-language-server: $schema=schema.json\n"
"""By the first line of a shipped config editors find the schema that is beside it."""
MAX_BYTES = 300_000


def presets() -> dict[str, Path]:
    """The configs that come with the package (inside it, or in a checkout beside it), by name."""
    package = Path(__file__).parents[1]
    folders = [package / "configs", package.parent / "configs"]
    found = sorted(path for folder in folders for path in folder.glob("*.yaml"))
    return {path.stem: path for path in found}


def description(preset: Path) -> str:
    """What a preset is, by the first line of its file."""
    text = preset.read_text("utf-8").removeprefix(SCHEMA_LINE)
    return text.partition("\n")[0].removeprefix("# ")


def find_preset(name: str, lead: str = "") -> Path:
    """The preset of a name, with or without its `.yaml`.

    Args:
        name: the name.
        lead: how the error begins, if there is none.

    Raises:
        UsageError: there is none.
    """
    known = presets()
    if preset := known.get(name.removesuffix(".yaml")):
        return preset
    near = meant(name, known)
    raise UsageError(f"{lead}there is no preset {name!r}{near}", f"there are {', '.join(known)}")


def find(config: str | None) -> tuple[Path, bool]:
    """The file that `--config` means, and whether it is a preset: a regular file comes first.

    Raises:
        UsageError: there is neither a file nor a preset of that name.
    """
    if config is None:
        return find_preset(DEFAULT), True
    if config == "-" and sys.stdin:
        return Path("stdin"), False
    if os.path.isfile(config):  # noqa: PTH113 - a Path's raises
        return Path(config), False
    lead = f"no config {config!r}: {Path(config).absolute()} is no file, and "
    return find_preset(config, lead), True


def name_of(path: Path) -> str:
    """A file's stem, made into what a config may be called."""
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", path.stem).lstrip("-_")
    return name[:64] or "config"


def read(path: Path, name: str) -> str:
    """The text of a config: bytes that are no UTF-8 are surrogates.

    Args:
        path: a regular file.
        name: what error messages call it; `-` is standard input, whatever the path.

    Raises:
        UsageError: it cannot be read, or is larger than any config.
    """
    try:
        with nullcontext(sys.stdin.buffer) if name == "-" else path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{name} cannot be read: {error.strerror}") from error
    if len(data) > MAX_BYTES:
        raise UsageError(f"{name} is larger than {MAX_BYTES:,} bytes, which no config is")
    return data.decode("utf-8-sig", errors="surrogateescape")
