"""Every exit code of the contract, through the command line, with a sentence and no traceback.

130 and 143 are in `test_signals`.
"""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from mnist_cli import cli
from mnist_cli.models import modules as models
from mnist_cli.report import plots
from mnist_cli.runs.store import RunDirectory
from tests.conftest import Ended, Mnist

SMALL = ("data={name: synthetic, size: 140}", "--epochs", "1")
# What torch says, shortened; `RuntimeError` is all it has for it.
NO_MEMORY = (
    "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: "
    "you tried to allocate 3136000000000 bytes. Error code 12 (Cannot allocate memory)"
)


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "draw", lambda _: [])


def breaks(monkeypatch: pytest.MonkeyPatch, name: str, error: BaseException) -> None:
    """Makes building a model fail."""

    def broken(*_: object) -> torch.nn.Module:
        raise error

    monkeypatch.setitem(models.MODELS, name, broken)


def one_error(ended: Ended, code: int, pattern: str) -> None:
    """That it ended with a code, and said why in one line."""
    lines = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    assert ended.code == code, ended.err
    assert len(lines) == 1, ended.err
    assert re.search(pattern, lines[0]), lines[0]


# ----------------------------------------------------------------------------- 0: all is well


@pytest.mark.parametrize(
    "argv",
    [
        ("--help",),
        ("--version",),
        ("train", "--help"),
        ("resume", "--help"),
        ("runs", "list"),
        ("config", "list"),
        ("data", "list"),
        ("data", "verify"),
        ("sweep", "--dry-run"),
    ],
    ids=" ".join,
)
def test_0_what_asks_for_nothing_to_be_done(argv: tuple[str, ...], mnist: Mnist) -> None:
    assert mnist(*argv).code == 0


def test_0_resuming_what_is_finished(mnist: Mnist) -> None:
    assert mnist("train", *SMALL).code == 0
    ended = mnist("resume", "mlp-0001", "--json")
    assert (ended.code, ended.json["status"]) == (0, "finished")
    assert mnist("sweep", *SMALL, "--lrs", "1e-2").code == 0
    ended = mnist("resume", "mlp-sweep-0001", "--json")
    assert (ended.code, ended.json["status"]) == (0, "finished")


# ------------------------------------------------------------------------ 1: the run has failed


