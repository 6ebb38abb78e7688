"""A sweep as its folder has it: created, divided, run, ranked, opened again.

`sweeps.expand` says which runs it is of, `sweeps.plan` how they share the machine, and
`sweeps.driver` trains them; here is what makes one result of many runs.
"""

import hashlib
import json
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal, TypeVar, cast

from mnist_cli import config as configs
from mnist_cli.config import Config
from mnist_cli.data import durable
from mnist_cli.errors import INTERRUPTIONS, MnistError, UsageError
from mnist_cli.runs import checkpoint as checkpoints
from mnist_cli.runs import documents, interrupts, resume, store
from mnist_cli.runs import run as runs
from mnist_cli.runs.datasets import Datasets
from mnist_cli.runs.documents import Meta, Row, Status, Summary, write_json
from mnist_cli.runs.evaluate import evaluate
from mnist_cli.runs.run import Run
from mnist_cli.runs.store import RunDirectory
from mnist_cli.sweeps.driver import drive
from mnist_cli.sweeps.executors import Executor
from mnist_cli.sweeps.expand import Trial, expand, group
from mnist_cli.sweeps.jobs import Ended, Event
from mnist_cli.sweeps.plan import Machines, Plan, StackPlan, can_fork, plan
from mnist_cli.sweeps.stats import rank

T = TypeVar("T")


@dataclass
class Sweep:
    """A sweep on its way.

    Attributes:
        trials: which runs it is of, in the order asked for.
        runs: one for each trial.
        seconds: how long it has been trained, all sessions together.
        test: what the winner scores on the test split, once it was measured.
    """

    config: Config
    folder: RunDirectory
    trials: Sequence[Trial]
    runs: Sequence[Run]
    meta: Meta
    status: Status = "running"
    seconds: float = 0.0
    test: dict[str, float] = field(default_factory=dict)


def create(
    config: Config,
    trials: Sequence[Trial],
    folder: RunDirectory,
    *,
    test: bool = True,
    fuse: bool = True,
    workers: int | None = None,
    keep: Literal["all", "best"] = "all",
) -> Sweep:
    """A new sweep, whose folder can be looked at from the first moment.

    Args:
        config: the config with its sweep section.
        trials: what `expand` made of it.
        folder: the sweep's own.
        test: whether the winner is measured on the test split at the end.
        fuse: whether runs that can train together shall.
        workers: how many processes, if not as many as pay.
        keep: with `best`, of the runs of each setting that have ended, the best alone keeps its
            checkpoints; all keep their figures.
    """
    meta = documents.new_meta("running")
    meta.update({"runs": len(trials), "test": test, "fuse": fuse, "workers": workers})
    meta["keep"] = keep
    runs.keep_model(config, folder, meta)
    folder.write_meta(meta)
    write_config(folder, config)  # by which it is seen to be a sweep
    made = [create_run(folder, trial) for trial in trials]
    return Sweep(config, folder, trials, made, meta)


def reopen(
    folder: RunDirectory,
    epochs: int | None,
    note: Callable[[str], None],
    added: Sequence[Mapping[str, tuple[object, ...]]] = (),
) -> Sweep:
    """A sweep as its folder has it, with every run that has not ended waiting to go on.

    Args:
        folder: the sweep's own, held by this process.
        epochs: how many each run shall have in all, if more than were asked for.
        note: takes a sentence about what was dropped or differs.
        added: values that were added to its axes, if there are more than before (`Config.added`).

    Raises:
        UsageError: it cannot go on, or not so.
    """
    asked, meta = folder.config(), folder.meta() or documents.new_meta("running")
    if epochs is not None and "train.epochs" in asked.sweep:
        raise UsageError("this sweep tries several epochs, so --epochs cannot extend it")
    if epochs is not None and meta.get("keep") == "best":
        raise UsageError("this sweep kept its best checkpoints only: --epochs cannot extend it")
    saved = asked
    if len(added) > len(asked.added):
        asked = asked.model_copy(update={"added": tuple(added)})
    config, trials = resume.extended(asked, epochs), expand(asked)
    meta["runs"] = len(trials)
    there = {t.index for t in trials if folder.trial(t.index).config_path.exists()}
    for trial in trials:
        if trial.index in there:
            before = folder.trial(trial.index).config()
            resume.refuse_other(trial.config, before, meta.get("epochs"), folder.config_path)
    if config != saved:  # first: from here on every run goes that far, and there are so many
        if epochs is not None:
            meta["epochs"] = epochs
        folder.write_meta(meta)
        write_config(folder, config)
        trials = expand(config)
    found = [
        resume.reopen(folder.trial(trial.index), trial.config.train.epochs, note)
        if trial.index in there
        else create_run(folder, trial)  # it was killed before this one, or its config was lost
        for trial in trials
    ]
    sweep = Sweep(config, folder, trials, found, meta)
    had = folder.summary()
    sweep.seconds = had.get("seconds", 0.0)
    ended = all(run.status != "waiting" for run in found)
    if ended and meta.get("status") == had.get("status") == "finished":
        sweep.status = "finished"
    else:
        resume.go_on(meta)
    return sweep


