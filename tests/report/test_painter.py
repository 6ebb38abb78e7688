"""Pictures are drawn beside the command, which waits for them and does not depend on them."""

import subprocess
import sys
from pathlib import Path

import pytest

from mnist_cli.errors import RunError, UsageError
from mnist_cli.report.painter import painter, serve
from mnist_cli.runs.store import RunDirectory
from tests.cli.conftest import SMALL

pytestmark = pytest.mark.pictures

TRAIN = f"""import sys
from mnist_cli.cli import run_command
code = run_command({["train", *SMALL]!r})
assert 'matplotlib' not in sys.modules
sys.exit(code)
"""


@pytest.fixture
def _torch_is_yet_to_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)


def test_a_command_finds_its_pictures_drawn_and_loads_no_matplotlib(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", TRAIN], check=True)
    drawn = [path.name for path in (tmp_path / "runs/mlp-0001/plots").iterdir()]
    assert drawn == ["curves.png"]


@pytest.mark.usefixtures("_torch_is_yet_to_come")
def test_what_kept_it_from_drawing_is_raised(tmp_path: Path) -> None:
    folder = RunDirectory(tmp_path / "no run\né")
    with painter() as draw, pytest.raises(RunError, match="no run"):
        draw(folder)


@pytest.mark.usefixtures("_torch_is_yet_to_come")
def test_without_a_process_the_command_draws(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "gone"))
    folder = RunDirectory(tmp_path)
    with painter() as draw, pytest.raises(UsageError, match="config"):
        draw(folder)


def test_it_ends_with_its_parent() -> None:
    serve_alone = [sys.executable, "-c", f"from {serve.__module__} import serve; serve()"]
    done = subprocess.run(serve_alone, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
