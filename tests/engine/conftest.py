"""What the tests of the engine train on."""

import pytest
import torch

from mnist_cli.config import Config
from mnist_cli.data.dataset import Dataset, load


@pytest.fixture(scope="session")
def data() -> Dataset:
    config = Config.model_validate({"data": {"name": "synthetic", "size": 70, "split": "official"}})
    return load(config.data, torch.device("cpu"), print)