def test_1_a_run_that_crashes_and_then_does_not(
    mnist: Mnist, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with monkeypatch.context() as patch:
        breaks(patch, "mlp", RuntimeError("out of luck"))
        one_error(mnist("train", *SMALL, "--json"), 1, "^error: mlp-0001 failed: out of luck$")
        one_error(mnist("resume", "mlp-0001"), 1, "^error: mlp-0001 failed: out of luck$")
    run = RunDirectory(tmp_path / "runs" / "mlp-0001")
    assert run.status() == "failed"
    assert mnist("resume", "mlp-0001").code == 0
    assert run.status() == "finished"
    assert "error" not in run.meta()


@pytest.mark.parametrize(
    "error",
    [RuntimeError(NO_MEMORY), MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried")],
    ids=["torch", "Python", "CUDA"],
)
@pytest.mark.parametrize("workers", ["1", "2"])
def test_1_too_little_memory_is_one_sentence(
    error: Exception,
    workers: str,
    mnist: Mnist,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    breaks(monkeypatch, "mlp", error)
    ended = mnist("train", *SMALL)
    one_error(ended, 1, "^error: mlp-0001 failed: there is not enough memory for it$")
    assert "\nhint: take a smaller batch (--batch-size) or a smaller model" in ended.err
    ended = mnist("sweep", *SMALL, "--lrs", "1e-2,1e-3", "--fuse", "off", "--workers", workers)
    one_error(ended, 3, "2 of 2 runs failed")
    assert ended.err.count("there is not enough memory for it") == 2
    trial = RunDirectory(tmp_path / "runs" / "mlp-sweep-0001" / "trials" / "000")
    assert trial.meta()["error"].endswith("there is not enough memory for it")
    assert "alloc_cpu" not in ended.err


@pytest.mark.parametrize("digits", [13, 17, 30])
def test_1_a_model_that_no_machine_holds(digits: int, mnist: Mnist) -> None:
    """From some size on torch has other words for it."""
    ended = mnist("train", *SMALL, f"model.width={10**digits}")
    one_error(ended, 1, "there is not enough memory for it")


def test_1_too_little_memory_outside_of_training(
    mnist: Mnist, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> Any:
        raise MemoryError

    assert mnist("train", *SMALL).code == 0
    monkeypatch.setattr("mnist_cli.runs.evaluate.evaluate", full)
    one_error(mnist("eval"), 1, "^error: there is not enough memory for it$")


def test_1_a_disk_that_is_full(
    mnist: Mnist, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "last.pt")

    monkeypatch.setattr("mnist_cli.runs.checkpoint.save", full)
    one_error(mnist("train", *SMALL), 1, "mlp-0001 failed: .*No space left on device")
    assert RunDirectory(tmp_path / "runs" / "mlp-0001").status() == "failed"


# ----------------------------------------------------------------- 2: the command line, the config


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (("resume",), "RUN"),
        (("resume", "nothing"), "no run 'nothing'"),
        (("resume", ""), "the name of a run is missing"),
        (("resume", "mlp-0001", "--epochs", "0"), "--epochs"),
        (("runs", "show", "nothing"), "no run 'nothing'"),
        (("plot", "nothing"), "no run 'nothing'"),
        (("config", "show", "-c", "nowhere"), "nowhere"),
        (("data", "fetch", "nothing"), "no data set 'nothing'"),
        (("train", "--workers", "0"), "--workers"),
        (("train", "--workers", "many"), "--workers"),
        (("train", "--fuse", "maybe"), "--fuse"),
        (("sweep", "--lrs"), "--lrs"),
        (("train", "--runs-dir", "a file", *SMALL), "cannot make a run in a file"),
        (("train", "train.precision=tf32", "--device", "cpu", *SMALL), "tf32 needs a GPU"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, tuple) else "",
)
def test_2_usage(
    argv: tuple[str, ...],
    told: str,
    mnist: Mnist,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a file").touch()
    ended = mnist(*argv)
    one_error(ended, 2, re.escape(told))
    assert ended.out == ""


def test_2_a_config_lists_all_its_problems(mnist: Mnist, tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("optimizer: {name: adam, lr: -0.1}\nmodle: mlp\ntrain: {clip_grad_norm: 0}\n")
    for argv in (
        ("train", "-c", str(bad)),
        ("sweep", "-c", str(bad)),
        ("config", "check", str(bad)),
    ):
        ended = mnist(*argv)
        assert ended.code == 2
        assert ended.out == ""
        places = re.findall(rf"^{re.escape(str(bad))}:(\d):\d+: ", ended.err, re.MULTILINE)
        assert places == ["1", "2", "3"]


# --------------------------------------------------------------------------- 3: trials that failed


@pytest.mark.parametrize("workers", ["1", "2"])
def test_3_a_failed_trial_beside_one_that_diverged(
    workers: str, mnist: Mnist, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Diverging is a result, failing is none: one that failed decides the code."""
    breaks(monkeypatch, "cnn", RuntimeError("out of luck"))
    argv = ("optimizer=sgd", "--lrs", "1e38", "--workers", workers, "--json")
    ended = mnist("sweep", *SMALL, *argv, "--grid", "model=cnn,logistic")
    one_error(ended, 3, "^error: 1 of 2 runs failed: mlp-sweep-0001/trials/000$")
    assert [trial["status"] for trial in ended.json["trials"]] == ["failed", "diverged"]
    ended = mnist("sweep", *SMALL, *argv, "--grid", "model=mlp,logistic")
    one_error(ended, 1, "every run diverged")


def test_3_seeds_are_a_sweep_too(mnist: Mnist, monkeypatch: pytest.MonkeyPatch) -> None:
    breaks(monkeypatch, "mlp", RuntimeError("out of luck"))
    one_error(mnist("train", *SMALL, "--seeds", "2"), 3, "2 of 2 runs failed")


# -------------------------------------------------------------------------------------- 4: data


def test_4_data(mnist: Mnist, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "mnist.prepared").write_bytes(b"not at all")
    for argv in (("train",), ("sweep",), ("data", "verify"), ("data", "show")):
        one_error(mnist(*argv), 4, "is damaged")
    assert not (tmp_path / "runs").exists()
    one_error(mnist("data", "fetch", "kmnist", "--from", str(tmp_path)), 4, "no files of")
    monkeypatch.setenv("MNIST_DATA_DIR", str(data / "mnist.prepared"))
    one_error(mnist("data", "fetch", "mnist"), 4, "cannot be written to")


def test_4_data_that_has_gone_since(
    mnist: Mnist, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert mnist("train", *SMALL).code == 0
    one_error(mnist("eval", "data=mnist"), 4, "cannot be had from any source")


# ------------------------------------------------------------------------------- 5: a checkpoint


def test_5_a_checkpoint_that_does_not_fit(mnist: Mnist, tmp_path: Path) -> None:
    torch.save({"0.weight": torch.zeros(3, 3)}, tmp_path / "other.pt")
    one_error(mnist("import", str(tmp_path / "other.pt"), "model=logistic"), 5, "")
    one_error(mnist("eval"), 5, "no such file")
    one_error(mnist("predict", "picture.png"), 5, "no such file")
    assert mnist("train", *SMALL).code == 0
    best = tmp_path / "runs" / "mlp-0001" / "best.pt"
    content = torch.load(best, weights_only=True)
    content["model"].popitem()
    torch.save(content, best)
    for argv in (("eval",), ("predict", "picture.png"), ("plot", "mlp-0001")):
        one_error(mnist(*argv), 5, "it has no 3.bias")


# ------------------------------------------------------------------------------------- --debug


def failing(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[int, list[str]]:
    """A command line for each code, and that code."""
    breaks(monkeypatch, "cnn", RuntimeError("out of luck"))
    (tmp_path / "bad.pt").write_bytes(b"PK")
    (tmp_path / "bad.yaml").write_text("modle: mlp\n")
    two = ["--lrs", "1e-2", "--grid", "model=cnn,logistic"]
    lines: dict[str, tuple[int, list[str]]] = {
        "crashed": (1, ["train", *SMALL, "model=cnn"]),
        "diverged": (1, ["train", *SMALL, "optimizer=sgd", "--lr", "1e38"]),
        "usage": (2, ["train", "--nothing"]),
        "config": (2, ["train", "-c", str(tmp_path / "bad.yaml")]),
        "sweep": (3, ["sweep", *SMALL, *two, "--workers", "1"]),
        "workers": (3, ["sweep", *SMALL, *two, "--workers", "2"]),
        "data": (4, ["train"]),
        "checkpoint": (5, ["eval", "--checkpoint", str(tmp_path / "bad.pt")]),
    }
    return lines[name]


NAMES = ("crashed", "diverged", "usage", "config", "sweep", "workers", "data", "checkpoint")


@pytest.mark.parametrize("name", NAMES)
def test_debug_shows_the_traceback_and_nothing_else_does(
    name: str,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    code, argv = failing(name, monkeypatch, tmp_path)
    assert cli.run_command(argv) == code
    plain = capfd.readouterr().err  # also what a worker says
    assert "Traceback" not in plain
    assert cli.run_command([*argv, "--debug"]) == code
    shown = capfd.readouterr().err
    assert "Traceback" in shown
    if name in ("crashed", "sweep", "workers"):  # down to where it happened
        assert "in broken" in shown
        assert "RuntimeError: out of luck" in shown
    told = [line for line in plain.splitlines() if line.startswith(("error: ", "hint: "))]
    assert [line for line in shown.splitlines() if line in told] == [
        line.replace("0001", "0002") for line in told
    ] or name in ("crashed", "diverged", "sweep", "workers")


def test_every_code_is_told_in_the_help_of_the_project() -> None:
    """The list that scripts rely on is that of the classes."""
    from mnist_cli import errors

    classes = [errors.RunError, errors.UsageError, errors.SweepError]
    classes += [errors.DataError, errors.CheckpointError]
    assert [each.exit_code for each in classes] == [1, 2, 3, 4, 5]
    readme = Path(__file__).parents[2] / "README.md"
    (line,) = (text for text in readme.read_text().splitlines() if "Exit codes:" in text)
    assert re.findall(r"(?:^|[ ;])(\d{1,3})(?= )", line.partition("Exit codes:")[2]) == [
        *"012345", "130", "143",
    ]  # fmt: skip
