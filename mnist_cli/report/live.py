"""What a person sees while runs train: a line per epoch, and in a terminal a progress bar.

Of a sweep a terminal has one table in place of the lines: the best runs so far.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from mnist_cli.errors import in_words
from mnist_cli.report import tables
from mnist_cli.runs.run import Run
from mnist_cli.runs.selection import selection_score
from mnist_cli.runs.stopping import stop_reason
from mnist_cli.sweeps.jobs import Ended, Epoch, Event, Failed, Started

ROWS = 10  # of the table, at most
BESIDE = 8  # lines of a terminal that the table leaves to other things


class Display:
    """Shows the events of an executor as they happen.

    Args:
        console: where to.
        labels: by run name, the swept settings that tell a run from the others; empty for one run.
        total_steps: how many steps all runs have together, those of stacks yet to start included.
    """

    def __init__(
        self, console: Console, labels: Mapping[str, Mapping[str, Any]], total_steps: int
    ) -> None:
        self._console = console
        self._labels = labels
        # By name each run that trains or has, and its stack: the last, if another was lost.
        self._begun: dict[str, tuple[Run, Started]] = {}
        self._epochs = 0
        self._total_steps = total_steps
        self._bar = _Bar(self.steps, self.standings, console)
        self._bar.add_task("", total=total_steps, speed="-")

    def live(self) -> AbstractContextManager[object]:
        """While this is open, a terminal has a progress bar at its foot."""
        return self._bar

    def steps(self) -> tuple[int, int]:
        """Steps of all runs so far and in all, without what runs that ended early leave out."""
        done, total = 0, self._total_steps
        for run, stack in self._begun.copy().values():  # the bar asks from a thread of its own
            if run.status == "running":
                done += stack.progress()
            else:
                own = run.records[-1]["step"] if run.records else 0
                done, total = done + own, total - stack.steps + own
        return done, total

    def standings(self) -> Iterator[RenderableType]:
        """Of a sweep, a table of the best runs so far, and how many train and have ended."""
        if len(self._labels) < 2:
            return
        begun = [run for run, _ in self._begun.copy().values()]
        training = sum(run.status == "running" for run in begun)
        most = max(1, min(ROWS, self._console.height - BESIDE))
        best = [run for run in begun if run.best]
        best.sort(key=lambda run: selection_score(run.best, run.config.train.select), reverse=True)
        if best:
            rows = [self._row(run) for run in best[:most]]
            if len({_host(run) for run in begun}) > 1:
                rows = [{**row, "where": _host(r)} for row, r in zip(rows, best, strict=False)]
            yield tables.table(rows, least=("where", "epoch", "status")).fit(self._console.width)
        ended = f"{len(begun) - training} ended"
        yield f"{tables.counted(len(self._labels), 'run')}: {training} in training, {ended}"

    def _row(self, run: Run) -> dict[str, str]:
        settings = self._labels.get(run.folder.name, {})
        return {
            **{f">{tables.axis_name(key)}": tables.format_value(v) for key, v in settings.items()},
            ">val acc": tables.percent(run.records[-1]["val/acc"]),
            ">best": tables.percent(run.best["val/acc"] if run.best else None),
            ">epoch": f"{len(run.records)}/{self._epochs}",
            "status": run.status,
        }

    def show(self, event: Event) -> None:
        """Shows what happened."""
        match event:
            case Started(runs=runs):
                self._begun |= {
                    run.folder.name: (run, event) for run in runs if run.status == "running"
                }
                self._epochs = event.epochs
                if self._labels:
                    count = tables.counted(len(runs), "run")
                    self._console.print(f"{count} {'together' if len(runs) > 1 else 'alone'}")
            case Epoch(runs=runs, records=records):
                self._epoch(runs, records)
            case Ended(runs=runs, final=final):
                for run, measured in zip(runs, final, strict=True):
                    reason = stop_reason(run.records, run.config.train)
                    if reason and measured is not None and run.status == "finished":
                        why = f"train.{reason}, after epoch {len(run.records)}"
                        self._console.print(f"stopped: {self._name(run)}: {why}")
            case Failed(runs=runs, error=error):
                names = ", ".join(run.folder.name for run in runs)
                self._console.print(f"failed: {names}: {type(error).__name__}: {in_words(error)}")

    def _epoch(self, runs: Sequence[Run], records: Sequence[Mapping[str, Any] | None]) -> None:
        alive = [record for record in records if record is not None]
        if not alive:  # all that go on are still on the way to where they were
            return
        labels = [tables.settings(self._labels.get(run.folder.name, {})) for run in runs]
        width = self._console.width if self._console.is_terminal else None
        if not self._labels:
            self._console.print(tables.epoch_line(alive[0], self._epochs, width))
        elif not width or len(self._labels) < 2:  # else the table has it
            self._console.print(tables.stack_line(records, labels, self._epochs))
        for run in runs:
            if run.status == "diverged" and len(run.records) == alive[0]["epoch"]:
                epoch = len(run.records)
                self._console.print(
                    f"diverged: {self._name(run)}: loss not finite in epoch {epoch}"
                )

    def _name(self, run: Run) -> str:
        label = tables.settings(self._labels.get(run.folder.name, {}))
        return f"{run.folder.name} ({label})" if label else run.folder.name


def _host(run: Run) -> str:
    attempts = run.meta.get("attempts")
    return attempts[-1]["host"] if attempts else ""


class _Bar(Progress):
    """A progress bar that asks how far training is each time it is drawn, which costs it nothing.

    Args:
        steps: those done and those in all; called from a thread of the bar's own.
        above: what stands above the bar; called likewise.
        console: where to; anything but a terminal has no bar.
    """

    def __init__(
        self,
        steps: Callable[[], tuple[int, int]],
        above: Callable[[], Iterable[RenderableType]],
        console: Console,
    ) -> None:
        self._steps, self._above = steps, above
        super().__init__(
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TextColumn("{task.fields[speed]} steps/s"),
            TimeRemainingColumn(compact=True),
            console=console,
            refresh_per_second=8,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
            disable=console.quiet or not console.is_terminal,
        )

    def get_renderables(self) -> Iterable[RenderableType]:
        """The bar as it is now; called by rich."""
        for task in self.tasks:
            speed = f"{task.speed:,.0f}" if task.speed else "-"
            done, total = self._steps()
            self.update(task.id, completed=done, total=total, speed=speed)
        yield from self._above()
        yield from super().get_renderables()
