"""Where text goes: results to stdout, everything on the way to stderr, `--json` alone on stdout.

Names and values come from other people's files. So nothing is read as rich's markup, and what a
terminal would act on is shown as an escape, here and nowhere else.
"""

import errno
import io
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, cast

import typer

from mnist_cli.cli import habits
from mnist_cli.config import ConfigError, Loaded
from mnist_cli.errors import MnistError, UsageError, in_words, printable, remedy
from mnist_cli.runs import store
from mnist_cli.runs.documents import finite

if TYPE_CHECKING:
    from rich.console import Console, RenderableType


class Output:
    """A standard stream of a command: safe to print anything to, and never a reason to fail.

    If it cannot be written (its reader has gone, its disk is full), what is printed is dropped from
    then on, and the command goes on.

    Args:
        stream: where to.
        escaped: whether text is made printable first.
    """

    def __init__(self, stream: TextIO, *, escaped: bool = True) -> None:
        self._stream = stream
        self._escaped = escaped
        self.written = False  # whether anything was
        self.quiet = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def unescaped(self) -> TextIO:
        """The same stream for rich, whose colours are control characters too."""
        return cast("TextIO", Output(self._stream, escaped=False))

    def write(self, text: str) -> int:
        """Writes text; returns its length."""
        self.written = True
        self._attempt(lambda: self._stream.write(printable(text) if self._escaped else text))
        return len(text)

    def flush(self) -> None:
        """Writes what is buffered."""
        self._attempt(self._stream.flush)

    def _attempt(self, action: Callable[[], object]) -> None:
        try:
            action()
        except OSError as error:
            with suppress(OSError):  # as in Python's documentation of SIGPIPE
                number = self._stream.fileno()
                devnull = os.open(os.devnull, os.O_WRONLY)
                os.dup2(devnull, number)
                os.close(devnull)
                if error.errno != errno.EPIPE:
                    print(f"warning: output is lost: {in_words(error)}", file=sys.stderr)


@contextmanager
def outputs(*, quiet: bool = False) -> Iterator[None]:
    """Makes an `Output` of stdout and of stderr while a command runs, also where they are closed.

    If they are to be quiet, consoles of stderr print nothing; errors and warnings are printed.
    Characters that the encoding of stdout lacks become `?`; those of stderr are escaped anyway.
    """
    before = sys.stdout, sys.stderr
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    with ExitStack() as opened:
        sys.stdout, sys.stderr = (
            cast("TextIO", Output(stream or opened.enter_context(Path(os.devnull).open("w"))))
            for stream in before
        )
        cast("Output", sys.stderr).quiet = quiet
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            sys.stdout, sys.stderr = before


def console(stderr: bool = False) -> "Console":
    """A console on the streams as they are now; what it prints is never read as markup."""
    from mnist_cli.report.terminal import Terminal

    stream = sys.stderr if stderr else sys.stdout
    file = stream.unescaped() if isinstance(stream, Output) else stream
    quiet = stderr and getattr(stream, "quiet", False)
    return Terminal(file=file, highlight=False, markup=False, emoji=False, quiet=quiet)


def human_console(as_json: bool) -> "Console":
    """Where results for people go: stdout, unless programs read there."""
    return console(stderr=as_json)


def print_json(value: Any) -> None:
    """The one document of `--json`, with null for what JSON cannot say."""
    print(json.dumps(finite(value), indent=2))


def print_result(as_json: bool, document: Any, *parts: "RenderableType") -> None:
    """What a command came to: its parts for people, and with `--json` the document for programs."""
    human = human_console(as_json)
    for part in parts:
        human.print(part)
    if as_json:
        print_json(document)


def find_run(name: str | None, runs_dir: Path | None) -> store.RunDirectory:
    """The run that an argument names; without one the newest, which is said.

    Raises:
        UsageError: there is none.
    """
    root = store.runs_root(runs_dir)
    if name is not None:
        return store.find(root, name)
    found = store.newest(root)
    console(stderr=True).print(f"the newest: {found.name}")
    return found


def check_picture(path: Path) -> None:
    """Raises a UsageError unless the name of a picture, given as `--out`, is that of a PNG."""
    if path.suffix.lower() != ".png":
        raise UsageError(f"--out {path}: the picture is written as PNG", "end its name in .png")


def checkpoint_lines(path: Path | str) -> tuple[str, str]:
    """Where the best weights are, and how to measure them."""
    measure = f"mnist eval --checkpoint {shlex.quote(str(path))}"
    return f"best checkpoint: {path}", f"to evaluate it:  {measure}"


def run_argument(folder: store.RunDirectory) -> str:
    """What a command calls a run: its name, if that finds it, else its folder."""
    known = folder.path == store.runs_root(None) / folder.name
    return shlex.quote(folder.name if known else str(folder.path))


def print_failure(code: int, message: str, hint: str | None = None) -> None:
    """The document of a `--json` that failed, unless there is one that says how far it came."""
    if not getattr(sys.stdout, "written", False):
        print_json({"error": {"code": code, "message": message, "hint": hint}})


def print_error(error: Exception) -> MnistError:
    """Prints an error as a user sees it; returns it as what it is to a user."""
    known = _explained(error)
    # The problems of a config each come with their place, so each stands as it is; and a group of
    # commands alone shows its help.
    whole = isinstance(known, ConfigError) or known.message.startswith("Usage:")
    print(known.message if whole else f"error: {known.message}", file=sys.stderr)
    if known.hint:
        print(f"hint: {known.hint}", file=sys.stderr)
    return known


def _explained(error: Exception) -> MnistError:
    if isinstance(error, MnistError):
        error.hint = error.hint or habits.hint(error)
        return error
    if isinstance(error, typer.TyperException):
        text = error.format_message()
        hint = habits.hint(error) or "`mnist --help` and `mnist COMMAND --help` list what there is"
        return UsageError(text, None if text.startswith("Usage:") else hint)
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return UsageError(f"{error.filename}: the name is too long", "give a shorter path")
    if isinstance(error, OSError) or remedy(error):
        return MnistError(in_words(error), remedy(error))
    hint = "this should not happen; --debug shows where it did"
    return MnistError(f"{type(error).__name__}: {error}", hint)


def print_notes(loaded: Loaded) -> None:
    """Says what was decided where more than one thing could have been meant."""
    for note in loaded.notes:
        console(stderr=True).print(note)
