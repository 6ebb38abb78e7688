"""Every schedule against torch's, at every step."""

import math
import warnings
from typing import Any

import pytest
import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    LinearLR,
    LRScheduler,
    MultiStepLR,
    OneCycleLR,
    SequentialLR,
    StepLR,
)

from mnist_cli.config import Config
from mnist_cli.engine.schedules import WARMUP_START, learning_rate

LR = 0.3
SCHEDULES: dict[str, tuple[dict[str, Any], Any]] = {
    "constant": ({}, lambda o: ConstantLR(o, 1.0)),
    "step": ({"step_size": 7, "gamma": 0.5}, lambda o: StepLR(o, 7, 0.5)),
    "multistep": ({"milestones": [9, 4]}, lambda o: MultiStepLR(o, [9, 4])),
    "cosine": ({"T_max": 30, "eta_min": 0.01}, lambda o: CosineAnnealingLR(o, 30, 0.01)),
    "linear": (
        {"start_factor": 0.9, "end_factor": 0.2, "total_iters": 13},
        lambda o: LinearLR(o, 0.9, 0.2, 13),
    ),
}


def rates(name: str, settings: dict[str, Any], steps: int) -> list[float]:
    schedule = Config.model_validate({"scheduler": {"name": name, **settings}}).scheduler
    return [learning_rate(LR, schedule, done) for done in range(steps)]


def optimizer() -> SGD:
    return SGD([torch.nn.Parameter(torch.zeros(()))], lr=LR)


def torchs(optimizer: SGD, schedule: LRScheduler, steps: int) -> list[float]:
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        with warnings.catch_warnings(action="ignore"):  # no step of the optimizer comes before
            schedule.step()
    return found


@pytest.mark.parametrize("warmup", [0, 1, 6])
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_is_torchs_at_every_step(name: str, warmup: int) -> None:
    settings, make = SCHEDULES[name]
    theirs = optimizer()
    schedule = make(theirs)
    if warmup:
        with warnings.catch_warnings(action="ignore"):
            first = LinearLR(theirs, WARMUP_START, total_iters=warmup)
            schedule = SequentialLR(theirs, [first, schedule], [warmup])
    found = rates(name, settings | {"warmup": warmup}, 30)
    assert found == pytest.approx(torchs(theirs, schedule, 30), rel=1e-12)
    if warmup:
        assert found[0] == WARMUP_START * LR
        assert found[warmup] == pytest.approx(rates(name, settings, 1)[0])


@pytest.mark.parametrize("strategy", ["cos", "linear"])
@pytest.mark.parametrize("three", [False, True])
@pytest.mark.parametrize("total", [10, 37, 200])
@pytest.mark.parametrize("start", [0.25, 0.3, 0.45])
def test_one_cycle_is_torchs_at_every_step(
    strategy: str, three: bool, total: int, start: float
) -> None:
    settings: dict[str, Any] = {"pct_start": start, "anneal_strategy": strategy}
    settings |= {"three_phase": three, "total_steps": total}
    settings |= {"div_factor": 10.0, "final_div_factor": 100.0}
    theirs = optimizer()
    wanted = torchs(theirs, OneCycleLR(theirs, LR, cycle_momentum=False, **settings), total)
    found = rates("one_cycle", settings, total + 5)
    assert found[:total] == pytest.approx(wanted, rel=1e-12)
    assert found[total:] == pytest.approx([LR / 1000] * 5)  # where torch raises


@pytest.mark.parametrize("start", [0.0, 0.1, 1.0])
def test_one_cycle_has_a_rate_where_torch_divides_by_zero(start: float) -> None:
    found = rates("one_cycle", {"total_steps": 10, "pct_start": start}, 12)
    assert all(LR / 250_000 * 0.999 <= rate <= LR for rate in found)


@pytest.mark.parametrize(("shape", "middle"), [("linear", 0.5), ("1-sqrt", 1 - math.sqrt(0.5))])
def test_wsd_warms_up_stays_and_decays(shape: str, middle: float) -> None:
    settings = {"warmup": 4, "stable": 3, "decay": 2, "shape": shape, "end_factor": 0.1}
    found = [rate / LR for rate in rates("wsd", settings, 12)]
    assert found[:4] == pytest.approx([0.01, 0.2575, 0.505, 0.7525])
    assert found[4:8] == [1.0] * 4  # the decay has begun at the last of them
    assert found[8:] == pytest.approx([0.1 + 0.9 * middle, 0.1, 0.1, 0.1])
