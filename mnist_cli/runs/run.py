"""From configs to finished run folders: builds the stack, drains the loop into the store."""

import math
import os
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Self, cast

import numpy as np
import torch

from mnist_cli import config as configs
from mnist_cli.config import Config
from mnist_cli.data.dataset import Dataset, load
from mnist_cli.engine.device import computing, describe_device, resolve_device
from mnist_cli.engine.loop import Record, evaluate, prepare, train
from mnist_cli.errors import INTERRUPTIONS, CheckpointError, UsageError, in_words
from mnist_cli.runs import checkpoint as checkpoints
from mnist_cli.runs import interrupts, store
from mnist_cli.runs.checkpoint import Checkpoint
from mnist_cli.runs.store import RunDirectory, Status


class Datasets:
    """Loads the data of configs, keeping the last: runs after one another mostly share theirs.

    Args:
        report: takes a sentence about data being fetched.
    """

    def __init__(self, report: Callable[[str], None]) -> None:
        self._report = report
        self._last: tuple[str, Dataset] | None = None

    def get(self, config: Config) -> Dataset:
        """The data of a config, on its device.

        Raises:
            UsageError: the device is not there.
            DataError: the data is missing or not what it should be.
        """
        device = resolve_device(config.train.device)
        if config.train.precision == "tf32" and device.type != "cuda":
            raise UsageError("train.precision: tf32 needs a GPU", "take fp32 or bf16")
        key = f"{device} {config.data.model_dump_json(exclude={'batch_size', 'shuffle'})}"
        if self._last is None or self._last[0] != key:
            self._last = None  # two at once would only cost memory
            self._last = key, load(config.data, device, self._report)
        return self._last[1]


