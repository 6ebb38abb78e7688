"""`mnist eval`, `mnist predict` and `mnist import`: what is done with weights."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from mnist_cli import config as configs
from mnist_cli.cli import options as opt
from mnist_cli.cli import screen
from mnist_cli.cli.screen import console, human_console, print_json
from mnist_cli.config import Config, Flag
from mnist_cli.errors import CheckpointError, UsageError
from mnist_cli.runs import interrupts, store

if TYPE_CHECKING:
    from mnist_cli.data import pictures


def evaluate(
    overrides: opt.Overrides = None,
    checkpoint: opt.CheckpointOption = Path("best.pt"),
    split: Annotated[opt.SplitName, typer.Option("--split", help="Which images.")] = "test",
    device: opt.Device = None,
    runs_dir: opt.RunsDir = None,
    as_json: opt.Json = False,
) -> None:
    """Evaluate a checkpoint. It knows its own config; data.* and train.device may be set anew.

    It may be given as a run's name or folder; a file name that is not here is that of the newest.
    """
    human = human_console(as_json)
    path = _find_checkpoint(checkpoint, store.runs_root(runs_dir), human)

    from mnist_cli.report import tables
    from mnist_cli.runs import checkpoint as checkpoints
    from mnist_cli.runs.datasets import Datasets
    from mnist_cli.runs.evaluate import evaluate

    interrupts.listen()
    state = checkpoints.load(path)
    settings = _checkpoint_config(state.config, path, overrides or (), opt.given(device=device))
    loss, accuracy, count = evaluate(state, settings, split, Datasets(console(stderr=True).print))
    data = settings.data
    human.print(
        f"{split} accuracy {tables.percent(accuracy)}, loss {tables.loss(loss)} "
        f"({count:,} images, {data.name} {data.split} split)"
    )
    if as_json:
        figures = {"split": split, "n": count, "loss": loss, "acc": accuracy}
        print_json({"checkpoint": str(path), "data": data.name, **figures})


def predict(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Picture files.")],
    checkpoint: opt.CheckpointOption = Path("best.pt"),
    device: opt.Device = None,
    runs_dir: opt.RunsDir = None,
    as_json: opt.Json = False,
) -> None:
    """Say what a checkpoint takes your own pictures for.

    They may be of any size, photographed, scanned or drawn, dark on light or light on dark. If one
    cannot be read the others are predicted all the same, and the exit code is 2.
    """
    human = human_console(as_json)
    path = _find_checkpoint(checkpoint, store.runs_root(runs_dir), human)

    import numpy as np

    from mnist_cli.data.dataset import form
    from mnist_cli.report import tables
    from mnist_cli.runs import checkpoint as checkpoints
    from mnist_cli.runs.evaluate import predict

    state = checkpoints.load(path)
    settings = _checkpoint_config(state.config, path, (), opt.given(device=device))
    shape, _ = form(settings.data)
    prepared = [_prepared(image, settings.data.name, shape) for image in images]
    read = [pixels for pixels in prepared if not isinstance(pixels, UsageError)]
    found = iter(predict(state, settings, np.stack(read)) if read else ())
    rows: list[dict[str, object]] = []
    for image, pixels in zip(images, prepared, strict=True):
        if isinstance(pixels, UsageError):
            screen.print_error(pixels)
            rows.append({"image": str(image), "error": pixels.message})
            continue
        probabilities = next(found)
        human.print(tables.prediction(str(image), probabilities))
        top = max(probabilities, key=probabilities.__getitem__)
        prediction = {"class": top, "probability": probabilities[top]}
        rows.append({"image": str(image), **prediction, "probabilities": probabilities})
    if as_json:
        print_json(rows)
    if len(read) < len(images):
        raise typer.Exit(UsageError.exit_code)


def import_weights(
    weights: Annotated[
        Path,
        typer.Argument(
            metavar="WEIGHTS",
            help="A pickled dict of NumPy arrays, .npz, .safetensors, or a torch state dict.",
        ),
    ],
    overrides: opt.Overrides = None,
    config: opt.ConfigOption = None,
    runs_dir: opt.RunsDir = None,
    as_json: opt.Json = False,
) -> None:
    """Make weights trained elsewhere a checkpoint of the config's model; no code of them runs.

    Their names and shapes are the model's own; or W1 b1 W2 b2 ..., W of shape (inputs, outputs),
    for a network of linear layers. If they want pixels of 0..255, add data.normalize=false.
    """
    loaded = configs.load(config, overrides or ())
    human = human_console(as_json)
    screen.print_origin(loaded)

    from mnist_cli.runs.import_weights import import_weights, read

    interrupts.listen()
    found = read(weights)
    folder, rounded = import_weights(found, loaded.config, store.runs_root(runs_dir))
    source = f"{weights} ({found.format}, {len(found.tensors)} arrays)"
    human.print(f"{folder.name}: the {loaded.config.model.name} of {source}")
    if rounded:
        human.print(f"note: they were rounded to {loaded.config.train.precision}")
    screen.print_checkpoint(human, folder.best)
    if as_json:
        print_json(folder.summary())


def _find_checkpoint(path: Path, root: Path, human: Console) -> Path:
    """That file; or the best of a run, by its name or folder; or a file of the newest run."""
    if not path.is_file():
        with suppress(UsageError):
            return store.find(root, str(path)).best
    if path.exists() or path.is_symlink():
        return path
    if path.name == str(path) and (newest := store.newest_checkpoint(root, path.name)):
        human.print(f"{path} is not here; taking the newest: {newest}")
        return newest
    hint = "`mnist runs list` shows the runs there are"
    raise CheckpointError(f"{path}: there is no such file or run", hint)


def _checkpoint_config(
    saved: Mapping[str, object], path: Path, overrides: Sequence[str], flags: Sequence[Flag]
) -> Config:
    """The config of a checkpoint with what may be set anew: its device and its data.

    Raises:
        ConfigError: a value is not valid.
        UsageError: something else is set, or the images of the new data are of another shape.
    """
    for text in overrides:
        key = text.partition("=")[0]
        if "=" in text and key not in ("data", "train.device") and not key.startswith("data."):
            raise UsageError(
                f"{key}: a checkpoint's own", "only data.* and train.device can change"
            )
    from mnist_cli.data.dataset import form

    own = configs.load_saved(saved, str(path)).data
    settings = configs.load_saved(saved, str(path), overrides, flags)
    (had, _), (has, _) = form(own), form(settings.data)
    if had != has:
        raise UsageError(
            f"data.name: the images of {settings.data.name} are {'x'.join(map(str, has))}, "
            f"but {path} is for those of {own.name}, {'x'.join(map(str, had))}",
            "choose a data set whose images have the same shape",
        )
    ignore = {"batch_size", "shuffle", "normalize"}
    if settings.data.model_dump(exclude=ignore) != own.model_dump(exclude=ignore):
        console(stderr=True).print(
            "note: not the split it was trained with, so it may have been trained on these images"
        )
    return settings


def _prepared(image: Path, data: str, shape: tuple[int, int, int]) -> "pictures.Bytes | UsageError":
    """A picture as an image of a data set, or why it cannot be one."""
    from mnist_cli.data import pictures

    try:
        return pictures.prepare(image, data, shape)
    except UsageError as error:
        return error
