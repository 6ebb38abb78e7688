"""Runs opened again: ended, or waiting to go on from their last commit."""

import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mnist_cli import config as configs
from mnist_cli.config import Config, Flag, load_saved, own_model
from mnist_cli.data import durable
from mnist_cli.errors import CheckpointError, UsageError
from mnist_cli.runs import checkpoint as checkpoints
from mnist_cli.runs.checkpoint import Checkpoint
from mnist_cli.runs.documents import Meta, new_meta, now, this_process
from mnist_cli.runs.metrics import MetricsLog
from mnist_cli.runs.run import ReplicaState, Run, create, update_meta, write_config
from mnist_cli.runs.stopping import stop_reason
from mnist_cli.runs.store import RunDirectory

_FREE = {"model.path": None}  # a model's file is known by its sum


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
    asked, meta = folder.config(), folder.meta() or new_meta("running")
    config = extended(asked, epochs)
    if meta.get("status") == "imported":
        raise UsageError(
            f"{folder.name} was imported, so there is nothing to go on with",
            "train another run with its config: "
            f"mnist train --config {shlex.quote(str(folder.config_path))}",
        )
    run = Run(config, folder, meta, MetricsLog(folder.metrics_path))
    state, damage = None, None
    try:
        state = checkpoints.load(folder.last) if folder.last.exists() else None
    except CheckpointError as error:
        damage = error
    if state:
        had = load_saved(state.config, "its config")
        refuse_other(asked, had, meta.get("epochs"), folder.config_path)
    if _read_outcome(run):
        if config != asked:
            update_meta(run, {"epochs": config.train.epochs or 0})
            write_config(run)
        return run
    try:
        if damage:
            raise damage
        if not state:
            return create(config, folder)
        # Before anything else changes: from here on it is not what the folder holds.
        (folder.path / "summary.json").unlink(missing_ok=True)
        if cut := _return_to_commit(run, state):
            note(f"{folder.name}: {cut} bytes of metrics.jsonl were not committed and are cut off")
    except CheckpointError as error:
        note(f"{folder.name} starts over: {error.message}")
        return create(config, folder)
    begun = meta.get("versions", {}).get("torch", torch.__version__)
    if begun != torch.__version__:
        note(f"note: {folder.name} began with torch {begun}: from here on its bits may differ")
    go_on(meta)
    meta["status"] = "waiting"
    if epochs is not None:
        meta["epochs"] = epochs
    update_meta(run, {})
    if config != asked:  # after it no longer says that it is finished, which it was with less
        write_config(run)
    return run


def move_model(folder: RunDirectory, flags: Sequence[Flag]) -> None:
    """Has a run or a sweep take its model from a file that is elsewhere now.

    Args:
        folder: the run's or sweep's, held by this process.
        flags: what the command line says of the model.

    Raises:
        UsageError: it is not the model that they began with.
    """
    for each in (folder, *folder.trials()):
        had = each.config()
        moved = load_saved(had.resolved(), str(each.config_path), flags=flags)
        if {**dict(moved.settings()), **_FREE} != {**dict(had.settings()), **_FREE}:
            what = f"--model: this is not the model that {each.name} began with"
            raise UsageError(what, own_model.HINT)
        durable.replace(each.config_path, configs.dump(moved).encode())


def go_on(meta: Meta) -> None:
    """Has a run or a sweep say about itself that it goes on, in this process."""
    for key in ("ended", "error"):
        meta.pop(key, None)  # type: ignore[misc]
    meta.update({"resumed": [*meta.get("resumed", []), now()], **this_process()})


def refuse_other(asked: Config, had: Config, extended_to: int | None, path: Path) -> None:
    """Sees to it that a config is still that of what was trained.

    Args:
        asked: what the config file says.
        had: what was trained.
        extended_to: with how many epochs it may be, if not with as many as it had.
        path: the config file.

    Raises:
        UsageError: it is another.
    """
    first, second = (
        dict(each.settings()) | {"train.epochs": None, **_FREE} for each in (asked, had)
    )
    if first != second or asked.train.epochs not in (had.train.epochs, extended_to):
        raise UsageError(
            f"{path} is not the config of what was trained",
            "it goes on as it began; put the file back, or start another run with it",
        )


def _read_outcome(run: Run) -> bool:
    """Takes on how the run ended, if its folder says that it has and is whole."""
    found, status = run.folder.summary(), run.meta.get("status")
    if status not in ("finished", "diverged", "pruned") or status != found.get("status"):
        return False
    try:
        records = run.folder.metrics()
        best = (found.get("best") or {}).get("epoch")
        if best is not None and not run.meta.get("discarded"):
            best = checkpoints.load(run.folder.best).epoch
    except (UsageError, CheckpointError):
        return False
    if (len(records), best) != (found.get("epochs"), (found.get("best") or {}).get("epoch")):
        return False
    whole = run.config.train.epochs in (None, len(records))
    if status == "finished" and not whole and not stop_reason(records, run.config.train):
        return False
    run.status, run.records = status, records
    run.best = run.record_of(best)
    run.final, run.seconds = found.get("final", {}), found.get("seconds", 0.0)
    return True


def _return_to_commit(run: Run, state: Checkpoint) -> int:
    """Takes on what was committed.

    Returns:
        How many bytes of `metrics.jsonl` were not committed and are cut off.

    Raises:
        CheckpointError: it cannot be gone on with, or what belongs to it is lost.
    """
    folder, resume = run.folder, state.resume
    try:
        best, run.seconds = resume["best_epoch"], resume["seconds"]
        run.committed = ReplicaState(
            state.step, state.model, resume["optimizer"], resume.get("raw")
        )
        run.log, run.records, cut = MetricsLog.recover(folder.metrics_path, resume["metrics"])
    except KeyError as error:
        raise CheckpointError(
            f"{folder.last}: it has no {error} and cannot be gone on with"
        ) from error
    except ValueError as error:
        raise CheckpointError(f"{folder.metrics_path}: {error}") from error
    if best == state.epoch:  # the commit has it too, if it did not come to be written by itself
        checkpoints.save(folder.best, replace(state, resume={}))
    elif best is not None and checkpoints.load(folder.best).epoch != best:
        raise CheckpointError(f"{folder.best}: it is not of epoch {best}, the best")
    run.best = run.record_of(best)
    return cut


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
