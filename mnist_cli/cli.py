"""The command line: parse, call one function, print.

Results go to stdout, everything on the way to stderr; with `--json` stdout holds one JSON document
and nothing else. torch is imported by the commands that need it, so that help and errors come at
once.
"""

import json
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer
from rich.console import Console

from mnist_cli import __version__, store
from mnist_cli import config as configs
from mnist_cli.config import Config, ConfigError, Flag, Loaded
from mnist_cli.errors import CheckpointError, MnistError, RunError, SweepError, UsageError

if TYPE_CHECKING:
    from mnist_cli import pictures
    from mnist_cli.run import Datasets, Run
    from mnist_cli.sweep import Sweep

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help comes in half the time
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Train small image classifiers from a YAML config, sweep settings, evaluate the best.",
    epilog="--debug, anywhere on the command line, shows the traceback of an error.",
)
runs_app = typer.Typer(
    rich_markup_mode=None, no_args_is_help=True, help="Look at the runs there are."
)
config_app = typer.Typer(
    rich_markup_mode=None, no_args_is_help=True, help="Look at configs, check and copy them."
)
data_app = typer.Typer(
    rich_markup_mode=None, no_args_is_help=True, help="Fetch data sets, verify and look at them."
)
app.add_typer(runs_app, name="runs")
app.add_typer(config_app, name="config")
app.add_typer(data_app, name="data")

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
CheckpointOption = Annotated[
    Path, typer.Option("--checkpoint", metavar="FILE", help="A best.pt or last.pt.")
]
SplitName = Literal["train", "val", "test"]


def main() -> NoReturn:
    """The command `mnist`."""
    sys.exit(run_command(sys.argv[1:]))


def run_command(argv: Sequence[str]) -> int:
    """Runs one command line; every way it can end becomes an exit code and a sentence.

    Returns:
        The exit code.
    """
    debug = "--debug" in argv
    signal.signal(signal.SIGTERM, _terminate)
    try:
        code = app(
            [argument for argument in argv if argument != "--debug"],
            prog_name="mnist",
            standalone_mode=False,
        )
    except (MnistError, typer.TyperException) as error:
        if debug:
            traceback.print_exc()
        return _say_error(error)
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 1
    except BrokenPipeError:
        sys.stdout = None  # whoever read it has gone, and Python would complain when it flushes
        return 1
    except Exception as error:  # noqa: BLE001 - the last line of defence against a traceback
        if debug:
            traceback.print_exc()
        print(f"error: {type(error).__name__}: {error}", file=sys.stderr)
        print("hint: this should not happen; --debug shows where it did", file=sys.stderr)
        return 1
    return code if isinstance(code, int) else 0


def _say_error(error: MnistError | typer.TyperException) -> int:
    """Prints an error as a user sees it; returns its exit code."""
    if isinstance(error, typer.TyperException):
        error = UsageError(
            error.format_message(), "`mnist --help` and `mnist COMMAND --help` tell more"
        )
    # The problems of a config each come with their place, so each stands as it is.
    prefix = "" if isinstance(error, ConfigError) else "error: "
    print(prefix + error.message, file=sys.stderr)
    if error.hint:
        print(f"hint: {error.hint}", file=sys.stderr)
    return error.exit_code


def _terminate(signum: int, _frame: object) -> NoReturn:
    """SIGTERM ends a command as Ctrl-C does: what was finished is saved, and the folder says so."""
    raise SystemExit(128 + signum)


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


# ------------------------------------------------------------------------ train, sweep, eval


