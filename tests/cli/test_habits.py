"""What people type who come from other tools: it works, or the answer is what to type here."""

import re
from pathlib import Path

import pytest

from mnist_cli import config as configs
from tests.conftest import Mnist


def test_a_word_alone_is_the_config_and_a_key_needs_no_section(mnist: Mnist) -> None:
    short = ("lr=0.5", "epochs=3", "normalize=false", "name=lr")
    full = ("optimizer.lr=0.5", "train.epochs=3", "data.normalize=false", "name=lr")
    shown = mnist("config", "show", "cnn", *short).out
    assert configs.load_text(shown, "shown") == configs.load("cnn", full).config
    # A section by the name of its variant, which is no config.
    assert "{name: logistic}" in mnist("config", "show", "model=logistic").out
    two = mnist("train", "cnn", "mlp")
    assert (two.code, two.err.partition(":")[0]) == (2, "mlp")


@pytest.mark.parametrize("word", ["seed=3", "seed=1,2"])
def test_a_key_of_two_sections_is_refused_and_both_are_named(word: str, mnist: Mnist) -> None:
    ended = mnist("sweep", word, "--dry-run")
    assert ended.code == 2
    assert {"'data.seed'", "'train.seed'"} <= set(re.findall(r"'.*?'", ended.err))


@pytest.mark.parametrize(
    ("words", "runs"),
    [
        (("lr=1e-3,1e-2",), [{"optimizer.lr": 1e-3}, {"optimizer.lr": 1e-2}]),
        (("depth=1..2",), [{"model.depth": 1}, {"model.depth": 2}]),
        (("lr=log:1:4:3", "name=a"), [{"optimizer.lr": n} for n in (1, 2, 4)]),
        (("hidden=[50],[9,9]",), [{"model.hidden": [50]}, {"model.hidden": [9, 9]}]),
        (("hidden=[50,100]", "lr=1,2"), [{"optimizer.lr": 1}, {"optimizer.lr": 2}]),
        (("optimizer={name: sgd, lr: 1}", "model=mlp,cnn"), [{"model": "mlp"}, {"model": "cnn"}]),
    ],
)
def test_a_list_without_brackets_is_swept(
    words: tuple[str, ...], runs: list[dict[str, object]], mnist: Mnist, tmp_path: Path
) -> None:
    plain = tmp_path / "plain.yaml"
    plain.touch()
    plan = mnist("sweep", str(plain), *words, "--dry-run", "--json").json
    assert [{k: v for k, v in run.items() if k != "stack"} for run in plan["runs"]] == runs


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("val", "mnist eval --split val"),
        ("validate x", "mnist eval --split val"),
        ("test", "mnist eval --split test"),
        ("tune -c cnn", "mnist search"),
        ("fit", "mnist train"),
        ("train --momentum 0.9", "optimizer.momentum=VALUE"),
        ("train --gpus 2", "--device"),
        ("train --resume", "mnist resume RUN"),
        ("train resume=True", "mnist resume RUN"),
        ("train gpus=2", "--device"),
        ("sweep --lr 1", "optimizer.lr=VALUE"),
    ],
)
def test_a_word_of_another_tool_is_answered(line: str, answer: str, mnist: Mnist) -> None:
    ended = mnist(*line.split())
    assert (ended.code, ended.out) == (2, "")
    assert answer in ended.err.partition("hint: ")[2]


def test_help_is_a_command_too(mnist: Mnist) -> None:
    assert mnist("help").out == mnist("--help").out
    assert mnist("help", "runs", "list").out == mnist("runs", "list", "--help").out
    assert mnist("help", "fly").code == 2


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("ev", ["eval"]),
        ("train cnn_", ["cnn_sequential"]),
        ("train -c dep", ["depth"]),
        ("runs show mlp-", ["mlp-sweep-0001", "mlp-0001"]),
        ("plot mlp-s", ["mlp-sweep-0001"]),
        ("resume mlp-0", ["mlp-0001"]),
    ],
)
def test_a_shell_completes_commands_configs_and_runs(
    words: str, completed: list[str], mnist: Mnist, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("_MNIST_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", f"mnist {words}")
    monkeypatch.setenv("COMP_CWORD", str(len(words.split())))
    ended = mnist()
    assert (ended.code, ended.out.split()) == (0, completed)


def test_completion_is_installed_by_a_script_that_can_be_shown(mnist: Mnist) -> None:
    assert "_MNIST_COMPLETE=complete_bash" in mnist("--show-completion", "bash").out
