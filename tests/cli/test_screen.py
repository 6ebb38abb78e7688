"""What becomes of output: nothing in it can harm a terminal, and losing it harms no run."""

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mnist_cli.cli import run_command
from mnist_cli.cli.screen import console
from mnist_cli.errors import printable
from mnist_cli.report.tables import table
from mnist_cli.runs.store import RunDirectory
from tests.cli.conftest import SMALL
from tests.conftest import Mnist

# Colours, the clipboard (OSC 52), a C1 control sequence, text turned round, and a return.
HOSTILE = "a\x1b[31mb\x1b]52;c;ZXZpbA==\x07c\x9b2Jd\u202ee\u2066f\rg"
HARMFUL = set("\x1b\x07\x9b\u202e\u2066\r\x7f")


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_characters_that_cannot_be_written_degrade(
    encoding: str, monkeypatch: pytest.MonkeyPatch, runs: Path
) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding))
    assert run_command(["sweep", *SMALL, "--lrs", "1e-2,1e-3"]) == 0
    assert written.getvalue().decode(encoding).count("trials/") == 2


@pytest.mark.parametrize("output", ["closed", "all closed", "without a reader", "full"])
def test_an_output_that_is_lost_costs_no_training(
    output: str, monkeypatch: pytest.MonkeyPatch, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w", buffering=1) as pipe, Path("/dev/full").open("w") as full:  # noqa: PTH123
        stream = {"without a reader": pipe, "full": full}.get(output)
        monkeypatch.setattr(sys, "stdout", stream)
        if output == "all closed":
            monkeypatch.setattr(sys, "stderr", None)
        assert run_command(["train", *SMALL]) == 0
        assert run_command(["runs", "list"]) == 0
    assert RunDirectory(runs / "mlp-0001").status() == "finished"
    assert ("No space left" in capsys.readouterr().err) == (output == "full")


@pytest.mark.parametrize("end", ["| head -c 10", ">&- 2>&-"])
def test_a_whole_process_ends_well_too(end: str) -> None:
    command = f"set -o pipefail; {sys.executable} -m mnist_cli config schema {end}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr


def test_printable_keeps_text_and_escapes_what_terminals_act_on() -> None:
    assert printable("é ★ ±\n\tx") == "é ★ ±\n\tx"
    assert not HARMFUL & set(printable(HOSTILE))
    assert json.loads(f'"{printable(HOSTILE)}"') == HOSTILE


def test_a_table_is_safe_and_never_cut(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    console().print(table([{"a": HOSTILE, ">b": "x" * 100}]))
    shown = capsys.readouterr().out
    assert not HARMFUL & set(shown)
    assert "x" * 100 in shown  # a figure, which is not shortened


def test_no_command_prints_what_a_terminal_acts_on(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    trained: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Names of runs, files and tensors, what meta and summary say, and what is typed."""
    monkeypatch.chdir(tmp_path)
    hostile = trained / HOSTILE
    (trained / "mlp-0001").rename(hostile)
    meta, summary = hostile / "meta.json", hostile / "summary.json"
    meta.write_text(json.dumps(json.loads(meta.read_text()) | {"git": HOSTILE, "device": HOSTILE}))
    summary.write_text(json.dumps(json.loads(summary.read_text()) | {"status": HOSTILE}))
    torch.save({HOSTILE: torch.zeros(2)}, "foreign.pt")
    Path(HOSTILE).write_text(f"model: {HOSTILE[:1]}\n")
    for argv in (
        ("runs", "list"), ("runs", "list", "--json"), ("runs", "show", HOSTILE),
        ("runs", "show", HOSTILE, "--json"), ("runs", "show", HOSTILE + "?"),
        ("resume", HOSTILE), ("resume", HOSTILE, HOSTILE), ("plot", HOSTILE),
        ("eval", "--checkpoint", str(hostile / "best.pt")), ("eval", "--checkpoint", HOSTILE),
        ("eval", "--checkpoint", HOSTILE, "--json"), ("predict", HOSTILE),
        ("import", "foreign.pt"), ("import", HOSTILE), ("train", "-c", HOSTILE),
        ("train", HOSTILE), ("train", f"{HOSTILE}=1"), ("train", f"--{HOSTILE}"), (HOSTILE,),
        ("train", "--lr", HOSTILE), ("sweep", "--grid", f"model.depth={HOSTILE}"),
        ("config", "check", HOSTILE), ("data", "fetch", HOSTILE), ("eval", HOSTILE, "--debug"),
    ):  # fmt: skip
        run_command(argv)
        captured = capsys.readouterr()
        found = HARMFUL & set(captured.out + captured.err)
        assert not found, (argv, found)


@pytest.mark.parametrize("group", ["", "runs", "config", "data"])
def test_what_a_command_does_is_said_in_a_whole_sentence(
    group: str, mnist: Mnist, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    commands = mnist(*group.split(), "--help").out.partition("Commands:\n")[2].split("\n\n")[0]
    lines = commands.strip("\n").split("\n")
    assert len(lines) >= 2
    assert all(re.fullmatch(r"  \w+ +[A-Z].*[^.]\.", line) for line in lines), commands


def test_quiet_leaves_results_and_errors(mnist: Mnist, trained: Path) -> None:
    loud, quiet = (mnist("train", *SMALL, *words) for words in ((), ("--quiet",)))
    assert "epoch 2/2" in loud.err
    assert (quiet.code, quiet.err) == (0, "")
    assert "best checkpoint: " in quiet.out
    assert mnist("train", *SMALL, "--quiet", "--json").err == ""
    assert "unknown setting" in mnist("--quiet", "train", "modle=1").err


def test_a_config_comes_from_stdin(mnist: Mnist, monkeypatch: pytest.MonkeyPatch) -> None:
    def given(text: str) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))

    given("optimizer: {lr: 0.5}\n")
    assert "lr: 0.5" in mnist("config", "show", "-c", "-").out
    given("optimizer: {lr: -1}\n")
    assert mnist("train", "-").err.startswith("-:1:17: optimizer.lr")
    monkeypatch.setattr(sys, "stdin", None)  # it is closed
    assert mnist("train", "-").code == 2