@app.command()
def train(
    overrides: Overrides = None,
    config: ConfigOption = None,
    lr: Lr = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    seed: Seed = None,
    seeds: Seeds = None,
    device: Device = None,
    name: Name = None,
    runs_dir: RunsDir = None,
    as_json: Json = False,
) -> None:
    """Train one run: what the config says, without its sweep; or the same with several seeds."""
    flags = _flags(lr=lr, epochs=epochs, batch_size=batch_size, seed=seed, device=device, name=name)
    axes = [Flag("--seeds", "train.seed", seeds)] if seeds is not None else []
    loaded = configs.load(config, overrides or (), flags, axes)
    swept = {"train.seed": loaded.config.sweep["train.seed"]} if axes else {}
    chosen = loaded.config.model_copy(update={"sweep": swept})
    human = _human(as_json)
    _tell_origin(loaded)

    from mnist_cli import report
    from mnist_cli.display import Display
    from mnist_cli.executors import Failed, InProcess
    from mnist_cli.run import Datasets, Run
    from mnist_cli.sweep import Sweep

    datasets = Datasets(_console(stderr=True).print)
    datasets.get(chosen)  # first of all: a run without its data or device leaves no folder
    root, name = store.runs_root(runs_dir), chosen.name or "run"
    if swept:
        _run_sweep(Sweep(chosen, root, f"{name}-seeds", test=False), datasets, human, as_json)
        return
    run = Run(chosen, store.create(root, name))
    human.print(f"{run.folder.name}: {report.experiment(chosen)}")
    display = Display(_console(stderr=True), {})
    try:
        with display.live(), closing(InProcess(datasets).run([[run]])) as events:
            for event in events:
                display.show(event)
                if isinstance(event, Failed):
                    raise RunError(f"{run.folder.name} failed: {event.error}") from event.error
    except (KeyboardInterrupt, SystemExit) as interruption:
        _end_interrupted(interruption, run.folder, f"{len(run.records)} finished epochs are saved")
    _draw(run.folder)
    _show_reference(human, chosen, [run])
    if run.best:
        human.print(
            f"best: epoch {run.best['epoch']}, val acc {report.percent(run.best['val/acc'])}, "
            f"val loss {report.loss(run.best['val/loss'])}, "
            f"{report.duration(run.seconds)} in all"
        )
        _tell_checkpoint(human, run.folder.best)
    if as_json:
        _print_json(run.summary())
    if run.status == "diverged":
        raise RunError(
            f"{run.folder.name} diverged: its loss is no longer finite in epoch {len(run.records)}",
            "try a lower learning rate: --lr",
        )


