"""What a training step costs on this machine, measured in rounds that go through everything.

So whatever else the machine does hits every side. A time is that of steps alone, with nothing
evaluated or written. Each is taken in a fresh process, as `mnist` forks them to train.
"""

import itertools
import multiprocessing
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch

from mnist_cli import config as configs
from mnist_cli.config import Config, with_settings
from mnist_cli.engine.device import computing, threaded
from mnist_cli.errors import RunError, UsageError
from mnist_cli.sweeps.bench_steps import Engine, Limit, Material, Subject, Tutorial
from mnist_cli.sweeps.plan import Plan, can_fork, cores, plan
from mnist_cli.sweeps.workers import Send, WorkerDied, run_jobs

IMAGES = 58 * 1024  # nearly MNIST's 60,000, and every batch is whole
RATE = 1e-4  # small enough that nothing diverges, whatever the optimizer
PATIENCE = 120.0  # seconds that a process waits for those it is measured beside

Progress = Callable[[int, int, str], None]
"""Takes how many measurements are done, how many there are, and which comes next."""

Measure = Callable[[], float]
"""Measures the seconds of a step."""

Times = Mapping[str, Sequence[float]]
"""What was measured, in seconds: by name, of every round."""


@dataclass(frozen=True)
class Work:
    """A network and how it is trained, as a shipped config has it.

    Attributes:
        experiment: the reference experiment it is of.
        about: the network in short.
        preset: the config.
        overrides: what of it is set otherwise.
        stacks: how many runs are measured together.
        precisions: in which a run alone is measured besides fp32.
        image_by_image: whether its tutorial makes each image by itself, in Python.
    """

    name: str
    experiment: str
    about: str
    preset: str
    overrides: tuple[str, ...] = ()
    stacks: tuple[int, ...] = (4, 16, 64)
    precisions: tuple[str, ...] = ()
    image_by_image: bool = False


WORKS = (
    Work("mlp", "E1", "784-32-10", "mlp"),
    Work("logistic", "E1", "784-10", "logistic"),
    Work("ffnn", "E2", "784-50-100-10", "ffnn", image_by_image=True),
    Work("cnn", "E3", "three convolutions", "cnn"),
    # Large enough to fill the machine alone, so more than a few together would only take long.
    Work(
        name="depth",
        experiment="E5",
        about="784-512-256-128-64-10",
        preset="depth",
        overrides=("model.depth=5",),
        stacks=(4,),
        precisions=("bf16",),
    ),
)

GRID_MODELS = {
    "logistic": "logistic",
    "mlp 32": "{name: mlp, hidden: [32]}",
    "mlp 512-256": "{name: mlp, hidden: [512, 256]}",
    "cnn": "cnn",
}
GRID_BATCHES = (16, 64, 512)
GRID_RUNS = (2, 4, 16)


def chosen(only: str | None) -> list[Work]:
    """The works of a list such as `E1,cnn`: by experiment or by name; all of them for None.

    Raises:
        UsageError: one of them is not there.
    """
    if only is None:
        return list(WORKS)
    wanted = {name.strip().lower() for name in only.split(",")}
    for name in sorted(
        wanted - {n.lower() for work in WORKS for n in (work.name, work.experiment)}
    ):
        there = ", ".join(f"{work.name} ({work.experiment})" for work in WORKS)
        raise UsageError(f"--only: there is no {name!r} to measure", f"there are {there}")
    return [work for work in WORKS if {work.name, work.experiment.lower()} & wanted]


# ------------------------------------------------------------------------------ how it is timed


@dataclass(frozen=True)
class Part:
    """What one process does.

    Attributes:
        make: makes it, in that process.
        threads: CPU threads it computes with.
        precision: as in `train.precision`; None leaves torch as tutorials have it.
    """

    make: Callable[[], Subject]
    threads: int
    precision: str | None


