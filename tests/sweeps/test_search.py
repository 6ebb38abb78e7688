"""Searches: the same trials however they are trained, and losers that leave at each rung."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from mnist_cli.config import Config, load
from mnist_cli.config.space import Range, parse_space
from mnist_cli.report import plots
from mnist_cli.report.search import outcome
from mnist_cli.runs.run import commit as whole_commit
from mnist_cli.runs.store import RunDirectory
from mnist_cli.sweeps.search import rungs
from tests.conftest import Mnist

SPACE = ("lr=log:1e-4:1e-1", "optimizer.name=adam,sgd", "momentum=0..0.9", "dropout=0..0.5")
SMALL = (
    *("data={name: synthetic, size: 140}", "--epochs", "3", "--seeds", "2"),
    *("search.reduction_factor=2", "search.batch=4", "train.precision=fp64"),
)


def figures(folder: Path) -> dict[str, Any]:
    """All that was measured in a search, without what differs from time to time."""
    runs = RunDirectory(folder).trials()
    found: dict[str, Any] = {run.path.name: measured(run) for run in runs}
    rows = RunDirectory(folder).summary()["trials"]
    found["rows"] = [{k: v for k, v in row.items() if k not in ("seconds", "run")} for row in rows]
    return found


def measured(run: RunDirectory) -> list[dict[str, Any]]:
    return [{k: v for k, v in r.items() if not k.startswith("time/")} for r in run.metrics()]


@pytest.fixture(scope="module")
def _searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from mnist_cli.cli import run_command

    folder = tmp_path_factory.mktemp("searched")
    argv = ("search", *SPACE, *SMALL, "--trials", "8", "--runs-dir", str(folder))
    assert run_command(argv) == 0
    return folder / "mlp-search-0001"


@pytest.fixture
def searched(_searched: Path, tmp_path: Path) -> Path:
    """A search of 8 trials in two batches, with two seeds each."""
    return shutil.copytree(_searched, tmp_path / "runs" / "mlp-search-0001")


def test_a_search_leaves_ordinary_runs_and_tests_its_winner_once(searched: Path) -> None:
    search = RunDirectory(searched)
    summary = search.summary()
    assert summary["status"] == "finished"
    assert len(summary["trials"]) == len(search.trials()) == 16
    statuses = [row["status"] for row in summary["trials"]]
    # Of each four trials, two come to the second epoch and one to the third.
    assert statuses.count("finished") == 4
    assert statuses.count("pruned") == 12
    assert sorted(len(run.metrics()) for run in search.trials()) == [1] * 8 + [2] * 4 + [3] * 4
    assert 0 <= summary["best"]["test/acc"] <= 1
    assert summary["best"]["status"] == "finished"
    for run, row in zip(search.trials(), summary["trials"], strict=True):
        assert run.status() == row["status"]
        config = run.config()
        assert config.search is None
        assert (row["optimizer.momentum"] is None) == (config.optimizer.name == "adam")
        assert 1e-4 <= config.optimizer.lr <= 1e-1
        assert json.loads((run.path / "meta.json").read_text())["runs_in_stack"] <= 8


def test_a_pruned_trial_measured_what_it_would_have_alone(
    searched: Path, tmp_path: Path, mnist: Mnist
) -> None:
    pruned = [run for run in RunDirectory(searched).trials() if run.status() == "pruned"]
    for run in (pruned[0], max(pruned, key=lambda run: len(run.metrics()))):
        alone = tmp_path / "alone"
        ended = mnist("train", "--config", str(run.config_path), "--runs-dir", str(alone), "--json")
        found = measured(RunDirectory(alone / ended.json["run"]))
        assert len(found) == 3
        for record, other in zip(measured(run), found, strict=False):
            assert record == pytest.approx(other, rel=1e-9)


@pytest.mark.parametrize(
    "epoch", [5, 14, *(pytest.param(epoch, marks=pytest.mark.slow) for epoch in (1, 9, 19))]
)
def test_a_killed_search_comes_to_the_same(
    epoch: int, searched: Path, mnist: Mnist, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    wanted, commits = figures(searched), 0

    def commit(*arguments: Any) -> None:
        nonlocal commits
        commits += 1
        if commits == epoch:
            raise Killed
        whole_commit(*arguments)

    monkeypatch.setattr("mnist_cli.sweeps.driver.commit", commit)
    shutil.rmtree(searched)
    again = ("search", *SPACE, *SMALL, "--trials", "8")
    with pytest.raises(Killed):
        mnist(*again)
    monkeypatch.setattr("mnist_cli.sweeps.driver.commit", whole_commit)
    ended = mnist("resume", "mlp-search-0001")
    assert ended.code == 0, ended.err
    assert figures(searched) == wanted
    assert mnist("resume", "mlp-search-0001").code == 0
    assert figures(searched) == wanted


@pytest.mark.parametrize("how", ["resume", "search"])
def test_more_trials_are_those_of_a_larger_search(how: str, searched: Path, mnist: Mnist) -> None:
    wanted = figures(searched)
    shutil.rmtree(searched)
    assert mnist("search", *SPACE, *SMALL, "--trials", "4").code == 0
    argv = ("resume", "mlp-search-0001") if how == "resume" else ("search", *SPACE, *SMALL)
    ended = mnist(*argv, "--trials", "8")
    assert ended.code == 0
    assert figures(searched) == wanted
    assert len(list(searched.parent.iterdir())) == 1
    fewer = mnist("resume", "mlp-search-0001", "--trials", "2")
    assert fewer.code == 2
    assert "8" in fewer.err


@pytest.mark.slow
def test_the_number_of_processes_changes_nothing(
    searched: Path, tmp_path: Path, mnist: Mnist, forked_alone: None
) -> None:
    other = tmp_path / "other"
    argv = ("search", *SPACE, *SMALL, "--trials", "8", "--workers", "2", "--runs-dir", str(other))
    assert mnist(*argv).code == 0
    assert figures(other / "mlp-search-0001") == figures(searched)


@pytest.mark.parametrize(
    "sampler", ["random", *(pytest.param(name, marks=pytest.mark.slow) for name in ("qmc", "gp"))]
)
def test_samplers(sampler: str, mnist: Mnist) -> None:
    for _ in range(2):
        argv = ("--sampler", sampler, "--seeds", "1", "--pruner", "none", "--trials", "6", "--json")
        small = ("data={name: synthetic, size: 70}", "--epochs", "1", "search.batch=3")
        trials = mnist("search", "lr=log:1e-4:1e-1", "width=16..32", *small, *argv).json["trials"]
        settings = [(row["optimizer.lr"], row["model.width"]) for row in trials]
        assert len(set(settings)) == 6
        assert all(isinstance(width, int) and 16 <= width <= 32 for _, width in settings)
    assert mnist("runs", "list").code == 0


@pytest.mark.parametrize("url", ["sqlite:///{}/study.db", "{}/study.journal"])
def test_optuna_reads_the_storage(url: str, tmp_path: Path, mnist: Mnist) -> None:
    import optuna
    from optuna.storages import JournalStorage, journal
    from optuna.trial import TrialState

    url = url.format(tmp_path)
    argv = ("search", *SPACE, *SMALL, "--trials", "4", "--storage", url)
    assert mnist(*argv).code == 0
    assert mnist("resume", "mlp-search-0001", "--trials", "8").code == 0
    storage: Any = url if "://" in url else JournalStorage(journal.JournalFileBackend(url))
    study = optuna.load_study(study_name=None, storage=storage)
    states = [trial.state for trial in study.trials]
    assert states.count(TrialState.COMPLETE) == 2
    assert states.count(TrialState.PRUNED) == 6
    best = RunDirectory(tmp_path / "runs" / "mlp-search-0001").summary()["best"]
    assert study.best_trial.params["optimizer.lr"] == best["optimizer.lr"]


def test_the_median_rule_waits_for_five_trials(mnist: Mnist) -> None:
    argv = ("--pruner", "median", "--seeds", "1", "--trials", "16", "--json")
    small = ("data={name: synthetic, size: 700}", "--epochs", "3", "search.batch=8")
    trials = mnist("search", "lr=log:1e-6:1e-2", *small, *argv).json["trials"]
    statuses = [row["status"] for row in trials]
    assert "pruned" not in statuses[:8]
    assert 1 <= statuses[8:].count("pruned") <= 7


def test_a_search_in_which_all_diverge(mnist: Mnist, tmp_path: Path) -> None:
    ended = mnist(
        "search", "lr=1e38..2e38", *SMALL[:-1], "--trials", "4", "optimizer=sgd", "--json"
    )
    assert ended.code == 1
    assert "diverged" in ended.err
    assert ended.json["status"] == "diverged"
    assert len(ended.json["trials"]) == 8


def test_budgets_end_a_search(mnist: Mnist) -> None:
    argv = ("search", *SPACE, *SMALL, "--trials", "20", "search.max_epochs=1", "--json")
    assert len(mnist(*argv).json["trials"]) == 8  # the first batch


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("lr=1e-1..1e-3",), ("lr=1e-1..1e-3", "optimizer.lr", "empty")),
        (("lr=log:0:1e-1",), ("lr=log:0:1e-1", "above 0")),
        (("search.space.optimizer.lr=[1e-3]",), ("one value",)),
        (("lr=-1..1",), ("optimizer.lr", "greater than 0")),
        (("rate=1..2",), ("rate", "no setting")),
        (("momentum=0..0.9",), ("not a setting of adam",)),
        (("lr=1e-3..1e-2", "--sampler", "tpee"), ("--sampler", "'tpe'")),
        (("lr=1e-3..1e-2", "train.steps=5"), ("pruner", "train.epochs")),
        (("lr=1e-3..1e-2", "--trials", "0"), ("--trials", "0")),
        ((), ("nothing to search",)),
    ],
)
def test_bad_searches_say_what_and_where(
    argv: tuple[str, ...], words: tuple[str, ...], mnist: Mnist, tmp_path: Path
) -> None:
    ended = mnist("search", *argv)
    assert ended.code == 2
    assert all(word in ended.err for word in words), ended.err
    assert not (tmp_path / "runs").exists()


def test_without_optuna_it_says_what_to_install(
    mnist: Mnist, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    ended = mnist("search", "lr=1e-3..1e-2")
    assert ended.code == 2
    assert "pip install 'mnist-cli[search]'" in ended.err


def test_a_file_says_the_same_as_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("search:\n  trials: 8\n  space: {optimizer.lr: log:1e-4:1e-1}\n")
    search = load(str(path)).config.search
    assert search
    assert search.trials == 8
    assert parse_space(search.space["optimizer.lr"]) == Range(1e-4, 1e-1, log=True)
    path.write_text("search:\n  space:\n    optimizer.lr: log:0:1\n")
    with pytest.raises(Exception, match=r":3:\d+: search.space.optimizer.lr: a log range"):
        load(str(path))


def test_what_the_command_line_sets_is_not_searched(mnist: Mnist, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "data: {name: synthetic, size: 140}\n"
        "search: {trials: 2, space: {optimizer.lr: log:1e-4:1e-1, model.dropout: 0..0.5}}\n"
    )
    rows = mnist("search", "-c", str(path), "lr=1e-3", "--epochs", "1", "--json").json["trials"]
    assert all("model.dropout" in row and "optimizer.lr" not in row for row in rows)
    train = mnist("train", "-c", str(path), "--epochs", "1", "--json").json
    config = RunDirectory(tmp_path / "runs" / train["run"]).config()
    assert config.search is None


def test_rungs() -> None:
    def of(epochs: int, **search: Any) -> list[int | None]:
        section = {"space": {"optimizer.lr": [1e-3, 1e-2]}, **search}
        found = Config.model_validate({"search": section}).search
        assert found
        return rungs(found, epochs)

    assert of(8) == [1, 4, None]
    assert of(17) == [1, 4, 16, None]
    assert of(8, reduction_factor=2, min_epochs=2) == [2, 4, None]
    assert of(1) == [None]
    assert of(4, pruner="median", min_epochs=2) == [2, 3, None]
    assert of(9, pruner="none") == [None]


def test_the_outcome_warns_of_the_edge_and_of_too_few_seeds() -> None:
    section = {"space": {"optimizer.lr": "log:1e-4:1e-1", "model.dropout": "0..0.5"}}
    config = Config.model_validate({"search": section})

    def row(rate: float, seed: int, accuracy: float) -> dict[str, Any]:
        settings = {"optimizer.lr": rate, "model.dropout": 0.25, "train.seed": seed}
        return {"run": f"{rate}", "status": "finished", **settings} | {
            "val/loss": 1 - accuracy,
            "val/acc": accuracy,
        }

    rows = [row(0.09, 0, 0.92), row(0.09, 1, 0.90), row(0.01, 0, 0.91), row(0.01, 1, 0.90)]
    summary = {"trials": rows, "best": rows[0]}
    lines = [line for line in outcome(summary, config) if isinstance(line, str)]
    (edge,) = [line for line in lines if "warning" in line]
    assert "lr 0.09" in edge
    assert "upper" in edge
    # 2 (1.96 + 0.84)^2 times the mean variance, 1.25e-4, over the squared difference of 0.005.
    assert [word for line in lines for word in line.split() if word == "79"]
    rows[:2] = [row(0.02, 0, 0.92), row(0.02, 1, 0.90)]
    lines = [line for line in outcome({**summary, "best": rows[0]}, config) if type(line) is str]
    assert not [line for line in lines if "warning" in line]


@pytest.mark.pictures
def test_the_pictures_of_a_search(searched: Path) -> None:
    drawn = plots.draw(RunDirectory(searched))
    kinds = {path.stem.removeprefix("search-") for path in drawn}
    assert kinds == {"history", "settings", "parallel", "rungs", "importance"}
    assert all(path.read_bytes()[1:4] == b"PNG" for path in drawn)