@dataclass
class Run:
    """One run on its way: its config, its folder, and what it has come to.

    Attributes:
        records: one per epoch.
        best: the record of the best epoch, if any epoch was finite.
        final: what was measured once after the last epoch (with `train.eval_train`).
        seconds: how long it has trained, with the stack it is part of.
        committed: what a run that goes on goes on from, if it had come so far.
    """

    config: Config
    folder: RunDirectory
    status: Status = "waiting"
    records: list[Record] = field(default_factory=list)
    best: Record | None = None
    final: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    meta: dict[str, Any] = field(default_factory=dict)
    committed: Checkpoint | None = None

    @classmethod
    def create(cls, config: Config, folder: RunDirectory) -> Self:
        """A new run, whose folder can be looked at from the first moment."""
        run = cls(config, folder)
        run.tell(**store.new_meta(status=run.status))
        folder.write_config(configs.dump(config))  # by which it is seen to be a run
        return run

    @classmethod
    def reopen(cls, folder: RunDirectory, epochs: int | None, note: Callable[[str], None]) -> Self:
        """A run as its folder has it: ended, or waiting to go on from its last commit.

        Whatever else is in the folder is made to agree with that commit, and what is beyond it is
        dropped: training makes it again, to the bit. If the commit is damaged, so it does with all.

        Args:
            folder: the run's own, held by this process.
            epochs: how many there shall be in all, if more than were asked for.
            note: takes a sentence about what was dropped or differs.

        Raises:
            UsageError: it cannot go on, or not so.
        """
        asked = configs.load_text(folder.config_text(), str(folder.config_path))
        config = extended(asked, epochs)
        meta = folder.meta() or store.new_meta()
        run = cls(config, folder, meta={k: meta[k] for k in meta if k not in ("ended", "error")})
        told = meta.get("status")
        if told == "imported":
            raise UsageError(
                f"{folder.name} was imported, so there is nothing to go on with",
                "train another run with its config: "
                f"mnist train --config {shlex.quote(str(folder.config_path))}",
            )
        if (told == "diverged" or config == asked) and run.read_end():
            run.meta = meta
            if config != asked:
                folder.write_config(configs.dump(config))
            return run
        try:
            if folder.last.exists():
                run._go_back_to(checkpoints.load(folder.last), asked)
        except CheckpointError as error:
            note(f"{folder.name} starts over: {error.message}")
        if wrong := folder.write_metrics(run.records):
            note(f"{folder.name}: metrics.jsonl is put right: {wrong}")
        begun = run.meta.get("versions", {}).get("torch", torch.__version__)
        if begun != torch.__version__:
            note(f"note: {folder.name} began with torch {begun}: from here on its bits may differ")
        run.tell(status=run.status, resumed=[*run.meta.get("resumed", []), store.now()])
        if config != asked:  # after it no longer says that it is finished, which it was with less
            folder.write_config(configs.dump(config))
        return run

    def read_end(self) -> bool:
        """Takes on how the run ended, if its folder says that it has and is whole."""
        told, summary = self.folder.meta().get("status"), self.folder.summary()
        if told not in ("finished", "diverged") or summary.get("status") != told:
            return False
        try:
            records = self.folder.metrics()
            best = checkpoints.load(self.folder.best).epoch if summary.get("best") else None
        except (UsageError, CheckpointError):
            return False
        if len(records) != summary.get("epochs") or best != (summary["best"] or {}).get("epoch"):
            return False
        self.status = told
        # JSON has null for what was not finite.
        self.records = cast(
            "list[Record]",
            [{k: math.nan if v is None else v for k, v in record.items()} for record in records],
        )
        self._choose(best)
        self.final, self.seconds = summary.get("final", {}), summary.get("seconds", 0.0)
        return True

    def _go_back_to(self, state: Checkpoint, asked: Config) -> None:
        """Takes on what was committed of the config that was asked for.

        Raises:
            UsageError: it was committed of another one.
            CheckpointError: it cannot be gone on with, or the best epoch's weights are lost.
        """
        if but_epochs(configs.load_saved(state.config, "its config")) != but_epochs(asked):
            raise UsageError(
                f"{self.folder.config_path} is not what {self.folder.name} was trained with",
                "a run goes on as it began; put the file back, or start another run with it",
            )
        if not state.resume:
            raise CheckpointError(f"{self.folder.last}: it has weights alone, which is not enough")
        best = state.resume["best_epoch"]
        if best == state.epoch:  # the commit has it too, if it did not come to be written by itself
            checkpoints.save(self.folder.best, replace(state, resume={}))
        elif checkpoints.load(self.folder.best).epoch != best:
            raise CheckpointError(f"{self.folder.best}: it is not of epoch {best}, the best")
        self.committed = state
        self.records = cast("list[Record]", state.resume["records"])
        self.seconds = float(state.resume["seconds"])
        self._choose(best)

    def _choose(self, epoch: int | None) -> None:
        self.best = next((record for record in self.records if record["epoch"] == epoch), None)

    def tell(self, **more: Any) -> None:
        """Says in the folder how the run goes on."""
        self.meta |= more
        self.folder.write_meta(self.meta)

    def summary(self) -> dict[str, Any]:
        """What `train --json` prints and summary.json holds."""
        best = self.best
        return {
            "run": self.folder.name,
            "status": self.status,
            "epochs": len(self.records),
            **({"diverged": len(self.records)} if self.status == "diverged" else {}),
            "seconds": round(self.seconds, 3),
            "precision": self.config.train.precision,
            "best": best and {key: best[key] for key in ("epoch", "val/loss", "val/acc")},
            **({"final": self.final} if self.final else {}),
            "checkpoint": str(self.folder.best) if best else None,
        }

    def figures(self, metric: str) -> list[float]:
        """A metric epoch by epoch; the last one measured with the final weights, if it was."""
        found = [float(record[metric]) for record in self.records if metric in record]  # type: ignore[literal-required]
        return [*found[:-1], self.final[metric]] if metric in self.final else found

    def end(self, status: Status, error: str | None = None) -> None:
        """Says in the folder how the run ended.

        Raises:
            OSError: that could not be written, so it has failed, whatever the folder says.
        """
        self.status = status
        why = {} if error is None else {"error": error}
        try:
            # First: whoever reads that it ended can read how.
            self.folder.write_summary(self.summary())
            self.tell(status=status, ended=store.now(), seconds=round(self.seconds, 3), **why)
        except OSError:
            self.status = "failed"
            raise


def extended(config: Config, epochs: int | None) -> Config:
    """A config with more epochs: everything else, the schedule too, goes on by the same rule.

    Raises:
        UsageError: it counts steps, or has as many epochs already.
    """
    if epochs is None:
        return config
    had = config.train.epochs
    if had is None:
        raise UsageError("this run counts steps, so --epochs cannot extend it")
    if epochs < had:
        raise UsageError(f"--epochs {epochs}: there are {had} already", "give a larger number")
    train = config.train.model_copy(update={"epochs": epochs})
    return config.model_copy(update={"train": train})


def but_epochs(config: Config) -> dict[str, Any]:
    """What two configs must have in common for a run of one to go on as the other."""
    settings = config.resolved()
    return settings | {"train": settings["train"] | {"epochs": None}}


def goodness(record: Record, select: str) -> tuple[float, float]:
    """How good an epoch is, by `train.select`: accuracy, then loss; or loss alone."""
    if select == "loss":
        return -record["val/loss"], 0.0
    return record["val/acc"], -record["val/loss"]


def better(a: Record, b: Record | None, select: str = "acc") -> bool:
    """Whether epoch `a` is better than `b`.

    What is not finite is never better than anything, and anything finite is better than nothing.
    """
    if not (math.isfinite(a["val/loss"]) and math.isfinite(a["val/acc"])):
        return False
    return b is None or goodness(a, select) > goodness(b, select)


