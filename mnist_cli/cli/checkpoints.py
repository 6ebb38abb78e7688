"""`mnist eval`, `mnist predict` and `mnist import`: what is done with weights."""

import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer import Argument, Option

from mnist_cli import config as configs
from mnist_cli.cli import options as opt
from mnist_cli.cli import screen
from mnist_cli.config import Config, Flag
from mnist_cli.config.schema import OwnData
from mnist_cli.errors import CheckpointError, UsageError, in_words
from mnist_cli.report import own_models
from mnist_cli.runs import interrupts, store
from mnist_cli.sweeps.stats import rank

if TYPE_CHECKING:
    import numpy as np

    from mnist_cli.runs.checkpoint import Checkpoint
    from mnist_cli.runs.datasets import Datasets
    from mnist_cli.runs.evaluate import Classified


def evaluate(
    words: Annotated[
        list[str] | None,
        Argument(metavar="[RUN|KEY=VALUE]...", help="What to evaluate; data.* and train.device."),
    ] = None,
    checkpoint: opt.CheckpointOption = Path("best.pt"),
    split: Annotated[opt.SplitName, Option("--split", help="Which images.")] = "test",
    per_class: Annotated[
        bool, Option("--per-class", help="Show precision and recall of each class.")
    ] = False,
    calibration: Annotated[
        bool,
        Option("--calibration", help="Measure NLL, ECE, and both at the temperature that fits."),
    ] = False,
    ensemble: Annotated[
        bool, Option("--ensemble", help="Measure all runs, or those of a sweep, together.")
    ] = False,
    seeds: Annotated[
        bool, Option("--seeds", help="Of a sweep, every seed of the best setting; their spread.")
    ] = False,
    model: opt.Model = None,
    device: opt.Device = None,
    runs_dir: opt.RunsDir = None,
    as_json: opt.Json = False,
) -> None:
    """Evaluate checkpoints. Each knows its config; data.* and train.device may be set anew.

    One may be given as a run's name or folder; a file name that is not here is that of the newest.
    With --ensemble, the mean of the probabilities that finished runs give is evaluated as well.
    The temperature is fitted on the validation images. Results are kept in the run's eval.json.
    """
    from mnist_cli.report import tables

    root = store.runs_root(runs_dir)
    overrides = [word for word in words or () if "=" in word and not Path(word).exists()]
    named = [Path(word) for word in words or () if word not in overrides]
    paths = [_find_checkpoint(path, root, as_json) for path in named or [checkpoint]]
    if ensemble or seeds:
        found = [store.find(root, str(path)) for path in named or paths]
        paths = [path for each in found for path in _members(each, seeds)]

    from mnist_cli.runs import evaluate
    from mnist_cli.runs.datasets import Datasets

    interrupts.listen()
    flags = opt.given(device=device) + opt.own_model(model)
    datasets, documents = Datasets(screen.console(stderr=True).print), []
    loaded = [_load(path, overrides, flags) for path in paths]
    if ensemble:
        evaluate.check_same_data([state for state, _ in loaded])
    predictions = []
    for path, (state, settings) in zip(paths, loaded, strict=True):
        document, seen = _grade(path, state, settings, split, datasets, calibration)
        _keep(path, state, document, overrides)
        documents.append(document)
        predictions.append(seen)
    one: dict[str, Any] = documents[0]
    parts: list[Any] = []
    if len(documents) > 1 or calibration:
        parts.append(tables.evaluations(documents))
    if seeds:
        parts.append(tables.over_seeds(split, [document["acc"] for document in documents]))
    if ensemble:
        one = _together(documents, predictions)
    if ensemble or not parts:
        about = f"{one['n']:,} images, {one['data']} {settings.data.split} split"
        figures = f"{tables.percent(one['acc'])}, loss {tables.loss(one['loss'])}"
        parts.append(f"{split} accuracy {'together ' * ensemble}{figures} ({about})")
    for document in [one] if ensemble else documents:
        if per_class:
            title = document.get("checkpoint", "together")
            parts += [str(title), tables.class_table(document["classes"])]
    if calibration:
        parts += [f"reliability diagram: {document['plot']}" for document in documents]
    several = len(documents) > 1 and not ensemble
    screen.print_result(as_json, documents if several else one, *parts)


