"""Records in, tables and lines out: everything a person reads, and nothing that computes.

Accuracies are fractions in every file and per cent on every screen.
"""

import math
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from mnist_cli.config import Config, MlpModel, Reference
from mnist_cli.report.compare import Compared, differences
from mnist_cli.report.fit import FittedTable
from mnist_cli.report.listing import Listed, unusual_settings
from mnist_cli.runs.store import RunDirectory, run_of
from mnist_cli.sweeps import stats
from mnist_cli.sweeps.stats import Sample, SeedGroup, Verdict

if TYPE_CHECKING:
    import numpy as np

Record = Mapping[str, Any]

MARKS: dict[Verdict, str] = {"winner": "★", "tied": "="}
LEGEND: dict[Verdict, str] = {
    "tied": "= cannot be told from the winner",
    "worse": "the others are worse",
    "not judged": "settings of which a run diverged are not judged",
}


def table(
    rows: Sequence[Mapping[str, RenderableType]],
    marked: int | None = None,
    least: Sequence[str] = (),
) -> FittedTable:
    """A table whose columns are the keys of its rows; one row may be marked.

    ">" before a key means numbers, on the right. A column of nothing and `-` is left out. Where
    there is no room for all, those called `least` are left out first (see `FittedTable`).
    """
    columns = [key for key in rows[0] if any(row[key] not in ("", "-") for row in rows)]
    made = FittedTable(box=box.SIMPLE_HEAD)
    made.least = least
    for key in columns:
        made.add_column(key.lstrip(">"), justify="right" if key.startswith(">") else "left")
    for index, row in enumerate(rows):
        style = "bold green" if index == marked else None
        made.add_row(*(row[key] for key in columns), style=style)
    return made


def format_value(value: Any) -> str:
    """A setting in short: 0.001, 1e-05, adam, and 50-100 for a list."""
    if value is None or isinstance(value, bool):
        return "-" if value is None else str(value).lower()
    if isinstance(value, list | tuple):
        return "-".join(map(format_value, value))
    if isinstance(value, dict):
        rest = settings({key: item for key, item in value.items() if key != "name"})
        return f"{value.get('name', '')} ({rest})" if rest else str(value.get("name"))
    return f"{value:g}" if isinstance(value, float) else str(value)


def percent(fraction: float | None, digits: int = 2) -> str:
    """A fraction as per cent; `-` for none."""
    if fraction is None or not math.isfinite(fraction):
        return "-"
    return f"{100 * fraction:.{digits}f} %"


def loss(number: float | None) -> str:
    """A loss with four digits; `-` for none."""
    return "-" if number is None or not math.isfinite(number) else f"{number:.4f}"


def duration(seconds: float | None) -> str:
    """Seconds as people say them: 0.52 s, 3 min 20 s, 1 h 05 min; `-` for none."""
    if not seconds or not math.isfinite(seconds):
        return "-"
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def local_time(iso: Any) -> str:
    """A saved time in the reader's time zone: 2026-01-31 17:05; `-` for none."""
    try:
        return f"{datetime.fromisoformat(iso).astimezone():%Y-%m-%d %H:%M}"
    except (TypeError, ValueError, OverflowError):
        return "-"


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
    return ", ".join(f"{axis_name(key)} {format_value(item)}" for key, item in pairs.items())


def epoch_line(record: Record, epochs: int, width: int | None = None) -> str:
    """One epoch of one run; in less width without the last figures, then those of training."""
    parts = [
        f"epoch {record['epoch']:>{len(str(epochs))}}/{epochs}",
        f"train loss {loss(record['train/loss'])}  acc {percent(record['train/acc'])}",
        f"val loss {loss(record['val/loss'])}  acc {percent(record['val/acc'])}",
        f"lr {format_value(record['lr'])}",
        duration(record["time/epoch_s"] + record["time/eval_s"]),
    ]
    while width and len("   ".join(parts)) > width and len(parts) > 2:
        parts.pop(-1 if len(parts) > 3 else 1)
    return "   ".join(parts)


def stack_line(records: Sequence[Record | None], labels: Sequence[str], epochs: int) -> str:
    """One epoch of many runs: each one's validation accuracy, or when they are many the spread."""
    alive = [(r, label) for r, label in zip(records, labels, strict=True) if r is not None]
    epoch, took = alive[0][0]["epoch"], alive[0][0]["time/epoch_s"] + alive[0][0]["time/eval_s"]
    texts = [f"{label}: {percent(record['val/acc'])}" for record, label in alive]
    if len(alive) > 5:
        accuracies = [record["val/acc"] for record, _ in alive]
        best = alive[accuracies.index(max(accuracies))][1]
        low, high = percent(min(accuracies)), percent(max(accuracies))
        texts = [f"{len(alive)} runs from {low} to {high} ({best})"]
    text = "   ".join((*texts, duration(took)))
    return f"epoch {epoch:>{len(str(epochs))}}/{epochs}   val acc   {text}"


