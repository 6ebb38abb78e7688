"""Every exit code of the contract, through the command line, with one line and no traceback.

130 and 143 are in tests/reliability/test_signals.py.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mnist_cli import cli, errors
from mnist_cli.models import modules as models
from mnist_cli.report import plots
from mnist_cli.runs import evaluate, store
from mnist_cli.runs.store import RunDirectory
from tests.cli.conftest import SMALL
from tests.conftest import Ended, Mnist

# What torch says, shortened; `RuntimeError` is all it has for it.
NO_MEMORY = (
    "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory"
)


def raises(error: BaseException) -> Callable[..., Any]:
    """A function that raises an error, whatever it is given."""

    def broken(*_: object) -> None:
        raise error

    return broken


def breaks(monkeypatch: pytest.MonkeyPatch, name: str, error: BaseException) -> None:
    """Makes building a model fail."""
    monkeypatch.setitem(models.MODELS, name, raises(error))


def one_error(ended: Ended, code: int, pattern: str) -> None:
    """That it ended with a code, and said why in one line."""
    lines = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    assert ended.code == code, ended.err
    assert len(lines) == 1, ended.err
    assert re.search(pattern, lines[0]), lines[0]


# ----------------------------------------------------------------------------- 0: all is well


@pytest.mark.parametrize(
    "line",
    ["--help", "--version", "train --help", "runs list", "config list", "data list", "data verify"],
)
def test_0_what_asks_for_nothing_to_be_done(line: str, mnist: Mnist) -> None:
    assert mnist(*line.split()).code == 0


@pytest.mark.parametrize("name", ["mlp-0001", "mlp-sweep-0001"])
def test_0_resuming_what_is_finished(name: str, mnist: Mnist, trained: Path) -> None:
    ended = mnist("resume", name, "--json")
    assert (ended.code, ended.json["status"]) == (0, "finished")


def test_0_what_cannot_be_drawn_is_a_warning(
    mnist: Mnist, monkeypatch: pytest.MonkeyPatch, runs: Path
) -> None:
    monkeypatch.setattr(plots, "draw", raises(ValueError("no ink")))
    ended = mnist("train", *SMALL)
    assert ended.code == 0
    assert re.search("^warning: .*no ink", ended.err, re.MULTILINE)
    assert RunDirectory(runs / "mlp-0001").status() == "finished"


# ------------------------------------------------------------------------ 1: the run has failed


def test_1_a_run_that_crashes_and_then_does_not(
    mnist: Mnist, monkeypatch: pytest.MonkeyPatch, runs: Path
) -> None:
    with monkeypatch.context() as patch:
        breaks(patch, "mlp", RuntimeError("out of luck"))
        one_error(mnist("train", *SMALL, "--json"), 1, "mlp-0001.*out of luck")
        one_error(mnist("resume", "mlp-0001"), 1, "mlp-0001.*out of luck")
        page = mnist("runs", "show", "mlp-0001").out
        assert "failed" in page
        assert "RuntimeError: out of luck" in page
    run = RunDirectory(runs / "mlp-0001")
    assert run.status() == "failed"
    assert mnist("resume", "mlp-0001").code == 0
    assert run.status() == "finished"
    assert "error" not in run.meta()


def test_1_a_run_that_diverges(mnist: Mnist, runs: Path) -> None:
    ended = mnist("train", *SMALL, "optimizer={name: sgd, lr: 1e38}", "--json")
    one_error(ended, 1, "mlp-0001 diverged.*epoch 1")
    assert (ended.json["status"], ended.json["checkpoint"]) == ("diverged", None)
    assert RunDirectory(runs / "mlp-0001").meta()["status"] == "diverged"
    assert not (runs / "mlp-0001" / "best.pt").exists()


@pytest.mark.parametrize(
    "error",
    [RuntimeError(NO_MEMORY), MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried")],
    ids=["torch", "Python", "CUDA"],
)
def test_1_too_little_memory(
    error: Exception, mnist: Mnist, monkeypatch: pytest.MonkeyPatch, runs: Path
) -> None:
    breaks(monkeypatch, "mlp", error)
    ended = mnist("train", *SMALL)
    one_error(ended, 1, "mlp-0001.*not enough memory")
    assert "--batch-size" in ended.err
    ended = mnist("sweep", *SMALL, "--lrs", "1e-2,1e-3", "--fuse", "off", "--workers", "2")
    one_error(ended, 3, "2 of 2 runs failed")
    assert ended.err.count("there is not enough memory for it") == 2
    trial = RunDirectory(runs / "mlp-sweep-0001" / "trials" / "000")
    assert "not enough memory" in trial.meta()["error"]
    assert "alloc_cpu" not in ended.err


def test_1_too_little_memory_outside_of_training(
    mnist: Mnist, monkeypatch: pytest.MonkeyPatch, trained: Path
) -> None:
    for digits in (13, 17, 30):  # from some size on torch has other words for it
        one_error(mnist("train", *SMALL, f"model.width={10**digits}"), 1, "not enough memory")
    monkeypatch.setattr(evaluate, "classify", raises(MemoryError()))
    one_error(mnist("eval"), 1, "not enough memory")


def test_1_what_should_not_happen(mnist: Mnist, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "all_runs", raises(ZeroDivisionError("oh")))
    one_error(mnist("runs", "list"), 1, "ZeroDivisionError: oh")


# ----------------------------------------------------------------- 2: the command line, the config


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (("fly",), "fly"),
        (("train", "--nme", "x"), "--nme"),
        (("train", "--name", "../x"), "name"),
        (("train", "--device", "tpu"), "train.device"),
        (("train", "--device", "cuda:99", *SMALL), "available: cpu"),
        (("train", "--workers", "0"), "--workers"),
        (("train", "--fuse", "maybe"), "--fuse"),
        (("train", "--lr", ".1", "--lr=.2"), "--lr is given 2 times"),
        (("train", "--seeds", "2", "--seed", "1"), "train.seed"),
        (("train", "--runs-dir", "a file", *SMALL), "a file"),
        (("train", "train.precision=tf32", "--device", "cpu", *SMALL), "tf32 needs a GPU"),
        (("sweep", "--lrs"), "--lrs"),
        (("sweep", *SMALL, "--lrs", "1", "--grid", "train.device=cpu,cuda:77"), "cuda:77"),
        (("sweep", "--config", "plain.yaml"), "nothing to sweep"),
        (("sweep", "--seeds", "1000", "--grid", "model.width=8..1007", "--dry-run"), "4,000,000"),
        (("resume",), "no runs in"),
        (("resume", "nothing"), "no run 'nothing'"),
        (("resume", "mlp-0001", "--epochs", "0"), "--epochs"),
        (("eval", "--split", "all"), "all"),
        (("eval", "--checkpoint", "A", "--checkpoint", "B"), "--checkpoint is given 2 times"),
        (("runs", "show", "nothing"), "no run 'nothing'"),
        (("config", "show", "-c", "nowhere"), "nowhere"),
        (("data", "fetch", "nothing"), "no data set 'nothing'"),
        (("data", "show", "-n", "0"), "-n"),
        (("data", "show", "-n", "3", "-n", "4"), "-n is given 2 times"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, tuple) else "",
)
def test_2_usage(
    argv: tuple[str, ...],
    named: str,
    mnist: Mnist,
    runs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a file").touch()
    Path("plain.yaml").write_text("model: logistic\n")
    ended = mnist(*argv)
    assert ended.code == 2
    assert len(re.findall("^error: ", ended.err, re.MULTILINE)) <= 1
    assert named in ended.err
    assert ended.out == ""
    assert not runs.exists()


@pytest.mark.parametrize("argv", [(), ("runs",), ("data",)])
def test_2_a_group_of_commands_alone_shows_its_help(argv: tuple[str, ...], mnist: Mnist) -> None:
    ended = mnist(*argv)
    assert ended.code == 2
    assert ended.err.startswith("Usage: mnist")


def test_2_a_name_that_is_nearly_one(mnist: Mnist, trained: Path) -> None:
    ended = mnist("runs", "show", "mlp-001")
    one_error(ended, 2, "mlp-001")
    assert "mlp-0001" in ended.err
    one_error(mnist("eval", "model.depth=3"), 2, "model.depth")
    one_error(mnist("eval", "data=mnist"), 4, "MNIST")


@pytest.mark.parametrize("command", ["train -c", "sweep -c", "config check"])
def test_2_a_config_lists_all_its_problems(command: str, mnist: Mnist, tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("optimizer: {name: adam, lr: -0.1}\nmodle: mlp\ntrain: {clip_grad_norm: 0}\n")
    ended = mnist(*command.split(), str(bad))
    assert (ended.code, ended.out) == (2, "")
    places = re.findall(rf"^{re.escape(str(bad))}:(\d):\d+: ", ended.err, re.MULTILINE)
    assert places == ["1", "2", "3"]


# --------------------------------------------------------------------------- 3: trials that failed


@pytest.mark.parametrize("workers", ["1", "2"])
def test_3_a_failed_trial_beside_others(
    workers: str, mnist: Mnist, monkeypatch: pytest.MonkeyPatch, runs: Path
) -> None:
    """Diverging is a result, failing is none: one that failed decides the code."""
    breaks(monkeypatch, "cnn", RuntimeError("out of luck"))
    argv = ("optimizer=sgd", "--workers", workers, "--json")
    ended = mnist("sweep", *SMALL, *argv, "--lrs", "1e38", "--grid", "model=cnn,logistic")
    one_error(ended, 3, "1 of 2 runs failed: mlp-sweep-0001/trials/000$")
    assert [trial["status"] for trial in ended.json["trials"]] == ["failed", "diverged"]
    failed = RunDirectory(runs / "mlp-sweep-0001/trials/000")
    assert failed.meta()["error"] == "RuntimeError: out of luck"
    ended = mnist("sweep", *SMALL, *argv, "--lrs", "1e38", "--grid", "model=mlp,logistic")
    one_error(ended, 1, "every run diverged")
    assert ended.json["best"] is None
    ended = mnist("sweep", *SMALL, *argv, "--lrs", "1e38,0.1")
    assert (ended.code, ended.json["best"]["optimizer.lr"]) == (0, 0.1)
    assert [trial["status"] for trial in ended.json["trials"]] == ["diverged", "finished"]
    breaks(monkeypatch, "mlp", RuntimeError("out of luck"))
    one_error(mnist("train", *SMALL, "--seeds", "2"), 3, "2 of 2 runs failed")


# -------------------------------------------------------------------------------------- 4: data


def test_4_data(mnist: Mnist, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = mnist("train")
    one_error(missing, 4, "MNIST")
    assert "mnist data fetch mnist --from" in missing.err
    one_error(mnist("sweep", "--lrs", "1", "--grid", f"{SMALL[0]},mnist"), 4, "MNIST")
    data = tmp_path / "data"
    data.mkdir(exist_ok=True)
    (data / "mnist.prepared").write_bytes(b"not at all")
    for argv in (("train",), ("sweep",), ("data", "verify"), ("data", "show")):
        one_error(mnist(*argv), 4, "mnist.prepared")
    assert not runs.exists()
    one_error(mnist("data", "fetch", "kmnist", "--from", str(tmp_path)), 4, "no files of")
    monkeypatch.setenv("MNIST_DATA_DIR", str(data / "mnist.prepared"))
    one_error(mnist("data", "fetch", "mnist"), 4, "cannot be written to")


# ------------------------------------------------------------------------------- 5: a checkpoint


def test_5_what_is_no_checkpoint(mnist: Mnist, tmp_path: Path, trained: Path) -> None:
    content = (trained / "mlp-0001" / "best.pt").read_bytes()
    (tmp_path / "half.pt").write_bytes(content[: len(content) // 2])
    (tmp_path / "notes.txt").write_text("hello")
    torch.save({"0.weight": torch.zeros(3, 3)}, tmp_path / "foreign.pt")
    for name in ("half.pt", "notes.txt", "foreign.pt", "", "gone/best.pt"):
        one_error(mnist("eval", "--checkpoint", str(tmp_path / name)), 5, "")
    one_error(mnist("eval", "--checkpoint", "other.pt"), 5, "other.pt")
    one_error(mnist("import", str(tmp_path / "foreign.pt"), "model=logistic"), 5, "")


def test_5_a_checkpoint_that_does_not_fit(mnist: Mnist, trained: Path) -> None:
    best = trained / "mlp-0001" / "best.pt"
    content = torch.load(best, weights_only=True)
    content["model"].popitem()
    torch.save(content, best)
    for argv in (("eval",), ("predict", "picture.png")):
        one_error(mnist(*argv, "--checkpoint", str(best)), 5, "3.bias")
    one_error(mnist("plot", "mlp-0001"), 5, "3.bias")


# ------------------------------------------------------------------------------------- --debug


@pytest.mark.parametrize(
    ("code", "line"),
    [
        (1, ["train", *SMALL, "model=cnn"]),
        (2, ["train", "--nothing"]),
        (2, ["train", "lr"]),
        (3, ["sweep", *SMALL, "--lrs", "1", "--grid", "model=cnn,logistic", "--workers", "1"]),
        (3, ["sweep", *SMALL, "--lrs", "1", "--grid", "model=cnn,logistic", "--workers", "2"]),
        (4, ["train"]),
        (5, ["eval", "--checkpoint", "gone.pt"]),
    ],
)
def test_debug_shows_the_traceback_and_nothing_else_does(
    code: int,
    line: list[str],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    breaks(monkeypatch, "cnn", RuntimeError("out of luck"))
    assert cli.run_command(line) == code
    assert "Traceback" not in capfd.readouterr().err  # nor what a worker says
    assert cli.run_command([*line, "--debug"]) == code
    shown = capfd.readouterr().err
    assert "Traceback" in shown
    if code in (1, 3):  # down to where it happened
        assert "in broken" in shown
        assert "RuntimeError: out of luck" in shown


def test_every_code_is_in_the_readme() -> None:
    """The list that scripts rely on is that of the classes."""
    kinds = (errors.RunError, errors.UsageError, errors.SweepError)
    assert [kind.exit_code for kind in kinds] == [1, 2, 3]
    assert [errors.DataError.exit_code, errors.CheckpointError.exit_code] == [4, 5]
    readme = Path(__file__).parents[2] / "README.md"
    (line,) = (text for text in readme.read_text().splitlines() if "Exit codes:" in text)
    codes = re.findall(r"(?:^|[ ;])(\d{1,3})(?= )", line.partition("Exit codes:")[2])
    assert codes == [*"012345", "130", "143"]
