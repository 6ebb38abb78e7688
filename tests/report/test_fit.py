"""Tables in any width: whole words and whole figures, and the columns that matter."""

import io

import pytest

from mnist_cli.report.tables import table
from mnist_cli.report.terminal import Terminal

ROWS = [
    {"run": f"mlp-sweep-000{n}/trials/001", ">val acc": "95.24 ± 0.12 %", ">val loss": "0.1731",
     "what it is": "A multi-layer perceptron on pooled MNIST", ">took": "3 min 20 s"}
    for n in (1, 2)
]  # fmt: skip


def shown(width: int, *, terminal: bool = True) -> str:
    file = io.StringIO()
    console = Terminal(file=file, width=width, force_terminal=terminal, color_system=None)
    console.print(table(ROWS, least=("took",)))
    return file.getvalue()


@pytest.mark.parametrize("width", [120, 100, 80, 60, 50, 40])
def test_no_line_is_longer_and_no_word_or_figure_is_torn(width: int) -> None:
    text = shown(width)
    assert max(len(line) for line in text.splitlines()) <= width
    assert text.count("95.24 ± 0.12 %") == 2
    words = {word for row in ROWS for cell in row.values() for word in cell.split()}
    heads = {word for key in ROWS[0] for word in key.lstrip(">").split()}
    torn = {word for word in text.split() if word not in words | heads and set(word) != {"─"}}
    assert all(word.startswith("…") and "/trials/001".endswith(word[1:][-11:]) for word in torn)
    assert not torn or width <= 80


def test_columns_go_by_what_matters_least_and_then_from_the_right() -> None:
    assert {"took", "loss", "what"} <= {*shown(120).split()}
    assert {"loss", "what"} <= {*shown(70).split()}
    assert "took" not in shown(70)
    assert "what" not in shown(50)
    assert "loss" in shown(50)
    assert {"run", "acc"} <= {*shown(40).split()}


def test_what_a_program_reads_or_a_file_keeps_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS")
    assert shown(40, terminal=False) == shown(200)
