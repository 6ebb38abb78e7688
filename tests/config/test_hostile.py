"""Files and names from anyone: used, or refused in a sentence; nothing is written elsewhere."""

import os
import tempfile
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


# What a file holds, and a word of what is said of it.
HOSTILE: dict[str, tuple[bytes, str]] = {
    "a tag": (b"model: !!python/object/apply:os.system ['touch ran']\n", "tags"),
    "5 MB": (b"# five megabytes\n" * 310_000, "300,000 bytes"),
    "latin-1": ("name: café\n".encode("latin-1"), "0xe9"),
    "UTF-16": ("model: mlp\n".encode("utf-16"), "UTF-8"),
    "a long number": (b"train: {seed: " + b"9" * 100_000 + b"}\n", "train.seed"),
    "a large number": (b"train: {epochs: " + b"9" * 40 + b"}\nmodle: 1\n", "modle"),
    "very many problems": (b"model: {hidden: [" + b"0," * 11_000 + b"]}", "... and 10900 more"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_config_is_refused_and_nothing_is_run(
    mnist: Mnist, tmp_path: Path, kind: str
) -> None:
    content, what = HOSTILE[kind]
    Path("x.yaml").write_bytes(content)
    ended = mnist("train", "--config", "x.yaml")
    assert (ended.code, ended.out) == (2, "")
    assert what in ended.err
    assert "x.yaml" in ended.err
    assert len(ended.err) < 30_000
    assert tree(tmp_path) == {"work", "work/x.yaml"}


@pytest.mark.parametrize(
    "name",
    ["folder", "pipe", "/dev/zero", "loop", "x" * 300, "../" * 2000, "a\x1b[2Jb", ""],
    ids=ascii,
)
def test_what_is_no_config_file_is_not_opened(mnist: Mnist, name: str) -> None:
    Path("folder").mkdir()
    os.mkfifo("pipe")
    Path("loop").symlink_to("loop")
    ended = mnist("train", "--config", name)
    assert (ended.code, ended.out) == (2, "")
    assert "config" in ended.err
    assert "\x1b" not in ended.err


# --------------------------------------------------------------------------------------- names

NAMES = [
    "..", ".", "../x", "/x", "a/b", "a\\b", "C:x", "~", ".hidden", "-x", "_x", "a.", "a ", " a",
    "a b", "a.b", "é", "1\u0663", "x" * 65, "a\x1b[2Jb", "a\nb", "a\n", "a\0b", "\u202eb", "", " ",
    "$(touch ran)", "*", "a\ud800",
]  # fmt: skip
names = st.one_of(
    st.text(max_size=80),
    st.text(st.sampled_from(list("a1-_./\\ ~\0\n:")), max_size=12),
    st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", fullmatch=True),
)


def test_a_name_that_is_none_is_refused() -> None:
    for name in NAMES:
        with pytest.raises(ConfigError, match="--name"):
            configs.load("mlp", flags=[Flag("--name", "name", name)])
    longest = configs.load("mlp", flags=[Flag("--name", "name", "x" * 64)]).config.name
    assert store.NAME.fullmatch(f"{longest}-imported")


@settings(deadline=None, max_examples=50)
@given(file=names.filter(lambda name: name not in ("", ".", "..") and not {*"/\0"} & {*name}))
def test_whatever_a_file_is_called_its_runs_have_a_name(file: str) -> None:
    with tempfile.TemporaryDirectory() as own:
        config = Path(own, file)
        try:
            config.write_text("model: cnn\n")
        except (OSError, UnicodeEncodeError):  # nothing can be called that here
            return
        loaded = configs.load(str(config)).config
        assert configs.load_text(configs.dump(loaded), "config.yaml").name == loaded.name
        assert store.NAME.fullmatch(str(loaded.name))


@pytest.mark.parametrize(
    ("file", "name"),
    [("$(touch ran).yaml", "touch-ran-"), ("...yaml", "config"), ("a\nb\x1b.yaml", "a-b-")],
)
def test_a_run_stays_where_runs_are(mnist: Mnist, tmp_path: Path, file: str, name: str) -> None:
    Path(file).write_text("model: {name: mlp, width: 2}\n")
    assert mnist("sweep", f"--config={file}", *SMALL, "--lrs", "1e-2,1e-3").code == 0
    assert children(tmp_path / "work") == {file}
    assert children(tmp_path / "runs") == {f"{name}-sweep-0001"}
