"""Runs that stop or diverge leave their stack, and the rest goes on in a smaller one."""

import copy
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from mnist_cli.config import Config
from mnist_cli.engine import loop
from mnist_cli.runs import checkpoint as checkpoints
from mnist_cli.runs import store
from mnist_cli.runs.run import Run, create
from mnist_cli.runs.store import RunDirectory
from tests.conftest import Mnist
from tests.reliability.harness import contents
from tests.reliability.test_resume import RUNS, History, folders, go, history, resumed

DATA = {"name": "synthetic", "size": 140, "batch_size": 32}
# Its last bits depend on how many there are in the stack.
CNN = {"name": "cnn", "channels": [4, 4]}
# How each of the runs ends, after which epoch of five, and why.
ENDS: list[tuple[dict[str, Any], int, str | None]] = [
    ({}, 5, None),
    ({"target": {"val/acc": 0.0}}, 1, "target"),
    ({"early_stop": {"patience": 2, "min_delta": 1.0}}, 3, "early_stop"),
    ({"max_seconds": 1e-9}, 1, "max_seconds"),
    ({"early_stop": {"patience": 1, "min_delta": 1.0}}, 2, "early_stop"),
    # In its last epoch: its records say so, whatever it was to go on to.
    ({"early_stop": {"patience": 4, "min_delta": 1.0}}, 5, "early_stop"),
]


