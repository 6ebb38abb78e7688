"""A sweep: expands a config into runs, groups them into stacks, ranks what came of them."""

import itertools
import json
import os
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self

from mnist_cli import config as configs
from mnist_cli.config import Config, with_settings
from mnist_cli.data import durable
from mnist_cli.errors import INTERRUPTIONS, CheckpointError, UsageError
from mnist_cli.runs import checkpoint as checkpoints
from mnist_cli.runs import interrupts, store
from mnist_cli.runs.evaluate import measure
from mnist_cli.runs.run import Datasets, Run, but_epochs, extended
from mnist_cli.runs.store import RunDirectory
from mnist_cli.sweeps import plan as plans
from mnist_cli.sweeps.executors import Event, Executor, Part
from mnist_cli.sweeps.plan import Plan, plan
from mnist_cli.sweeps.stats import Setting, rank

if TYPE_CHECKING:
    from mnist_cli.runs.store import Status

# What the runs of one stack may differ in, each being updated on its own. Anything else makes
# another stack.
STACKABLE = ("optimizer.", "scheduler.", "train.seed", "train.clip_grad_norm")


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
        fixed = {k: v for k, v in trial.config.settings() if not k.startswith(STACKABLE)}
        stacks.setdefault(json.dumps(fixed, sort_keys=True), []).append(trial)
    return list(stacks.values())


def separators(stacks: Sequence[Sequence[Trial]]) -> list[str]:
    """The swept settings that made more than one stack of a sweep, in the order swept."""
    firsts = [stack[0].settings for stack in stacks]
    return [
        key
        for key in firsts[0]
        if not key.startswith(STACKABLE)
        and len({json.dumps(settings[key]) for settings in firsts}) > 1
    ]


