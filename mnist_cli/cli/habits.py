"""Words of other tools, each answered with what it is called here."""

from collections.abc import Sequence

from mnist_cli.config import ConfigError, full_key
from mnist_cli.config.schema import setting_keys
from mnist_cli.errors import UsageError

COMMANDS = {
    "val": "eval --split val",
    "validate": "eval --split val",
    "test": "eval --split test",
    "evaluate": "eval",
    "tune": "search",
    "fit": "train",
}

GPU = "a command uses one GPU, if there is one: --device cuda:N chooses which, --device cpu none"

# Options and settings.
OPTIONS = {
    "resume": "to go on with a run: mnist resume RUN",
    "gpu": GPU,
    "gpus": GPU,
    "cuda": GPU,
    "checkpoint": "to go on with a run: mnist resume RUN; to measure it: mnist eval",
}


def translated(argv: Sequence[str]) -> list[str]:
    """A command line as the commands take it: `help train` is `train --help`.

    Raises:
        UsageError: the command has another name here.
    """
    first, *rest = argv or [""]
    if first in COMMANDS:
        words = f"mnist {COMMANDS[first]}"
        raise UsageError(f"there is no command {first!r}", f"it is called: {words}")
    return [*rest, "--help"] if first == "help" else [*argv]


def hint(error: Exception) -> str | None:
    """What to type in place of an option or a setting that there is not, if that is known."""
    if isinstance(error, ConfigError):
        return next((OPTIONS[p.key] for p in error.problems if p.key in OPTIONS), None)
    word = str(getattr(error, "option_name", "")).strip("-").replace("-", "_")
    key = full_key(word)
    setting = f"a setting is given without dashes: {key}=VALUE" if key in setting_keys() else None
    return OPTIONS.get(word, setting)
