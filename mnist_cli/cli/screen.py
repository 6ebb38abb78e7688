"""Where words go: results to stdout, everything on the way to stderr, values never as markup."""

import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from mnist_cli.config import ConfigError, Loaded
from mnist_cli.errors import MnistError, UsageError
from mnist_cli.runs import store


class _Console(Console):
    """A console that leaves lines of text whole, and tables too: a cut figure is a wrong one."""

    def print(self, *objects: Any, **options: Any) -> None:
        width = self.width
        if len(objects) == 1 and isinstance(objects[0], Table):
            unbounded = self.options.update(max_width=1000)
            self.width = max(width, Measurement.get(self, unbounded, objects[0]).maximum)
        lines = all(isinstance(each, str) for each in objects)
        super().print(*objects, **{"soft_wrap": lines, **options})
        self.width = width


def console(stderr: bool = False) -> Console:
    """A console on the streams as they are now; what it prints is never read as markup."""
    stream = sys.stderr if stderr else sys.stdout
    # rich would take 80 columns for a file or a pipe; tables may have more there.
    width = None if stream.isatty() or "COLUMNS" in os.environ else 120
    return _Console(file=stream, width=width, highlight=False, markup=False, emoji=False)


def human_console(as_json: bool) -> Console:
    """Where results for people go: stdout, unless programs read there."""
    return console(stderr=as_json)


def print_json(value: Any) -> None:
    """The one document of `--json`, with null for what JSON cannot say."""
    print(json.dumps(store.finite(value), indent=2))


def tell_checkpoint(human: Console, path: Path) -> None:
    """Where the best weights are, and how to measure them."""
    human.print(f"best checkpoint: {path}")
    human.print(f"to evaluate it:  mnist eval --checkpoint {shlex.quote(str(path))}")


def say_error(error: MnistError | typer.TyperException) -> int:
    """Prints an error as a user sees it; returns its exit code."""
    if isinstance(error, typer.TyperException) and error.format_message().startswith("Usage:"):
        print(error.format_message(), file=sys.stderr)  # a group of commands alone: its help
        return 2
    if isinstance(error, typer.TyperException):
        error = UsageError(
            error.format_message(), "`mnist --help` and `mnist COMMAND --help` tell more"
        )
    # The problems of a config each come with their place, so each stands as it is.
    prefix = "" if isinstance(error, ConfigError) else "error: "
    print(prefix + error.message, file=sys.stderr)
    if error.hint:
        print(f"hint: {error.hint}", file=sys.stderr)
    return error.exit_code


def tell_origin(loaded: Loaded) -> None:
    """Says what was chosen where more than one thing could have been meant."""
    human = console(stderr=True)
    if loaded.is_preset:
        human.print(f"config: the shipped {loaded.origin}")
    for key in loaded.axes_dropped:
        human.print(f"{key} is not swept as the config says: its whole section is swept")
    if loaded.reference_dropped_by:
        keys = loaded.reference_dropped_by
        # Another optimizer has other settings: its name says it.
        named = {key.removesuffix(".name") for key in keys if key.endswith(".name")}
        told = [key for key in keys if key.endswith(".name") or key.split(".")[0] not in named]
        human.print(f"published figures are of another experiment, by {', '.join(told)}: not shown")
