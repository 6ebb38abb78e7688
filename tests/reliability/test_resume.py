"""Runs that go on: from wherever they were cut they come to the bits of one that never was."""

import itertools
import os
import random
import re
import shutil
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from mnist_cli.config import Config
from mnist_cli.config.schema import variants
from mnist_cli.data import durable
from mnist_cli.errors import UsageError
from mnist_cli.report import plots
from mnist_cli.runs import checkpoint, store
from mnist_cli.runs.datasets import Datasets
from mnist_cli.runs.evaluate import evaluate
from mnist_cli.runs.run import Run, create, hold, reopen
from mnist_cli.runs.store import RunDirectory
from mnist_cli.sweeps import plan
from mnist_cli.sweeps import sweep as sweeps
from mnist_cli.sweeps.driver import drive
from mnist_cli.sweeps.executors import InProcess
from mnist_cli.sweeps.jobs import Epoch, Event, Failed
from mnist_cli.sweeps.plan import StackPlan
from tests.conftest import Mnist
from tests.reliability.harness import contents, disagreements, strays

DATA = {"name": "synthetic", "size": 140, "batch_size": 32}  # four steps an epoch
MODEL = {"name": "mlp", "width": 4, "dropout": 0.3}
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"name": "sgd", "lr": 0.1},
    "sgd momentum": {"name": "sgd", "lr": 0.1, "momentum": 0.9, "dampening": 0.1},
    "sgd nesterov": {"name": "sgd", "lr": 0.1, "momentum": 0.9, "nesterov": True},
    "adam": {"name": "adam", "lr": 0.01, "weight_decay": 0.01},
    "adam amsgrad": {"name": "adam", "lr": 0.01, "amsgrad": True},
    "adamw": {"name": "adamw", "lr": 0.01},
    "rmsprop": {"name": "rmsprop", "lr": 0.01},
    "rmsprop centered": {"name": "rmsprop", "lr": 0.01, "momentum": 0.5, "centered": True},
    "scratch_sgd": {"name": "scratch_sgd", "lr": 0.1},
}
SCHEDULERS: dict[str, dict[str, Any]] = {
    "constant": {"name": "constant"},
    "step": {"name": "step", "step_size": 2, "gamma": 0.5},
    "step by steps": {"name": "step", "step_size": 3, "gamma": 0.7, "interval": "step"},
    "multistep": {"name": "multistep", "milestones": [1, 3], "gamma": 0.5},
    "multistep by steps": {"name": "multistep", "milestones": [2, 9], "interval": "step"},
    "cosine": {"name": "cosine", "T_max": 4},
    "cosine by steps": {"name": "cosine", "T_max": 13, "interval": "step"},
}
LENGTHS: dict[str, dict[str, int]] = {"epochs": {"epochs": 4}, "steps": {"steps": 10}}


DATASETS = Datasets(print)  # it keeps the one they all have


@pytest.fixture(autouse=True)
def _unflushed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here outlives the power; `test_crash.py` does not do without."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


def config(
    optimizer: str = "adam", scheduler: str = "cosine", seed: int = 0, **train: Any
) -> Config:
    return Config.model_validate(
        {
            "data": DATA,
            "model": MODEL,
            "optimizer": OPTIMIZERS.get(optimizer, {"name": "sgd", "lr": 1e38}),
            "scheduler": SCHEDULERS[scheduler],
            "train": {"seed": seed, **(train or {"epochs": 4})},
        }
    )


@dataclass
class History:
    """Runs that trained together, as they were at the end and on the way.

    Attributes:
        cuts: their folders as they were on the disk after so many epochs; the last is the end.
        ends: what each came to.
    """

    cuts: list[Path] = field(default_factory=list)
    ends: list[dict[str, Any]] = field(default_factory=list)


def driven(runs: Sequence[Run]) -> Generator[Event, None, None]:
    """Trains runs as one stack."""
    return drive(runs, [StackPlan(tuple(range(len(runs))), 1)], InProcess(DATASETS))


def go(runs: Sequence[Run], after_epoch: Callable[[], object] = lambda: None) -> None:
    """Trains runs as one stack, to their end."""
    for event in driven(runs):
        if isinstance(event, Failed):
            raise event.error
        if isinstance(event, Epoch):
            after_epoch()


