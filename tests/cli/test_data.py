"""`mnist data show`: what is drawn, and where the picture goes."""

from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import Mnist


def test_show_draws_a_grid_into_the_current_directory(
    mnist: Mnist, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = mnist("data", "show", "data=synthetic", "--split", "val", "-n", "50")
    assert (ended.code, ended.out.splitlines()[-1]) == (0, "synthetic-val.png")
    with Image.open("synthetic-val.png") as picture:
        width, height = picture.size
        assert picture.format == "PNG"
    assert height < width < 2 * height
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("name", ["x.jpg", "x", "png"])
def test_show_writes_no_png_under_another_name(mnist: Mnist, tmp_path: Path, name: str) -> None:
    ended = mnist("data", "show", "data=synthetic", "--out", str(tmp_path / name))
    assert ended.code == 2
    assert name in ended.err
    assert ".png" in ended.err
    assert not (tmp_path / name).exists()
