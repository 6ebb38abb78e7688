"""What makes stacks fast does not change what they compute."""

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F

from mnist_cli.config import Config
from mnist_cli.data.dataset import Dataset, epoch_order, load
from mnist_cli.engine.loop import Training, prepare, train
from mnist_cli.models.modules import build, cost
from tests.engine.test_stack import AUGMENT, OPTIMIZERS, config_of

BATCH = 32
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def trained(configs: Sequence[Config], data: Dataset) -> Training:
    run = prepare(configs, data)
    for _ in train(run):
        pass
    return run


def test_cost_is_counted_by_hand() -> None:
    mlp = Config.model_validate({"model": {"name": "mlp", "hidden": [32]}})
    found = cost(build(mlp.model, (1, 28, 28), 10, 0), (1, 28, 28), 64)
    assert found.parameters == 784 * 32 + 32 + 32 * 10 + 10
    assert found.multiply_adds == 64 * found.parameters
    cnn = Config.model_validate({"model": {"name": "cnn"}})
    found = cost(build(cnn.model, (1, 28, 28), 10, 0), (1, 28, 28), 1)
    products = 14 * 14 * 16 * 9 + 7 * 7 * 16 * 16 * 9 + 4 * 4 * 10 * 16 * 9
    assert found.multiply_adds == products + 16 + 16 + 10  # and the biases, once


def test_bfloat16_is_autocast_over_fp32_weights(data: Dataset) -> None:
    config = config_of(
        "mlp",
        "sgd",
        "constant",
        data={"name": "synthetic", "batch_size": BATCH},
        train={"epochs": 1, "precision": "bf16"},
    )
    run = trained([config, config], data)
    assert all(value.dtype is torch.float32 for value in run.stack.parameters.values())
    model = build(config.model, data.shape, 10, 0)
    optimizer = torch.optim.SGD(model.parameters(), lr=config.optimizer.lr)
    for index in epoch_order(0, 0, len(data.train), shuffle=True).split(BATCH):
        images, labels = data.train.images[index].bfloat16() / 255, data.train.labels[index]
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(images)
        optimizer.zero_grad()
        F.cross_entropy(logits.float(), labels).backward()
        optimizer.step()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(run.stack.state_dict(1)[name], value, rtol=1e-2, atol=1e-5)
    exact = trained(
        [
            config.model_copy(
                update={"train": config.train.model_copy(update={"precision": "fp32"})}
            )
        ],
        data,
    )
    name = "1.weight"
    assert not torch.equal(run.stack.state_dict(0)[name], exact.stack.state_dict(0)[name])


# ------------------------------------------------------------------------------------------- GPU


@needs_gpu
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_captured_steps_are_the_eager_ones(optimizer: str) -> None:
    section = {"name": "synthetic", "size": 700, "batch_size": BATCH}
    length = {"epochs": 3}
    config = config_of(
        "mlp-dropout", optimizer, "cosine", data=section, train=length, augment=AUGMENT
    )
    data = load(config.data, torch.device("cuda"), print)
    captured = trained([config, config], data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mnist_cli.engine.loop.Captured", lambda step: step)
        eager = trained([config, config], data)
    for name, value in eager.stack.state_dict(1).items():
        assert torch.equal(captured.stack.state_dict(1)[name], value)
