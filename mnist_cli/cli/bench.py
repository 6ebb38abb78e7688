"""`mnist bench`."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from mnist_cli.cli.options import Device, Json
from mnist_cli.cli.screen import console, print_result
from mnist_cli.runs import interrupts

if TYPE_CHECKING:
    from rich.console import RenderableType

BUSY = 0.3  # cores that other work may have before it is worth a note


def bench(
    only: Annotated[
        str | None,
        Option("--only", metavar="LIST", help="Which to measure: E1,E5 or mlp,cnn [all]."),
    ] = None,
    rounds: Annotated[
        int, Option("--rounds", metavar="N", min=1, help="How often all is measured.")
    ] = 5,
    device: Device = None,
    quick: Annotated[
        bool, Option("--quick", help="One short round, to see that it works.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Measure what a training step costs on this machine.

    It takes two to three minutes. What is measured is the loop that tutorials write, `mnist` with
    one run and with stacks of them, and the limit: the matrix products and the optimizer's
    arithmetic of the same step, and nothing else. On generated images, so no data is needed.
    """
    from rich.progress import Progress

    from mnist_cli.engine.device import resolve_device
    from mnist_cli.sweeps import bench as benches

    cases = benches.select_cases(only)
    where, errors = resolve_device(device or "auto"), console(stderr=True)
    # Nothing refreshes by itself: it would run while something is measured.
    quiet = not errors.is_terminal
    interrupts.listen()
    with Progress(console=errors, transient=True, auto_refresh=False, disable=quiet) as bar:
        results = benches.bench(cases, where, bar.track, 1 if quick else rounds, quick=quick)
    print_result(as_json, results, *_parts(results))


def _parts(results: Mapping[str, Any]) -> "Iterator[RenderableType]":
    from mnist_cli.report import tables

    for work in results["works"]:
        yield "{experiment} {name}: {about}, batch {batch_size}, {optimizer}".format(**work)
        least = ("middle half", "processes x threads", "limit, µs", "µs per step")
        yield tables.table([_row(variant) for variant in work["variants"]], least=least)
    machine = results["machine"]
    yield (
        "measured on {cpu} (cores: {cores}), device {device}, torch {torch} (threads: {threads}), "
        "Python {python}".format(**machine)
    )
    if (machine["load"] or 0) > BUSY:
        yield f"note: other work had {machine['load']:.1f} cores, and may have slowed this"


def _row(variant: Mapping[str, Any]) -> dict[str, str]:
    parts, processes = len(variant["parts"]), variant["processes"]
    run, limit = variant["run_us"], variant["limit_us"]
    return {
        "variant": variant["name"],
        "processes x threads": f"{processes} x {variant['threads']}"
        + f", {parts} parts" * (parts > processes),
        ">µs per step": f"{variant['step_us']['median']:,.1f}",
        ">per run": f"{run['median']:,.1f}",
        ">middle half": f"{run['low']:,.1f} to {run['high']:,.1f}",
        ">times as fast": f"{variant['speedup']:.1f}",
        ">limit, µs": f"{limit['median']:,.1f}" if limit else "-",
        ">of it reached": f"{variant['limit_share']:.0%}" if limit else "-",
    }