@dataclass(frozen=True)
class Bench:
    """Where and on what everything is measured.

    Attributes:
        window: seconds for which steps are timed.
        fork: whether every part gets a process of its own.
        threads: that torch takes by itself.
    """

    material: Material
    window: float
    fork: bool
    threads: int

    def tutorial(self, config: Config, *, image_by_image: bool) -> Measure:
        """Measures the loop that tutorials write."""
        make = partial(Tutorial, config, self.material, image_by_image=image_by_image)
        return partial(self._step, [Part(make, self.threads, None)], 1)

    def engine(self, replicas: Sequence[Config], deal: Plan) -> Measure:
        """Measures runs as they are dealt out."""
        parts = [
            Part(
                partial(Engine, [replicas[member] for member in part.members], self.material),
                part.threads,
                replicas[0].train.precision,
            )
            for part in deal.stacks
        ]
        return partial(self._step, parts, deal.workers)

    def limit(self, replicas: Sequence[Config], deal: Plan) -> Measure:
        """Measures the limit of the same: in the same parts, at the same time."""
        config = replicas[0]
        parts = [
            Part(
                partial(Limit, config, len(part.members), self.material.data),
                part.threads,
                config.train.precision,
            )
            for part in deal.stacks
        ]
        return partial(self._step, parts, deal.workers)

    def _step(self, parts: Sequence[Part], processes: int) -> float:
        """Seconds of a step of all parts: so many at the same time, the others after them.

        What runs at the same time takes as long as its slowest.

        Raises:
            RunError: a process ended, or what it measured failed.
        """
        waves = [parts[at : at + processes] for at in range(0, len(parts), processes)]
        return sum(max(self._wave(wave)) for wave in waves)

    def _wave(self, parts: Sequence[Part]) -> list[float]:
        if not self.fork:
            return [_seconds(part, self.window, lambda: None) for part in parts]
        barrier = multiprocessing.get_context("fork").Barrier(len(parts))
        wait = partial(barrier.wait, PATIENCE)
        jobs = [partial(_job, part, self.window, wait) for part in parts]
        found: list[float] = []
        with closing(run_jobs(jobs, len(jobs))) as messages:
            for _, message in messages:
                if not isinstance(message, float):
                    why = message.why if isinstance(message, WorkerDied) else message
                    raise RunError(f"what was being measured failed: {why}")
                found.append(message)
        return found


def _job(part: Part, window: float, wait: Callable[[], object], send: Send) -> None:
    """What a process does: sends the seconds of a step, or what went wrong in words."""
    try:
        send(_seconds(part, window, wait))
    except Exception as error:  # noqa: BLE001 - the parent raises it
        send(f"{type(error).__name__}: {error}")


def _seconds(part: Part, window: float, wait: Callable[[], object]) -> float:
    """Seconds of a step: warmed up, begun together, and for as long as everybody else."""
    with _setting(part):
        subject = part.make()
        steps = 1
        while subject.advance(steps) < window / 4:
            steps *= 2
        wait()
        done, seconds = 0, 0.0
        while seconds < window:
            seconds += subject.advance(steps)
            done += steps
    return seconds / done


@contextmanager
def _setting(part: Part) -> Iterator[None]:
    if part.precision is not None:
        with computing(part.threads, part.precision):
            yield
    else:
        with threaded(part.threads):
            yield


@contextmanager
def _opened(device: torch.device, window: float, images: int) -> Iterator[Bench]:
    # A process that has computed with several threads cannot be forked: its children would wait for
    # threads that they do not have.
    with threaded(1) as threads:
        torch.optim.SGD([torch.zeros(1)])  # imports, once and for all, what the first one does
        fork = device.type == "cpu" and can_fork()
        yield Bench(Material.generate(images, device), window, fork, threads)


def _rounds(
    measures: Mapping[str, Measure], rounds: int, progress: Progress
) -> dict[str, list[float]]:
    """Measures everything, again and again."""
    times: dict[str, list[float]] = {name: [] for name in measures}
    done, total = 0, rounds * len(measures)
    for _ in range(rounds):
        for name, measure in measures.items():
            progress(done, total, name)
            times[name].append(measure())
            done += 1
    progress(done, total, "")
    return times


# ------------------------------------------------------------------------------- what comes out


