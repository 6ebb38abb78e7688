"""The runs there are by what they were asked and what they measured: filtered, sorted, listed."""

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from mnist_cli.config import Config, full_key
from mnist_cli.config.schema import SECTIONS, meant, setting_keys
from mnist_cli.errors import UsageError
from mnist_cli.runs import store
from mnist_cli.runs.documents import read_json
from mnist_cli.runs.store import RunDirectory
from mnist_cli.sweeps import stats

FACTS = ("name", "status", "started", "epochs", "seconds", "tags", "note")
FIGURES = ("val/acc", "val/loss", "test/acc", "test/loss")
TRAINING = ("waiting", "running", "dead")

_CONDITION = re.compile(r"([\w./]+)\s*(==|!=|<=|>=|=|<|>)\s*(.+)")
_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    ">": operator.gt,
    "<=": operator.le,
    ">=": operator.ge,
}


@dataclass(frozen=True)
class Listed:
    """A run or a sweep with what its folder says, each file read once."""

    run: RunDirectory
    status: str
    meta: Mapping[str, Any]
    summary: Mapping[str, Any]

    @classmethod
    def read(cls, run: RunDirectory) -> "Listed":
        """The run as it is now."""
        status = run.status()  # first: a run that has ended by then has its summary
        return cls(run, status, run.meta(), run.summary())

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Its settings by dotted key; of a sweep those of its winner, and the list of its seeds."""
        saved = self.run.saved_config()
        swept = saved.get("sweep")
        saved = {section: saved[section] for section in SECTIONS if section in saved}
        best = self.summary.get("best") or {}
        axes = stats.axes(self.summary.get("trials") or ())
        won = {key: best[key] for key in axes if key in best and key != stats.SEED}
        return _flat(saved) | _flat(swept if isinstance(swept, dict) else {}) | _flat(won)

    @cached_property
    def figures(self) -> dict[str, float]:
        """What it measured; of a sweep over seeds the mean that it was ranked by."""
        best, trials = self.summary.get("best") or {}, self.summary.get("trials") or ()
        found = {key: best[key] for key in FIGURES if best.get(key) is not None}
        keys = [key for key in stats.axes(trials) if key != stats.SEED]
        group = [trial for trial in trials if all(trial[key] == best.get(key) for key in keys)]
        for key in ("val/acc", "val/loss"):
            if measured := [trial[key] for trial in group if trial[key] is not None]:
                found[key] = fmean(measured)
        if "test/acc" not in found and not trials:
            found |= self._tested(best)
        return found

    def _tested(self, best: Mapping[str, Any]) -> dict[str, float]:
        """What `mnist eval` measured of the best epoch, if it is of these weights."""
        kept = read_json(dict[str, Any], self.run.path / "eval.json") or {}
        found = kept.get("best.pt test")
        if not isinstance(found, dict) or any(
            found.get(key) != best.get(key) for key in ("epoch", "val/loss")
        ):
            return {}
        measured = {f"test/{key}": found.get(key) for key in ("acc", "loss")}
        return {key: value for key, value in measured.items() if isinstance(value, float)}

    @property
    def epochs(self) -> int | None:
        """How many it has trained; None for a sweep. Its metrics are ahead of its summary."""
        if self.run.is_sweep:
            return None
        if self.status not in TRAINING and "epochs" in self.summary:
            return int(self.summary["epochs"])
        path = self.run.metrics_path
        return path.read_bytes().count(b"\n") if path.is_file() else None

    def value(self, key: str) -> Any:
        """A fact, a figure or a setting; None if it has none of that key."""
        if key in FIGURES:
            return self.figures.get(key)
        if key == "name":
            return self.run.name
        if key in ("status", "epochs"):
            return getattr(self, key)
        if key == "seconds":
            return self.summary.get(key)
        return (self.meta if key in FACTS else self.settings).get(key)


@dataclass(frozen=True)
class Condition:
    """A comparison of a run's value of a key, as a number if both are, else as text."""

    key: str
    compare: Callable[[Any, Any], bool]
    wanted: str

    def holds(self, listed: Listed) -> bool:
        """Whether it holds for a run; for one of several values, as of tags, is enough.

        A run without the value differs from any.
        """
        own = listed.value(self.key)
        if own is None or (isinstance(own, list) and self.compare is operator.ne):
            return self.compare is operator.ne and self.wanted not in (own or ())
        return any(map(self._holds_for, own if isinstance(own, list) else [own]))

    def _holds_for(self, own: Any) -> bool:
        if isinstance(own, int | float) and not isinstance(own, bool):
            try:
                return self.compare(own, float(self.wanted))
            except ValueError:
                return self.compare is operator.ne
        return self.compare(str(own).lower(), self.wanted.lower())


