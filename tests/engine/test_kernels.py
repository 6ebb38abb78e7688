"""Where torch's private functions are gone, its public ones come to the same."""

import pytest
import torch
from torch import Tensor

from mnist_cli.data.dataset import load
from mnist_cli.engine.loop import prepare, train
from mnist_cli.engine.optimizers import FUSED
from tests.engine.test_stack import OPTIMIZERS, config_of


def gone(*args: object, **kwargs: object) -> None:
    raise TypeError("no such function, or not with these arguments")


@pytest.fixture
def no_private(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in FUSED:
        monkeypatch.setitem(FUSED, name, gone)


def trained(model: str, optimizer: str) -> dict[str, Tensor]:
    data = {"name": "synthetic", "size": 140, "batch_size": 32}
    config = config_of(
        model, optimizer, "step", data=data, train={"epochs": 2, "precision": "fp64"}
    )
    run = prepare([config] * 2, load(config.data, torch.device("cpu"), print))
    list(train(run))
    return run.stack.state_dict(1)


def test_nothing_is_missing_today() -> None:
    assert all(callable(kernel) for kernel in FUSED.values())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_optimizers_come_to_the_same_by_public_functions(
    optimizer: str, request: pytest.FixtureRequest
) -> None:
    wanted = trained("mlp", optimizer)
    request.getfixturevalue("no_private")
    for name, value in trained("mlp", optimizer).items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-10, atol=1e-12)