@app.command()
def sweep(
    overrides: Overrides = None,
    config: ConfigOption = None,
    lrs: Annotated[
        str | None,
        typer.Option("--lrs", metavar="LIST", help="Learning rates: 1e-1,1e-2 or log:1e-4:1e-1:7."),
    ] = None,
    seeds: Seeds = None,
    grid: Annotated[
        list[str] | None,
        typer.Option("--grid", metavar="KEY=LIST", help="Values of any setting; may be repeated."),
    ] = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    device: Device = None,
    name: Name = None,
    runs_dir: RunsDir = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the runs and how they are grouped; run nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Train every combination of the swept settings, rank them, and test the winner once."""
    flags = _flags(epochs=epochs, batch_size=batch_size, device=device, name=name)
    axes = [Flag("--lrs", "optimizer.lr", lrs)] if lrs is not None else []
    axes += [Flag("--seeds", "train.seed", seeds)] if seeds is not None else []
    axes += [Flag("--grid", None, text) for text in grid or ()]
    loaded = configs.load(config, overrides or (), flags, axes)
    for key in loaded.changed:
        if key in loaded.config.sweep:
            raise UsageError(
                f"{key} is set on the command line, but {loaded.origin} sweeps it",
                f"give the values to sweep instead: --grid {key}=...",
            )
    human = _human(as_json)
    _tell_origin(loaded)

    from mnist_cli import report
    from mnist_cli.run import Datasets
    from mnist_cli.sweep import Sweep, expand, group, separators

    trials = expand(loaded.config)
    if dry_run:
        stacks = group(trials)
        why = separators(stacks)
        told = f"{len(trials)} runs in {len(stacks)} stack{'s'[: len(stacks) > 1]}"
        human.print(told + (f"; one stack has one {', one '.join(why)}" if why else ""))
        stack_of = {trial.index: n for n, stack in enumerate(stacks, 1) for trial in stack}
        human.print(report.plan_table(trials, stack_of))
        if as_json:
            rows = [{"stack": stack_of[trial.index], **trial.settings} for trial in trials]
            _print_json({"runs": rows, "separated_by": why})
        return
    datasets = Datasets(_console(stderr=True).print)
    datasets.get(trials[0].config)
    folder = f"{loaded.config.name or 'run'}-sweep"
    swept = Sweep(loaded.config, store.runs_root(runs_dir), folder)
    _run_sweep(swept, datasets, human, as_json)


@app.command("eval")
def evaluate(
    overrides: Overrides = None,
    checkpoint: CheckpointOption = Path("best.pt"),
    split: Annotated[SplitName, typer.Option("--split", help="Which images.")] = "test",
    device: Device = None,
    runs_dir: RunsDir = None,
    as_json: Json = False,
) -> None:
    """Measure a checkpoint. It knows its own config; data.* and train.device may be set anew.

    A bare file name that is not here is that file of the newest run or sweep.
    """
    human = _human(as_json)
    path = _find_checkpoint(checkpoint, store.runs_root(runs_dir), human)

    from mnist_cli import checkpoint as checkpoints
    from mnist_cli import report
    from mnist_cli.run import Datasets, measure

    state = checkpoints.load(path)
    settings = _checkpoint_config(state.config, path, overrides or (), _flags(device=device))
    loss, accuracy, count = measure(state, settings, split, Datasets(_console(stderr=True).print))
    data = settings.data
    human.print(
        f"{split} accuracy {report.percent(accuracy)}, loss {report.loss(loss)} "
        f"({count:,} images, {data.name} {data.split} split)"
    )
    if as_json:
        _print_json(
            {
                "checkpoint": str(path),
                "data": data.name,
                "split": split,
                "n": count,
                "loss": loss,
                "acc": accuracy,
            }
        )


@app.command()
def predict(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Picture files.")],
    checkpoint: CheckpointOption = Path("best.pt"),
    device: Device = None,
    runs_dir: RunsDir = None,
    as_json: Json = False,
) -> None:
    """Say what a checkpoint takes your own pictures for.

    They may be of any size, photographed, scanned or drawn, dark on light or light on dark. If one
    cannot be read the others are predicted all the same, and the exit code is 2.
    """
    human = _human(as_json)
    path = _find_checkpoint(checkpoint, store.runs_root(runs_dir), human)

    import numpy as np

    from mnist_cli import checkpoint as checkpoints
    from mnist_cli import report
    from mnist_cli.data.dataset import form
    from mnist_cli.run import predict

    state = checkpoints.load(path)
    settings = _checkpoint_config(state.config, path, (), _flags(device=device))
    shape, _ = form(settings.data)
    prepared = [_prepared(image, settings.data.name, shape) for image in images]
    read = [pixels for pixels in prepared if not isinstance(pixels, UsageError)]
    found = iter(predict(state, settings, np.stack(read)) if read else ())
    rows: list[dict[str, Any]] = []
    for image, pixels in zip(images, prepared, strict=True):
        if isinstance(pixels, UsageError):
            _say_error(pixels)
            rows.append({"image": str(image), "error": pixels.message})
            continue
        probabilities = next(found)
        human.print(report.prediction(str(image), probabilities))
        top = max(probabilities, key=probabilities.__getitem__)
        rows.append(
            {
                "image": str(image),
                "class": top,
                "probability": probabilities[top],
                "probabilities": probabilities,
            }
        )
    if as_json:
        _print_json(rows)
    if len(read) < len(images):
        raise typer.Exit(UsageError.exit_code)


@app.command("import")
def import_weights(
    weights: Annotated[
        Path,
        typer.Argument(
            metavar="WEIGHTS",
            help="A pickled dict of NumPy arrays, .npz, .safetensors, or a torch state dict.",
        ),
    ],
    overrides: Overrides = None,
    config: ConfigOption = None,
    runs_dir: RunsDir = None,
    as_json: Json = False,
) -> None:
    """Make weights trained elsewhere a checkpoint of the config's model; no code of them runs.

    Their names and shapes are the model's own; or W1 b1 W2 b2 ..., W of shape (inputs, outputs),
    for a network of linear layers. If they want pixels of 0..255, add data.normalize=false.
    """
    loaded = configs.load(config, overrides or ())
    human = _human(as_json)
    _tell_origin(loaded)

    from mnist_cli import foreign

    found = foreign.read(weights)
    folder, rounded = foreign.adopt(found, loaded.config, store.runs_root(runs_dir))
    told = f"{weights} ({found.format}, {len(found.tensors)} arrays)"
    human.print(f"{folder.name}: the {loaded.config.model.name} of {told}")
    if rounded:
        human.print(f"note: they were rounded to {loaded.config.train.precision}")
    _tell_checkpoint(human, folder.best)
    if as_json:
        _print_json(folder.summary())


# -------------------------------------------------------------------------------------- runs


@runs_app.command("list")
def runs_list(runs_dir: RunsDir = None, as_json: Json = False) -> None:
    """Every run and sweep in the runs directory, newest last."""
    from mnist_cli import report

    root = store.runs_root(runs_dir)
    found = [(run, run.meta(), run.summary()) for run in store.all_runs(root)]
    if as_json:
        _print_json([{"status": meta.get("status"), **summary} for _, meta, summary in found])
    elif found:
        _console().print(report.runs_table(found))
    else:
        _console().print(f"no runs in {root} yet; `mnist train` makes one")


@runs_app.command("show")
def runs_show(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Its name, or its folder.")],
    runs_dir: RunsDir = None,
    as_json: Json = False,
) -> None:
    """One run or sweep: what it was asked, where it ran, and what was measured."""
    from mnist_cli import report

    folder = store.find(store.runs_root(runs_dir), run)
    if as_json:
        metrics = folder.metrics()
        _print_json({"meta": folder.meta(), "summary": folder.summary(), "metrics": metrics})
        return
    for part in report.run_page(folder):
        _console().print(part)


@app.command()
def plot(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run or sweep: name or folder.")],
    split: Annotated[
        SplitName, typer.Option("--split", help="Whose images to show mistakes of.")
    ] = "val",
    runs_dir: RunsDir = None,
) -> None:
    """Draw all pictures of a run or sweep anew: curves, and its best checkpoint's mistakes."""
    folder = store.find(store.runs_root(runs_dir), run)

    from mnist_cli import checkpoint as checkpoints
    from mnist_cli import plots
    from mnist_cli.run import Datasets, classify

    drawn = plots.draw(folder)
    if folder.best.exists():
        state = checkpoints.load(folder.best)
        settings = configs.load_saved(state.config, str(folder.best))
        seen = classify(state, settings, split, Datasets(_console(stderr=True).print))
        title = f"{folder.name}, epoch {state.epoch}, {split} images of {settings.data.name}"
        drawn += plots.mistaken(folder.plots, title, split, seen)
    for path in drawn:
        print(path)


# ------------------------------------------------------------------------------------ config


@config_app.command("list")
def config_list(as_json: Json = False) -> None:
    """The configs that come with mnist."""
    from mnist_cli import report

    presets = configs.presets()
    if as_json:
        rows = [
            {"name": p.name, "path": str(p.path), "description": p.description} for p in presets
        ]
        _print_json(rows)
        return
    listing = report.table("name", "what it is")
    for preset in presets:
        listing.add_row(preset.name, preset.description)
    _console().print(listing)


@config_app.command("show")
def config_show(overrides: Overrides = None, config: ConfigOption = None) -> None:
    """The whole config with every default filled in: itself a config that means the same."""
    print(configs.dump(configs.load(config, overrides or ()).config), end="")


@config_app.command("check")
def config_check(
    files: Annotated[list[str], typer.Argument(metavar="FILE|NAME...", help="Configs to check.")],
) -> None:
    """Say of each config what is wrong with it, all at once."""
    broken = 0
    for file in files:
        try:
            configs.load(file)
            print(f"{file}: ok")
        except MnistError as error:
            broken += 1
            _say_error(error)
    if broken:
        raise UsageError(f"{broken} of {len(files)} configs cannot be used")


@config_app.command("schema")
def config_schema() -> None:
    """The JSON Schema of a config, for editors."""
    _print_json(configs.json_schema())


@config_app.command("copy")
def config_copy(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A config that comes with mnist.")],
    target: Annotated[
        Path | None,
        typer.Argument(metavar="[FILE]", help="Where to; NAME.yaml here, if not given."),
    ] = None,
) -> None:
    """Copy a shipped config, to be changed."""
    preset = configs.find_preset(name)
    path = target or Path(preset.path.name)
    if path.is_dir():
        path /= preset.path.name
    try:
        with path.open("xb") as file:  # never over a file that is there
            file.write(preset.path.read_bytes())
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}", "give another place to copy to") from error
    print(f"{path}: a copy of {preset.name}; train it with: mnist train --config {path}")


