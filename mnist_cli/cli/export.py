"""`mnist runs export` and `mnist eject`: leaving with what was trained."""

from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, Option

from mnist_cli.cli.options import RunArgument, RunsDir
from mnist_cli.cli.screen import find_run
from mnist_cli.errors import UsageError, in_words


def runs_export(
    runs: Annotated[list[str], Argument(metavar="RUN...", help="Runs or sweeps.")],
    to: Annotated[
        Literal["csv", "parquet", "tensorboard", "mlflow", "wandb"],
        Option("--to", help="What for."),
    ],
    output: Annotated[
        Path | None, Option("--output", "-o", metavar="PATH", help="A new file [runs.csv ...].")
    ] = None,
    runs_dir: RunsDir = None,
) -> None:
    """Write the figures of runs, epoch by epoch.

    CSV and Parquet are one table, with the settings in which the runs differ. TensorBoard takes a
    folder, MLflow an SQLite file, W&B a folder of offline runs, which `wandb sync` sends.
    """
    from mnist_cli.report.export import export

    path = output or Path(f"runs.{to}")
    count = export([find_run(run, runs_dir) for run in runs], to, path)
    print(f"{path}: {count} epochs")


def eject(
    run: RunArgument = None,
    output: Annotated[
        Path | None, Option("--output", "-o", metavar="FILE", help="A new file [stdout].")
    ] = None,
    runs_dir: RunsDir = None,
) -> None:
    """Write a run as one plain PyTorch script.

    It does without mnist. Its initial weights, images and batches are the run's own, so its
    figures are the run's up to rounding, but for dropout. What cannot be written so is refused:
    augmentation, an average of the weights, bf16, train.steps, muon, wsd, generated data and data
    of your own, and models that do not begin as torch's layers do.
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
