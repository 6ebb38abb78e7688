"""An empty data directory, and the data set `tiny` in the catalog."""

from pathlib import Path

import pytest

from mnist_cli.data.catalog import DATASETS
from tests.data.tiny import BY_CONTENT


@pytest.fixture
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where data lies; nothing does yet. The network is not to be used unless a test says so."""
    (tmp_path / "data").mkdir()
    (tmp_path / "scratch").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "scratch"))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setitem(DATASETS, "tiny", BY_CONTENT)
    return tmp_path / "data"
