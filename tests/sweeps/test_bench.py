"""What `mnist bench` measures is what it says, and tells it as it promises; no time is asserted."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jsonschema
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mnist_cli import config as configs
from mnist_cli.config import Config
from mnist_cli.data.dataset import Dataset
from mnist_cli.errors import RunError
from mnist_cli.models.modules import build
from mnist_cli.report import schemas
from mnist_cli.sweeps import bench as benches
from mnist_cli.sweeps.bench import CASES, Case, Variant, engine, roofline, tutorial
from mnist_cli.sweeps.plan import Plan, StackPlan, can_fork
from tests.conftest import Mnist

IMAGES = 2048
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data() -> Dataset:
    return benches.bench_data(2560, CPU)


def config(case: Case, *overrides: str) -> Config:
    return configs.load(case.name, (*case.overrides, *overrides)).config


@pytest.mark.parametrize("case", CASES[:3], ids=lambda case: case.name)
def test_tutorial_and_engine_do_the_same_work(case: Case, data: Dataset) -> None:
    assert data.train.images.shape == (IMAGES, 1, 28, 28)
    own = config(case, "data.shuffle=false")
    steps = IMAGES // own.data.batch_size  # an epoch
    loop = tutorial([own], data, image_by_image=case.image_by_image)
    stack = engine([own], data)
    for epoch in (1, 2):
        (record,) = stack(steps)
        assert (record["epoch"], record["step"]) == (epoch, steps * epoch)
        counted = IMAGES if own.loss.reduction == "sum" else steps
        assert loop(steps) / counted == pytest.approx(record["train/loss"], rel=1e-5)


def test_the_engine_stops_anywhere_and_goes_on_over_epochs(data: Dataset) -> None:
    stack = engine([config(CASES[0])] * 2, data)
    for steps, step, epoch in ((1, 1, 1), (40, 41, 2), (64, 105, 4)):
        assert [(r["step"], r["epoch"]) for r in stack(steps)] == [(step, epoch)] * 2


def flops(call: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


@pytest.mark.parametrize(("precision", "replicas"), [("fp32", 1), ("bf16", 3)])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_roofline_computes_what_the_model_does(
    case: Case, replicas: int, precision: str, data: Dataset
) -> None:
    own = config(case, "data.batch_size=32", f"train.precision={precision}")
    model = build(own.model, data.shape, 10, 0)

    def step() -> None:
        model(torch.rand(32, *data.shape)).sum().backward()

    steps = roofline([own] * replicas, data)
    assert flops(lambda: steps(2)) == 2 * replicas * flops(step)


def sleeping(configs: Sequence[Config], data: Dataset) -> Callable[[int], None]:
    """Every step takes as many hundredths of a second as the first config's seed says."""
    if configs[0].train.seed == 0:
        raise ValueError("nothing to train")
    return lambda number: time.sleep(number * configs[0].train.seed / 100)


def variant(*seeds: int, processes: int) -> Variant:
    stacks = tuple(StackPlan((place,), 1) for place in range(len(seeds)))
    trained = [config(CASES[1], f"train.seed={seed}") for seed in seeds]
    return Variant("sleeping", sleeping, trained, Plan(stacks, processes))


@pytest.mark.parametrize("fork", [False, True])
def test_the_slowest_of_the_first_parts_stands_for_all_rounds_of_them(
    fork: bool, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fork and not can_fork():
        pytest.skip("needs to fork")
    monkeypatch.setattr(benches, "can_fork", lambda: fork)
    one = variant(*((1, 4, 1, 4) if fork else (4, 4)), processes=2 if fork else 1)
    # To sleep takes at least as long as asked for, so this holds on any machine.
    assert benches.step_seconds(one, sleeping, data, 0.01) >= 2 * 0.04


@pytest.mark.skipif(not can_fork(), reason="needs to fork")
def test_a_process_that_fails_ends_the_measurement(data: Dataset) -> None:
    with pytest.raises(RunError, match="measured"):
        benches.step_seconds(variant(1, 0, processes=2), sleeping, data, 0.01)


def python(*argv: str) -> "subprocess.CompletedProcess[str]":
    """Runs a module in a process of its own: threads of this one would be in the way."""
    command = [sys.executable, "-m", *argv]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended


def test_the_document() -> None:
    ended = python("mnist_cli", "bench", "--quick", "--only", "logistic", "--json")
    found = json.loads(ended.stdout, parse_constant=pytest.fail)
    jsonschema.validate(found, schemas.json_schema("bench"))
    machine = ["cpu", "cores", "threads", "device", "torch", "python", "system", "load"]
    assert [*found["machine"]] == machine
    (work,) = found["works"]
    variants = work.pop("variants")
    about = {"name": "logistic", "experiment": "E1", "about": "784-10"}
    assert work == {**about, "batch_size": 64, "optimizer": "adam"}
    names = ["tutorial", "alone", "stack of 4", "stack of 16", "stack of 64"]
    assert [each["name"] for each in variants] == names
    for each in variants:
        check(each)
    assert "stack of 64" in ended.stderr
    assert f"torch {torch.__version__}" in ended.stderr


def check(found: dict[str, Any]) -> None:
    """One variant is whole, and its figures fit each other."""
    runs, step, run, limit = (found[key] for key in ("runs", "step_us", "run_us", "limit_us"))
    assert sum(found["parts"]) == runs
    for figures in (step, run, limit or run):
        assert 0 < figures["low"] <= figures["median"] <= figures["high"]
    assert step["median"] == pytest.approx(runs * run["median"], rel=0.01)
    assert {"precision", "processes", "threads"} <= found.keys()
    if found["name"] == "tutorial":
        assert (found["speedup"], limit, found["limit_share"]) == (1, None, None)
    else:
        share = limit["median"] / run["median"]
        assert found["limit_share"] == pytest.approx(share, abs=0.01)  # of one round


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("--only", "E1,perceptron"), "error: --only: there is no 'perceptron' to measure"),
        (("--only", ""), "error: --only: there is no '' to measure"),
        (("--rounds", "0"), "error: Invalid value for '--rounds'"),
        (("--device", "cuda:99"), "error: train.device: there is no cuda:99 here"),
    ],
)
def test_what_cannot_be_measured_is_a_usage_error(
    mnist: Mnist, argv: tuple[str, ...], said: str
) -> None:
    ended = mnist("bench", *argv)
    assert ended.code == 2
    assert said in ended.err


def test_cases_are_selected_by_name_or_experiment() -> None:
    assert [case.name for case in benches.select_cases("e1, depth")] == ["mlp", "logistic", "depth"]


@pytest.mark.slow
def test_the_grid_runs() -> None:
    ended = python("tests.benchmarks.grid", "--quick")
    assert f"torch {torch.__version__}" in ended.stdout
    assert ended.stdout.count(": ratio ") == 4
