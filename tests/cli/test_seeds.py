"""Many seeds: whose checkpoints are kept, and the spread of a winner's accuracy."""

import shutil
from pathlib import Path
from statistics import fmean, stdev

import pytest

from mnist_cli.runs.documents import write_json
from mnist_cli.runs.store import RunDirectory
from tests.cli.conftest import SMALL
from tests.conftest import Mnist

GRID = ("--lrs", "1e-4,1e-2", "--seeds", "3")


def figures(sweep: RunDirectory) -> list[tuple[object, ...]]:
    keys = ("status", "optimizer.lr", "train.seed", "val/loss", "val/acc")
    return [tuple(row[key] for key in keys) for row in sweep.summary()["trials"]]


def test_of_each_setting_the_best_run_keeps_its_checkpoints(mnist: Mnist, runs: Path) -> None:
    assert mnist("sweep", *SMALL, *GRID).code == 0
    assert mnist("sweep", *SMALL, *GRID, "--fuse", "off", "--keep", "best").code == 0
    whole, sweep = RunDirectory(runs / "mlp-sweep-0001"), RunDirectory(runs / "mlp-sweep-0002")
    assert figures(sweep) == figures(whole)
    rows = sweep.summary()["trials"]
    for lr in (1e-4, 1e-2):
        same = [row for row in rows if row["optimizer.lr"] == lr]
        best = max(same, key=lambda row: (row["val/acc"], -row["val/loss"]))
        kept = [row["run"] for row in same if RunDirectory(runs / row["run"]).best.exists()]
        assert kept == [best["run"]]
        assert all(RunDirectory(runs / row["run"]).last.exists() == (row is best) for row in same)
        assert all(len(RunDirectory(runs / row["run"]).metrics()) == 2 for row in same)
    winner = RunDirectory(runs / sweep.summary()["best"]["run"])
    ended = mnist("eval", str(sweep.best), str(winner.best), "--json").json
    assert ended[0]["loss"] == ended[1]["loss"]


def test_what_was_kept_no_longer_is_not_trained_again(mnist: Mnist, runs: Path) -> None:
    """Not even where the sweep was killed before its end."""
    assert mnist("sweep", *SMALL, *GRID, "--fuse", "off", "--keep", "best").code == 0
    sweep = RunDirectory(runs / "mlp-sweep-0001")
    before = figures(sweep)
    shutil.rmtree(sweep.trial(4).path)
    write_json(sweep.path / "meta.json", sweep.meta() | {"status": "running"})
    started = {run.name: run.meta().get("started") for run in sweep.trials()}
    assert mnist("resume", sweep.name).code == 0
    assert figures(sweep) == before
    assert {name: RunDirectory(runs / name).meta()["started"] for name in started} == started
    longer = mnist("resume", sweep.name, "--epochs", "3")
    assert (longer.code, "--epochs" in longer.err) == (2, True)
    assert figures(sweep) == before


def test_the_seeds_of_the_winning_setting_are_evaluated(mnist: Mnist, runs: Path) -> None:
    assert mnist("sweep", *SMALL, *GRID).code == 0
    sweep = RunDirectory(runs / "mlp-sweep-0001").summary()
    ended = mnist("eval", "mlp-sweep-0001", "--seeds", "--json")
    lr = sweep["best"]["optimizer.lr"]
    names = [row["run"] for row in sweep["trials"] if row["optimizer.lr"] == lr]
    assert [Path(row["checkpoint"]).parent for row in ended.json] == [runs / name for name in names]
    accuracies = [100 * row["acc"] for row in ended.json]
    spread = f"{fmean(accuracies):.2f} ± {stdev(accuracies):.2f} %"
    assert f"over 3 seeds: {spread}" in mnist("eval", "mlp-sweep-0001", "--seeds").out


def test_seeds_whose_checkpoints_were_not_kept_cannot_be_evaluated(
    mnist: Mnist, runs: Path
) -> None:
    assert mnist("train", *SMALL, "--seeds", "2", "--keep", "best").code == 0
    assert mnist("eval", "mlp-seeds-0001").code == 0
    ended = mnist("eval", "mlp-seeds-0001", "--seeds")
    assert (ended.code, "--keep best" in ended.err) == (2, True)


@pytest.mark.pictures
def test_many_seeds_are_drawn_as_a_distribution(mnist: Mnist, runs: Path) -> None:
    ended = mnist("train", *SMALL, "--seeds", "10", "--keep", "best")
    assert str(runs / "mlp-seeds-0001" / "plots" / "accuracy-seeds.png") in ended.out
    assert "a gain of 0.1 points needs" in ended.out
    few = mnist("train", *SMALL, "--seeds", "9")
    assert "accuracy-seeds.png" not in few.out