# -------------------------------------------------------------------------------------- data

DataName = Annotated[str, typer.Argument(metavar="NAME", help="A data set: `mnist data list`.")]


@data_app.command("list")
def data_list(as_json: Json = False) -> None:
    """The data sets, and which of them are ready."""
    from mnist_cli import report
    from mnist_cli.data.catalog import DATASETS
    from mnist_cli.data.prepared import data_dir, find

    rows: list[dict[str, Any]] = [
        {
            "name": name,
            "title": spec.title,
            "train": spec.train,
            "test": spec.test,
            "path": str(path) if (path := find(name)) else None,
        }
        for name, spec in DATASETS.items()
    ]
    if as_json:
        _print_json(rows)
        return
    listing = report.table("name", "what it is", ">train", ">test", "ready")
    for row in rows:
        counts = (f"{row['train']:,}", f"{row['test']:,}")
        listing.add_row(row["name"], row["title"], *counts, row["path"] or "not fetched")
    listing.add_row("synthetic", "smooth shapes under noise, from a seed", "", "", "always")
    _console().print(listing)
    _console().print(f"data directory: {data_dir()}")


@data_app.command("fetch")
def data_fetch(
    name: DataName,
    source: Annotated[
        Path | None, typer.Option("--from", metavar="DIR", help="A folder with the files you have.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Fetch even what is there.")] = False,
) -> None:
    """Fetch a data set, check every byte of it and make it ready."""
    from mnist_cli.data.prepared import fetch

    _known_data(name)
    path = fetch(name, source_dir=source, force=force, report=_console(stderr=True).print)
    print(f"{name}: ready and verified: {path}")


