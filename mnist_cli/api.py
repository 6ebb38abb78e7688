"""The Python API: what `mnist train`, `sweep` and `search` do, called from a script or a notebook.

torch is imported by the first function that needs it.
"""

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnist_cli import config as configs
from mnist_cli.config import Config, Flag, Loaded
from mnist_cli.errors import CheckpointError, UsageError
from mnist_cli.report import session as sessions
from mnist_cli.runs import interrupts, store
from mnist_cli.sweeps.expand import Trial, expand

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from mnist_cli.runs.checkpoint import Checkpoint

ConfigSource = str | Path | Mapping[str, object]


@dataclass(frozen=True)
class Run:
    """A run or a sweep as its folder has it; every attribute is read when it is asked for.

    Attributes:
        folder: its folder.
    """

    folder: store.RunDirectory

    @property
    def name(self) -> str:
        """Its name in the runs directory."""
        return self.folder.name

    @property
    def path(self) -> Path:
        """Its folder, absolute."""
        return self.folder.path.absolute()

    @property
    def status(self) -> str:
        """`finished`, `running`, `interrupted`, `diverged`, `failed`, `dead` and so on."""
        return self.folder.status()

    @property
    def config(self) -> Config:
        """The resolved config; of a sweep, with what is swept."""
        return self.folder.config()

    @property
    def summary(self) -> dict[str, Any]:
        """What came of it, as `--json` prints it; empty before it has ended."""
        return self.folder.summary()

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """One row per epoch, as in `metrics.jsonl`; of a sweep, those of each run with its name."""
        own: list[dict[str, Any]] = [{**record} for record in self.folder.metrics()]
        return own or [{"run": run.name, **row} for run in self.runs for row in run.metrics]

    @property
    def runs(self) -> "list[Run]":
        """The runs of a sweep, in the order asked for; of a run, none."""
        return [Run(trial) for trial in self.folder.trials()]

    def model(self) -> "nn.Module":
        """The plain module with its best weights, on the CPU, in evaluation mode.

        It takes images of shape (batch, channels, height, width), with pixels of 0..1 unless
        `data.normalize` is false, and returns logits of shape (batch, classes).

        Raises:
            CheckpointError: there is no checkpoint, or it is damaged.
        """
        from mnist_cli.runs.evaluate import module

        return module(*self._best()).eval()

    def predict(self, images: "np.ndarray", device: str = "auto") -> "np.ndarray":
        """The probability that the best weights give each class, for each image.

        Args:
            images: uint8 of 0..255, shape (n, height, width) or (n, channels, height, width), of
                the size of the training images.
            device: as in `train.device`.

        Returns:
            Float, shape (n, classes).

        Raises:
            CheckpointError: there is no checkpoint, or it is damaged.
            UsageError: the images are of another shape or type, or the device is not there.
        """
        import numpy as np

        from mnist_cli.runs.evaluate import probabilities

        pixels = np.asarray(images)
        pixels = pixels[:, None] if pixels.ndim == 3 else pixels
        return probabilities(*self._best(f"train.device={device}"), pixels)

    def _best(self, *overrides: str) -> "tuple[Checkpoint, Config]":
        from mnist_cli.runs import checkpoint as checkpoints

        path = self.folder.best
        if not path.exists():
            raise CheckpointError(f"{self.name} has no checkpoint: it is {self.status}")
        state = checkpoints.load(path)
        return state, configs.load_saved(state.config, str(path), overrides)


def load(run: str | Path, *, runs_dir: str | Path | None = None) -> Run:
    """A run or a sweep by its name in the runs directory, or by its folder.

    Raises:
        UsageError: there is none, naming the nearest.
    """
    return Run(store.find(_root(runs_dir), str(run)))


