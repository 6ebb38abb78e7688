"""What makes stacks fast does not change what they compute."""

import shutil
import subprocess
import sys
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from mnist_cli.config import Config
from mnist_cli.data.dataset import Dataset, epoch_order, load
from mnist_cli.engine.batched import batched
from mnist_cli.engine.loop import Training, prepare, train
from mnist_cli.models.modules import build, cost
from mnist_cli.sweeps import plan as plans
from tests.engine.test_stack import OPTIMIZERS, SCHEDULERS, assert_same, config_of, train_alone

BATCH = 32
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
needs_fork = pytest.mark.skipif(not plans.can_fork(), reason="needs fork")


@pytest.fixture(scope="module")
def data() -> Dataset:
    config = Config.model_validate(
        {"data": {"name": "synthetic", "size": 140, "split": "official"}}
    )
    return load(config.data, torch.device("cpu"), print)


def trained(configs: Sequence[Config], data: Dataset) -> Training:
    run = prepare(configs, data)
    for _ in train(run):
        pass
    return run


# ------------------------------------------------------------------------------ one stack for all


def test_optimizers_and_schedules_of_all_kinds_train_in_one_stack(data: Dataset) -> None:
    pairs = [(optimizer, scheduler) for optimizer in OPTIMIZERS for scheduler in SCHEDULERS]
    configs = []
    for number, (optimizer, scheduler) in enumerate(pairs):
        config = config_of(
            "mlp",
            optimizer,
            scheduler,
            data={"name": "synthetic", "batch_size": BATCH},
            train={"epochs": 3, "precision": "fp64", "seed": number % 3},
        )
        slow = config.optimizer.model_copy(update={"lr": 1e-3 * (1 + number % 5)})
        configs.append(config.model_copy(update={"optimizer": slow}))
    run = trained(configs, data)
    for replica, (optimizer, scheduler) in enumerate(pairs):
        config = configs[replica]
        rate, seed = config.optimizer.lr, config.train.seed
        state, _ = train_alone(config, optimizer, scheduler, data, rate, seed)
        assert_same(run.stack, replica, state)


# -------------------------------------------------------------------------------- batched layers


class Odd(nn.Module):
    """Everything no rule knows: methods, keywords, constants, a residual, a layer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(12)
        self.first = nn.Linear(12, 12)
        self.scale = nn.Parameter(torch.rand(12))
        self.convolution = nn.Conv1d(1, 2, kernel_size=3, padding=1)
        self.last = nn.Linear(24, 5, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        x = self.norm(images.flatten(start_dim=1))
        x = x + F.gelu(self.first(x)) * self.scale
        x = self.convolution(x.unsqueeze(1)).clamp(min=-1.0)
        logits: Tensor = self.last(x.flatten(1) / 2)
        return logits


@pytest.mark.parametrize(("replicas", "groups"), [(1, 1), (2, 1), (2, 2), (6, 1), (6, 2), (6, 6)])
def test_a_model_that_no_rule_knows_is_batched_all_the_same(replicas: int, groups: int) -> None:
    models = [Odd().double() for _ in range(replicas)]
    state, _ = stack_module_state(models)
    images = torch.rand(groups, 7, 1, 3, 4, dtype=torch.float64)
    each = images.repeat_interleave(replicas // groups, 0)
    wanted = vmap(lambda own, x: functional_call(models[0], own, (x,)))(state, each)
    torch.testing.assert_close(batched(models[0], state, replicas)(images), wanted)


@pytest.mark.parametrize("name", ["mlp", "cnn", "scratch", "tensor_net"])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_groups_that_share_images_are_the_replicas_one_by_one(name: str, groups: int) -> None:
    config = Config.model_validate({"model": name})
    models = [build(config.model, (1, 28, 28), 10, seed).double() for seed in range(4)]
    state, _ = stack_module_state(models)
    images = torch.rand(groups, 5, 1, 28, 28, dtype=torch.float64)
    found = batched(models[0], state, 4)(images)
    for replica, model in enumerate(models):
        torch.testing.assert_close(found[replica], model(images[replica * groups // 4]))


def test_cost_is_counted_by_hand() -> None:
    mlp = Config.model_validate({"model": {"name": "mlp", "hidden": [32]}})
    found = cost(build(mlp.model, (1, 28, 28), 10, 0), (1, 28, 28), 64)
    assert found.parameters == 784 * 32 + 32 + 32 * 10 + 10
    assert found.multiply_adds == 64 * found.parameters
    cnn = Config.model_validate({"model": {"name": "cnn"}})
    found = cost(build(cnn.model, (1, 28, 28), 10, 0), (1, 28, 28), 1)
    products = 14 * 14 * 16 * 9 + 7 * 7 * 16 * 16 * 9 + 4 * 4 * 10 * 16 * 9
    assert found.multiply_adds == products + 16 + 16 + 10  # and the biases, once


# ------------------------------------------------------------------------ compiled and in bfloat16


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a compiler")
def test_a_compiled_step_is_the_plain_one() -> None:
    # In a process of its own: torch's compiler minds what others have imported before it.
    code = "from tests.engine.test_equality import compiled_is_plain as test; test()"
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr


def compiled_is_plain() -> None:
    section = {"name": "synthetic", "size": 140, "split": "official", "batch_size": BATCH}
    config = config_of(
        "mlp",
        "adam",
        "step",
        data=section,
        train={"epochs": 3, "precision": "fp64", "compile": True},
    )
    data = load(config.data, torch.device("cpu"), print)
    configs = [
        config.model_copy(update={"optimizer": config.optimizer.model_copy(update={"lr": rate})})
        for rate in (1e-2, 1e-3)
    ]
    run = trained(configs, data)
    for replica, rate in enumerate((1e-2, 1e-3)):
        assert_same(run.stack, replica, train_alone(config, "adam", "step", data, rate, 0)[0])


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
    config = config_of("mlp-dropout", optimizer, "cosine", data=section, train={"epochs": 3})
    data = load(config.data, torch.device("cuda"), print)
    captured = trained([config, config], data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mnist_cli.engine.loop.Captured", lambda step: step)
        eager = trained([config, config], data)
    for name, value in eager.stack.state_dict(1).items():
        assert torch.equal(captured.stack.state_dict(1)[name], value)