def ranking(summary: Record, select: str, nuisance: Sequence[str] = ()) -> Iterator[RenderableType]:
    """What came of a sweep: its settings best first, the winner, and what can be said of it.

    Args:
        summary: of the sweep.
        select: its `train.select`.
        nuisance: settings over which the best is taken.
    """
    ranked = stats.best_over(stats.rank(summary["trials"], select), nuisance)
    best = summary["best"]
    verdicts = stats.compare_with_winner(ranked, select)
    yield ranking_table(ranked, verdicts, summary["trials"])
    winner = ranked[0]
    if not best or not winner.acc or not winner.loss:
        return
    seeds = winner.acc.n
    details = f" over {seeds} seeds; best {best['run']}"
    if seeds == 1:
        details = f", val loss {loss(winner.loss.mean)}"
    if "test/acc" in best:
        details += f"; test acc {percent(best['test/acc'])}"
    title = "winner: " if summary["status"] == "finished" else "best so far: "
    named = f"{title * (len(ranked) > 1)}{settings(winner.values) or 'all seeds'}"
    yield f"{named}: val acc {spread(winner.acc)}{details}"
    if seeds >= stats.MANY_SEEDS:
        found = [summary["trials"][trial]["val/acc"] for trial in winner.trials[:seeds]]
        yield f"by this spread, {seeds_needed(found)}"
    if len(ranked) == 1 or seeds == 1:
        return
    if seeds < stats.MIN_SEEDS:
        yield f"too few seeds to judge ({seeds})"
    else:
        shown = [meaning for verdict, meaning in LEGEND.items() if verdict in verdicts]
        yield f"{'; '.join(shown)} (95 % confidence over all pairs)"


def ranking_table(
    ranked: Sequence[SeedGroup], verdicts: Sequence[Verdict], trials: Sequence[Record]
) -> Table:
    """A row for each seed group, best first.

    Args:
        ranked: the groups.
        verdicts: of each what can be said.
        trials: rows as in the summary.
    """
    rows = []
    for group, verdict in zip(ranked, verdicts, strict=False):
        members = [trials[index] for index in group.trials]
        measured = f"{len(members) - group.n_diverged}"
        measured += f" of {len(members)}" * (group.n_diverged > 0)
        row = {"": MARKS.get(verdict, "") if group.acc else ""}
        row |= {f">{axis_name(key)}": format_value(item) for key, item in group.values.items()}
        row |= {
            ">val acc": spread(group.acc),
            ">95 % interval": interval(group.acc),
            ">val loss": loss(group.loss.mean if group.loss else None),
            ">runs": measured * (len(members) > 1),
            "status": members[0]["status"],
            ">took": duration(max(trial.get("seconds") or 0.0 for trial in members)),
            "run": members[0]["run"],
        }
        rows.append(row)
    axes = map(axis_name, reversed(ranked[0].values))
    least = ("run", "took", "status", "runs", "val loss", "95 % interval", *axes)
    return table(rows, marked=0 if ranked[0].acc else None, least=least)


def spread(sample: Sample | None) -> str:
    """Mean and standard deviation of accuracies: `95.21 ± 0.12 %`."""
    if sample is None or sample.n == 1:
        return percent(sample.mean if sample else None)
    return f"{100 * sample.mean:.2f} ± {100 * sample.sd:.2f} %"


def interval(sample: Sample | None) -> str:
    """The 95 % t-interval of a mean accuracy, within 0 to 100; `-` for fewer than three seeds."""
    if sample is None or sample.n < stats.MIN_SEEDS:
        return "-"
    low = max(sample.mean - sample.ci95_half_width, 0.0)
    high = min(sample.mean + sample.ci95_half_width, 1.0)
    return f"{100 * low:.2f} to {100 * high:.2f} %"


