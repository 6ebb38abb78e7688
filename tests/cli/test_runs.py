"""The list of runs: what it says of those that train, of sweeps over seeds, of damaged ones."""

import io
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from mnist_cli import config as configs
from mnist_cli.report import tables
from mnist_cli.runs import store
from mnist_cli.runs.store import RunDirectory
from tests.conftest import Mnist


def rows(listing: str) -> dict[str, str]:
    """The line of each run."""
    return {line.split()[0]: line for line in listing.splitlines() if "-00" in line}


@pytest.mark.parametrize("seconds", ["null", "Infinity", "}"])
def test_a_damaged_summary_is_one_row(seconds: str, mnist: Mnist, trained: Path) -> None:
    path = trained / "mlp-0001" / "summary.json"
    content = json.loads(path.read_text()) | {"seconds": "SECONDS"}
    path.write_text(json.dumps(content).replace('"SECONDS"', seconds))
    lines = rows(mnist("runs", "list").out)
    assert "damaged" in lines["mlp-0001"]
    assert "finished" in lines["mlp-sweep-0001"]
    assert mnist("runs", "list", "--json").code == 0
    assert mnist("runs", "show", "mlp-0001").code == 0


def test_a_run_that_trains_shows_its_epochs_and_a_local_time(
    mnist: Mnist, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDirectory(trained / "mlp-0001")
    meta = {**run.meta(), "started": "2026-01-31T22:30:00+00:00"}
    (run.path / "meta.json").write_text(json.dumps(meta))
    (run.path / "summary.json").unlink()
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "Etc/GMT-5")
        time.tzset()
        line = rows(mnist("runs", "list").out)["mlp-0001"]
        assert "2026-02-01 03:30" in mnist("runs", "show", "mlp-0001").out
    time.tzset()
    assert line.split()[1:5] == ["finished", "2026-02-01", "03:30", "2"]


def test_a_sweep_over_seeds_shows_the_mean_it_was_ranked_by(mnist: Mnist, trained: Path) -> None:
    summary = RunDirectory(trained / "mlp-sweep-0001").summary()
    found = [trial["val/acc"] for trial in summary["trials"]]
    best = max(sum(found[:2]) / 2, sum(found[2:]) / 2)
    assert tables.percent(best) in rows(mnist("runs", "list").out)["mlp-sweep-0001"]


def test_an_extended_run_keeps_what_its_figures_were_published_for(
    mnist: Mnist, tmp_path: Path
) -> None:
    config = tmp_path / "own.yaml"
    config.write_text(
        "data: {name: synthetic, size: 140}\ntrain: {epochs: 1}\n"
        "reference: {source: x, tolerance: {val/acc: 1}, runs: [{figures: {val/acc: 0.5}}]}\n"
    )
    assert "yes, ±100.0 pp, one run each" in mnist("train", "-c", str(config)).out
    for epochs in ("3", "4"):
        ended = mnist("resume", "own-0001", "--epochs", epochs)
        assert ended.code == 0
        assert "val acc, epoch 1" in ended.out


