"""Checkpoints of ours: what is saved comes back, to the last bit, and fits its model only."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from mnist_cli.config import Config
from mnist_cli.data.dataset import load
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


NORMALIZED = (
    *("data={name: synthetic, size: 140, batch_size: 32}", "model={name: resnet, width: 2}"),
    *("optimizer={name: adam, lr: 0.01}", "train={epochs: 2, ema: 0.5}"),
)


def test_statistics_and_averages_are_in_the_plain_modules_state(
    mnist: Mnist, tmp_path: Path
) -> None:
    """A plain module that takes them measures what the run and `eval` do; they can be imported."""
    loss = "loss={name: cross_entropy, label_smoothing: 0.1}"
    trained = mnist("train", *NORMALIZED, loss, "--json").json
    state = checkpoint.load(Path(trained["checkpoint"]))
    config = Config.model_validate(state.config)
    module = build(config.model, (1, 28, 28), 10, 5)
    module.load_state_dict(state.model)
    module.eval()
    data = load(config.data, torch.device("cpu"), print).val
    logits = module(data.images.float() / 255)
    expected = F.cross_entropy(logits, data.labels, label_smoothing=0.1).item()
    assert trained["best"]["val/loss"] == pytest.approx(expected, rel=1e-5)
    measured = mnist("eval", "--checkpoint", trained["checkpoint"], "--split", "val", "--json").json
    assert measured["loss"] == pytest.approx(expected, rel=1e-5)

    torch.save(state.model, tmp_path / "state.pt")
    imported = mnist("import", str(tmp_path / "state.pt"), *NORMALIZED, loss, "--json")
    assert plain(checkpoint.load(Path(imported.json["checkpoint"])).model) == plain(state.model)
    name = "norm.num_batches_tracked"
    torch.save({**state.model, name: torch.zeros(())}, tmp_path / "state.pt")
    refused = mnist("import", str(tmp_path / "state.pt"), *NORMALIZED, loss)
    assert refused.code == 5
    assert f"{name} is torch.float32, not torch.int64" in refused.err
    wrong = replace(state, model={**state.model, name: torch.zeros(())})
    checkpoint.save(tmp_path / "wrong.pt", wrong)
    with pytest.raises(CheckpointError, match=name):
        checkpoint.load(tmp_path / "wrong.pt")


@pytest.mark.parametrize("precision", ["bf16", "fp64"])
def test_statistics_keep_their_precision(precision: str, mnist: Mnist) -> None:
    settings = (*NORMALIZED[:3], f"train={{epochs: 1, precision: {precision}, ema: 0.5}}")
    trained = mnist("train", *settings, "--json").json
    state = checkpoint.load(Path(trained["checkpoint"])).model
    kept = torch.float64 if precision == "fp64" else torch.float32
    assert {value.dtype for value in state.values()} == {kept, torch.int64}
    assert mnist("eval", "--checkpoint", trained["checkpoint"]).code == 0


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