def history(place: Path, configs: Sequence[Config]) -> History:
    """Trains a stack and keeps its folders after every epoch."""
    made, now = History(), place / "now"
    now.mkdir(parents=True)
    runs = [create(each, store.create(now, "run")) for each in configs]

    def keep() -> None:
        made.cuts.append(place / f"cut-{len(made.cuts)}")
        shutil.copytree(now, made.cuts[-1])

    keep()
    go(runs, keep)
    made.ends = [contents(run.folder.path) for run in runs]
    made.cuts[-1:] = [now]
    return made


def folders(place: Path) -> list[Path]:
    return sorted(place.iterdir())


def resumed(place: Path, epochs: int | None = None, told: list[str] | None = None) -> list[Any]:
    """What the runs in a place come to when they go on."""
    notes: list[str] = [] if told is None else told
    runs = [reopen(RunDirectory(path), epochs, notes.append) for path in folders(place)]
    if any(run.status == "waiting" for run in runs):
        go(runs)
    assert told is not None or not notes
    return [contents(path) for path in folders(place)]


# ------------------------------------------------------------------------------------ every cut


def test_every_optimizer_and_scheduler_is_here() -> None:
    assert {each["name"] for each in OPTIMIZERS.values()} == set(variants("optimizer"))
    assert {each["name"] for each in SCHEDULERS.values()} == set(variants("scheduler"))


@pytest.mark.parametrize(
    ("optimizer", "scheduler"),
    [(optimizer, "cosine by steps") for optimizer in OPTIMIZERS]
    + [("adam", scheduler) for scheduler in SCHEDULERS if scheduler != "cosine by steps"],
)
def test_a_run_alone_goes_on_to_the_same_bits(
    optimizer: str, scheduler: str, tmp_path: Path
) -> None:
    length = {"epochs": 3} if scheduler == "cosine by steps" else LENGTHS["steps"]
    made = history(tmp_path, [config(optimizer, scheduler, **length)])
    assert made.ends[0]["status"] == "finished"
    assert len(made.cuts) == 4
    for cut in made.cuts:
        assert resumed(cut) == made.ends, cut


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_what_is_compared_can_differ(optimizer: str, tmp_path: Path) -> None:
    """Another rate from the third epoch on, or lost moments, are seen in the last bits."""
    made = history(tmp_path, [config(optimizer, "constant")])
    run = reopen(RunDirectory(folders(made.cuts[2])[0]), None, print)
    assert run.committed
    moments = run.committed.optimizer
    for values in moments.values():
        for value in values.values():
            value.zero_()
    if not moments:
        run.config = config(optimizer, "step by steps")
    go([run])
    assert contents(run.folder.path)["last"] != made.ends[0]["last"]


STACK = [
    config("sgd momentum", "cosine", 0),
    config("rmsprop centered", "step by steps", 0),
    config("adam amsgrad", "constant", 1),
    config("diverges", "constant", 1),
    config("adamw", "multistep", 2),
]


@pytest.mark.parametrize("unit", LENGTHS)
def test_a_stack_goes_on_to_the_same_bits(unit: str, tmp_path: Path) -> None:
    every = zip([*OPTIMIZERS, "diverges"], itertools.cycle(SCHEDULERS), strict=False)
    stack = [config(o, s, seed, **LENGTHS[unit]) for seed, (o, s) in enumerate(every)]
    made = history(tmp_path, stack)
    assert [end["status"] for end in made.ends].count("diverged") == 1
    for cut in made.cuts:
        assert resumed(cut) == made.ends, cut


@pytest.mark.parametrize("seed", range(4))
def test_runs_of_a_stack_that_were_cut_at_different_epochs(seed: int, tmp_path: Path) -> None:
    made = history(tmp_path, STACK)
    dice = random.Random(seed)
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    for place, path in enumerate(folders(made.cuts[0])):
        cut = dice.choice(made.cuts)
        shutil.copytree(folders(cut)[place], mixed / path.name)
    assert resumed(mixed) == made.ends