def bench(
    works: Sequence[Work],
    device: torch.device,
    progress: Progress,
    *,
    rounds: int = 5,
    window: float = 0.25,
    images: int = IMAGES,
) -> dict[str, Any]:
    """Measures works: the tutorials' loop, a run alone, stacks, and the limit of each.

    Args:
        works: what to measure.
        device: where.
        progress: told before every measurement.
        rounds: how often; what is told are medians and quartiles over them.
        window: seconds for which each is timed in each round.
        images: how many there are; whole batches.

    Returns:
        machine: see `machine`.
        rounds: how many.
        works: of each `name`, `experiment`, `about`, `batch_size`, `optimizer` and `variants`. Of
            each variant:

            name: `tutorial`, `alone`, `alone bf16`, `stack of 4`...
            runs: how many train together.
            precision: as in `train.precision`.
            parts: how many runs each part of them has, in the order in which they run.
            processes: how many parts run at the same time.
            threads: those of a process.
            step_us: microseconds of a step of all runs: `median`, `low` and `high` (quartiles).
            run_us: the same for each run.
            limit_us: the limit, for each run; null for the tutorial.
            speedup: how many times as fast as the tutorial's loop a run's step is.
            limit_share: the limit's time as a share of this one's; null for the tutorial.

    Raises:
        RunError: something that was measured failed.
    """
    measures: dict[str, Measure] = {}
    told: list[dict[str, Any]] = []
    with _opened(device, window, images) as opened:
        found = machine(device, opened.threads)
        for work in works:
            config = configs.load(work.preset, work.overrides).config
            config = with_settings(config, {"optimizer.lr": RATE})
            called = f"{work.name}: tutorial"
            measures[called] = opened.tutorial(config, image_by_image=work.image_by_image)
            variants: list[dict[str, Any]] = [
                {
                    "name": "tutorial",
                    "runs": 1,
                    "precision": "fp32",
                    "parts": [1],
                    "processes": 1,
                    "threads": opened.threads,
                }
            ]
            wanted = [(1, "fp32"), *((1, other) for other in work.precisions)]
            for runs, precision in [*wanted, *((runs, "fp32") for runs in work.stacks)]:
                of_precision = with_settings(config, {"train.precision": precision})
                replicas, deal = _dealt(of_precision, runs, opened)
                name = _named(runs) + f" {precision}" * (precision != "fp32")
                measures[f"{work.name}: {name}"] = opened.engine(replicas, deal)
                measures[f"{work.name}: limit of {name}"] = opened.limit(replicas, deal)
                variants.append(
                    {"name": name, "runs": runs, "precision": precision, **_described(deal)}
                )
            told.append(
                {
                    "name": work.name,
                    "experiment": work.experiment,
                    "about": work.about,
                    "batch_size": config.data.batch_size,
                    "optimizer": config.optimizer.name,
                    "variants": variants,
                }
            )
        times = _rounds(measures, rounds, progress)
    for each in told:
        each["variants"] = [one | _figures(times, each["name"], one) for one in each["variants"]]
    return {"machine": found, "rounds": rounds, "works": told}


