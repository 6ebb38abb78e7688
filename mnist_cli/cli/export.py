"""`mnist eject`: leaving with what was trained."""

from pathlib import Path
from typing import Annotated

from typer import Option

from mnist_cli.cli.options import RunArgument, RunsDir
from mnist_cli.cli.screen import find_run
from mnist_cli.errors import UsageError, in_words


def eject(
    run: RunArgument = None,
    output: Annotated[
        Path | None, Option("--output", "-o", metavar="FILE", help="A new file [stdout].")
    ] = None,
    runs_dir: RunsDir = None,
) -> None:
    """Write a run as one short PyTorch script without mnist, which trains to the same figures.

    Its initial weights, images and batches are the run's own, so its figures are the run's up to
    rounding, but for dropout. What cannot be written so is refused: augmentation, an average of
    the weights, muon, wsd, generated data and data of your own, models by tensor operations.
    """
    folder = find_run(run, runs_dir)
    if folder.is_sweep:
        winner = (folder.summary().get("best") or {}).get("run", f"{folder.name}/trials/000")
        raise UsageError(f"{folder.name} is a sweep", f"give one of its runs: {winner}")

    from mnist_cli.report.eject import script

    config = folder.config()
    epochs = len(folder.metrics()) or config.train.epochs or 1
    code = script(folder.name, config, epochs)
    if output is None:
        print(code, end="")
        return
    try:
        with output.open("x") as file:
            file.write(code)
    except OSError as error:
        raise UsageError(in_words(error), "choose another file with -o") from error
    print(output)
