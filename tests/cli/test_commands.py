"""Every command as a user types it: what it prints and what it leaves.

How commands fail is in `test_exits`, what becomes of their output in `test_screen`, and what
interrupts them in tests/reliability.
"""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from mnist_cli import config as configs
from mnist_cli.data.dataset import load
from mnist_cli.engine import loop
from mnist_cli.runs import checkpoint as checkpoints
from mnist_cli.runs.store import RunDirectory
from tests.cli.conftest import SMALL
from tests.conftest import Mnist
from tests.reliability.harness import plain

RECORD = [
    "epoch", "step", "lr", "train/loss", "train/acc", "val/loss", "val/acc", "time/epoch_s",
    "time/eval_s",
]  # fmt: skip


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def measured(run: RunDirectory) -> list[dict[str, Any]]:
    return [{k: v for k, v in r.items() if not k.startswith("time/")} for r in run.metrics()]


# ------------------------------------------------------------------------------------- train


@pytest.mark.pictures
def test_train_leaves_a_whole_run(mnist: Mnist, runs: Path) -> None:
    ended = mnist("train", *SMALL)
    assert ended.code == 0
    folder = runs / "mlp-0001"
    files = {"config.yaml", "meta.json", "metrics.jsonl", "summary.json", "best.pt", "last.pt"}
    assert names(folder) == {*files, ".lock", "plots"}
    assert (folder / "plots" / "curves.png").read_bytes()[1:4] == b"PNG"
    run = RunDirectory(folder)
    assert run.meta()["status"] == "finished"
    assert [list(record) for record in run.metrics()] == [RECORD] * 2
    lines = [line for line in ended.err.splitlines() if line.startswith("epoch")]
    figures = r"loss \d\.\d{4}  acc \d+\.\d\d %"
    pattern = rf"epoch ./2   train {figures}   val {figures}   lr 0\.001   [\d.]+ s"
    assert [bool(re.fullmatch(pattern, line)) for line in lines] == [True] * 2
    assert f"mnist eval --checkpoint {folder / 'best.pt'}" in ended.out


def test_the_saved_config_repeats_the_run(mnist: Mnist, runs: Path) -> None:
    mnist("train", *SMALL, "--lr", "3e-3", "--seed", "7", "model.dropout=0.2")
    assert mnist("train", "--config", str(runs / "mlp-0001" / "config.yaml")).code == 0
    first, second = RunDirectory(runs / "mlp-0001"), RunDirectory(runs / "mlp-0002")
    assert measured(first) == measured(second)
    assert first.config() == second.config()


def test_flags_and_overrides_reach_the_run(mnist: Mnist, runs: Path) -> None:
    argv = ["train", "-c", "cnn", "--name", "tiny", "--batch-size", "100", "--lr", "1e-2"]
    argv += ["--device", "cpu", "train.steps=3"]
    assert mnist(*argv, SMALL[0], "train.epochs=null").code == 0
    run = RunDirectory(runs / "tiny-0001")
    config = run.config()
    assert (config.optimizer.lr, config.train.steps, config.data.batch_size) == (0.01, 3, 100)
    assert run.metrics()[-1]["step"] == 3


