"""What a person sees while runs train: a line per epoch, and in a terminal a live one too."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from mnist_cli.errors import in_words
from mnist_cli.report import tables
from mnist_cli.runs.run import Run
from mnist_cli.sweeps.jobs import Epoch, Event, Failed, Started


class Display:
    """Shows the events of an executor as they happen.

    The live line asks the training itself how far it is, a few times a second and from another
    thread, so showing progress costs the loop nothing.

    Args:
        console: where to.
        labels: by run name, the swept settings that tell a run from the others; empty for one run.
    """

    def __init__(self, console: Console, labels: Mapping[str, Mapping[str, Any]]) -> None:
        self._console = console
        self._labels = labels
        self._parts: list[Started] = []  # that are training, or have
        self._epochs = 0
        self._latest = ""
        self._progress = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[latest]}"),
            TextColumn("{task.fields[speed]} steps/s"),
            TimeRemainingColumn(compact=True),
            console=console,
        )
        self._task = self._progress.add_task("", epoch="", latest="", speed="-")

    @contextmanager
    def live(self) -> Iterator[None]:
        """While this is open, a terminal has a live line at its foot."""
        if not self._console.is_terminal:
            yield
            return
        with Live(
            get_renderable=self._render,
            console=self._console,
            refresh_per_second=8,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        ):
            yield

    def show(self, event: Event) -> None:
        """Shows what happened."""
        match event:
            case Started():
                self._start(event)
            case Epoch(runs=runs, records=records):
                self._epoch(runs, records)
            case Failed(runs=runs, error=error):
                names = ", ".join(run.folder.name for run in runs)
                self._console.print(f"failed: {names}: {type(error).__name__}: {in_words(error)}")

    def _start(self, event: Started) -> None:
        self._parts.append(event)
        self._epochs = event.epochs
        if self._labels:
            count = len(event.runs)
            self._console.print(f"{count} runs trained together" if count > 1 else "1 run alone")

    def _epoch(self, runs: Sequence[Run], records: Sequence[Mapping[str, Any] | None]) -> None:
        alive = [record for record in records if record is not None]
        if not alive:  # all that go on are still on the way to where they were
            return
        if self._labels:
            labels = [tables.settings(self._labels[run.folder.name]) for run in runs]
            self._console.print(tables.stack_line(records, labels, self._epochs))
        else:
            self._console.print(tables.epoch_line(alive[0], self._epochs))
        best = max(alive, key=lambda record: record["val/acc"])
        self._latest = (
            f"val loss {tables.loss(best['val/loss'])}  acc {tables.percent(best['val/acc'])}"
            f"  lr {tables.value(best['lr'])}"
        )
        for run in runs:
            if run.status == "diverged" and len(run.records) == alive[0]["epoch"]:
                label = tables.settings(self._labels.get(run.folder.name, {}))
                self._console.print(
                    f"diverged: {run.folder.name}{' (' + label + ')' if label else ''}: "
                    f"the loss is no longer finite in epoch {len(run.records)}"
                )

    def _render(self) -> RenderableType:
        if not self._parts:
            return ""
        done = sum(part.progress() for part in self._parts)
        total = sum(part.steps for part in self._parts)
        epoch = min(self._epochs * done // total + 1, self._epochs)
        speed = self._progress.tasks[0].speed
        self._progress.update(
            self._task,
            total=total,
            completed=done,
            epoch=f"{epoch}/{self._epochs}",
            latest=self._latest,
            speed=f"{speed:,.0f}" if speed else "-",
        )
        return self._progress.get_renderable()
