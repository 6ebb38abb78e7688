"""Optuna, asked for batches of trials in a fixed order; the only module that knows it.

What it is asked for depends on the seed and on what it was told, in that order, and on nothing
else. So a search that goes on asks again from the start, and comes to the same trials.
"""

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
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

    Attributes:
        version: Optuna's.
    """

    def __init__(self, config: Config) -> None:
        import optuna  # noqa: PLC0415 - an extra

        assert config.search
        self._config, self._search = config, config.search
        self._space = {key: parse_space(given) for key, given in self._search.space.items()}
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
        self.version: str = optuna.__version__
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


def _label(value: Any, space: Space) -> Any:
    """What Optuna, which takes plain values alone, calls a choice; a number is itself."""
    listed = not isinstance(space, Range) and isinstance(value, list | tuple | dict)
    return json.dumps(value) if listed else value


def _suggest(trial: "optuna.Trial | optuna.trial.FixedTrial", key: str, space: Space) -> Any:
    if not isinstance(space, Range):
        labels = [_label(choice, space) for choice in space]
        return space[labels.index(trial.suggest_categorical(key, labels))]
    if isinstance(space.low, int) and isinstance(space.high, int):
        return trial.suggest_int(key, space.low, space.high, log=space.log)
    return trial.suggest_float(key, space.low, space.high, log=space.log)


def importances(
    space: Mapping[str, Space], points: Sequence[Mapping[str, Any]], values: Sequence[float]
) -> dict[str, float]:
    """How important each setting is, by dotted key, the most important first.

    Source: Watanabe, Bansal, Hutter, "PED-ANOVA: Efficiently Quantifying Hyperparameter Importance
    in Arbitrary Subspaces", IJCAI 2023.

    Args:
        space: what the settings may be.
        points: of each trial its settings.
        values: of each trial what it came to; the higher, the better.

    Returns:
        Shares; nothing, if there are too few trials to tell.
    """
    import optuna  # noqa: PLC0415 - an extra

    with _no_warnings():
        study = optuna.create_study(direction="maximize")
        for point, value in zip(points, values, strict=True):
            own = {key: each for key, each in space.items() if point.get(key) is not None}
            asked = optuna.trial.FixedTrial({k: _label(point[k], own[k]) for k in own})
            for key, each in own.items():
                _suggest(asked, key, each)
            trial = optuna.trial.create_trial(
                params=asked.params, distributions=asked.distributions, value=value
            )
            study.add_trial(trial)
        evaluator = optuna.importance.PedAnovaImportanceEvaluator(evaluate_on_local=False)
        try:
            return optuna.importance.get_param_importances(study, evaluator=evaluator)
        except (ValueError, RuntimeError):  # all came to the same, say
            return {}


@contextmanager
def _no_warnings() -> Iterator[None]:
    import optuna  # noqa: PLC0415 - an extra

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
