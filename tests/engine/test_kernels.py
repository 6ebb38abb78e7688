"""Where torch's private functions are gone, its public ones come to the same."""

import pytest
import torch

from mnist_cli.data.dataset import Dataset
from mnist_cli.engine.loop import prepare, train
from mnist_cli.engine.optimizers import FUSED
from tests.engine.test_stack import OPTIMIZERS, config_of


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_optimizers_come_to_the_same_by_public_functions(
    optimizer: str, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert all(callable(kernel) for kernel in FUSED.values())  # nothing is missing today
    section = {"name": "synthetic", "batch_size": 32}
    settings = {"epochs": 2, "precision": "fp64"}
    config = config_of("mlp", optimizer, "step", data=section, train=settings)
    states = []
    for _ in range(2):
        run = prepare([config] * 2, data)
        list(train(run))
        states.append(run.stack.state_dict(1))
        for name in FUSED:
            monkeypatch.setitem(FUSED, name, None)
    torch.testing.assert_close(*states, rtol=1e-10, atol=1e-12)
