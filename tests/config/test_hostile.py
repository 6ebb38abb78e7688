"""Configs and names from anyone: used, or refused in a sentence; nothing is written elsewhere."""

import os
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mnist_cli import config as configs
from mnist_cli.config import ConfigError, Flag
from mnist_cli.errors import UsageError
from mnist_cli.runs import store
from mnist_cli.runs.metrics import MetricsLog
from mnist_cli.runs.run import write_json
from tests.conftest import Mnist

SMALL = ("data={name: synthetic, size: 70}", "model.width=2", "--epochs", "1")


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory: empty, and not the one that holds `runs` and `data`."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def tree(folder: Path) -> set[str]:
    """All that is in a folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def children(folder: Path) -> set[str]:
    """The names of what is directly in a folder, if there is one."""
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


# ------------------------------------------------------------------------------------- configs


def bomb(first: str, each: str) -> str:
    """Thirty lines that would be 9^30 values, if what they say were done."""
    lines = [f"a0: &a0 {first}"]
    lines += [f"a{n}: &a{n} " + each.format(", ".join([f"*a{n - 1}"] * 9)) for n in range(1, 30)]
    return "\n".join(lines) + "\n"


# What it is, and a word of what is said of it.
HOSTILE: dict[str, tuple[str | bytes, str]] = {
    "a tag": ("model: !!python/object/apply:os.system ['touch ran']\n", "tags"),
    "a local tag": ("model: !mlp {}\n", "tags"),
    "a binary tag": ("name: !!binary aGk=\n", "tags"),
    "a tag's handle": ("%TAG ! tag:yaml.org,2002:python/\n---\na: !name:os.system\n", "tags"),
    "an alias of itself": ("model: &m [*m]\n", "anchors"),
    "laughs": (bomb("[lol]", "[{}]"), "anchors"),
    "merges": (bomb("{x: 1}", "{{<<: [{}]}}"), "anchors"),
    "deep lists": ("a: " + "[" * 10_000 + "]" * 10_000, "levels deep"),
    "deep mappings": ("{a: " * 10_000 + "}" * 10_000, "levels deep"),
    "deep dashes": ("- " * 10_000 + "x", "levels deep"),
    "deep keys": ("? " * 10_000, "levels deep"),
    "deep blocks": ("\n".join(" " * n + "a:" for n in range(700)), "levels deep"),
    "5 MB": ("# five megabytes\n" * 310_000, "300,000 bytes"),
    "many values": (f"a: [{'1,' * 100_000}]", "12000 values"),
    "two documents": ("model: mlp\n---\nmodel: cnn\n", "another document"),
    "NUL": ("model: mlp\0\n", "U+0000"),
    "an escape": ("name: \x1b[2J\n", "U+001B"),
    "latin-1": ("name: café\n".encode("latin-1"), "0xe9"),
    "UTF-16": ("model: mlp\n".encode("utf-16"), "UTF-8"),
    "UTF-16, no mark": ("model: mlp\n".encode("utf-16-be"), "U+0000"),
    "UTF-32": ("model: mlp\n".encode("utf-32"), "UTF-8"),
    "a list": ("[model, mlp]\n", "must be sections"),
    "a pickle": (b"\x80\x04}q\x00.", "UTF-8"),
    "a long number": ("train: {seed: " + "9" * 100_000 + "}\n", "train.seed"),
    "a large number": (f"train: {{epochs: {'9' * 40}}}\nmodle: 1\n", "modle"),
    "very many problems": (f"model: {{hidden: [{'0,' * 11_000}]}}", "... and 10900 more"),
}


@pytest.mark.parametrize("kind", list(HOSTILE))
def test_a_hostile_config_is_refused_at_once_and_nothing_is_run(
    mnist: Mnist, tmp_path: Path, kind: str
) -> None:
    content, what = HOSTILE[kind]
    path = tmp_path / "work" / "x.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    before = tree(tmp_path)
    for argv in (("train", "--config"), ("config", "check")):
        tracemalloc.start()
        started = time.process_time()
        ended = mnist(*argv, "x.yaml")
        seconds = time.process_time() - started
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert (ended.code, ended.out) == (2, "")
        assert what in ended.err
        assert "x.yaml" in ended.err
        assert len(ended.err) < 30_000
        assert ended.err.replace("\n", "").isprintable()
        assert seconds < 10  # with the tracing of memory, which is most of it
        assert peak < 100e6
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    "name",
    ["folder", "pipe", "/dev/zero", "loop", "x" * 300, "../" * 2000, "a\x1b[2Jb", ""],
    ids=ascii,
)
def test_what_is_no_config_file_is_not_opened(mnist: Mnist, tmp_path: Path, name: str) -> None:
    Path("folder").mkdir()
    os.mkfifo("pipe")
    Path("loop").symlink_to("loop")
    before = tree(tmp_path)
    ended = mnist("train", "--config", name)
    assert (ended.code, ended.out) == (2, "")
    assert "config" in ended.err
    assert "\x1b" not in ended.err
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    "override",
    ["model=!!python/name:os.system", "model=" + "[" * 10_000, "model=&a [*a]", "a" * 10_000],
    ids=lambda text: text[:20],
)
def test_a_hostile_override_is_refused(mnist: Mnist, tmp_path: Path, override: str) -> None:
    ended = mnist("train", override)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith(f"command line: {override[:20]}")
    assert len(ended.err) < 2_000
    assert tree(tmp_path) == {"work"}


# --------------------------------------------------------------------------------------- names

NAMES = [
    "..", ".", "../x", "../../x", "/x", "/tmp/x", "a/b", "a/../b", "a\\b", "..\\x", "C:\\x", "C:x",
    "~", "~root", ".hidden", "-x", "_x", "a.", "a ", " a", "a b", "a\tb", "a.b", "é", "1\u0663",
    "CON", "con", "NUL", "nul", "Aux", "prn", "com1", "COM9", "LPT0", "nul.txt",
    "x" * 65, "x" * 300, "a\x1b[2Jb", "a\nb", "a\n", "a\r", "a\0b", "a\x7f", "\u202eb", "", " ",
    "$(touch ran)", "`touch ran`", "a;b", "*", "a\ud800",
]  # fmt: skip


@pytest.mark.parametrize("command", ["train", "sweep"])
def test_a_name_that_is_none_is_refused(mnist: Mnist, tmp_path: Path, command: str) -> None:
    for name in NAMES:
        ended = mnist(command, *SMALL, f"--name={name}")
        assert (ended.code, ended.out) == (2, "")
        assert "--name" in ended.err
        assert ": name: " in ended.err
        assert "\x1b" not in ended.err
    assert tree(tmp_path) == {"work"}


@pytest.mark.parametrize(
    "name", [n for n in NAMES if "\0" not in n and "\ud800" not in n], ids=ascii
)
def test_a_run_that_cannot_be_is_not_found(mnist: Mnist, tmp_path: Path, name: str) -> None:
    (store.create(tmp_path / "runs", "mlp").path / "config.yaml").write_text("{}")
    before = tree(tmp_path)
    for command in (("runs", "show"), ("plot",)):
        ended = mnist(*command, "--", name)
        assert (ended.code, ended.out) == (2, "")
        assert ended.err.startswith(("error: no run ", "error: the name of a run is missing"))
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
    assert [row["name"] for row in mnist("runs", "list", "--json").json] == ["mlp-0001", "same"]
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


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    run = store.create(tmp_path / "runs", "mlp")
    writes: dict[str, Callable[[], object]] = {
        "metrics.jsonl": lambda: MetricsLog(run.metrics_path).append({"epoch": 1}),
        "meta.json": lambda: write_json(run.path / "meta.json", {}),
        "summary.json": lambda: write_json(run.path / "summary.json", {}),
    }
    for name, write in writes.items():
        (run.path / name).symlink_to(victim)
        if name == "metrics.jsonl":
            with pytest.raises(UsageError, match=r"metrics\.jsonl is a link") as caught:
                write()
            assert caught.value.hint
        else:  # replaced whole, and with it the link
            write()
            assert not (run.path / name).is_symlink()
        assert victim.read_text() == "precious"


def test_no_picture_is_drawn_through_a_link(mnist: Mnist, tmp_path: Path) -> None:
    run = store.create(tmp_path / "runs", "mlp")
    (run.path / "config.yaml").write_text("model: mlp\n")
    (run.path / "plots").rmdir()
    (tmp_path / "elsewhere").mkdir()
    (run.path / "plots").symlink_to(tmp_path / "elsewhere")
    ended = mnist("plot", "mlp-0001")
    assert ended.code == 2
    assert "plots is a link, through which nothing is written" in ended.err
    assert not list((tmp_path / "elsewhere").iterdir())


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


# ------------------------------------------------------------------------------ whatever is typed

names = st.one_of(
    st.text(max_size=80),
    st.text(st.sampled_from(list("a1-_./\\ ~\0\n:")), max_size=12),
    st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", fullmatch=True),
    st.sampled_from(NAMES),
)


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A folder for examples, each with one of its own."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def leave_everything(run: store.RunDirectory) -> None:
    """Writes all that a run writes."""
    (run.path / "config.yaml").write_text("{}")
    write_json(run.path / "meta.json", {"status": "running"})
    write_json(run.path / "summary.json", {"best": None})
    MetricsLog(run.metrics_path).append({"epoch": 1})
    MetricsLog(store.create_trial(run, 0).metrics_path).append({"epoch": 1})


@settings(deadline=None, max_examples=60)
@given(name=names)
def test_whatever_the_name_nothing_is_written_outside_the_runs_directory(
    place: Path, name: str
) -> None:
    with tempfile.TemporaryDirectory(dir=place) as own:
        root = Path(own, "runs")
        try:
            run = store.create(root, name)
        except UsageError:
            assert not children(Path(own))
        else:
            leave_everything(run)
            assert children(Path(own)) == {"runs"}
            assert children(root) == {f"{name}-0001"}


@settings(deadline=None)
@given(name=names)
def test_whatever_is_typed_for_a_name_becomes_itself_or_an_error(name: str) -> None:
    flag = Flag("--name", "name", name)
    try:
        loaded = configs.load("mlp", flags=[flag])
    except ConfigError:
        with pytest.raises(ConfigError, match="--name"):  # and not of anything else
            configs.load("mlp", flags=[flag])
    else:
        assert loaded.config.name == name
        assert store.NAME.fullmatch(f"{name}-imported")


def can_be_a_file(name: str) -> bool:
    """Whether a file can be called that here."""
    try:
        return (
            name not in ("", ".", "..") and not set("/\0") & set(name) and len(name.encode()) < 200
        )
    except UnicodeEncodeError:
        return False


file_names = names.filter(can_be_a_file)


@settings(deadline=None)
@given(file=file_names)
def test_whatever_the_file_is_called_its_runs_are_in_the_runs_directory(
    place: Path, file: str
) -> None:
    with tempfile.TemporaryDirectory(dir=place) as own:
        config = Path(own, "configs", file)
        config.parent.mkdir()
        config.write_text("model: cnn\n")
        loaded = configs.load(str(config)).config
        again = configs.load_text(configs.dump(loaded), "config.yaml")
        assert again.name == loaded.name
        run = store.create(Path(own, "runs"), str(loaded.name))
        leave_everything(run)
        assert run.path.parent == Path(own, "runs")
        assert children(Path(own)) == {"configs", "runs"}


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("$(touch ran).yaml", "touch-ran-"),
        ("...yaml", "config"),
        ("-rf.yaml", "rf"),
        ("con.yaml", "config"),
        ("a\nb\x1b.yaml", "a-b-"),
    ],
)
def test_a_whole_run_stays_where_runs_are(
    mnist: Mnist, tmp_path: Path, file: str, name: str
) -> None:
    Path(file).write_text("model: {name: mlp, width: 2}\n")
    assert mnist("train", f"--config={file}", *SMALL).code == 0
    assert mnist("sweep", f"--config={file}", *SMALL, "--lrs", "1e-2,1e-3").code == 0
    assert children(tmp_path) == {"work", "runs"}
    assert children(tmp_path / "work") == {file}
    assert children(tmp_path / "runs") == {f"{name}-0001", f"{name}-sweep-0001"}
