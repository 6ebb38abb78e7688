"""`mnist bench`."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from mnist_cli.cli.options import Json
from mnist_cli.cli.screen import console, human_console, print_json
from mnist_cli.errors import UsageError

BUSY = 0.3  # cores that other work may have before it is worth a note


def bench(
    only: Annotated[
        str | None,
        typer.Option("--only", metavar="LIST", help="Which to measure: E1,E5 or mlp,cnn [all]."),
    ] = None,
    grid: Annotated[
        bool,
        typer.Option("--grid", help="Stacks against the same runs one by one, over many shapes."),
    ] = False,
    rounds: Annotated[
        int, typer.Option("--rounds", metavar="N", min=1, help="How often all is measured.")
    ] = 5,
    device: Annotated[
        str, typer.Option("--device", metavar="D", help="auto, cpu, cuda, cuda:N")
    ] = "auto",
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE", help="Draw the costs into this PNG [not drawn]."),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="One short round, to see that it works.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Measure what a training step costs on this machine; it takes two to three minutes.

    The loop that tutorials write, `mnist` with one run and with stacks of them, and the limit: the
    matrix products and the optimizer's arithmetic of the same step, and nothing else. On generated
    images, so no data is needed.
    """
    if grid and (only or plot):
        raise UsageError(f"--grid goes without {'--only' if only else '--plot'}")
    if plot and (plot.is_dir() or not plot.absolute().parent.is_dir()):
        raise UsageError(f"--plot: {plot} cannot be written", "give a file in a folder that exists")

    from mnist_cli.engine.device import resolve_device
    from mnist_cli.sweeps import bench as benches

    works = benches.chosen(only)
    where = resolve_device(device)
    options: dict[str, Any] = {"rounds": 1 if quick else rounds}
    if quick:
        options |= {"window": 0.01, "images": 2048}
    if quick and grid:
        options |= {"batches": (64,), "counts": (2, 4)}
    human = human_console(as_json)
    with _progress(console(stderr=True)) as progress:
        if grid:
            found = benches.grid(where, progress, **options)
        else:
            found = benches.bench(works, where, progress, **options)
    (_tell_grid if grid else _tell_works)(human, found)
    _tell_machine(human, found["machine"])
    if plot:
        from mnist_cli.report import plots

        plots.costs(plot, found)
        human.print(f"drawn: {plot}")
    if as_json:
        print_json(found)


@contextmanager
def _progress(where: Console) -> Iterator[Callable[[int, int, str], None]]:
    """A bar at the foot of a terminal; nothing elsewhere."""
    bar = Progress(
        BarColumn(bar_width=24),
        TextColumn("{task.completed}/{task.total}"),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.description}"),
        console=where,
        transient=True,
        disable=not where.is_terminal,
        auto_refresh=False,  # nothing else may run while something is measured
    )
    task = bar.add_task("", visible=False)  # until it knows how far it is to go

    def progress(done: int, total: int, following: str) -> None:
        bar.update(
            task, completed=done, total=total, description=following, visible=True, refresh=True
        )

    with bar:
        yield progress


def _tell_works(human: Console, found: Mapping[str, Any]) -> None:
    from mnist_cli.report import tables

    for work in found["works"]:
        made = tables.table(
            "variant",
            "processes x threads",
            ">µs per step",
            ">per run",
            ">middle half",
            ">times as fast",
            ">limit, µs",
            ">of it reached",
        )
        for variant in work["variants"]:
            run, limit = variant["run_us"], variant["limit_us"]
            made.add_row(
                variant["name"],
                _dealt(variant),
                _number(variant["step_us"]["median"]),
                _number(run["median"]),
                f"{_number(run['low'])} to {_number(run['high'])}",
                f"{variant['speedup']:.1f}",
                _number(limit["median"]) if limit else "-",
                tables.percent(variant["limit_share"], 0),
            )
        human.print(
            f"{work['experiment']} {work['name']}: {work['about']}, batch {work['batch_size']}, "
            f"{work['optimizer']}"
        )
        human.print(made)


def _tell_grid(human: Console, found: Mapping[str, Any]) -> None:
    from mnist_cli.report import tables

    made = tables.table(
        "model",
        ">batch",
        ">runs",
        "processes x threads",
        ">µs one by one",
        ">µs together",
        ">ratio",
        ">middle half",
    )
    for cell in found["cells"]:
        ratio = cell["ratio"]
        made.add_row(
            cell["model"],
            str(cell["batch_size"]),
            str(cell["runs"]),
            _dealt(cell),
            _number(cell["alone_us"]["median"]),
            _number(cell["together_us"]["median"]),
            f"{ratio['median']:.3f}",
            f"{ratio['low']:.3f} to {ratio['high']:.3f}",
            style=None if ratio["median"] < 1 else "bold red",
        )
    human.print(made)
    human.print(f"together is faster in {found['below_one']} of {len(found['cells'])} cells")


def _tell_machine(human: Console, machine: Mapping[str, Any]) -> None:
    from mnist_cli.report import tables

    human.print(
        f"measured on {machine['cpu']}, {tables.counted(machine['cores'], 'core')}, "
        f"device {machine['device']}, torch {machine['torch']} "
        f"({tables.counted(machine['threads'], 'thread')} by default), Python {machine['python']}"
    )
    if (machine["load"] or 0) > BUSY:
        human.print(
            f"note: other work had {machine['load']:.1f} cores in the minute before, and may have "
            "slowed this"
        )


def _dealt(variant: Mapping[str, Any]) -> str:
    """Who computes: `2 x 1, 8 parts`."""
    parts, processes = len(variant["parts"]), variant["processes"]
    in_turn = f", {parts} parts" if parts > processes else ""
    return f"{processes} x {variant['threads']}{in_turn}"


def _number(microseconds: float) -> str:
    return f"{microseconds:,.{0 if microseconds >= 1000 else 1}f}"