def known_key(word: str, option: str) -> str:
    """The key that a word means: `val/acc`, `optimizer.lr`, or `lr`; of `model`, its name.

    Raises:
        UsageError: there is none, or there are several.
    """
    keys = (*FACTS, *FIGURES, *setting_keys())
    if word in SECTIONS and f"{word}.name" in keys:
        return f"{word}.name"
    key = word if word in keys else full_key(word)
    if key not in keys:
        raise UsageError(f"{option}: {word}: there is no such key{meant(word, keys)}")
    return key


def conditions(text: str) -> list[Condition]:
    """What `--filter` asks: `KEY OP VALUE`, joined by `and`.

    Raises:
        UsageError: it is not that, or there is no such key.
    """
    found = []
    for part in re.split(r"\s+and\s+", text.strip()):
        if not (match := _CONDITION.fullmatch(part)):
            example = "such as 'model.name=cnn and val/acc>0.97'"
            raise UsageError(f"--filter: {part!r} is not KEY OP VALUE", example)
        key = known_key(match[1], "--filter")
        found.append(Condition(key, _OPERATORS[match[2]], match[3].strip("'\"")))
    return found


def select(root: Path, where: Sequence[Condition] = (), sort: str | None = None) -> list[Listed]:
    """The runs for which all conditions hold, the newest first.

    Args:
        root: the runs directory.
        where: the conditions.
        sort: a key by which they are sorted instead: accuracies from the highest, all else from
            the lowest, runs without one last.
    """
    runs = [Listed.read(run) for run in reversed(store.all_runs(root))]
    found = [listed for listed in runs if all(each.holds(listed) for each in where)]
    if sort is None:
        return found
    sign = -1 if sort.endswith("acc") else 1

    def place(listed: Listed) -> tuple[int, float, str]:
        value = listed.value(sort)
        if isinstance(value, int | float):
            return 0, sign * value, ""
        return (2 if value is None else 1), 0.0, str(value)

    return sorted(found, key=place)


def unusual_settings(run: RunDirectory) -> dict[str, Any]:
    """The settings of a run that are not the default of their model, data set or optimizer.

    None of a run whose config cannot be read.
    """
    try:
        config, usual = run.config(), Config().resolved()
    except UsageError:
        return {}
    unusual: dict[str, Any] = {}
    for section in SECTIONS:
        own = getattr(config, section)
        name = getattr(own, "name", None)
        if name != usual[section].get("name"):
            unusual[f"{section}.name"] = name
        changed = own.model_dump(mode="json", exclude_defaults=True, exclude_none=True)
        unusual |= {f"{section}.{key}": item for key, item in changed.items() if key != "name"}
    return unusual | {key: list(values) for key, values in config.sweep.items()}


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of sections by dotted key; a section that is a word alone is its name."""
    flat: dict[str, Any] = {}
    for section, value in values.items():
        if section not in SECTIONS:
            flat[section] = value
        elif isinstance(value, dict):
            flat |= {f"{section}.{key}": item for key, item in value.items()}
        else:
            flat[f"{section}.name"] = value
    return flat
