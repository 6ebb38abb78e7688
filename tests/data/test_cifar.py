"""CIFAR-10 from a user's archive to a measured run, on small files of its exact format."""

import hashlib
import io
import pickle
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mnist_cli.data.catalog import DATASETS
from mnist_cli.runs.store import RunDirectory
from tests.conftest import Mnist

PER_BATCH = 100


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with `cifar-10-python.tar.gz`: six batches, the class of an image in its colour."""
    random = np.random.default_rng(0)
    known = DATASETS["cifar10"].archives[0]
    batches = {}
    for name in (*known.train, *known.test):
        labels = random.integers(0, 10, PER_BATCH)
        noise = random.integers(0, 60, (PER_BATCH, 3, 1024))
        colours = np.stack([labels * 19, 171 - labels * 19, labels % 3 * 60], axis=1)
        pixels = (noise + colours[:, :, None]).astype(np.uint8).reshape(PER_BATCH, 3072)
        batch = {b"batch_label": b"one", b"labels": labels.tolist(), b"data": pixels}
        batches[name] = pickle.dumps(batch, protocol=2)
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for name, content in batches.items():
            info = tarfile.TarInfo(f"{known.folder}/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    folder = tmp_path / "downloads"
    folder.mkdir()
    (folder / known.name).write_bytes(stream.getvalue())
    md5 = {name: hashlib.md5(content).hexdigest() for name, content in batches.items()}
    made = replace(
        known,
        md5=hashlib.md5(stream.getvalue()).hexdigest(),
        train={name: md5[name] for name in known.train},
        test={name: md5[name] for name in known.test},
    )
    spec = replace(
        DATASETS["cifar10"],
        archives=(made,),
        train=5 * PER_BATCH,
        test=PER_BATCH,
        holdout=PER_BATCH,
    )
    monkeypatch.setitem(DATASETS, "cifar10", spec)
    return folder


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


@pytest.mark.parametrize(
    "optimizer",
    [
        "{name: sgd, lr: 1e-2, momentum: 0.9, weight_decay: 5e-4, nesterov: true}",
        "{name: adam, lr: 1e-3, betas: [0.9, 0.999]}",
    ],
)
@pytest.mark.parametrize(
    "scheduler",
    [
        "{name: step, step_size: 40, gamma: 0.1}",
        "{name: multistep, milestones: [30, 80], gamma: 0.1}",
        "{name: cosine, T_max: 20}",
    ],
)
def test_its_optimizers_and_schedulers(
    mnist: Mnist, archive: Path, optimizer: str, scheduler: str
) -> None:
    mnist("data", "fetch", "cifar10", "--from", str(archive))
    ended = mnist(
        "train", "-c", "cifar10_mlp", f"optimizer={optimizer}", f"scheduler={scheduler}",
        "train.epochs=2", "--json",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    assert ended.json["status"] == "finished"


def test_a_damaged_archive_is_named(mnist: Mnist, archive: Path) -> None:
    (path,) = archive.iterdir()
    content = path.read_bytes()
    path.write_bytes(content[:500] + b"\0" + content[501:])
    ended = mnist("data", "fetch", "cifar10", "--from", str(archive))
    assert ended.code == 4
    assert "cifar-10-python.tar.gz" in ended.err
