"""A sweep as its folder has it: created, dealt out, run, ranked, opened again.

`sweeps.expand` says which runs it is of, `sweeps.plan` how they share the machine, and
`sweeps.driver` trains them; here is what makes one result of many runs.
"""

import hashlib
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field

from mnist_cli import config as configs
from mnist_cli.config import Config
from mnist_cli.data import durable
from mnist_cli.errors import INTERRUPTIONS, CheckpointError, MnistError, SweepError, UsageError
from mnist_cli.runs import checkpoint as checkpoints
from mnist_cli.runs import interrupts, store
from mnist_cli.runs import run as runs
from mnist_cli.runs.datasets import Datasets
from mnist_cli.runs.evaluate import evaluate
from mnist_cli.runs.run import Run
from mnist_cli.runs.store import Meta, Row, RunDirectory, Status, Summary
from mnist_cli.sweeps.driver import drive
from mnist_cli.sweeps.executors import Executor
from mnist_cli.sweeps.expand import Trial, expand, group
from mnist_cli.sweeps.jobs import Event
from mnist_cli.sweeps.plan import Plan, StackPlan, can_fork, plan
from mnist_cli.sweeps.stats import rank


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
) -> Sweep:
    """A new sweep, whose folder can be looked at from the first moment.

    Args:
        config: the config with its sweep section.
        trials: what `expand` made of it.
        folder: the sweep's own.
        test: whether the winner is measured on the test split at the end.
        fuse: whether runs that can train together shall.
        workers: how many processes, if not as many as pay.
    """
    meta = runs.new_meta("running")
    meta.update({"runs": len(trials), "test": test, "fuse": fuse, "workers": workers})
    runs.write_json(folder.path / "meta.json", meta)
    _write_config(folder, config)  # by which it is seen to be a sweep
    made = [runs.create(t.config, store.create_trial(folder, t.index)) for t in trials]
    return Sweep(config, folder, trials, made, meta)


def reopen(folder: RunDirectory, epochs: int | None, note: Callable[[str], None]) -> Sweep:
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
    config = runs.extended(asked, epochs)
    trials = expand(asked)
    meta = folder.meta() or runs.new_meta("running")
    there = [t.index for t in trials if folder.trial(t.index).config_path.exists()]
    for index in there:
        _refuse_other(folder.trial(index), folder, trials[index], meta.get("epochs"))
    if epochs is not None and config != asked:  # first: from here on every run goes that far
        meta["epochs"] = epochs
        runs.write_json(folder.path / "meta.json", meta)
        _write_config(folder, config)
        trials = expand(config)
    found = [
        runs.reopen(folder.trial(trial.index), trial.config.train.epochs, note)
        if trial.index in there
        # It was killed before it came to this one, or its config was lost.
        else runs.create(trial.config, store.create_trial(folder, trial.index))
        for trial in trials
    ]
    seconds = folder.summary().get("seconds", 0.0)
    sweep = Sweep(config, folder, trials, found, meta, seconds=seconds)
    if all(run.status != "waiting" for run in found) and _ended_well(folder):
        sweep.status = "finished"
    else:
        meta.pop("ended", None)
        meta.update(runs.this_process())
        meta["resumed"] = [*meta.get("resumed", []), runs.now()]
    return sweep


def partition(sweep: Sweep, datasets: Datasets, workers: int | None = None) -> Plan:
    """How the runs share the machine, which is kept in the folder: it decides their bits.

    Args:
        sweep: whose runs.
        datasets: where their data comes from.
        workers: how many processes, if the sweep does not say.
    """
    fuse = sweep.meta.get("fuse") is not False
    stacks = group(sweep.trials) if fuse else [[trial] for trial in sweep.trials]
    members = [[trial.index for trial in stack] for stack in stacks]
    data = [datasets.get(stack[0].config) for stack in stacks]
    asked = sweep.meta.get("workers") or workers
    found = plan(members, [trial.config for trial in sweep.trials], data, asked)
    sweep.meta["stacks"] = [asdict(part) for part in found.stacks]
    sweep.meta["workers"] = found.workers
    runs.write_json(sweep.folder.path / "meta.json", sweep.meta)
    return found


def restore_partition(sweep: Sweep, datasets: Datasets, workers: int | None) -> Plan:
    """As the runs were dealt out before: the same stacks come to the same bits."""
    try:
        stacks = tuple(
            StackPlan(tuple(int(i) for i in stack["members"]), int(stack["threads"]))
            for stack in sweep.meta["stacks"]
        )
    except (KeyError, TypeError, ValueError):  # it was killed before it came to that
        stacks = ()
    if sorted(i for stack in stacks for i in stack.members) != list(range(len(sweep.runs))):
        return partition(sweep, datasets, workers)
    count = min(len(stacks), workers or sweep.meta.get("workers") or 1)
    forked = can_fork() and all(stack.threads == 1 for stack in stacks)
    return Plan(stacks, count if forked else 1)


def run(
    sweep: Sweep, stacks: Sequence[StackPlan], executor: Executor, datasets: Datasets
) -> Generator[Event, None, None]:
    """Trains every run that waits; at the end measures the winner on the test split.

    However it ends, the folder says so.

    Yields:
        What happens, as it happens.

    Raises:
        SweepError: the winner's checkpoint is gone.
    """
    began, before = time.perf_counter(), sweep.seconds
    _save(sweep)
    try:
        with closing(drive(sweep.runs, stacks, executor)) as events:
            yield from events
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


