"""A user's own images through the command line: what is read, what is refused, what is noticed."""

import json
import os
import pickle
import struct
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pytest
import torch
from PIL import Image

from mnist_cli.config.schema import FolderData, NpzData
from mnist_cli.data import own
from mnist_cli.data.dataset import load
from mnist_cli.errors import DataError
from tests.conftest import Ended, Mnist

CLASSES = ("ape", "bee", "cow")
Images = dict[str, np.ndarray]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative paths are of an empty folder."""
    monkeypatch.chdir(tmp_path)


def picture(label: int, number: int, height: int = 6, width: int = 5) -> np.ndarray:
    """Noise, with a bright bar where its label says."""
    pixels = np.random.default_rng([label, number]).integers(0, 60, (height, width, 3), np.uint8)
    pixels[label] += 180
    return pixels


def write_folder(place: Path, count: int = 10, classes: tuple[str, ...] = CLASSES) -> Path:
    """A folder of `count` PNGs per class."""
    for label, name in enumerate(classes):
        (place / name).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(picture(label, number)).save(place / name / f"{number}.png")
    return place


def arrays(train: int = 60, test: int = 12) -> Images:
    """What an `.npz` file holds: bars in grey, of three classes."""
    labels = {"train": np.arange(train) % 3, "test": np.arange(test) % 3}
    content = {f"y_{split}": found for split, found in labels.items()}
    for split, found in labels.items():
        images = [picture(label, n)[:, :, 0] for n, label in enumerate(found.tolist())]
        content[f"x_{split}"] = np.stack(images)
    return content


def show(mnist: Mnist, place: str = "mine", *more: str) -> Ended:
    return mnist("data", "show", "folder", "--path", place, *more)


def train(mnist: Mnist, *more: str) -> Ended:
    argv = ("train", "--config", "mlp", "data.name=folder", "data.path=mine", "--epochs", "30")
    return mnist(*argv, "--lr", "1e-2", "data.batch_size=8", *more)


def trained_with(run: str = "mlp-0001") -> Any:
    return json.loads(Path("runs", run, "meta.json").read_text())["data"]


# ------------------------------------------------------------------------------------- a folder


def test_a_folder_is_read_as_torchvision_reads_it(tmp_path: Path) -> None:
    datasets = pytest.importorskip("torchvision.datasets")
    place = write_folder(tmp_path / "mine" / "train", 4)
    write_folder(tmp_path / "mine" / "test", 2, CLASSES[1:])
    (place / "ape" / "more").mkdir()
    Image.fromarray(picture(0, 99)[:, :, 0]).save(place / "ape" / "more" / "grey.BMP")
    Image.fromarray(picture(1, 99)).convert("P").save(place / "bee" / "palette.png")
    alpha = Image.fromarray(picture(2, 99)).convert("RGBA")
    alpha.putalpha(100)
    alpha.save(place / "cow" / "alpha.webp", lossless=True)
    for path in ("ape/.hidden.png", "ape/notes.txt", ".git/x.png"):
        (place / path).parent.mkdir(exist_ok=True)
        (place / path).write_bytes(b"no picture")
    (place / "cow" / "loop").symlink_to(place, target_is_directory=True)
    (place / "elsewhere").symlink_to(tmp_path, target_is_directory=True)
    found = own.read(FolderData(name="folder", path=str(tmp_path / "mine")), lambda _: None)
    for path in ("cow/loop", "elsewhere", ".git/x.png", "ape/.hidden.png"):
        (place / path).unlink()
    (place / ".git").rmdir()
    oracle = datasets.ImageFolder(place)
    assert found.classes == tuple(oracle.classes) == CLASSES
    assert found.counts == (len(oracle), 0, 4) == (15, 0, 4)
    assert found.labels.tolist() == [*oracle.targets, 1, 1, 2, 2]
    for image, (expected, _) in zip(found.images[:15], oracle, strict=True):
        assert np.array_equal(image.transpose(1, 2, 0), np.asarray(expected))


def test_grey_size_and_depth(tmp_path: Path) -> None:
    place = write_folder(tmp_path / "mine", 5)
    deep = np.full((6, 5), 0xAB00, np.uint16)
    Image.fromarray(deep).save(place / "ape" / "0.png")
    turned = Image.fromarray(picture(0, 1, 5, 6))
    exif = Image.Exif()
    exif[0x0112] = 6  # its left side is the top
    turned.save(place / "ape" / "1.png", exif=exif)
    found = own.read(FolderData(name="folder", path=str(place), grey=True), lambda _: None)
    assert found.images.shape == (15, 1, 6, 5)
    assert np.unique(found.images[0]).tolist() == [0xAB]
    upright = np.asarray(turned.convert("L").transpose(Image.Transpose.ROTATE_270))
    assert np.array_equal(found.images[1, 0], upright)
    resized = own.read(FolderData(name="folder", path=str(place), size=(3, 8)), lambda _: None)
    assert resized.images.shape == (15, 3, 3, 8)
    expected = Image.fromarray(picture(1, 2)).resize((8, 3), Image.Resampling.BILINEAR)
    assert np.array_equal(resized.images[7].transpose(1, 2, 0), np.asarray(expected))


@pytest.mark.parametrize(
    ("given", "lengths"),
    [
        (("train", "val", "test"), (30, 30, 30)),
        (("train", "val"), (27, 30, 3)),
        (("train", "test"), (27, 3, 30)),
        (("train",), (24, 3, 3)),
        ((), (24, 3, 3)),
    ],
    ids=lambda value: "-".join(map(str, value)),
)
def test_splits_that_are_given_are_kept_and_others_drawn(
    tmp_path: Path, given: tuple[str, ...], lengths: tuple[int, ...]
) -> None:
    for number, split in enumerate(given or ("",)):
        write_folder(tmp_path / "mine" / split)
        for path in (tmp_path / "mine" / split).rglob("*.png"):
            Image.new("RGB", (1, 1), (number, int(path.stem), 0)).save(path)
    said: list[str] = []
    config = FolderData(name="folder", path=str(tmp_path / "mine"), batch_size=1)
    data = load(config, torch.device("cpu"), said.append)
    parts = [data.train, data.val, data.test]
    assert tuple(map(len, parts)) == lengths
    of_split = [{int(image[0]) for image in part.images} for part in parts]
    expected = [{given.index(split) if split in given else 0} for split in own.SPLITS]
    assert of_split == expected
    assert sum("drawn by data.seed" in text for text in said) == (len(given) < 3)
    again = load(config.model_copy(update={"seed": 1}), torch.device("cpu"), said.append)
    assert torch.equal(data.train.labels, again.train.labels) == (len(given) == 3)
    official = config.model_copy(update={"split": "official"})
    if "test" not in given:
        with pytest.raises(DataError, match=r"no test images.*data\.split"):
            load(official, torch.device("cpu"), said.append)
    else:
        data = load(official, torch.device("cpu"), said.append)
        assert len(data.train) == 30
        assert torch.equal(data.val.images, data.test.images)


def test_train_evaluate_and_predict(mnist: Mnist, tmp_path: Path) -> None:
    write_folder(tmp_path / "mine", 20)
    ended = train(mnist)
    assert ended.code == 0
    assert ended.err.count("a tenth of 60 training images, drawn by data.seed") == 1
    said = trained_with()
    assert (said["shape"], said["classes"]) == ([3, 6, 5], [*CLASSES])
    assert f"path: {tmp_path / 'mine'}" in Path("runs/mlp-0001/config.yaml").read_text()
    scored = mnist("eval", "--json")
    assert (scored.json["n"], scored.json["acc"], "note" in scored.err) == (6, 1.0, False)
    assert mnist("train", "--config", "runs/mlp-0001/config.yaml").code == 0
    assert trained_with("mlp-0002") == said
    # Another place of the same images is no change; and none at all is needed to predict.
    (tmp_path / "mine").rename("moved")
    assert "note" not in mnist("eval", "data.path=moved").err
    assert mnist("eval").code == DataError.exit_code
    (row,) = mnist("predict", "moved/bee/0.png", "--json").json
    assert (row["class"], [*row["probabilities"]]) == ("bee", [*CLASSES])


def test_sweep_and_resume(mnist: Mnist, tmp_path: Path) -> None:
    write_folder(tmp_path / "mine", 10)
    argv = ["sweep", "-c", "logistic", "data.name=folder", "data.path=mine", "--epochs", "2"]
    argv += ["--lrs", "1e-2", "--grid", "data.size=4,[5,6]", "--grid", "data.grey=true,false"]
    ended = mnist(*argv)
    assert (ended.code, ended.err.count("drawn by data.seed")) == (0, 1)
    trials = [f"logistic-sweep-0001/trials/00{n}" for n in range(4)]
    shapes = [trained_with(trial)["shape"] for trial in trials]
    assert shapes == [[1, 4, 4], [3, 4, 4], [1, 5, 6], [3, 5, 6]]
    assert mnist("resume", "logistic-sweep-0001", "--epochs", "3").code == 0
    Image.fromarray(picture(0, 77)).save("mine/ape/0.png")
    ended = mnist("resume", "logistic-sweep-0001", "--epochs", "4")
    assert (ended.code, "have changed" in ended.err) == (DataError.exit_code, True)


def test_a_run_does_not_go_on_with_other_images(mnist: Mnist, tmp_path: Path) -> None:
    write_folder(tmp_path / "mine", 10)
    mnist("train", "data.name=folder", "data.path=mine", "--epochs", "2")
    before = Path("mine/ape/0.png").read_bytes()
    Image.fromarray(picture(0, 77)).save("mine/ape/0.png")
    ended = mnist("resume", "mlp-0001", "--epochs", "3")
    assert (ended.code, f"{tmp_path / 'mine'}: the images have changed" in ended.err) == (4, True)
    assert "not those that it was trained with" in mnist("eval").err
    Path("mine/ape/0.png").write_bytes(before)
    assert mnist("resume", "mlp-0001", "--epochs", "3").code == 0
    (tmp_path / "mine" / "cow").rename("mine/elk")
    assert mnist("resume", "mlp-0001", "--epochs", "4").code == 4
    write_folder(tmp_path / "mine", 10, ("dog",))
    ended = mnist("eval")
    assert (ended.code, "in 4 classes" in ended.err) == (2, True)


def test_prepared_once_and_again_when_it_changed(
    mnist: Mnist, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = write_folder(tmp_path / "mine", 10)
    reads = "reading images 1 to"
    assert reads in show(mnist).err
    first = [path for path in Path("data").iterdir() if path.suffix == ".npz"]
    assert reads not in show(mnist).err

    def longer() -> None:
        Image.fromarray(picture(2, 50, 6, 5)).save(place / "cow" / "50.png")

    def grown() -> None:
        with (place / "ape" / "2.png").open("ab") as file:
            file.write(b"more")
        os.utime(place / "ape" / "2.png", (0, 0))

    def damaged() -> None:
        content = bytearray(first[0].read_bytes())
        content[len(content) // 2] ^= 1
        first[0].write_bytes(content)

    changes: list[Callable[[], object]] = [
        longer,
        (place / "ape" / "0.png").unlink,
        lambda: (place / "ape" / "1.png").rename(place / "ape" / "0.png"),
        lambda: os.utime(place / "ape" / "2.png", (0, 0)),
        grown,
        damaged,
        lambda: first[0].write_bytes(b""),
    ]
    for change in changes:
        change()
        assert reads in show(mnist).err
        assert reads not in show(mnist).err
    assert [path for path in Path("data").iterdir() if path.suffix == ".npz"] == first
    assert reads in show(mnist, "mine", "data.grey=true").err


# ----------------------------------------------------------------------------- hostile folders


def bomb() -> bytes:
    """A small PNG of 60,000 by 60,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(bytes(1_000_000)))
    return b"\x89PNG\r\n\x1a\n" + header + pixels + chunk(b"IEND", b"")


