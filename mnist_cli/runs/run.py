"""A run as its folder has it: created, committed epoch by epoch, ended.

A commit is `last.pt`. The other files are made to agree with it (see `runs.resume`), and what a
summary says of a run is what its committed checkpoints hold.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from mnist_cli import config as configs
from mnist_cli.config import Config, FileModel, own_model
from mnist_cli.data import durable
from mnist_cli.engine.loop import Record
from mnist_cli.errors import CheckpointError
from mnist_cli.runs import checkpoint as checkpoints
from mnist_cli.runs import interrupts
from mnist_cli.runs.checkpoint import Checkpoint
from mnist_cli.runs.documents import Meta, Row, Status, Summary, new_meta, now, write_json
from mnist_cli.runs.metrics import MetricsLog, figures_of
from mnist_cli.runs.selection import selection_score
from mnist_cli.runs.stopping import stop_reason
from mnist_cli.runs.store import RunDirectory, held, refuse_link


@dataclass(frozen=True)
class ReplicaState:
    """What continuing a run takes, but for its records: plain values and tensors on the CPU.

    Attributes:
        step: steps done.
        model: the plain module's state dict; with `train.ema` the average of its values.
        optimizer: what the optimizer remembers, by moment and parameter.
        raw: with `train.ema`, the state dict that the steps change.
    """

    step: int
    model: dict[str, Tensor]
    optimizer: dict[str, dict[str, Tensor]]
    raw: dict[str, Tensor] | None = None


@dataclass
class Run:
    """One run on its way.

    Attributes:
        records: one per committed epoch.
        best: the record of the best epoch, if any epoch was finite: that of `best.pt`.
        final: what was measured once after the last epoch (with `train.eval_train`).
        seconds: how long it has trained, with the stack it is part of.
        committed: what a run that goes on goes on from, if it had come so far.
    """

    config: Config
    folder: RunDirectory
    meta: Meta
    log: MetricsLog
    status: Status = "waiting"
    records: list[Record] = field(default_factory=list)
    best: Record | None = None
    final: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    committed: ReplicaState | None = None

    def figures(self, metric: str) -> list[float]:
        """A metric epoch by epoch; the last one measured with the final weights, if it was."""
        return figures_of(self.records, self.final, metric)

    def record_of(self, epoch: int | None) -> Record | None:
        """The record of an epoch, if it is there."""
        return next((record for record in self.records if record["epoch"] == epoch), None)


def create(config: Config, folder: RunDirectory) -> Run:
    """A new run, whose folder can be looked at from the first moment.

    Whatever an earlier run left there, whose config was lost, goes.
    """
    for path in (folder.last, folder.best, folder.metrics_path, folder.path / "summary.json"):
        path.unlink(missing_ok=True)
    run = Run(config, folder, new_meta("waiting"), MetricsLog(folder.metrics_path))
    keep_model(config, folder, run.meta)
    update_meta(run, {})
    write_config(run)  # by which it is seen to be a run
    return run


def record_import(folder: RunDirectory, config: Config, source: dict[str, str]) -> None:
    """Makes a folder with a `best.pt` a run whose weights were trained elsewhere.

    Args:
        folder: the run's.
        config: of the model that the weights are of.
        source: the file they come from: name, format and sum.
    """
    meta = new_meta("imported")
    meta["versions"] |= {"torch": torch.__version__}
    keep_model(config, folder, meta)
    run = Run(config, folder, {**meta, "weights": source}, MetricsLog(folder.metrics_path))
    record_outcome(run, "imported")
    write_config(run)  # last: what has a config is a run


def keep_model(config: Config, folder: RunDirectory, meta: Meta) -> None:
    """Keeps the text of a model's file in the folder of a run or sweep, and its sum in its meta.

    Raises:
        UsageError: the file has changed since its config was read.
    """
    if isinstance(config.model, FileModel):
        path, sha256 = config.model.path, config.model.sha256 or ""
        durable.replace(folder.path / "model.py", own_model.read(path, sha256))
        meta["model"] = {"path": path, "sha256": sha256}


def write_config(run: Run) -> None:
    """Saves the resolved config."""
    durable.replace(run.folder.path / "config.yaml", configs.dump(run.config).encode())


def update_meta(run: Run, changes: Meta) -> None:
    """Says in the folder how the run goes on."""
    run.meta.update(changes)
    run.folder.write_meta(run.meta)


# ------------------------------------------------------------------------------------- its holder


@contextmanager
def hold(folder: RunDirectory) -> Iterator[None]:
    """Keeps every other process from training a run or sweep.

    What a killed process left half-written in the folder is removed.

    Raises:
        RunError: another process trains it.
        UsageError: a file or folder inside it is a link.
        OSError: nothing can be written there.
    """
    with held(folder):
        for path in folder.path.rglob("*"):
            refuse_link(path)
        durable.clear(folder.path)
        yield


def mark_interrupted(folder: RunDirectory) -> None:
    """Says of everything in a held folder that has not ended that it was interrupted.

    A folder that had not become a run yet goes.
    """
    with interrupts.held():
        if not folder.config_path.is_file():
            shutil.rmtree(folder.path, ignore_errors=True)
        for run in (*folder.trials(), folder):
            meta = run.meta()
            if meta.get("status") in ("running", "waiting"):
                meta.update({"status": "interrupted", "ended": now()})
                run.write_meta(meta)


# ------------------------------------------------------------------------------------ its commits


def commit(run: Run, record: Record, state: ReplicaState) -> None:
    """Puts one epoch of a run on the disk.

    Raises:
        OSError: it could not be written, or may not outlive a power cut: the run has failed, and
            `record_outcome` finds out what was saved of it.
    """
    run.log.append(record)
    select = run.config.train.select
    is_best = selection_score(record, select) > selection_score(run.best, select)
    best = record if is_best else run.best
    weights = Checkpoint(
        config=run.config.resolved(),
        epoch=record["epoch"],
        step=record["step"],
        metrics=dict(record),
        model=state.model,
        data=run.meta.get("data", {}),
    )
    resume = {
        "optimizer": state.optimizer,
        "raw": state.raw,
        "metrics": run.log.mark(),
        "best_epoch": best["epoch"] if best else None,
        "seconds": run.seconds,
    }
    checkpoints.save(run.folder.last, replace(weights, resume=resume))
    if is_best:  # after the commit: it is never of an epoch that may not count
        checkpoints.save(run.folder.best, weights)
    run.best = best
    run.records.append(record)


def record_divergence(run: Run, record: Record) -> None:
    """Ends a run with the record of the epoch in which its loss was no longer finite."""
    run.log.append(record)
    run.records.append(record)
    record_outcome(run, "diverged", f"the loss is no longer finite in epoch {record['epoch']}")


def record_outcome(run: Run, status: Status, error: str | None = None) -> None:
    """Says in the folder how the run ended; of one that has failed, what its checkpoints hold.

    Raises:
        OSError: that could not be written.
    """
    run.status = status
    outcome: Meta = {"status": status, "ended": now(), "seconds": round(run.seconds, 3)}
    if error is not None:
        outcome["error"] = error
    if status == "failed":
        with suppress(OSError, CheckpointError, ValueError):
            _forget_uncommitted(run)
    # First: who reads that it ended can read how.
    write_json(run.folder.path / "summary.json", summary(run))
    update_meta(run, outcome)


def discard(run: Run) -> None:
    """Removes the checkpoints of a run that has ended; its figures stay.

    Raises:
        OSError: the folder cannot be written to.
    """
    update_meta(run, {"discarded": True})  # first: without it a run without checkpoints starts over
    for path in (run.folder.last, run.folder.best):
        path.unlink(missing_ok=True)
    write_json(run.folder.path / "summary.json", summary(run))


def _forget_uncommitted(run: Run) -> None:
    """Has a run and its metrics be what its checkpoints hold, whichever write it failed at."""
    last, best = (
        checkpoints.load(path) if path.exists() else None
        for path in (run.folder.last, run.folder.best)
    )
    mark = last.resume["metrics"] if last else {}
    run.log, run.records, _ = MetricsLog.recover(run.folder.metrics_path, mark)
    run.best = run.record_of(best.epoch if best else None)


def summary(run: Run) -> Summary:
    """What `train --json` prints and summary.json holds."""
    best = run.best
    found: Summary = {
        "run": run.folder.name,
        "status": run.status,
        "epochs": len(run.records),
        "seconds": round(run.seconds, 3),
        "precision": run.config.train.precision,
        "best": None,
        "checkpoint": str(run.folder.best.absolute()) if run.folder.best.exists() else None,
    }
    if run.status == "diverged":
        found["diverged"] = len(run.records)
    if run.status == "finished" and (reason := stop_reason(run.records, run.config.train)):
        found["stopped"] = reason
    if best:
        figures: Row = {"val/loss": best["val/loss"], "val/acc": best["val/acc"]}
        found["best"] = {"epoch": best["epoch"], **figures}
    if run.final:
        found["final"] = run.final
    return found
