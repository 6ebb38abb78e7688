"""People's own pictures: whatever the file, the model gets what MNIST would have made of it."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageDraw, ImageFilter, ImageOps

from mnist_cli.data import pictures
from mnist_cli.errors import UsageError
from mnist_cli.report import plots
from tests.conftest import Mnist

Bytes = npt.NDArray[np.uint8]
MNIST = ("mnist", (1, 28, 28))


def seven(size: tuple[int, int] = (300, 400), ink: object = 0, paper: object = 255) -> Image.Image:
    """A seven, off the centre; grey or in colour as its ink and paper are."""
    picture = Image.new("L" if isinstance(ink, int) else "RGB", size, paper)  # type: ignore[arg-type]
    stroke = [(120, 60), (230, 60), (160, 240)]
    ImageDraw.Draw(picture).line(stroke, fill=ink, width=26, joint="curve")  # type: ignore[arg-type]
    return picture


def prepared(picture: Image.Image, path: Path, **options: object) -> Bytes:
    picture.save(path, **options)  # type: ignore[arg-type]
    return pictures.prepare(path, *MNIST)


@pytest.fixture
def expected(tmp_path: Path) -> Bytes:
    return prepared(seven(), tmp_path / "plain.png")


def close(one: Bytes, other: Bytes) -> bool:
    """Whether two images differ by no more than edges rendered otherwise do."""
    return float(np.abs(one.astype(float) - other).mean()) < 6


def test_it_lies_as_mnist_digits_do(expected: Bytes) -> None:
    assert expected.shape == (1, 28, 28)
    assert expected.dtype == np.uint8
    ink = expected[0].astype(float)
    rows, columns = ink.any(1).nonzero()[0], ink.any(0).nonzero()[0]
    assert rows[-1] - rows[0] + 1 == 20  # the longer side
    assert 8 <= columns[-1] - columns[0] + 1 < 20
    assert ink.max() == 255
    assert ink[0, 0] == 0
    assert np.count_nonzero((ink > 0) & (ink < 255)) > 10  # edges are grey
    for axis in (0, 1):
        centre = ink.sum(1 - axis) @ np.arange(28) / ink.sum()
        assert centre == pytest.approx(14, abs=0.5)


def shaded() -> Image.Image:
    """As a camera sees it: a lamp on one side, grain, ink that is not black."""
    light = np.linspace(90, 240, 300)[None] * np.linspace(1, 0.8, 400)[:, None]
    ink = np.asarray(seven().filter(ImageFilter.GaussianBlur(1))) / 255
    grain = np.random.default_rng(0).normal(0, 3, light.shape)
    return Image.fromarray((light * (0.25 + 0.75 * ink) + grain).clip(0, 255).astype(np.uint8))


def dusty() -> Image.Image:
    picture = seven()
    for place in ((3, 3), (290, 20), (10, 390), (280, 380)):
        picture.putpixel(place, 0)
    return picture


def on_nothing(ink: int) -> Image.Image:
    picture = Image.new("LA", (300, 400), (ink, 0))
    picture.putalpha(seven(ink=255, paper=0))
    return picture


KINDS: dict[str, Callable[[], Image.Image]] = {
    "pale": lambda: seven(ink=200, paper=240),
    "yellow on white": lambda: seven(ink=(255, 255, 0), paper=(255, 255, 255)),
    "green on red, equally light": lambda: seven(ink=(0, 130, 0), paper=(255, 0, 0)),
    "white on nothing": lambda: on_nothing(255),
    "palette": lambda: seven(ink=(9, 9, 9), paper=(200, 230, 255)).convert("P"),
    "16 bits": lambda: Image.fromarray(np.asarray(seven(), np.uint16) * 257),
    "large": lambda: seven().resize((3000, 4000), Image.Resampling.NEAREST),
    "off the centre": lambda: seven((700, 900)),
    "cut out": lambda: seven().crop((105, 45, 245, 255)),
    "photographed": shaded,
    "photographed light on dark": lambda: ImageOps.invert(shaded()),
    "dust": dusty,
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_picture(kind: str, expected: Bytes, tmp_path: Path) -> None:
    assert close(prepared(KINDS[kind](), tmp_path / "it.png"), expected)


@pytest.mark.parametrize("suffix", ["jpg", "gif", "bmp", "tiff", "webp", "pgm"])
def test_every_format(suffix: str, expected: Bytes, tmp_path: Path) -> None:
    assert close(prepared(seven(), tmp_path / f"it.{suffix}"), expected)


def test_a_picture_taken_sideways(expected: Bytes, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    lying = seven().transpose(Image.Transpose.ROTATE_90)
    assert close(prepared(lying, tmp_path / "it.jpg", exif=exif), expected)
    assert not close(prepared(lying, tmp_path / "it.jpg"), expected)


def test_a_thin_pen_is_made_as_thick_as_mnists(tmp_path: Path) -> None:
    thin = Image.new("L", (600, 600), 255)
    ImageDraw.Draw(thin).line([(150, 60), (400, 60), (250, 500)], fill=0, width=6)
    ink = prepared(thin, tmp_path / "it.png")[0] > 127
    across = ink[12:22].sum(1)
    assert 1.5 <= across.mean() <= 3.5


def test_other_data_sets_have_other_forms(tmp_path: Path) -> None:
    picture = Image.new("RGBA", (90, 60), (200, 30, 10, 255))
    picture.paste((0, 0, 0, 0), (0, 0, 90, 30))  # nothing, which is shown white
    picture.save(tmp_path / "it.png")
    image = pictures.prepare(tmp_path / "it.png", "cifar10", (3, 32, 32))
    assert image.shape == (3, 32, 32)
    assert image.dtype == np.uint8
    assert image[:, 2, 16].tolist() == [255, 255, 255]
    assert image[:, 29, 16].tolist() == [200, 30, 10]
    seven().save(tmp_path / "it.png")
    clothes = pictures.prepare(tmp_path / "it.png", "fashion_mnist", (1, 28, 28))[0]
    assert clothes[[0, -1]].any(1).all()  # it fills the field


# ---------------------------------------------------------------------------------- what is refused


def refused(path: Path) -> str:
    with pytest.raises(UsageError) as caught:
        pictures.prepare(path, *MNIST)
    assert caught.value.message.startswith(f"{path}: ")
    assert "\n" not in caught.value.message
    return caught.value.message


def test_blank_pictures(tmp_path: Path) -> None:
    path = tmp_path / "it.png"
    random = np.random.default_rng(0)
    grain = random.normal(200, 4, (200, 300)).clip(0, 255).astype(np.uint8)
    slope = np.tile(np.linspace(120, 220, 300), (200, 1)).astype(np.uint8)
    blank = [
        *(Image.new("L", (40, 40), grey) for grey in (0, 128, 255)),
        Image.new("RGBA", (40, 40), (0, 0, 0, 0)),
        Image.fromarray(grain),
        Image.fromarray(slope),
        seven(ink=240, paper=250),
    ]
    for picture in blank:
        picture.save(path)
        assert "nothing is drawn" in refused(path)


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "bmp", "tiff", "webp", "pgm"])
def test_damaged_files(suffix: str, tmp_path: Path) -> None:
    """Cut short, a file is refused; with other bytes it ends in a sentence or in an image."""
    path = tmp_path / f"it.{suffix}"
    random = np.random.default_rng(0)
    Image.fromarray(random.integers(0, 256, (64, 64), np.uint8)).save(path)
    whole = path.read_bytes()
    for part in (0.1, 0.5, 0.9):
        path.write_bytes(whole[: int(len(whole) * part)])
        assert "cannot be read as a picture" in refused(path)
    for _ in range(20):
        broken = bytearray(whole)
        for place in random.integers(0, len(whole), 5):
            broken[place] = random.integers(256)
        path.write_bytes(broken)
        with contextlib.suppress(UsageError):
            pictures.prepare(path, *MNIST)


def test_what_is_not_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fifo, program = tmp_path / "pipe", tmp_path / "it.eps"
    os.mkfifo(fifo)
    seven().save(program)  # which another program would have to run
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "empty.png").touch()
    for path in (tmp_path / "notes.txt", tmp_path / "empty.png", program):
        assert "cannot identify image" in refused(path)
    assert "not a regular file" in refused(fifo)
    assert "not a regular file" in refused(tmp_path)
    assert "No such file" in refused(tmp_path / "none.png")
    assert "name too long" in refused(tmp_path / ("x" * 300))
    seven().save(tmp_path / "it.png")
    for most in (100_000, 10_000):  # which Pillow warns of, and refuses
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", most)
        assert "(120000 pixels) exceeds limit" in refused(tmp_path / "it.png")
    monkeypatch.setattr(pictures, "MAX_BYTES", 100)
    assert "larger than 100 bytes" in refused(tmp_path / "it.png")


# ------------------------------------------------------------------------------------- the command


def test_predict_says_what_each_picture_is(mnist: Mnist, tmp_path: Path) -> None:
    mnist("train", "data={name: synthetic, size: 700}", "--epochs", "1")
    good, bad = tmp_path / "good.png", tmp_path / "bad.txt"
    seven().save(good)
    bad.write_text("hello")
    ended = mnist("predict", str(good), str(bad), str(good), "--json")
    assert ended.code == 2
    assert ended.err.count("error: ") == 1
    first, second, third = ended.json
    assert list(first) == ["image", "class", "probability", "probabilities"]
    assert list(first["probabilities"]) == list("0123456789")
    assert sum(first["probabilities"].values()) == pytest.approx(1)
    assert first["probability"] == max(first["probabilities"].values())
    assert first["probabilities"][first["class"]] == first["probability"]
    assert second == {"image": str(bad), "error": f"{bad}: {second['error'].split(': ', 1)[1]}"}
    assert third == first
    ended = mnist("predict", str(good))
    assert ended.code == 0
    assert "taking the newest" in ended.out
    assert f"{good}: {first['class']} (" in ended.out
    assert mnist("predict", str(bad)).code == 2
    assert mnist("predict", str(good), "--checkpoint", str(bad)).code == 5
    assert mnist("predict").code == 2


def test_predict_shows_what_the_network_sees(
    mnist: Mnist, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    mnist("train", "data={name: synthetic, size: 140}", "--epochs", "1")
    good, bad = tmp_path / "good.png", tmp_path / "bad.txt"
    seven().save(good)
    bad.write_text("hello")
    drawn: list[tuple[Bytes, list[str]]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "image_grid", lambda _, __, *shown: drawn.append(shown))
        shown, unread = mnist("predict", str(good), str(bad), "--show", "--json").json
    ((pixels, labels),) = drawn
    assert np.array_equal(pixels[0], pictures.prepare(good, "synthetic", (1, 28, 28)))
    assert labels == [f"{shown['class']}, {100 * shown['probability']:.1f} %"]
    assert shown["plot"] == str(tmp_path / "predictions.png")
    assert "plot" not in unread
    assert "predictions.png" in mnist("predict", str(good), "--show").out
    assert (tmp_path / "predictions.png").read_bytes()[1:4] == b"PNG"
    assert mnist("predict", str(bad), "--show").code == 2


@pytest.mark.real_data
@pytest.mark.usefixtures("real_mnist")
def test_real_digits_are_recognised_as_pictures_too(mnist: Mnist, tmp_path: Path) -> None:
    """Enlarged, dark on light and off the centre, they are recognised as well as they are."""
    from mnist_cli.data.prepared import prepare

    assert mnist("train", "data.split=official", "optimizer.lr=1e-2", "--epochs", "1").code == 0
    data = prepare("mnist", report=print)
    random = np.random.default_rng(0)
    plain, large = [], []
    for number, pixels in enumerate(data.test_images[:60, 0]):
        digit = Image.fromarray(pixels)
        plain.append(str(tmp_path / f"plain-{number}.png"))
        digit.save(plain[-1])
        page = Image.new("L", (400, 320), 255)
        enlarged = digit.resize((196, 196), Image.Resampling.BICUBIC)
        place = int(random.integers(0, 200)), int(random.integers(0, 120))
        page.paste(Image.eval(enlarged, lambda grey: 255 - grey), place)
        large.append(str(tmp_path / f"large-{number}.png"))
        page.save(large[-1])
    rows = mnist("predict", *plain, *large, "--json").json
    found = np.array([int(row["class"]) for row in rows]).reshape(2, -1)
    right = (found == data.test_labels[:60]).mean(1)
    assert right[0] > 0.9
    assert right[1] == pytest.approx(right[0], abs=0.05)
