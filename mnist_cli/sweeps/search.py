"""A search: trials in batches, each trained rung by rung in stacks that the losers leave.

Its folder is that of a sweep whose runs are not known beforehand. Which they are, and which of them
end early, is a function of the config and of what was measured. So a search that goes on begins
anew, and where a run has trained already there is nothing to do.
"""

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from statistics import fmean, median
from typing import cast

from mnist_cli.config import Config, with_settings
from mnist_cli.config.schema import SearchConfig
from mnist_cli.errors import UsageError
from mnist_cli.runs import documents, resume
from mnist_cli.runs.datasets import Datasets
from mnist_cli.runs.run import Run, record_outcome
from mnist_cli.runs.store import RunDirectory
from mnist_cli.sweeps.driver import drive, waits
from mnist_cli.sweeps.executors import Executor
from mnist_cli.sweeps.expand import Trial, group
from mnist_cli.sweeps.jobs import Event
from mnist_cli.sweeps.plan import StackPlan, can_fork, plan
from mnist_cli.sweeps.sampling import Sampler
from mnist_cli.sweeps.stats import SEED
from mnist_cli.sweeps.sweep import Sweep, create, create_run, write_config

# Runs of one shape train in stacks of about so many on a CPU, but at least in two: whatever the
# number of processes, for it decides their bits, and these which trials are asked for next.
STACK = 16

MIN_FINISHED = 5  # trials that the median rule waits for, as Optuna's does

Note = Callable[[str], None]


@dataclass(frozen=True)
class Batch:
    """A batch of trials has ended.

    Attributes:
        number: which, from 1.
        count: how many there will be, if no budget ends the search.
        trials: how many it has.
        pruned: how many of them ended early.
    """

    number: int
    count: int
    trials: int
    pruned: int


@dataclass(frozen=True)
class Tried:
    """A trial: its runs, one for each seed."""

    number: int
    runs: tuple[int, ...]


def begin(config: Config, folder: RunDirectory, storage: str | None, workers: int | None) -> Sweep:
    """A new search, whose folder can be looked at from the first moment."""
    search = create(config, (), folder, workers=workers)
    search.meta.update({"batches": [], "rounds": []})
    if storage:
        search.meta["storage"] = storage
    folder.write_meta(search.meta)
    return search


def reopen(folder: RunDirectory, trials: int | None) -> Sweep:
    """A search as its folder has it, about to go on.

    Args:
        folder: its own, held by this process.
        trials: how many there shall be in all, if more than were asked for.

    Raises:
        UsageError: there are so many already.
    """
    config, meta = folder.config(), folder.meta() or documents.new_meta("running")
    had = config.search
    assert had
    if trials is not None:
        if trials < had.trials:
            what = f"--trials {trials}: {had.trials} were asked for already"
            raise UsageError(what, "give a larger number")
        had = had.model_copy(update={"trials": trials})
        config = config.model_copy(update={"search": had})
        write_config(folder, config)
    search = Sweep(config, folder, (), (), meta)
    search.seconds = folder.summary().get("seconds", 0.0)
    asked = sum(meta.get("batches", ()))
    if meta.get("status") == "finished" and asked >= had.trials:
        search.status = "finished"
    else:
        resume.go_on(meta)
    return search


def rungs(search: SearchConfig, epochs: int | None) -> list[int | None]:
    """After which epochs trials may end early; None, which is last, is the end."""
    if search.pruner == "none" or epochs is None:
        return [None]
    step = search.reduction_factor
    places = range(search.min_epochs, epochs)
    if search.pruner == "halving":
        powers = accumulate(places, lambda rung, _: rung * step, initial=search.min_epochs)
        places = [rung for rung in powers if rung < epochs]  # type: ignore[assignment]
    return [*places, None]


