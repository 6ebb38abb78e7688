"""`mnist data`."""

from pathlib import Path
from typing import Annotated

import typer

from mnist_cli import config as configs
from mnist_cli.cli import options as opt
from mnist_cli.cli.screen import check_picture, console, human_console, print_json, print_result
from mnist_cli.data.catalog import DATASETS
from mnist_cli.errors import UsageError
from mnist_cli.runs import interrupts

app = typer.Typer(
    rich_markup_mode=None, no_args_is_help=True, help="Fetch data sets, verify and look at them."
)

AUGMENTED = 9  # images drawn beside each

UNPUBLISHED = "as it was when it was fetched (no sum of its unpacked images is published)"

DataName = Annotated[str, typer.Argument(metavar="NAME", help="A data set: `mnist data list`.")]


@app.command("list")
def data_list(as_json: opt.Json = False) -> None:
    """List the data sets, and which of them are ready."""
    from mnist_cli.data.prepared import data_dir, find
    from mnist_cli.report import tables

    rows = [
        (spec.name, spec.title, spec.train, spec.test, str(path) if path else None)
        for spec, path in ((spec, find(spec.name)) for spec in DATASETS.values())
    ]
    if as_json:
        keys = ("name", "title", "train", "test", "path")
        print_json([dict(zip(keys, row, strict=True)) for row in rows])
        return
    listing = [
        (name, title, f"{train:,}", f"{test:,}", path or "not fetched")
        for name, title, train, test, path in rows
    ]
    listing.append(("synthetic", "smooth shapes under noise, from a seed", "", "", "always"))
    listing.append(("folder, npz", "your own: a folder of pictures, a file of arrays", "", "", ""))
    heads = ("name", "what it is", ">train", ">test", "ready")
    least = ("test", "train", "what it is")
    table = tables.table([dict(zip(heads, row, strict=True)) for row in listing], least=least)
    console().print(table)
    console().print(f"data directory: {data_dir()}")


@app.command("fetch")
def data_fetch(
    name: DataName,
    source: Annotated[
        Path | None, typer.Option("--from", metavar="DIR", help="A folder with the files you have.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Fetch even what is there.")] = False,
    as_json: opt.Json = False,
) -> None:
    """Fetch a data set, check every byte of it and make it ready."""
    from mnist_cli.data.prepared import fetch

    _known_data(name)
    interrupts.listen()
    path = fetch(name, source_dir=source, force=force, report=console(stderr=True).print)
    print_result(as_json, {"name": name, "path": str(path.absolute())}, f"{name}: ready: {path}")


@app.command("verify")
def data_verify(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]...", help="Which; all there are, if not given."),
    ] = None,
    as_json: opt.Json = False,
) -> None:
    """Check every byte of the data that is there."""
    from mnist_cli.data.prepared import find, verify

    for name in names or ():
        _known_data(name)
    chosen = names or [name for name in DATASETS if find(name)]
    rows = [{"name": name, "published": verify(name)} for name in chosen]
    lines = [f"{row['name']}: {'verified' if row['published'] else UNPUBLISHED}" for row in rows]
    none = "no data is there yet; `mnist data fetch mnist` gets some"
    print_result(as_json, rows, *(lines or [none]))


@app.command("show")
def data_show(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME] [KEY=VALUE]...", help="A data set, settings of the config."),
    ] = None,
    config: opt.ConfigOption = None,
    path: Annotated[
        str | None, typer.Option("--path", metavar="PATH", help="data.path: of folder and npz.")
    ] = None,
    split: Annotated[opt.SplitName, typer.Option("--split", help="Which images.")] = "train",
    count: Annotated[int, typer.Option("-n", min=1, max=50, help="How many.")] = 5,
    augment: Annotated[
        bool, typer.Option("--augment", help="Beside each, what training sees in its place.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="The PNG [NAME-SPLIT.png].")
    ] = None,
    as_json: opt.Json = False,
) -> None:
    """Draw the first images of a split, each with its label."""
    words = [text if "=" in text else f"data.name={text}" for text in overrides or ()]
    settings = configs.load(config, words, opt.given(path=path)).config
    picture = output or Path(f"{settings.data.name}-{split}.png")
    check_picture(picture)
    if augment and not settings.augment.active:
        raise UsageError(
            "--augment: this config augments nothing", "say how, such as augment.rotate=10"
        )

    import torch

    from mnist_cli.data.augment import preview
    from mnist_cli.data.dataset import load
    from mnist_cli.report import plots, tables

    interrupts.listen()
    data = load(settings.data, torch.device("cpu"), console(stderr=True).print)
    images = data.split(split)
    pixels = images.images[:count].numpy()
    labels = [data.classes[label] for label in images.labels[:count].tolist()]
    title = f"{data.name}, {settings.data.split} split: first {split} images"
    if augment:
        first = images.images[:count]
        grid = preview(settings.augment, first, settings.train.seed, AUGMENTED)
        captions = [text for label in labels for text in (label, *[""] * AUGMENTED)]
        plots.image_grid(picture, title, grid.flatten(0, 1).numpy(), captions, 1 + AUGMENTED)
    else:
        plots.image_grid(picture, title, pixels, labels)
    terminal = human_console(as_json)
    if terminal.is_terminal and not terminal.no_color:
        terminal.print(tables.image_row(pixels, labels, terminal.width))
    document = {"path": str(picture.absolute()), "split": split, "labels": labels}
    print_result(as_json, document, f"{title}: {' '.join(labels)}", str(picture))


def _known_data(name: str) -> None:
    if name not in DATASETS:
        raise UsageError(f"no data set {name!r}", f"there are: {', '.join(DATASETS)}")