def test_a_stack_whose_only_run_that_goes_on_diverges_ends_with_it(tmp_path: Path) -> None:
    """Those that ride along do not keep it going."""
    made = history(tmp_path, STACK)
    place = folders(made.cuts[0])
    shutil.rmtree(folders(made.cuts[-1])[3])
    shutil.copytree(place[3], made.cuts[-1] / place[3].name)
    runs = [reopen(RunDirectory(p), None, pytest.fail) for p in folders(made.cuts[-1])]
    epochs: list[None] = []
    go(runs, lambda: epochs.append(None))
    assert len(epochs) == 1
    assert [contents(path) for path in folders(made.cuts[-1])] == made.ends


# ------------------------------------------------------------------------------------ more epochs


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_more_epochs_are_as_if_they_had_been_asked_for(scheduler: str, tmp_path: Path) -> None:
    short = history(tmp_path / "short", [config(scheduler=scheduler, epochs=2)])
    long = history(tmp_path / "long", [config(scheduler=scheduler, epochs=5)])
    for cut in short.cuts:
        assert resumed(cut, 5) == long.ends


def test_more_epochs_of_a_stack(tmp_path: Path) -> None:
    def made(epochs: int) -> list[Config]:
        train = [each.train.model_copy(update={"epochs": epochs}) for each in STACK]
        return [
            each.model_copy(update={"train": one}) for each, one in zip(STACK, train, strict=True)
        ]

    short, long = history(tmp_path / "short", made(2)), history(tmp_path / "long", made(5))
    for cut in short.cuts:
        assert resumed(cut, 5) == long.ends


def test_fewer_epochs_and_steps_are_refused(tmp_path: Path) -> None:
    made = history(tmp_path / "epochs", [config(epochs=2)])
    with pytest.raises(UsageError, match="there are 2 already"):
        resumed(made.cuts[-1], 1)
    assert resumed(made.cuts[-1], 2) == made.ends
    made = history(tmp_path / "steps", [config(steps=5)])
    with pytest.raises(UsageError, match="counts steps"):
        resumed(made.cuts[-1], 9)
    assert resumed(made.cuts[-1]) == made.ends


# ------------------------------------------------------------------------------------- damage


def flip(path: Path, where: float = 0.5) -> None:
    content = bytearray(path.read_bytes())
    content[int(len(content) * where)] ^= 1
    path.write_bytes(content)


def test_a_damaged_commit_is_told_and_made_again(tmp_path: Path) -> None:
    made = history(tmp_path, [config()])
    (path,) = folders(made.cuts[2])
    flip(path / "last.pt")
    notes: list[str] = []
    assert resumed(made.cuts[2], told=notes) == made.ends
    assert notes[0].startswith("run-0001 starts over: ")
    assert "damaged" in notes[0]


@pytest.mark.parametrize("how", ["damaged", "missing", "ahead", "behind"])
def test_a_best_checkpoint_that_is_not_the_committed_one(how: str, tmp_path: Path) -> None:
    """It is never left as it is, whether the best epoch is the last one or an earlier one."""
    for select in ("acc", "loss"):
        worsens = config("sgd nesterov", "constant", 1, select=select, epochs=5)
        made = history(tmp_path / select, [worsens])
        chosen = [checkpoint.load(folders(cut)[0] / "best.pt").epoch for cut in made.cuts[1:]]
        assert select == "loss" or any(best < done for done, best in enumerate(chosen, 1))
        for cut in made.cuts[1:]:
            best = folders(cut)[0] / "best.pt"
            match how:
                case "damaged":
                    flip(best)
                case "missing":
                    best.unlink()
                case "ahead":
                    state = checkpoint.load(best)
                    shutil.copy(folders(made.cuts[-1])[0] / "last.pt", best)
                    if checkpoint.load(best).epoch == state.epoch:
                        continue
                case "behind":
                    first = folders(made.cuts[1])[0] / "last.pt"
                    if checkpoint.load(best).epoch == 1:
                        continue
                    shutil.copy(first, best)
            assert resumed(cut, told=[]) == made.ends, cut