@pytest.mark.parametrize("place", ["", "best.pt", "last.pt"])
def test_a_run_is_named_by_itself_its_folder_or_its_checkpoint(
    place: str, mnist: Mnist, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = mnist("runs", "show", "mlp-0001").out
    assert mnist("runs", "show", f"mlp-0001/{place}").out == shown
    assert mnist("runs", "show", str(trained / "mlp-0001" / place)).out == shown
    monkeypatch.chdir(trained / "mlp-0001")
    assert mnist("runs", "show", place or ".").out.splitlines()[0].split() == ["run", "mlp-0001"]


@pytest.mark.usefixtures("trained")
def test_without_a_run_it_is_the_newest_which_is_said(mnist: Mnist) -> None:
    for command in (["runs", "show"], ["resume"]):
        ended = mnist(*command)
        assert (ended.code, ended.err.strip()) == (0, "the newest: mlp-sweep-0001")
        assert "mlp-sweep-0001" in ended.out


def test_eval_takes_the_checkpoint_that_a_path_in_the_runs_directory_names(
    mnist: Mnist, trained: Path
) -> None:
    for name in ("best.pt", "last.pt"):
        ended = mnist("eval", "--checkpoint", f"mlp-0001/{name}", "--json")
        assert ended.json["checkpoint"] == str(trained / "mlp-0001" / name)


@pytest.fixture
def many(tmp_path: Path) -> list[str]:
    """Runs that differ in model, rate, accuracy and tags; the names, in the order started."""
    names = []
    runs = ("cnn", 0.1, 0.98), ("cnn", 1e-4, 0.5), ("mlp", 1, None)
    for n, (model, lr, acc) in enumerate(runs):
        config = configs.load(model, [f"optimizer.lr={lr}", "train.compile=true"]).config
        config = config.model_copy(update={"sweep": {}})
        path = tmp_path / "runs" / f"{model}-{n}"
        path.mkdir(parents=True)
        (path / "config.yaml").write_text(configs.dump(config))
        meta = {"status": "finished", "started": f"2026-01-0{n + 1}", "tags": ["odd"] * (n % 2)}
        (path / "meta.json").write_text(json.dumps(meta))
        best = acc and {"epoch": 1, "val/loss": 1 - acc, "val/acc": acc}
        (path / "summary.json").write_text(json.dumps({"epochs": n + 1, "best": best}))
        names.append(path.name)
    return names


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("model.name=cnn and val/acc>0.97", [0]),
        ("model == mlp", [2]),
        ("lr<=1e-4", [1]),
        ("lr>.5 and epochs!=3", []),
        ("val/acc!=0.5", [2, 0]),
        ("val/loss<1", [1, 0]),
        ("tags=odd", [1]),
        ("tags!=odd", [2, 0]),
        ("train.compile=True and name>=cnn-1", [2, 1]),
        ("lr<many", []),
    ],
)
def test_a_filter_compares_settings_and_figures(
    where: str, expected: list[int], mnist: Mnist, many: list[str]
) -> None:
    found = mnist("runs", "list", "--json", "--filter", where).json
    assert [row["name"] for row in found] == [many[n] for n in expected]


@pytest.mark.parametrize(
    ("key", "expected"), [("val/acc", [0, 1, 2]), ("val/loss", [0, 1, 2]), ("lr", [1, 0, 2])]
)
def test_runs_are_sorted_by_a_key_the_best_first(
    key: str, expected: list[int], mnist: Mnist, many: list[str]
) -> None:
    found = [*rows(mnist("runs", "list", "--sort", key).out.replace("-", "-00"))]
    assert found == [many[n].replace("-", "-00") for n in expected]


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--filter", "optimizer.rl=1"], "'optimizer.lr'"),
        (["--sort", "val/ac"], "'val/acc'"),
        (["--filter", "lr"], "'lr' is not KEY OP VALUE"),
        (["--filter", "seed=0"], "'data.seed' or 'train.seed'"),
    ],
)
def test_a_key_that_is_not_there_names_the_nearest(
    argv: list[str], named: str, mnist: Mnist
) -> None:
    ended = mnist("runs", "list", *argv)
    assert (ended.code, named in ended.err) == (2, True)


def test_the_list_is_bounded_and_shows_what_was_asked(mnist: Mnist, many: list[str]) -> None:
    out = mnist("runs", "list", "--limit", "1").out
    assert many[2] in out
    assert {"mlp", "mnist", "1"} <= set(out.replace(many[2], "").split())
    assert "2 more" in out
    assert many[0] not in out


def test_a_sweep_is_listed_with_the_settings_of_its_winner(mnist: Mnist, trained: Path) -> None:
    best = RunDirectory(trained / "mlp-sweep-0001").summary()["best"]
    (listed,) = mnist("runs", "list", "--json", "--filter", "name=mlp-sweep-0001").json
    assert listed["settings"]["optimizer.lr"] == best["optimizer.lr"]
    assert listed["figures"]["test/acc"] == best["test/acc"]


@pytest.mark.parametrize("text", ["[" * 9999, "a: &x [1]\nb: *x", "a: !!python/name:os.system ''"])
def test_a_config_that_is_none_does_not_keep_the_list_from_showing(
    text: str, mnist: Mnist, trained: Path
) -> None:
    (trained / "mlp-0001" / "config.yaml").write_text(text)
    assert "finished" in rows(mnist("runs", "list").out)["mlp-0001"]


