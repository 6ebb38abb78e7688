"""A replica that diverges leaves its neighbours bit for bit as they were, in every precision."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mnist_cli.config import Config, with_settings
from mnist_cli.data.dataset import load
from mnist_cli.engine.loop import prepare, train
from mnist_cli.engine.stack import PRECISIONS, Stack
from mnist_cli.engine.tape import GUARD, alike, buffer
from tests.engine.test_stack import config_of

PRECISE = [name for name in PRECISIONS if name != "tf32"]


def linears(*widths: int) -> Callable[[], nn.Module]:
    """A product reads 32 numbers of bfloat16 at once, and few widths are a multiple of that."""

    def make() -> nn.Module:
        layers: list[nn.Module] = [nn.Flatten()]
        for inputs, outputs in zip((49, *widths), (*widths, 10), strict=True):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        return nn.Sequential(*layers[:-1])

    return make


def convolutions(*channels: int) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        layers: list[nn.Module] = []
        for inputs, outputs in zip((1, *channels), (*channels, 10), strict=True):
            layers += [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.ReLU()]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())

    return make


SHAPES = {
    "784-100-7": linears(100, 7),
    "49-33-50": linears(33, 50),
    "49-5": linears(5),
    "convolution 5-7": convolutions(5, 7),
    "convolution 3": convolutions(3),
    "convolution 16": convolutions(16),
}


def computed(
    make: Callable[[], nn.Module], precision: str, groups: int, bad: float
) -> list[Tensor]:
    """Logits and gradients of three replicas, the middle one of which holds a bad number."""
    torch.manual_seed(0)
    stack = Stack([make() for _ in range(3)], torch.device("cpu"), precision)
    lost = {name: value * bad for name, value in stack.state_dict(1).items()}
    stack.load_state_dict(1, lost)
    images = torch.rand(groups, 9, 1, 7, 7).to(stack.dtype)
    program = stack.program(images, training=True)
    logits = program.logits
    logits.grad = alike(logits.data)
    calls = program.forward, program.backward()
    for call in calls[0]:
        call()
    logits.grad.copy_(logits.data).mul_(0.1)  # not finite where the logits are not
    for call in calls[1]:
        call()
    stack.collect()
    return [logits.data, *stack.gradients.views.values()]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("precision", PRECISE)
@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_not_finite_stays_in_its_replica(
    shape: str, precision: str, groups: int, bad: float
) -> None:
    calm = computed(SHAPES[shape], precision, groups, 1.0)
    wild = computed(SHAPES[shape], precision, groups, bad)
    assert not torch.isfinite(wild[0][1].float()).all()
    for before, after in zip(calm, wild, strict=True):
        for r in (0, 2):
            assert torch.isfinite(before[r].float()).all()
            assert torch.equal(before[r], after[r])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "schedule",
    [{"name": "constant"}, {"name": "step", "step_size": 1, "gamma": 1e20, "interval": "step"}],
    ids=["rate", "schedule"],
)
@pytest.mark.parametrize(
    "optimizer", ["sgd", "adam-amsgrad", "adamw", "nadam", "muon", "rmsprop", "scratch-sgd"]
)
def test_a_rate_that_no_float_holds_diverges_its_own_run(
    optimizer: str, schedule: dict[str, object], precision: str
) -> None:
    data = {"name": "synthetic", "size": 140, "batch_size": 32}
    calm = config_of(
        "mlp", optimizer, "constant", data=data, train={"epochs": 2, "precision": precision}
    )
    rate = 1e39 if schedule["name"] == "constant" else 1e-2
    wild = Config.model_validate(
        {
            **calm.resolved(),
            "scheduler": schedule,
            "optimizer": {**calm.optimizer.model_dump(), "lr": rate},
        }
    )
    images = load(calm.data, torch.device("cpu"), print)
    found = []
    for middle in (calm, wild):
        run = prepare([calm, middle, calm], images)
        records = list(train(run))
        found.append(run)
    assert found[0].running == [True, True, True]
    assert found[1].running == [True, False, True]
    assert records[-1][1]["lr"] >= 1e39
    for r in (0, 2):
        before, after = (run.stack.state_dict(r) for run in found)
        assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_statistics_that_are_not_finite_stay_in_their_replica(precision: str) -> None:
    data = {"name": "synthetic", "size": 140, "batch_size": 32}
    section = {"epochs": 2, "precision": precision, "ema": 0.5}
    calm = config_of("resnet", "sgd", "constant", data=data, train=section)
    wild = with_settings(calm, {"optimizer.lr": 1e39})
    images = load(calm.data, torch.device("cpu"), print)
    found = []
    for middle in (calm, wild):
        run = prepare([calm, middle, calm], images)
        for _ in train(run):
            pass
        found.append(run)
    assert found[1].running == [True, False, True]
    for r in (0, 2):
        for before, after in (
            (found[0].stack.state_dict(r), found[1].stack.state_dict(r)),
            (found[0].evaluated.state_dict(r), found[1].evaluated.state_dict(r)),
        ):
            assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("make", [lambda like: like, alike, lambda like: alike(like.mT)])
def test_behind_each_replica_stand_zeros_that_are_nobodys(
    make: Callable[[Tensor], Tensor],
) -> None:
    """Where a processor has such products they read there: here they may not."""
    found = make(buffer(torch.empty(0, dtype=torch.bfloat16), 3, 5, 7)).fill_(math.nan)
    memory = torch.empty(0, dtype=torch.bfloat16).set_(found.untyped_storage())
    for r in range(3):
        end = found[r].storage_offset() + 5 * 7
        assert (memory[end : end + GUARD] == 0).all()
        assert len(memory[end : end + GUARD]) == GUARD
