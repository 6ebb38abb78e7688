"""The configs that come with the package, and how `--config X` finds one."""

import re
import stat
from pathlib import Path
from typing import NamedTuple

from mnist_cli.config.check import nearest
from mnist_cli.config.document import ConfigError, Position, Problem, Source, printable
from mnist_cli.config.schema import RESERVED_NAME
from mnist_cli.errors import UsageError

DEFAULT = "mlp"
MAX_BYTES = 300_000


class Preset(NamedTuple):
    """A config that comes with the package."""

    name: str
    path: Path
    description: str


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
    """The presets by name, each with the first comment of its file that is about it."""
    found = []
    for name, path in _paths().items():
        lines = path.read_text("utf-8").splitlines()
        comments = (line[1:].strip() for line in lines if line.startswith("#"))
        about = next((text for text in comments if not text.startswith("yaml-")), "")
        found.append(Preset(name, path, about))
    return found


def find_preset(name: str) -> Preset:
    """The preset of a name.

    Raises:
        UsageError: there is none.
    """
    listed = presets()
    for preset in listed:
        if preset.name == name.removesuffix(".yaml"):
            return preset
    names = [preset.name for preset in listed]
    near = nearest(name, names)
    raise UsageError(
        f"there is no preset {name!r}; there are {', '.join(names)}",
        hint=f"did you mean {near}?" if near else None,
    )


def find(config: str | None) -> Found:
    """The file that `--config` means: an existing one, else the preset of that name.

    Raises:
        UsageError: there is neither, or it is no regular file.
    """
    path = Path(DEFAULT if config is None else config)
    kind = None if config is None else _kind(path)
    if kind == "a file":
        return Found(path, str(config), is_preset=False)
    known = _paths()
    name = str(path).removesuffix(".yaml")
    if name in known:
        return Found(known[name], name, is_preset=True)
    if kind:
        raise UsageError(f"{config!r} is {kind}, not a config")
    near = nearest(str(path), [*known, *_beside(path)])
    raise UsageError(
        f"there is no config {config!r}: no file {printable(str(path.absolute()))}, "
        f"and the presets are {', '.join(known)}",
        hint=f"did you mean {near}?" if near else None,
    )


def read(path: Path, name: str) -> Source:
    """The text of a config.

    Args:
        path: a regular file.
        name: what error messages call it.

    Raises:
        UsageError: it cannot be read, or is larger than any config.
        ConfigError: it is not UTF-8 text.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{name} cannot be read: {error.strerror}") from error
    if len(data) > MAX_BYTES:
        raise UsageError(f"{name} is larger than {MAX_BYTES:,} bytes, which no config is")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        at = len(error.object[: error.start].decode())
        source = Source(name, error.object.decode(errors="replace"))
        message = f"the byte 0x{error.object[error.start]:02x} is not UTF-8 text"
        raise ConfigError([Problem(Position(source, at, at + 1), "", message)]) from error
    return Source(name, text.replace("\r\n", "\n").replace("\r", "\n"))


def _folder() -> Path:
    """Where the presets are: inside an installed package, beside it in a checkout."""
    package = Path(__file__).parents[1]
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def _paths() -> dict[str, Path]:
    """The files of the presets by name."""
    return {path.stem: path for path in sorted(_folder().glob("*.yaml"))}


def _kind(path: Path) -> str | None:
    """What stands at a path, without opening it: a pipe would block. None if there is nothing."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return None
    if stat.S_ISREG(mode):
        return "a file"
    return "a folder" if stat.S_ISDIR(mode) else "a pipe or a device"


def _beside(path: Path) -> list[str]:
    """The YAML files where a path points, as it would name them."""
    try:
        return [str(path.with_name(other.name)) for other in path.parent.glob("*.yaml")]
    except (OSError, ValueError):
        return []