@data_app.command("verify")
def data_verify(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]...", help="Which; all there are, if not given."),
    ] = None,
) -> None:
    """Check the data that is there against its pinned sums, byte for byte."""
    from mnist_cli.data.catalog import DATASETS
    from mnist_cli.data.prepared import find, verify

    for name in names or ():
        _known_data(name)
    chosen = names or [name for name in DATASETS if find(name)]
    for name in chosen:
        verify(name)
        print(f"{name}: verified")
    if not chosen:
        print("no data is there yet; `mnist data fetch mnist` gets some")


@data_app.command("show")
def data_show(
    overrides: Overrides = None,
    config: ConfigOption = None,
    split: Annotated[SplitName, typer.Option("--split", help="Which images.")] = "train",
    count: Annotated[int, typer.Option("-n", min=1, max=50, help="How many.")] = 5,
    output: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="The PNG.")] = None,
) -> None:
    """Draw the first images of a split in a row, each with its label."""
    settings = configs.load(config, overrides or ()).config

    from mnist_cli import plots, report
    from mnist_cli.data.prepared import data_dir
    from mnist_cli.run import Datasets

    data = Datasets(_console(stderr=True).print).get(settings)
    images = data.split(split)
    count = min(count, len(images))
    pixels = images.images[:count].cpu().numpy()
    labels = [data.classes[label] for label in images.labels[:count].tolist()]
    title = f"{data.name}, {settings.data.split} split: first {split} images"
    path = output or data_dir() / "pictures" / f"{data.name}-{settings.data.split}-{split}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    plots.image_row(path, title, pixels, labels)
    console = _console()
    if console.is_terminal and not console.no_color:
        console.print(report.image_row(pixels, labels, console.width))
    print(f"{title}: {' '.join(labels)}")
    print(path)


# ----------------------------------------------------------------------------------- helpers


class _Console(Console):
    """A console that leaves the lines of plain text whole; tables keep to its width."""

    def print(self, *objects: Any, **options: Any) -> None:
        lines = all(isinstance(each, str) for each in objects)
        super().print(*objects, **{"soft_wrap": lines, **options})


def _console(stderr: bool = False) -> Console:
    """A console on the streams as they are now; what it prints is never read as markup."""
    stream = sys.stderr if stderr else sys.stdout
    # rich would take 80 columns for a file or a pipe; tables may have more there.
    width = None if stream.isatty() or "COLUMNS" in os.environ else 120
    return _Console(file=stream, width=width, highlight=False, markup=False, emoji=False)


def _human(as_json: bool) -> Console:
    """Where results for people go: stdout, unless programs read there."""
    return _console(stderr=as_json)


def _print_json(value: Any) -> None:
    print(json.dumps(store.finite(value), indent=2))


def _flags(**given: str | None) -> list[Flag]:
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
        for flag, text in given.items()
        if text is not None
    ]


def _tell_origin(loaded: Loaded) -> None:
    human = _console(stderr=True)
    if loaded.is_preset:
        human.print(f"config: the shipped {loaded.origin}")
    if loaded.reference_dropped_by:
        keys = loaded.reference_dropped_by
        # Another optimizer has other settings: its name says it.
        named = {key.removesuffix(".name") for key in keys if key.endswith(".name")}
        told = [key for key in keys if key.endswith(".name") or key.split(".")[0] not in named]
        human.print(f"published figures are of another experiment, by {', '.join(told)}: not shown")
    if loaded.config.data.split == "official":
        human.print("note: the test set validates (data.split: official), so selection sees it")


