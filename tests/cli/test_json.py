"""What programs read: one document per command, errors included, as its schema has it."""

import json
import os
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from PIL import Image

from mnist_cli.report import schemas
from tests.cli.conftest import SMALL
from tests.conftest import Mnist

SWEPT = ("sweep", *SMALL, "--lrs", "1e-3,1e38", "optimizer=sgd", "--seeds", "2")


def paths(document: Any) -> list[str]:
    """All that look like paths of files in a document."""
    if isinstance(document, dict | list):
        items = document.values() if isinstance(document, dict) else document
        return [path for item in items for path in paths(item)]
    return [document] if isinstance(document, str) and document.endswith((".pt", ".png")) else []


COMMANDS = {
    "train": ("train", *SMALL),
    "sweep": SWEPT,
    "search": ("search", *SMALL, "lr=1e-3..1e-2", "--trials", "2"),
    "sweep --dry-run": (*SWEPT, "--dry-run"),
    "resume": ("resume", "mlp-sweep-0001"),
    "import": ("import", "w.npz", "model={name: logistic}"),
    "eval": ("eval", "mlp-0001", "mlp-sweep-0001", "--calibration"),
    "predict": ("predict", "a.png", "b.png", "--checkpoint", "mlp-0001"),
    "plot": ("plot", "mlp-0001"),
    "runs list": ("runs", "list"),
    "runs show": ("runs", "show", "mlp-sweep-0001"),
    "runs compare": ("runs", "compare", "mlp-0001", "mlp-sweep-0001"),
    "runs rm": ("runs", "rm", "mlp-0001", "--yes"),
    "config list": ("config", "list"),
    "config check": ("config", "check", "mlp", "nothing"),
    "config copy": ("config", "copy", "mlp"),
    "data list": ("data", "list"),
    "data verify": ("data", "verify"),
    "data show": ("data", "show", "synthetic"),
}
ELSEWHERE = {"report", "bench", "data fetch", "error"}  # where they are tested


def test_every_document_has_a_schema_that_is_tested() -> None:
    assert schemas.PRINTED.keys() == COMMANDS.keys() | ELSEWHERE


@pytest.mark.parametrize("line", COMMANDS)
def test_a_document_is_as_its_schema_says_and_its_paths_are_absolute(
    line: str, mnist: Mnist, tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MNIST_RUNS_DIR", os.path.relpath(trained))
    Image.new("L", (28, 28)).save("a.png")
    Path("b.png").touch()
    np.savez("w.npz", W1=np.zeros((784, 10), "f4"), b1=np.zeros(10, "f4"))
    document = mnist(*COMMANDS[line], "--json").json
    schema = mnist("config", "schema", "--for", line).json
    jsonschema.validate(document, schema)
    assert all(map(os.path.isabs, paths(document)))
    first = document if isinstance(document, dict) else (document or [None])[0]
    kinds = [schema, *schema.get("$defs", {}).values()]
    if isinstance(first, dict) and line != "runs list":  # which adds the run's summary
        assert any(first.keys() <= kind.get("properties", {}).keys() for kind in kinds)


@pytest.mark.parametrize(
    ("line", "code", "hint"),
    [
        ("train --nme x", 2, "--help"),
        ("train resume=True", 2, "mnist resume RUN"),
        ("train optimizer.lr=-1", 2, None),
        ("val", 2, "mnist eval"),
        ("train", 4, "mnist data fetch"),
        ("eval --checkpoint gone.pt", 5, "mnist runs list"),
        ("runs show nothing", 2, "mnist runs list"),
        ("data verify nothing", 2, "mnist"),
        ("config schema --for nothing", 2, "predict"),
    ],
)
def test_an_error_is_a_document_too(line: str, code: int, hint: str | None, mnist: Mnist) -> None:
    ended = mnist(*line.split(), "--json")
    assert ended.code == code
    jsonschema.validate(ended.json, mnist("config", "schema", "--for", "error").json)
    error = ended.json["error"]
    assert error["code"] == code
    assert error["message"].splitlines()[0] in ended.err
    assert hint in error["hint"] if hint else error["hint"] is None


def test_what_ends_badly_after_its_document_prints_no_other(mnist: Mnist) -> None:
    ended = mnist("train", *SMALL, "optimizer={name: sgd, lr: 1e38}", "--json")
    assert (ended.code, ended.json["status"]) == (1, "diverged")


def test_what_is_drawn_and_what_is_removed_is_listed(
    mnist: Mnist, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert mnist("plot", "mlp-0001", "mlp-sweep-0001", "--json").json == [f"{tmp_path}/compare.png"]
    compared = mnist("runs", "compare", "mlp-0001", "mlp-sweep-0001", "--json").json
    assert compared["plot"] == f"{tmp_path}/compare.png"
    assert mnist("runs", "rm", "mlp-0001", "-y", "--json").json == [str(trained / "mlp-0001")]


def test_every_command_that_shows_or_makes_something_has_a_document(
    mnist: Mnist, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.yaml").write_text("modle: 1\n")
    assert mnist("config", "show", "cnn", "--json").json["model"]["name"] == "cnn"
    checked = mnist("config", "check", "mlp", "bad.yaml", "--json")
    assert checked.code == 2
    assert [(row["config"], bool(row["error"])) for row in checked.json] == [
        ("mlp", False), ("bad.yaml", True),
    ]  # fmt: skip
    assert mnist("config", "copy", "cnn", "--json").json == {"path": str(tmp_path / "cnn.yaml")}
    assert mnist("data", "verify", "--json").json == []
    shown = mnist("data", "show", "synthetic", "-n", "3", "--json").json
    assert (shown["path"], len(shown["labels"])) == (str(tmp_path / "synthetic-train.png"), 3)
    assert json.loads(mnist("config", "schema").out)["properties"]
