"""Every command as a user types it: what it prints, what it leaves, and the code it exits with."""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from mnist_cli import config as configs
from mnist_cli.runs.store import RunDirectory
from tests.conftest import Mnist

SMALL = ("data={name: synthetic, size: 700}", "--epochs", "2")


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path / "runs"


# ------------------------------------------------------------------------------------- train


def test_train_leaves_a_whole_run(mnist: Mnist, runs: Path) -> None:
    ended = mnist("train", *SMALL)
    assert ended.code == 0
    folder = runs / "mlp-0001"
    names = sorted(path.name for path in folder.iterdir())
    assert names == sorted(
        [
            ".lock",
            "best.pt",
            "config.yaml",
            "last.pt",
            "meta.json",
            "metrics.jsonl",
            "plots",
            "summary.json",
        ]
    )
    assert (folder / "plots" / "curves.png").read_bytes()[1:4] == b"PNG"
    run = RunDirectory(folder)
    assert run.meta()["status"] == "finished"
    assert [list(record) for record in run.metrics()] == [
        [
            "epoch",
            "step",
            "lr",
            "train/loss",
            "train/acc",
            "val/loss",
            "val/acc",
            "time/epoch_s",
            "time/eval_s",
        ]
    ] * 2
    assert run.summary()["best"]["epoch"] == 2
    lines = [line for line in ended.err.splitlines() if line.startswith("epoch")]
    assert len(lines) == 2
    pattern = (
        r"epoch 1/2   train loss \d\.\d{4}  acc \d+\.\d\d %"
        r"   val loss \d\.\d{4}  acc \d+\.\d\d %   lr 0\.001   [\d.]+ s"
    )
    assert re.fullmatch(pattern, lines[0])
    assert f"mnist eval --checkpoint {folder / 'best.pt'}" in ended.out


def test_train_json_is_one_document(mnist: Mnist, runs: Path) -> None:
    ended = mnist("train", *SMALL, "--json")
    assert ended.code == 0
    result = ended.json
    assert list(result) == [
        "run", "status", "epochs", "seconds", "precision", "best", "checkpoint",
    ]  # fmt: skip
    assert (result["run"], result["status"], result["epochs"]) == ("mlp-0001", "finished", 2)
    assert result["precision"] == "fp32"
    assert list(result["best"]) == ["epoch", "val/loss", "val/acc"]
    assert result["checkpoint"] == str(runs / "mlp-0001" / "best.pt")


def test_the_saved_config_repeats_the_run(mnist: Mnist, runs: Path) -> None:
    mnist("train", *SMALL, "--lr", "3e-3", "--seed", "7", "model.dropout=0.2")
    ended = mnist("train", "--config", str(runs / "mlp-0001" / "config.yaml"))
    assert ended.code == 0
    first, second = RunDirectory(runs / "mlp-0001"), RunDirectory(runs / "mlp-0002")
    assert measured(first) == measured(second)
    assert first.config_text() == second.config_text()


def measured(run: RunDirectory) -> list[dict[str, Any]]:
    return [{k: v for k, v in r.items() if not k.startswith("time/")} for r in run.metrics()]


def test_flags_and_overrides_reach_the_run(mnist: Mnist, runs: Path) -> None:
    assert mnist(
        "train", "-c", "cnn", "--name", "tiny", "--batch-size", "100", "--lr", "1e-2",
        "data={name: synthetic, size: 700}", "train.epochs=null", "train.steps=3", "--device",
        "cpu",
    ).code == 0  # fmt: skip
    run = RunDirectory(runs / "tiny-0001")
    config = configs.load_text(run.config_text(), "config.yaml")
    assert config.optimizer.lr == 0.01
    assert config.train.steps == 3
    assert run.metrics()[-1]["step"] == 3


