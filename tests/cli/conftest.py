"""Commands on the smallest data that trains."""

import shutil
from pathlib import Path

import pytest

from mnist_cli.cli import run_command

SMALL = ("data={name: synthetic, size: 140}", "--epochs", "2")


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """The runs directory of this test."""
    return tmp_path / "runs"


@pytest.fixture(scope="session")
def _trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MNIST_RUNS_DIR", str(folder))
        assert run_command(["train", *SMALL]) == 0
        assert run_command(["sweep", *SMALL, "--lrs", "1e-4,1e-2", "--seeds", "2"]) == 0
    return folder


@pytest.fixture
def trained(_trained: Path, runs: Path) -> Path:
    """The runs directory with mlp-0001 and mlp-sweep-0001, of two rates and two seeds, in it."""
    return shutil.copytree(_trained, runs)