def test_damaged_images_are_named_all_of_them(mnist: Mnist, tmp_path: Path) -> None:
    place = write_folder(tmp_path / "mine", 10)
    Image.fromarray(picture(0, 0, 90, 90)).save("whole.jpg")
    damaged = {
        "ape/0.png": b"this is text",
        "ape/cut.jpg": Path("whole.jpg").read_bytes()[:900],
        "bee/bomb.png": bomb(),
        "cow/empty.png": b"",
        "cow/vector.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    }
    for name, content in damaged.items():
        (place / name).write_bytes(content)
    Image.new("1", (10_000, 9_500)).save(place / "bee" / "large.png")
    os.mkfifo(place / "bee" / "pipe.png")
    (place / "bee" / "gone.png").symlink_to("nowhere.png")
    (place / "bee" / "loop.png").symlink_to("loop.png")
    Image.fromarray(np.zeros((6, 5), np.int32)).save(place / "bee" / "int32.tif")
    begun = time.monotonic()
    ended = show(mnist, "mine", "data.size=6")
    assert ended.code == DataError.exit_code
    assert time.monotonic() - begun < 20
    assert "10 of 39 images cannot be used" in ended.err
    links = ("bee/large.png", "bee/pipe.png", "bee/gone.png", "bee/loop.png", "bee/int32.tif")
    assert [name for name in (*damaged, *links) if f"{place / name}: " not in ended.err] == []
    assert not [*Path("data").glob("*.npz")]
    for number in range(30):
        (place / "ape" / f"no{number}.png").write_bytes(b"no")
    assert "... and 20 more" in show(mnist, "mine", "data.size=6").err


def test_unequal_sizes_ask_for_size(mnist: Mnist, tmp_path: Path) -> None:
    place = write_folder(tmp_path / "mine", 10)
    Image.fromarray(picture(0, 0, 1, 1)).save(place / "cow" / "0.png")
    ended = show(mnist)
    assert ended.code == DataError.exit_code
    assert f"{place / 'cow' / '0.png'}: is 1x1 pixels, the first image 6x5" in ended.err
    assert "data.size=" in ended.err
    assert show(mnist, "mine", "data.size=28").code == 0


@pytest.mark.parametrize(
    ("files", "wrong"),
    [
        ([], "mine has 0 folders of images"),
        (["a.png", "b.txt"], "mine has 0 folders of images"),
        (["ape/0.png"], "mine has 1 folders of images"),
        (["ape/0.png", "bee/notes.txt"], "bee has no images"),
        (["ape/0.png", "bee/.0.png"], "bee has no images"),
        (["train/ape/0.png", "train/bee/0.png", "valid/ape/0.png"], "mine has train/, valid/"),
        (["train/ape/0.png", "train/bee/0.png", "test/0.png"], "test has no folders"),
        (["train/ape/0.png", "train/bee/0.png", "val/cow/0.png"], "val has cow/"),
    ],
)
def test_a_folder_that_holds_something_else(mnist: Mnist, files: list[str], wrong: str) -> None:
    Path("mine").mkdir()
    for file in files:
        Path("mine", file).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(0, 0)).save(Path("mine", file), "PNG")
    ended = show(mnist)
    assert (ended.code, wrong in ended.err) == (DataError.exit_code, True), ended.err


