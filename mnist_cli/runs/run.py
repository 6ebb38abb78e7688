"""A run as its folder has it: created, committed epoch by epoch, ended, and opened again.

A commit is `last.pt`. The other files are made to agree with it: `metrics.jsonl` is cut back to
what it says, and what a summary says of a run is what its committed checkpoints hold.
"""

import functools
import json
import math
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mnist_cli import __version__
from mnist_cli import config as configs
from mnist_cli.config import Config
from mnist_cli.data import durable
from mnist_cli.engine.loop import Record
from mnist_cli.errors import CheckpointError, RunError, UsageError
from mnist_cli.runs import checkpoint as checkpoints
from mnist_cli.runs import interrupts, lock
from mnist_cli.runs.checkpoint import Checkpoint
from mnist_cli.runs.metrics import MetricsLog, read_records
from mnist_cli.runs.store import Meta, Row, RunDirectory, Status, Summary, finite, refuse_link

SCHEMA = 1  # of meta.json and summary.json


@dataclass(frozen=True)
class ReplicaState:
    """What continuing a run takes, but for its records: plain values and tensors on the CPU.

    Attributes:
        step: steps done.
        model: the plain module's state dict.
        optimizer: what the optimizer remembers, by moment and parameter.
    """

    step: int
    model: dict[str, Tensor]
    optimizer: dict[str, dict[str, Tensor]]


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
        found = [float(record[metric]) for record in self.records if metric in record]  # type: ignore[literal-required]
        return [*found[:-1], self.final[metric]] if metric in self.final else found


# ------------------------------------------------------------------------------------- the files


def create(config: Config, folder: RunDirectory) -> Run:
    """A new run, whose folder can be looked at from the first moment.

    Whatever an earlier run left there, whose config was lost, goes.
    """
    for path in (folder.last, folder.best, folder.metrics_path, folder.path / "summary.json"):
        path.unlink(missing_ok=True)
    run = Run(config, folder, new_meta("waiting"), MetricsLog(folder.metrics_path))
    write_json(folder.path / "meta.json", run.meta)
    write_config(run)  # by which it is seen to be a run
    return run


def write_config(run: Run) -> None:
    """Saves the resolved config."""
    durable.replace(run.folder.path / "config.yaml", configs.dump(run.config).encode())


def update_meta(run: Run, changes: Meta) -> None:
    """Says in the folder how the run goes on."""
    run.meta.update(changes)
    write_json(run.folder.path / "meta.json", run.meta)


def write_json(path: Path, value: Any) -> None:
    """Saves a document, in place of what was there; what is not finite becomes null."""
    durable.replace(path, json.dumps(finite(value), indent=2).encode() + b"\n")


def new_meta(status: Status) -> Meta:
    """What a run says about itself when it starts: no environment, no secrets."""
    return {
        "schema": SCHEMA,
        "status": status,
        "started": now(),
        "argv": sys.argv[1:],
        **this_process(),
        "git": _git_commit(),
        "versions": {"mnist": __version__, "python": platform.python_version()},
    }


def this_process() -> Meta:
    """Who trains a run."""
    return {"pid": os.getpid(), "host": platform.node()}


def now() -> str:
    """The time, as ISO 8601 in UTC, to the microsecond."""
    return datetime.now(UTC).isoformat()


@functools.cache  # every run of a sweep asks
def _git_commit() -> str | None:
    """The commit of the working directory's repository, if it is in one.

    `rev-parse` runs nothing that the repository configures (no hooks, filters or monitors), which
    asking whether files have changed would.
    """
    try:
        command = ["git", "rev-parse", "HEAD"]
        found = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None


@contextmanager
def hold(folder: RunDirectory) -> Iterator[None]:
    """Keeps every other process from training a run or sweep.

    What a killed process left half-written in the folder is removed. A run that has not ended
    says from then on who trains it.

    Raises:
        RunError: another process trains it.
        UsageError: a folder inside it is a link.
        OSError: nothing can be written there.
    """
    try:
        with lock.hold(folder.path):
            for inside in (folder.path / "plots", folder.path / "trials"):
                refuse_link(inside)
            for trial in (folder.path / "trials").glob("*"):
                refuse_link(trial)
            durable.clear(folder.path)
            meta = folder.meta()
            if meta.get("status") in ("running", "waiting", "interrupted", "failed"):
                write_json(folder.path / "meta.json", {**meta, **this_process()})
            yield
    except lock.HeldError:
        meta = folder.meta()
        who = f"process {meta.get('pid', 'unknown')} on {meta.get('host', 'another machine')}"
        raise RunError(
            f"{folder.name} is being trained by {who}", "wait until it ends, or end it"
        ) from None


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
                ended = {"status": "interrupted", "ended": now()}
                write_json(run.path / "meta.json", {**meta, **ended})


