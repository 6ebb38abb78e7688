"""Names and links from anyone: nothing is read or written where it does not belong."""

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings

from mnist_cli.errors import UsageError
from mnist_cli.runs import store
from mnist_cli.runs.documents import write_json
from mnist_cli.runs.metrics import MetricsLog
from tests.config.test_hostile import NAMES, SMALL, children, names, tree
from tests.conftest import Mnist


@pytest.fixture(autouse=True)
def _work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


@pytest.mark.parametrize(
    "name", [n for n in NAMES if "\0" not in n and "\ud800" not in n], ids=ascii
)
def test_a_run_that_cannot_be_is_not_found(mnist: Mnist, tmp_path: Path, name: str) -> None:
    (store.create(tmp_path / "runs", "mlp").path / "config.yaml").write_text("{}")
    before = tree(tmp_path)
    for command in (("runs", "show"), ("plot",)):
        ended = mnist(*command, "--", name)
        assert (ended.code, ended.out) == (2, "")
        assert ended.err.startswith("error: no run ")
        assert "hint: " in ended.err
        assert "\x1b" not in ended.err
    assert tree(tmp_path) == before


def test_a_name_does_not_lead_out_of_the_runs_directory(tmp_path: Path) -> None:
    """A path is one from here, and never one from there."""
    root = tmp_path / "runs"
    (store.create(root, "mlp").path / "config.yaml").write_text("{}")
    (store.create(tmp_path, "other").path / "config.yaml").write_text("{}")
    for name in ("../other-0001", "mlp-0001/../../other-0001", "../runs/mlp-0001"):
        assert (root / name / "config.yaml").exists()
        Path("elsewhere/deep").mkdir(parents=True, exist_ok=True)
        os.chdir("elsewhere/deep")
        with pytest.raises(UsageError, match="no run"):
            store.find(root, name)
        os.chdir(tmp_path / "work")
    assert store.find(root, "../other-0001").path.samefile(tmp_path / "other-0001")


# --------------------------------------------------------------------------------------- links


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A run that is not in the runs directory."""
    run = store.create(tmp_path / "outside", "mlp")
    (run.path / "config.yaml").write_text("model: mlp\n")
    return run.path


def test_a_link_out_of_the_runs_directory_is_no_run(
    mnist: Mnist, tmp_path: Path, outside: Path
) -> None:
    root = tmp_path / "runs"
    (store.create(root, "mlp").path / "config.yaml").write_text("model: mlp\n")
    (root / "linked").symlink_to(outside)
    (root / "deep").symlink_to(tmp_path / "outside")
    (root / "same").symlink_to("mlp-0001")
    before = tree(outside)
    for name in ("linked", "deep/mlp-0001", "linked/../linked/."):
        for command in (("runs", "show"), ("plot",)):
            ended = mnist(*command, name)
            assert ended.code == 2
            assert ended.err.count("\n") == 2
    ended = mnist("plot", "linked")
    assert f"{root / 'linked'} is a link that leads out of the runs directory" in ended.err
    assert f"give the folder itself: {outside}" in ended.err
    assert [row["name"] for row in mnist("runs", "list", "--json").json] == ["same", "mlp-0001"]
    assert mnist("eval", "--checkpoint", "best.pt").code == 5
    assert tree(outside) == before
    assert store.find(root, str(outside)).path == outside


def test_a_new_run_never_goes_through_a_link(tmp_path: Path, outside: Path) -> None:
    root = tmp_path / "runs"
    root.mkdir()
    (root / "mlp-0001").symlink_to(outside)
    (root / "mlp-0002").symlink_to(tmp_path / "nowhere")
    before = tree(tmp_path / "outside")
    run = store.create(root, "mlp")
    assert run.name == "mlp-0003"
    assert not run.path.is_symlink()
    assert tree(tmp_path / "outside") == before
    assert not (tmp_path / "nowhere").exists()


def test_pipes_and_folders_in_place_of_files_do_not_stop_a_listing(
    mnist: Mnist, tmp_path: Path
) -> None:
    run = store.create(tmp_path / "runs", "mlp")
    (run.path / "config.yaml").write_text("model: mlp\n")
    os.mkfifo(run.path / "meta.json")
    os.mkfifo(run.path / "metrics.jsonl")
    (run.path / "summary.json").mkdir()
    other = store.create(tmp_path / "runs", "cnn")
    os.mkfifo(other.path / "config.yaml")
    (other.path / "sweep.yaml").symlink_to("sweep.yaml")
    assert [row["name"] for row in mnist("runs", "list", "--json").json] == ["mlp-0001"]
    assert run.metrics() == []
    (run.path / "meta.json").unlink()
    (run.path / "meta.json").write_text("[" * 100_000)
    assert run.meta() == {}


def test_a_runs_directory_that_is_none_is_told(mnist: Mnist, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in ("x" * 300, str(tmp_path / "file"), "/dev/null"):
        ended = mnist("train", *SMALL, "--runs-dir", place)
        assert ended.code == 2
        assert "cannot make a run" in ended.err
    assert mnist("runs", "list", "--runs-dir", "x" * 300).code == 2
    assert tree(tmp_path) == {"work", "file"}


def test_a_path_that_is_too_long_is_the_users_to_mend(mnist: Mnist) -> None:
    ended = mnist("eval", "--checkpoint", "x" * 300)
    assert ended.code == 2
    assert ended.err.startswith("error: ")
    assert "too long" in ended.err


def leave_everything(run: store.RunDirectory) -> None:
    """Writes all that a run writes."""
    (run.path / "config.yaml").write_text("{}")
    write_json(run.path / "meta.json", {"status": "running"})
    write_json(run.path / "summary.json", {"best": None})
    MetricsLog(run.metrics_path).append({"epoch": 1})
    MetricsLog(store.create_trial(run, 0).metrics_path).append({"epoch": 1})


@settings(deadline=None, max_examples=30)
@given(name=names)
def test_whatever_the_name_nothing_is_written_outside_the_runs_directory(name: str) -> None:
    with tempfile.TemporaryDirectory() as own:
        root = Path(own, "runs")
        try:
            run = store.create(root, name)
        except UsageError:
            assert not children(Path(own))
        else:
            leave_everything(run)
            assert children(Path(own)) == {"runs"}
            assert children(root) == {f"{name}-0001"}
