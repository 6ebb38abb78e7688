"""How runs share a machine: stacks of a size that pays, in processes and threads that pay."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mnist_cli.config import Config
from mnist_cli.data.dataset import Dataset, load
from mnist_cli.sweeps import plan as plans


@pytest.fixture(scope="module")
def data() -> Dataset:
    config = Config.model_validate({"data": {"name": "synthetic", "size": 7000}})
    return load(config.data, torch.device("cpu"), print)


@given(
    seeds=st.lists(st.integers(0, 3), min_size=1, max_size=24),
    pieces=st.integers(1, 24),
)
def test_a_split_loses_no_run_and_is_fair(seeds: list[int], pieces: int) -> None:
    configs = [Config.model_validate({"train": {"seed": seed}}) for seed in seeds]
    pieces = min(pieces, len(seeds))
    pieces_found = plans.split(range(len(seeds)), configs, pieces)
    assert sorted(index for piece in pieces_found for index in piece) == list(range(len(seeds)))
    sizes = [len(piece) for piece in pieces_found]
    assert len(sizes) == pieces
    assert max(sizes) - min(sizes) <= 1
    for piece in pieces_found:
        own = [configs[index].train.seed for index in piece]
        assert own == sorted(own)


def test_a_split_keeps_what_shares_an_order_of_batches_together() -> None:
    configs = [Config.model_validate({"train": {"seed": n % 4}}) for n in range(8)]
    assert plans.split(range(8), configs, 2) == [(0, 4, 1, 5), (2, 6, 3, 7)]
    configs = [Config.model_validate({"train": {"seed": n % 3}}) for n in range(12)]
    halves = plans.split(range(12), configs, 2)  # three seeds: each half has half of every seed
    assert [[configs[i].train.seed for i in half] for half in halves] == [[0, 0, 1, 1, 2, 2]] * 2


def test_cores_are_those_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2, 3, 4, 5, 6, 7}, raising=False)
    reads = {"/sys/fs/cgroup/cpu.max": "max 100000"}
    monkeypatch.setattr(Path, "read_text", lambda self: reads[str(self)])
    assert plans.cores() == 8
    reads["/sys/fs/cgroup/cpu.max"] = "250000 100000"
    assert plans.cores() == 2
    reads["/sys/fs/cgroup/cpu.max"] = "50000 100000"
    assert plans.cores() == 1


@pytest.mark.parametrize(
    ("free", "model", "sizes"),
    [
        (8 << 30, {"name": "mlp"}, [16, 16]),
        (20 << 20, {"name": "mlp"}, [8, 8, 8, 8]),  # little memory: fewer at a time
        (8 << 30, {"name": "cnn"}, [8, 8, 8, 8]),  # more would not stay in the cache
    ],
)
def test_stacks_fit_into_memory_and_cache(
    free: int,
    model: dict[str, Any],
    sizes: list[int],
    data: Dataset,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reads = {"/proc/meminfo": f"MemAvailable: {free >> 10} kB"}
    monkeypatch.setattr(Path, "read_text", lambda self: reads[str(self)])
    monkeypatch.setattr(plans, "cores", lambda: 2)
    config = Config.model_validate({"model": model, "train": {"epochs": 100_000}})
    found = plans.plan([range(32)], [config] * 32, [data])
    assert [len(stack.members) for stack in found.stacks] == sizes
    assert found.workers == (2 if plans.can_fork() else 1)


def test_threads_are_for_large_steps_alone(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "cores", lambda: 8)
    small = Config.model_validate({"model": "mlp", "data": {"name": "synthetic"}})
    large = Config.model_validate(
        {"model": {"name": "mlp", "hidden": [2048]}, "data": {"name": "synthetic"}}
    )
    assert plans.plan([[0]], [small], [data]).stacks[0].threads == 1
    assert plans.plan([[0]], [large], [data]).stacks[0].threads == 8
    two = plans.plan([[0], [1]], [large, large], [data, data], workers=2)
    assert [stack.threads for stack in two.stacks] == [1, 1] or not plans.can_fork()
    few = plans.plan([[0, 1, 2]], [large] * 3, [data])
    assert (few.workers, [stack.threads for stack in few.stacks]) == (1, [8])


def test_more_epochs_are_dealt_out_as_if_they_had_been_asked_for(data: Dataset) -> None:
    few, many = (Config.model_validate({"train": {"epochs": epochs}}) for epochs in (1, 1000))
    found = [plans.plan([range(64)], [config] * 64, [data]) for config in (few, many)]
    assert found[0] == found[1]
