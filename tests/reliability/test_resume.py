"""Runs that go on: from wherever they were cut they come to the bits of one that never was."""

import contextlib
import random
import re
import shutil
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import pytest
import torch

from mnist_cli.config import AugmentConfig, Config
from mnist_cli.config.schema import variants
from mnist_cli.data import durable
from mnist_cli.runs import checkpoint, store
from mnist_cli.runs.datasets import Datasets
from mnist_cli.runs.evaluate import evaluate
from mnist_cli.runs.resume import reopen
from mnist_cli.runs.run import Run, create
from mnist_cli.runs.store import RunDirectory
from mnist_cli.sweeps import sweep as sweeps
from mnist_cli.sweeps.driver import drive
from mnist_cli.sweeps.executors import in_process
from mnist_cli.sweeps.jobs import Epoch, Event, Failed
from mnist_cli.sweeps.plan import StackPlan
from tests.conftest import Mnist
from tests.reliability.harness import contents, disagreements

DATA = {"name": "synthetic", "size": 140, "batch_size": 32}  # four steps an epoch
MODEL = {"name": "mlp", "width": 4, "dropout": 0.3}
# Every optimizer and every scheduler; the last run diverges.
RUNS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"name": "adam", "weight_decay": 0.01}, {"name": "cosine", "T_max": 4}),
    ({"name": "nadam"}, {"name": "step", "step_size": 2, "gamma": 0.5, "warmup": 1}),
    ({"name": "sgd", "momentum": 0.9, "nesterov": True}, {"name": "linear"}),
    ({"name": "adam", "amsgrad": True}, {"name": "step", "step_size": 9, "interval": "step"}),
    ({"name": "adamw"}, {"name": "multistep", "milestones": [1, 3], "gamma": 0.5}),
    ({"name": "rmsprop"}, {"name": "multistep", "milestones": [2, 9], "interval": "step"}),
    ({"name": "rmsprop", "momentum": 0.5, "centered": True}, {"name": "cosine", "T_max": 4}),
    ({"name": "scratch_sgd"}, {"name": "cosine", "T_max": 13, "interval": "step"}),
    ({"name": "sgd", "momentum": 0.9, "dampening": 0.1}, {"name": "wsd", "stable": 1, "decay": 2}),
    ({"name": "muon"}, {"name": "one_cycle", "total_steps": 13}),
    ({"name": "sgd", "lr": 1e39}, {"name": "constant"}),  # beyond all numbers of float32
]
DATASETS = Datasets(print)  # it keeps the one they all have


def config(which: int = 0, seed: int = 0, **train: Any) -> Config:
    """One of `RUNS`."""
    optimizer, scheduler = RUNS[which]
    rate = 0.1 if "sgd" in optimizer["name"] else 0.01
    return Config.model_validate(
        {
            "data": DATA,
            "model": MODEL,
            "optimizer": {"lr": rate} | optimizer,
            "scheduler": scheduler,
            "train": {"seed": seed, **(train or {"epochs": 4})},
        }
    )