def published(
    reference: Reference,
    runs: Sequence[tuple[Mapping[str, Any], Callable[[str], Sequence[float]]]],
    best: Mapping[str, float],
) -> Iterator[RenderableType]:
    """Published figures beside those measured after as many epochs.

    Args:
        reference: the published figures.
        runs: of each run its settings by dotted key, and what gives its figures of a metric, one
            per epoch.
        best: what was measured of the sweep's winner.

    Yields:
        Their source, and a row for each of which something was measured; nothing without any.
    """
    lists = [f for run in reference.runs for f in run.figures.values() if isinstance(f, tuple)]
    epochs = reference.epochs or max(map(len, lists), default=None)
    rows = []
    for run in reference.runs:
        matching = [figures for own, figures in runs if run.when.items() <= own.items()]
        tolerances = reference.tolerance if run.tolerance is None else run.tolerance
        spreads = reference.spread | run.spread
        for metric, figure in run.figures.items():
            if measured := [found for figures in matching if (found := figures(metric))]:
                allowed = tolerances.get(metric), spreads.get(metric, 0.0)
                row = _compared(metric, figure, measured, epochs, *allowed)
                rows.append({"run": settings(run.when)} | row)
    trained = {own.get("train.epochs") for own, _ in runs}
    for metric, figure in reference.best.items():
        if metric in best:
            allowed = reference.tolerance.get(metric), reference.spread.get(metric, 0.0)
            row = _compared(metric, figure, [[best[metric]]], None, *allowed)
            if epochs and trained != {epochs}:
                row["within tolerance"] = f"not judged: published for {epochs} epochs"
            rows.append({"run": "the winner"} | row)
    if rows:
        yield f"published: {reference.source}"
        yield table(rows, least=("difference", "published", "measured"))


def _compared(
    metric: str,
    published: float | tuple[float, ...],
    histories: Sequence[Sequence[float]],
    epoch: int | None,
    tolerance: float | None,
    sd: float,
) -> dict[str, RenderableType]:
    """One figure in a row.

    Args:
        metric: e.g. `val/acc`.
        published: the figure of one epoch, or of every epoch up to it.
        histories: of each run its figures by epoch.
        epoch: which one is compared, if `published` does not tell by its length; None: the last.
        tolerance: how far the mean over seeds may lie from the published figure.
        sd: by how much runs differ for their seeds alone.
    """
    figures = published if isinstance(published, tuple) else (published,)
    longest = max(map(len, histories))
    epoch = len(published) if isinstance(published, tuple) else epoch or longest
    lasts = [h[epoch - 1] for h in histories if len(h) >= epoch and math.isfinite(h[epoch - 1])]
    n = len(lasts)

    def text(*numbers: float, unit: str = " %") -> str:
        if metric.endswith("acc"):
            return " ".join(f"{100 * number:.1f}" for number in numbers) + unit
        return " ".join(f"{number:.3f}" for number in numbers)

    row: dict[str, RenderableType] = {
        "figure": metric.replace("/", " ") + f", epoch {epoch}" * (longest > epoch),
        ">published": text(*figures),
    }
    if not lasts:
        row |= {">measured": "diverged or unfinished", ">difference": "-"}
        return row | {"within tolerance": Text("NO", style="red")}
    measured = text(*histories[0][:epoch][-len(figures) :])
    if len(histories) > 1:
        measured = f"{text(fmean(lasts))} ± {text(stdev(lasts) if n > 1 else 0.0)} (n = {n})"
    difference, verdict = fmean(lasts) - figures[-1], Text("not judged")
    if tolerance is not None:
        if n < stats.MIN_SEEDS:  # the mean of n runs spreads about one published run by so much
            tolerance = max(tolerance, 2 * sd * math.sqrt(1 + 1 / n))
        word, style = ("yes", "green") if abs(difference) <= tolerance else ("NO", "red")
        # The difference of two percentages is in percentage points.
        words = f"{word}, ±{text(tolerance, unit=' pp')}" + ", one run each" * (n == 1)
        verdict = Text(words, style)
    return row | {
        ">measured": measured + f", {len(histories) - n} diverged" * (n < len(histories)),
        ">difference": "+" * (difference >= 0) + text(difference, unit=" pp"),
        "within tolerance": verdict,
    }