class Sweep:
    """A sweep on its way: its folder, its runs, and what they have come to.

    Args:
        config: the config with its sweep section.
        folder: the sweep's own.
        runs: one for each trial, in the order of `expand`.
        meta: what its folder says about it.
        test: whether the winner is measured on the test split at the end.
    """

    def __init__(
        self,
        config: Config,
        folder: RunDirectory,
        runs: Sequence[Run],
        meta: dict[str, Any],
        *,
        test: bool = True,
    ) -> None:
        self.config = config
        self.folder = folder
        self.trials = expand(config)
        self.runs = list(runs)
        self.status: Status = "running"
        self.test: dict[str, float] = {}
        self.seconds = 0.0
        self._measure_test = test
        self._meta = meta

    @classmethod
    def create(
        cls,
        config: Config,
        folder: RunDirectory,
        *,
        test: bool = True,
        fuse: bool = True,
        workers: int | None = None,
    ) -> Self:
        """A new sweep, whose folder can be looked at from the first moment.

        Args:
            config: the config with its sweep section.
            folder: the sweep's own.
            test: whether the winner is measured on the test split at the end.
            fuse: what `deal` will be asked for; kept for who resumes it before it is dealt out.
            workers: likewise.

        Raises:
            UsageError: nothing is swept.
            ConfigError: a combination is not a valid config.
        """
        trials = expand(config)
        meta = store.new_meta(runs=len(trials), test=test, fuse=fuse, workers=workers)
        folder.write_meta(meta)
        folder.write_config(configs.dump(config), "sweep.yaml")  # by which it is seen to be one
        runs = [Run.create(t.config, store.create_trial(folder, t.index)) for t in trials]
        return cls(config, folder, runs, meta, test=test)

    @classmethod
    def reopen(cls, folder: RunDirectory, epochs: int | None, note: Callable[[str], None]) -> Self:
        """A sweep as its folder has it, with every run that has not ended waiting to go on.

        Args:
            folder: the sweep's own, held by this process.
            epochs: how many each run shall have in all, if more than were asked for.
            note: takes a sentence about what was dropped or differs.

        Raises:
            UsageError: it cannot go on, or not so.
        """
        asked = configs.load_text(folder.config_text(), str(folder.config_path))
        if epochs is not None and "train.epochs" in asked.sweep:
            raise UsageError("this sweep tries several epochs, so --epochs cannot extend it")
        config = extended(asked, epochs)
        trials = expand(config)
        there = [
            folder.trial(t.index) for t in trials if folder.trial(t.index).config_path.exists()
        ]
        for place in there:
            _refuse_other(place, folder, trials)
        if config != asked:  # first: from here on it says how far each run is to go
            folder.write_config(configs.dump(config), "sweep.yaml")
        runs = [
            Run.reopen(place, trial.config.train.epochs, note)
            if (place := folder.trial(trial.index)) in there
            # It was killed before it came to this one.
            else Run.create(trial.config, store.create_trial(folder, trial.index))
            for trial in trials
        ]
        meta = folder.meta() or store.new_meta()
        sweep = cls(config, folder, runs, meta, test=meta.get("test") is not False)
        if all(run.status != "waiting" for run in runs) and _ended_well(folder):
            sweep.status = "finished"
        else:
            meta.pop("ended", None)
            meta |= {"pid": os.getpid(), "resumed": [*meta.get("resumed", []), store.now()]}
        return sweep

    def deal_again(self, datasets: Datasets, workers: int | None) -> Plan:
        """As the runs were dealt out before: the same parts come to the same bits."""
        try:
            parts = tuple(
                plans.Part(tuple(int(i) for i in part["members"]), int(part["threads"]))
                for part in self._meta["stacks"]
            )
        except (KeyError, TypeError, ValueError):  # it was killed before it came to that
            parts = ()
        if sorted(i for part in parts for i in part.members) != list(range(len(self.runs))):
            fuse = self._meta.get("fuse") is not False
            return self.deal(datasets, fuse=fuse, workers=self._meta.get("workers") or workers)
        count = min(len(parts), workers or int(self._meta.get("workers", 1)))
        forked = plans.can_fork() and all(part.threads == 1 for part in parts)
        return Plan(parts, count if forked else 1)

    def deal(self, datasets: Datasets, *, fuse: bool = True, workers: int | None = None) -> Plan:
        """How the runs share the machine, which is kept in the folder: it decides their bits.

        Args:
            datasets: where their data comes from.
            fuse: whether runs that can train together shall.
            workers: how many processes, if not as many as pay.
        """
        stacks = group(self.trials) if fuse else [[trial] for trial in self.trials]
        places = [[trial.index for trial in stack] for stack in stacks]
        data = [datasets.get(stack[0].config) for stack in stacks]
        found = plan(places, [trial.config for trial in self.trials], data, workers)
        self._meta |= {"stacks": [asdict(part) for part in found.parts], "workers": found.workers}
        self.folder.write_meta(self._meta)
        return found

    def run(
        self, executor: Executor, parts: Sequence[plans.Part], datasets: Datasets
    ) -> Generator[Event, None, None]:
        """Trains every run that waits; at the end measures the winner on the test split.

        However it ends, the folder says so.

        Yields:
            What happens, as it happens.
        """
        began = time.perf_counter()
        dealt = [Part([self.runs[i] for i in part.members], part.threads) for part in parts]
        left = [part for part in dealt if any(run.status == "waiting" for run in part.runs)]
        self._save(began)
        try:
            with closing(executor.run(left)) as events:
                yield from events
            self._finish(datasets)
        except INTERRUPTIONS:
            with interrupts.held():
                self.status = "interrupted"
                for run in self.runs:  # those whose turn has not come
                    if run.status == "waiting":
                        run.end(self.status)
            raise
        except BaseException:
            self.status = "failed"
            raise
        finally:
            self._save(began)

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
            durable.replace(self.folder.best, winner.folder.best.read_bytes())
            if not self._measure_test:
                return
            state = checkpoints.load(self.folder.best)
            loss, accuracy, _ = measure(state, winner.config, "test", datasets)
            self.test = {"test/loss": loss, "test/acc": accuracy}

    def _save(self, began: float) -> None:
        self.seconds = time.perf_counter() - began
        ended = {} if self.status == "running" else {"ended": store.now()}
        with interrupts.held():
            self.folder.write_summary(self.summary())  # first: who reads that it ended can read how
            self.folder.write_meta(self._meta | {"status": self.status} | ended)


def _refuse_other(place: RunDirectory, folder: RunDirectory, trials: Sequence[Trial]) -> None:
    """Sees to it that a run of a sweep is the one that the sweep's config has in its place.

    Raises:
        UsageError: it is another, or has more epochs already.
    """
    found = configs.load_text(place.config_text(), str(place.config_path))
    wanted = trials[int(place.path.name)].config
    if but_epochs(found) != but_epochs(wanted):
        raise UsageError(
            f"{folder.config_path} is not what {place.name} was made from",
            "a sweep goes on as it began; put the file back, or start another sweep with it",
        )
    extended(found, wanted.train.epochs)


def _ended_well(folder: RunDirectory) -> bool:
    """Whether a sweep's folder says that it is finished, and has all that it should have then."""
    summary = folder.summary()
    if folder.meta().get("status") != "finished" or summary.get("status") != "finished":
        return False
    try:
        return not summary.get("best") or bool(checkpoints.load(folder.best))
    except CheckpointError:
        return False
