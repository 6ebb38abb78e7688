"""A run or a sweep as one HTML file that needs nothing else: made from its folder alone.

Names, notes, classes and errors come from other people's files. All text becomes part of the page
in `tag`, which escapes it, and all data of figures in `embedded`, which does so too.
"""

import base64
import html
import io
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from PIL import Image
from rich.console import RenderableType
from rich.table import Table

from mnist_cli import config as configs
from mnist_cli.config import Config
from mnist_cli.errors import UsageError, printable
from mnist_cli.report import figures, series, tables
from mnist_cli.report.figures import Figure
from mnist_cli.report.listing import unusual_settings
from mnist_cli.runs.documents import finite
from mnist_cli.runs.metrics import figures_of
from mnist_cli.runs.store import RunDirectory
from mnist_cli.sweeps.expand import expand
from mnist_cli.sweeps.stats import SEED, SeedGroup, rank

if TYPE_CHECKING:
    import numpy as np

    from mnist_cli.runs.evaluate import Classified

GALLERY = 24  # mistakes shown
HOW = "Drag to zoom, double-click to go back, click a name to hide its line."


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


def tag(name: str, *content: object, **attributes: object) -> Html:
    """An element; what is in it and is not `Html` is escaped. `class_` stands for `class`."""
    given = "".join(f' {key.rstrip("_")}="{_escaped(value)}"' for key, value in attributes.items())
    inside = "".join(part if isinstance(part, Html) else _escaped(part) for part in content)
    return Html(f"<{name}{given}>" + f"{inside}</{name}>" * (name not in ("br", "img")))


