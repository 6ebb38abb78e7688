"""Configs and names from anyone: used, or refused in a sentence; nothing is written elsewhere."""

import os
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mnist_cli import config as configs
from mnist_cli.config import ConfigError, Flag
from mnist_cli.runs import store
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
    return {path.name for path in folder.glob("*")}


# ------------------------------------------------------------------------------------- configs


def bomb() -> str:
    """Thirty lines that would be 9^30 values, if what they say were done."""
    lines = [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30)]
    return "\n".join(["a0: &a0 lol", *lines])


# What it is, and a word of what is said of it.
HOSTILE: dict[str, tuple[str | bytes, str]] = {
    "a tag": ("model: !!python/object/apply:os.system ['touch ran']\n", "tags"),
    "a tag's handle": ("%TAG ! tag:yaml.org,2002:python/\n---\na: !name:os.system\n", "tags"),
    "an alias of itself": ("model: &m [*m]\n", "anchors"),
    "laughs": (bomb(), "anchors"),
    "deep lists": ("a: " + "[" * 10_000 + "]" * 10_000, "deep"),
    "deep mappings": ("{a: " * 10_000 + "}" * 10_000, "deep"),
    "deep blocks": ("\n".join(" " * n + "a:" for n in range(700)), "deep"),
    "5 MB": ("# five megabytes\n" * 310_000, "300,000 bytes"),
    "latin-1": ("name: café\n".encode("latin-1"), "0xe9"),
    "UTF-16": ("model: mlp\n".encode("utf-16"), "UTF-8"),
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
        started = time.process_time()
        ended = mnist(*argv, "x.yaml")
        seconds = time.process_time() - started
        assert (ended.code, ended.out) == (2, "")
        assert what in ended.err
        assert "x.yaml" in ended.err
        assert len(ended.err) < 30_000
        assert ended.err.replace("\n", "").isprintable()
        assert seconds < 10
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
    assert ended.err.startswith(f"{override[:20]}")
    assert len(ended.err) < 2_000
    assert tree(tmp_path) == {"work"}


# --------------------------------------------------------------------------------------- names

NAMES = [
    "..", ".", "../x", "../../x", "/x", "/tmp/x", "a/b", "a/../b", "a\\b", "..\\x", "C:\\x", "C:x",
    "~", "~root", ".hidden", "-x", "_x", "a.", "a ", " a", "a b", "a\tb", "a.b", "é", "1\u0663",
    "nul.txt", "x" * 65, "x" * 300, "a\x1b[2Jb", "a\nb", "a\n", "a\r", "a\0b", "a\x7f", "\u202eb",
    "", " ", "$(touch ran)", "`touch ran`", "a;b", "*", "a\ud800",
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


# ------------------------------------------------------------------------------ whatever is typed

names = st.one_of(
    st.text(max_size=80),
    st.text(st.sampled_from(list("a1-_./\\ ~\0\n:")), max_size=12),
    st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", fullmatch=True),
    st.sampled_from(NAMES),
)


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


@settings(deadline=None)
@given(file=names.filter(can_be_a_file))
def test_whatever_a_file_is_called_its_runs_have_a_name(file: str) -> None:
    with tempfile.TemporaryDirectory() as own:
        config = Path(own, file)
        config.write_text("model: cnn\n")
        loaded = configs.load(str(config)).config
        assert configs.load_text(configs.dump(loaded), "config.yaml").name == loaded.name
        assert loaded.name
        assert store.NAME.fullmatch(loaded.name)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("$(touch ran).yaml", "touch-ran-"),
        ("...yaml", "config"),
        ("-rf.yaml", "rf"),
        ("a\nb\x1b.yaml", "a-b-"),
    ],
)
def test_a_whole_run_stays_where_runs_are(
    mnist: Mnist, tmp_path: Path, file: str, name: str
) -> None:
    Path(file).write_text("model: {name: mlp, width: 2}\n")
    assert mnist("train", f"--config={file}", *SMALL).code == 0
    assert mnist("sweep", f"--config={file}", *SMALL, "--lrs", "1e-2,1e-3").code == 0
    there = {str(path.relative_to(tmp_path)) for path in tmp_path.glob("*/*")}
    assert there == {f"work/{file}", f"runs/{name}-0001", f"runs/{name}-sweep-0001"}
