"""The command line: parse, call one function, print.

torch is imported inside the commands that need it, so that help and errors come at once.
"""

import errno
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

from mnist_cli import __version__
from mnist_cli.cli import bench, checkpoints, configs, data, runs, training
from mnist_cli.cli.screen import say_error
from mnist_cli.errors import MnistError, UsageError, in_words, remedy
from mnist_cli.runs import interrupts

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help comes in half the time
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Train small image classifiers from a YAML config, sweep settings, evaluate the best.",
    epilog="--debug, anywhere on the command line, shows the traceback of an error.",
)
app.command("train")(training.train)
app.command("sweep")(training.sweep)
app.command("resume")(training.resume)
app.command("eval")(checkpoints.evaluate)
app.command("predict")(checkpoints.predict)
app.command("import")(checkpoints.import_weights)
app.add_typer(runs.app, name="runs")
app.command("plot")(runs.plot)
app.command("bench")(bench.bench)
app.add_typer(configs.app, name="config")
app.add_typer(data.app, name="data")


def run_command(argv: Sequence[str]) -> int:
    """Runs one command line; every way it can end becomes an exit code and a sentence.

    Returns:
        The exit code.
    """
    debug = "--debug" in argv
    try:
        code = app(
            [argument for argument in argv if argument != "--debug"],
            prog_name="mnist",
            standalone_mode=False,
        )
    except (MnistError, typer.TyperException) as error:
        if debug:
            traceback.print_exc()
        return say_error(error)
    except interrupts.Terminated:
        code = 143
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 1
    except BrokenPipeError:
        sys.stdout = None  # whoever read it has gone, and Python would complain when it flushes
        return 1
    except OSError as error:
        if debug:
            traceback.print_exc()
        if error.errno == errno.ENAMETOOLONG:
            hint = "give a path that can be"
            return say_error(UsageError(f"{error.filename}: the name is too long", hint))
        return say_error(MnistError(in_words(error), remedy(error)))
    except Exception as error:  # noqa: BLE001 - the last line of defence against a traceback
        if debug:
            traceback.print_exc()
        if known := remedy(error):
            return say_error(MnistError(in_words(error), known))
        print(f"error: {type(error).__name__}: {error}", file=sys.stderr)
        print("hint: this should not happen; --debug shows where it did", file=sys.stderr)
        return 1
    if code in (130, 143):
        print("interrupted: everything that was finished is saved", file=sys.stderr)
    return code if isinstance(code, int) else 0


def _version(asked: bool) -> None:
    if asked:
        print(f"mnist {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass
