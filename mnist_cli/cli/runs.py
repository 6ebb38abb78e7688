"""`mnist runs` and `mnist plot`: looking at what was trained."""

import shlex
from typing import Annotated

import typer
from typer import Option

from mnist_cli import config as configs
from mnist_cli.cli.options import Json, RunArgument, RunsDir, SplitName
from mnist_cli.cli.screen import checkpoint_lines, console, find_run, print_json
from mnist_cli.runs import interrupts, store

app = typer.Typer(rich_markup_mode=None, no_args_is_help=True, help="Look at the runs there are.")


@app.command("list")
def runs_list(runs_dir: RunsDir = None, as_json: Json = False) -> None:
    """Every run and sweep in the runs directory, newest last."""
    from mnist_cli.report import tables

    root = store.runs_root(runs_dir)
    # The status first: a run that has ended by then has its summary.
    found = [(run, run.status(), run.meta(), run.summary()) for run in store.all_runs(root)]
    if as_json:
        rows = [
            {"name": run.name, "path": str(run.path), **summary, "status": status}
            for run, status, _, summary in found
        ]
        print_json(rows)
    elif found:
        console().print(tables.runs_table(found))
    else:
        console().print(f"no runs in {root} yet; `mnist train` makes one")


@app.command("show")
def runs_show(run: RunArgument = None, runs_dir: RunsDir = None, as_json: Json = False) -> None:
    """One run or sweep: what it was asked, where it ran, and what was measured."""
    from mnist_cli.report import tables

    folder = find_run(run, runs_dir)
    status, summary = folder.status(), folder.summary()  # in this order, as in the list
    if as_json:
        print_json({"meta": folder.meta(), "summary": summary, "metrics": folder.metrics()})
        return
    for part in tables.run_page(folder, status, summary):
        console().print(part)
    if summary.get("checkpoint"):
        print("\n".join(checkpoint_lines(summary["checkpoint"])))
    if status in ("dead", "interrupted"):
        owner = folder.owner
        known = runs_dir is None and owner.path == store.runs_root(None) / owner.name
        name = shlex.quote(owner.name if known else str(owner.path))
        print(f"to go on:       mnist resume {name}")


def plot(
    run: RunArgument = None,
    split: Annotated[SplitName, Option("--split", help="Whose mistakes to show.")] = "val",
    runs_dir: RunsDir = None,
) -> None:
    """Draw all pictures of a run or sweep anew: curves, and its best checkpoint's mistakes."""
    folder = find_run(run, runs_dir)

    from mnist_cli.report import plots
    from mnist_cli.runs import checkpoint as checkpoints
    from mnist_cli.runs.datasets import Datasets
    from mnist_cli.runs.evaluate import classify

    interrupts.listen()
    drawn = plots.draw(folder)
    if folder.best.exists():
        state = checkpoints.load(folder.best)
        settings = configs.load_saved(state.config, str(folder.best))
        seen = classify(state, settings, split, Datasets(console(stderr=True).print))
        title = f"{folder.name}, epoch {state.epoch}, {split} images of {settings.data.name}"
        drawn += plots.mistaken(folder.plots, title, split, seen)
    for path in drawn:
        print(path)
