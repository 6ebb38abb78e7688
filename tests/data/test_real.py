"""Real MNIST, fetched from nothing through the product itself."""

from pathlib import Path

import numpy as np
import pytest

from mnist_cli.data import prepared
from mnist_cli.data.catalog import DATASETS, FIELDS
from tests.data.tiny import idx_file, no_report, sha256

pytestmark = pytest.mark.real_data


def test_mnist_from_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MNIST_DATA_DIR", str(tmp_path))
    monkeypatch.delenv("MNIST_OFFLINE", raising=False)
    reports: list[str] = []
    arrays = prepared.prepare("mnist", report=reports.append)
    assert reports[0] == "MNIST is not here yet: asking torchvision's mirrors"
    assert arrays.train_images.shape == (60_000, 1, 28, 28)
    assert arrays.test_images.shape == (10_000, 1, 28, 28)
    assert np.bincount(arrays.train_labels).tolist() == [
        *(5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949)
    ]
    assert np.bincount(arrays.test_labels).tolist() == [
        *(980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009)
    ]
    assert prepared.prepare("mnist", report=no_report).sha256 == arrays.sha256  # not fetched again
    assert prepared.verify("mnist")
    # The sum of all of it is of arrays whose IDX files have the published sums.
    for (name, digest), field in zip(DATASETS["mnist"].files.items(), FIELDS, strict=True):
        assert sha256(idx_file(getattr(arrays, field))) == digest, name
