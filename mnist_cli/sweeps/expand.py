"""Which runs a sweep is of, and which of them can train as one stack: functions on data."""

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mnist_cli.config import Config, with_settings
from mnist_cli.config.trials import applies
from mnist_cli.errors import UsageError

# What the runs of one stack may differ in, each being updated on its own. Anything else makes
# another stack.
STACKABLE = (
    *("optimizer.", "scheduler.", "train.seed", "train.clip_grad_norm"),
    *("train.early_stop", "train.target", "train.max_seconds"),
)


@dataclass(frozen=True)
class Trial:
    """One run of a sweep, before it runs.

    Attributes:
        index: its place in the order asked for, from 0.
        settings: the value of each swept setting.
        config: its whole config, without the sweep.
    """

    index: int
    settings: dict[str, Any]
    config: Config


def expand(config: Config) -> list[Trial]:
    """Every combination of the swept values, the last axis moving fastest.

    Raises:
        UsageError: nothing is swept.
        ConfigError: a combination is not a valid config.
    """
    if not config.sweep:
        raise UsageError(
            "nothing to sweep: the config has no sweep section",
            "give values, such as --lrs 1e-1,1e-2,1e-3 or --grid model.depth=1..5",
        )
    base = config.alone()
    axes = {**config.sweep}
    found = {json.dumps(settings): settings for settings in _combinations(axes, config)}
    for added in config.added:
        axes = {key: (*values, *added.get(key, ())) for key, values in axes.items()}
        found |= {json.dumps(each): each for each in _combinations(axes, config)}
    return [
        Trial(index, settings, with_settings(base, settings))
        for index, settings in enumerate(found.values())
    ]


def _combinations(
    axes: Mapping[str, Sequence[object]], config: Config
) -> Iterator[dict[str, object]]:
    """The settings of each combination, without those that its variants do not have."""
    together = {key: keys for keys in config.zip for key in keys}
    groups = dict.fromkeys(together.get(key, (key,)) for key in axes)
    values = [[*zip(*(axes[key] for key in keys), strict=True)] for keys in groups]
    for chosen in itertools.product(*values):
        settings = {
            key: value
            for keys, items in zip(groups, chosen, strict=True)
            for key, value in zip(keys, items, strict=True)
        }
        yield {
            key: value
            for key, value in settings.items()
            if f"{key.partition('.')[0]}.name" not in settings
            or applies(key, str(settings[f"{key.partition('.')[0]}.name"]))
        }


def group(trials: Iterable[Trial]) -> list[list[Trial]]:
    """The trials in stacks: those that differ only in what one stack can hold apart."""
    stacks: dict[str, list[Trial]] = {}
    for trial in trials:
        fixed = {k: v for k, v in trial.config.settings() if not k.startswith(STACKABLE)}
        stacks.setdefault(json.dumps(fixed, sort_keys=True), []).append(trial)
    return list(stacks.values())


def separators(stacks: Sequence[Sequence[Trial]]) -> list[str]:
    """The swept settings that made more than one stack of a sweep, in the order swept."""
    firsts = [stack[0].settings for stack in stacks]
    return [
        key
        for key in firsts[0]
        if not key.startswith(STACKABLE)
        and len({json.dumps(settings.get(key)) for settings in firsts}) > 1
    ]
