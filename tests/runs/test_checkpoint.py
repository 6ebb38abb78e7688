"""Checkpoints of ours: what is saved comes back, to the last bit, and fits its model only."""

from pathlib import Path
from typing import Any

import pytest
import torch

from mnist_cli.config import Config
from mnist_cli.errors import CheckpointError
from mnist_cli.models.modules import build
from mnist_cli.runs import checkpoint
from tests.conftest import Mnist
from tests.reliability.harness import plain
from tests.runs.test_trust import made, same, write


@pytest.mark.parametrize("name", ["last.pt", "a.safetensors"])  # which is another library's
def test_what_is_saved_comes_back_to_the_last_bit(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    checkpoint.save(path, made(epoch=1))
    checkpoint.save(path, made())
    assert same(checkpoint.load(path), made())
    assert list(tmp_path.iterdir()) == [path]


def test_plain_torch_reads_it_and_a_plain_module_takes_it(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "a.pt", made())
    content = torch.load(tmp_path / "a.pt", weights_only=True)
    module = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(784, 2), torch.nn.ReLU(), torch.nn.Linear(2, 10)
    )
    module.load_state_dict(content["model"])


def test_one_of_schema_1_can_be_used(mnist: Mnist, tmp_path: Path) -> None:
    """It had a digest of its own, and the record of every epoch."""
    old = made(resume={"records": [{"epoch": 1}], "optimizer": {"exp_avg": torch.ones(3)}})
    write(tmp_path / "a", schema=1, digest="0" * 64, resume=old.resume)
    assert same(checkpoint.load(tmp_path / "a"), old)
    assert mnist("eval", "--checkpoint", str(tmp_path / "a")).code == 0


def test_weights_keep_their_precision(tmp_path: Path) -> None:
    config = made().config | {"train": {"epochs": 1, "precision": "fp64"}}
    state = {name: value.double() / 3 for name, value in made().model.items()}
    checkpoint.save(tmp_path / "a.pt", made(config=config, model=state))
    module = build(Config.model_validate(config).model, (1, 28, 28), 10, 1)
    checkpoint.fit(module, checkpoint.load(tmp_path / "a.pt"))
    assert plain(dict(module.state_dict())) == plain(state)


def test_tensors_may_be_views_and_have_two_names(tmp_path: Path) -> None:
    state: dict[str, Any] = {
        name: value.t().contiguous().t() if value.dim() == 2 else value
        for name, value in made().model.items()
    }
    checkpoint.save(tmp_path / "a.pt", made(model=state, resume={"best": state}))
    back = checkpoint.load(tmp_path / "a.pt")
    assert plain(back.model) == plain(back.resume["best"]) == plain(made().model)


def test_another_module_names_what_differs_first() -> None:
    other = Config.model_validate({"model": {"name": "mlp", "width": 8}})
    with pytest.raises(CheckpointError, match=r"1\.weight has shape \(2, 784\), .* \(8, 784\)"):
        checkpoint.fit(build(other.model, (1, 28, 28), 10, 0), made())