def test_training_never_looks_at_the_test_split(
    mnist: Mnist, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    class Spy(loop.Evaluation):
        def __init__(self, stack: Any, split: Any, loss: Any) -> None:
            seen.append(split.images)
            super().__init__(stack, split, loss)

    monkeypatch.setattr(loop, "Evaluation", Spy)
    mnist("train", *SMALL)
    config = configs.load("mlp", SMALL[:1]).config
    validation = load(config.data, torch.device("cpu"), print).split("val").images
    assert len(seen) == 1
    assert torch.equal(seen[0], validation)


def test_train_json_is_one_document(mnist: Mnist, runs: Path) -> None:
    result = mnist("train", *SMALL, "--json").json
    keys = ["run", "status", "epochs", "seconds", "precision", "best", "checkpoint"]
    assert list(result) == keys
    assert (result["run"], result["status"], result["epochs"]) == ("mlp-0001", "finished", 2)
    assert list(result["best"]) == ["epoch", "val/loss", "val/acc"]
    assert result["checkpoint"] == str(runs / "mlp-0001" / "best.pt")
    result = mnist("train", *SMALL, "--seeds", "0,5", "--json").json
    assert [trial["train.seed"] for trial in result["trials"]] == [0, 5]
    assert "test/acc" not in result["best"]  # the test split stays closed to `train`
    assert result["sweep"] == "mlp-seeds-0001"


def test_select_loss_and_eval_train(mnist: Mnist, runs: Path) -> None:
    mnist("train", *SMALL, "train.select=loss", "train.eval_train=true")
    run = RunDirectory(runs / "mlp-0001")
    summary, records = run.summary(), run.metrics()
    assert summary["best"]["val/loss"] == min(record["val/loss"] for record in records)
    # Measured with the final weights, and so better than the running mean of the last epoch.
    assert summary["final"]["train/loss"] < records[-1]["train/loss"]
    scored = mnist("eval", "--checkpoint", str(run.last), "--split", "train", "--json").json
    assert scored["loss"] == pytest.approx(summary["final"]["train/loss"])
    assert scored["acc"] == summary["final"]["train/acc"]


# ------------------------------------------------------------------------------------- sweep


@pytest.mark.pictures
def test_sweep_ranks_marks_and_tests_the_winner(
    mnist: Mnist, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.axes import Axes

    starred: list[float] = []
    plot = Axes.plot

    def spy(self: Axes, *args: Any, **options: Any) -> Any:
        starred.extend(args[0] if args[2:] == ("*",) else ())
        return plot(self, *args, **options)

    monkeypatch.setattr(Axes, "plot", spy)
    ended = mnist("sweep", *SMALL, "train.select=loss", "--lrs", "1e-4,1e-2")
    assert ended.code == 0
    rows = [line.split() for line in ended.out.splitlines() if "trials/" in line]
    assert [row[:2] for row in rows] == [["★", "0.01"], ["0.0001", rows[1][1]]]
    assert re.search(r"winner: lr 0\.01: .*; test acc [\d.]+ %", ended.out)
    assert starred == [0.01]  # in the picture
    folder = runs / "mlp-sweep-0001"
    files = {"sweep.yaml", "meta.json", "summary.json", "best.pt"}
    assert names(folder) == {*files, ".lock", "plots", "trials"}
    best, trial = (checkpoints.load(folder / name) for name in ("best.pt", "trials/001/best.pt"))
    assert plain(vars(best)) == plain(vars(trial))
    assert names(folder / "plots") == {"curves.png", "accuracy-optimizer.lr.png"}


def test_sweep_json(mnist: Mnist, trained: Path) -> None:
    result = mnist("resume", "mlp-sweep-0001", "--json").json
    assert set(result) == {"sweep", "status", "seconds", "trials", "best", "checkpoint"}
    trials, best = result["trials"], result["best"]
    asked = [(trial["optimizer.lr"], trial["train.seed"]) for trial in trials]
    assert asked == [(1e-4, 0), (1e-4, 1), (1e-2, 0), (1e-2, 1)]
    figures = {"val/loss", "val/acc", "seconds"}
    assert set(trials[0]) == {"run", "status", "optimizer.lr", "train.seed", *figures}
    # The winner is the best run of the setting with the best mean.
    means = [trials[i]["val/acc"] + trials[i + 1]["val/acc"] for i in (0, 2)]
    rows = trials[:2] if means[0] > means[1] else trials[2:]
    row = max(rows, key=lambda trial: (trial["val/acc"], -trial["val/loss"]))
    assert {key: best[key] for key in row} == row
    assert best.keys() - row.keys() == {"test/acc", "test/loss"}
    tested = mnist("eval", "--checkpoint", result["checkpoint"], "--json").json
    assert tested["acc"] == best["test/acc"]
    assert tested["loss"] == pytest.approx(best["test/loss"])


def test_dry_run_shows_the_stacks_and_makes_nothing(mnist: Mnist, runs: Path) -> None:
    grid = ("--lrs", "1e-2,1e-3", "--grid", "model.depth=1..3")
    plan = mnist("sweep", *SMALL, "--dry-run", *grid, "--json").json
    assert [run["stack"] for run in plan["runs"]] == [1, 2, 3, 1, 2, 3]
    assert plan["separated_by"] == ["model.depth"]
    assert "6 runs in 3 stacks" in mnist("sweep", *SMALL, "--dry-run", *grid).out
    assert not runs.exists()


def test_a_section_is_swept_in_place_of_the_axes_inside_it(mnist: Mnist) -> None:
    ended = mnist("sweep", "--dry-run", "--json", "--grid", "optimizer=[sgd,{name: adam, lr: 0.3}]")
    assert [run["optimizer"] for run in ended.json["runs"]] == ["sgd", {"name": "adam", "lr": 0.3}]
    assert "optimizer.lr is not swept" in ended.err


def test_a_selection_that_saw_the_test_set_is_said_to(mnist: Mnist) -> None:
    note = "note: the test set validates"
    pooled, official = (
        f"data={{name: synthetic, size: 70, split: {s}}}" for s in ("pooled", "official")
    )
    assert note not in mnist("train", pooled, "--epochs", "1").err
    assert note in mnist("train", official, "--epochs", "1").err
    grid = ("--grid", "data.split=pooled,official", "--dry-run")
    assert note in mnist("sweep", pooled, "--lrs", "1e-2", *grid).err


# ---------------------------------------------------------------------------- eval, plot and runs


def test_eval_measures_each_split(mnist: Mnist, trained: Path) -> None:
    best = trained / "mlp-0001" / "best.pt"
    own = mnist("eval", "--checkpoint", str(best), "--split", "val", "--json").json
    recorded = RunDirectory(best.parent).summary()["best"]
    assert (own["n"], own["acc"]) == (14, recorded["val/acc"])
    assert own["loss"] == pytest.approx(recorded["val/loss"], rel=1e-5)
    raw = ("--split", "val", "--json", "data.normalize=false")
    assert mnist("eval", "--checkpoint", str(best), *raw).json["loss"] > own["loss"]


def test_eval_takes_the_newest_of_that_name(mnist: Mnist, trained: Path) -> None:
    ended = mnist("eval", "--checkpoint", "best.pt", "data.normalize=true")
    assert f"taking the newest: {trained / 'mlp-sweep-0001' / 'best.pt'}" in ended.out
    assert re.search(r"test accuracy [\d.]+ %, loss [\d.]+ \(14 images", ended.out)
    assert "note: " not in ended.err
    # On another split they may have been trained on.
    assert "note: " in mnist("eval", "--checkpoint", "best.pt", "data.split=official").err


def test_runs_list_and_show(mnist: Mnist, trained: Path) -> None:
    listing = mnist("runs", "list").out
    assert listing.index("mlp-sweep-0001") < listing.index("mlp-0001")
    rows = mnist("runs", "list", "--json").json
    assert [row["status"] for row in rows] == ["finished"] * 2
    page = mnist("runs", "show", "mlp-0001").out
    assert "status   finished" in page
    assert page.count("0.001") == 2
    assert "★" in mnist("runs", "show", "mlp-sweep-0001").out
    assert len(mnist("runs", "show", "mlp-sweep-0001/trials/001", "--json").json["metrics"]) == 2


@pytest.mark.pictures
def test_plot_draws_everything_from_the_folder_alone(mnist: Mnist, runs: Path) -> None:
    grid = ("--lrs", "1e-5,1e-2", "--seeds", "2", "--grid", "model=logistic,mlp")
    mnist("sweep", *SMALL, *grid)
    pictures = runs / "mlp-sweep-0001" / "plots"
    for picture in pictures.iterdir():
        picture.unlink()
    drawn = {Path(line).stem for line in mnist("plot", "mlp-sweep-0001").out.splitlines()}
    axes = {"accuracy-optimizer.lr", "accuracy-model", "accuracy-optimizer.lr-model"}
    assert drawn == {"curves", *axes, "confusion-val", "mistakes-val"}
    assert {path.stem for path in pictures.iterdir()} == drawn
    ended = mnist("plot", "mlp-sweep-0001/trials/000", "--split", "test")
    stems = {Path(line).stem for line in ended.out.splitlines()}
    assert stems == {"curves", "confusion-test", "mistakes-test"}


# ------------------------------------------------------------------------------ config and data


def test_config_commands(mnist: Mnist, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    listed = {row["name"] for row in mnist("config", "list", "--json").json}
    assert {"mlp", "logistic", "cnn"} <= listed
    shown = mnist("config", "show", "-c", "cnn", "optimizer.lr=0.5")
    assert configs.load_text(shown.out, "shown").optimizer.lr == 0.5
    assert mnist("config", "show", "cnn", "optimizer.lr=0.5").out == shown.out
    assert mnist("config", "copy", "cnn").code == 0
    assert "schema" not in Path("cnn.yaml").read_text()  # which is not there
    assert mnist("config", "copy", "cnn").code == 2  # never over a file that is there
    assert mnist("config", "check", "cnn.yaml", "mlp").out == "cnn.yaml: ok\nmlp: ok\n"
    assert mnist("config", "schema").json["properties"]["optimizer"]


def test_data_commands(mnist: Mnist, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "not fetched" in mnist("data", "list").out
    assert mnist("data", "list", "--json").json[0]["path"] is None
    assert mnist("data", "verify").code == 0
    ended = mnist("data", "show", "data=synthetic", "--split", "val", "-n", "50")
    labels, path = ended.out.splitlines()
    assert (ended.code, path, len(labels.split(": ")[-1].split())) == (0, "synthetic-val.png", 50)
    with Image.open(path) as picture:
        width, height = picture.size
        assert picture.format == "PNG"
    assert height < width < 2 * height
    shown = ("data", "show", "data=synthetic", "-n", "3", "--augment")
    refused = mnist(*shown)
    assert (refused.code, "augments nothing" in refused.err) == (2, True)
    assert mnist(*shown, "augment.rotate=10", "augment.erase=0.5").code == 0
    with Image.open("synthetic-train.png") as picture:
        assert picture.width > 2 * picture.height
    assert not Path("data").exists()
    for name in ("x.jpg", "x", "png"):
        ended = mnist("data", "show", "data=synthetic", "--out", name)
        assert (ended.code, ".png" in ended.err, Path(name).exists()) == (2, True, False)


# ----------------------------------------------------------------------------------- processes


def test_what_needs_no_torch_imports_none_and_training_no_torchvision(tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("optimizer: {lr: -1}\n")
    light = [["--help"], ["train", "--config", str(bad)], ["config", "check", "mlp"]]
    light += [["runs", "list"], ["sweep", "--dry-run"]]
    code = (
        "import sys; from mnist_cli.cli import run_command\n"
        f"for argv in {light!r}:\n"
        "    run_command(argv)\n"
        "    assert not {'torch', 'numpy', 'matplotlib'} & set(sys.modules), argv\n"
        f"assert run_command({['train', *SMALL]!r}) == 0\n"
        "assert 'torchvision' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
