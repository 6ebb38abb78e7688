"""Whatever a network makes of its messages, a task's runs are those of this process."""

import random
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from mnist_cli.runs.datasets import Datasets
from mnist_cli.sweeps import remote
from mnist_cli.sweeps.executors import in_process
from mnist_cli.sweeps.jobs import Epoch, Failed, StackJob
from mnist_cli.sweeps.remote import Key, Lost, messages, remote_tasks
from tests.conftest import Mnist
from tests.sweeps.trained import Trained, config

Fate = Callable[[random.Random, list[bytes | Lost]], None]


class Network:
    """Tasks that are done at once, of whose messages something may become.

    Args:
        fate: what becomes of the messages of a task.
        times: of how many tasks.
    """

    def __init__(self, fate: Fate, times: int) -> None:
        self.submitted: list[Key] = []
        self.cancelled: list[Key] = []
        self._fate, self._times = fate, times
        self._dice = random.Random(0)
        self._sent: dict[Key, list[bytes | Lost]] = {}

    def submit(self, key: Key, job: StackJob) -> None:
        self.submitted.append(key)
        sent: list[bytes | Lost] = [*messages(job, Datasets(print))]
        if self._times > 0:
            self._times -= 1
            self._fate(self._dice, sent)
        self._sent[key] = [*sent, Lost("it has ended")]

    def poll(self) -> Iterable[tuple[Key, bytes | Lost]]:
        key = self._dice.choice([key for key, sent in self._sent.items() if sent])
        yield key, self._sent[key].pop(0)

    def cancel(self, key: Key) -> None:
        self.cancelled.append(key)


def drop(dice: random.Random, sent: list[bytes | Lost]) -> None:
    sent.pop(dice.randrange(len(sent)))


def double(dice: random.Random, sent: list[bytes | Lost]) -> None:
    sent[:] = [message for message in sent for _ in range(2)]
    sent.insert(dice.randrange(4, len(sent)), sent[2])  # the first epoch, late


def swap(dice: random.Random, sent: list[bytes | Lost]) -> None:
    place = dice.randrange(len(sent) - 1)
    sent[place : place + 2] = sent[place + 1], sent[place]


def lose(dice: random.Random, sent: list[bytes | Lost]) -> None:
    sent[dice.randrange(1, 4) :] = [Lost("killed")]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    executor = partial(in_process, datasets=Datasets(print))
    found = Trained(config(), tmp_path_factory.mktemp("local"), executor).contents
    epochs = {len(trial["metrics"]) for trial in found["trials"].values()}
    assert len(epochs) > 2, epochs
    return found


@pytest.mark.parametrize("fate", [drop, double, swap, lose])
def test_messages_that_are_lost_doubled_or_late_change_nothing(
    fate: Fate, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    said: list[str] = []
    for times in (1, 8):
        network = Network(fate, times)
        trained = Trained(
            config(), tmp_path, partial(remote_tasks, tasks=network, report=said.append)
        )
        assert trained.contents == undisturbed
        epochs = [event for event in trained.events if isinstance(event, Epoch)]
        numbers = [r["epoch"] for epoch in epochs for r in epoch.records if r]
        assert len(numbers) == sum(len(t["metrics"]) for t in undisturbed["trials"].values())
    assert bool(said) == (fate is not double)
    if fate is lose:
        assert len(network.submitted) > 4
        assert max(trained.attempts()) > 2


def test_what_is_lost_again_and_again_is_given_up(tmp_path: Path) -> None:
    network = Network(lambda _, sent: sent.clear() or sent.append(Lost("killed")), 1000)  # type: ignore[func-returns-value]
    trained = Trained(config(), tmp_path, partial(remote_tasks, tasks=network, report=print))
    failures = [event.error for event in trained.events if isinstance(event, Failed)]
    assert len(failures) == 2
    assert "killed" in str(failures[0])
    assert len(network.submitted) == 2 * remote.MAX_LOSSES
    assert trained.contents["status"] == "failed"


def test_a_task_that_cannot_train_fails_its_runs_alone(
    undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    def fate(_: random.Random, sent: list[bytes | Lost]) -> None:
        sent[:] = [Lost("no module named numpy", for_good=True)]

    network = Network(fate, 1)
    trained = Trained(config(), tmp_path, partial(remote_tasks, tasks=network, report=print))
    assert network.submitted == [Key(0, 0), Key(1, 0)]
    found = trained.contents["trials"]
    failed = [name for name, trial in found.items() if trial["status"] == "failed"]
    assert len(failed) == 3
    for name in found.keys() - failed:
        assert found[name] == undisturbed["trials"][name]


def test_tasks_end_with_whoever_waits_for_them(tmp_path: Path) -> None:
    network = Network(lambda *_: None, 0)

    def stop(event: object) -> None:
        if isinstance(event, Epoch):
            raise KeyboardInterrupt

    executor = partial(remote_tasks, tasks=network, report=print)
    with pytest.raises(KeyboardInterrupt):
        Trained(config(), tmp_path, executor, stop)
    assert sorted(network.cancelled) == [Key(0, 0), Key(1, 0)]


def test_what_is_not_there_is_refused(mnist: Mnist, monkeypatch: pytest.MonkeyPatch) -> None:
    argv = "train", "data={name: synthetic, size: 140}", "--on"
    nowhere = mnist(*argv, "slurm")
    assert (nowhere.code, "ray://HOST:PORT" in nowhere.err) == (2, True)
    monkeypatch.setitem(sys.modules, "ray", None)
    missing = mnist(*argv, "ray")
    assert (missing.code, "pip install 'mnist-cli[ray]'" in missing.err) == (2, True)
