"""A sweep: expands a config into runs, groups them into stacks, ranks what came of them."""

import itertools
import json
import time
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnist_cli import checkpoint as checkpoints
from mnist_cli import config as configs
from mnist_cli import files, store
from mnist_cli.config import Config, with_settings
from mnist_cli.errors import INTERRUPTIONS, UsageError
from mnist_cli.executors import Event, Executor
from mnist_cli.measure import measure
from mnist_cli.run import Datasets, Run
from mnist_cli.stats import Setting, rank

if TYPE_CHECKING:
    from mnist_cli.store import Status

# What the runs of one stack may differ in: the seed, and what torch's optimizers keep per parameter
# group. Anything else makes another stack.
STACKABLE = frozenset(
    {
        "train.seed",
        "optimizer.lr",
        "optimizer.momentum",
        "optimizer.dampening",
        "optimizer.nesterov",
        "optimizer.weight_decay",
        "optimizer.betas",
        "optimizer.eps",
        "optimizer.alpha",
    }
)


@dataclass(frozen=True)
class Trial:
    """One run of a sweep, before it runs.

    Attributes:
        index: its place in the order asked for, from 0.
        settings: the value of each swept setting.
        config: its whole config, without the sweep.
    """

    index: int
    settings: dict[str, Any]
    config: Config


def expand(config: Config) -> list[Trial]:
    """Every combination of the swept values, the last axis moving fastest.

    Raises:
        UsageError: nothing is swept.
        ConfigError: a combination is not a valid config.
    """
    if not config.sweep:
        raise UsageError(
            "nothing to sweep: the config has no sweep section",
            "give values, such as --lrs 1e-1,1e-2,1e-3 or --grid model.depth=1..5",
        )
    base = config.model_copy(update={"sweep": {}})
    trials = []
    for index, values in enumerate(itertools.product(*config.sweep.values())):
        settings = dict(zip(config.sweep, values, strict=True))
        trials.append(Trial(index, settings, with_settings(base, settings)))
    return trials


def group(trials: Iterable[Trial]) -> list[list[Trial]]:
    """The trials in stacks: those that differ only in what one stack can hold apart."""
    stacks: dict[str, list[Trial]] = {}
    for trial in trials:
        fixed = {k: v for k, v in trial.config.settings() if k not in STACKABLE}
        stacks.setdefault(json.dumps(fixed, sort_keys=True), []).append(trial)
    return list(stacks.values())


def separators(stacks: Sequence[Sequence[Trial]]) -> list[str]:
    """The swept settings that made more than one stack of a sweep, in the order swept."""
    firsts = [stack[0].settings for stack in stacks]
    return [
        key
        for key in firsts[0]
        if key not in STACKABLE and len({json.dumps(settings[key]) for settings in firsts}) > 1
    ]


class Sweep:
    """A sweep on its way: its folder, its runs, and what they have come to.

    Args:
        config: the config with its sweep section.
        root: the runs directory.
        name: what its folder is called, before the number.
        test: whether the winner is measured on the test split at the end.

    Raises:
        UsageError: nothing is swept, or the folder cannot be made.
        ConfigError: a combination is not a valid config.
    """

    def __init__(self, config: Config, root: Path, name: str, *, test: bool = True) -> None:
        self.config = config
        self._measure_test = test
        self.trials = expand(config)
        self.stacks = group(self.trials)
        self.folder = store.create(root, name)
        self.folder.write_config(configs.dump(config), "sweep.yaml")
        self.runs = [
            Run(trial.config, store.create_trial(self.folder, trial.index)) for trial in self.trials
        ]
        self.status: Status = "running"
        self.test: dict[str, float] = {}
        self._began = time.perf_counter()
        self._meta = store.new_meta(stacks=len(self.stacks), runs=len(self.runs))
        self._save()

    def run(self, executor: Executor, datasets: Datasets) -> Generator[Event, None, None]:
        """Trains every run; at the end measures the winner, once, on the test split.

        However it ends, the folder says so.

        Yields:
            What happens, as it happens.
        """
        stacks = [[self.runs[trial.index] for trial in stack] for stack in self.stacks]
        try:
            with closing(executor.run(stacks)) as events:
                yield from events
            self._finish(datasets)
        except INTERRUPTIONS:
            self.status = "interrupted"
            raise
        except BaseException:
            self.status = "failed"
            raise
        finally:
            self._save()

    @property
    def settings(self) -> list[Setting]:
        """The settings tried, best first; the runs of one differ in nothing but their seed."""
        return rank([self._row(trial) for trial in self.trials], self.config.train.select)

    @property
    def winner(self) -> Run | None:
        """The best run of the winning setting, if any run had a finite epoch."""
        run = self.runs[self.settings[0].trials[0]]
        return run if run.best else None

    def summary(self) -> dict[str, Any]:
        """What `sweep --json` prints and summary.json holds."""
        best = self.trials[self.settings[0].trials[0]]
        return {
            "sweep": self.folder.name,
            "status": self.status,
            "seconds": round(self.seconds, 3),
            "trials": [self._row(trial) for trial in self.trials],
            "best": self._row(best) | self.test if self.winner else None,
            "checkpoint": str(self.folder.best) if self.folder.best.exists() else None,
        }

    def _row(self, trial: Trial) -> dict[str, Any]:
        run = self.runs[trial.index]
        return {
            "run": run.folder.name,
            "status": run.status,
            **trial.settings,
            "val/loss": run.best["val/loss"] if run.best else None,
            "val/acc": run.best["val/acc"] if run.best else None,
            "seconds": round(run.seconds, 3),
        }

    def _finish(self, datasets: Datasets) -> None:
        statuses = {run.status for run in self.runs}
        if "failed" in statuses:
            self.status = "failed"
        else:
            self.status = "diverged" if statuses == {"diverged"} else "finished"
        if winner := self.winner:
            files.replace(self.folder.best, winner.folder.best.read_bytes())
            if not self._measure_test:
                return
            state = checkpoints.load(self.folder.best)
            loss, accuracy, _ = measure(state, winner.config, "test", datasets)
            self.test = {"test/loss": loss, "test/acc": accuracy}

    def _save(self) -> None:
        self.seconds = time.perf_counter() - self._began
        ended = {} if self.status == "running" else {"ended": store.now()}
        self.folder.write_meta(self._meta | {"status": self.status} | ended)
        self.folder.write_summary(self.summary())
