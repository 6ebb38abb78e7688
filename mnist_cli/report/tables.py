"""Records in, tables and lines out: everything a person reads, and nothing that computes.

Accuracies are fractions in every file and per cent on every screen.
"""

import math
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

import numpy as np
from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from mnist_cli import config as configs
from mnist_cli.config import Config, MlpModel, Reference
from mnist_cli.runs.store import RunDirectory
from mnist_cli.sweeps.stats import Sample, Setting, distinct, rank

if TYPE_CHECKING:
    from mnist_cli.sweeps.expand import Trial

Record = Mapping[str, Any]

# The swept settings by which a part of `experiment` says nothing.
WHOLE = {
    "model": {"model", "model.name"},
    "optimizer": {"optimizer", "optimizer.name"},
    "batch": {"data", "data.batch_size"},
    "train": {"train", "train.epochs", "train.steps"},
}

METRICS = {
    "train/loss": "train loss",
    "train/acc": "train acc",
    "val/loss": "val loss",
    "val/acc": "val acc",
    "test/loss": "test loss",
    "test/acc": "test acc",
}


def table(*columns: str) -> Table:
    """An empty table in the style of all of them."""
    made = Table(box=box.SIMPLE_HEAD)
    for column in columns:
        # A leading ">" means numbers, which line up on the right.
        made.add_column(column.lstrip(">"), justify="right" if column.startswith(">") else "left")
    return made


def value(number: Any) -> str:
    """A setting in short: 0.001, 1e-05, adam, and 50-100 for a list."""
    if number is None:
        return "-"
    if isinstance(number, bool):
        return str(number).lower()
    if isinstance(number, list | tuple):
        return "-".join(value(item) for item in number)
    if isinstance(number, dict):
        rest = {key: item for key, item in number.items() if key != "name"}
        told = settings(rest)
        return f"{number.get('name', '')} ({told})" if rest else str(number.get("name"))
    return f"{number:g}" if isinstance(number, float) else str(number)


def percent(fraction: float | None, digits: int = 2) -> str:
    """A fraction as per cent; `-` for none."""
    if fraction is None or not math.isfinite(fraction):
        return "-"
    return f"{100 * fraction:.{digits}f} %"


def loss(number: float | None) -> str:
    """A loss with four digits; `-` for none."""
    return "-" if number is None or not math.isfinite(number) else f"{number:.4f}"


def duration(seconds: float) -> str:
    """Seconds as people say them: 0.52 s, 3 min 20 s, 1 h 05 min."""
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def axis_name(key: str) -> str:
    """A dotted setting as people call it: lr, depth, seed, optimizer."""
    section, _, setting = key.partition(".")
    if setting == "name":
        return section
    return "data seed" if key == "data.seed" else setting or section


def counted(number: int | None, thing: str) -> str:
    """`1 epoch`, `3 epochs`; nothing for none."""
    return f"{number:,} {thing}{'s' * (number != 1)}" if number else ""


def settings(pairs: Mapping[str, Any]) -> str:
    """Settings in one phrase: `lr 0.001, seed 3`."""
    return ", ".join(f"{axis_name(key)} {value(item)}" for key, item in pairs.items())


def epoch_line(record: Record, epochs: int) -> str:
    """One epoch of one run."""
    width = len(str(epochs))
    return (
        f"epoch {record['epoch']:>{width}}/{epochs}"
        f"   train loss {loss(record['train/loss'])}  acc {percent(record['train/acc'])}"
        f"   val loss {loss(record['val/loss'])}  acc {percent(record['val/acc'])}"
        f"   lr {value(record['lr'])}"
        f"   {duration(record['time/epoch_s'] + record['time/eval_s'])}"
    )


def stack_line(records: Sequence[Record | None], labels: Sequence[str], epochs: int) -> str:
    """One epoch of many runs: each one's validation accuracy, or when they are many the spread."""
    alive = [(r, label) for r, label in zip(records, labels, strict=True) if r is not None]
    accuracies = [record["val/acc"] for record, _ in alive]
    first = alive[0][0]
    took = duration(first["time/epoch_s"] + first["time/eval_s"])
    if len(alive) <= 5:
        told = "   ".join(f"{label}: {percent(r['val/acc'])}" for r, label in alive)
    else:
        top = max(range(len(alive)), key=accuracies.__getitem__)
        told = (
            f"{len(alive)} runs from {percent(min(accuracies))} "
            f"to {percent(max(accuracies))} ({alive[top][1]})"
        )
    return f"epoch {first['epoch']:>{len(str(epochs))}}/{epochs}   val acc   {told}   {took}"


