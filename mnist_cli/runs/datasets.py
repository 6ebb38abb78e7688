"""The data sets of configs, on the devices that the configs ask for."""

from collections.abc import Callable
from functools import cache

from mnist_cli.config import Config
from mnist_cli.data.dataset import Dataset, load
from mnist_cli.engine.device import resolve_device
from mnist_cli.errors import DataError, UsageError


class Datasets:
    """Loads the data of configs, keeping the last: runs after one another mostly share theirs.

    Args:
        report: takes a sentence about data being fetched.
        device: what this process computes on, whatever configs say: for runs that train elsewhere.
    """

    def __init__(self, report: Callable[[str], None], device: str | None = None) -> None:
        self._device = device
        self._report = cache(report)  # a sentence that every load would say is said once
        self._last: tuple[str, Dataset] | None = None

    def get(self, config: Config, trained_with: str | None = None) -> Dataset:
        """The data of a config, on its device.

        Args:
            config: the config.
            trained_with: the sum of the data that a run has been trained with.

        Raises:
            UsageError: the device is not there.
            DataError: the data is missing or not what it should be, or not what it was.
        """
        config = self.placed(config)
        device = resolve_device(config.train.device)
        if config.train.precision == "tf32" and device.type != "cuda":
            raise UsageError("train.precision: tf32 needs a GPU", "take fp32 or bf16")
        key = f"{device} {images_key(config)}"
        if self._last is None or self._last[0] != key:
            self._last = None  # two at once would only cost memory
            self._last = key, load(config.data, device, self._report)
        data = self._last[1]
        if trained_with not in (None, data.sha256):
            name = getattr(config.data, "path", data.name)
            what = f"{name}: the images have changed since the run was trained with them"
            raise DataError(what, "put them back as they were, or start another run")
        return data

    def placed(self, config: Config) -> Config:
        """A config as this process can compute with it."""
        if self._device is None:
            return config
        precision = config.train.precision
        here = {"device": self._device, "precision": "fp32" if precision == "tf32" else precision}
        return config.model_copy(update={"train": config.train.model_copy(update=here)})


def images_key(config: Config) -> str:
    """What two configs have in common that train on the same images."""
    return config.data.model_dump_json(exclude={"batch_size", "shuffle"})
