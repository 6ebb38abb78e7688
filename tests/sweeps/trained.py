"""A sweep trained by any executor, and what it came to."""

from contextlib import closing
from pathlib import Path
from typing import Any

from mnist_cli.config import Config
from mnist_cli.runs import store
from mnist_cli.runs.datasets import Datasets
from mnist_cli.sweeps import sweep as sweeps
from mnist_cli.sweeps.executors import Executor
from mnist_cli.sweeps.expand import expand
from mnist_cli.sweeps.jobs import Event
from tests.reliability.harness import contents


def config(epochs: int = 8, patience: int = 1, **sections: Any) -> Config:
    """E1 on few images, with a rate that diverges; runs stop early, each after its own epoch."""
    return Config.model_validate(
        {
            "name": "remote",
            "data": {"name": "synthetic", "size": 350, "batch_size": 64},
            "model": {"name": "mlp", "width": 32},
            "optimizer": {"name": "sgd", "momentum": 0.9},
            "train": {"epochs": epochs, "early_stop": {"patience": patience}, "eval_train": True},
            "sweep": {"optimizer.lr": [1e-1, 1e-2, 1e30], "train.seed": [0, 1]},
            **sections,
        }
    )


class Trained:
    """A sweep in two stacks.

    Args:
        asked: its config.
        folder: a new one, for the runs directory.
        executor: where its runs train.

    Attributes:
        events: what happened.
    """

    def __init__(
        self, asked: Config, folder: Path, executor: Executor, seen: Any = lambda event: None
    ) -> None:
        datasets, self.events = Datasets(print), list[Event]()
        sweep = sweeps.create(asked, expand(asked), store.create(folder, "remote"), workers=2)
        plan = sweeps.partition(sweep, datasets)
        assert len(plan.stacks) == 2
        self.folder = sweep.folder.path
        with closing(sweeps.run(sweep, plan.stacks, executor, datasets)) as events:
            for event in events:
                self.events.append(event)
                seen(event)

    @property
    def contents(self) -> dict[str, Any]:
        """All that it came to, but for times: equal is the same bits."""
        return contents(self.folder)

    def attempts(self) -> list[int]:
        """How often each run was begun."""
        return [len(t.meta()["attempts"]) for t in store.RunDirectory(self.folder).trials()]
