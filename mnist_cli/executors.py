"""Where stacks run. An executor has one method: it takes stacks and yields what happens in them."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Protocol

from mnist_cli.run import Datasets, Run, StackRun, ending
from mnist_cli.train import Record


@dataclass(frozen=True)
class Started:
    """A stack is about to train."""

    stack: StackRun


@dataclass(frozen=True)
class Epoch:
    """One epoch of a stack is on the disk: a record for each run that was still running."""

    stack: StackRun
    records: list[Record | None]


@dataclass(frozen=True)
class Failed:
    """A stack crashed. Its runs say so in their folders; the next stack goes on."""

    runs: Sequence[Run]
    error: Exception


Event = Started | Epoch | Failed


class Executor(Protocol):
    """Somewhere to run stacks."""

    def run(self, stacks: Sequence[Sequence[Run]]) -> Generator[Event, None, None]:
        """Runs every stack to its end, whatever becomes of the others."""
        ...


class InProcess:
    """Stacks one after another in this process.

    Args:
        datasets: where their data comes from.
    """

    def __init__(self, datasets: Datasets) -> None:
        self._datasets = datasets

    def run(self, stacks: Sequence[Sequence[Run]]) -> Generator[Event, None, None]:
        """See `Executor`."""
        for runs in stacks:
            try:
                with ending(runs):
                    stack = StackRun(runs, self._datasets.get(runs[0].config))
                    yield Started(stack)
                    for records in stack.train():
                        yield Epoch(stack, records)
            except Exception as error:  # noqa: BLE001 - whatever it was, it is reported with its runs
                yield Failed(runs, error)
