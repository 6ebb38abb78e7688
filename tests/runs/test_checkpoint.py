"""Checkpoints: what is saved comes back, and nothing else is let in."""

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from mnist_cli.config import Config
from mnist_cli.errors import CheckpointError
from mnist_cli.models.modules import build
from mnist_cli.runs import checkpoint
from mnist_cli.runs.checkpoint import Checkpoint


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, Checkpoint]:
    config = Config.model_validate({"model": {"name": "mlp", "width": 4}})
    state = build(config.model, (1, 28, 28), 10, 0).state_dict()
    made = Checkpoint(
        config=config.resolved(),
        epoch=3,
        step=12,
        metrics={"val/acc": 0.5},
        model=state,
        resume={"optimizer": {"exp_avg": torch.ones(3), "step": 12}},
    )
    path = tmp_path / "last.pt"
    checkpoint.save(path, made)
    return path, made


def test_what_is_saved_comes_back(saved: tuple[Path, Checkpoint]) -> None:
    path, made = saved
    back = checkpoint.load(path)
    assert (back.config, back.epoch, back.step, back.metrics) == (
        made.config,
        made.epoch,
        made.step,
        made.metrics,
    )
    assert checkpoint.digest(vars(back)) == checkpoint.digest(vars(made))
    assert list(path.parent.iterdir()) == [path]


def test_plain_torch_reads_it_and_a_plain_module_takes_it(saved: tuple[Path, Checkpoint]) -> None:
    path, _ = saved
    content = torch.load(path, weights_only=True)
    module = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(784, 4), torch.nn.ReLU(), torch.nn.Linear(4, 10)
    )
    module.load_state_dict(content["model"])


def test_flipped_weights_are_refused(saved: tuple[Path, Checkpoint]) -> None:
    path, made = saved
    content = path.read_bytes()
    weight = made.model["1.weight"].numpy().tobytes()
    place = content.index(weight[:64])
    path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.load(path)


@pytest.mark.parametrize("parts", range(1, 64, 7))
def test_truncated_files_are_refused(saved: tuple[Path, Checkpoint], parts: int) -> None:
    path, _ = saved
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * parts // 64])
    with pytest.raises(CheckpointError):
        checkpoint.load(path)


def test_other_things_are_refused_in_a_sentence(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("hello")
    fifo = tmp_path / "pipe"
    os.mkfifo(fifo)
    foreign = tmp_path / "foreign.pt"
    torch.save({"weight": torch.zeros(3)}, foreign)
    empty = tmp_path / "empty.pt"
    empty.touch()
    for path, sentence in [
        (tmp_path, "a directory"),
        (fifo, "not a regular file"),
        (text, "not a checkpoint"),
        (empty, "not a checkpoint"),
        (foreign, "not a checkpoint of mnist"),
        (tmp_path / "none.pt", "No such file"),
    ]:
        with pytest.raises(CheckpointError, match=sentence):
            checkpoint.load(path)


class Evil:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch ran",)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    path = tmp_path / "evil.pt"
    torch.save({"format": checkpoint.FORMAT, "model": Evil()}, path)
    with pytest.raises(CheckpointError, match=r"cannot be read safely|not a checkpoint"):
        checkpoint.load(path)
    raw = tmp_path / "raw.pt"
    raw.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(CheckpointError):
        checkpoint.load(raw)
    assert not (tmp_path / "ran").exists()


def test_a_compressed_archive_is_refused(saved: tuple[Path, Checkpoint], tmp_path: Path) -> None:
    path, _ = saved
    squeezed = tmp_path / "squeezed.pt"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(squeezed, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    with pytest.raises(CheckpointError, match="not an archive"):
        checkpoint.load(squeezed)


def test_newer_schemas_and_values_that_are_not_finite_are_refused(
    saved: tuple[Path, Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, made = saved
    monkeypatch.setattr(checkpoint, "SCHEMA", 2)
    checkpoint.save(path, made)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="made by a newer version"):
        checkpoint.load(path)
    made.model["1.bias"][2] = float("nan")
    checkpoint.save(path, made)
    with pytest.raises(CheckpointError, match=r"1.bias has values that are not finite"):
        checkpoint.load(path)


def test_another_architecture_names_what_differs_first(saved: tuple[Path, Checkpoint]) -> None:
    _, made = saved
    other = Config.model_validate({"model": {"name": "mlp", "width": 8}})
    with pytest.raises(CheckpointError, match=r"1\.weight has shape \(4, 784\), .* \(8, 784\)"):
        checkpoint.fit(build(other.model, (1, 28, 28), 10, 0), made)
    deeper = Config.model_validate({"model": {"name": "mlp", "width": 4, "depth": 3}})
    with pytest.raises(CheckpointError, match=r"3\.weight has shape|has no 5\.weight"):
        checkpoint.fit(build(deeper.model, (1, 28, 28), 10, 0), made)
