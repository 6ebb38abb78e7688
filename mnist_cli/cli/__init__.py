"""The command line: parse, call one function, print.

torch is imported inside the commands that need it, so that help and errors come at once.
"""

import sys
import traceback
from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperOption

from mnist_cli import __version__
from mnist_cli.cli import (
    bench,
    checkpoints,
    configs,
    data,
    export,
    habits,
    report,
    runs,
    search,
    training,
)
from mnist_cli.cli.screen import outputs, print_error, print_failure
from mnist_cli.errors import UsageError
from mnist_cli.runs import interrupts


class Command(TyperCommand):
    """A command that refuses an option given twice, of which the first would be ignored."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parses the command line.

        Raises:
            UsageError: an option that takes one value is given more than once.
        """
        _, _, order = self.make_parser(ctx).parse_args(args=list(args))
        for param, count in Counter(order).items():
            if isinstance(param, TyperOption) and not (
                param.multiple or param.is_flag or count == 1
            ):
                raise UsageError(f"{param.opts[0]} is given {count} times", "give it once")
        return super().parse_args(ctx, args)


app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help comes in half the time
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Train small image classifiers from a YAML config, sweep settings, evaluate the best.",
    epilog="Anywhere on the command line, --quiet leaves results and errors alone, without "
    "progress and notes, and --debug shows the traceback of an error.",
)
app.command("train")(training.train)
app.command("sweep")(training.sweep)
app.command("search")(search.search)
app.command("resume")(training.resume)
app.command("eval")(checkpoints.evaluate)
app.command("predict")(checkpoints.predict)
app.command("export")(checkpoints.export)
app.command("import")(checkpoints.import_weights)
runs.app.command("export")(export.runs_export)
app.add_typer(runs.app, name="runs")
app.command("plot")(runs.plot)
app.command("report")(report.report)
app.command("eject")(export.eject)
app.command("bench")(bench.bench)
app.add_typer(configs.app, name="config")
app.add_typer(data.app, name="data")


for group in (app, runs.app, configs.app, data.app):
    for command in group.registered_commands:
        command.cls = Command


def run_command(argv: Sequence[str]) -> int:
    """Runs one command line; every way it can end becomes an exit code and a message.

    Returns:
        The exit code.
    """
    debug, as_json, quiet = (option in argv for option in ("--debug", "--json", "--quiet"))
    interrupted = "interrupted: everything that was finished is saved"
    with outputs(quiet=quiet), interrupts.restored():
        try:
            code = app(
                habits.translated([word for word in argv if word not in ("--debug", "--quiet")]),
                prog_name="mnist",
                standalone_mode=False,
            )
        except interrupts.Terminated:
            code = 143
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 1
            if as_json and code:
                print_failure(code, interrupted)
            return code
        except Exception as error:  # noqa: BLE001 - the last line of defence against a traceback
            if debug:
                traceback.print_exc()
            known = print_error(error)
            if as_json:
                print_failure(known.exit_code, known.message, known.hint)
            return known.exit_code
        if code in (130, 143):
            print(interrupted, file=sys.stderr)
            if as_json:
                print_failure(code, interrupted)
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