def _grade(
    path: Path,
    state: "Checkpoint",
    config: Config,
    split: opt.SplitName,
    datasets: "Datasets",
    calibration: bool,
) -> "tuple[dict[str, Any], Classified]":
    """What a checkpoint's predictions of a split are worth; and the predictions."""
    from mnist_cli.runs import evaluate, grade

    if state.data.get("sha256") not in (None, datasets.get(config).sha256):
        note = "note: these images are not those that it was trained with, or have changed since"
        screen.console(stderr=True).print(note)
    seen = evaluate.classify(state, config, split, datasets)
    document: dict[str, Any] = {
        "checkpoint": str(path.absolute()),
        "data": config.data.name,
        "split": split,
    }
    document |= {"n": len(seen.labels), "loss": seen.loss, "acc": seen.accuracy}
    document["classes"] = grade.per_class(seen.counts, seen.classes)
    if calibration:
        from mnist_cli.report import plots

        fitted = evaluate.classify(state, config, "val", datasets)
        held_out = fitted.probabilities, fitted.labels
        measured = grade.calibrate(seen.probabilities, seen.labels, held_out)
        run = store.run_of(path)
        if run:
            run.plots.mkdir(exist_ok=True)
        drawn = (run.plots if run else Path()) / f"reliability-{split}.png"
        images = f"{document['n']:,} {split} images of {config.data.name}"
        title = f"{run.name if run else path.name}, {images}"
        plots.reliability(drawn, title, measured)
        document |= {"calibration": measured.document(), "plot": str(drawn.absolute())}
    return document, seen


def _together(
    documents: Sequence[dict[str, Any]], predictions: "Sequence[Classified]"
) -> dict[str, Any]:
    """What the mean of the probabilities is worth that several checkpoints give the same images."""
    from mnist_cli.runs import evaluate, grade

    mean = evaluate.ensemble(predictions)
    return {
        "members": documents,
        **{key: documents[0][key] for key in ("data", "split", "n")},
        "loss": mean.loss,
        "acc": mean.accuracy,
        "classes": grade.per_class(mean.counts, mean.classes),
    }


def _keep(path: Path, state: "Checkpoint", document: dict[str, Any], overrides: list[str]) -> None:
    """Keeps a result in the folder of the checkpoint's run, if it is in one."""
    from mnist_cli.runs import grade

    if run := store.run_of(path):
        figures = {"epoch": state.epoch, "val/loss": state.metrics.get("val/loss")}
        try:
            key = " ".join([path.name, document["split"], *overrides])
            grade.keep(run, key, document | figures)
        except (OSError, UsageError) as error:
            print(f"warning: the result is not kept: {in_words(error)}", file=sys.stderr)


def predict(
    images: Annotated[list[Path], Argument(metavar="IMAGE...", help="Picture files.")],
    checkpoint: opt.CheckpointOption = Path("best.pt"),
    show: Annotated[
        bool, Option("--show", help="Draw what the network sees of them, into predictions.png.")
    ] = False,
    model: opt.Model = None,
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
    from mnist_cli.runs.evaluate import probabilities

    state, settings = _load(path, (), opt.given(device=device) + opt.own_model(model))
    shape, classes = state.form
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
    predicted = probabilities(state, settings, np.stack(pixels)).tolist() if readable else []
    parts = []
    for (row, _), each in zip(readable, predicted, strict=True):
        found = dict(zip(classes, each, strict=True))
        top = max(found, key=found.__getitem__)
        row |= {"class": top, "probability": found[top], "probabilities": found}
        parts.append(tables.prediction(str(image), found))
    if show and readable:
        parts.append(_show_seen(path, [row for row, _ in readable], np.stack(pixels), as_json))
    screen.print_result(as_json, rows, *parts)
    if len(readable) < len(images):
        raise typer.Exit(UsageError.exit_code)


def _show_seen(
    checkpoint: Path, rows: Sequence[dict[str, Any]], pixels: "np.ndarray", as_json: bool
) -> str:
    """Draws images as a network gets them, each with what it takes them for; also on a terminal.

    Returns:
        The picture, whose path becomes `plot` of each row.
    """
    from mnist_cli.report import plots, tables

    picture = Path("predictions.png")
    labels = [f"{row['class']}, {tables.percent(row['probability'], 1)}" for row in rows]
    plots.image_grid(picture, f"what {checkpoint} sees, and says", pixels, labels)
    for row in rows:
        row["plot"] = str(picture.absolute())
    terminal = screen.human_console(as_json)
    if terminal.is_terminal and not terminal.no_color:
        terminal.print(tables.image_row(pixels, labels, terminal.width))
    return f"what it sees: {picture}"


def export(
    checkpoint: Annotated[
        Path, Argument(metavar="CHECKPOINT", help="A best.pt or last.pt, or a run: its best.")
    ],
    to: Annotated[Literal["onnx", "pt2"], Option("--to", help="ONNX, or torch.export's own.")],
    output: Annotated[
        Path | None, Option("--output", "-o", metavar="FILE", help="A new file [model.onnx ...].")
    ] = None,
    runs_dir: opt.RunsDir = None,
) -> None:
    """Write a checkpoint's model as ONNX or pt2.

    It runs without mnist and takes what the model does: images (batch, channels, height, width),
    pixels of 0..1 unless data.normalize is false. It is seen to give the same logits before it is
    written.
    """
    path = _find_checkpoint(checkpoint, store.runs_root(runs_dir), as_json=True)
    target = output or Path(f"model.{to}")
    if target.exists():
        raise UsageError(f"{target} is there already", "choose another file with -o")

    from mnist_cli.data import durable
    from mnist_cli.runs import checkpoint as checkpoints
    from mnist_cli.runs.export_model import export

    state = checkpoints.load(path)
    content, difference = export(state, configs.load_saved(state.config, str(path)), to)
    try:
        durable.replace(target, content)
    except OSError as error:
        raise UsageError(in_words(error), "choose another file with -o") from error
    print(f"{target}: the model of {path}; logits differ by {difference:.1g} at most")


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
    model: opt.Model = None,
    runs_dir: opt.RunsDir = None,
    as_json: opt.Json = False,
) -> None:
    """Make a checkpoint of weights that were trained elsewhere.

    No code of them runs. Their names and shapes are those of the config's model; or W1 b1 W2 b2
    ..., W of shape (inputs, outputs), for a network of linear layers. If they want pixels of
    0..255, add data.normalize=false.
    """
    loaded = configs.load(config, overrides or (), opt.own_model(model))
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
            if run.meta().get("discarded"):
                what = f"{run.name}: its checkpoints were not kept (--keep best)"
                raise CheckpointError(what, f"evaluate the best: {run.owner.name}")
            return run.path / (path.name if path.name in store.CHECKPOINTS else "best.pt")
    if path.exists() or path.is_symlink():
        return path
    if path.name == str(path) and (newest := store.newest_checkpoint(root, path.name)):
        screen.human_console(as_json).print(f"{path} is not here; taking the newest: {newest}")
        return newest
    hint = "`mnist runs list` shows the runs there are"
    raise CheckpointError(f"{path}: there is no such file or run", hint)


