"""Optuna, asked for batches of trials in a fixed order; the only module that knows it.

What it is asked for depends on the seed and on what it was told, in that order, and on nothing
else. So a search that goes on asks again from the start, and comes to the same trials.
"""

import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

from mnist_cli.config import Config
from mnist_cli.config.space import Range, Space, parse_space
from mnist_cli.config.trials import applies
from mnist_cli.errors import UsageError

if TYPE_CHECKING:
    import optuna


def require() -> None:
    """Sees to it that Optuna is there.

    Raises:
        UsageError: it is not.
    """
    try:
        for package in ("optuna", "scipy"):  # two of its samplers need the latter
            import_module(package)
    except ImportError as error:
        hint = "pip install 'mnist-cli[search]'"
        raise UsageError(f"search needs Optuna, and {error.name} is not installed", hint) from error


class Sampler:
    """An Optuna study of its own, in memory.

    Args:
        config: with its search section.
    """

    def __init__(self, config: Config) -> None:
        import optuna  # noqa: PLC0415 - an extra

        assert config.search
        self._config, self._search = config, config.search
        self._space = {key: parse_space(given) for key, given in self._search.space.items()}
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        kinds = optuna.samplers
        options: dict[str, Any] = {"seed": self._search.seed}
        if self._search.sampler != "random":
            options["warn_independent_sampling"] = False
        if self._search.sampler == "qmc":
            options |= {"scramble": True, "warn_asynchronous_seeding": False}
        kind = {
            "tpe": kinds.TPESampler,
            "random": kinds.RandomSampler,
            "qmc": kinds.QMCSampler,
            "gp": kinds.GPSampler,
        }[self._search.sampler]
        with _no_warnings():
            self._study = optuna.create_study(
                sampler=kind(**options),
                direction="minimize" if config.train.select == "loss" else "maximize",
            )
        self._asked: dict[int, optuna.Trial] = {}

    def ask(self, count: int) -> list[dict[str, Any]]:
        """The next points of the space: settings by dotted key, without those that do not apply."""
        with _no_warnings():
            return [self._ask() for _ in range(count)]

    def tell(self, number: int, figures: Sequence[float], *, ended: bool) -> None:
        """What came of a trial.

        Args:
            number: which, in the order asked for.
            figures: what counts, after each epoch; none of a trial that diverged.
            ended: whether it came to its end, and was not pruned.
        """
        from optuna.trial import TrialState  # noqa: PLC0415 - an extra

        trial = self._asked.pop(number)
        with _no_warnings():
            for epoch, figure in enumerate(figures, 1):
                trial.report(figure, epoch)
            state = TrialState.COMPLETE if ended else TrialState.PRUNED
            self._study.tell(trial, figures[-1] if ended else None, state)

    def importances(self) -> dict[str, float]:
        """How much of the differences each setting explains (fANOVA), by dotted key."""
        import optuna  # noqa: PLC0415 - an extra

        with _no_warnings():
            return optuna.importance.get_param_importances(self._study)

    def save(self, storage: str, name: str) -> None:
        """Copies the trials that were told to an Optuna storage, those that it lacks.

        Args:
            storage: a URL of a database, or the path of a journal file.
            name: of the study there.

        Raises:
            UsageError: it cannot be opened or written to.
        """
        import optuna  # noqa: PLC0415 - an extra
        from optuna.storages import JournalStorage, journal  # noqa: PLC0415

        where: Any = storage
        try:
            if "://" not in storage:
                where = JournalStorage(journal.JournalFileBackend(storage))
            copy = optuna.create_study(
                storage=where,
                study_name=name,
                direction=self._study.direction.name.lower(),  # type: ignore[arg-type]
                load_if_exists=True,
            )
            copy.add_trials(self._study.get_trials()[len(copy.get_trials()) :])
        except Exception as error:
            raise UsageError(f"--storage {storage}: {type(error).__name__}: {error}") from error

    def _ask(self) -> dict[str, Any]:
        trial = self._study.ask()
        self._asked[trial.number] = trial
        found: dict[str, Any] = {}
        for key in sorted(self._space, key=lambda key: not key.endswith(".name")):
            section = key.partition(".")[0]
            base = getattr(getattr(self._config, section), "name", "")
            if applies(key, found.get(f"{section}.name", base)):
                found[key] = _suggest(trial, key, self._space[key])
        return {key: found[key] for key in self._space if key in found}


def _suggest(trial: "optuna.Trial", key: str, space: Space) -> Any:
    if not isinstance(space, Range):
        # It takes plain values alone.
        labels: list[Any] = [json.dumps(c) if isinstance(c, list | dict) else c for c in space]
        return space[labels.index(trial.suggest_categorical(key, labels))]
    if isinstance(space.low, int) and isinstance(space.high, int):
        return trial.suggest_int(key, space.low, space.high, log=space.log)
    return trial.suggest_float(key, space.low, space.high, log=space.log)


@contextmanager
def _no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
