"""What people read: rankings, published figures, the list of runs."""

from typing import Any

import pytest
from rich.console import RenderableType
from rich.table import Table

from mnist_cli.config import Reference
from mnist_cli.report.tables import published, ranking


def cells(table: RenderableType) -> list[dict[str, str]]:
    """The rows of a table as plain text by column."""
    assert isinstance(table, Table)
    columns = [[str(cell) for cell in column.cells] for column in table.columns]
    names = [str(column.header) for column in table.columns]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


# ----------------------------------------------------------------------------------- rankings


def swept(*groups: tuple[float, ...]) -> dict[str, Any]:
    """The summary of a sweep with these validation accuracies, a group for each learning rate."""
    trials = [
        {"run": "r", "status": "finished", "optimizer.lr": 10.0**-rate, "train.seed": seed,
         "val/loss": 1.0, "val/acc": acc, "seconds": 1.0}
        for rate, group in enumerate(groups)
        for seed, acc in enumerate(group)
    ]  # fmt: skip
    return {"status": "finished", "trials": trials, "best": trials[0]}


def test_settings_that_cannot_be_told_from_the_winner_are_marked() -> None:
    summary = swept((0.95, 0.952, 0.954), (0.95, 0.951, 0.949), (0.5, 0.501, 0.499))
    table, winner, legend = ranking(summary, "acc")
    rows = cells(table)
    assert [row[""] for row in rows] == ["★", "=", ""]
    assert rows[0]["val acc"] == "95.20 ± 0.20 %"
    assert rows[0]["95 % interval"] == "94.70 to 95.70 %"
    assert str(winner).startswith("winner: lr 1: val acc 95.20 ± 0.20 % over 3 seeds")
    assert "95 % confidence" in str(legend)
    assert "lr" not in str(legend)
    _, best, _ = ranking(summary | {"status": "failed"}, "acc")  # nothing was chosen
    assert str(best).startswith("best so far: lr 1")


def test_two_seeds_are_too_few_to_judge() -> None:
    table, _, legend = ranking(swept((0.95, 0.94), (0.55, 0.50)), "acc")
    assert [row[""] for row in cells(table)] == ["★", ""]
    assert "95 % interval" not in cells(table)[0]
    assert legend == "too few seeds to judge (2)"


def test_intervals_end_where_accuracies_do() -> None:
    table, *_ = ranking(swept((1.0, 0.9, 1.0), (0.0, 0.1, 0.0)), "acc")
    intervals = [row["95 % interval"] for row in cells(table)]
    assert intervals[0].endswith("to 100.00 %")
    assert intervals[1].startswith("0.00 to")


# ---------------------------------------------------------------------------- published figures


def reference(**given: Any) -> Reference:
    tolerance = {"val/acc": 0.01, "test/acc": 0.01}
    return Reference.model_validate({"source": "x", "tolerance": tolerance, **given})


def compared(
    figures: Reference, *accuracies: list[float], best: dict[str, float] | None = None
) -> list[dict[str, str]]:
    runs = [
        ({"train.epochs": len(history)}, lambda metric, history=history: history)
        for history in accuracies
    ]
    source, table = published(figures, runs, best or {})
    assert source == "published: x"
    return cells(table)


LIST = {"runs": ({"figures": {"val/acc": (0.5, 0.6)}},)}


def test_a_longer_run_is_compared_at_the_epoch_that_was_published() -> None:
    (row,) = compared(reference(**LIST), [0.5, 0.7, 0.6])
    assert (row["figure"], row["measured"]) == ("val acc, epoch 2", "50.0 70.0 %")
    assert row["within tolerance"].startswith("NO")
    single = {"runs": ({"figures": {"val/acc": 0.6}},)}
    (row,) = compared(reference(**single, epochs=1), [0.6, 0.9])
    assert (row["figure"], row["measured"]) == ("val acc, epoch 1", "60.0 %")
    (row,) = compared(reference(**single), [0.9, 0.6])
    assert (row["figure"], row["within tolerance"][:3]) == ("val acc", "yes")


def test_a_run_that_did_not_come_so_far_is_not_within_tolerance() -> None:
    (row,) = compared(reference(**LIST), [0.6])
    assert row["within tolerance"] == "NO"
    (row,) = compared(reference(**LIST), [float("nan")], [0.5, 0.6])
    assert row["measured"] == "60.0 % ± 0.0 % (n = 1), 1 diverged"


def test_a_winner_of_more_epochs_is_not_judged() -> None:
    figures = reference(**LIST, best={"test/acc": 0.6})
    rows = compared(figures, [0.5, 0.6], best={"test/acc": 0.6})
    assert rows[1]["within tolerance"].startswith("yes")
    rows = compared(figures, [0.5, 0.6, 0.7], best={"test/acc": 0.6})
    assert rows[1]["within tolerance"].startswith("not judged")


@pytest.mark.parametrize(
    ("runs", "verdict"),
    [(1, "yes, ±2.8 pp, one run each"), (2, "yes, ±2.4 pp"), (3, "NO, ±1.0 pp")],
)
def test_few_runs_are_judged_within_what_seeds_explain(runs: int, verdict: str) -> None:
    """Two standard deviations of the difference, which for one run each is 2 * 0.01 * sqrt(2)."""
    (row,) = compared(reference(**LIST, spread={"val/acc": 0.01}), *[[0.5, 0.62]] * runs)
    assert row["within tolerance"] == verdict
