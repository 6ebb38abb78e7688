"""The list of runs: what it says of those that train, of sweeps over seeds, of damaged ones."""

import json
import time
from pathlib import Path

import pytest

from mnist_cli.report import tables
from mnist_cli.runs.store import RunDirectory
from tests.conftest import Mnist


def rows(listing: str) -> dict[str, str]:
    """The line of each run."""
    return {line.split()[0]: line for line in listing.splitlines() if "-00" in line}


@pytest.mark.parametrize("seconds", ["null", "Infinity", "}"])
def test_a_damaged_summary_is_one_row(seconds: str, mnist: Mnist, trained: Path) -> None:
    path = trained / "mlp-0001" / "summary.json"
    content = json.loads(path.read_text()) | {"seconds": "SECONDS"}
    path.write_text(json.dumps(content).replace('"SECONDS"', seconds))
    lines = rows(mnist("runs", "list").out)
    assert "damaged" in lines["mlp-0001"]
    assert "finished" in lines["mlp-sweep-0001"]
    assert mnist("runs", "list", "--json").code == 0
    assert mnist("runs", "show", "mlp-0001").code == 0


def test_a_run_that_trains_shows_its_epochs_and_a_local_time(
    mnist: Mnist, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDirectory(trained / "mlp-0001")
    meta = {**run.meta(), "started": "2026-01-31T22:30:00+00:00"}
    (run.path / "meta.json").write_text(json.dumps(meta))
    (run.path / "summary.json").unlink()
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "Etc/GMT-5")
        time.tzset()
        line = rows(mnist("runs", "list").out)["mlp-0001"]
        assert "2026-02-01 03:30" in mnist("runs", "show", "mlp-0001").out
    time.tzset()
    assert line.split()[1:5] == ["finished", "2026-02-01", "03:30", "2"]


def test_a_sweep_over_seeds_shows_the_mean_it_was_ranked_by(mnist: Mnist, trained: Path) -> None:
    summary = RunDirectory(trained / "mlp-sweep-0001").summary()
    found = [trial["val/acc"] for trial in summary["trials"]]
    best = max(sum(found[:2]) / 2, sum(found[2:]) / 2)
    assert tables.percent(best) in rows(mnist("runs", "list").out)["mlp-sweep-0001"]


def test_an_extended_run_keeps_what_its_figures_were_published_for(
    mnist: Mnist, tmp_path: Path
) -> None:
    config = tmp_path / "own.yaml"
    config.write_text(
        "data: {name: synthetic, size: 140}\ntrain: {epochs: 1}\n"
        "reference: {source: x, tolerance: {val/acc: 1}, runs: [{figures: {val/acc: 0.5}}]}\n"
    )
    assert "yes, ±100.0 pp, one run each" in mnist("train", "-c", str(config)).out
    for epochs in ("3", "4"):
        ended = mnist("resume", "own-0001", "--epochs", epochs)
        assert ended.code == 0
        assert "val acc, epoch 1" in ended.out


@pytest.mark.parametrize("place", ["", "best.pt", "last.pt"])
def test_a_run_is_named_by_itself_its_folder_or_its_checkpoint(
    place: str, mnist: Mnist, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = mnist("runs", "show", "mlp-0001").out
    assert mnist("runs", "show", f"mlp-0001/{place}").out == shown
    assert mnist("runs", "show", str(trained / "mlp-0001" / place)).out == shown
    monkeypatch.chdir(trained / "mlp-0001")
    assert mnist("runs", "show", place or ".").out.splitlines()[0].split() == ["run", "mlp-0001"]


@pytest.mark.usefixtures("trained")
def test_without_a_run_it_is_the_newest_which_is_said(mnist: Mnist) -> None:
    for command in (["runs", "show"], ["resume"]):
        ended = mnist(*command)
        assert (ended.code, ended.err.strip()) == (0, "the newest: mlp-sweep-0001")
        assert "mlp-sweep-0001" in ended.out


def test_eval_takes_the_checkpoint_that_a_path_in_the_runs_directory_names(
    mnist: Mnist, trained: Path
) -> None:
    for name in ("best.pt", "last.pt"):
        ended = mnist("eval", "--checkpoint", f"mlp-0001/{name}", "--json")
        assert ended.json["checkpoint"] == str(trained / "mlp-0001" / name)