def plotly_script() -> str:
    """Plotly's JavaScript.

    Raises:
        UsageError: the package `plotly` is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs  # noqa: PLC0415 - an extra
    except ImportError as error:
        hint = "pip install 'mnist-cli[report]'"
        raise UsageError("a report needs the package plotly, which is not here", hint) from error
    return str(get_plotlyjs())


class Page:
    """The page of a run or a sweep.

    Args:
        folder: the run's or sweep's.
        seen: what its best checkpoint takes the validation images for, or in words why that is
            not known.

    Raises:
        UsageError: its files cannot be read.
    """

    def __init__(self, folder: RunDirectory, seen: "Classified | str") -> None:
        self._folder, self._seen = folder, seen
        self._status = folder.status()  # first: a run that has ended by then has its summary
        self._config, self._summary = folder.config(), folder.summary()
        self._meta: Mapping[str, Any] = {**folder.meta()}
        self._trials = self._summary.get("trials") or ()
        runs = [folder.trial(index) for index in range(len(self._trials))] or [folder]
        self._histories = [run.metrics() for run in runs]
        self._finals = [run.summary().get("final", {}) for run in runs]
        self._machine: Mapping[str, Any] = {**runs[0].meta()}  # one machine trains all
        self._figures: dict[str, Figure] = {}

    def render(self, script: str) -> str:
        """The whole file, with Plotly's JavaScript in it."""
        sections = {
            "": self._head(),
            "What came out": self._results(),
            "Curves": self._curves(),
            "Settings": self._settings() if self._trials else (),
            "Mistakes": self._mistakes(),
            "What was asked": self._asked(),
            "Where it ran": self._origin(),
        }
        parts = {heading: Html("\n".join(content)) for heading, content in sections.items()}
        body = [
            tag("section", tag("h2", heading) if heading else "", content)
            for heading, content in parts.items()
            if content
        ]
        template = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
        return Template(template).substitute(
            title=_escaped(self._folder.name),
            body="\n".join(body),
            plotly=script,
            figures=embedded(self._figures),
        )

    def _head(self) -> Iterator[Html]:
        yield tag("h1", self._folder.name)
        began = tables.local_time(self._meta.get("started"))
        yield tag("p", f"{self._status}, {began}: {tables.experiment(self._config)}", class_="dim")
        for key in ("note", "tags", "error"):
            if said := self._meta.get(key):
                words = ", ".join(map(str, said)) if isinstance(said, list) else said
                yield tag("p", tag("b", f"{key}: "), words)

    def _results(self) -> Iterator[Html]:
        best = self._summary.get("best") or {}
        if self._trials:
            yield from map(_shown, tables.ranking(self._summary, self._config.train.select))
            trials = expand(self._config) if self._config.sweep else ()
            settings = [dict(trial.config.settings()) for trial in trials]
        else:
            settings = [dict(self._config.settings())]
            if best:
                figures = (
                    f"{tables.percent(best['val/acc'])}, val loss {tables.loss(best['val/loss'])}"
                )
                yield tag("p", f"best: epoch {best.get('epoch', '-')}, val acc {figures}")
        if self._config.reference:
            sources = zip(self._histories, self._finals, strict=True)
            found = [
                lambda metric, r=records, f=final: figures_of(r, f, metric)
                for records, final in sources
            ]
            runs = [*zip(settings, found, strict=False)]
            winner = best if self._trials else {}
            yield from map(_shown, tables.published(self._config.reference, runs, winner))

    def _curves(self) -> Iterator[Html]:
        if not self._trials:
            records = self._histories[0]
            if records:
                best = (self._summary.get("best") or {}).get("epoch")
                yield tag("p", HOW, class_="dim")
                yield self._plots(figures.run_curves(records, best))
                lines = [tables.epoch_line(record, len(records)) for record in records]
                summary = tag("summary", f"{tables.counted(len(records), 'epoch')} in figures")
                yield tag("details", summary, tag("pre", "\n".join(lines)))
            return
        ranked = rank(self._trials, self._config.train.select)
        shown = sorted(ranked[: figures.MOST], key=lambda group: min(group.trials))
        text = f"The best {len(shown)} of {len(ranked)} settings. " * (len(ranked) > len(shown))
        yield tag("p", f"{text}{_intervals(shown)}{HOW}", class_="dim")
        yield self._plots(figures.sweep_curves(shown, self._histories))

    def _settings(self) -> Iterator[Html]:
        groups = rank(self._trials, self._config.train.select)
        axes = [*groups[0].values]
        if not axes or not groups[0].acc:
            return
        text = f"Validation accuracy of the best epoch, the mean over seeds. {_intervals(groups)}"
        if diverged := sum(group.acc is None for group in groups):
            text += f"{tables.counted(diverged, 'setting')} diverged and cannot be drawn."
        yield tag("p", text, class_="dim")
        shown = sorted(groups[: figures.MOST], key=lambda group: min(group.trials))
        yield self._plots(
            {f"by {tables.axis_name(axis)}": figures.against(axis, shown) for axis in axes}
        )
        if len(axes) > 1:
            yield self._plots(figures.pairs(groups))
            all_settings = {"all settings": figures.parallel(groups)}
            yield self._plots(all_settings, "plot across")

    def _mistakes(self) -> Iterator[Html]:
        if isinstance(self._seen, str):
            yield tag("p", self._seen)
            return
        seen = self._seen
        wrong = int((seen.labels != seen.guesses).sum())
        share = tables.percent(1 - wrong / len(seen.labels))
        text = f"The best checkpoint on {len(seen.labels):,} validation images: {share} right."
        yield tag("p", text, class_="dim")
        yield self._plots({"confusion matrix": figures.confusion(seen)}, "plot tall across")
        worst = seen.mistakes(GALLERY)
        if not len(worst):
            return
        yield tag("h3", f"the {len(worst)} it was surest of, of {tables.counted(wrong, 'mistake')}")
        shown = []
        for image, truth, guess, confidence in zip(
            *(part[worst] for part in (seen.images, seen.labels, seen.guesses, seen.confidences)),
            strict=True,
        ):
            words = f"is {seen.classes[truth]}, said {seen.classes[guess]}"
            caption = tag("figcaption", words, tag("br"), tables.percent(float(confidence), 1))
            shown.append(tag("figure", tag("img", src=_png(image), alt=words), caption))
        kind = "gallery ink" if seen.images.shape[1] == 1 else "gallery"
        yield tag("div", *shown, class_=kind)

    def _asked(self) -> Iterator[Html]:
        config = self._config
        if changed := unusual_settings(self._folder):
            yield tag("p", "Settings that differ from the defaults:", class_="dim")
            yield _facts({key: json.dumps(value) for key, value in changed.items()})
        summary = tag("summary", f"the whole config, {self._folder.config_path.name}")
        yield tag("details", summary, tag("pre", configs.dump(config)))
        if "argv" in self._meta:
            yield tag("p", "The command:", class_="dim")
            yield tag("pre", shlex.join(["mnist", *self._meta["argv"]]))
        if self._status != "imported":
            yield tag("p", "To repeat it, from its config:", class_="dim")
            yield tag("pre", repeating(self._folder, config, self._meta))

    def _origin(self) -> Iterator[Html]:
        about = self._machine
        facts = {
            "device": about.get("device"),
            "host": self._meta.get("host"),
            "versions": tables.settings(about.get("versions") or {}),
            "git commit": self._meta.get("git"),
            "data": tables.settings(about.get("data") or {}),
            "weights from": tables.settings(about.get("weights") or {}),
            "processes": self._meta.get("workers"),
            "started": tables.local_time(self._meta.get("started")),
            "took": tables.duration(self._summary.get("seconds")),
            "stopped": self._summary.get("stopped"),
            "folder": self._folder.path.resolve(),
        }
        yield _facts({key: value for key, value in facts.items() if value not in (None, "", "-")})

    def _plots(self, named: Mapping[str, Figure], kind: str = "plot") -> Html:
        """A place for each figure, under its heading."""
        places = []
        for name, figure in named.items():
            place = f"figure-{len(self._figures)}"
            self._figures[place] = figure
            places.append(tag("div", tag("h3", name), tag("div", id=place, class_=kind)))
        return tag("div", *places, class_="plots")


