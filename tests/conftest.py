"""What every test stands on: folders of its own, no network, commands in this process."""

import functools
import json
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer

# Before torch is imported: threads that wait for each other spin, and several test processes, or a
# busy machine, would make every small product a hundred times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Whoever starts the tests in the background may have had Ctrl-C ignored, which processes inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)

from mnist_cli.cli import run_command  # noqa: E402


@pytest.fixture(scope="session", autouse=True)
def _draw() -> Iterator[Callable[[Any], Any]]:
    """Nothing is drawn and nothing outlives the power, both of which take longer than the rest.

    And commands are put together once: each command line does it again.
    """
    from mnist_cli.report import plots

    draw = plots.draw
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(typer.main, "get_command", functools.cache(typer.main.get_command))
        patch.setattr(os, "fsync", lambda _: None)
        patch.setattr(plots, "draw", lambda _: [])
        yield draw


@pytest.fixture(autouse=True)
def _own_folders(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    _draw: Callable[[Any], Any],
) -> None:
    """No test sees the user's runs, data or settings; only `real_data` ones use the network."""
    if request.node.get_closest_marker("pictures"):
        monkeypatch.setattr("mnist_cli.report.plots.draw", _draw)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("MNIST_RUNS_DIR", str(tmp_path / "runs"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    if not request.node.get_closest_marker("real_data"):
        monkeypatch.setenv("MNIST_DATA_DIR", str(tmp_path / "data"))
        monkeypatch.setenv("MNIST_OFFLINE", "1")
    # Whatever ran before in this process, a command in a wider fixture say, may still listen.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


@dataclass(frozen=True)
class Ended:
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Stdout, which must be one JSON document (with no NaN in it) and nothing else."""
        return json.loads(self.out, parse_constant=pytest.fail)


Mnist = Callable[..., Ended]


@pytest.fixture
def mnist(capsys: pytest.CaptureFixture[str]) -> Mnist:
    """Runs a command line in this process: `mnist("train", "--lr", "0.1")`."""

    def call(*argv: str) -> Ended:
        capsys.readouterr()
        code = run_command(argv)
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return Ended(code, captured.out, captured.err)

    return call


@pytest.fixture
def forked_alone() -> Iterator[None]:
    """For commands in forked processes: nobody stays behind."""
    from tests.reliability.harness import end_all

    yield
    end_all()


@pytest.fixture(scope="session")
def real_mnist(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Real MNIST, fetched once through the product into the user's own data directory.

    Where it cannot be had the test is skipped, but in CI that is a failure.
    """
    from mnist_cli.data.prepared import prepare
    from mnist_cli.errors import DataError

    try:
        prepare("mnist", report=print)
    except DataError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"no MNIST here: {error}")
