"""`mnist config`."""

from pathlib import Path
from typing import Annotated

import typer

from mnist_cli import config as configs
from mnist_cli.cli.options import ConfigOption, Json, Overrides
from mnist_cli.cli.screen import console, human_console, print_error, print_json, print_result
from mnist_cli.config.presets import SCHEMA_LINE, description, find_preset, presets
from mnist_cli.data import durable
from mnist_cli.errors import MnistError, UsageError
from mnist_cli.report import schemas

app = typer.Typer(rich_markup_mode=None, no_args_is_help=True, help="Show, check, copy configs.")


@app.command("list")
def config_list(as_json: Json = False) -> None:
    """List the configs that come with mnist."""
    from mnist_cli.report import tables

    known = presets().items()
    if as_json:
        print_json([{"name": n, "path": str(p), "description": description(p)} for n, p in known])
        return
    console().print(tables.table([{"name": n, "what it is": description(p)} for n, p in known]))


@app.command("show")
def config_show(
    overrides: Overrides = None, config: ConfigOption = None, as_json: Json = False
) -> None:
    """Show a config with every default filled in."""
    shown = configs.load(config, overrides or ()).config
    if as_json:
        print_json(shown.resolved())
    else:
        print(configs.dump(shown), end="")


@app.command("check")
def config_check(
    files: Annotated[list[str], typer.Argument(metavar="FILE|NAME...", help="Configs to check.")],
    as_json: Json = False,
) -> None:
    """Say all that is wrong with each config."""
    rows: list[dict[str, str | None]] = []
    for file in files:
        rows.append({"config": file, "error": None})
        try:
            configs.load(file)
            human_console(as_json).print(f"{file}: ok")
        except MnistError as error:
            print_error(error)
            rows[-1]["error"] = error.message
    if as_json:
        print_json(rows)
    if broken := sum(row["error"] is not None for row in rows):
        raise UsageError(f"{broken} of {len(files)} configs cannot be used")


@app.command("schema")
def config_schema(
    document: Annotated[
        str,
        typer.Option("--for", metavar="WHAT", help="A command with --json, or error [config]."),
    ] = "config",
    as_json: Json = False,  # noqa: ARG001 - it is JSON anyway
) -> None:
    """Print the JSON Schema of a config, or of what --json prints."""
    if document == "config":
        print_json(configs.json_schema())
    elif document in schemas.PRINTED:
        print_json(schemas.json_schema(document))
    else:
        there_are = ", ".join(("config", *schemas.PRINTED))
        raise UsageError(f"--for {document}: no schema of it", f"there are: {there_are}")


@app.command("copy")
def config_copy(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A config that comes with mnist.")],
    target: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="Where to [NAME.yaml here].")
    ] = None,
    as_json: Json = False,
) -> None:
    """Copy a shipped config, to be changed."""
    preset = find_preset(name)
    path = target or Path()
    path = path / preset.name if path.is_dir() else path
    # Its first line refers to a schema that is beside it, and will not be beside the copy.
    text = preset.read_text("utf-8").removeprefix(SCHEMA_LINE)
    elsewhere = "give another place to copy to"
    if path.exists():
        raise UsageError(f"{path}: File exists", elsewhere)
    try:
        durable.replace(path, text.encode())
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}", elsewhere) from error
    said = f"{path}: a copy of {preset.stem}; train it with: mnist train --config {path}"
    print_result(as_json, {"path": str(path.absolute())}, said)