def test_metrics_are_cut_back_to_the_commit_or_made_again(tmp_path: Path) -> None:
    made = history(tmp_path, [config()])
    changes: list[tuple[Callable[[str], str], str]] = [
        (lambda text: text + text.splitlines(keepends=True)[-1][:30], "torn"),
        (lambda text: text + text, "2 epochs had not been committed"),
        (lambda text: text + text.splitlines(keepends=True)[-1], "1 epoch had not been"),
        (lambda text: text[: len(text) // 2], "starts over: .*missing or damaged"),
        (lambda _: "", "starts over: .*missing or damaged"),
        (lambda text: "x" + text[1:], "starts over: .*missing or damaged"),
    ]
    for number, (change, words) in enumerate(changes):
        place = tmp_path / f"damaged-{number}"
        shutil.copytree(made.cuts[2], place)
        path = folders(place)[0] / "metrics.jsonl"
        path.write_text(change(path.read_text()))
        notes: list[str] = []
        assert resumed(place, told=notes) == made.ends
        assert re.search(words, notes[0])


def test_the_cost_of_a_commit_does_not_grow_with_the_epochs(tmp_path: Path) -> None:
    made = history(tmp_path, [config(epochs=30)])
    sizes = [(folders(cut)[0] / "last.pt").stat().st_size for cut in made.cuts[1:]]
    assert max(sizes) - min(sizes) < 1000


@pytest.mark.parametrize("name", ["meta.json", "summary.json", "metrics.jsonl"])
def test_a_finished_run_with_a_damaged_file_is_made_whole(name: str, tmp_path: Path) -> None:
    made = history(tmp_path, STACK)
    for index, path in enumerate(folders(made.cuts[-1])):
        (path / name).write_text('{"torn": ')
        assert contents(path) != made.ends[index]
    assert resumed(made.cuts[-1], told=[]) == made.ends


def test_weights_alone_are_nothing_to_go_on_with(tmp_path: Path) -> None:
    made = history(tmp_path, [config()])
    (path,) = folders(made.cuts[2])
    shutil.copy(path / "best.pt", path / "last.pt")
    notes: list[str] = []
    assert resumed(made.cuts[2], told=notes) == made.ends
    assert "weights alone" in notes[0]


def test_what_a_killed_process_left_goes_when_the_folder_is_held(tmp_path: Path) -> None:
    run = store.create(tmp_path, "run")
    kept = [run.path / "notes.tmp", run.path / ".mine.tmp", run.path / "plots" / ".a.b.tmp"]
    gone = [run.path / ".last.pt.0a1b2c3d.tmp", run.path / "plots" / ".curves.png.deadbeef.tmp"]
    for path in kept + gone:
        path.touch()
    with hold(run):
        assert sorted(strays(run.path)) == sorted(kept)


# ---------------------------------------------------------------------------------- the command

SMALL = ("data={name: synthetic, size: 140}", "model={name: mlp, width: 4}")


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(plots, "draw", lambda _: [])
    return tmp_path / "runs"


def cut_after(epochs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Has every run fail to commit what comes after so many epochs."""
    save = checkpoint.save

    def full(path: Path, state: checkpoint.Checkpoint) -> None:
        if state.epoch > epochs:
            raise OSError(28, "No space left on device", str(path))
        save(path, state)

    monkeypatch.setattr(checkpoint, "save", full)


def test_a_run_that_could_not_be_written_says_how_it_goes_on(
    mnist: Mnist, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert mnist("train", *SMALL, "--name", "whole").code == 0
    with monkeypatch.context() as patched:
        cut_after(2, patched)
        ended = mnist("train", *SMALL, "--name", "cut")
    place = runs / "cut-0001"
    assert ended.code == 1
    assert ended.err.splitlines()[-2:] == [
        f"error: cut-0001 failed: {place / 'last.pt'}: No space left on device",
        f"hint: make room there; go on with: mnist resume {place}",
    ]
    assert len(RunDirectory(place).metrics()) == 2  # an epoch that was not committed does not exist
    assert RunDirectory(place).summary()["epochs"] == 2
    ended = mnist("resume", "cut-0001")
    assert ended.code == 0
    assert "cut-0001 goes on from epoch 3: " in ended.out
    one, other = contents(runs / "whole-0001"), contents(place)
    assert {key for key in one if one[key] != other[key]} == {"config", "best", "last"}  # the name
    ended = mnist("resume", "cut-0001", "--json")
    assert (ended.code, ended.json["epochs"]) == (0, 4)
    assert "cut-0001 is finished: 4 epochs" in ended.err
    assert contents(place) == other


def test_a_run_whose_end_could_not_be_written_has_failed(
    mnist: Mnist, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sweep does not say that all is well; the others say how they ended."""
    whole = durable.replace

    def full(path: Path, content: bytes) -> None:
        if path.parts[-2:] == ("000", "summary.json"):
            raise OSError(28, "No space left on device", "summary.json")
        whole(path, content)

    with monkeypatch.context() as patched:
        patched.setattr(durable, "replace", full)
        ended = mnist("sweep", *SMALL, "--lrs", "1e-2,1e-3")
    assert ended.code == 3
    place = RunDirectory(runs / "mlp-sweep-0001")
    assert [trial["status"] for trial in place.summary()["trials"]] == ["failed", "finished"]
    assert place.trial(1).meta()["status"] == "finished"
    assert mnist("resume", str(place.path)).code == 0
    assert [trial["status"] for trial in place.summary()["trials"]] == ["finished"] * 2


def test_more_epochs_of_a_sweep(mnist: Mnist, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ("sweep", *SMALL, "optimizer=sgd", "--lrs", "1e38,1e-1,1e-2")
    assert mnist(*command, "--epochs", "5").code == 0
    assert mnist(*command, "--epochs", "2").code == 0
    place = runs / "mlp-sweep-0002"
    with monkeypatch.context() as patched:
        cut_after(3, patched)
        assert mnist("resume", str(place), "--epochs", "5").code == 3
    assert mnist("resume", str(place)).code == 0  # it knows how far it is to go
    assert contents(place) == contents(runs / "mlp-sweep-0001")
    ended = mnist("resume", str(place), "--epochs", "4")
    assert ended.code == 2
    assert "there are 5 already" in ended.err
    assert mnist("sweep", *SMALL, "--grid", "train.epochs=1,2", "--lrs", "1e-2").code == 0
    ended = mnist("resume", "mlp-sweep-0003", "--epochs", "4")
    assert (ended.code, "tries several epochs" in ended.err) == (2, True)


@pytest.mark.parametrize("when", ["before", "after"])
def test_an_extension_that_is_cut_short_is_not_lost(
    when: str, mnist: Mnist, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing says that it is finished which has not as many epochs as its config wants."""
    mnist("train", *SMALL, "--epochs", "4")
    mnist("train", *SMALL, "--epochs", "2")
    whole = durable.replace

    def cut(path: Path, content: bytes) -> None:
        if path.name != "config.yaml" or when == "after":
            whole(path, content)
        if path.name == "config.yaml":
            raise OSError(5, "Input/output error", path.name)

    with monkeypatch.context() as patched:
        patched.setattr(durable, "replace", cut)
        assert mnist("resume", "mlp-0002", "--epochs", "4").code == 1
    if when == "before":
        assert "is finished: 2 epochs" not in mnist("resume", "mlp-0002").out
        mnist("resume", "mlp-0002", "--epochs", "4")
    else:
        assert mnist("resume", "mlp-0002").code == 0
    assert contents(runs / "mlp-0002") == contents(runs / "mlp-0001")


def test_what_cannot_go_on_is_refused_with_the_reason(
    mnist: Mnist, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        cut_after(1, patched)
        assert mnist("train", *SMALL).code == 1
        assert mnist("sweep", *SMALL, "--lrs", "1e-2,1e-3").code == 3
    mnist("train", *SMALL, "train.epochs=null", "train.steps=3")
    single, swept = runs / "mlp-0001", runs / "mlp-sweep-0001"
    config_text = (single / "config.yaml").read_text()
    (single / "config.yaml").write_text(config_text.replace("lr: 0.001", "lr: 0.002"))
    assert (single / "config.yaml").read_text() != config_text
    text = (swept / "sweep.yaml").read_text()
    before = {p: p.read_bytes() for p in runs.rglob("*") if p.is_file() and p.name != "meta.json"}
    for argv, word in [
        (("mlp-0001",), "config.yaml is not what mlp-0001 was trained with"),
        (("mlp-0001", "optimizer.lr=1"), "optimizer.lr=1 cannot be changed"),
        (("mlp-0001", "--epochs", "2"), "there are 4 already"),
        (("mlp-0002", "--epochs", "9"), "counts steps"),
        (("mlp-sweep-0001/trials/000",), "goes on with its sweep"),
        (("nothing",), "no run 'nothing'"),
    ]:
        ended = mnist("resume", *argv)
        assert (ended.code, ended.out) == (2, ""), argv
        assert word in ended.err, argv
    assert before == {path: path.read_bytes() for path in before}
    (swept / "sweep.yaml").write_text(text.replace("0.01", "0.02"))
    ended = mnist("resume", "mlp-sweep-0001")
    assert (ended.code, "sweep.yaml is not what" in ended.err) == (2, True)
    (swept / "sweep.yaml").write_text(text)
    assert mnist("resume", "mlp-sweep-0001").code == 0
    (single / "config.yaml").write_text(config_text)
    assert mnist("resume", "mlp-0001").code == 0
    (single / "config.yaml").unlink()
    ended = mnist("resume", "mlp-0001")
    assert ended.code == 2
    ended = mnist("resume", str(single))
    assert (ended.code, "has no config.yaml" in ended.err) == (2, True)


def test_an_imported_run_is_refused(mnist: Mnist, runs: Path, tmp_path: Path) -> None:
    import torch

    mnist("train", *SMALL, "--epochs", "1")
    torch.save(checkpoint.load(runs / "mlp-0001" / "best.pt").model, tmp_path / "weights.pt")
    own = str(runs / "mlp-0001" / "config.yaml")
    assert mnist("import", str(tmp_path / "weights.pt"), "--config", own).code == 0
    ended = mnist("resume", "mlp-imported-0001")
    assert (ended.code, ended.out) == (2, "")
    assert "was imported, so there is nothing to go on with" in ended.err
    assert "hint: " in ended.err


def test_a_resumed_sweep_shows_published_figures_of_a_run_that_diverged(
    mnist: Mnist, runs: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What was not finite stands as null in its records, and is a number again."""
    (tmp_path / "published.yaml").write_text(
        "data: {name: synthetic, size: 140}\n"
        "optimizer: sgd\n"
        "train: {epochs: 3}\n"
        "sweep: {optimizer.lr: [1.0e+38, 0.1]}\n"
        "reference:\n"
        "  source: a book\n"
        "  runs:\n"
        "    - {when: {optimizer.lr: 1.0e+38}, figures: {val/loss: 1.0, train/loss: [2.0, 1.0]}}\n"
    )
    with monkeypatch.context() as patched:
        cut_after(2, patched)
        assert mnist("sweep", "--config", str(tmp_path / "published.yaml")).code == 3
    ended = mnist("resume", "published-sweep-0001")
    assert ended.code == 0, ended.err
    assert "a book" in ended.out


# ------------------------------------------------------------------- folders that were meddled with


def trained_sweep(mnist: Mnist, *more: str) -> RunDirectory:
    ended = mnist("sweep", *SMALL, "--lrs", "1e-2,1e-3", "--epochs", "2", "--json", *more)
    assert ended.code == 0, ended.err
    return RunDirectory(Path(ended.json["checkpoint"]).parent)


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize("state", ["finished", "unfinished"])
@pytest.mark.parametrize("epochs", [1, 3])
def test_edited_epochs_are_refused(
    epochs: int, state: str, mnist: Mnist, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a run, of a trial of a sweep, and of the sweep; not even --epochs goes on from them."""
    with monkeypatch.context() as patched:
        if state == "unfinished":
            cut_after(1, patched)
        mnist("train", *SMALL, "--epochs", "2")
        mnist("sweep", *SMALL, "--lrs", "1e-2,1e-3", "--epochs", "2")
    for path in (
        runs / "mlp-0001" / "config.yaml",
        runs / "mlp-sweep-0001" / "trials" / "001" / "config.yaml",
        runs / "mlp-sweep-0001" / "sweep.yaml",
    ):
        name = path.relative_to(runs).parts[0]
        before = path.read_text()
        edit(path, "epochs: 2", f"epochs: {epochs}")
        for more in ((), ("--epochs", "9")):
            ended = mnist("resume", name, *more)
            assert (ended.code, "put the file back" in ended.err) == (2, True), (path, more)
        path.write_text(before)
        assert disagreements(runs / name) == []
        assert mnist("resume", name).code == 0


def test_a_trial_that_lost_its_config_starts_clean(mnist: Mnist, runs: Path) -> None:
    folder = trained_sweep(mnist)
    whole = contents(folder.path)
    (folder.trial(1).path / "config.yaml").unlink()
    assert mnist("resume", folder.name).code == 0
    assert contents(folder.path) == whole
    assert disagreements(folder.path) == []
    ended = mnist("resume", folder.name, "--json")
    assert (ended.code, len(ended.json["trials"])) == (0, 2)
    assert "is finished: 2 runs" in ended.err
    assert contents(folder.path) == whole


def test_the_test_set_is_opened_once_for_the_same_weights(
    mnist: Mnist, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[str] = []
    write = durable.replace

    def counted(*args: Any) -> Any:
        measured.append(args[2])
        return evaluate(*args)

    def full(path: Path, content: bytes) -> None:
        if measured and path.name == "summary.json":  # the last thing that a sweep writes
            raise OSError(28, "No space left on device", str(path))
        write(path, content)

    monkeypatch.setattr("mnist_cli.sweeps.sweep.evaluate", counted)
    with monkeypatch.context() as patched:
        patched.setattr(durable, "replace", full)
        assert mnist("sweep", *SMALL, "--lrs", "1e-2,1e-3", "--epochs", "2").code == 1
    assert measured == ["test"]
    ended = mnist("resume", "mlp-sweep-0001", "--json")
    assert (ended.code, measured) == (0, ["test"])
    assert 0 <= ended.json["best"]["test/acc"] <= 1
    assert mnist("resume", "mlp-sweep-0001", "--epochs", "3").code == 0
    assert measured == ["test"] * 2  # other weights


def test_a_sweep_without_its_meta_opens_no_test_set(mnist: Mnist, runs: Path) -> None:
    folder = trained_sweep(mnist)
    (folder.path / "meta.json").unlink()
    ended = mnist("resume", folder.name, "--json")
    assert ended.code == 0
    assert "test/acc" not in ended.json["best"]


def test_a_winner_whose_checkpoint_is_gone_is_said(
    mnist: Mnist, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def losing(*args: Any) -> Generator[Event, None, None]:
        yield from drive(*args)
        for path in runs.glob("*/trials/*/best.pt"):
            path.unlink()

    with monkeypatch.context() as patched:
        patched.setattr(sweeps, "drive", losing)
        ended = mnist("sweep", *SMALL, "--lrs", "1e-2", "--epochs", "2")
    assert (ended.code, "trials/000/best.pt, the winner's checkpoint, is gone" in ended.err) == (
        3,
        True,
    )
    assert mnist("resume", "mlp-sweep-0001").code == 0


def test_more_epochs_do_not_change_how_runs_are_dealt_out(
    mnist: Mnist, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where two epochs of them are less work than pays for processes, and five are more."""
    monkeypatch.setattr(plan, "PROCESSES_PAY", 3 * 2 * 112 * 784 * 32)
    for epochs in ("5", "2"):
        command = ("sweep", *SMALL, "train.select=loss", "--lrs", "1e-2,1e-3")
        assert mnist(*command, "--epochs", epochs).code == 0
    assert mnist("resume", "mlp-sweep-0002", "--epochs", "5").code == 0
    whole, extended = (RunDirectory(runs / f"mlp-sweep-000{n}") for n in (1, 2))
    assert whole.meta()["stacks"] == extended.meta()["stacks"]
    assert contents(extended.path) == contents(whole.path)


def test_nothing_is_written_through_a_link(mnist: Mnist, runs: Path, tmp_path: Path) -> None:
    folder, outside = trained_sweep(mnist), tmp_path / "outside"
    before = contents(folder.path)
    for name in ("trials", "trials/000", "plots"):
        path = folder.path / name
        path.rename(outside)
        path.symlink_to(outside)
        files = {p: p.stat().st_mtime_ns for p in outside.rglob("*")}
        for argv in (("resume", folder.name, "--epochs", "3"), ("plot", folder.name)):
            if name == "plots" or argv[0] == "resume":
                assert mnist(*argv).code == 2, (name, argv)
        assert {p: p.stat().st_mtime_ns for p in outside.rglob("*")} == files
        path.unlink()
        outside.rename(path)
    assert contents(folder.path) == before
    edit(folder.path / "summary.json", '"optimizer.lr"', '"../../../x"')
    assert folder.status() == "damaged"
    mnist("plot", folder.name)
    assert not list(tmp_path.glob("*x*"))
