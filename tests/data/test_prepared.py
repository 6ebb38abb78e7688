"""The prepared data: made once, checked at every reading against what is not in it itself."""

import contextlib
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mnist_cli.data import prepared
from mnist_cli.data.catalog import DATASETS, FIELDS, DatasetSpec
from mnist_cli.errors import DataError
from tests.conftest import Mnist
from tests.data.tiny import ARRAYS, BY_CONTENT, BY_PACKED, PACKED, flipped, no_report, write

CONTENT = b"".join(getattr(ARRAYS, field).tobytes() for field in FIELDS)


@pytest.fixture(autouse=True)
def _tiny(data_dir: Path) -> None:
    """In every test there is an empty data directory, and the data set `tiny`."""


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MNIST_DATA_DIR", str(tmp_path / "x"))
    assert prepared.data_dir() == tmp_path / "x"
    monkeypatch.delenv("MNIST_DATA_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert prepared.data_dir() == tmp_path / "cache" / "mnist"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert prepared.data_dir().is_relative_to(Path.home())


def test_prepared_once_and_loaded_since(data_dir: Path) -> None:
    assert prepared.find("tiny") is None
    raw = write(data_dir / "raw", PACKED)
    for path in [None, *raw.iterdir()]:
        arrays = prepared.prepare("tiny", report=no_report)
        assert arrays.sha256 == ARRAYS.sha256
        arrays.train_images[:] = 0  # writable, and the caller's own
        if path:
            path.unlink()
    assert prepared.find("tiny") == data_dir / "tiny.prepared"
    assert names(data_dir) == {".tiny.lock", "raw", "tiny.prepared"}


def test_fetch_from_a_folder(tmp_path: Path) -> None:
    folder = write(tmp_path / "mine", PACKED)
    path = prepared.fetch("tiny", source_dir=folder, report=no_report)
    assert path == prepared.find("tiny")
    reports: list[str] = []
    prepared.fetch("tiny", source_dir=tmp_path / "none", report=reports.append)
    assert reports == ["Tiny is prepared already; --force prepares it anew"]
    with pytest.raises(DataError, match="no files of Tiny in"):
        prepared.fetch("tiny", source_dir=tmp_path / "none", force=True, report=no_report)
    assert prepared.verify("tiny")


@pytest.mark.parametrize("spec", [BY_CONTENT, BY_PACKED], ids=["pinned", "recorded"])
@pytest.mark.parametrize("damage", [flipped, lambda data: data[:-1], lambda data: data + b"\0"])
def test_a_damaged_file_exits_4_and_its_hint_mends_it(
    spec: DatasetSpec, damage: Callable[[bytes], bytes], mnist: Mnist, data_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setitem(DATASETS, "tiny", spec)
    write(data_dir, PACKED)
    assert mnist("data", "fetch", "tiny").code == 0
    path = data_dir / "tiny.prepared"
    path.write_bytes(damage(path.read_bytes()))
    for command in ("verify", "fetch"):
        ended = mnist("data", command, "tiny")
        assert (ended.code, ended.out) == (4, "")
        error, hint = ended.err.splitlines()
        assert error.startswith(f"error: {path} is damaged")
        assert "`mnist data fetch tiny --force`" in hint
    assert mnist("data", "fetch", "tiny", "--force").code == 0
    assert path.read_bytes() == CONTENT


def test_only_published_sums_verify(
    mnist: Mnist, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a data set's cache says of itself, or a record beside it, is no published sum."""
    write(data_dir, PACKED)
    mnist("data", "fetch", "tiny")
    assert mnist("data", "verify").out == "tiny: verified\n"
    monkeypatch.setitem(DATASETS, "tiny", BY_PACKED)
    assert mnist("data", "verify", "tiny").code == 4  # there is no record of it
    mnist("data", "fetch", "tiny")
    ended = mnist("data", "verify")
    assert ended.code == 0
    assert "verified" not in ended.out
    assert "as it was when it was fetched" in ended.out


def test_what_a_former_version_wrote_is_read(data_dir: Path) -> None:
    """It began with a line that names a sum, which is not what the content is held against."""
    path = data_dir / "tiny.prepared"
    header = f"mnist-cli prepared 1 tiny {ARRAYS.sha256}\n".encode()
    path.write_bytes(header + CONTENT)
    assert prepared.prepare("tiny", report=no_report).sha256 == ARRAYS.sha256
    path.write_bytes(header + bytes(len(CONTENT)))
    with pytest.raises(DataError, match="is damaged"):
        prepared.verify("tiny")


def test_what_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="Tiny is not in") as caught:
        prepared.verify("tiny")
    assert caught.value.hint == "run `mnist data fetch tiny`"
    (tmp_path / "file").touch()
    monkeypatch.setenv("MNIST_DATA_DIR", str(tmp_path / "file" / "data"))
    with pytest.raises(DataError, match="cannot be written to") as caught:
        prepared.prepare("tiny", report=no_report)
    assert "MNIST_DATA_DIR" in str(caught.value.hint)


# ------------------------------------------------------------------------- several processes

FETCHER = """
    import os, sys, time
    from pathlib import Path
    from mnist_cli.data import prepared, sources
    from mnist_cli.data.catalog import DATASETS
    from tests.data.tiny import ARRAYS, BY_CONTENT
    log, seconds, stop = sys.argv[1:]
    def fetch(spec, folder, report):
        with Path(log).open("a") as file:
            file.write("fetched\\n")
        time.sleep(float(seconds))
        return ARRAYS
    def hang(handle):
        Path(log).with_name("half").touch()
        time.sleep(60)
    sources.fetch = fetch
    if stop == "half-way":
        os.fsync = hang
    DATASETS["tiny"] = BY_CONTENT
    print(prepared.prepare("tiny", report=lambda _: None).sha256)
    """


@contextlib.contextmanager
def fetchers(
    count: int, log: Path, seconds: float, stop: str = "no"
) -> Iterator[list["subprocess.Popen[str]"]]:
    command = [sys.executable, "-c", textwrap.dedent(FETCHER), str(log), str(seconds), stop]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    processes = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(count)
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def test_of_several_processes_at_once_one_fetches(tmp_path: Path, data_dir: Path) -> None:
    with fetchers(4, tmp_path / "log", 1) as processes:
        outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert outputs == [f"{ARRAYS.sha256}\n"] * 4
    assert (tmp_path / "log").read_text() == "fetched\n"
    assert names(data_dir) == {".tiny.lock", "tiny.prepared"}


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is POSIX's")
@pytest.mark.parametrize("stop", ["fetching", "half-way"])
def test_when_the_fetcher_is_killed_the_next_goes_on(
    tmp_path: Path, data_dir: Path, stop: str
) -> None:
    log, mark = tmp_path / "log", tmp_path / ("log" if stop == "fetching" else "half")
    with fetchers(1, log, 60 if stop == "fetching" else 0, stop) as (first,):
        end = time.monotonic() + 20
        while not mark.exists():
            assert time.monotonic() < end
            time.sleep(0.02)
        with fetchers(1, log, 0) as (waiting,):
            time.sleep(0.2)
            first.kill()
            assert waiting.communicate(timeout=60)[0] == f"{ARRAYS.sha256}\n"
    assert log.read_text() == "fetched\n" * 2
    assert names(data_dir) == {".tiny.lock", "tiny.prepared"}
