"""The progress bar counts all steps of all runs, whichever stacks have begun."""

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from mnist_cli.config import Config
from mnist_cli.engine.loop import Record
from mnist_cli.report.live import Display
from mnist_cli.runs.metrics import MetricsLog
from mnist_cli.runs.run import Run
from mnist_cli.runs.store import RunDirectory
from mnist_cli.sweeps.jobs import Epoch, Started

RECORD: Record = {
    "epoch": 1, "step": 5, "lr": 0.1, "train/loss": 1.0, "train/acc": 0.5, "val/loss": 1.0,
    "val/acc": 0.5, "time/epoch_s": 1.0, "time/eval_s": 0.0,
}  # fmt: skip


def started(names: str, progress: Callable[[], int]) -> Started:
    """The start of a stack of runs called by single letters, of 10 steps."""
    runs = []
    for name in names:
        folder = RunDirectory(Path(name))
        runs.append(Run(Config(), folder, {}, MetricsLog(folder.metrics_path), status="running"))
    return Started(runs, steps=10, epochs=2, where={}, progress=progress)


def test_a_step_of_a_stack_is_one_of_each_run_and_what_is_left_out_is_not_awaited() -> None:
    display = Display(Console(file=io.StringIO()), {}, total_steps=40)
    steps = [3]
    first, second = started("ab", lambda: steps[0]), started("cd", lambda: 4)
    second.runs[0].status = "finished"  # it rides along
    display.show(first)
    assert display.steps() == (6, 40)
    first.runs[0].status, steps[0] = "diverged", 5
    first.runs[0].records.append(RECORD)  # after 5 steps
    assert display.steps() == (10, 35)
    first.runs[1].status = "finished"
    first.runs[1].records.append({**RECORD, "step": 10})
    display.show(second)
    assert display.steps() == (19, 35)


def test_a_terminal_shows_the_share_of_all_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    written = io.StringIO()
    display = Display(Console(file=written, force_terminal=True, width=100), {}, total_steps=40)
    begun = started("a", lambda: 5)
    with display.live():
        display.show(begun)
        display.show(Epoch(begun.runs, [RECORD], [None], seconds=1.0))
    assert "12%" in written.getvalue()
