"""Sweeps that get further values, and axes that are not all of a plain grid."""

from pathlib import Path
from typing import Any

import pytest

from mnist_cli.config import Config
from mnist_cli.runs.store import RunDirectory
from mnist_cli.sweeps.expand import expand
from tests.conftest import Mnist

SMALL = ("mlp", "data={name: synthetic, size: 140}", "--epochs", "2")


def settings(config: dict[str, Any]) -> list[dict[str, Any]]:
    return [trial.settings for trial in expand(Config.model_validate(config))]


def test_added_values_train_only_what_there_is_not(mnist: Mnist, tmp_path: Path) -> None:
    assert mnist("sweep", *SMALL, "--lrs", "1e-3,1e-2", "--seeds", "2").code == 0
    sweep = RunDirectory(tmp_path / "runs" / "mlp-sweep-0001")
    before = [(run.path / "last.pt").stat().st_mtime_ns for run in sweep.trials()]
    ended = mnist("resume", "mlp-sweep-0001", "--add", "lr=1e-2,3e-3", "--json")
    assert ended.code == 0, ended.err
    after = [(run.path / "last.pt").stat().st_mtime_ns for run in sweep.trials()]
    assert after[: len(before)] == before
    rates = [(row["optimizer.lr"], row["train.seed"]) for row in ended.json["trials"]]
    old = [(1e-3, 0), (1e-3, 1), (1e-2, 0), (1e-2, 1)]
    assert rates == [*old, (3e-3, 0), (3e-3, 1)]
    assert [trial.config for trial in expand(sweep.config())] == [
        run.config() for run in sweep.trials()
    ]
    for run in sweep.trials()[4:]:
        assert run.meta()["runs_in_stack"] == 2
    again = mnist("resume", "mlp-sweep-0001", "--add", "train.seed=5", "--json")
    assert [row["train.seed"] for row in again.json["trials"][6:]] == [5, 5, 5]
    for bad, word in (("lr=1e-2", "already"), ("width=8", "not over it"), ("lr=x", "number")):
        refused = mnist("resume", "mlp-sweep-0001", "--add", bad)
        assert refused.code == 2
        assert word in refused.err


def test_a_setting_of_one_variant_is_swept_where_it_is() -> None:
    sweep = {
        "optimizer.name": ["adam", "sgd"],
        "optimizer.momentum": [0.0, 0.9],
        "train.seed": [0, 1],
    }
    assert settings({"sweep": sweep}) == [
        {"optimizer.name": "adam", "train.seed": 0},
        {"optimizer.name": "adam", "train.seed": 1},
        *(
            {"optimizer.name": "sgd", "optimizer.momentum": momentum, "train.seed": seed}
            for momentum in (0.0, 0.9)
            for seed in (0, 1)
        ),
    ]


def test_axes_that_move_together() -> None:
    sweep = {"optimizer.lr": [0.1, 0.2], "train.seed": [0, 1], "model.width": [8, 16]}
    found = settings({"sweep": sweep, "zip": [["optimizer.lr", "model.width"]]})
    pairs = [(each["optimizer.lr"], each["model.width"], each["train.seed"]) for each in found]
    assert pairs == [(0.1, 8, 0), (0.1, 8, 1), (0.2, 16, 0), (0.2, 16, 1)]


@pytest.mark.parametrize("keys", ["lr,width", "lr,batch_size"])
def test_axes_that_cannot_move_together(keys: str, mnist: Mnist) -> None:
    ended = mnist("sweep", *SMALL, "--lrs", "0.1,0.2", "--grid", "width=8,16,32", "--zip", keys)
    assert ended.code == 2
    assert "as many values" in ended.err


def test_one_value_of_a_swept_setting_is_an_axis_of_one(mnist: Mnist) -> None:
    ended = mnist("sweep", *SMALL, "lr=1e-2", "dropout=0,0.1", "--dry-run", "--json")
    assert [run["optimizer.lr"] for run in ended.json["runs"]] == [0.01, 0.01]
    assert "2 runs = 1 lr x 2 dropout" in ended.err
    ended = mnist("sweep", *SMALL, "dropout=0,0.1", "--dry-run")
    assert "8 runs = 4 lr (mlp) x 2 dropout" in ended.err


def test_finished_runs_are_reused(mnist: Mnist, tmp_path: Path) -> None:
    assert mnist("train", *SMALL, "lr=1e-2").code == 0
    assert mnist("train", *SMALL, "lr=1e-2", "dropout=0.5").code == 0
    alone = RunDirectory(tmp_path / "runs" / "mlp-0001")
    ended = mnist("sweep", *SMALL, "--lrs", "1e-3,1e-2,1e-1", "--reuse", "--json")
    assert ended.code == 0, ended.err
    assert "1 of 3 runs" in ended.err
    sweep = RunDirectory(tmp_path / "runs" / "mlp-sweep-0001")
    assert (sweep.trial(1).path / "last.pt").read_bytes() == alone.last.read_bytes()
    assert sweep.trial(1).metrics() == alone.metrics()
    assert [run.meta()["runs_in_stack"] for run in sweep.trials()] == [2, 1, 2]
    assert [run.status() for run in sweep.trials()] == ["finished"] * 3
    assert mnist("resume", "mlp-sweep-0001", "--epochs", "3").code == 0
    assert [len(run.metrics()) for run in sweep.trials()] == [3] * 3


def test_runs_whose_checkpoints_were_not_kept_are_not_reused(mnist: Mnist, tmp_path: Path) -> None:
    argv = ("train", *SMALL, "--seeds", "3")
    assert mnist(*argv, "--keep", "best").code == 0
    ended = mnist("sweep", *SMALL, "--lrs", "1e-3", "--seeds", "3", "--reuse")
    assert ended.code == 0, ended.err
    assert "1 of 3 runs" in ended.err
    sweep = RunDirectory(tmp_path / "runs" / "mlp-sweep-0001")
    assert all(run.best.exists() for run in sweep.trials())


def test_the_best_is_taken_over_nuisance_settings(mnist: Mnist) -> None:
    argv = ("--lrs", "1e-6,1e-2", "--grid", "width=8,32", "--nuisance", "lr")
    ended = mnist("sweep", *SMALL, *argv)
    assert ended.code == 0
    table = [line.split() for line in ended.out.splitlines() if "finished" in line]
    assert len(table) == 2
    assert not any("1e-06" in row for row in table)