def grid(
    device: torch.device,
    progress: Progress,
    *,
    rounds: int = 5,
    window: float = 0.12,
    images: int = IMAGES,
    models: Mapping[str, str] = GRID_MODELS,
    batches: Sequence[int] = GRID_BATCHES,
    counts: Sequence[int] = GRID_RUNS,
) -> dict[str, Any]:
    """Measures runs together against the same runs one after another, over many shapes.

    Args:
        device: where.
        progress: told before every measurement.
        rounds: how often.
        window: seconds for which each is timed in each round.
        images: how many there are; whole batches.
        models: by name, each as the `model` of a config.
        batches: sizes of a batch.
        counts: how many runs.

    Returns:
        machine: see `machine`.
        rounds: how many.
        cells: of each `model`, `batch_size`, `runs`, and `parts`, `processes` and `threads` as for
            `bench`; `alone_us`, microseconds of a step of all runs one after another;
            `together_us`, the same as they are dealt out; `ratio`, the second by the first. Each
            has `median`, `low` and `high` (quartiles).
        below_one: in how many cells the ratio's median is below 1.

    Raises:
        RunError: something that was measured failed.
    """
    measures: dict[str, Measure] = {}
    cells: list[dict[str, Any]] = []
    with _opened(device, window, images) as opened:
        found = machine(device, opened.threads)
        for (model, text), batch in itertools.product(models.items(), batches):
            config = configs.load_text(
                f"model: {text}\ndata: {{name: mnist, batch_size: {batch}}}\n"
                f"optimizer: {{name: adam, lr: {RATE}}}\ntrain: {{epochs: 4}}",
                model,
            )
            for runs in (1, *counts):
                replicas, deal = _dealt(config, runs, opened)
                measures[f"{model}, batch {batch}: {_named(runs)}"] = opened.engine(replicas, deal)
                if runs > 1:
                    shape = {"model": model, "batch_size": batch, "runs": runs}
                    cells.append({**shape, **_described(deal)})
        times = _rounds(measures, rounds, progress)
    for cell in cells:
        of = f"{cell['model']}, batch {cell['batch_size']}: "
        alone = [cell["runs"] * seconds for seconds in times[of + _named(1)]]
        together = times[of + _named(cell["runs"])]
        cell["alone_us"] = _microseconds(alone)
        cell["together_us"] = _microseconds(together)
        cell["ratio"] = _spread([b / a for a, b in zip(alone, together, strict=True)], 3)
    below = sum(cell["ratio"]["median"] < 1 for cell in cells)
    return {"machine": found, "rounds": rounds, "cells": cells, "below_one": below}


def machine(device: torch.device, threads: int) -> dict[str, Any]:
    """What it was measured on.

    Args:
        device: where it was computed.
        threads: that torch takes by itself.

    Returns:
        `cpu` (model), `cores` (that may be used), `threads`, `device` (the GPU's name, or cpu),
        `torch`, `python`, `system`, and `load`: how many processes wanted a core in the minute
        before, null where nobody counts them.
    """
    return {
        "cpu": _cpu(),
        "cores": cores(),
        "threads": threads,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def _named(runs: int) -> str:
    return "alone" if runs == 1 else f"stack of {runs}"


def _dealt(config: Config, runs: int, opened: Bench) -> tuple[list[Config], Plan]:
    """Runs with a learning rate each and one seed, and how a sweep of them would be dealt out."""
    rates = [RATE * (1 + run / runs) for run in range(runs)]
    replicas = [with_settings(config, {"optimizer.lr": rate}) for rate in rates]
    return replicas, plan([range(runs)], replicas, [opened.material.data])


def _described(deal: Plan) -> dict[str, Any]:
    return {
        "parts": [len(part.members) for part in deal.stacks],
        "processes": deal.workers,
        "threads": deal.stacks[0].threads,
    }


def _figures(times: Times, work: str, variant: Mapping[str, Any]) -> dict[str, Any]:
    """What is told of a variant; ratios are medians too, of what was measured in one round."""
    name, runs = variant["name"], variant["runs"]
    tutorial = times[f"{work}: tutorial"]
    each = [seconds / runs for seconds in times[f"{work}: {name}"]]
    limit = [seconds / runs for seconds in times.get(f"{work}: limit of {name}", ())]
    return {
        "step_us": _microseconds([seconds * runs for seconds in each]),
        "run_us": _microseconds(each),
        "limit_us": _microseconds(limit) if limit else None,
        "speedup": _ratio(tutorial, each),
        "limit_share": _ratio(limit, each) if limit else None,
    }


def _microseconds(seconds: Sequence[float]) -> dict[str, float]:
    return _spread([1e6 * each for each in seconds], 2)


def _spread(values: Sequence[float], digits: int) -> dict[str, float]:
    """The median of some values and their quartiles."""
    low = high = values[0]
    if len(values) > 1:
        low, _, high = quantiles(values, n=4, method="inclusive")
    figures = {"median": median(values), "low": low, "high": high}
    return {name: round(figure, digits) for name, figure in figures.items()}


def _ratio(above: Sequence[float], below: Sequence[float]) -> float:
    return round(median(a / b for a, b in zip(above, below, strict=True)), 3)
