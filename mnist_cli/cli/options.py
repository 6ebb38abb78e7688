"""The options that several commands share, each the flag of one setting or of one place."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from mnist_cli.config import Flag

ConfigOption = Annotated[
    str | None,
    typer.Option(
        "--config", "-c", metavar="FILE|NAME", help="A YAML file or a shipped config [mlp]."
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Settings of the config, e.g. model.depth=3."),
]
Lr = Annotated[str | None, typer.Option("--lr", metavar="X", help="optimizer.lr")]
Epochs = Annotated[str | None, typer.Option("--epochs", metavar="N", help="train.epochs")]
BatchSize = Annotated[str | None, typer.Option("--batch-size", metavar="N", help="data.batch_size")]
Seed = Annotated[str | None, typer.Option("--seed", metavar="N", help="train.seed")]
Seeds = Annotated[
    str | None,
    typer.Option(
        "--seeds", metavar="N|LIST", help="How many seeds (0, 1, ...), or which: 3,7 or 1..5."
    ),
]
Device = Annotated[
    str | None, typer.Option("--device", metavar="D", help="train.device: auto, cpu, cuda, cuda:N")
]
Name = Annotated[
    str | None, typer.Option("--name", metavar="NAME", help="What the run's folder is called.")
]
RunsDir = Annotated[
    Path | None,
    typer.Option(
        "--runs-dir", metavar="DIR", help="Where runs are kept [$MNIST_RUNS_DIR or runs]."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
Fuse = Annotated[
    Literal["on", "off"],
    typer.Option("--fuse", help="Whether runs that can train as one stack do."),
]
Workers = Annotated[
    int | None,
    typer.Option("--workers", metavar="N", min=1, help="Processes to train in [as many as pay]."),
]
CheckpointOption = Annotated[
    Path,
    typer.Option(
        "--checkpoint", metavar="FILE|RUN", help="A best.pt or last.pt, or a run: its best."
    ),
]
SplitName = Literal["train", "val", "test"]


def given(**options: str | None) -> list[Flag]:
    """The flags that were given, with the settings they stand for."""
    keys = {
        "lr": "optimizer.lr",
        "epochs": "train.epochs",
        "batch_size": "data.batch_size",
        "seed": "train.seed",
        "device": "train.device",
        "name": "name",
    }
    return [
        Flag(f"--{flag.replace('_', '-')}", keys[flag], text)
        for flag, text in options.items()
        if text is not None
    ]