def test_what_is_too_few_or_too_much(
    mnist: Mnist, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(tmp_path / "mine", 3)
    ended = show(mnist)
    assert (ended.code, "a tenth of 9 training images is none" in ended.err) == (4, True)
    ended = show(mnist, "mine", "data.size=100000")
    assert (ended.code, "GiB" in ended.err, "data.size=" in ended.err) == (4, True, True)
    monkeypatch.setenv("MNIST_DATA_DIR", str(tmp_path / "mine" / "ape" / "0.png"))
    assert (ended.code, show(mnist).code) == (4, 4)


def test_progress_is_said(mnist: Mnist, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own, "BATCH", 12)
    write_folder(tmp_path / "mine")
    lines = [line for line in show(mnist).err.splitlines() if line.startswith("reading")]
    steps = ("1 to 12", "13 to 24", "25 to 30")
    assert lines == [f"reading images {step} of 30" for step in steps]


@pytest.mark.parametrize(
    ("section", "wrong"),
    [
        ("{name: folder}", "a.yaml:1:1: data.path: is missing"),
        ("{name: npz, path: ''}", "a.yaml:1:25: data.path: "),
        ("{name: npz, path: 3}", "a.yaml:1:25: data.path: "),
        ("{name: folder, path: x, size: 0}", "a.yaml:1:37: data.size"),
        ("{name: folder, path: x, size: [1, 2, 3]}", "a.yaml:1:37: data.size"),
        ("{name: npz, path: x, size: 8}", "a.yaml:1:28: data.size: not a setting of npz"),
        ("{name: mnist, path: x}", "a.yaml:1:21: data.path: not a setting of mnist"),
    ],
)
def test_a_wrong_setting_has_its_place(mnist: Mnist, section: str, wrong: str) -> None:
    Path("a.yaml").write_text(f"data: {section}\n")
    ended = mnist("train", "-c", "a.yaml")
    assert (ended.code, wrong in ended.err) == (2, True), ended.err


@pytest.mark.parametrize("name", ["folder", "npz"])
def test_a_missing_path_leaves_no_run(mnist: Mnist, tmp_path: Path, name: str) -> None:
    for command in ("train", "sweep"):
        ended = mnist(command, f"data.name={name}", "data.path=~/../nowhere/x")
        assert (ended.code, "data.path: there is no" in ended.err) == (4, True)
        assert "nowhere/x" in ended.err
        assert ".." not in ended.err
    write_folder(tmp_path / "mine")
    there, gone = "{name: folder, path: mine}", "{name: folder, path: gone}"
    for axis in (f"data=[{there}, {gone}]", f"data=[{gone}, {there}]"):
        assert mnist("sweep", "--grid", axis).code == DataError.exit_code
    assert not Path("runs").exists()


# ------------------------------------------------------------------------------------ npz files


def test_an_npz_file_as_keras_has_it(mnist: Mnist) -> None:
    content = arrays()
    np.savez_compressed("mine.npz", **content)  # type: ignore[arg-type]
    argv = ("train", "data.name=npz", "data.path=mine.npz", "--epochs", "30", "--lr", "1e-2")
    assert mnist(*argv, "data.batch_size=8").code == 0
    said = trained_with()
    assert (said["shape"], said["classes"]) == ([1, 6, 5], ["0", "1", "2"])
    scored = mnist("eval", "--json").json
    assert (scored["n"], scored["acc"]) == (12, 1.0)
    assert mnist("eval", "--split", "val", "--json").json["n"] == 6
    assert mnist("data", "show", "npz", "--path", "mine.npz", "--split", "test").code == 0
    content["x_train"] = content["x_train"] + 1
    np.savez("mine.npz", **content)  # type: ignore[arg-type]
    ended = mnist("resume", "mlp-0001", "--epochs", "31")
    assert (ended.code, "images have changed" in ended.err) == (4, True)


def test_an_npz_file_in_colour_and_other_integers(tmp_path: Path) -> None:
    content = arrays()
    for split in ("train", "test"):
        grey = content[f"x_{split}"]
        content[f"x_{split}"] = np.asfortranarray(np.stack([grey, grey + 1, grey + 2], axis=-1))
        content[f"y_{split}"] = content[f"y_{split}"].astype(">u2")[:, None]
    np.savez("mine.npz", **content)  # type: ignore[arg-type]
    config = NpzData(name="npz", path="mine.npz", split="official")
    data = load(config, torch.device("cpu"), lambda _: None)
    assert data.shape == (3, 6, 5)
    assert data.val.labels.tolist() == [0, 1, 2] * 4
    expected = torch.from_numpy(np.ascontiguousarray(content["x_train"])).permute(0, 3, 1, 2)
    assert torch.equal(data.train.images, expected)
    assert data.train.images.is_contiguous()


def changed(**arrays_by_name: Any) -> Callable[[], Images]:
    return lambda: arrays() | arrays_by_name


@pytest.mark.parametrize(
    ("content", "wrong"),
    [
        (lambda: {"images": np.zeros(3), "labels": np.zeros(3)}, "x_train"),
        (changed(x_train=np.zeros((60, 6, 5))), "x_train is float64, not uint8"),
        (changed(x_test=np.zeros((12, 30), np.uint8)), "x_test has shape (12, 30)"),
        (changed(x_test=np.zeros((12, 6, 5, 2), np.uint8)), "x_test has shape (12, 6, 5, 2)"),
        (changed(x_test=np.zeros((12, 5, 6), np.uint8)), "dimension"),
        (changed(x_test=np.zeros((0, 6, 5), np.uint8)), "x_test has shape (0, 6, 5)"),
        (changed(y_train=np.arange(59) % 3), "shape (59,), not 60 integers"),
        (changed(y_train=np.arange(60) % 3 / 1), "y_train is float64"),
        (changed(y_train=np.eye(3)[np.arange(60) % 3]), "y_train is float64 of shape (60, 3)"),
        (changed(y_train=np.arange(60) % 3 + 1), "3 labels from 1 to 3"),
        (changed(y_train=np.arange(60) % 3 - 1), "3 labels from -1 to 1"),
        (changed(y_train=np.arange(60) % 3 + 1, y_test=np.ones(12, int)), "3 labels from 1 to 3"),
        (changed(y_train=np.arange(60) % 2 * 10**15), "2 labels from 0 to 1000000000000000"),
        (changed(y_train=np.zeros(60, int)), "1 labels from 0 to 0"),
        (changed(y_test=np.arange(12) % 4), "y_test from 0 to 3"),
        (changed(y_test=np.array([object()] * 12)), "allow_pickle=False"),
    ],
)
def test_arrays_that_are_no_images(mnist: Mnist, content: Callable[[], Images], wrong: str) -> None:
    np.savez("mine.npz", **content())  # type: ignore[arg-type]
    ended = mnist("train", "data.name=npz", "data.path=mine.npz")
    assert (ended.code, "mine.npz: " in ended.err, wrong in ended.err) == (4, True, True), ended.err


class Evil:
    """Makes a file when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("run"),)


def claims(shape: tuple[int, ...]) -> bytes:
    """A file that says it holds an array of a shape, and does not."""
    header = repr({"descr": "|u1", "fortran_order": False, "shape": shape}).encode().ljust(118)
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header


def test_files_that_are_no_npz(mnist: Mnist, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> str:
        ended = mnist("train", "data.name=npz", "data.path=mine.npz")
        assert ended.code == DataError.exit_code, ended.err
        assert "mine.npz" in ended.err
        return ended.err

    path = Path("mine.npz")
    np.savez(path, **arrays())  # type: ignore[arg-type]
    whole = path.read_bytes()
    for content in (b"", b"text", whole[:-30], pickle.dumps(Evil())):
        path.write_bytes(content)
        refused()
    path.write_bytes(whole.replace(bytes(picture(0, 0)[:, :, 0].tobytes()), bytes(30)))
    refused()  # by its CRC
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x_train.npy", pickle.dumps(Evil()))
    refused()
    for shape in ((10**15, 6, 5), (10**9, 6, 5), (-1, 6, 5)):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x_train.npy", claims(shape))
            archive.writestr("y_train.npy", claims((3,)))
        refused()
    assert not Path("run").exists()
    path.write_bytes(whole)
    monkeypatch.setattr(own, "MAX_BYTES", 1000)
    assert "GiB" in refused()
    path.unlink()
    os.mkfifo(path)
    refused()