def configs(model: dict[str, Any] = CNN, **train: Any) -> list[Config]:
    """A run for each of `ENDS`, and one that diverges at once; three orders of batches."""
    found = []
    for which, (end, _, _) in enumerate([*ENDS, ({}, 1, None)]):
        optimizer, scheduler = RUNS[which]
        rate = 1e39 if which == len(ENDS) else 0.01
        document = {
            "data": DATA,
            "model": model,
            "optimizer": {**optimizer, "lr": rate},
            "scheduler": scheduler,
            "train": {"epochs": 5, "seed": which // 2, **train, **end},
        }
        found.append(Config.model_validate(document))
    return found


@pytest.fixture
def sizes() -> Iterator[list[int]]:
    """The sizes of stacks that others were made smaller to."""
    found: list[int] = []

    def compact(*arguments: Any) -> Any:
        smaller = whole(*arguments)
        found.append(smaller.stack.replicas)
        return smaller

    whole = loop.compact
    with mock.patch("mnist_cli.sweeps.jobs.compact", compact):
        yield found


def started(place: Path, wanted: list[Config]) -> list[Run]:
    place.mkdir(parents=True)
    return [create(config, store.create(place, "run")) for config in wanted]


def test_every_run_is_the_one_that_it_is_alone(tmp_path: Path, sizes: list[int]) -> None:
    model = {"name": "mlp", "width": 8, "dropout": 0.3}
    wanted = configs(model, precision="fp64", eval_train=True)
    wanted[-1] = wanted[-1].model_copy(update={"optimizer": wanted[0].optimizer})  # finite here
    together = started(tmp_path / "together", wanted)
    go(together)
    assert sizes == [5, 4, 3]
    for which, (run, config) in enumerate(zip(together, wanted, strict=True)):
        (alone,) = started(tmp_path / f"alone-{which}", [config])
        go([alone])
        assert len(run.records) == len(alone.records)
        states = [checkpoints.load(each.folder.last) for each in (run, alone)]
        for name, value in states[1].model.items():
            torch.testing.assert_close(states[0].model[name], value, rtol=1e-9, atol=1e-12)
        for mine, other in zip(run.records, alone.records, strict=True):
            assert mine["val/loss"] == pytest.approx(other["val/loss"], rel=1e-9)
        assert run.final == pytest.approx(alone.final, rel=1e-9)
        assert run.final


def test_the_folder_says_why_a_run_has_stopped(tmp_path: Path, sizes: list[int]) -> None:
    runs = started(tmp_path / "runs", configs())
    go(runs)
    assert sizes == [4, 3, 2]
    for run, (_, epochs, reason) in zip(runs, ENDS, strict=False):
        summary = run.folder.summary()
        found = (summary["status"], summary["epochs"], summary.get("stopped"))
        assert found == ("finished", epochs, reason)
        assert run.folder.status() == "finished"
        assert checkpoints.load(run.folder.last).epoch == epochs
        assert run.folder.best.exists()
    assert (runs[-1].folder.status(), len(runs[-1].records)) == ("diverged", 1)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> History:
    return history(tmp_path_factory.mktemp("made"), configs(eval_train=True))


def test_wherever_it_is_cut_the_stack_goes_on_to_the_same_bits(
    made: History, tmp_path: Path
) -> None:
    for number, cut in enumerate(made.cuts[1:-1]):
        shutil.copytree(cut, tmp_path / f"{number}")
        assert resumed(tmp_path / f"{number}") == made.ends, cut


@pytest.mark.parametrize("seed", range(2))
def test_runs_that_were_cut_at_different_epochs(made: History, seed: int, tmp_path: Path) -> None:
    """Some have left already, and leave again where they did."""
    dice = random.Random(seed)
    mixed = tmp_path / "mixed"
    for place, path in enumerate(folders(made.cuts[0])):
        shutil.copytree(folders(dice.choice(made.cuts))[place], mixed / path.name)
    assert resumed(mixed) == made.ends


def test_what_is_compared_depends_on_when_runs_left(tmp_path: Path) -> None:
    """Else the two tests above would prove nothing of it: another stack, other last bits."""
    ends = []
    for which in (0, 3):
        wanted = configs()
        if which:  # those that stopped in the first epoch go on
            wanted[1] = wanted[3] = wanted[2]
        runs = started(tmp_path / str(which), wanted)
        go(runs)
        ends.append(contents(runs[5].folder.path)["last"])
    assert ends[0] != ends[1]


def test_a_run_that_was_killed_before_its_end_was_written_ends_so(
    made: History, tmp_path: Path
) -> None:
    """It was committed, and from its records it is seen that it is to stop."""
    for cut in (1, 2, 3):
        place = tmp_path / f"{cut}"
        shutil.copytree(made.cuts[-1], place)
        for path, (_, epochs, _) in zip(folders(place), ENDS, strict=False):
            if epochs == cut:
                (path / "summary.json").unlink()
        assert resumed(place) == made.ends


def test_more_epochs_are_as_if_they_had_been_asked_for(made: History, tmp_path: Path) -> None:
    """What has stopped stays so: its records say the same whatever number of epochs was asked."""

    def without_epochs(end: dict[str, Any]) -> dict[str, Any]:
        """Checkpoints from before keep the config that they were made with."""
        for name in ("best", "last"):
            if end[name]:
                end[name]["config"]["train"].pop("epochs")
        return end

    short = history(tmp_path / "short", configs(eval_train=True, epochs=2))
    wanted = [without_epochs(copy.deepcopy(end)) for end in made.ends]
    for cut in short.cuts:
        for _ in range(2):
            assert [without_epochs(end) for end in resumed(cut, 5)] == wanted


# ---------------------------------------------------------------------------------- the command

SMALL = ("data={name: synthetic, size: 140}", "model={name: mlp, width: 4}", "--epochs", "6")


@pytest.mark.parametrize(
    ("setting", "reason", "epochs"),
    [
        ("train.target={val/acc: 0.0}", "target", 1),
        ("train.early_stop={patience: 2, min_delta: 1}", "early_stop", 3),
        ("train.max_seconds=1e-9", "max_seconds", 1),
    ],
)
def test_a_command_says_that_its_run_has_stopped(
    setting: str, reason: str, epochs: int, mnist: Mnist, tmp_path: Path
) -> None:
    ended = mnist("train", *SMALL, setting, "--json")
    assert (ended.code, ended.json["status"], ended.json["stopped"]) == (0, "finished", reason)
    assert ended.json["epochs"] == epochs
    assert f"stopped: mlp-0001: train.{reason}, after epoch {epochs}\n" in ended.err
    assert reason in mnist("runs", "show", "mlp-0001").out
    before = contents(tmp_path / "runs" / "mlp-0001")
    for more in ((), ("--epochs", "9"), ("--epochs", "9")):
        assert f"is finished: {epochs} epoch" in mnist("resume", "mlp-0001", *more).out
    after = contents(tmp_path / "runs" / "mlp-0001")
    assert after == before | {"config": after["config"]}


@pytest.mark.parametrize("workers", ["1", "2"])
def test_runs_of_a_sweep_stop_each_by_itself(workers: str, mnist: Mnist, tmp_path: Path) -> None:
    axes = ("--grid", "train.early_stop=null,{patience: 2, min_delta: 1}", "--seeds", "2")
    ended = mnist("sweep", *SMALL, "--lrs", "1e-2,1e-3", *axes, "--workers", workers, "--json")
    assert (ended.code, ended.json["status"]) == (0, "finished"), ended.err
    sweep = RunDirectory(tmp_path / "runs" / "mlp-sweep-0001")
    assert len(sweep.meta()["stacks"]) == int(workers)
    assert ended.err.count("stopped: ") == 4
    for trial, row in zip(sweep.trials(), ended.json["trials"], strict=True):
        stops = row["train.early_stop"] is not None
        assert trial.summary()["epochs"] == (3 if stops else 6)
        assert trial.summary().get("stopped") == ("early_stop" if stops else None)
    before = contents(sweep.path)
    assert mnist("resume", sweep.name).code == 0
    assert contents(sweep.path) == before