def train(
    config: ConfigSource = "mlp",
    *,
    seeds: int | Sequence[int] | None = None,
    runs_dir: str | Path | None = None,
    quiet: bool = False,
    **settings: object,
) -> Run:
    """Trains one run: what the config says, without its sweep; or the same with several seeds.

    Args:
        config: the name of a shipped config, a file, or a dict of sections.
        seeds: how many seeds, or which; the run is then a sweep over them.
        runs_dir: where runs are kept, if not in `$MNIST_RUNS_DIR` or `runs`.
        quiet: whether nothing is shown on the way.
        settings: settings of the config: `lr=1e-2` where one section alone has it, else
            `data__seed=1`, or, as `**{"data.seed": 1}`, by the dotted key.

    Raises:
        MnistError: as the command line has it; `mnist_cli.errors` lists them. A run that diverged
            raises RunError, and `load` finds it.
    """
    axes = {"train.seed": seeds} if seeds is not None else {}
    loaded = _loaded(config, settings, axes)
    swept = {"train.seed": loaded.config.sweep["train.seed"]} if axes else {}
    chosen = loaded.config.alone(swept)
    root = _root(runs_dir)
    if swept:
        return _sweep(chosen, loaded, root, "seeds", quiet, {"test": False})
    begin = partial(store.create, root, chosen.name or "run")
    with _restored(), _session([chosen], begin, loaded, quiet) as session:
        from mnist_cli.runs import run as runs

        run = runs.create(chosen, session.folder)
        sessions.train_run(run, session)
        session.draw()
        sessions.refuse_diverged(run)
        return Run(session.folder)


def sweep(
    config: ConfigSource = "mlp",
    *,
    lrs: str | Sequence[float] | None = None,
    seeds: int | Sequence[int] | None = None,
    grid: Mapping[str, str | Sequence[object]] | None = None,
    workers: int | None = None,
    runs_dir: str | Path | None = None,
    quiet: bool = False,
    **settings: object,
) -> Run:
    """Trains every combination of the swept settings, ranks them, and tests the winner once.

    Args:
        config: the name of a shipped config, a file, or a dict of sections.
        lrs: learning rates, also as the command line has them: `"log:1e-4:1e-1:7"`.
        seeds: how many seeds, or which.
        grid: values of any setting, by its key.
        workers: how many processes, if not as many as pay.
        runs_dir: where runs are kept, if not in `$MNIST_RUNS_DIR` or `runs`.
        quiet: whether nothing is shown on the way.
        settings: settings of every run, as in `train`.

    Raises:
        MnistError: as the command line has it. If runs failed or all diverged, `load` finds them.
    """
    axes = {"optimizer.lr": lrs, "train.seed": seeds, **(grid or {})}
    loaded = _loaded(config, settings, {k: v for k, v in axes.items() if v is not None})
    if both := [key for key in loaded.changed if key in loaded.config.sweep]:
        raise UsageError(
            f"{both[0]} is set, but {loaded.origin} sweeps it",
            f"give the values to sweep instead: grid={{{both[0]!r}: [...]}}",
        )
    options = {"test": True, "workers": workers}
    return _sweep(loaded.config, loaded, _root(runs_dir), "sweep", quiet, options)


def search(
    config: ConfigSource = "mlp",
    *,
    space: Mapping[str, str | Sequence[object]] | None = None,
    trials: int | None = None,
    seeds: int | None = None,
    sampler: str | None = None,
    pruner: str | None = None,
    storage: str | None = None,
    workers: int | None = None,
    runs_dir: str | Path | None = None,
    quiet: bool = False,
    **settings: object,
) -> Run:
    """Searches settings with Optuna, trains its trials as stacks, and tests the winner once.

    Args:
        config: the name of a shipped config, a file, or a dict of sections.
        space: what settings may be, by key: `"log:1e-4:1e-1"`, `"0..0.5"`, or a list; in addition
            to `search.space` of the config.
        trials: how many are tried.
        seeds: seeds of each.
        sampler: `tpe`, `random`, `qmc` or `gp`.
        pruner: `halving`, `median` or `none`.
        storage: where trials are kept as well, for Optuna's tools.
        workers: how many processes, if not as many as pay.
        runs_dir: where runs are kept, if not in `$MNIST_RUNS_DIR` or `runs`.
        quiet: whether nothing is shown on the way.
        settings: settings of every run, as in `train`.

    Raises:
        MnistError: as the command line has it; Optuna is not installed.
    """
    from mnist_cli.report.search import train_search
    from mnist_cli.sweeps.sampling import require

    asked = {"trials": trials, "seeds": seeds, "sampler": sampler, "pruner": pruner}
    own = {f"search.{key}": value for key, value in asked.items() if value is not None}
    loaded = _loaded(config, {**settings, **own}, {}, space or {})
    chosen = configs.searched(loaded)
    require()
    begin = partial(store.create, _root(runs_dir), f"{chosen.name or 'run'}-search")
    with _restored(), _session([chosen], begin, loaded, quiet) as session:
        from mnist_cli.sweeps import search as searches

        made = searches.begin(chosen, session.folder, storage, workers)
        failures = train_search(made, session)
        session.draw()
        sessions.refuse_failed(made, failures)
        return Run(session.folder)