def record_import(folder: RunDirectory, config: Config, source: dict[str, str]) -> None:
    """Makes a folder with a `best.pt` a run whose weights were trained elsewhere.

    Args:
        folder: the run's.
        config: of the model that the weights are of.
        source: the file they come from: name, format and sum.
    """
    meta = new_meta("imported")
    meta.update({"weights": source, "ended": now()})
    meta["versions"] |= {"torch": torch.__version__}
    run = Run(config, folder, meta, MetricsLog(folder.metrics_path), status="imported")
    write_json(folder.path / "meta.json", meta)
    write_json(folder.path / "summary.json", {**summary(run), "checkpoint": str(folder.best)})
    write_config(run)  # last: what has a config is a run


# ------------------------------------------------------------------------------------ the commits


def commit(run: Run, record: Record, state: ReplicaState) -> None:
    """Puts one epoch of a run on the disk.

    Raises:
        OSError: it could not be written. The epoch does not count unless `last.pt` was.
    """
    run.log.append(record)
    is_best = better(record, run.best, run.config.train.select)
    best = record if is_best else run.best
    weights = Checkpoint(
        config=run.config.resolved(),
        epoch=record["epoch"],
        step=record["step"],
        metrics=dict(record),
        model=state.model,
    )
    resume = {
        "optimizer": state.optimizer,
        "metrics": run.log.mark(),
        "best_epoch": best["epoch"] if best else None,
        "seconds": run.seconds,
    }
    with _saved(run.folder.last, replace(weights, resume=resume)):
        run.log.committed()
        run.records.append(record)
    if is_best:  # after the commit: it is never of an epoch that may not count
        with _saved(run.folder.best, weights):
            run.best = record


@contextmanager
def _saved(path: Path, state: Checkpoint) -> Iterator[None]:
    """Saves a checkpoint and does the block, also if nothing but its name could not be flushed.

    Raises:
        OSError: it could not be written, or may not outlive a power cut.
    """
    try:
        checkpoints.save(path, state)
    except OSError:
        if _epoch_in(path) == state.epoch:
            yield
        raise
    yield


def _epoch_in(path: Path) -> int | None:
    try:
        return checkpoints.load(path).epoch
    except CheckpointError:
        return None


def record_divergence(run: Run, record: Record) -> None:
    """Ends a run with the record of the epoch in which its loss was no longer finite."""
    run.log.append(record)
    run.log.committed()
    run.records.append(record)
    record_outcome(run, "diverged", f"the loss is no longer finite in epoch {record['epoch']}")


def record_outcome(run: Run, status: Status, error: str | None = None) -> None:
    """Says in the folder how the run ended.

    Raises:
        OSError: that could not be written, so it has failed, whatever the folder says.
    """
    run.status = status
    outcome: Meta = {"status": status, "ended": now(), "seconds": round(run.seconds, 3)}
    if error is not None:
        outcome["error"] = error
    try:
        with suppress(OSError):
            run.log.cut()
        # First: who reads that it ended can read how.
        write_json(run.folder.path / "summary.json", summary(run))
        update_meta(run, outcome)
    except OSError:
        run.status = "failed"
        raise


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
        "checkpoint": None,
    }
    if run.status == "diverged":
        found["diverged"] = len(run.records)
    if best:
        figures: Row = {"val/loss": best["val/loss"], "val/acc": best["val/acc"]}
        found["best"] = {"epoch": best["epoch"], **figures}
        found["checkpoint"] = str(run.folder.best)
    if run.final:
        found["final"] = run.final
    return found


def selection_score(record: Record, select: str) -> tuple[float, float]:
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
    return b is None or selection_score(a, select) > selection_score(b, select)


# ------------------------------------------------------------------------------------ opened again