def test_a_run_that_diverges_says_so_and_exits_1(mnist: Mnist, runs: Path) -> None:
    ended = mnist("train", *SMALL, "optimizer={name: sgd, lr: 1e38}", "--json")
    assert ended.code == 1
    assert ended.json["status"] == "diverged"
    assert ended.json["checkpoint"] is None
    assert "error: mlp-0001 diverged: its loss is no longer finite in epoch 1" in ended.err
    assert RunDirectory(runs / "mlp-0001").meta()["status"] == "diverged"
    assert not (runs / "mlp-0001" / "best.pt").exists()


def test_training_never_looks_at_the_test_split(
    mnist: Mnist, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mnist_cli.engine import loop as train

    seen = []
    whole = train.evaluate

    def spy(stack: Any, split: Any, loss: Any) -> Any:
        seen.append(len(split))
        return whole(stack, split, loss)

    monkeypatch.setattr(train, "evaluate", spy)
    mnist("train", "data={name: synthetic, size: 700, split: holdout}", "--epochs", "2")
    # 700 images: 500 train, 100 val, 100 test; val and test are told apart by their images below.
    assert seen == [100, 100]


# ------------------------------------------------------------------------------------- sweep


def test_sweep_ranks_marks_and_tests_the_winner(mnist: Mnist, runs: Path) -> None:
    ended = mnist("sweep", *SMALL, "--lrs", "1e-4,1e-2")
    assert ended.code == 0
    rows = [line for line in ended.out.splitlines() if "trials/" in line]
    assert "★" in rows[0]
    assert "0.01" in rows[0]
    assert "★" not in rows[1]
    assert re.search(
        r"winner: lr 0\.01: val acc [\d.]+ %, val loss [\d.]+; test acc [\d.]+ %", ended.out
    )
    folder = runs / "mlp-sweep-0001"
    assert sorted(path.name for path in folder.iterdir()) == [
        ".lock", "best.pt", "meta.json", "plots", "summary.json", "sweep.yaml", "trials",
    ]  # fmt: skip
    assert (folder / "best.pt").read_bytes() == (folder / "trials/001/best.pt").read_bytes()
    assert {path.name for path in (folder / "plots").iterdir()} == {
        "curves.png",
        "accuracy-optimizer.lr.png",
    }


def test_sweep_json(mnist: Mnist, runs: Path) -> None:
    ended = mnist("sweep", *SMALL, "--lrs", "1e-2,1e-4", "--seeds", "2", "--json")
    result = ended.json
    assert list(result) == ["sweep", "status", "seconds", "trials", "best", "checkpoint"]
    asked = [(trial["optimizer.lr"], trial["train.seed"]) for trial in result["trials"]]
    assert asked == [(1e-2, 0), (1e-2, 1), (1e-4, 0), (1e-4, 1)]
    assert list(result["trials"][0]) == [
        "run", "status", "optimizer.lr", "train.seed", "val/loss", "val/acc", "seconds",
    ]  # fmt: skip
    # The winner is the best run of the setting with the best mean.
    means = {
        rate: sum(t["val/acc"] for t in result["trials"] if t["optimizer.lr"] == rate)
        for rate in (1e-2, 1e-4)
    }
    assert means[1e-2] > means[1e-4]
    best = max(result["trials"][:2], key=lambda t: (t["val/acc"], -t["val/loss"]))
    assert {key: result["best"][key] for key in best} == best
    assert set(result["best"]) - set(best) == {"test/acc", "test/loss"}
    tested = mnist("eval", "--checkpoint", result["checkpoint"], "--json").json
    assert (tested["acc"], tested["loss"]) == (
        result["best"]["test/acc"],
        pytest.approx(result["best"]["test/loss"]),
    )


def test_a_trial_is_the_run_alone(mnist: Mnist, runs: Path) -> None:
    """In float64, a run of a sweep and the same run by `train` are the same numbers."""
    double = (*SMALL, "train.precision=fp64")
    mnist("sweep", *double, "--lrs", "1e-2,1e-3", "--seeds", "3,4")
    mnist("train", *double, "--lr", "1e-3", "--seed", "4")
    trial = RunDirectory(runs / "mlp-sweep-0001" / "trials" / "003")
    for one, other in zip(measured(trial), measured(RunDirectory(runs / "mlp-0001")), strict=True):
        assert one == pytest.approx(other, rel=1e-9)
    saved = [
        torch.load(path / "best.pt", weights_only=True)["model"]
        for path in (trial.path, runs / "mlp-0001")
    ]
    for name, value in saved[0].items():
        torch.testing.assert_close(value, saved[1][name], rtol=1e-9, atol=1e-12)


def test_a_sweep_over_shapes_makes_a_stack_of_each(mnist: Mnist) -> None:
    ended = mnist(
        "sweep", *SMALL, "--dry-run", "--lrs", "1e-2,1e-3", "--grid", "model.depth=1..3", "--json"
    )
    assert ended.code == 0
    assert [run["stack"] for run in ended.json["runs"]] == [1, 2, 3, 1, 2, 3]
    assert ended.json["separated_by"] == ["model.depth"]
    assert "6 runs in 3 stacks" in ended.err
    ended = mnist("sweep", *SMALL, "--lrs", "1e-2,1e-3", "--grid", "model.depth=1..2", "--json")
    assert [trial["model.depth"] for trial in ended.json["trials"]] == [1, 2, 1, 2]


def test_dry_run_makes_nothing(mnist: Mnist, runs: Path) -> None:
    assert mnist("sweep", "--dry-run").code == 0
    assert not runs.exists()


def test_a_sweep_goes_on_when_a_run_diverges(mnist: Mnist) -> None:
    ended = mnist("sweep", *SMALL, "optimizer=sgd", "--lrs", "1e38,1e-1", "--json")
    assert ended.code == 0
    assert [trial["status"] for trial in ended.json["trials"]] == ["diverged", "finished"]
    assert ended.json["best"]["optimizer.lr"] == 0.1
    ended = mnist("sweep", *SMALL, "optimizer=sgd", "--lrs", "1e38,1e37", "--json")
    assert ended.code == 1
    assert ended.json["best"] is None
    assert "every run diverged" in ended.err


def break_model(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Makes building a model fail as nothing in `mnist` foresees."""
    from mnist_cli.models import modules as models

    def broken(*_: object) -> torch.nn.Module:
        raise RuntimeError("out of luck")

    monkeypatch.setitem(models.MODELS, name, broken)


def test_failed_trials_exit_3_and_the_others_go_on(
    mnist: Mnist, monkeypatch: pytest.MonkeyPatch, runs: Path
) -> None:
    break_model(monkeypatch, "cnn")
    ended = mnist("sweep", *SMALL, "--lrs", "0.1", "--grid", "model=cnn,logistic")
    assert ended.code == 3
    assert "1 of 2 runs failed" in ended.err
    assert (
        RunDirectory(runs / "mlp-sweep-0001/trials/000").meta()["error"]
        == "RuntimeError: out of luck"
    )
    assert RunDirectory(runs / "mlp-sweep-0001/trials/001").meta()["status"] == "finished"


def test_nothing_to_sweep(mnist: Mnist, tmp_path: Path) -> None:
    (tmp_path / "plain.yaml").write_text("model: logistic\n")
    ended = mnist("sweep", "--config", str(tmp_path / "plain.yaml"))
    assert ended.code == 2
    assert "error: nothing to sweep" in ended.err


def test_a_section_is_swept_in_place_of_the_axes_inside_it(mnist: Mnist) -> None:
    ended = mnist("sweep", "--dry-run", "--json", "--grid", "optimizer=[sgd,{name: adam, lr: 0.3}]")
    assert [run["optimizer"] for run in ended.json["runs"]] == ["sgd", {"name": "adam", "lr": 0.3}]
    assert "optimizer.lr is not swept" in ended.err
    assert mnist("sweep", "--lrs", "1,2", "--grid", "optimizer=[sgd,adam]").code == 2


def test_a_grid_of_too_many_runs_is_refused_at_once(mnist: Mnist) -> None:
    for more in ((), ("--dry-run",)):
        ended = mnist("sweep", "--seeds", "1000", "--grid", "model.width=8..1007", *more)
        assert (ended.code, ended.out) == (2, "")
        assert "4,000,000 runs" in ended.err


def test_list_errors_name_the_argument(mnist: Mnist) -> None:
    ended = mnist("sweep", "--lrs", "1e-1,,x")
    assert ended.code == 2
    assert ended.err.startswith("--lrs 1e-1,,x: sweep.optimizer.lr: ")


# -------------------------------------------------------------------------------------- eval


def test_eval_measures_each_split(mnist: Mnist, runs: Path) -> None:
    mnist("train", *SMALL)
    best = runs / "mlp-0001" / "best.pt"
    ended = mnist("eval", "--checkpoint", str(best), "--split", "val", "--json")
    assert ended.code == 0
    assert ended.json["n"] == 70
    recorded = RunDirectory(best.parent).summary()["best"]
    assert ended.json["acc"] == recorded["val/acc"]
    assert ended.json["loss"] == pytest.approx(recorded["val/loss"], rel=1e-5)
    raw = mnist(
        "eval", "--checkpoint", str(best), "--split", "val", "--json", "data.normalize=false"
    )
    assert raw.json["loss"] > ended.json["loss"]
    assert mnist("eval", "--checkpoint", str(best), "model.depth=3").code == 2


def test_eval_takes_the_newest_of_that_name(mnist: Mnist, runs: Path) -> None:
    mnist("train", *SMALL)
    mnist("sweep", *SMALL, "--lrs", "1e-2")
    ended = mnist("eval", "--checkpoint", "best.pt")
    assert ended.code == 0
    assert f"taking the newest: {runs / 'mlp-sweep-0001' / 'best.pt'}" in ended.out
    assert re.search(r"test accuracy [\d.]+ %, loss [\d.]+ \(70 images", ended.out)


def test_bad_checkpoints_exit_5(mnist: Mnist, tmp_path: Path, runs: Path) -> None:
    mnist("train", *SMALL)
    whole = (runs / "mlp-0001" / "best.pt").read_bytes()
    (tmp_path / "half.pt").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "notes.txt").write_text("hello")
    torch.save({"w": torch.zeros(2)}, tmp_path / "foreign.pt")
    for path in ("half.pt", "notes.txt", "foreign.pt", "", "gone/best.pt"):
        ended = mnist("eval", "--checkpoint", str(tmp_path / path))
        assert ended.code == 5, path
        assert ended.err.startswith("error: "), path
    assert mnist("eval", "--checkpoint", "other.pt").code == 5


# -------------------------------------------------------------------------------------- runs


def test_runs_list_and_show(mnist: Mnist, runs: Path) -> None:
    assert "no runs in" in mnist("runs", "list").out
    mnist("train", *SMALL)
    mnist("sweep", *SMALL, "--lrs", "1e-2,1e-3")
    listing = mnist("runs", "list").out
    assert listing.index("mlp-0001") < listing.index("mlp-sweep-0001")
    assert [row["status"] for row in mnist("runs", "list", "--json").json] == ["finished"] * 2
    page = mnist("runs", "show", "mlp-0001").out
    assert "status   finished" in page
    assert page.count("0.001") == 2
    assert "★" in mnist("runs", "show", "mlp-sweep-0001").out
    shown = mnist("runs", "show", "mlp-sweep-0001/trials/001", "--json").json
    assert len(shown["metrics"]) == 2
    ended = mnist("runs", "show", "mlp-001")
    assert ended.code == 2
    assert "hint: did you mean mlp-0001" in ended.err


# ------------------------------------------------------------------------------ config and data


def test_config_commands(mnist: Mnist, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert {"mlp", "logistic", "cnn"} <= {
        row["name"] for row in mnist("config", "list", "--json").json
    }
    shown = mnist("config", "show", "-c", "cnn", "optimizer.lr=0.5")
    assert configs.load_text(shown.out, "shown").optimizer.lr == 0.5
    assert mnist("config", "show", "cnn", "optimizer.lr=0.5").out == shown.out
    assert mnist("config", "copy", "cnn").code == 0
    assert mnist("config", "copy", "cnn").code == 2  # never over a file that is there
    assert "schema" not in Path("cnn.yaml").read_text()  # which is not there
    ended = mnist("config", "check", "cnn.yaml", "mlp")
    assert (ended.code, ended.out) == (0, "cnn.yaml: ok\nmlp: ok\n")
    Path("bad.yaml").write_text("optimizer: {name: adam, lr: -0.1}\nmodle: mlp\n")
    ended = mnist("config", "check", "bad.yaml", "mlp")
    assert ended.code == 2
    assert ended.out == "mlp: ok\n"
    assert "bad.yaml:1:29: optimizer.lr: must be greater than 0, got -0.1" in ended.err
    assert "did you mean 'model'?" in ended.err
    assert mnist("config", "schema").json["properties"]["optimizer"]
    assert mnist("train", "--config", "nowhere").code == 2


def test_data_commands(mnist: Mnist, tmp_path: Path) -> None:
    assert "not fetched" in mnist("data", "list").out
    assert mnist("data", "list", "--json").json[0]["path"] is None
    assert mnist("data", "fetch", "mnits").code == 2
    assert (
        mnist("data", "verify").out == "no data is there yet; `mnist data fetch mnist` gets some\n"
    )
    assert mnist("data", "verify", "mnist").code == 4
    picture = tmp_path / "row.png"
    ended = mnist("data", "show", "data=synthetic", "-n", "4", "--out", str(picture))
    assert ended.code == 0
    assert len(ended.out.splitlines()[0].split(": ")[-1].split()) == 4
    assert picture.read_bytes()[1:4] == b"PNG"


def test_no_data_and_no_network_exits_4_and_leaves_no_run(mnist: Mnist, runs: Path) -> None:
    ended = mnist("train")
    assert ended.code == 4
    for word in (
        "torchvision",
        "package index",
        "MNIST_OFFLINE",
        "hint: ",
        "mnist data fetch mnist --from",
    ):
        assert word in ended.err
    assert not runs.exists()


# ------------------------------------------------------------------------------------- usage


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (("train", "--nme", "x"), "--nme"),
        (("train", "--name", "../x"), "name"),
        (("train", "--name", "a.b"), "name"),
        (("train", "--device", "cuda:99", *SMALL), "available: cpu"),
        (("train", "--device", "tpu"), "train.device"),
        (("train", "optimizer.lr"), "optimizer.lr"),
        (("sweep", "--grid", "model.depth"), "must be KEY=VALUE"),
        (("eval", "--split", "all"), "all"),
        (("fly",), "fly"),
        (("data", "show", "-n", "0"), "-n"),
    ],
)
def test_usage_errors_exit_2(
    mnist: Mnist, argv: tuple[str, ...], sentence: str, runs: Path
) -> None:
    ended = mnist(*argv)
    assert ended.code == 2
    assert sentence in ended.err
    assert ended.out == ""
    assert not runs.exists()


def test_what_should_not_happen_is_a_line_and_with_debug_a_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mnist_cli import cli

    def broken() -> None:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr("mnist_cli.config.presets", broken)
    assert cli.run_command(["config", "list"]) == 1
    assert capsys.readouterr().err.startswith("error: ZeroDivisionError: oh\nhint: ")
    assert cli.run_command(["config", "list", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


# ------------------------------------------------------------------------------- whole processes


def start(*argv: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "mnist_cli", *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("command", ["train", "sweep"])
def test_an_interrupted_run_has_saved_what_it_had(
    command: str, number: signal.Signals, code: int, runs: Path
) -> None:
    process = start(command, "data={name: synthetic, size: 700}", "--epochs", "100000")
    folder = runs / ("mlp-0001" if command == "train" else "mlp-sweep-0001/trials/002")
    deadline = time.monotonic() + 60
    while len(RunDirectory(folder).metrics()) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == code, err
    assert "interrupted: " in err
    owner = runs / ("mlp-0001" if command == "train" else "mlp-sweep-0001")
    assert err.endswith(f"hint: go on with: mnist resume {owner}\n")
    assert "Traceback" not in err
    run = RunDirectory(folder)
    assert run.meta()["status"] == "interrupted"
    saved = torch.load(folder / "last.pt", weights_only=True)
    assert saved["epoch"] == len(run.metrics())
    assert run.summary()["epochs"] >= 2


def test_help_and_config_errors_import_no_torch(tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("optimizer: {lr: -1}\n")
    for argv in (
        ["--help"],
        ["train", "--config", str(bad)],
        ["config", "check", "mlp"],
        ["runs", "list"],
    ):
        code = (
            "import sys; from mnist_cli.cli import run_command\n"
            f"run_command({argv!r})\n"
            "heavy = {'torch', 'torchvision', 'matplotlib'} & set(sys.modules)\n"
            "sys.exit(str(heavy) if heavy else 0)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, (argv, done.stderr)


def test_training_imports_no_torchvision() -> None:
    code = (
        "import sys; from mnist_cli.cli import run_command\n"
        f"run_command({['train', *SMALL]!r})\n"
        "sys.exit('torchvision' in sys.modules)"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode
        == 0
    )


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    command = f"{sys.executable} -m mnist_cli config schema | head -c 10"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_module_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mnist_cli", "--version"], capture_output=True, text=True, check=True
    )
    assert re.fullmatch(r"mnist \d+\.\d+\.\d+\n", done.stdout)


# ------------------------------------------------------------------------------------- seeds


def test_seeds_give_means_spreads_and_a_verdict(mnist: Mnist) -> None:
    ended = mnist("sweep", *SMALL, "--lrs", "1e-2,1.1e-2,1e-5", "--seeds", "3")
    assert ended.code == 0
    rows = [line for line in ended.out.splitlines() if "trials/" in line and "%" in line]
    assert re.search(r"★ .* [\d.]+ ± [\d.]+ % +[\d.]+ to [\d.]+ % +[\d.]+ +3 ", rows[0])
    assert re.search(
        r"winner: lr 0\.01\d?: val acc [\d.]+ ± [\d.]+ % over 3 seeds; best ", ended.out
    )
    verdict = next(line for line in ended.out.splitlines() if "at 95 % confidence" in line)
    assert "1e-05" not in verdict
    assert re.fullmatch(r"cannot be told from the winner at 95 % confidence: lr 0\.01\d?", verdict)


def test_train_with_seeds_is_the_same_run_several_times(mnist: Mnist, runs: Path) -> None:
    ended = mnist("train", *SMALL, "--seeds", "0,5", "--json")
    assert ended.code == 0
    assert [trial["train.seed"] for trial in ended.json["trials"]] == [0, 5]
    assert "test/acc" not in ended.json["best"]  # the test split stays closed to `train`
    assert ended.json["sweep"] == "mlp-seeds-0001"
    assert mnist("train", *SMALL, "--seeds", "2", "--seed", "1").code == 2


def test_select_loss_and_eval_train(mnist: Mnist, runs: Path) -> None:
    mnist("train", *SMALL, "train.select=loss", "train.eval_train=true")
    run = RunDirectory(runs / "mlp-0001")
    summary, records = run.summary(), run.metrics()
    assert summary["best"]["val/loss"] == min(record["val/loss"] for record in records)
    # Measured with the final weights, and so better than the running mean of the last epoch.
    assert summary["final"]["train/loss"] < records[-1]["train/loss"]
    ended = mnist("eval", "--checkpoint", str(run.last), "--split", "train", "--json")
    assert ended.json["loss"] == pytest.approx(summary["final"]["train/loss"])
    assert ended.json["acc"] == summary["final"]["train/acc"]


def test_plot_draws_everything_from_the_folder_alone(mnist: Mnist, runs: Path) -> None:
    mnist("sweep", *SMALL, "--lrs", "1e-5,1e-2", "--seeds", "2", "--grid", "model=logistic,mlp")
    folder = runs / "mlp-sweep-0001"
    wanted = {"curves", "accuracy-optimizer.lr", "accuracy-model", "confusion-val", "mistakes-val"}
    for picture in (folder / "plots").iterdir():
        picture.unlink()
    ended = mnist("plot", "mlp-sweep-0001")
    assert ended.code == 0, ended.err
    assert {Path(line).stem for line in ended.out.splitlines()} == wanted
    assert {path.stem for path in (folder / "plots").iterdir()} == wanted
    ended = mnist("plot", "mlp-sweep-0001/trials/000", "--split", "test")
    assert {Path(line).stem for line in ended.out.splitlines()} == {
        "curves", "confusion-test", "mistakes-test",
    }  # fmt: skip
    assert mnist("plot", "nothing").code == 2


# -------------------------------------------------------------------------- whatever goes wrong


def test_a_run_that_fails_before_its_first_epoch_can_be_looked_at(
    mnist: Mnist, monkeypatch: pytest.MonkeyPatch, runs: Path
) -> None:
    break_model(monkeypatch, "mlp")
    ended = mnist("train", *SMALL)
    assert ended.code == 1
    assert "error: mlp-0001 failed: out of luck" in ended.err
    page = mnist("runs", "show", "mlp-0001").out
    assert "failed" in page
    assert "RuntimeError: out of luck" in page
    assert "mlp-0001" in mnist("runs", "list").out


def test_a_sweep_checks_devices_and_data_before_it_makes_a_folder(mnist: Mnist, runs: Path) -> None:
    ended = mnist("sweep", *SMALL, "--lrs", "1e-2", "--grid", "train.device=cpu,cuda:77")
    assert ended.code == 2
    ended = mnist("sweep", "--lrs", "1e-2", "--grid", "data={name: synthetic, size: 70},mnist")
    assert ended.code == 4
    assert not runs.exists()


def test_eval_says_when_the_images_may_have_been_trained_on(mnist: Mnist, runs: Path) -> None:
    mnist("train", *SMALL)
    own = mnist("eval", "--checkpoint", "best.pt", "data.normalize=true")
    assert "note: " not in own.err
    other = mnist("eval", "--checkpoint", "best.pt", "data.split=official")
    assert "it may have been trained on these images" in other.err


def test_a_selection_that_saw_the_test_set_is_told(mnist: Mnist) -> None:
    note = "note: the test set validates"
    assert note not in mnist("train", *SMALL).err
    assert note in mnist("train", *SMALL, "data.split=official").err
    swept = mnist("sweep", *SMALL, "--lrs", "1e-2", "--grid", "data.split=pooled,official")
    assert note in swept.err


def test_lines_to_paste_are_quoted(mnist: Mnist, tmp_path: Path) -> None:
    ended = mnist("train", *SMALL, "--runs-dir", str(tmp_path / "a b"))
    assert f"mnist eval --checkpoint '{tmp_path}/a b/mlp-0001/best.pt'" in ended.out


def test_tables_are_never_cut(mnist: Mnist, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    ended = mnist("sweep", *SMALL, "--lrs", "1e-2,1e-3", "--seeds", "2")
    assert "…" not in ended.out
    assert ended.out.count("mlp-sweep-0001/trials/00") >= 2


def test_the_star_of_the_picture_is_the_winner(
    mnist: Mnist, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.axes import Axes

    starred = []
    plot = Axes.plot

    def spy(self: Axes, *args: Any, **options: Any) -> Any:
        if args[2:] == ("*",):
            starred.append(args[0][0])
        return plot(self, *args, **options)

    monkeypatch.setattr(Axes, "plot", spy)
    ended = mnist("sweep", *SMALL, "train.select=loss", "--lrs", "1e-3,1e-2,2e-1", "--json")
    assert starred == [ended.json["best"]["optimizer.lr"]]
    losses = [trial["val/loss"] for trial in ended.json["trials"]]
    assert ended.json["best"]["val/loss"] == min(losses)


def test_a_group_of_commands_alone_shows_its_help(mnist: Mnist) -> None:
    for argv in ((), ("runs",), ("data",)):
        ended = mnist(*argv)
        assert ended.code == 2
        assert ended.err.startswith("Usage: mnist")