def train(
    search: Sweep,
    sampler: Sampler,
    datasets: Datasets,
    executor: Callable[[int], Executor],
    note: Note,
) -> Generator[Event | Batch, None, None]:
    """Trains all trials of a search that are not, in batches.

    Args:
        search: the search, without its trials.
        sampler: has not been asked yet.
        datasets: where the data comes from.
        executor: makes what trains stacks in so many processes.
        note: takes a sentence about what was dropped.
    """
    asked = search.config.search
    assert asked
    begun = search.meta.setdefault("versions", {}).setdefault("optuna", sampler.version)
    if begun != sampler.version:
        note(f"note: the search began with optuna {begun}: another may ask for other trials")
    ended: list[Tried] = []
    rounds = 0
    for number, size in enumerate(_batches(search), 1):
        batch = [
            _open(search, len(ended) + place, settings, note)
            for place, settings in enumerate(sampler.ask(size))
        ]
        alive = batch
        for until in rungs(asked, search.config.train.epochs):
            members = [run for tried in alive for run in tried.runs]
            if any(waits(search.runs[run], until) for run in members):
                stacks, processes = _divided(search, rounds, members, datasets)
                yield from drive(search.runs, stacks, executor(processes), until)
            if any(search.runs[run].status == "failed" for run in members):
                return
            rounds += 1
            if until is not None:
                alive = _survivors(search, alive, ended, until)
                _prune(search, members, [run for tried in alive for run in tried.runs])
        for tried in batch:
            whole = all(search.runs[run].status == "finished" for run in tried.runs)
            sampler.tell(tried.number, figures(search, tried), ended=whole)
        if storage := search.meta.get("storage"):
            sampler.save(storage, search.folder.name)
        ended += batch
        statuses = [search.runs[tried.runs[0]].status for tried in batch]
        left = asked.trials - sum(search.meta["batches"])
        count = len(search.meta["batches"]) - (-left // asked.batch)
        yield Batch(number, count, size, statuses.count("pruned"))


def figures(search: Sweep, tried: Tried) -> list[float]:
    """What counts of a trial after each epoch: the mean over its seeds of the best so far.

    Nothing, if a run has diverged.
    """
    runs = [search.runs[run] for run in tried.runs]
    if any(run.status == "diverged" for run in runs):
        return []
    by_loss = search.config.train.select == "loss"
    key, best = ("val/loss", min) if by_loss else ("val/acc", max)
    curves = [list(accumulate(run.figures(key), best)) for run in runs]
    epochs = range(max(map(len, curves)))
    return [fmean(curve[min(epoch, len(curve) - 1)] for curve in curves) for epoch in epochs]


def _batches(search: Sweep) -> Iterator[int]:
    """The sizes of batches: of those that there were, and of more within the budget."""
    asked, began = search.config.search, time.perf_counter()
    assert asked
    known = search.meta.setdefault("batches", [])
    yield from known.copy()
    while left := asked.trials - sum(known):
        epochs = sum(len(run.records) for run in search.runs)
        seconds = search.seconds + time.perf_counter() - began
        if epochs >= (asked.max_epochs or epochs + 1):
            return
        if seconds >= (asked.max_seconds or seconds + 1):
            return
        known.append(min(asked.batch, left))
        search.folder.write_meta(search.meta)
        yield known[-1]


def _open(search: Sweep, number: int, settings: dict[str, object], note: Note) -> Tried:
    """The runs of a trial: as their folders have them, or new ones."""
    base = search.config.alone()
    asked, first = search.config.search, base.train.seed
    assert asked
    runs = []
    for seed in range(first, first + asked.seeds):
        index = len(search.runs)
        own = {**settings, SEED: seed} if asked.seeds > 1 else settings
        trial = Trial(index, own, with_settings(base, own))
        folder = search.folder.trial(index)
        if folder.config_path.exists():
            resume.refuse_other(trial.config, folder.config(), None, folder.config_path)
            run = resume.reopen(folder, None, note)
        else:
            run = create_run(search.folder, trial)
        search.trials, search.runs = (*search.trials, trial), (*search.runs, run)
        runs.append(index)
    return Tried(number, tuple(runs))


def _divided(
    search: Sweep, number: int, members: Sequence[int], datasets: Datasets
) -> tuple[tuple[StackPlan, ...], int]:
    """How runs share the machine in a round: as before, for that decides their bits.

    Returns:
        The stacks, and how many processes take them.
    """
    groups = group([search.trials[run] for run in members])
    places = [[trial.index for trial in trials] for trials in groups]
    configs = [trial.config for trial in search.trials]
    data = [datasets.get(trials[0].config) for trials in groups]
    rounds = search.meta.setdefault("rounds", [])
    rounds += [[] for _ in range(number + 1 - len(rounds))]
    if not rounds[number]:
        pieces = max(2, -(-len(members) // STACK))
        found = plan(places, configs, data, pieces).stacks
        rounds[number] = [cast("documents.Members", asdict(stack)) for stack in found]
        search.folder.write_meta(search.meta)
    stacks = tuple(StackPlan(tuple(each["members"]), each["threads"]) for each in rounds[number])
    wanted = search.meta.get("workers") or plan(places, configs, data).workers
    forked = can_fork() and all(stack.threads == 1 for stack in stacks)
    return stacks, min(len(stacks), wanted) if forked else 1


def _survivors(
    search: Sweep, alive: Sequence[Tried], ended: Sequence[Tried], until: int
) -> list[Tried]:
    """Which trials of a batch go on from a rung, in the order asked for."""
    asked = search.config.search
    assert asked
    sign = -1 if search.config.train.select == "loss" else 1

    def score(tried: Tried) -> float:
        return sign * figures(search, tried)[:until][-1]

    known = [tried for tried in alive if figures(search, tried)]
    if asked.pruner == "halving":
        best = sorted(known, key=score, reverse=True)[: -(-len(known) // asked.reduction_factor)]
        return [tried for tried in known if tried in best]
    whole = [t for t in ended if all(search.runs[run].status == "finished" for run in t.runs)]
    if len(whole) < MIN_FINISHED:
        return known
    limit = median(map(score, whole))
    return [tried for tried in known if score(tried) >= limit]


def _prune(search: Sweep, members: Sequence[int], staying: Sequence[int]) -> None:
    for index in members:
        run: Run = search.runs[index]
        if index not in staying and run.status == "waiting":
            record_outcome(run, "pruned")