def winner(sweep: Sweep) -> Run | None:
    """The best run of the winning setting, if any run that has not failed had a finite epoch."""
    rows = _rows(sweep)
    best = rank(rows, sweep.config.train.select)[0].trials[0]
    return sweep.runs[best] if rows[best]["val/acc"] is not None else None


def summary(sweep: Sweep) -> Summary:
    """What `sweep --json` prints and summary.json holds."""
    rows, best = _rows(sweep), winner(sweep)
    row = next((row for row in rows if best and row["run"] == best.folder.name), None)
    return {
        "sweep": sweep.folder.name,
        "status": sweep.status,
        "seconds": round(sweep.seconds, 3),
        "trials": rows,
        "best": {**row, **sweep.test} if row else None,  # type: ignore[typeddict-item]
        "checkpoint": str(sweep.folder.best) if sweep.folder.best.exists() else None,
    }


def _rows(sweep: Sweep) -> list[Row]:
    """A row for each trial. A run that failed or goes on has no figures for a ranking to go by."""
    rows = []
    for trial, trained in zip(sweep.trials, sweep.runs, strict=True):
        best = trained.best if trained.status not in ("failed", "waiting", "running") else None
        row = {
            "run": trained.folder.name,
            "status": trained.status,
            **trial.settings,
            "val/loss": best["val/loss"] if best else None,
            "val/acc": best["val/acc"] if best else None,
            "seconds": round(trained.seconds, 3),
        }
        rows.append(row)
    return rows  # type: ignore[return-value]  # the settings are keys of their own


def _finish(sweep: Sweep, datasets: Datasets) -> None:
    """Keeps the winner's weights; measures them on the test split, once, if no run failed."""
    statuses = {trained.status for trained in sweep.runs}
    failed = "failed" in statuses
    sweep.status = "failed" if failed else "finished"
    if statuses == {"diverged"}:
        sweep.status = "diverged"
    best = _keep_winner(sweep)
    # A sweep that has lost its meta.json cannot say whether it may look.
    if not best or failed or sweep.meta.get("test") is not True:
        return
    weights = hashlib.sha256(sweep.folder.best.read_bytes()).hexdigest()
    tested = sweep.meta.get("tested", {})
    if tested.get("sha256") != weights:
        state = checkpoints.load(sweep.folder.best)
        loss, accuracy, _ = evaluate(state, best.config, "test", datasets)
        tested = {"sha256": weights, "test/loss": loss, "test/acc": accuracy}
        sweep.meta["tested"] = tested
        runs.write_json(sweep.folder.path / "meta.json", sweep.meta)  # whatever comes: once
    sweep.test = {key: tested[key] for key in ("test/loss", "test/acc")}


def _keep_winner(sweep: Sweep) -> Run | None:
    """Copies the winner's checkpoint, if there is a winner.

    Raises:
        SweepError: the checkpoint is gone.
        CheckpointError: it is damaged.
    """
    best = winner(sweep)
    if best:
        try:
            content = best.folder.best.read_bytes()
        except FileNotFoundError as error:
            raise SweepError(
                f"{best.folder.best}, the winner's checkpoint, is gone",
                f"go on with: mnist resume {sweep.folder.path}",
            ) from error
        checkpoints.load(best.folder.best)
        durable.replace(sweep.folder.best, content)
    return best


def _save(sweep: Sweep) -> None:
    sweep.meta["status"] = sweep.status
    if sweep.status != "running":
        sweep.meta["ended"] = runs.now()
    with interrupts.held():
        # First: who reads that it ended can read how.
        runs.write_json(sweep.folder.path / "summary.json", summary(sweep))
        runs.write_json(sweep.folder.path / "meta.json", sweep.meta)


def _write_config(folder: RunDirectory, config: Config) -> None:
    durable.replace(folder.path / "sweep.yaml", configs.dump(config).encode())


def _refuse_other(
    place: RunDirectory, folder: RunDirectory, trial: Trial, extended: int | None
) -> None:
    """Sees to it that a run of a sweep is the one that the sweep's config has in its place.

    Args:
        place: the run.
        folder: the sweep.
        trial: what the sweep's config has there.
        extended: how many epochs the sweep was extended to, perhaps not with all of its runs.

    Raises:
        UsageError: it is another.
    """
    found = configs.load_text(place.config_text(), str(place.config_path))
    wanted = trial.config.train.epochs
    same = runs.resume_key(found) == runs.resume_key(trial.config)
    if not same or wanted not in (found.train.epochs, extended):
        raise UsageError(
            f"{folder.config_path} is not what {place.name} was made from",
            "a sweep goes on as it began; put the file back, or start another sweep with it",
        )


def _ended_well(folder: RunDirectory) -> bool:
    """Whether a sweep's folder says that it is finished, and has all that it should have then."""
    found = folder.summary()
    if folder.meta().get("status") != "finished" or found.get("status") != "finished":
        return False
    try:
        return not found.get("best") or bool(checkpoints.load(folder.best))
    except CheckpointError:
        return False