def reopen(folder: RunDirectory, epochs: int | None, note: Callable[[str], None]) -> Run:
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
    meta = folder.meta() or new_meta("running")
    if meta.get("status") == "imported":
        raise UsageError(
            f"{folder.name} was imported, so there is nothing to go on with",
            "train another run with its config: "
            f"mnist train --config {shlex.quote(str(folder.config_path))}",
        )
    run = Run(config, folder, meta, MetricsLog(folder.metrics_path))
    if (meta.get("status") == "diverged" or config == asked) and _read_outcome(run):
        if config != asked:
            write_config(run)
        return run
    for key in ("ended", "error"):
        run.meta.pop(key, None)  # type: ignore[misc]
    try:
        state = checkpoints.load(folder.last) if folder.last.exists() else None
        if state:
            _refuse_other(run, state, asked)
        # Before anything else changes: from here on it is not what the folder holds.
        (folder.path / "summary.json").unlink(missing_ok=True)
        cut = _return_to_commit(run, state) if state else ""
        if cut:
            note(f"{folder.name}: metrics.jsonl is cut back to its commit: {cut}")
    except CheckpointError as error:
        note(f"{folder.name} starts over: {error.message}")
        state, run = None, Run(config, folder, run.meta, run.log)
    if not state:
        run.log, _, _ = MetricsLog.recover(folder.metrics_path, {})
    begun = run.meta.get("versions", {}).get("torch", torch.__version__)
    if begun != torch.__version__:
        note(f"note: {folder.name} began with torch {begun}: from here on its bits may differ")
    changes: Meta = {"status": "waiting", "resumed": [*meta.get("resumed", []), now()]}
    if epochs is not None:
        changes["epochs"] = epochs
    update_meta(run, changes)
    if config != asked:  # after it no longer says that it is finished, which it was with less
        write_config(run)
    return run


def _read_outcome(run: Run) -> bool:
    """Takes on how the run ended, if its folder says that it has and is whole."""
    found, best = run.folder.summary(), None
    ended: tuple[Status, ...] = ("finished", "diverged")
    said = next((status for status in ended if run.meta.get("status") == status), None)
    if said is None or found.get("status") != said:
        return False
    try:
        records = read_records(run.folder.metrics_path.read_bytes())
        if summarised := found.get("best"):
            best = checkpoints.load(run.folder.best).epoch
    except (OSError, ValueError, CheckpointError):
        return False
    if said == "finished" and run.config.train.epochs not in (None, len(records)):
        return False
    if len(records) != found.get("epochs") or (summarised and best != summarised.get("epoch")):
        return False
    run.status = said
    run.records, run.best = records, _of_epoch(records, best)
    run.final, run.seconds = found.get("final", {}), found.get("seconds", 0.0)
    return True


def _refuse_other(run: Run, state: Checkpoint, asked: Config) -> None:
    """Sees to it that what was committed is of the config that was asked for.

    Raises:
        UsageError: it is of another one.
    """
    had = configs.load_saved(state.config, "its config")
    epochs = (had.train.epochs, run.meta.get("epochs"))
    if resume_key(had) != resume_key(asked) or asked.train.epochs not in epochs:
        raise UsageError(
            f"{run.folder.config_path} is not what {run.folder.name} was trained with",
            "a run goes on as it began; put the file back, or start another run with it",
        )


def _return_to_commit(run: Run, state: Checkpoint) -> str:
    """Takes on what was committed.

    Returns:
        What of `metrics.jsonl` was not committed and is gone, in words.

    Raises:
        CheckpointError: it cannot be gone on with, or what belongs to it is lost.
    """
    folder, resume = run.folder, state.resume
    if not {"optimizer", "metrics", "best_epoch", "seconds"} <= resume.keys():
        raise CheckpointError(f"{folder.last}: it has weights alone, which is not enough")
    try:
        run.log, run.records, cut = MetricsLog.recover(folder.metrics_path, resume["metrics"])
    except (ValueError, KeyError) as error:
        raise CheckpointError(f"{folder.metrics_path}: {error}") from error
    best = resume["best_epoch"]
    if best == state.epoch:  # the commit has it too, if it did not come to be written by itself
        checkpoints.save(folder.best, replace(state, resume={}))
    elif best is not None and checkpoints.load(folder.best).epoch != best:
        raise CheckpointError(f"{folder.best}: it is not of epoch {best}, the best")
    run.best = _of_epoch(run.records, best)
    run.seconds = float(resume["seconds"])
    run.committed = ReplicaState(state.step, state.model, resume["optimizer"])
    return cut


def _of_epoch(records: list[Record], epoch: int | None) -> Record | None:
    return next((record for record in records if record["epoch"] == epoch), None)


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
    update: dict[str, Any] = {"train": config.train.model_copy(update={"epochs": epochs})}
    if config.reference and config.reference.epochs is None:  # published for fewer epochs
        update["reference"] = config.reference.model_copy(update={"epochs": had})
    return config.model_copy(update=update)


def resume_key(config: Config) -> dict[str, Any]:
    """What two configs must have in common for a run of one to go on as the other."""
    settings = config.resolved()
    return settings | {"train": settings["train"] | {"epochs": None}, "reference": None}