def create_run(folder: RunDirectory, trial: Trial) -> Run:
    """A new run of a sweep."""
    return runs.create(trial.config, store.create_trial(folder, trial.index))


def reuse(sweep: Sweep, root: Path, datasets: Datasets, note: Callable[[str], None]) -> None:
    """Takes finished runs from the whole runs directory in place of such that wait.

    A run is known by its settings, the sum of its data and the schema of its files.

    Args:
        sweep: a new sweep.
        root: the runs directory.
        datasets: where the sweep's data comes from.
        note: takes a sentence about what was taken.
    """
    there: dict[str, RunDirectory] = {}
    owners = store.all_runs(root)
    for folder in (run for owner in owners for run in (*owner.trials(), owner)):
        meta = folder.meta()
        whole = meta.get("status") == "finished" and not meta.get("discarded")
        if whole and not folder.is_sweep and meta.get("schema") == documents.SCHEMA:
            with suppress(UsageError):  # its config is damaged
                sha256 = meta.get("data", {}).get("sha256")
                there[_identity(folder.config(), sha256)] = folder
    taken, found = 0, list(sweep.runs)
    for index, trained in enumerate(sweep.runs):
        source = there.get(_identity(trained.config, datasets.get(trained.config).sha256))
        if source:
            for name in ("best.pt", "last.pt", "metrics.jsonl", "summary.json", "meta.json"):
                with suppress(FileNotFoundError):
                    content = (source.path / name).read_bytes()
                    durable.replace(trained.folder.path / name, content)
            found[index] = resume.reopen(trained.folder, None, note)
            taken += found[index].status == "finished"
    sweep.runs = found
    note(f"{taken} of {len(found)} runs are finished already, in {root}")


def _identity(config: Config, sha256: str | None) -> str:
    return json.dumps([dict(config.settings()), sha256], sort_keys=True)


def partition(
    sweep: Sweep,
    datasets: Datasets,
    workers: int | None = None,
    machines: Machines | None = None,
) -> Plan:
    """How the runs share the machine: as before, for that decides their bits; or kept from now on.

    Args:
        sweep: whose runs.
        datasets: where their data comes from.
        workers: how many processes, if the sweep does not say.
        machines: where they run, if not here.
    """
    stacks = tuple(
        StackPlan(tuple(stack["members"]), stack["threads"])
        for stack in sweep.meta.get("stacks", ())
    )
    planned = {i for stack in stacks for i in stack.members}
    if len(planned) < sum(len(stack.members) for stack in stacks) or not planned <= {
        *range(len(sweep.runs))
    }:
        stacks, planned = (), set()
    missing = [
        trial
        for trial, trained in zip(sweep.trials, sweep.runs, strict=True)
        if trial.index not in planned and trained.status == "waiting"
    ]
    if not missing:
        count = min(len(stacks), workers or sweep.meta.get("workers") or 1)
        forked = can_fork() and all(stack.threads == 1 for stack in stacks)
        return Plan(stacks, count if forked else 1)
    fuse = sweep.meta.get("fuse") is not False
    groups = group(missing) if fuse else [[trial] for trial in missing]
    found = plan(
        [[trial.index for trial in trials] for trials in groups],
        [trial.config for trial in sweep.trials],
        [datasets.get(trials[0].config) for trials in groups],
        sweep.meta.get("workers") or workers,
        machines,
    )
    found = replace(found, stacks=(*stacks, *found.stacks))
    sweep.meta["stacks"] = [cast("documents.Members", asdict(stack)) for stack in found.stacks]
    sweep.meta["workers"] = found.workers
    sweep.folder.write_meta(sweep.meta)
    return found


def run(
    sweep: Sweep, stacks: Sequence[StackPlan], executor: Executor, datasets: Datasets
) -> Generator[Event, None, None]:
    """Trains every run that waits; at the end measures the winner on the test split.

    However it ends, the folder says so.

    Yields:
        What happens, as it happens.

    Raises:
        CheckpointError: the winner's checkpoint is gone or damaged.
    """
    yield from recorded(sweep, drive(sweep.runs, stacks, executor), datasets)