def _run_sweep(swept: "Sweep", datasets: "Datasets", human: Console, as_json: bool) -> None:
    """Trains a sweep and tells what came of it, whatever came of it."""
    from mnist_cli import report
    from mnist_cli.display import Display
    from mnist_cli.executors import InProcess

    human.print(
        f"{swept.folder.name}: {len(swept.runs)} runs in {len(swept.stacks)} "
        f"stack{'s'[: len(swept.stacks) > 1]}: {report.experiment(swept.config)}"
    )
    labels = {
        run.folder.name: trial.settings for run, trial in zip(swept.runs, swept.trials, strict=True)
    }
    display = Display(_console(stderr=True), labels)
    try:
        with display.live(), closing(swept.run(InProcess(datasets), datasets)) as events:
            for event in events:
                display.show(event)
    except (KeyboardInterrupt, SystemExit) as interruption:
        done = sum(run.status == "finished" for run in swept.runs)
        told = f"{done} of {len(swept.runs)} runs are finished, finished epochs of the others saved"
        _end_interrupted(interruption, swept.folder, told)
    _draw(swept.folder)
    summary = swept.summary()
    for part in report.ranking(summary, swept.config.train.select):
        human.print(part)
    _show_reference(human, swept.config, swept.runs, swept.test)
    if swept.winner:
        human.print(f"{report.duration(summary['seconds'])} in all")
        _tell_checkpoint(human, swept.folder.best)
    if as_json:
        _print_json(summary)
    _exit_of_sweep(swept)


def _show_reference(
    human: Console, config: Config, runs: Sequence["Run"], best: dict[str, float] | None = None
) -> None:
    from mnist_cli import report

    if config.reference is None:
        return
    measured = [(dict(run.config.settings()), run.figures) for run in runs]
    listing = report.reference_table(config.reference, measured, best or {})
    if listing:
        human.print(f"published: {config.reference.source}")
        human.print(listing)


def _tell_checkpoint(human: Console, path: Path) -> None:
    human.print(f"best checkpoint: {path}")
    human.print(f"to evaluate it:  mnist eval --checkpoint {path}")


def _draw(folder: store.RunDirectory) -> None:
    """Draws the pictures of a finished run; what was trained is not lost if they cannot be."""
    from mnist_cli import plots

    try:
        plots.draw(folder)
    except OSError as error:
        print(f"warning: the pictures could not be drawn: {error}", file=sys.stderr)


def _exit_of_sweep(swept: "Sweep") -> None:
    failed = [run.folder.name for run in swept.runs if run.status == "failed"]
    if failed:
        raise SweepError(
            f"{len(failed)} of {len(swept.runs)} runs failed: {', '.join(failed)}",
            "the meta.json of each says why",
        )
    if swept.status == "diverged":
        raise RunError("every run diverged", "try lower learning rates: --lrs")


def _end_interrupted(
    interruption: BaseException, folder: store.RunDirectory, told: str
) -> NoReturn:
    print(f"interrupted: {told} in {folder.path}", file=sys.stderr)
    print(f"hint: look at it with: mnist runs show {folder.path}", file=sys.stderr)
    code = interruption.code if isinstance(interruption, SystemExit) else 130
    raise typer.Exit(code if isinstance(code, int) else 130) from None


def _find_checkpoint(path: Path, root: Path, human: Console) -> Path:
    """That file; or if it is not there and is a bare name, that file of the newest run."""
    if path.exists() or path.is_symlink():
        return path
    if path.name == str(path) and (newest := store.newest_checkpoint(root, path.name)):
        human.print(f"{path} is not here; taking the newest: {newest}")
        return newest
    hint = "`mnist runs list` shows the runs there are"
    raise CheckpointError(f"{path}: there is no such file", hint)


def _checkpoint_config(
    saved: dict[str, Any], path: Path, overrides: Sequence[str], flags: Sequence[Flag]
) -> Config:
    """The config of a checkpoint with what may be set anew: its device and its data.

    Raises:
        ConfigError: a value is not valid.
        UsageError: something else is set, or the images of the new data are of another shape.
    """
    for text in overrides:
        key = text.partition("=")[0]
        if "=" in text and not key.startswith(("data.", "train.device")):
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
    return settings


def _prepared(image: Path, data: str, shape: tuple[int, int, int]) -> "pictures.Bytes | UsageError":
    """A picture as an image of a data set, or why it cannot be one."""
    from mnist_cli import pictures

    try:
        return pictures.prepare(image, data, shape)
    except UsageError as error:
        return error


def _known_data(name: str) -> None:
    from mnist_cli.data.catalog import DATASETS

    if name not in DATASETS:
        raise UsageError(f"no data set {name!r}", f"there are: {', '.join(DATASETS)}")