def experiment(config: Config) -> str:
    """A config in one line; of a swept setting, how many values it has."""
    model, data, train = config.model, config.data, config.train
    shape = model.model_dump(exclude={"name", "path", "sha256"})
    if isinstance(model, MlpModel):
        unusual = model.model_dump(include={"activation", "dropout"}, exclude_defaults=True)
        shape = {"hidden": model.widths or "none", **unusual}
    texts = {
        "model.name": model.name,
        "model": settings(shape),
        "data.name": f"{data.name} {data.split}",
        "augment": settings(config.augment.model_dump(exclude_defaults=True)),
        "optimizer.name": config.optimizer.name,
        "optimizer.lr": f"lr {format_value(config.optimizer.lr)}",
        "data.batch_size": f"batch {data.batch_size}",
        "train.epochs": counted(train.epochs, "epoch") or counted(train.steps, "step"),
    }
    space = config.search.space if config.search else {}
    numbers = {
        key: len(values) + sum(len(added.get(key, ())) for added in config.added)
        for key, values in config.sweep.items()
    }
    swept = [f"{counted(n, 'value')} of {axis_name(key)}" for key, n in numbers.items()]
    swept += [f"{axis_name(key)} {_searched(given)}" for key, given in space.items()]
    for key in (*config.sweep, *space):  # what it is, with its section, or any of its settings
        for text in list(texts):
            if f"{text}.".startswith(f"{key}.") or key.startswith(f"{text}."):
                del texts[text]
    return ", ".join(filter(None, [*texts.values(), *swept]))


def _searched(given: str | Sequence[object]) -> str:
    """What a search may give to a setting: `log:0.0001:0.1`, `adam|sgd`."""
    return given if isinstance(given, str) else "|".join(map(format_value, given))


def axes_line(config: Config, runs: int, origin: str, given: Container[str]) -> str:
    """How many runs there are, and where each axis comes from: `12 runs = 4 lr (mlp) x 3 dropout`.

    Args:
        config: of the sweep.
        runs: how many.
        origin: the file or preset.
        given: the axes that are from the command line.
    """
    together = {key: keys for keys in config.zip for key in keys}
    names = [
        f"{len(config.sweep[keys[0]])} "
        + "+".join(axis_name(key) + ("" if key in given else f" ({origin})") for key in keys)
        for keys in dict.fromkeys(together.get(key, (key,)) for key in config.sweep)
    ]
    return f"{runs} run{'s' * (runs != 1)} = {' x '.join(names)}"


def plan_table(runs: Sequence[Mapping[str, Any]]) -> Table:
    """The runs of a sweep in the order asked for: the stack and the swept settings of each."""
    return table(
        [
            {">run": f"{index:03d}"}
            | {f">{axis_name(key)}": format_value(item) for key, item in run.items()}
            for index, run in enumerate(runs)
        ]
    )


def runs_table(found: Sequence[Listed]) -> Table:
    """The runs there are, at least one."""
    least = ("took", "epochs", "started", "status", "test acc", "data", "tags", "note", "model")
    return table([_runs_row(listed) for listed in found], least=(*least, "lr"))


def _runs_row(listed: Listed) -> dict[str, RenderableType]:
    trials, settings, figures = listed.summary.get("trials"), listed.settings, listed.figures
    epochs = format_value(listed.epochs) if trials is None else f"{len(trials)} runs"
    return {
        "run": listed.run.name,
        "status": listed.status,
        "started": local_time(listed.meta.get("started")),
        ">epochs": epochs,
        "model": format_value(settings.get("model.name")),
        "data": format_value(settings.get("data.name")),
        ">lr": format_value(settings.get("optimizer.lr")),
        ">best val acc": percent(figures.get("val/acc")),
        ">test acc": percent(figures.get("test/acc")),
        ">took": duration(listed.summary.get("seconds")),
        "tags": " ".join(listed.meta.get("tags", ())),
        "note": listed.meta.get("note", ""),
    }


def comparison(compared: Sequence[Compared]) -> Iterator[RenderableType]:
    """Runs and sweeps in rows, with the settings that differ, and what can be said of them."""
    differing = differences(compared)
    rows = []
    for index, each in enumerate(compared):
        own = {f">{axis_name(key)}": format_value(v[index]) for key, v in differing.items()}
        row = {"": MARKS.get(each.verdict, ""), "run": each.listed.run.name, **own}
        row |= {
            ">val acc": spread(each.group.acc),
            ">95 % interval": interval(each.group.acc),
            ">val loss": loss(each.group.loss.mean if each.group.loss else None),
            ">test acc": percent(each.listed.figures.get("test/acc")),
            ">runs": str(len(each.members)) * (len(each.members) > 1),
            ">took": duration(each.listed.summary.get("seconds")),
        }
        rows.append(row)
    verdicts = [each.verdict for each in compared]
    best = verdicts.index("winner")
    least = ("took", "runs", "val loss", "test acc", *map(axis_name, reversed(differing)))
    yield table(rows, marked=best if compared[best].group.acc else None, least=least)
    if not differing:
        yield "they differ in no setting"
    words = {**LEGEND, "not judged": f"under {stats.MIN_SEEDS} seeds, or diverged: not judged"}
    said = "; ".join(meaning for verdict, meaning in words.items() if verdict in verdicts)
    yield f"★ is the best; {said} (95 % confidence over all pairs)"


