"""CIFAR-10 from a user's archive to a measured run, on small files of its exact format."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mnist_cli.data.catalog import DATASETS
from mnist_cli.data.formats import Arrays
from mnist_cli.runs.store import RunDirectory
from tests.conftest import Mnist
from tests.data.tiny import cifar, write

PER_BATCH = 100


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with `cifar-10-python.tar.gz`: six batches, the class of an image in its colour."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 10, 6 * PER_BATCH)
    noise = random.integers(0, 60, (len(labels), 3, 1024))
    colours = np.stack([labels * 19, 171 - labels * 19, labels % 3 * 60], axis=1)
    pixels = (noise + colours[:, :, None]).astype(np.uint8).reshape(-1, 3, 32, 32)
    train, test = slice(5 * PER_BATCH), slice(5 * PER_BATCH, None)
    classes = labels.astype(np.uint8)
    arrays = Arrays(pixels[train], classes[train], pixels[test], classes[test])
    small = replace(DATASETS["cifar10"], train=5 * PER_BATCH, test=PER_BATCH, holdout=PER_BATCH)
    spec, _, packed = cifar(small, arrays)
    monkeypatch.setitem(DATASETS, "cifar10", spec)
    return write(tmp_path / "downloads", {str(spec.archive): packed})


def test_from_an_archive_to_a_measured_run(mnist: Mnist, archive: Path, tmp_path: Path) -> None:
    assert mnist("data", "fetch", "cifar10").code == 4  # offline: nothing but files one has
    fetched = mnist("data", "fetch", "cifar10", "--from", str(archive))
    assert fetched.code == 0, fetched.err
    assert mnist("data", "verify", "cifar10").code == 0
    ended = mnist("train", "--config", "cifar10_mlp", "train.steps=40", "scheduler.step_size=10")
    assert ended.code == 0, ended.err
    run = RunDirectory(tmp_path / "runs" / "cifar10_mlp-0001")
    records = run.metrics()
    # 400 training images in batches of 64: 7 steps an epoch, so 40 steps end inside the sixth.
    assert [record["step"] for record in records] == [7, 14, 21, 28, 35, 40]
    # Halved every 10 steps: the rates at steps 0, 7, 14, 21, 28 and 35.
    rates = [0.01, 0.01, 0.005, 0.0025, 0.0025, 0.00125]
    assert [record["lr"] for record in records] == pytest.approx(rates)
    assert records[-1]["val/loss"] < records[0]["val/loss"]
    tested = mnist("eval", "--checkpoint", str(run.best), "--json").json
    assert (tested["data"], tested["n"]) == ("cifar10", PER_BATCH)
    picture = mnist("data", "show", "data=cifar10", "-n", "3", "--out", str(tmp_path / "row.png"))
    assert picture.code == 0