def ranking(summary: Record, select: str) -> Iterator[RenderableType]:
    """What came of a sweep: its settings best first, the winner, and what can be said of it.

    Args:
        summary: of the sweep.
        select: its `train.select`.
    """
    trials = summary["trials"]
    found = rank(trials, select)
    yield _ranking_table(found, trials)
    winner, best = found[0], summary["best"]
    if not best or not winner.acc or not winner.loss:
        return
    told = settings(winner.values) or "all seeds"
    if winner.acc.n == 1:
        told += f": val acc {percent(winner.acc.mean)}, val loss {loss(winner.loss.mean)}"
    else:
        told += f": val acc {spread(winner.acc)} over {winner.acc.n} seeds; best {best['run']}"
    if "test/acc" in best:
        told += f"; test acc {percent(best['test/acc'])}"
    place = "winner" if summary["status"] in ("finished", "failed") else "best so far"
    yield f"{place}: {told}" if len(found) > 1 else told
    if len(found) > 1 and winner.acc.n > 1:
        yield _verdict(winner, found[1:], select)


def _verdict(winner: Setting, others: Sequence[Setting], select: str) -> str:
    """Which settings the seeds cannot tell from the winner."""

    def sample(setting: Setting) -> Sample | None:
        return setting.loss if select == "loss" else setting.acc

    best = sample(winner)
    whole = [other for other in others if sample(other) and not other.lost]
    same = [
        settings(other.values)
        for other in whole
        if best and (own := sample(other)) and not distinct(best, own)
    ]
    if same:
        return f"cannot be told from the winner at 95 % confidence: {'; '.join(same)}"
    rest = "every other setting" if len(whole) == len(others) else "every other without lost runs"
    return f"{rest} is worse at 95 % confidence" if whole else "every other setting lost runs"


def _ranking_table(found: Sequence[Setting], trials: Sequence[Record]) -> Table:
    keys = list(found[0].values)
    several = any(len(setting.trials) > 1 for setting in found)
    measured = (
        (">val acc", ">95 % interval", ">val loss", ">runs")
        if several
        else (">val acc", ">val loss", "status")
    )
    made = table(
        "",
        *(f">{axis_name(key)}" for key in keys),
        *measured,
        ">took",
        "best run" if several else "run",
    )
    for place, setting in enumerate(found):
        top = trials[setting.trials[0]]
        seconds = max(trials[i].get("seconds") or 0.0 for i in setting.trials)
        if several:
            told: tuple[str, ...] = ("-", "-", "-")
            if setting.acc and setting.loss:
                told = (spread(setting.acc), interval(setting.acc), loss(setting.loss.mean))
            lost = f" ({setting.lost} lost)" if setting.lost else ""
            told += (f"{len(setting.trials)}{lost}",)
        else:
            told = (percent(top["val/acc"]), loss(top["val/loss"]), top["status"])
        won = place == 0 and setting.acc is not None
        made.add_row(
            "★" if won else "",
            *(value(setting.values[key]) for key in keys),
            *told,
            duration(seconds) if seconds else "-",
            top["run"],
            style="bold green" if won else None,
        )
    return made


def spread(sample: Sample) -> str:
    """Mean and standard deviation of accuracies: `95.21 ± 0.12 %`."""
    if sample.n == 1:
        return percent(sample.mean)
    return f"{100 * sample.mean:.2f} ± {100 * sample.sd:.2f} %"


def interval(sample: Sample) -> str:
    """The 95 % t-interval of a mean accuracy."""
    if sample.n == 1:
        return "-"
    low, high = max(sample.mean - sample.half, 0.0), min(sample.mean + sample.half, 1.0)
    return f"{100 * low:.2f} to {100 * high:.2f} %"


