"""Pictures drawn by a process of their own: it loads matplotlib while the command loads torch."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mnist_cli.errors import RunError, in_words
from mnist_cli.runs.store import RunDirectory

Draw = Callable[[RunDirectory], list[Path]]  # returns the pictures


@contextmanager
def painter() -> Iterator[Draw]:
    """What draws the pictures of a run, and raises what kept it from that.

    The process ends with the block, and with its parent, however that ends; Ctrl-C does not reach
    it. Where torch is loaded already, there is nothing to wait for, and no process is started.
    """
    process = None if "torch" in sys.modules else _start()
    if process is None:
        yield _draw_here
        return
    with process:
        try:
            yield lambda folder: _draw_there(process, folder)
        finally:
            process.kill()


def serve() -> None:
    """The process: draws the run whose folder is named in a line on stdin; without one it ends."""
    from mnist_cli.report import plots  # noqa: PLC0415 - a command that draws nothing needs it not

    if line := sys.stdin.readline():
        try:
            drawn = plots.draw(RunDirectory(Path(json.loads(line))))
            sys.stdout.write(json.dumps([str(path) for path in drawn]))
        except Exception as error:  # noqa: BLE001 - whatever it is, the parent says it
            sys.exit(in_words(error))


def _start() -> subprocess.Popen[str] | None:
    code = f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import serve; serve()"
    pipe = subprocess.PIPE
    try:
        return subprocess.Popen(  # noqa: S603
            [sys.executable, "-c", code],
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            text=True,
            start_new_session=True,
        )
    except OSError:
        return None


def _draw_there(process: subprocess.Popen[str], folder: RunDirectory) -> list[Path]:
    drawn, said = process.communicate(json.dumps(str(folder.path)) + "\n")
    if process.returncode:
        last = said.strip().rpartition("\n")[2]
        raise RunError(last or f"exit code {process.returncode}")
    return [Path(path) for path in json.loads(drawn)]


def _draw_here(folder: RunDirectory) -> list[Path]:
    from mnist_cli.report import plots  # noqa: PLC0415

    return plots.draw(folder)
