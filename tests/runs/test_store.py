"""The runs directory: folders made race-free, files whole or not there, reading them back."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mnist_cli.data import durable
from mnist_cli.errors import UsageError
from mnist_cli.runs import store
from mnist_cli.runs.documents import new_meta, write_json
from mnist_cli.runs.metrics import REQUIRED, MetricsLog


def test_folders_are_numbered_and_numbers_do_not_depend_on_other_names(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    names = [store.create(root, name).name for name in ("mlp", "mlp", "mlp-sweep", "cnn", "mlp")]
    assert names == ["mlp-0001", "mlp-0002", "mlp-sweep-0001", "cnn-0001", "mlp-0003"]


def test_files_have_the_mode_that_open_would_give(tmp_path: Path) -> None:
    durable.replace(tmp_path / "a", b"")
    (tmp_path / "b").touch()
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


def record(epoch: int, loss: float) -> dict[str, float]:
    return dict.fromkeys(sorted(REQUIRED), 0.5) | {"epoch": epoch, "val/loss": loss}


def test_metrics_skip_a_torn_last_line(tmp_path: Path) -> None:
    run = store.create(tmp_path, "mlp")
    assert run.metrics() == []
    log = MetricsLog(run.metrics_path)
    log.append(record(1, 0.5))
    log.append(record(2, float("nan")))
    with (run.path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"epoch": 3, "val')
    assert str([(r["epoch"], r["val/loss"]) for r in run.metrics()]) == "[(1, 0.5), (2, nan)]"


@pytest.mark.parametrize("line", [b"{", b"\xff\xfe", b"[1]", b'{"epoch": 1}', b""])
def test_a_damaged_line_in_the_middle_is_named(tmp_path: Path, line: bytes) -> None:
    run = store.create(tmp_path, "mlp")
    MetricsLog(run.metrics_path).append(record(1, 0.5))
    durable.append(run.path / "metrics.jsonl", line + b"\n")
    with pytest.raises(UsageError, match=r"metrics\.jsonl: line 2 is not the record of an epoch"):
        run.metrics()


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", '{"best": 3}', '{"trials": [{}]}', '{"trials": 3}', '{"seconds": null}'),
        *('{"seconds": Infinity}', '{"best": {"val/loss": 1, "val/acc": "high"}}'),
        '{"trials": [{"val/loss": 1, "val/acc": 1, "../../x": 1}]}',
    ],
)
def test_a_damaged_summary_is_none(tmp_path: Path, text: str) -> None:
    run = store.create(tmp_path, "mlp")
    (run.path / "summary.json").write_text(text)
    write_json(run.path / "meta.json", {"status": "finished"})
    assert run.summary() == {}
    assert run.status() == "damaged"


def test_a_copied_folder_tells_its_own_name_and_place(tmp_path: Path) -> None:
    run = store.create(tmp_path, "mlp")
    (run.path / "config.yaml").write_text("{}")
    run.best.touch()
    write_json(
        run.path / "summary.json", {"run": "mlp-0001", "best": None, "checkpoint": str(run.best)}
    )
    moved = store.RunDirectory(run.path.rename(tmp_path / "renamed"))
    summary = moved.summary()
    assert (summary["run"], summary["checkpoint"]) == ("renamed", str(tmp_path / "renamed/best.pt"))


def test_json_files_are_json_whatever_is_measured(tmp_path: Path) -> None:
    run = store.create(tmp_path, "mlp")
    write_json(
        run.path / "summary.json", {"a": float("inf"), "b": [float("nan"), 1], "c": {"d": 2.5}}
    )
    text = (run.path / "summary.json").read_text()
    found = json.loads(text, parse_constant=pytest.fail)
    assert found == {"a": None, "b": [None, 1], "c": {"d": 2.5}}


def test_runs_are_found_by_name_or_path_oldest_first(tmp_path: Path) -> None:
    for name in ("b", "a"):
        run = store.create(tmp_path, name)
        (run.path / "config.yaml").write_text("{}")
        write_json(run.path / "meta.json", new_meta("running"))
    (tmp_path / "not-a-run").mkdir()
    assert [run.name for run in store.all_runs(tmp_path)] == ["b-0001", "a-0001"]
    assert store.find(tmp_path, "a-0001").path == tmp_path / "a-0001"
    assert store.find(Path("elsewhere"), str(tmp_path / "a-0001")).name == "a-0001"
    with pytest.raises(UsageError) as caught:
        store.find(tmp_path, "a-001")
    assert caught.value.hint == "did you mean a-0001, b-0001?"


def test_meta_holds_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    assert "hunter2" not in json.dumps(new_meta("running"))


def test_recording_the_commit_runs_nothing_that_the_repository_says(tmp_path: Path) -> None:
    def git(*argv: str) -> str:
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", *argv]
        return subprocess.check_output(command, cwd=tmp_path, text=True).strip()

    if not shutil.which("git"):
        pytest.skip("no git here")
    script = tmp_path / "evil.sh"
    script.write_text(f"#!/bin/sh\ntouch {tmp_path}/executed\n")
    script.chmod(0o755)
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "one")
    commit = git("rev-parse", "HEAD")
    (tmp_path / ".git" / "hooks" / "post-index-change").symlink_to(script)
    (tmp_path / ".gitattributes").write_text("* filter=evil\n")
    for key in ("core.fsmonitor", "filter.evil.clean", "core.pager", "diff.external"):
        git("config", key, str(script))
    git("config", "alias.rev-parse", f"!{script}")
    code = "from mnist_cli.runs.documents import new_meta; print(new_meta('running')['git'])"
    for folder, wanted in ((tmp_path, commit), (tmp_path.parent, "None")):
        said = subprocess.check_output([sys.executable, "-c", code], cwd=folder, text=True)
        assert said.strip() == wanted
    assert not (tmp_path / "executed").exists()