def reference_table(
    reference: Reference,
    runs: Sequence[tuple[Mapping[str, Any], Callable[[str], Sequence[float]]]],
    best: Mapping[str, float],
) -> Table | None:
    """Published figures beside the measured ones.

    Args:
        reference: the published figures.
        runs: of each run its settings by dotted key, and what gives its figures of a metric epoch
        by
            epoch.
        best: what was measured of the sweep's winner.

    Returns:
        A row for each published figure of which something was measured; None without any.
    """
    made = table("run", "figure", ">published", ">measured", ">difference", "within tolerance")
    for published in reference.runs:
        when = published.when
        matching = [
            figures
            for own, figures in runs
            if all(own.get(key) == item for key, item in when.items())
        ]
        tolerance = reference.tolerance if published.tolerance is None else published.tolerance
        for metric, figure in published.figures.items():
            measured = [found for figures in matching if (found := figures(metric))]
            _compare(made, settings(when), metric, figure, measured, tolerance.get(metric))
    for metric, figure in reference.best.items():
        if metric in best:
            allowed = reference.tolerance.get(metric)
            _compare(made, "the winner", metric, figure, [[best[metric]]], allowed)
    return made if made.row_count else None


def _compare(
    made: Table,
    label: str,
    metric: str,
    published: float | tuple[float, ...],
    measured: Sequence[Sequence[float]],
    tolerance: float | None,
) -> None:
    """Adds the row of one figure; what is judged is its last epoch, over the runs that match."""
    if not measured:
        return
    lasts = [run[-1] for run in measured if math.isfinite(run[-1])]
    if not lasts:
        shown = str(published) if isinstance(published, float) else " ".join(map(str, published))
        verdict = Text("NO", style="red")
        made.add_row(label, METRICS[metric], shown, "diverged", "-", verdict)
        return
    fraction = metric.endswith("acc")

    def show(figure: float, unit: str = " %") -> str:
        return f"{100 * figure:.1f}{unit}" if fraction else f"{figure:.3f}"

    def row(figures: Sequence[float]) -> str:
        return " ".join(show(figure, "") for figure in figures) + " %" * fraction

    if isinstance(published, tuple):
        told = row(published)
        found = row(measured[0]) if len(measured) == 1 else f"ends at {show(fmean(lasts))}"
        final = published[-1]
    else:
        told, found, final = show(published), show(fmean(lasts)), published
    if len(lasts) > 1:
        found += f" ± {show(stdev(lasts))} (n = {len(lasts)})"
    if len(lasts) < len(measured):
        found += f", {len(measured) - len(lasts)} diverged"
    difference = fmean(lasts) - final
    # The difference of two percentages is in percentage points.
    shown = ("+" if difference >= 0 else "") + show(difference, " pp")
    if tolerance is None:
        verdict = Text("not judged", style="dim")
    elif abs(difference) <= tolerance:
        verdict = Text(f"yes, ±{show(tolerance, ' pp')}", style="green")
    else:
        verdict = Text(f"NO, ±{show(tolerance, ' pp')}", style="red")
    made.add_row(label, METRICS[metric], told, found, shown, verdict)


def experiment(config: Config) -> str:
    """A config in one line; what it sweeps is counted and not told."""

    def varied(section: str) -> str:
        return ", ".join(
            f"{counted(len(values), 'value')} of {axis_name(key)}"
            for key, values in config.sweep.items()
            if key.partition(".")[0] == section
        )

    model, data, optimizer = config.model, config.data, config.optimizer
    shape = {key: item for key, item in model.model_dump().items() if key != "name"}
    if isinstance(model, MlpModel):
        shape = {"hidden": "-".join(str(units) for units in model.widths) or "none"}
        shape |= {"activation": model.activation} if model.activation != "relu" else {}
        shape |= {"dropout": model.dropout} if model.dropout else {}
    told = varied("model") or settings(shape)
    # Of what a sweep varies as a whole, the config's own says nothing.
    whole = {section for section, keys in WHOLE.items() if keys & config.sweep.keys()}
    parts = {
        "model": f"{model.name} ({told})" if told else model.name,
        "data": varied("data") or f"{data.name} {data.split}",
        "optimizer": f"{optimizer.name} ({varied('optimizer') or f'lr {value(optimizer.lr)}'})",
        "batch": f"batch {data.batch_size}",
        "train": counted(config.train.epochs, "epoch") or counted(config.train.steps, "step"),
    }
    shown = [part for name, part in parts.items() if name not in whole]
    return ", ".join(shown + [varied(name) for name in parts if name in whole - {"batch"}])