def test_show_has_the_settings_that_are_not_the_default(
    mnist: Mnist, trained: Path, tmp_path: Path
) -> None:
    sized = {"data.name": "synthetic", "data.size": 140, "train.epochs": 2}
    assert mnist("runs", "show", "mlp-0001", "--json").json["config"] == sized
    swept = mnist("runs", "show", "mlp-sweep-0001", "--json").json["config"]
    assert swept == sized | {"optimizer.lr": [1e-4, 1e-2], "train.seed": [0, 1]}
    config = configs.load("cnn", ["optimizer.momentum=0.5", "model.name=cnn"]).config
    (trained / "mlp-0001" / "config.yaml").write_text(configs.dump(config))
    line = next(x for x in mnist("runs", "show", "mlp-0001").out.splitlines() if "config " in x)
    assert {"model cnn", "optimizer sgd", "momentum 0.5"} <= set(line[9:].split(", "))


# ----------------------------------------------------------------------------- notes, tags, removal


@pytest.mark.usefixtures("trained")
def test_notes_and_tags_are_shown_and_outlive_a_resume(
    mnist: Mnist, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS")  # else they may wrap
    assert mnist("runs", "note", "mlp-0001", "promising").code == 0
    assert mnist("runs", "tag", "mlp-0001", "good", "old").code == 0
    assert mnist("runs", "tag", "mlp-0001", "good", "new").code == 0
    assert mnist("runs", "tag", "mlp-0001", "old", "--remove").code == 0
    assert mnist("resume", "mlp-0001", "--epochs", "3").code == 0
    for out in (mnist("runs", "list").out, mnist("runs", "show", "mlp-0001").out):
        assert {"promising", "good", "new"} <= set(out.split())
        assert "old" not in out.split()
    mnist("runs", "note", "mlp-0001", "")
    assert "promising" not in mnist("runs", "list").out


@pytest.mark.usefixtures("trained")
@pytest.mark.parametrize(
    "argv",
    [
        ["note", "mlp-0001", "\x1b[31mred"],
        ["note", "mlp-0001", "two\nlines"],
        ["note", "mlp-0001", "x" * 1001],
        ["tag", "mlp-0001", "two words"],
        ["tag", "mlp-0001", "\u202e"],
        ["note", "nothing", "x"],
    ],
    ids=repr,
)
def test_what_is_no_text_is_refused(argv: list[str], mnist: Mnist, trained: Path) -> None:
    before = (trained / "mlp-0001" / "meta.json").read_text()
    assert mnist("runs", *argv).code == 2
    assert (trained / "mlp-0001" / "meta.json").read_text() == before


@pytest.mark.parametrize(("answer", "code"), [("yes\n", 0), ("n\n", 1), ("", 1)])
def test_rm_asks(
    answer: str, code: int, mnist: Mnist, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(answer))
    ended = mnist("runs", "rm", "mlp-0001", "mlp-sweep-0001")
    assert (ended.code, "mlp-0001" in ended.err) == (code, True)
    assert [*trained.iterdir()] == [] if code == 0 else len([*trained.iterdir()]) == 2


def test_rm_leaves_what_links_lead_to(mnist: Mnist, trained: Path, tmp_path: Path) -> None:
    kept = shutil.copytree(trained / "mlp-0001", tmp_path / "kept")
    (trained / "mlp-0001" / "out").symlink_to(kept)
    (trained / "mlp-0002").symlink_to(trained / "mlp-sweep-0001")
    assert mnist("runs", "rm", "--yes", "mlp-0001").code == 0
    assert (kept / "best.pt").is_file()
    assert mnist("runs", "rm", "--yes", "mlp-0002").code == 2
    assert (trained / "mlp-sweep-0001" / "best.pt").is_file()


@pytest.mark.parametrize("name", ["mlp-sweep-0001/trials/000", "project", "mlp-0001/best.pt", "x"])
def test_rm_refuses_what_is_no_run_of_its_own_and_then_removes_nothing(
    name: str, mnist: Mnist, trained: Path
) -> None:
    (trained / "project").mkdir()
    (trained / "project" / "config.yaml").write_text("model: mlp\n")
    before = sorted(trained.rglob("*"))
    assert mnist("runs", "rm", "--yes", "mlp-0001", name).code == 2
    assert sorted(trained.rglob("*")) == before


@pytest.mark.parametrize("argv", [["rm", "--yes"], ["note", "x"], ["tag", "x"]], ids=" ".join)
def test_what_trains_is_left_alone(argv: list[str], mnist: Mnist, trained: Path) -> None:
    name = "mlp-sweep-0001"
    with store.held(RunDirectory(trained / name)):
        ended = mnist("runs", argv[0], name, *argv[1:])
    assert (ended.code, "is being trained" in ended.err) == (1, True)
    assert (trained / name / "best.pt").is_file()


# ----------------------------------------------------------------------------------------- compare


def given_sweep(root: Path, name: str, overrides: list[str], accuracies: list[float]) -> None:
    """A finished sweep over seeds with these accuracies."""
    config = configs.load("mlp", overrides).config
    seeds = tuple(range(len(accuracies)))
    path = root / name
    path.mkdir(parents=True)
    swept = config.model_copy(update={"sweep": {"train.seed": seeds}})
    (path / "sweep.yaml").write_text(configs.dump(swept))
    trials = [
        {"run": f"trials/{n:03d}", "status": "finished", "train.seed": n}
        | {"val/loss": 1 - acc, "val/acc": acc, "seconds": 1.0}
        for n, acc in enumerate(accuracies)
    ]
    best = trials[accuracies.index(max(accuracies))]
    content = {"sweep": name, "status": "finished", "trials": trials, "best": best}
    (path / "summary.json").write_text(json.dumps(content))
    (path / "meta.json").write_text('{"status": "finished"}')


def test_compare_says_which_means_can_be_told_apart(
    mnist: Mnist, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "runs"
    given_sweep(root, "a", ["model.width=64"], [0.95, 0.96, 0.97])
    given_sweep(root, "b", ["optimizer.lr=0.5"], [0.951, 0.961, 0.972])
    given_sweep(root, "c", [], [0.5, 0.51, 0.52])
    given_sweep(root, "d", [], [0.7, 0.7])
    names = ["a", "b", "c", "d"]
    document = mnist("runs", "compare", *names, "--json").json
    found = {row["name"]: row["verdict"] for row in document["runs"]}
    assert found == {"a": "tied", "b": "winner", "c": "worse", "d": "not judged"}
    assert document["runs"][0]["val/acc"] == pytest.approx(0.96)
    half = 4.302653 * 0.01 / 3**0.5  # the t-interval of three
    assert document["runs"][0]["ci95_half_width"] == pytest.approx(half, rel=1e-5)
    assert set(document["differs"]) == {"model.width", "optimizer.lr"}
    assert document["differs"]["model.width"] == [64, 32, 32, 32]
    lines = [line.split() for line in mnist("runs", "compare", *names).out.splitlines()]
    marks = {line[1]: line[0] for line in lines if line[:1] in (["="], ["★"])}
    assert marks.items() >= {"a": "=", "b": "★"}.items()
    assert document["plot"] is None  # as no epochs are there to draw


def test_settings_that_come_with_another_model_are_no_differences(
    mnist: Mnist, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    other = shutil.copytree(trained / "mlp-0001", trained / "cnn-0001")
    config = configs.load("cnn", ["model.channels=[4,4]", "optimizer=adam"]).config
    (other / "config.yaml").write_text(configs.dump(config))
    differs = mnist("runs", "compare", "mlp-0001", "cnn-0001", "--json").json["differs"]
    assert differs["model.name"] == ["mlp", "cnn"]
    assert differs["model.channels"] == [None, [4, 4]]
    assert "model.activation" not in differs
    assert "optimizer.betas" not in differs


def test_compare_and_plot_draw_the_curves_of_all_into_one_picture(
    mnist: Mnist, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.axes import Axes

    monkeypatch.chdir(tmp_path)
    drawn: list[str] = []
    plot = Axes.plot

    def spy(self: Axes, *args: Any, **options: Any) -> Any:
        drawn.append(str(options.get("label")))
        return plot(self, *args, **options)

    monkeypatch.setattr(Axes, "plot", spy)
    names = ["mlp-0001", "mlp-sweep-0001"]
    assert "curves: compare.png" in mnist("runs", "compare", *names).out
    assert set(drawn) == set(names)
    assert mnist("plot", *names, "--out", "two.png").out == "two.png\n"
    assert Path("two.png").read_bytes()[1:4] == b"PNG"
    assert mnist("runs", "compare", names[0]).code == 2
    assert mnist("plot", *names, "--out", "two.pdf").code == 2
    assert "not judged" in mnist("runs", "compare", *names).out