def _sweep(
    config: Config, loaded: Loaded, root: Path, kind: str, quiet: bool, options: Mapping[str, Any]
) -> Run:
    """Makes a sweep in a folder of its own and trains it; `options` are those of `sweep.create`."""
    trials: Sequence[Trial] = expand(config)
    begin = partial(store.create, root, f"{config.name or 'run'}-{kind}")
    needed = [trial.config for trial in trials]
    with _restored(), _session(needed, begin, loaded, quiet) as session:
        from mnist_cli.sweeps import sweep as sweeps

        sweep = sweeps.create(config, trials, session.folder, **options)
        failures = sessions.train_sweep(sweep, session)
        session.draw()
        sessions.refuse_failed(sweep, failures)
        return Run(session.folder)


def _session(
    needed: Sequence[Config], begin: Callable[[], store.RunDirectory], loaded: Loaded, quiet: bool
) -> AbstractContextManager[sessions.Session]:
    """A session that shows everything in one place: a notebook's cell, or stderr."""
    from mnist_cli.report.terminal import Terminal

    console = Terminal(stderr=True, quiet=quiet, highlight=False, markup=False, emoji=False)
    for note in sessions.notes(loaded):
        console.print(note)

    def interrupted(folder: store.RunDirectory, _: sessions.Interruption) -> None:
        for line in sessions.interruption_lines(folder):
            console.print(line)

    return sessions.session(needed, begin, console, console, interrupted)


def _restored() -> AbstractContextManager[None]:
    """Leaves the handlers of signals as they were; in a thread of its own, nothing listens."""
    is_main = threading.current_thread() is threading.main_thread()
    return interrupts.restored() if is_main else nullcontext()


def _root(runs_dir: str | Path | None) -> Path:
    return store.runs_root(Path(runs_dir) if runs_dir else None).absolute()


def _loaded(
    config: ConfigSource,
    settings: Mapping[str, object],
    axes: Mapping[str, object],
    space: Mapping[str, object] | None = None,
) -> Loaded:
    """The config with those settings, read as on a command line."""
    keys = {key: "train.seed" if key == "seed" else key.replace("__", ".") for key in settings}
    overrides = [f"{keys[key]}={_text(key, value)}" for key, value in settings.items()]
    flags = [
        Flag("--seeds" if isinstance(values, int) else "grid", key, _text(key, values))
        for key, values in axes.items()
    ]
    spaces = [
        Flag("space", key, values if isinstance(values, str) else _text(key, values))
        for key, values in (space or {}).items()
    ]
    source = str(config) if isinstance(config, Path) else config
    return configs.load(source, overrides, axes=flags, spaces=spaces)


def _text(key: str, value: object) -> str:
    """A value as a command line would have it: in JSON, which YAML reads.

    Raises:
        UsageError: it is no plain value.
    """
    if isinstance(value, str) and key == "name":  # always text, and all of it
        return value
    try:
        return json.dumps(value, ensure_ascii=False, default=lambda array: array.tolist())
    except (TypeError, ValueError, AttributeError) as error:
        raise UsageError(f"{key}: must be a plain value, got {type(value).__name__}") from error
