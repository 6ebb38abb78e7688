"""What `mnist bench` measures is what it says, and tells it as it promises; no time is asserted."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mnist_cli import config as configs
from mnist_cli.config import Config
from mnist_cli.errors import RunError
from mnist_cli.models.modules import build
from mnist_cli.sweeps import bench as benches
from mnist_cli.sweeps import plan
from mnist_cli.sweeps.bench import WORKS, Bench, Part, Work
from mnist_cli.sweeps.bench_steps import Engine, Limit, Material, Tutorial, layers
from tests.conftest import Mnist

CPU = torch.device("cpu")
MACHINE = ["cpu", "cores", "threads", "device", "torch", "python", "system", "load"]
SPREAD = ["median", "low", "high"]


@pytest.fixture(scope="module")
def material() -> Material:
    return Material.generate(2048, CPU)


def config(work: Work, *overrides: str) -> Config:
    return configs.load(work.preset, (*work.overrides, *overrides)).config


def test_the_images_are_like_those_of_mnist(material: Material) -> None:
    images = material.data.train.images
    assert images.shape == (2048, 1, 28, 28)
    assert (images != 0).double().mean().item() == pytest.approx(0.19, abs=0.01)
    assert torch.equal(material.floats, images.float() / 255)
    assert set(material.labels.tolist()) == set(range(10))


@pytest.mark.parametrize("work", WORKS[:3], ids=lambda work: work.name)
def test_tutorial_and_engine_do_the_same_work(work: Work, material: Material) -> None:
    own = config(work, "data.shuffle=false")
    steps = 2048 // own.data.batch_size  # an epoch
    tutorial = Tutorial(own, material, image_by_image=work.image_by_image)
    engine = Engine([own], material)
    for epoch in range(2):
        before = tutorial.total
        assert tutorial.advance(steps) > 0
        assert engine.advance(steps) > 0
        (record,) = engine.records
        counted = 2048 if own.loss.reduction == "sum" else steps
        assert (record["epoch"], record["step"]) == (epoch + 1, steps * (epoch + 1))
        assert (tutorial.total - before) / counted == pytest.approx(record["train/loss"], rel=1e-5)


def test_the_engine_stops_anywhere_and_goes_on_over_epochs(material: Material) -> None:
    engine = Engine([config(WORKS[0])] * 2, material)
    for steps, step, epoch in ((1, 1, 1), (40, 41, 2), (64, 105, 4)):
        engine.advance(steps)
        assert [(r["step"], r["epoch"]) for r in engine.records] == [(step, epoch)] * 2


def flops(call: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


@pytest.mark.parametrize("replicas", [1, 3])
@pytest.mark.parametrize("work", WORKS, ids=lambda work: work.name)
def test_the_limit_computes_what_the_model_does(
    work: Work, replicas: int, material: Material
) -> None:
    own = config(work, "data.batch_size=32")
    data = material.data
    model = build(own.model, data.shape, 10, 0)
    images = material.floats[:32]

    def step() -> None:
        model(images).sum().backward()

    assert flops(Limit(own, replicas, data).step) == replicas * flops(step)


def test_the_layers_of_the_limit_have_the_shapes_of_the_model() -> None:
    found = {
        work.name: [
            (layer.rows, layer.inputs, layer.outputs)
            for layer in layers(build(config(work).model, (1, 28, 28), 10, 0), (1, 28, 28), 64)
        ]
        for work in WORKS
    }
    assert found["mlp"] == [(64, 784, 32), (64, 32, 10)]
    assert found["logistic"] == [(64, 784, 10)]
    assert found["ffnn"] == [(64, 784, 50), (64, 50, 100), (64, 100, 10)]
    assert found["cnn"] == [(64 * 14**2, 9, 16), (64 * 7**2, 144, 16), (64 * 4**2, 144, 10)]
    assert found["depth"][0] == (64, 784, 512)
    assert len(found["depth"]) == 5


@pytest.mark.parametrize("overrides", [(), ("train.precision=bf16",)])
def test_the_limit_is_of_a_precision(material: Material, overrides: tuple[str, ...]) -> None:
    limit = Limit(config(WORKS[4], "data.batch_size=32", *overrides), 2, material.data)
    assert limit.advance(2) > 0


class Steps:
    """So many seconds a step, by its own account."""

    def __init__(self, seconds: float) -> None:
        if not seconds:
            raise ValueError("no time at all")
        self.seconds = seconds

    def advance(self, steps: int) -> float:
        time.sleep(0.001)
        return steps * self.seconds


def part(seconds: float) -> Part:
    return Part(lambda: Steps(seconds), 1, None)


@pytest.mark.parametrize("fork", [False, True])
def test_parts_cost_what_the_slowest_beside_each_other_and_the_sum_of_turns(
    fork: bool, material: Material
) -> None:
    bench = Bench(material, 0.01, fork and plan.can_fork(), 1)
    parts = [part(seconds) for seconds in (0.25, 0.5, 0.125, 0.0625, 1.0)]
    assert bench._step(parts, 2) == pytest.approx(0.5 + 0.125 + 1.0)


def test_what_fails_in_a_process_is_told(material: Material) -> None:
    if not plan.can_fork():
        pytest.skip("needs to fork")
    bench = Bench(material, 0.01, fork=True, threads=1)
    with pytest.raises(RunError, match="ValueError: no time at all"):
        bench._step([part(1.0), part(0.0)], 2)


def test_the_document_and_the_picture(tmp_path: Path) -> None:
    # In a process of its own: what is measured gets threads, and those of this one would be in the
    # way.
    options = ["--quick", "--only", "logistic", "--json", "--plot", str(tmp_path / "bench.png")]
    ended = subprocess.run(
        [sys.executable, "-m", "mnist_cli", "bench", *options],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout, parse_constant=pytest.fail)
    assert list(found) == ["machine", "rounds", "works"]
    assert list(found["machine"]) == MACHINE
    assert found["rounds"] == 1
    (work,) = found["works"]
    variants = work.pop("variants")
    assert work == {
        "name": "logistic",
        "experiment": "E1",
        "about": "784-10",
        "batch_size": 64,
        "optimizer": "adam",
    }
    names = ["tutorial", "alone", "stack of 4", "stack of 16", "stack of 64"]
    assert [variant["name"] for variant in variants] == names
    for variant in variants:
        check(variant)
    assert "E1 logistic: 784-10, batch 64, adam" in ended.stderr
    assert f"torch {torch.__version__}" in ended.stderr
    assert (tmp_path / "bench.png").read_bytes()[1:4] == b"PNG"


def check(variant: dict[str, Any]) -> None:
    """One variant is whole, and its figures fit each other."""
    assert list(variant) == [
        *("name", "runs", "precision", "parts", "processes", "threads"),
        *("step_us", "run_us", "limit_us", "speedup", "limit_share"),
    ]
    runs, tutorial = variant["runs"], variant["name"] == "tutorial"
    assert sum(variant["parts"]) == runs
    for figure in ("step_us", "run_us", "limit_us"):
        if not (tutorial and figure == "limit_us"):
            assert list(variant[figure]) == SPREAD
            assert 0 < variant[figure]["low"] <= variant[figure]["median"]
    assert variant["step_us"]["median"] == pytest.approx(
        runs * variant["run_us"]["median"], rel=0.01
    )
    if tutorial:
        assert (variant["speedup"], variant["limit_us"], variant["limit_share"]) == (1, None, None)
    else:
        share = variant["limit_us"]["median"] / variant["run_us"]["median"]
        assert variant["limit_share"] == pytest.approx(share, abs=0.01)  # of one round


def test_the_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "cores", lambda: 1)  # a forked process has no threads of this one
    told: list[tuple[int, int, str]] = []
    found = benches.grid(
        CPU,
        lambda *now: told.append(now),
        rounds=2,
        window=0.001,
        images=256,
        models={"logistic": "logistic"},
        batches=(16,),
        counts=(2, 3),
    )
    assert list(found) == ["machine", "rounds", "cells", "below_one"]
    assert [cell["runs"] for cell in found["cells"]] == [2, 3]
    for cell in found["cells"]:
        assert list(cell) == [
            *("model", "batch_size", "runs", "parts", "processes", "threads"),
            *("alone_us", "together_us", "ratio"),
        ]
        assert list(cell["ratio"]) == SPREAD
    below = [cell for cell in found["cells"] if cell["ratio"]["median"] < 1]
    assert found["below_one"] == len(below)
    assert told[0] == (0, 6, "logistic, batch 16: alone")
    assert told[-1] == (6, 6, "")


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (("--only", "E1,perceptron"), "error: --only: there is no 'perceptron' to measure"),
        (("--only", ""), "error: --only: there is no '' to measure"),
        (("--grid", "--only", "mlp"), "error: --grid goes without --only"),
        (("--grid", "--plot", "x.png"), "error: --grid goes without --plot"),
        (("--plot", "nowhere/x.png"), "error: --plot: nowhere/x.png cannot be written"),
        (("--rounds", "0"), "error: Invalid value for '--rounds'"),
        (("--device", "cuda:99"), "error: train.device: there is no cuda:99 here"),
    ],
)
def test_what_cannot_be_measured_is_a_usage_error(
    mnist: Mnist, argv: tuple[str, ...], told: str
) -> None:
    ended = mnist("bench", *argv)
    assert ended.code == 2
    assert told in ended.err


def test_works_are_chosen_by_name_or_experiment() -> None:
    assert [work.name for work in benches.chosen("e1, depth")] == ["mlp", "logistic", "depth"]
    assert benches.chosen(None) == list(WORKS)
