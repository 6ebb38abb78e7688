"""Runs and sweeps side by side: what differs in what was asked, what came of it, what that says."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mnist_cli.report.listing import Listed, unusual_settings
from mnist_cli.runs.store import RunDirectory
from mnist_cli.sweeps import stats
from mnist_cli.sweeps.stats import Sample, SeedGroup, Verdict


@dataclass(frozen=True)
class Compared:
    """One of the runs that are compared.

    Attributes:
        listed: the run; or the sweep, which stands for its winner.
        group: its figures, over the seeds of a sweep's winner.
        members: the folders of the runs that these are of, the best first.
        verdict: whether its mean can be told from the best one's.
    """

    listed: Listed
    group: SeedGroup
    members: list[RunDirectory]
    verdict: Verdict

    @property
    def document(self) -> dict[str, Any]:
        """What `--json` says of it."""
        run, acc = self.listed.run, self.group.acc
        spread = {"n": acc.n, "sd": acc.sd, "ci95_half_width": acc.ci95_half_width} if acc else {}
        figures = {**self.listed.figures, **spread}
        return {
            "name": run.name,
            "path": str(run.path.absolute()),
            "verdict": self.verdict,
            **figures,
        }


def compare(folders: Sequence[RunDirectory]) -> list[Compared]:
    """Runs and sweeps in the order given, with what can be said of their differences.

    They are compared by the loss if all of them select by it, else by accuracy: a test of all
    against the best at 5 % together (see `stats.compare_with_winner`).
    """
    listed = [Listed.read(folder) for folder in folders]
    selects = {each.settings.get("train.select") for each in listed}
    select = "loss" if selects == {"loss"} else "acc"
    groups = [_group(each, select) for each in listed]
    order = stats.ranked(groups, select)
    verdicts = stats.compare_with_winner([groups[index] for index in order], select)
    said = dict(zip(order, verdicts, strict=True))
    return [
        Compared(each, group, _members(each, group), said[index])
        for index, (each, group) in enumerate(zip(listed, groups, strict=True))
    ]


def differences(compared: Sequence[Compared]) -> dict[str, list[Any]]:
    """The settings in which they differ, by dotted key, in the order of the runs.

    Without those that only some have, as their models differ, and there with the default; and
    without seeds where there are several, as those are what the figures are over.
    """
    settings = [each.listed.settings for each in compared]
    unusual = {key for each in compared for key in unusual_settings(each.listed.run)}
    columns = {
        key: [own.get(key) for own in settings]
        for key in dict.fromkeys(key for own in settings for key in own)
        if key != "name" and (key in unusual or all(key in own for own in settings))
    }
    if any(isinstance(seed, list) for seed in columns.get(stats.SEED, ())):
        del columns[stats.SEED]
    return {key: column for key, column in columns.items() if any(v != column[0] for v in column)}


def _group(listed: Listed, select: str) -> SeedGroup:
    if trials := listed.summary.get("trials"):
        return stats.rank(trials, select)[0]
    best: Mapping[str, Any] = listed.summary.get("best") or {}
    acc, loss = (
        Sample.of([best[key]]) if best.get(key) is not None else None
        for key in ("val/acc", "val/loss")
    )
    return SeedGroup({}, (0,), acc, loss, int(acc is None))


def _members(listed: Listed, group: SeedGroup) -> list[RunDirectory]:
    if not listed.run.is_sweep:
        return [listed.run]
    return [listed.run.trial(index) for index in group.trials]
