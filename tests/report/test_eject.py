"""The script of a run comes to the figures of the run; where it would not, there is none."""

import os
import re
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mnist_cli import api
from mnist_cli.config import load
from mnist_cli.data.prepared import prepare
from mnist_cli.errors import UsageError
from mnist_cli.models.modules import build
from mnist_cli.report.eject import script
from tests.conftest import Mnist


@pytest.fixture(scope="module")
def idx_files(tmp_path_factory: pytest.TempPathFactory, real_mnist: None) -> Path:
    """MNIST where torchvision looks for it."""
    folder = tmp_path_factory.mktemp("data")
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    arrays = prepare("mnist", report=print)
    for part, images, labels in (
        ("train", arrays.train_images, arrays.train_labels),
        ("t10k", arrays.test_images, arrays.test_labels),
    ):
        head = struct.pack(">4I", 0x803, len(images), 28, 28)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(head + images.tobytes())
        head = struct.pack(">2I", 0x801, len(labels))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(head + labels.astype(np.uint8).tobytes())
    return folder


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("config", "settings"),
    [
        ("mlp", "scheduler={name: step, step_size: 300, interval: step, warmup: 50} lr=1e-2"),
        pytest.param(
            "logistic",
            "data.split=holdout loss.label_smoothing=0.1 clip_grad_norm=0.5 normalize=false "
            "loss.reduction=sum optimizer={name: sgd, lr: 1e-5, momentum: 0.9}",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_the_script_comes_to_the_figures_of_the_run(
    mnist: Mnist, idx_files: Path, tmp_path: Path, config: str, settings: str
) -> None:
    words = re.findall(r"\S+=(?:{[^}]*}|\S+)", settings)
    folder = tmp_path / "runs"
    where = ("--runs-dir", str(folder))
    fast = ("--epochs", "1", "batch_size=256", "train.precision=fp64")
    assert mnist("train", "-c", config, *words, *fast, *where).code == 0
    file = tmp_path / "train.py"
    assert mnist("eject", f"{config}-0001", "-o", str(file), *where).code == 0
    assert "mnist_cli" not in file.read_text()
    said = subprocess.run(
        [sys.executable, "-W", "ignore", str(file), str(idx_files)],
        check=True, capture_output=True, text=True, cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    ).stdout  # fmt: skip
    found = re.fullmatch(r"epoch 1: val loss (\S+), val acc (\S+)\n", said)
    assert found
    run = api.load(folder / f"{config}-0001")
    assert float(found[1]) == pytest.approx(run.metrics[0]["val/loss"], abs=2e-5)
    assert float(found[2]) == pytest.approx(run.metrics[0]["val/acc"], abs=2e-4)
    saved, own = torch.load(tmp_path / "model.pt"), run.model().state_dict()
    assert saved.keys() == own.keys()
    for name, value in own.items():
        torch.testing.assert_close(saved[name], value, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", ["cnn", "cnn_sequential", "lenet"])
def test_the_network_that_is_written_is_the_network(name: str) -> None:
    config = load(name).config
    code = script("a", config, 1)
    scope: dict[str, Any] = {"torch": torch, "nn": torch.nn}
    seeded = code[code.index("torch.manual_seed") : code.index("model = model.to")]
    with torch.random.fork_rng(devices=[]):
        exec(seeded, scope)
    images = torch.rand(3, 1, 28, 28)
    own = build(config.model, (1, 28, 28), 10, config.train.seed)
    torch.testing.assert_close(scope["model"](images), own(images), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("config", "override", "why"),
    [
        ("mlp", "augment.rotate=5", "augment"),
        ("mlp", "data={name: synthetic}", "synthetic"),
        ("mlp", "optimizer={name: muon}", "muon"),
        ("mlp", "train.ema=0.9", "train.ema"),
        ("mlp", "train.precision=bf16", "bf16"),
        ("resnet", "train.ema=null", "resnet"),
        ("tensor_net", "train.seed=1", "tensor_net"),
    ],
)
def test_what_the_script_would_not_train_is_refused(config: str, override: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        script("a", load(config, [override]).config, 1)


def test_the_name_of_a_folder_is_no_code() -> None:
    code = script('a"""; raise SystemExit; """\n', load("mlp").config, 1)
    assert code.count('"""') == script("a", load("mlp").config, 1).count('"""')
    assert "SystemExit; " not in code
    compile(code, "script", "exec")


def test_a_script_overwrites_nothing_and_is_of_one_run(mnist: Mnist, tmp_path: Path) -> None:
    small = ("data={name: synthetic, size: 140}", "--epochs", "1", "--lrs", "1e-3,1e-2")
    where = ("--runs-dir", str(tmp_path))
    assert mnist("sweep", *small, *where).code == 0
    assert mnist("eject", "mlp-sweep-0001", *where).code == 2
