"""The options that several commands share, each the flag of one setting or of one place."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from typer import Argument, Option

from mnist_cli.config import Flag
from mnist_cli.config.presets import presets
from mnist_cli.errors import UsageError
from mnist_cli.runs import store

# The settings that flags stand for; of the last two, values to sweep.
KEYS = {
    "lr": "optimizer.lr",
    "epochs": "train.epochs",
    "batch_size": "data.batch_size",
    "seed": "train.seed",
    "device": "train.device",
    "name": "name",
    "lrs": "optimizer.lr",
    "seeds": "train.seed",
    "path": "data.path",
}


def _setting(flag: str, metavar: str, what: str) -> Any:
    """The option that sets one setting of the config."""
    key = KEYS[flag.strip("-").replace("-", "_")]
    return Option(flag, metavar=metavar, help=f"{what} ({key}) [the config's].")


def _configs(incomplete: str) -> list[str]:
    return [name for name in presets() if name.startswith(incomplete)]


def _runs(incomplete: str) -> list[str]:
    found = reversed(store.all_runs(store.runs_root(None)))
    return [run.name for run in found if run.name.startswith(incomplete)]


ConfigOption = Annotated[
    str | None,
    Option(
        "--config",
        "-c",
        metavar="FILE|NAME",
        help="A YAML file, - for stdin, or a shipped config [mlp].",
        autocompletion=_configs,
    ),
]
Overrides = Annotated[
    list[str] | None,
    Argument(
        metavar="CONFIG|KEY=VALUE",
        help="A config, as for --config, and settings of it: model=cnn lr=0.1 model.depth=3.",
        autocompletion=_configs,
    ),
]
Lr = Annotated[str | None, _setting("--lr", "X", "Learning rate")]
Epochs = Annotated[str | None, _setting("--epochs", "N", "Passes over the images")]
BatchSize = Annotated[str | None, _setting("--batch-size", "N", "Images in a step")]
Seed = Annotated[str | None, _setting("--seed", "N", "Seed of all that is random")]
Seeds = Annotated[
    str | None,
    Option("--seeds", metavar="N|LIST", help="How many seeds (0, 1, ...), or which: 3,7 or 1..5."),
]
Device = Annotated[
    str | None,
    Option("--device", metavar="D", help="auto, cpu, cuda or cuda:N (train.device) [auto]."),
]
Name = Annotated[
    str | None,
    Option("--name", metavar="NAME", help="What the run's folder is called [as the config]."),
]
RunsDir = Annotated[
    Path | None,
    Option("--runs-dir", metavar="DIR", help="Where runs are kept [$MNIST_RUNS_DIR or runs]."),
]
Json = Annotated[bool, Option("--json", help="One JSON document on stdout, errors included.")]
Fuse = Annotated[
    Literal["on", "off"],
    Option("--fuse", help="Whether runs that can train as one stack do."),
]
Workers = Annotated[
    int | None,
    Option("--workers", metavar="N", min=1, help="Processes to train in [as many as pay]."),
]
Keep = Annotated[
    Literal["all", "best"],
    Option("--keep", help="Of runs that differ in their seed alone, whose checkpoints to keep."),
]
TensorBoard = Annotated[
    bool,
    Option("--tensorboard", help="Write for TensorBoard too: `tensorboard --logdir runs`."),
]
On = Annotated[
    str | None,
    Option("--on", metavar="ray|ray://HOST:PORT", help="A Ray cluster to train on [this machine]."),
]
CheckpointOption = Annotated[
    Path,
    Option("--checkpoint", metavar="FILE|RUN", help="A best.pt or last.pt, or a run: its best."),
]
Model = Annotated[
    str | None,
    Option("--model", metavar="FILE.py[:NAME]", help="A model of your own: this file, which runs."),
]
RunArgument = Annotated[
    str | None,
    Argument(
        metavar="[RUN]",
        help="A run or sweep: name, folder or checkpoint [the newest].",
        autocompletion=_runs,
    ),
]
RunArguments = Annotated[
    list[str] | None,
    Argument(
        metavar="[RUN]...",
        help="Runs or sweeps: name, folder or checkpoint [the newest].",
        autocompletion=_runs,
    ),
]
SplitName = Literal["train", "val", "test"]


def given(**options: str | None) -> list[Flag]:
    """The flags that were given, with the settings they stand for."""
    return [
        Flag(f"--{option.replace('_', '-')}", KEYS[option], text)
        for option, text in options.items()
        if text is not None
    ]


def own_model(text: str | None) -> list[Flag]:
    """What `--model FILE.py` or `--model FILE.py:NAME` says.

    Raises:
        UsageError: it is no such file.
    """
    if text and ".py" not in text:
        what = f"--model {text}: not a file FILE.py"
        raise UsageError(what, f"one of the models that there are is a setting: model={text}")
    path, _, factory = (text or "").partition(".py:")
    values = {"name": "file", "path": f"{path}.py" if factory else text, "factory": factory}
    return [
        Flag("--model", f"model.{key}", json.dumps(value))
        for key, value in values.items()
        if text and value
    ]