def repeating(folder: RunDirectory, config: Config, meta: Mapping[str, Any]) -> str:
    """The command that trains the same again."""
    command = "search" if config.search else "sweep" if folder.is_sweep else "train"
    words = ["mnist", command, "--config", str(folder.config_path)]
    if folder.is_sweep and meta.get("test") is False:  # `train --seeds`, which tests nothing
        seeds = ",".join(map(str, config.sweep.get(SEED, ())))
        words = ["mnist", "train", *words[2:], "--seeds", seeds]
    return shlex.join(words)


def _intervals(groups: Sequence[SeedGroup]) -> str:
    label = series.interval_label([[group.acc] for group in groups if group.acc])
    return f"Bars: {label}. " if label else ""


def _escaped(text: object) -> str:
    return html.escape(printable(str(text)))


def embedded(value: object) -> str:
    """Data as JSON inside a script, which nothing in it can end.

    Plotly takes some HTML in texts for formatting and links. So what is not a template of ours has
    none.
    """

    def plain(item: Any, key: str = "") -> Any:
        if isinstance(item, Mapping):
            return {k: plain(v, k) for k, v in item.items()}
        if isinstance(item, list | tuple):
            return [plain(each, key) for each in item]
        return _escaped(item) if isinstance(item, str) and key != "hovertemplate" else item

    return json.dumps(finite(plain(value)), separators=(",", ":")).replace("<", "\\u003c")


def _shown(part: RenderableType) -> Html:
    """A part of what the terminal shows: a line, or a table."""
    if not isinstance(part, Table):
        return tag("p", part)
    columns = part.columns
    head = [tag("th", column.header, class_=column.justify) for column in columns]
    rows = [
        tag(
            "tr",
            *(
                tag("td", cell, class_=f"{column.justify} {getattr(cell, 'style', '')}".strip())
                for column, cell in zip(columns, cells, strict=True)
            ),
            class_="best" if row.style else "",
        )
        for row, cells in zip(part.rows, zip(*(c.cells for c in columns), strict=True), strict=True)
    ]
    whole = tag("table", tag("thead", tag("tr", *head)), tag("tbody", *rows))
    return tag("div", whole, class_="wide")


def _facts(facts: Mapping[str, object]) -> Html:
    rows = [tag("tr", tag("th", key), tag("td", value)) for key, value in facts.items()]
    return tag("table", *rows, class_="facts")


def _png(image: "np.ndarray") -> str:
    """An image as a PNG inside a URL: grey as ink on paper, colour as it is.

    Args:
        image: uint8, shape (channels, height, width).
    """
    buffer = io.BytesIO()
    pixels = 255 - image[0] if len(image) == 1 else image.transpose(1, 2, 0)
    Image.fromarray(pixels).save(buffer, "png")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
