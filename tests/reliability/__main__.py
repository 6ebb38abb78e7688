"""The table of what is survived: `python -m tests.reliability [--kills 1000]`.

Kills commands and resumes them, has their disks fail, flips bits in what they saved; prints a table
in Markdown, and exits with 1 if anything was lost or altered.
"""

import argparse
import multiprocessing
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from mnist_cli.config import load
from mnist_cli.runs import run, store
from mnist_cli.runs.datasets import Datasets
from mnist_cli.sweeps import driver
from mnist_cli.sweeps.executors import in_process
from mnist_cli.sweeps.jobs import Epoch
from mnist_cli.sweeps.plan import StackPlan
from tests.reliability.harness import (
    SWEEP,
    TRAIN,
    Attacks,
    Subject,
    add,
    endure,
    faults,
    file_limit,
    kills,
)
from tests.runs.test_trust import flips

AT_ONCE = 2  # processes that attack
FAULTS_APART = {"train": 5, "sweep": 31}  # of all points of failure, each process takes so few
LIMITS = range(5_000, 90_000, 4_000)  # bytes no file may exceed; all of them are shorter than that
SHM = Path("/dev/shm")  # a filesystem in memory

Attack = Callable[[Path, int], Attacks]


def main() -> int:
    """Measures everything and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--flips", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    os.environ |= {"MNIST_OFFLINE": "1", "COLUMNS": "120"}
    lost: list[str] = []
    print("| what | how many | of them ended it or a run | lost or altered |\n|---|---|---|---|")  # noqa: T201
    with tempfile.TemporaryDirectory() as scratch, tempfile.TemporaryDirectory(dir=SHM) as memory:
        places = {tempfile.gettempdir(): Path(scratch), str(SHM): Path(memory)}
        for start in (TRAIN, SWEEP):
            name = f"`mnist {start[0]}`"
            for where, place in places.items():
                attack = partial(_killed, start, asked.kills // 4, asked.seed)
                row(f"{name} killed (SIGKILL) and resumed, in {where}", attack, place, lost)
            what = f"{name} with a failing open, write, fsync, rename or mkdir, and resumed"
            row(what, partial(_faulted, start), places[str(SHM)], lost)
            what = f"{name} with a limit on the size of files (`ulimit -f`), and resumed"
            row(what, partial(_limited, start), places[str(SHM)], lost)
        row("a bit of a checkpoint flipped", partial(_flipped, asked), Path(scratch), lost)
        cost = _cost(Path(scratch))
        print(f"| a commit, of the time of an epoch of `mlp` on MNIST | {cost} | - | - |")  # noqa: T201
    for each in lost:
        print(each, file=sys.stderr)  # noqa: T201
    return 1 if lost else 0


def row(what: str, attack: Attack, place: Path, lost: list[str]) -> None:
    """Attacks from two processes at once, and prints what came of it."""
    fork = multiprocessing.get_context("fork")
    total = Attacks()
    with ProcessPoolExecutor(AT_ONCE, mp_context=fork) as pool:
        for made in pool.map(attack, [place / f"{n}" for n in range(AT_ONCE)], range(AT_ONCE)):
            add(total, made)
    lost += [f"{what}: {each}" for each in total.lost]
    many = f"{total.tried}" + f" ({total.workers} of a worker)" * bool(total.workers)
    many += f", in {total.runs} runs" * bool(total.runs)
    print(f"| {what} | {many} | {total.hit} | {len(total.lost)} |", flush=True)  # noqa: T201


def _killed(start: Sequence[str], count: int, seed: int, place: Path, part: int) -> Attacks:
    return kills(Subject(start, place), -(-count // AT_ONCE), random.Random(f"{seed} {part}"))


def _faulted(start: Sequence[str], place: Path, part: int) -> Attacks:
    step = FAULTS_APART[start[0]]
    return faults(Subject(start, place), part * step // AT_ONCE, step)


def _limited(start: Sequence[str], place: Path, part: int) -> Attacks:
    made, subject = Attacks(), Subject(start, place)
    for limit in LIMITS[part::AT_ONCE]:
        add(made, endure(subject, file_limit(limit), f"{limit} bytes"))
    return made


def _flipped(asked: argparse.Namespace, place: Path, part: int) -> Attacks:
    """A flipped bit of a checkpoint is seen, or it is not of anything that is read."""
    place.mkdir(exist_ok=True)
    count, dice = asked.flips // AT_ONCE, random.Random(f"{asked.seed} {part}")
    refused, unseen = flips(place / "flipped.pt", dice, count)
    return Attacks(count, hit=refused, lost=[f"byte {where} went unseen" for where in unseen])


def _cost(place: Path) -> str:
    """How much of an epoch a run spends in its commit: the median over three times four epochs."""
    config = load("mlp").config.model_copy(update={"sweep": {}})
    datasets = Datasets(lambda _: None)
    datasets.get(config)
    spent: list[float] = []
    commit = run.commit

    def timed(*args: Any) -> None:
        began = time.perf_counter()
        commit(*args)
        spent.append(time.perf_counter() - began)

    epochs = []
    with mock.patch.object(driver, "commit", timed):
        for _ in range(3):
            one = run.create(config, store.create(place / "runs", "cost"))
            events = driver.drive(
                [one], [StackPlan((0,), 1)], partial(in_process, datasets=datasets)
            )
            epochs += [event.seconds for event in events if isinstance(event, Epoch)]
    shares = [cost / epoch for cost, epoch in zip(spent, epochs, strict=True)]
    return f"{100 * statistics.median(shares):.1f} %"


if __name__ == "__main__":
    sys.exit(main())