def recorded(
    sweep: Sweep, training: Generator[T, None, None], datasets: Datasets
) -> Generator[T, None, None]:
    """What trains the runs, recorded as the sweep's: when it ends, the folder says how.

    Args:
        sweep: whose runs.
        training: trains them; then the winner is measured on the test split.
        datasets: where their data comes from.

    Yields:
        What happens, as it happens.

    Raises:
        CheckpointError: the winner's checkpoint is gone or damaged.
    """
    began, before = time.perf_counter(), sweep.seconds
    _save(sweep)
    try:
        with closing(training) as events:
            for event in events:
                yield event
                if isinstance(event, Ended) and sweep.meta.get("keep") == "best":
                    with suppress(OSError):  # it costs room on the disk, and no run
                        _discard_others(sweep)
        _finish(sweep, datasets)
    except INTERRUPTIONS:
        sweep.status = "interrupted"
        with interrupts.held(), suppress(OSError, MnistError):
            _keep_winner(sweep)
        raise
    except BaseException:
        sweep.status = "failed"
        raise
    finally:
        sweep.seconds = before + time.perf_counter() - began
        _save(sweep)


def summary(sweep: Sweep) -> Summary:
    """What `sweep --json` prints and summary.json holds."""
    rows, best = rows_of(sweep), _winner(sweep)
    return {
        "sweep": sweep.folder.name,
        "status": sweep.status,
        "seconds": round(sweep.seconds, 3),
        "trials": rows,
        "best": None if best is None else {**rows[best], **sweep.test},  # type: ignore[typeddict-item]
        "checkpoint": str(sweep.folder.best.absolute()) if sweep.folder.best.exists() else None,
    }


def _winner(sweep: Sweep) -> int | None:
    """The index of the best run of the winning setting, if any has figures to go by."""
    rows = rows_of(sweep)
    best = next((group.trials[0] for group in rank(rows, sweep.config.train.select)), None)
    return None if best is None or rows[best]["val/acc"] is None else best


def rows_of(sweep: Sweep) -> list[Row]:
    """A row for each trial. A run that failed or goes on has no figures for a ranking to go by."""
    keys = dict.fromkeys(key for trial in sweep.trials for key in trial.settings)
    rows = []
    for trial, trained in zip(sweep.trials, sweep.runs, strict=True):
        best = trained.best if trained.status not in ("failed", "waiting", "running") else None
        row = {
            "run": trained.folder.name,
            "status": trained.status,
            **{key: trial.settings.get(key) for key in keys},
            "val/loss": best["val/loss"] if best else None,
            "val/acc": best["val/acc"] if best else None,
            "seconds": round(trained.seconds, 3),
        }
        rows.append(row)
    return rows  # type: ignore[return-value]  # the settings are keys of their own


def _finish(sweep: Sweep, datasets: Datasets) -> None:
    """Keeps the winner's weights; measures them on the test split, once, if no run failed."""
    statuses = {trained.status for trained in sweep.runs}
    sweep.status = "failed" if "failed" in statuses else "finished"
    if statuses == {"diverged"}:
        sweep.status = "diverged"
    best = _keep_winner(sweep)
    # A sweep that has lost its meta.json cannot say whether it may look.
    if not best or sweep.status == "failed" or sweep.meta.get("test") is not True:
        return
    weights = hashlib.sha256(sweep.folder.best.read_bytes()).hexdigest()
    tested = sweep.meta.get("tested", {})
    if tested.get("sha256") != weights:
        state = checkpoints.load(sweep.folder.best)
        loss, accuracy, _ = evaluate(state, datasets.placed(best.config), "test", datasets)
        tested = {"sha256": weights, "test/loss": loss, "test/acc": accuracy}
        sweep.meta["tested"] = tested
        sweep.folder.write_meta(sweep.meta)  # whatever comes: once
    sweep.test = {key: tested[key] for key in ("test/loss", "test/acc")}


def _discard_others(sweep: Sweep) -> None:
    """Of the runs of each setting that have ended, leaves checkpoints to the best alone."""
    for same in rank(rows_of(sweep), sweep.config.train.select):
        for trained in (sweep.runs[index] for index in same.trials[1:]):
            if trained.status in ("finished", "diverged") and not trained.meta.get("discarded"):
                runs.discard(trained)


def _keep_winner(sweep: Sweep) -> Run | None:
    """Copies the winner's checkpoint, if there is a winner.

    Raises:
        CheckpointError: it is gone or damaged.
    """
    best = _winner(sweep)
    if best is None:
        return None
    checkpoints.save(sweep.folder.best, checkpoints.load(sweep.runs[best].folder.best))
    return sweep.runs[best]


def _save(sweep: Sweep) -> None:
    sweep.meta["status"] = sweep.status
    if sweep.status != "running":
        sweep.meta["ended"] = documents.now()
    with interrupts.held():
        # First: who reads that it ended can read how.
        write_json(sweep.folder.path / "summary.json", summary(sweep))
        sweep.folder.write_meta(sweep.meta)


def write_config(folder: RunDirectory, config: Config) -> None:
    """Saves the resolved config of a sweep."""
    durable.replace(folder.path / "sweep.yaml", configs.dump(config).encode())