@contextmanager
def ending(runs: Sequence[Run]) -> Iterator[None]:
    """However the block ends, the folder of every run says so."""
    status: Status = "finished"
    error = None
    unsaid: list[OSError] = []
    try:
        yield
    except INTERRUPTIONS:
        status = "interrupted"
        raise
    except BaseException as exception:
        status, error = "failed", f"{type(exception).__name__}: {in_words(exception)}"
        raise
    finally:
        with interrupts.held():
            for run in runs:
                if run.status in ("waiting", "running"):
                    try:
                        run.end(status, error)
                    except OSError as why:  # the others may still be able to say it
                        unsaid.append(why)
        if unsaid and status == "finished":
            raise unsaid[0]


class StackRun:
    """Runs that train together, each becoming an ordinary folder.

    A run that goes on has its place in the stack as it had before, and so have its neighbours that
    are ahead of it or have ended: they ride along, for a replica's bits depend on how many there
    are (though never on what they hold). One that is ahead joins where it was committed.

    Args:
        runs: the runs; their configs differ only in what a stack can hold apart.
        data: the data set of all of them.
        threads: CPU threads to compute with.
    """

    def __init__(self, runs: Sequence[Run], data: Dataset, threads: int) -> None:
        self.runs = list(runs)
        self._threads = threads
        self.training = prepare([run.config for run in runs], data)
        self._starts = {
            replica: run.committed.step if run.committed else 0
            for replica, run in enumerate(runs)
            if run.status == "waiting"
        }
        self.training.running = [replica in self._starts for replica in range(len(self.runs))]
        self.training.step = min(self._starts.values())

    def train(self) -> Iterator[list[Record | None]]:
        """Trains to the end.

        Yields:
            After each epoch, once it is on the disk: a record for each run, None for one that had
            ended before.
        """
        began = time.perf_counter()
        before = {replica: self.runs[replica].seconds for replica in self._starts}
        with computing(self._threads, self.runs[0].config.train.precision):
            for replica in self._starts:
                self._open(self.runs[replica])
            self._join()
            for records in train(self.training):
                elapsed = time.perf_counter() - began
                for replica, seconds in before.items():
                    if self.runs[replica].status == "running":
                        self.runs[replica].seconds = seconds + elapsed
                with interrupts.held():  # so that the files say the same, one and all
                    committed = [self._commit(r, record) for r, record in enumerate(records)]
                yield committed
                self._join()
            self._finish()

    def _join(self) -> None:
        """Puts every run that was committed at this very step into its place."""
        for replica, start in self._starts.items():
            run = self.runs[replica]
            if start >= self.training.step:
                self.training.running[replica] = True  # whatever was computed in its place
            if start == self.training.step and run.committed:
                self.training.stack.load_state_dict(replica, run.committed.model)
                self.training.optimizer.load_state_dict(replica, run.committed.resume["optimizer"])
                run.committed = None

    def _finish(self) -> None:
        if self.runs[0].config.train.eval_train:
            measured = evaluate(self.training.stack, self.training.data.train, self.training.loss)
            for run, loss, accuracy in zip(self.runs, *measured, strict=True):
                if run.status == "running":
                    run.final = {"train/loss": loss, "train/acc": accuracy}

    def _open(self, run: Run) -> None:
        data, device = self.training.data, self.training.stack.device
        run.status = "running"
        run.tell(
            status=run.status,
            pid=os.getpid(),
            device=describe_device(device),
            threads=torch.get_num_threads(),
            data={"name": data.name, "split": run.config.data.split, "sha256": data.sha256},
            runs_in_stack=len(self.runs),
            versions=run.meta["versions"] | {"torch": torch.__version__, "numpy": np.__version__},
        )

    def _commit(self, replica: int, record: Record) -> Record | None:
        """Puts one epoch of one run on the disk: what `last.pt` holds is what there is."""
        run = self.runs[replica]
        if run.status != "running" or record["step"] <= self._starts[replica]:
            return None
        run.records.append(record)
        run.folder.append_metrics(record)
        if not self.training.running[replica]:
            run.end("diverged", f"the loss is no longer finite in epoch {record['epoch']}")
            return record
        state = Checkpoint(
            config=run.config.resolved(),
            epoch=record["epoch"],
            step=record["step"],
            metrics=dict(record),
            model=self.training.stack.state_dict(replica),
        )
        if better(record, run.best, run.config.train.select):
            run.best = record
        resume = {
            "optimizer": self.training.optimizer.state_dict(replica),
            "records": [dict(record) for record in run.records],
            "best_epoch": run.best["epoch"] if run.best else None,
            "seconds": run.seconds,
        }
        checkpoints.save(run.folder.last, replace(state, resume=resume))
        if run.best is record:  # after the commit: it is never of an epoch that may not count
            checkpoints.save(run.folder.best, state)
        return record
