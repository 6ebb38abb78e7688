"""`mnist eval --ensemble`: the mean of the probabilities of several runs."""

from pathlib import Path

import pytest
import torch

from mnist_cli.config import load_saved
from mnist_cli.data.dataset import load
from mnist_cli.models.modules import build
from mnist_cli.runs import checkpoint
from mnist_cli.runs.documents import write_json
from mnist_cli.runs.store import RunDirectory
from tests.cli.conftest import SMALL
from tests.conftest import Mnist


def expected(runs: list[RunDirectory], split: str) -> tuple[float, float]:
    """Loss and accuracy of the mean, by torch's own modules."""
    probabilities = []
    for run in runs:
        state = checkpoint.load(run.best)
        config = load_saved(state.config, "config")
        images = load(config.data, torch.device("cpu"), print).split(split)
        model = build(config.model, (1, 28, 28), 10, 0).eval()
        model.load_state_dict(state.model)
        with torch.no_grad():
            probabilities.append(model(images.images / images.scale).double().softmax(-1))
    mean = torch.stack(probabilities).mean(0)
    loss = torch.nn.functional.nll_loss(mean.log(), images.labels)
    return loss.item(), (mean.argmax(-1) == images.labels).double().mean().item()


@pytest.mark.parametrize("split", ["test", "val"])
def test_it_is_of_all_finished_runs_of_a_sweep(mnist: Mnist, trained: Path, split: str) -> None:
    sweep = RunDirectory(trained / "mlp-sweep-0001")
    ended = mnist("eval", "--ensemble", sweep.name, "--split", split, "--json").json
    assert (ended["split"], ended["n"]) == (split, 14)
    paths = [str(trial.best) for trial in sweep.trials()]
    assert [member["checkpoint"] for member in ended["members"]] == paths
    for path, member in zip(paths, ended["members"], strict=True):
        alone = mnist("eval", "--checkpoint", path, "--split", split, "--json").json
        assert member == alone
    loss, accuracy = expected(sweep.trials(), split)
    assert ended["loss"] == pytest.approx(loss, rel=1e-5)
    assert ended["acc"] == accuracy
    right = sum(row["n"] * (row["recall"] or 0.0) for row in ended["classes"])
    assert right / ended["n"] == pytest.approx(accuracy)


def test_it_is_of_several_runs(mnist: Mnist, trained: Path) -> None:
    names = ("mlp-0001", "mlp-sweep-0001/trials/002")
    some = mnist("eval", "--ensemble", *names, "data.batch_size=7", "--json")
    again = mnist("eval", *names, "--ensemble")
    loss, accuracy = expected([RunDirectory(trained / name) for name in names], "test")
    assert some.json["loss"] == pytest.approx(loss, rel=1e-5)
    assert f"test accuracy together {accuracy:.2%}".replace("%", " %") in again.out
    assert all(f"{name}/best.pt" in again.out for name in names)


def test_runs_that_are_not_finished_are_left_out(mnist: Mnist, trained: Path) -> None:
    first, *rest = RunDirectory(trained / "mlp-sweep-0001").trials()
    write_json(first.path / "meta.json", first.meta() | {"status": "failed"})
    ended = mnist("eval", "--ensemble", "mlp-sweep-0001", "--json").json
    assert [member["checkpoint"] for member in ended["members"]] == [str(run.best) for run in rest]
    alone = mnist("eval", "--ensemble", first.name)
    assert alone.code == 2
    assert "none is finished" in alone.err
    assert first.name in alone.err


@pytest.mark.parametrize("change", ["data.seed=1", "data.split=holdout", "data.size=700"])
def test_runs_with_other_data_have_no_mean(mnist: Mnist, trained: Path, change: str) -> None:
    assert mnist("train", *SMALL, change).code == 0
    ended = mnist("eval", "--ensemble", "mlp-0001", "mlp-0002")
    assert ended.code == 2
    assert "different data" in ended.err
    one_data = mnist("eval", "--ensemble", "mlp-0001", "mlp-0002", "data.seed=0")
    assert one_data.code == 2  # they were trained on others all the same
