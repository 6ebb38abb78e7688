"""`mnist report`: a run or a sweep as one page."""

from pathlib import Path
from typing import Annotated

from typer import Option

from mnist_cli import config as configs
from mnist_cli.cli.options import Json, RunArgument, RunsDir
from mnist_cli.cli.screen import console, find_run, print_result
from mnist_cli.errors import MnistError
from mnist_cli.runs import interrupts, store


def report(
    run: RunArgument = None,
    output: Annotated[
        Path | None,
        Option("--output", "-o", metavar="FILE", help="The page [report.html in the folder]."),
    ] = None,
    runs_dir: RunsDir = None,
    as_json: Json = False,
) -> None:
    """Make one HTML page of a run or a sweep.

    It opens anywhere, also offline. It shows mistakes on validation images; the test images stay
    closed.
    """
    from mnist_cli.data import durable
    from mnist_cli.report import page

    folder = find_run(run, runs_dir)
    script = page.plotly_script()
    path = output or store.refuse_link(folder.path / "report.html")

    from mnist_cli.runs import checkpoint as checkpoints
    from mnist_cli.runs.datasets import Datasets
    from mnist_cli.runs.evaluate import Classified, classify

    interrupts.listen()
    note = console(stderr=True).print
    seen: Classified | str = "There are no weights."
    try:
        if folder.best.exists():
            state = checkpoints.load(folder.best)
            settings = configs.load_saved(state.config, str(folder.best))
            seen = classify(state, settings, "val", Datasets(note))
    except MnistError as error:
        seen = f"Not known: {error.message}"
        note(f"warning: the page has no mistakes: {error.message}")
    text = page.Page(folder, seen).render(script)
    durable.replace(path, text.encode())
    size = f"{path.stat().st_size / 1e6:.1f} MB"
    document = {"run": folder.name, "report": str(path.resolve())}
    print_result(as_json, document, f"{path} ({size})")
