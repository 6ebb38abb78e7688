"""The progress bar counts all steps of all runs, whichever stacks have begun."""

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from mnist_cli.config import Config
from mnist_cli.engine.loop import Record
from mnist_cli.report.live import Display
from mnist_cli.report.tables import epoch_line
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
    display.show(started("d", lambda: 3))  # its stack was lost, and another goes on
    assert display.steps() == (18, 35)


def test_a_sweep_has_one_table_of_its_best_runs_and_counts_those_that_ended() -> None:
    written = io.StringIO()
    console = Console(file=written, force_terminal=True, width=80, height=11, color_system=None)
    labels = {name: {"optimizer.lr": float(index)} for index, name in enumerate("abcde")}
    display = Display(console, labels, total_steps=50)
    begun = started("abcd", lambda: 5)
    for run, accuracy in zip(begun.runs, (0.2, 0.4, 0.3, 0.1), strict=True):
        run.best = {**RECORD, "val/acc": accuracy}
        run.records.append(run.best)
    display.show(begun)
    begun.runs[0].status = "diverged"
    display.show(Epoch(begun.runs, [run.best for run in begun.runs], [None] * 4, seconds=1.0))
    assert "epoch 1/2" not in written.getvalue()  # beside the table
    table, ended = display.standings()
    console.print(table)
    lines = [line.split() for line in written.getvalue().splitlines() if "%" in line]
    assert [words[:2] for words in lines] == [["1", "40.00"], ["2", "30.00"], ["0", "20.00"]]
    assert ended == "5 runs: 3 in training, 1 ended"
    begun.runs[1].meta["attempts"] = [{"host": "first"}, {"host": "second"}]
    table, _ = display.standings()
    console.print(table)
    assert "second" in written.getvalue()
    assert "first" not in written.getvalue()


@pytest.mark.parametrize(("width", "kept"), [(120, 5), (80, 3), (40, 2)])
def test_a_line_of_an_epoch_fits(width: int, kept: int) -> None:
    line = epoch_line(RECORD, 4, width)
    assert len(line) <= width
    assert (len(line.split("   ")), "val loss" in line) == (kept, True)


def test_a_terminal_shows_the_share_of_all_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    written = io.StringIO()
    display = Display(Console(file=written, force_terminal=True, width=100), {}, total_steps=40)
    begun = started("a", lambda: 5)
    with display.live():
        display.show(begun)
        display.show(Epoch(begun.runs, [RECORD], [None], seconds=1.0))
    assert "12%" in written.getvalue()
