"""The table of what is survived: `python -m tests.reliability [--kills 1000]`.

Kills commands and resumes them, has their disks fail, flips bits in what they saved; prints a table
in Markdown, and exits with 1 if anything was lost or altered.
"""

import argparse
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from mnist_cli.config import load
from mnist_cli.errors import CheckpointError
from mnist_cli.runs import checkpoint, run, store
from mnist_cli.runs.checkpoint import Checkpoint
from mnist_cli.runs.datasets import Datasets
from mnist_cli.runs.metrics import MetricsLog
from mnist_cli.sweeps.driver import drive
from mnist_cli.sweeps.executors import InProcess
from mnist_cli.sweeps.jobs import Epoch
from mnist_cli.sweeps.plan import StackPlan
from tests.reliability.crash import SWEEP, TRAIN, Endured, Life, faults, lives
from tests.runs.test_trust import made, same

Row = tuple[str, str, str]


def main() -> int:
    """Measures everything and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--flips", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    lost: list[str] = []
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        rows = _killed(lives(asked.kills, place, asked.seed), lost)
        rows += _faulted(faults(place, [TRAIN, SWEEP], all_of_them=True), lost)
        rows.append(_flipped(asked.flips, place / "last.pt", asked.seed, lost))
        rows.append(("cost of a commit, of the time of an epoch of `mlp` on MNIST", *_cost(place)))
    print("| what | how many | lost or altered results |\n|---|---|---|")  # noqa: T201
    for row in rows:
        print(f"| {' | '.join(row)} |")  # noqa: T201
    for each in lost:
        print(each, file=sys.stderr)  # noqa: T201
    return 1 if lost else 0


def _killed(found: dict[str, list[Life]], lost: list[str]) -> list[Row]:
    rows = []
    for name, those in sorted(found.items()):
        command, place = name.split(" in ")
        wrong = [f"{name}: {life.lost}" for life in those if life.lost]
        lost += wrong
        kills, workers = sum(life.kills for life in those), sum(life.workers for life in those)
        what = f"`mnist {command}` killed (SIGKILL) and resumed, runs on {place}"
        many = f"{kills + workers} kills" + f" ({workers} of a worker)" * bool(workers)
        rows.append((what, f"{many}, in {len(those)} runs", str(len(wrong))))
    return rows


def _faulted(found: list[Endured], lost: list[str]) -> list[Row]:
    rows = []
    for command in ("train", "sweep"):
        those = [each for each in found if each.what.startswith(command)]
        wrong = [f"{each.what}: {each.lost}" for each in those if each.lost]
        lost += wrong
        what = f"`mnist {command}` with a failing open, write, fsync, rename or mkdir, and resumed"
        failed = sum(each.code != 0 for each in those)
        rows.append((what, f"{len(those)} faults ({failed} ended the command)", str(len(wrong))))
    return rows


def _flipped(count: int, path: Path, seed: int, lost: list[str]) -> Row:
    """A flipped bit of a checkpoint is seen, or it is not of anything that is read."""
    dice, whole = random.Random(seed), made()
    checkpoint.save(path, whole)
    content = path.read_bytes()
    refused = wrong = 0
    for _ in range(count):
        damaged = bytearray(content)
        place = dice.randrange(len(content))
        damaged[place] ^= 1 << dice.randrange(8)
        path.write_bytes(damaged)
        try:
            back = checkpoint.load(path)
        except CheckpointError:
            refused += 1
        else:
            if not same(vars(back), vars(whole)):
                wrong += 1
                lost.append(f"a bit flipped at byte {place} went unseen")
    return "a bit of a checkpoint flipped", f"{count} ({refused} refused)", str(wrong)


def _cost(place: Path) -> tuple[str, str]:
    """How much of an epoch a run spends in its commit: the median over three times four epochs."""
    shares: list[float] = []
    spent = 0.0

    @contextmanager
    def counted() -> Iterator[None]:
        nonlocal spent
        began = time.perf_counter()
        yield
        spent += time.perf_counter() - began

    whole_save, whole_append = checkpoint.save, MetricsLog.append

    def save(path: Path, state: Checkpoint) -> None:
        with counted():
            whole_save(path, state)

    def append(self: MetricsLog, record: Any) -> None:
        with counted():
            whole_append(self, record)

    config = load("mlp", (), (), ()).config.model_copy(update={"sweep": {}})
    datasets = Datasets(lambda _: None)
    try:
        datasets.get(config)
    except Exception as error:  # noqa: BLE001 - without MNIST there is no such figure
        return f"not measured: {error}", "-"
    with (
        mock.patch.object(checkpoint, "save", save),
        mock.patch.object(MetricsLog, "append", append),
    ):
        for _ in range(3):
            one = run.create(config, store.create(place / "runs", "cost"))
            began, spent = time.perf_counter(), 0.0
            for event in drive([one], [StackPlan((0,), 1)], InProcess(datasets)):
                if isinstance(event, Epoch):
                    now = time.perf_counter()
                    shares.append(spent / (now - began))
                    began, spent = now, 0.0
    return f"{100 * statistics.median(shares):.1f} %", "-"


if __name__ == "__main__":
    sys.exit(main())