def plan_table(trials: "Sequence[Trial]", stack_of: Mapping[int, int]) -> Table:
    """The runs of a sweep in the order asked for, each with the number of its stack."""
    axes = trials[0].settings
    made = table(">run", ">stack", *(f">{axis_name(axis)}" for axis in axes))
    for trial in trials:
        cells = (value(trial.settings[axis]) for axis in axes)
        made.add_row(f"{trial.index:03d}", str(stack_of[trial.index]), *cells)
    return made


def runs_table(found: Sequence[tuple[RunDirectory, str, Record, Record]]) -> Table:
    """The runs there are: folder, status, meta and summary of each."""
    made = table("run", "status", "started", ">epochs", ">best val acc", ">test acc", ">took")
    for run, status, meta, summary in found:
        best = summary.get("best") or {}
        trials = summary.get("trials")
        made.add_row(
            run.name,
            status,
            str(meta.get("started", ""))[:16].replace("T", " "),
            f"{len(trials)} runs" if trials is not None else str(summary.get("epochs", "-")),
            percent(best.get("val/acc")),
            percent(best.get("test/acc")),
            duration(summary["seconds"]) if "seconds" in summary else "-",
        )
    return made


def run_page(run: RunDirectory, status: str) -> Iterator[RenderableType]:
    """All there is to say of one run or sweep of this status, part by part."""
    meta, summary = run.meta(), run.summary()
    facts = {
        "run": run.name,
        "status": status,
        "error": meta.get("error"),
        "started": meta.get("started"),
        "took": duration(summary["seconds"]) if "seconds" in summary else None,
        "device": meta.get("device"),
        "versions": settings(meta.get("versions") or {}),
        "git": meta.get("git"),
        "folder": run.path,
    }
    yield "\n".join(f"{key:<9}{item}" for key, item in facts.items() if item)
    if summary.get("trials"):
        select = configs.load_text(run.config_text(), str(run.config_path)).train.select
        yield from ranking(summary, select)
    if records := run.metrics():
        made = table(">epoch", ">train loss", ">train acc", ">val loss", ">val acc", ">lr", ">took")
        top = summary.get("best")
        best = top.get("epoch") if top else None
        for record in records:
            made.add_row(
                str(record["epoch"]),
                loss(record["train/loss"]),
                percent(record["train/acc"]),
                loss(record["val/loss"]),
                percent(record["val/acc"]),
                value(record["lr"]),
                duration(record["time/epoch_s"] + record["time/eval_s"]),
                style="bold green" if record["epoch"] == best else None,
            )
        yield made
    if checkpoint := summary.get("checkpoint"):
        yield f"to evaluate it: mnist eval --checkpoint {shlex.quote(checkpoint)}"


def prediction(image: str, probabilities: Mapping[str, float]) -> str:
    """What a picture is taken for, and the next two classes it might be."""
    ranked = sorted(probabilities.items(), key=lambda pair: pair[1], reverse=True)
    (top, chance), rest = ranked[0], ranked[1:3]
    others = ", ".join(f"{name} {percent(p, 1)}" for name, p in rest)
    return f"{image}: {top} ({percent(chance, 1)}; then {others})"


def image_row(images: np.ndarray, labels: Sequence[str], width: int) -> Text:
    """Images side by side in half-block characters, two pixels of height in each.

    Args:
        images: uint8, shape (n, channels, height, width).
        labels: n words.
        width: columns of the terminal; images that do not fit are left out.
    """
    shown = max(1, min(len(images), width // (images.shape[3] + 1)))
    text = Text()
    for label in labels[:shown]:
        text.append(f"{label:<{images.shape[3] + 1}}")
    for y in range(0, images.shape[2] - 1, 2):
        text.append("\n")
        for image in images[:shown]:
            for upper, lower in zip(image[:, y].T, image[:, y + 1].T, strict=True):
                text.append("▀", style=f"rgb({_rgb(upper)}) on rgb({_rgb(lower)})")
            text.append(" ")
    return text


def _rgb(pixel: np.ndarray) -> str:
    """A grey or colour pixel as `red,green,blue`."""
    return ",".join(str(channel) for channel in (pixel if len(pixel) == 3 else np.repeat(pixel, 3)))
