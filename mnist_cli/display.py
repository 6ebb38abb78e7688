"""What a person sees while runs train: a line per epoch, and in a terminal a live one too."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from mnist_cli import report
from mnist_cli.executors import Epoch, Event, Failed, Started
from mnist_cli.run import StackRun


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
        self._stack: StackRun | None = None
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
            case Started(stack):
                self._start(stack)
            case Epoch(stack, records):
                self._epoch(stack, records)
            case Failed(runs, error):
                names = ", ".join(run.folder.name for run in runs)
                self._console.print(f"failed: {names}: {type(error).__name__}: {error}")

    def _start(self, stack: StackRun) -> None:
        self._stack, self._latest = stack, ""
        self._progress.reset(self._task, total=stack.training.steps)
        if self._labels:
            count = len(stack.runs)
            self._console.print(f"{count} runs trained together" if count > 1 else "1 run alone")

    def _epoch(self, stack: StackRun, records: Sequence[Mapping[str, Any] | None]) -> None:
        epochs = stack.training.epochs
        alive = [record for record in records if record is not None]
        if self._labels:
            labels = [report.settings(self._labels[run.folder.name]) for run in stack.runs]
            self._console.print(report.stack_line(records, labels, epochs))
        else:
            self._console.print(report.epoch_line(alive[0], epochs))
        best = max(alive, key=lambda record: record["val/acc"])
        self._latest = (
            f"val loss {report.loss(best['val/loss'])}  acc {report.percent(best['val/acc'])}"
            f"  lr {report.value(best['lr'])}"
        )
        for run in stack.runs:
            if run.status == "diverged" and len(run.records) == alive[0]["epoch"]:
                label = report.settings(self._labels.get(run.folder.name, {}))
                self._console.print(
                    f"diverged: {run.folder.name}{' (' + label + ')' if label else ''}: "
                    f"the loss is no longer finite in epoch {len(run.records)}"
                )

    def _render(self) -> RenderableType:
        if self._stack is None:
            return ""
        training = self._stack.training
        epoch = min(training.step // training.steps_per_epoch + 1, training.epochs)
        speed = self._progress.tasks[0].speed
        self._progress.update(
            self._task,
            completed=training.step,
            epoch=f"{epoch}/{training.epochs}",
            latest=self._latest,
            speed=f"{speed:,.0f}" if speed else "-",
        )
        return self._progress.get_renderable()