def stack(**length: Any) -> list[Config]:
    """All of `RUNS`; two at a time have the same order of batches."""
    return [config(which, which // 2, **length) for which in range(len(RUNS))]


@dataclass
class History:
    """Runs that trained together, as they were at the end and on the way.

    Attributes:
        cuts: their folders as they were on the disk after so many epochs; the last is the end.
        ends: what each came to.
    """

    cuts: list[Path] = field(default_factory=list)
    ends: list[dict[str, Any]] = field(default_factory=list)


def go(runs: Sequence[Run], after_epoch: Callable[[], object] = lambda: None) -> None:
    """Trains runs as one stack, to their end."""
    for event in drive(
        runs, [StackPlan(tuple(range(len(runs))), 1)], partial(in_process, datasets=DATASETS)
    ):
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


def resumed(place: Path, epochs: int | None = None, noted: list[str] | None = None) -> list[Any]:
    """What the runs in a place come to when they go on."""
    notes: list[str] = [] if noted is None else noted
    runs = [reopen(RunDirectory(path), epochs, notes.append) for path in folders(place)]
    if any(run.status == "waiting" for run in runs):
        go(runs)
    assert noted is not None or not notes
    return [contents(path) for path in folders(place)]


# ------------------------------------------------------------------------------------ every cut


def test_every_optimizer_and_scheduler_is_here() -> None:
    assert {optimizer["name"] for optimizer, _ in RUNS} == set(variants("optimizer"))
    assert {scheduler["name"] for _, scheduler in RUNS} == set(variants("scheduler"))


def test_what_is_compared_can_differ(tmp_path: Path) -> None:
    """Lost moments are seen in the last bits."""
    made = history(tmp_path, [config()])
    run = reopen(RunDirectory(folders(made.cuts[2])[0]), None, print)
    assert run.committed
    for moments in run.committed.optimizer.values():
        for value in moments.values():
            value.zero_()
    go([run])
    assert contents(run.folder.path)["last"] != made.ends[0]["last"]


@pytest.mark.parametrize(
    "length", [pytest.param({"epochs": 4}, marks=pytest.mark.slow), {"steps": 10}], ids=str
)
def test_a_stack_goes_on_to_the_same_bits(length: dict[str, int], tmp_path: Path) -> None:
    made = history(tmp_path, stack(**length))
    assert [end["status"] for end in made.ends].count("diverged") == 1
    for cut in made.cuts:
        assert resumed(cut) == made.ends, cut


def test_augmented_runs_go_on_to_the_same_bits(tmp_path: Path) -> None:
    augment = AugmentConfig(translate=1, rotate=5.0, erase=0.2, elastic=10.0)
    runs = [each.model_copy(update={"augment": augment}) for each in stack(steps=10)]
    made, plain = history(tmp_path / "made", runs), history(tmp_path / "plain", stack(steps=10))
    assert made.ends[0]["metrics"] != plain.ends[0]["metrics"]
    for cut in made.cuts[1:]:
        assert resumed(cut) == made.ends, cut


def test_statistics_and_averaged_weights_go_on_to_the_same_bits(tmp_path: Path) -> None:
    """In a stack that one run leaves, and whose runs were cut at different epochs, too."""
    model = {"name": "resnet", "width": 2}
    configs = []
    for which in (0, 1, 2, len(RUNS) - 1):
        sections = config(which, which, epochs=4, ema=0.7).resolved()
        configs.append(Config.model_validate({**sections, "model": model}))
    made = history(tmp_path, configs)
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    for place, path in enumerate(folders(made.cuts[0])):
        shutil.copytree(folders(made.cuts[place])[place], mixed / path.name)
    for cut in [made.cuts[0], made.cuts[2], mixed]:
        assert resumed(cut) == made.ends, cut
    last = checkpoint.load(folders(made.cuts[-1])[0] / "last.pt")
    name = "blocks.0.norm1.running_var"
    assert not torch.equal(last.model[name], last.resume["raw"][name])


def test_runs_of_a_stack_that_were_cut_at_different_epochs(tmp_path: Path) -> None:
    made = history(tmp_path, stack())
    dice = random.Random(0)
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    for place, path in enumerate(folders(made.cuts[0])):
        cut = dice.choice(made.cuts)
        shutil.copytree(folders(cut)[place], mixed / path.name)
    assert resumed(mixed) == made.ends


def test_a_stack_whose_only_run_that_goes_on_diverges_ends_with_it(tmp_path: Path) -> None:
    """Those that ride along do not keep it going."""
    made = history(tmp_path, stack())
    end, begun = folders(made.cuts[-1]), folders(made.cuts[0])[-1]
    shutil.rmtree(end[-1])
    shutil.copytree(begun, end[-1])
    runs = [reopen(RunDirectory(path), None, pytest.fail) for path in end]
    epochs: list[None] = []
    go(runs, lambda: epochs.append(None))
    assert len(epochs) == 1
    assert [contents(path) for path in end] == made.ends


def test_more_epochs_are_as_if_they_had_been_asked_for(tmp_path: Path) -> None:
    short = history(tmp_path / "short", stack(epochs=2, select="loss"))  # the best are later ones
    long = history(tmp_path / "long", stack(epochs=5, select="loss"))
    for cut in short.cuts:
        assert resumed(cut, 5) == long.ends


def test_the_seconds_of_all_sessions_count(tmp_path: Path) -> None:
    (cut,) = folders(history(tmp_path, [config()]).cuts[2])
    before = checkpoint.load(cut / "last.pt").resume["seconds"]
    resumed(cut.parent)
    assert 0 < before < checkpoint.load(cut / "last.pt").resume["seconds"]


# ------------------------------------------------------------------------------------- damage

METRICS = "metrics.jsonl"


def flip(path: Path, where: float = 0.5) -> None:
    content = bytearray(path.read_bytes())
    content[int(len(content) * where)] ^= 1
    path.write_bytes(content)


def again(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


# What happened to a run that was cut, and what is noted.
DAMAGE: list[tuple[Callable[[Path], object], str]] = [
    (lambda run: flip(run / "last.pt"), "starts over: .*damaged"),
    (
        lambda run: shutil.copy(run / "best.pt", run / "last.pt"),
        "starts over: .*last.pt: it has no",
    ),
    (lambda run: again(run / METRICS, lambda text: text + text[-30:]), "30 bytes .* not committed"),
    (lambda run: again(run / METRICS, lambda text: text + text), "bytes .* not committed"),
    (lambda run: again(run / METRICS, lambda text: text[: len(text) // 2]), "starts over: .*dama"),
    (lambda run: again(run / METRICS, lambda text: b"x" + text[1:]), "starts over: .*damaged"),
    (lambda run: (run / METRICS).unlink(), "starts over: .*missing or damaged"),
]


@pytest.mark.parametrize(("damage", "words"), DAMAGE)
def test_damage_is_told_and_made_good(
    damage: Callable[[Path], object], words: str, tmp_path: Path
) -> None:
    made = history(tmp_path, [config()])
    damage(folders(made.cuts[2])[0])
    notes: list[str] = []
    assert resumed(made.cuts[2], noted=notes) == made.ends
    assert re.search(f"run-0001.*{words}", notes[0])


def test_a_best_checkpoint_that_is_not_the_committed_one(tmp_path: Path) -> None:
    """It is never left as it is, whether the best epoch is the last one or an earlier one."""
    made = history(tmp_path, [config(2, 1, select="loss", epochs=5)])
    saved = [folders(cut)[0] / "last.pt" for cut in made.cuts[1:]]
    chosen = [checkpoint.load(path.with_name("best.pt")).epoch for path in saved]
    assert {best == done for done, best in enumerate(chosen, 1)} == {True, False}
    damages: list[Callable[[Path], object]] = [flip, Path.unlink]
    damages += [partial(shutil.copy, path) for path in (saved[0], saved[-1])]
    for number, damage in enumerate(damages):
        for epochs, cut in enumerate(made.cuts[1:], 1):
            place = tmp_path / f"{number}-{epochs}"
            shutil.copytree(cut, place)
            damage(folders(place)[0] / "best.pt")
            assert resumed(place, noted=[]) == made.ends, place


def test_the_cost_of_a_commit_does_not_grow_with_the_epochs(tmp_path: Path) -> None:
    made = history(tmp_path, [config(epochs=30)])
    sizes = [(folders(cut)[0] / "last.pt").stat().st_size for cut in made.cuts[1:]]
    assert max(sizes) - min(sizes) < 1000


@pytest.mark.parametrize("name", ["meta.json", "summary.json", "metrics.jsonl"])
def test_a_finished_run_with_a_damaged_file_is_made_whole(name: str, tmp_path: Path) -> None:
    made = history(tmp_path, stack())
    for index, path in enumerate(folders(made.cuts[-1])):
        (path / name).write_text('{"torn": ')
        assert contents(path) != made.ends[index]
    assert resumed(made.cuts[-1], noted=[]) == made.ends


# ---------------------------------------------------------------------------------- the command

SMALL = ("data={name: synthetic, size: 140}", "model={name: mlp, width: 4}")
LOSS = (*SMALL, "train.select=loss")  # by which every epoch is better than the one before


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@contextlib.contextmanager
def failing(owner: ModuleType, name: str, when: Callable[..., object]) -> Iterator[None]:
    """Has a function that writes a file find no room, when its arguments are such."""
    whole = getattr(owner, name)

    def call(path: Path, *content: Any) -> None:
        if when(path, *content):
            raise OSError(28, "No space left on device", str(path))
        whole(path, *content)

    with mock.patch.object(owner, name, call):
        yield


def cut_after(epochs: int) -> AbstractContextManager[None]:
    """Has every run fail to commit what comes after so many epochs."""
    return failing(checkpoint, "save", lambda _, state: state.epoch > epochs)


def test_a_run_whose_end_could_not_be_written_has_failed(mnist: Mnist, runs: Path) -> None:
    """A sweep does not say that all is well; the others say how they ended."""
    with failing(durable, "replace", lambda path, _: path.parts[-2:] == ("000", "summary.json")):
        assert mnist("sweep", *SMALL, "--lrs", "1e-2,1e-3").code == 3
    place = RunDirectory(runs / "mlp-sweep-0001")
    assert [trial["status"] for trial in place.summary()["trials"]] == ["failed", "finished"]
    assert place.trial(1).status() == "finished"
    assert mnist("resume", place.name).code == 0
    assert [trial["status"] for trial in place.summary()["trials"]] == ["finished"] * 2


def test_more_epochs_of_a_sweep(mnist: Mnist, runs: Path) -> None:
    command = ("sweep", *SMALL, "optimizer=sgd", "--lrs", "1e38,1e-1,1e-2")
    assert mnist(*command, "--epochs", "5").code == 0
    assert mnist(*command, "--epochs", "2").code == 0
    place = runs / "mlp-sweep-0002"
    with cut_after(3):
        assert mnist("resume", str(place), "--epochs", "5").code == 3
    assert mnist("resume", str(place)).code == 0  # it knows how far it is to go
    assert contents(place) == contents(runs / "mlp-sweep-0001")
    ended = mnist("resume", str(place), "--epochs", "4")
    assert ended.code == 2
    assert "there are 5 already" in ended.err
    assert mnist("sweep", *SMALL, "--grid", "train.epochs=1,2", "--lrs", "1e-2").code == 0
    ended = mnist("resume", "mlp-sweep-0003", "--epochs", "4")
    assert (ended.code, "tries several epochs" in ended.err) == (2, True)


def test_an_extension_that_is_cut_short_is_not_lost(mnist: Mnist, runs: Path) -> None:
    """Nothing says that it is finished which has not as many epochs as its config wants."""
    assert mnist("train", *SMALL, "--epochs", "4").code == 0
    for number, last in enumerate(("config.yaml", "meta.json"), 2):
        name = f"mlp-000{number}"
        assert mnist("train", *SMALL, "--epochs", "2").code == 0
        with failing(durable, "replace", lambda path, _, last=last: path.name == last):
            assert mnist("resume", name, "--epochs", "4").code == 1
        assert "is finished: 2 epochs" not in mnist("resume", name).out
        assert mnist("resume", name, "--epochs", "4").code == 0
        assert contents(runs / name) == contents(runs / "mlp-0001")


def test_what_cannot_go_on_is_refused_with_the_reason(mnist: Mnist, runs: Path) -> None:
    with cut_after(1):
        assert mnist("train", *SMALL).code == 1
        assert mnist("sweep", *SMALL, "--lrs", "1e-2,1e-3").code == 3
    mnist("train", *SMALL, "train.epochs=null", "train.steps=3")
    mnist("train", *SMALL, "--epochs", "4")
    before = {p: p.read_bytes() for p in runs.rglob("*") if p.is_file() and p.name != "meta.json"}
    for argv, word in [
        (("mlp-0001", "optimizer.lr=1"), "optimizer.lr=1 cannot be changed"),
        (("mlp-0001", "--epochs", "2"), "there are 4 already"),
        (("mlp-0002", "--epochs", "9"), "counts steps"),
        (("mlp-sweep-0001/trials/000",), "goes on with its sweep"),
        (("nothing",), "no run 'nothing'"),
    ]:
        ended = mnist("resume", *argv)
        assert (ended.code, ended.out) == (2, ""), argv
        assert word in ended.err, argv
    edits = [
        ("mlp-0001/config.yaml", "epochs: 4", "epochs: 1"),
        ("mlp-0001/config.yaml", "lr: 0.001", "lr: 0.002"),
        ("mlp-0003/config.yaml", "epochs: 4", "epochs: 9"),  # which is finished
        ("mlp-0003/config.yaml", "lr: 0.001", "lr: 0.002"),
        ("mlp-sweep-0001/trials/001/config.yaml", "epochs: 4", "epochs: 1"),
        ("mlp-sweep-0001/sweep.yaml", "epochs: 4", "epochs: 1"),
        ("mlp-sweep-0001/sweep.yaml", "0.01", "0.02"),
    ]
    for file, old, new in edits:
        text = (runs / file).read_text()
        edit(runs / file, old, new)
        for more in ((), ("--epochs", "12")):  # nor does one go on from there with other epochs
            ended = mnist("resume", file.partition("/")[0], *more)
            assert (ended.code, "put the file back" in ended.err) == (2, True), (file, new, more)
        (runs / file).write_text(text)
    assert before == {path: path.read_bytes() for path in before}
    assert mnist("resume", "mlp-sweep-0001").code == 0
    assert "mlp-0001 goes on from epoch 2: " in mnist("resume", "mlp-0001").out
    (runs / "mlp-0001" / "config.yaml").unlink()
    ended = mnist("resume", str(runs / "mlp-0001"))
    assert (ended.code, "a folder with a config.yaml" in ended.err) == (2, True)


# ------------------------------------------------------------------- folders that were meddled with


def trained_sweep(mnist: Mnist, *more: str) -> RunDirectory:
    ended = mnist("sweep", *SMALL, "--lrs", "1e-2,1e-3", "--epochs", "2", "--json", *more)
    assert ended.code == 0, ended.err
    return RunDirectory(Path(ended.json["checkpoint"]).parent)


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_a_trial_that_lost_its_config_starts_clean(mnist: Mnist, runs: Path) -> None:
    folder = trained_sweep(mnist)
    whole = contents(folder.path)
    (folder.trial(1).path / "config.yaml").unlink()
    assert mnist("resume", folder.name).code == 0
    assert contents(folder.path) == whole
    assert disagreements(folder.path) == []


def test_the_test_set_is_opened_once_for_the_same_weights(
    mnist: Mnist, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[str] = []

    def counted(*args: Any) -> Any:
        measured.append(args[2])
        return evaluate(*args)

    monkeypatch.setattr("mnist_cli.sweeps.sweep.evaluate", counted)
    with failing(durable, "replace", lambda path, _: measured and path.name == "summary.json"):
        assert mnist("sweep", *LOSS, "--lrs", "1e-2,1e-3", "--epochs", "2").code == 1
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


def test_a_winner_whose_checkpoint_is_gone_is_said(mnist: Mnist, runs: Path) -> None:
    def losing(*args: Any) -> Generator[Event, None, None]:
        yield from drive(*args)
        for path in runs.glob("*/trials/*/best.pt"):
            path.unlink()

    with mock.patch.object(sweeps, "drive", losing):
        ended = mnist("sweep", *SMALL, "--lrs", "1e-2", "--epochs", "2")
    assert (ended.code, "trials/000/best.pt: No such file" in ended.err) == (5, True)
    assert mnist("resume", "mlp-sweep-0001").code == 0


@pytest.mark.parametrize("name", ["trials", "trials/000", "trials/000/metrics.jsonl", "plots"])
def test_nothing_is_written_through_a_link(
    name: str, mnist: Mnist, runs: Path, tmp_path: Path
) -> None:
    folder, outside = trained_sweep(mnist), tmp_path / "outside"
    (folder.path / name).rename(outside)
    (folder.path / name).symlink_to(outside)
    files = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.name != ".lock"}
    for argv in (("resume", folder.name, "--epochs", "3"), ("plot", folder.name)):
        if name == "plots" or argv[0] == "resume":
            ended = mnist(*argv)
            assert (ended.code, f"{folder.path / name} is a link" in ended.err) == (2, True)
    assert {p: p.stat().st_mtime_ns for p in files} == files
