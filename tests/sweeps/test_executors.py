"""Wherever stacks run, they come to the runs that one would have got alone."""

from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
import torch

from mnist_cli.config import Config
from mnist_cli.runs import store
from mnist_cli.runs.checkpoint import load as load_checkpoint
from mnist_cli.runs.datasets import Datasets
from mnist_cli.sweeps import executors
from mnist_cli.sweeps import sweep as sweeps
from mnist_cli.sweeps.expand import expand
from mnist_cli.sweeps.jobs import Epoch
from mnist_cli.sweeps.plan import can_fork
from tests.engine.test_stack import BATCH, train_alone


@pytest.mark.skipif(not can_fork(), reason="needs fork")
@pytest.mark.parametrize(("processes", "fuse"), [(1, True), (1, False), (2, True)])
@pytest.mark.parametrize("seeds", [[0], [0, 1, 2]], ids=["shared order", "own orders"])
def test_processes_come_to_the_plain_loop(
    processes: int, fuse: bool, seeds: list[int], tmp_path: Path
) -> None:
    config = Config.model_validate(
        {
            "data": {"name": "synthetic", "size": 70, "split": "official", "batch_size": BATCH},
            "model": {"name": "mlp", "width": 16, "activation": "tanh", "dropout": 0.5},
            "scheduler": {"name": "step", "step_size": 3, "gamma": 0.5, "interval": "step"},
            "train": {"epochs": 3, "precision": "fp64"},
            "sweep": {"optimizer.lr": [1e-2, 1e-3], "train.seed": seeds},
        }
    )
    datasets = Datasets(print)
    folder = store.create(tmp_path, "processes")
    sweep = sweeps.create(config, expand(config), folder, fuse=fuse, workers=processes)
    plan = sweeps.partition(sweep, datasets)
    assert plan.workers == processes
    assert fuse or len(plan.stacks) == len(sweep.runs)
    executor: executors.Executor = partial(executors.in_process, datasets=datasets)
    if processes > 1:
        executor = partial(executors.local_processes, datasets=datasets, processes=processes)
    with closing(sweeps.run(sweep, plan.stacks, executor, datasets)) as events:
        kinds = [type(event) for event in events]
    assert kinds.count(Epoch) == 3 * len(plan.stacks)
    data = datasets.get(config)
    for run in sweep.runs:
        assert run.status == "finished"
        rate, seed = run.config.optimizer.lr, run.config.train.seed
        state, losses = train_alone(run.config, "adam", "step", data, rate, seed)
        found = load_checkpoint(run.folder.last)
        for name, value in state.items():
            torch.testing.assert_close(found.model[name], value, rtol=1e-6, atol=1e-9)
        assert [record["train/loss"] for record in run.records] == pytest.approx(losses, rel=1e-8)
        assert run.folder.metrics() == run.records
