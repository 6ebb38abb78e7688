"""`mnist runs` and `mnist plot`: looking at what was trained."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from mnist_cli import config as configs
from mnist_cli.cli.options import (
    Json,
    Model,
    RunArgument,
    RunArguments,
    RunsDir,
    SplitName,
    own_model,
)
from mnist_cli.cli.screen import (
    check_picture,
    checkpoint_lines,
    console,
    find_run,
    human_console,
    print_json,
    print_result,
    run_argument,
)
from mnist_cli.errors import UsageError
from mnist_cli.report import own_models
from mnist_cli.runs import interrupts, manage, store

if TYPE_CHECKING:
    from mnist_cli.report.listing import Listed

Picture = Annotated[
    Path, Option("--out", metavar="FILE", help="The PNG with the curves of several runs.")
]
LIMIT = 50  # a thousand rows take longer to lay out than to read

app = typer.Typer(rich_markup_mode=None, no_args_is_help=True, help="Look at the runs there are.")


@app.command("list")
def runs_list(
    sort: Annotated[
        str | None, Option("--sort", metavar="KEY", help="A setting or figure: lr, val/acc.")
    ] = None,
    where: Annotated[
        str | None,
        Option("--filter", metavar="TEXT", help="Such as 'model.name=cnn and val/acc>0.97'."),
    ] = None,
    limit: Annotated[
        int | None,
        Option("--limit", metavar="N", min=1, help="How many [50; all with --json]."),
    ] = None,
    runs_dir: RunsDir = None,
    as_json: Json = False,
) -> None:
    """List every run and sweep, the newest first.

    --sort: accuracies from the highest, anything else from the lowest. --filter: comparisons by =
    != < <= > >=, joined by `and`.
    """
    from mnist_cli.report import listing, tables

    root, shown = store.runs_root(runs_dir), limit or (None if as_json else LIMIT)
    key = listing.known_key(sort, "--sort") if sort else None
    found = listing.select(root, listing.conditions(where) if where else (), key)
    if as_json:
        print_json([_listed_document(listed) for listed in found[:shown]])
    elif found:
        console().print(tables.runs_table(found[:shown]))
        if shown and len(found) > shown:
            console().print(f"{len(found) - shown:,} more: --limit {len(found)} shows them too")
    elif where:
        console().print(f"no runs in {root} for which {where}")
    else:
        console().print(f"no runs in {root} yet; `mnist train` makes one")


def _listed_document(listed: "Listed") -> dict[str, Any]:
    named = {"name": listed.run.name, "path": str(listed.run.path.absolute())}
    facts = {key: listed.value(key) for key in ("started", "tags", "note")}
    found = {"status": listed.status, "settings": listed.settings, "figures": listed.figures}
    return named | dict(listed.summary) | facts | found


@app.command("show")
def runs_show(run: RunArgument = None, runs_dir: RunsDir = None, as_json: Json = False) -> None:
    """Show what a run or sweep was asked and what came of it."""
    from mnist_cli.report import listing, tables

    folder = find_run(run, runs_dir)
    status, summary = folder.status(), folder.summary()  # in this order, as in the list
    if as_json:
        found = {"meta": folder.meta(), "config": listing.unusual_settings(folder)}
        print_json({**found, "summary": summary, "metrics": folder.metrics()})
        return
    for part in tables.run_page(folder, status, summary):
        console().print(part)
    if summary.get("checkpoint"):
        print("\n".join(checkpoint_lines(summary["checkpoint"])))
    if status in ("dead", "interrupted"):
        print(f"to go on:       mnist resume {run_argument(folder.owner)}")


@app.command("compare")
def runs_compare(
    runs: Annotated[list[str], Argument(metavar="RUN...", help="Two or more runs or sweeps.")],
    output: Picture = Path("compare.png"),
    runs_dir: RunsDir = None,
    as_json: Json = False,
) -> None:
    """Show runs and sweeps side by side: settings, figures, verdicts.

    Of the settings, those that differ; the verdict is whether they can be told apart. A sweep
    stands for its winner, over its seeds. Their curves are drawn into one picture.
    """
    if len(runs) < 2:
        raise UsageError("there is nothing to compare it with", "name two runs or more")
    check_picture(output)
    from mnist_cli.report import compare, plots, tables

    compared = compare.compare([find_run(name, runs_dir) for name in runs])
    drawn = str(output.absolute()) if plots.overlay(output, compared) else None
    differing = compare.differences(compared)
    document = {"runs": [each.document for each in compared], "differs": differing, "plot": drawn}
    parts = [*tables.comparison(compared), *([f"curves: {output}"] if drawn else [])]
    print_result(as_json, document, *parts)


@app.command("note")
def runs_note(
    run: Annotated[str, Argument(metavar="RUN", help="A run or sweep.")],
    text: Annotated[str, Argument(metavar="TEXT", help="What to say of it; '' removes the note.")],
    runs_dir: RunsDir = None,
) -> None:
    """Keep a note with a run or sweep, which the list shows."""
    manage.annotate(store.find(store.runs_root(runs_dir), run), text)


@app.command("tag")
def runs_tag(
    run: Annotated[str, Argument(metavar="RUN", help="A run or sweep.")],
    words: Annotated[list[str], Argument(metavar="WORD...", help="Tags.")],
    remove: Annotated[bool, Option("--remove", help="Remove these tags.")] = False,
    runs_dir: RunsDir = None,
) -> None:
    """Add tags to a run or sweep.

    `runs list --filter tags=WORD` finds it by them.
    """
    manage.tag(store.find(store.runs_root(runs_dir), run), words, remove=remove)


@app.command("rm")
def runs_rm(
    runs: Annotated[list[str], Argument(metavar="RUN...", help="Runs or sweeps.")],
    yes: Annotated[bool, Option("--yes", "-y", help="Do not ask.")] = False,
    runs_dir: RunsDir = None,
    as_json: Json = False,
) -> None:
    """Remove runs or sweeps and all in their folders, after asking.

    A run that trains is refused, and nothing is removed through a link.
    """
    if files := [name for name in runs if Path(name).name in store.CHECKPOINTS]:
        raise UsageError(f"{files[0]} is one file of a run", "give the run, which goes as a whole")
    root = store.runs_root(runs_dir)
    folders = list(dict.fromkeys(store.find(root, name) for name in runs))
    for folder in folders:
        manage.check_removable(folder)
    if not yes:
        paths = "\n".join(f"  {folder.path}" for folder in folders)
        print(f"remove for good:\n{paths}\nyes or no? ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            print("nothing is removed", file=sys.stderr)
            raise typer.Exit(1)
    for folder in folders:
        manage.remove(folder)
        human_console(as_json).print(f"removed: {folder.path}")
    if as_json:
        print_json([str(folder.path.absolute()) for folder in folders])


def plot(
    runs: RunArguments = None,
    split: Annotated[SplitName, Option("--split", help="Whose mistakes to show.")] = "val",
    model: Model = None,
    output: Picture = Path("compare.png"),
    runs_dir: RunsDir = None,
    as_json: Json = False,
) -> None:
    """Draw all pictures of a run or sweep anew.

    They are its curves, and the mistakes of its best checkpoint. Of several, their curves in one
    picture.
    """
    check_picture(output)
    names: list[str | None] = [*runs] if runs else [None]
    folder, *others = [find_run(name, runs_dir) for name in names]

    from mnist_cli.report import compare, plots

    if others:
        drawn = [output] if plots.overlay(output, compare.compare([folder, *others])) else []
        print_result(as_json, [str(path.absolute()) for path in drawn], *map(str, drawn))
        return

    from mnist_cli.runs import checkpoint as checkpoints
    from mnist_cli.runs.datasets import Datasets
    from mnist_cli.runs.evaluate import classify

    interrupts.listen()
    drawn = plots.draw(folder)
    if folder.best.exists():
        state = checkpoints.load(folder.best)
        own = configs.load_saved(state.config, str(folder.best)).model
        flags = own_model(model)
        settings = configs.load_saved(state.config, str(folder.best), flags=flags)
        own_models.use(own, settings.model, bool(flags), console(stderr=True).print)
        seen = classify(state, settings, split, Datasets(console(stderr=True).print))
        title = f"{folder.name}, epoch {state.epoch}, {split} images of {settings.data.name}"
        drawn += plots.mistaken(folder.plots, title, split, seen)
    print_result(as_json, [str(path.absolute()) for path in drawn], *map(str, drawn))
