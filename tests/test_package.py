"""The package as others install it, and the project's own promises about itself."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the built wheel installed in it, far from the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder)]
    subprocess.run([*build, str(ROOT)], check=True, capture_output=True)
    (wheel,) = folder.glob("mnist_cli-*.whl")
    site = folder / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*install, "--target", str(site), str(wheel)], check=True, capture_output=True)
    return site


def run_installed(site: Path, cwd: Path, *argv: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(site)}
    done = subprocess.run(
        [sys.executable, *argv],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_brings_the_configs_and_runs_anywhere(installed: Path, tmp_path: Path) -> None:
    where = run_installed(installed, tmp_path, "-c", "import mnist_cli; print(mnist_cli.__file__)")
    assert Path(where.strip()).is_relative_to(installed)
    version = run_installed(installed, tmp_path, "-m", "mnist_cli", "--version")
    assert re.fullmatch(r"mnist \d+\.\d+\.\d+\n", version)
    listing = run_installed(installed, tmp_path, "-m", "mnist_cli", "config", "list")
    for config in (ROOT / "configs").glob("*.yaml"):
        assert config.stem in listing
    small = ["data={name: synthetic, size: 700}", "--epochs", "1", "--json"]
    run_installed(installed, tmp_path, "-m", "mnist_cli", "train", "-c", "logistic.yaml", *small)


def test_the_wheel_holds_the_package_and_nothing_else(installed: Path) -> None:
    top = {path.name for path in installed.iterdir()}
    assert {name for name in top if not name.startswith("mnist_cli-")} <= {"mnist_cli", "bin"}
    assert (installed / "bin" / "mnist").exists()
    assert not list(installed.rglob("test*"))


def test_the_top_level_holds_what_it_says() -> None:
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if tracked.returncode:
        pytest.skip("not a git checkout")
    top = {Path(name).parts[0] for name in tracked.stdout.splitlines()}
    folders = {"configs", "mnist_cli", "runs", "tests"}
    files = {"CHANGELOG.md", "LICENSE", "README.md", "pyproject.toml"}
    assert {name for name in top if not name.startswith(".")} <= folders | files