def _members(folder: store.RunDirectory, best_setting: bool) -> list[Path]:
    """The checkpoints of a sweep's finished runs, or that of a run.

    Args:
        folder: of a sweep or a run.
        best_setting: whether only those runs count that have the winner's settings.

    Raises:
        UsageError: none is finished, or checkpoints were not kept.
    """
    runs = list(folder.trials()) if folder.is_sweep else [folder]
    if best_setting and folder.is_sweep:
        if not (trials := folder.summary().get("trials")):
            what = f"{folder.name} has not been ranked: it is {folder.status()}"
            raise UsageError(what, f"go on with: mnist resume {screen.run_argument(folder)}")
        runs = [
            runs[index] for index in sorted(rank(trials, folder.config().train.select)[0].trials)
        ]
    members = [run for run in runs if run.status() in ("finished", "imported")]
    if not members:
        raise UsageError(f"none is finished of {folder.name}")
    if gone := [run.name for run in members if run.meta().get("discarded")]:
        what = f"{folder.name} kept the best checkpoints only: that of {gone[0]} is gone"
        raise UsageError(what, "train without --keep best, or evaluate the best alone")
    return [run.best for run in members]


def _load(
    path: Path, overrides: Sequence[str], flags: Sequence[Flag]
) -> tuple["Checkpoint", Config]:
    """A checkpoint, and its config with what may be set anew: its device, its data, its file.

    Raises:
        CheckpointError: it is missing, damaged or no checkpoint.
        ConfigError: a value is not valid.
        UsageError: something else is set, or the images of the new data are of another shape; or
            the code of its model may not be run.
    """
    for text in overrides:
        key = configs.full_key(text.partition("=")[0])
        if "=" in text and key not in ("data", "train.device") and not key.startswith("data."):
            raise UsageError(
                f"{key}: a checkpoint's own", "only data.* and train.device can change"
            )
    from mnist_cli.data.dataset import form
    from mnist_cli.runs import checkpoint as checkpoints
    from mnist_cli.runs.evaluate import AS_SEEN

    state = checkpoints.load(path)
    own = configs.load_saved(state.config, str(path))
    settings = configs.load_saved(state.config, str(path), overrides, flags)
    had, _ = state.form
    # What a user's own data has is seen when it is read.
    has, _ = state.form if isinstance(settings.data, OwnData) else form(settings.data)
    if had != has:
        raise UsageError(
            f"data.name: the images of {settings.data.name} are {'x'.join(map(str, has))}, "
            f"but {path} is for those of {own.data.name}, {'x'.join(map(str, had))}",
            "choose a data set whose images have the same shape",
        )
    if settings.data.model_dump(exclude=AS_SEEN) != own.data.model_dump(exclude=AS_SEEN):
        screen.console(stderr=True).print(
            "note: not the split it was trained with, so it may have been trained on these images"
        )
    named = any(flag.flag == "--model" for flag in flags)
    own_models.use(own.model, settings.model, named, screen.console(stderr=True).print)
    return state, settings