def run_page(run: RunDirectory, status: str, summary: Record) -> Iterator[RenderableType]:
    """All there is to say of one run or sweep of this status, part by part."""
    meta = run.meta()
    facts = {
        "run": run.name,
        "status": status,
        "error": meta.get("error"),
        "stopped": summary.get("stopped"),
        "started": "started" in meta and local_time(meta["started"]),
        "took": "seconds" in summary and duration(summary["seconds"]),
        "device": meta.get("device"),
        "versions": settings(meta.get("versions") or {}),
        "git": meta.get("git"),
        "folder": run.path,
        "config": settings(unusual_settings(run)),
        "tags": " ".join(meta.get("tags", ())),
        "note": meta.get("note"),
    }
    yield "\n".join(f"{key:<9}{item}" for key, item in facts.items() if item)
    if summary.get("trials"):
        select = run.config().train.select
        yield from ranking(summary, select)
    best, records = summary.get("best") or {}, run.metrics()
    for record in records:
        mark = "   best" * (record["epoch"] == best.get("epoch"))
        yield epoch_line(record, len(records)) + mark


def evaluations(documents: Sequence[Record]) -> Table:
    """What `mnist eval` measured of each checkpoint."""
    rows = []
    for document in documents:
        path = Path(document["checkpoint"])
        run = run_of(path)
        row = {"checkpoint": f"{run.name}/{path.name}" if run else str(path)}
        row["data"] = document["data"]
        row |= {">n": f"{document['n']:,}", ">acc": percent(document["acc"])}
        row[">loss"] = loss(document["loss"])
        if measured := document.get("calibration"):
            row |= {">NLL": loss(measured["nll"]), ">ECE": percent(measured["ece"])}
            row[">temperature"] = f"{measured['temperature']:.3f}"
            row[">scaled NLL"] = loss(measured["scaled_nll"])
            row[">scaled ECE"] = percent(measured["scaled_ece"])
        rows.append(row)
    return table(rows, least=("data", "n", "loss"))


def seeds_needed(accuracies: Sequence[float], gain: float = 0.001) -> str:
    """What the spread of accuracies over seeds says of differences: how many seeds show one."""
    seeds = stats.seeds_to_show(stdev(accuracies), gain)
    return f"a gain of {100 * gain:g} points needs {seeds:,} seeds to show"


def over_seeds(split: str, accuracies: Sequence[float]) -> str:
    """The mean accuracy over seeds, its spread, and where the mean lies."""
    sample = Sample.of(accuracies)
    enough = sample.n >= stats.MIN_SEEDS
    about = f"95 % interval of the mean {interval(sample)}" if enough else "too few seeds to judge"
    return f"{split} accuracy over {counted(sample.n, 'seed')}: {spread(sample)} ({about})"


def class_table(classes: Sequence[Record]) -> Table:
    """Precision and recall of each class."""
    return table(
        [
            {"class": each["name"], ">n": f"{each['n']:,}"}
            | {f">{key}": percent(each[key]) for key in ("precision", "recall")}
            for each in classes
        ]
    )


def prediction(image: str, probabilities: Mapping[str, float]) -> str:
    """What a picture is taken for, and the next two classes it might be."""
    ranked = sorted(probabilities.items(), key=lambda pair: pair[1], reverse=True)
    (top, chance), rest = ranked[0], ranked[1:3]
    others = ", ".join(f"{name} {percent(p, 1)}" for name, p in rest)
    return f"{image}: {top} ({percent(chance, 1)}; then {others})"


def image_row(images: "np.ndarray", labels: Sequence[str], width: int) -> Text:
    """Images side by side in half-block characters, two pixels of height in each.

    Args:
        images: uint8, shape (n, channels, height, width).
        labels: n words.
        width: columns of the terminal; images that do not fit are left out.
    """
    cell = images.shape[3] + 1
    shown = max(1, width // cell)
    colours = images[:shown].repeat(3 // images.shape[1], axis=1)
    text = Text("".join(f"{label:<{cell}}" for label in labels[:shown]))
    for y in range(0, images.shape[2] - 1, 2):
        text.append("\n")
        for image in colours:
            for pair in image[:, y : y + 2].T.tolist():
                upper, lower = (",".join(map(str, pixel)) for pixel in pair)
                text.append("▀", style=f"rgb({upper}) on rgb({lower})")
            text.append(" ")
    return text
