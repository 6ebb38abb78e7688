"""`mnist eval`, `mnist predict` and `mnist import`: what is done with weights."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from mnist_cli import config as configs
from mnist_cli.cli import options as opt
from mnist_cli.cli import screen
from mnist_cli.config import Config, Flag
from mnist_cli.config.schema import OwnData
from mnist_cli.errors import CheckpointError, UsageError
from mnist_cli.runs import interrupts, store

if TYPE_CHECKING:
    from mnist_cli.runs.checkpoint import Checkpoint


def evaluate(
    overrides: opt.Overrides = None,
    checkpoint: opt.CheckpointOption = Path("best.pt"),
    split: Annotated[opt.SplitName, Option("--split", help="Which images.")] = "test",
    device: opt.Device = None,
    runs_dir: opt.RunsDir = None,
    as_json: opt.Json = False,
) -> None:
    """Evaluate a checkpoint. It knows its own config; data.* and train.device may be set anew.

    It may be given as a run's name or folder; a file name that is not here is that of the newest.
    """
    from mnist_cli.report import tables

    path = _find_checkpoint(checkpoint, store.runs_root(runs_dir), as_json)

    from mnist_cli.runs import checkpoint as checkpoints
    from mnist_cli.runs.datasets import Datasets
    from mnist_cli.runs.evaluate import evaluate

    interrupts.listen()
    state = checkpoints.load(path)
    settings = _checkpoint_config(state, path, overrides or (), opt.given(device=device))
    note, data = screen.console(stderr=True).print, settings.data
    datasets = Datasets(note)
    if state.data.get("sha256") not in (None, datasets.get(settings).sha256):
        note("note: these images are not those that it was trained with, or have changed since")
    loss, accuracy, count = evaluate(state, settings, split, datasets)
    figures = {"n": count, "loss": loss, "acc": accuracy}
    document = {"checkpoint": str(path.absolute()), "data": data.name, "split": split, **figures}
    about = f"{count:,} images, {data.name} {data.split} split"
    words = f"{split} accuracy {tables.percent(accuracy)}, loss {tables.loss(loss)} ({about})"
    screen.print_result(as_json, document, words)


def predict(
    images: Annotated[list[Path], Argument(metavar="IMAGE...", help="Picture files.")],
    checkpoint: opt.CheckpointOption = Path("best.pt"),
    device: opt.Device = None,
    runs_dir: opt.RunsDir = None,
    as_json: opt.Json = False,
) -> None:
    """Say what a checkpoint takes your own pictures for.

    They may be of any size, photographed, scanned or drawn, dark on light or light on dark. If one
    cannot be read the others are predicted all the same, and the exit code is 2.
    """
    from mnist_cli.report import tables

    path = _find_checkpoint(checkpoint, store.runs_root(runs_dir), as_json)

    import numpy as np

    from mnist_cli.data import pictures
    from mnist_cli.runs import checkpoint as checkpoints
    from mnist_cli.runs.evaluate import predict

    state = checkpoints.load(path)
    settings = _checkpoint_config(state, path, (), opt.given(device=device))
    shape, _ = state.form
    rows: list[dict[str, Any]] = []
    readable = []
    for image in images:
        rows.append({"image": str(image.absolute())})
        try:
            readable.append((rows[-1], pictures.prepare(image, settings.data.name, shape)))
        except UsageError as error:
            screen.print_error(error)
            rows[-1]["error"] = error.message
    pixels = [pixels for _, pixels in readable]
    predicted = predict(state, settings, np.stack(pixels)) if readable else []
    parts = []
    for (row, _), found in zip(readable, predicted, strict=True):
        top = max(found, key=found.__getitem__)
        row |= {"class": top, "probability": found[top], "probabilities": found}
        parts.append(tables.prediction(str(image), found))
    screen.print_result(as_json, rows, *parts)
    if len(readable) < len(images):
        raise typer.Exit(UsageError.exit_code)


def import_weights(
    weights: Annotated[
        Path,
        Argument(
            metavar="WEIGHTS",
            help="A pickled dict of NumPy arrays, .npz, .safetensors, or a torch state dict.",
        ),
    ],
    overrides: opt.Overrides = None,
    config: opt.ConfigOption = None,
    runs_dir: opt.RunsDir = None,
    as_json: opt.Json = False,
) -> None:
    """Make a checkpoint of weights that were trained elsewhere.

    No code of them runs. Their names and shapes are those of the config's model; or W1 b1 W2 b2
    ..., W of shape (inputs, outputs), for a network of linear layers. If they want pixels of
    0..255, add data.normalize=false.
    """
    loaded = configs.load(config, overrides or ())
    screen.print_notes(loaded)

    from mnist_cli.runs.import_weights import import_weights, read

    interrupts.listen()
    found = read(weights)
    folder, rounded = import_weights(found, loaded.config, store.runs_root(runs_dir))
    source = f"{weights} ({found.format}, {len(found.tensors)} arrays)"
    parts = [f"{folder.name}: the {loaded.config.model.name} of {source}"]
    if rounded:
        parts.append(f"note: they were rounded to {loaded.config.train.precision}")
    parts += screen.checkpoint_lines(folder.best)
    screen.print_result(as_json, folder.summary(), *parts)


def _find_checkpoint(path: Path, root: Path, as_json: bool) -> Path:
    """That file; or the best of a run, by its name or folder; or a file of the newest run."""
    if not path.is_file():
        with suppress(UsageError):
            run = store.find(root, str(path))
            return run.path / (path.name if path.name in store.CHECKPOINTS else "best.pt")
    if path.exists() or path.is_symlink():
        return path
    if path.name == str(path) and (newest := store.newest_checkpoint(root, path.name)):
        screen.human_console(as_json).print(f"{path} is not here; taking the newest: {newest}")
        return newest
    hint = "`mnist runs list` shows the runs there are"
    raise CheckpointError(f"{path}: there is no such file or run", hint)


def _checkpoint_config(
    state: "Checkpoint", path: Path, overrides: Sequence[str], flags: Sequence[Flag]
) -> Config:
    """The config of a checkpoint with what may be set anew: its device and its data.

    Raises:
        ConfigError: a value is not valid.
        UsageError: something else is set, or the images of the new data are of another shape.
    """
    for text in overrides:
        key = configs.full_key(text.partition("=")[0])
        if "=" in text and key not in ("data", "train.device") and not key.startswith("data."):
            raise UsageError(
                f"{key}: a checkpoint's own", "only data.* and train.device can change"
            )
    from mnist_cli.data.dataset import form

    own = configs.load_saved(state.config, str(path)).data
    settings = configs.load_saved(state.config, str(path), overrides, flags)
    had, _ = state.form
    # What a user's own data has is seen when it is read.
    has, _ = state.form if isinstance(settings.data, OwnData) else form(settings.data)
    if had != has:
        raise UsageError(
            f"data.name: the images of {settings.data.name} are {'x'.join(map(str, has))}, "
            f"but {path} is for those of {own.name}, {'x'.join(map(str, had))}",
            "choose a data set whose images have the same shape",
        )
    ignore = {"batch_size", "shuffle", "normalize", "path"}
    if settings.data.model_dump(exclude=ignore) != own.model_dump(exclude=ignore):
        screen.console(stderr=True).print(
            "note: not the split it was trained with, so it may have been trained on these images"
        )
    return settings
