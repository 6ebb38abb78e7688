"""What several seeds say together: means, spreads, rankings, which differences are real."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any, Self

# Two-sided 95 % quantiles of Student's t for 1, 2, ... 30 degrees of freedom, from the usual
# tables.
T95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip

SEED = "train.seed"
MEASURED = (
    "run",
    "status",
    "val/loss",
    "val/acc",
    "seconds",
)  # what is not an axis in a trial's row


@dataclass(frozen=True)
class Sample:
    """The same figure measured with several seeds.

    Attributes:
        n: how many.
        mean: their mean.
        sd: their standard deviation (over n - 1); 0 for one.
        half: half the width of the 95 % t-interval of the mean; infinite for one.
    """

    n: int
    mean: float
    sd: float
    half: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """The sample of some values, at least one."""
        n, mean = len(values), fmean(values)
        if n == 1:
            return cls(n, mean, 0.0, math.inf)
        sd = stdev(values)
        return cls(n, mean, sd, t95(n - 1) * sd / math.sqrt(n))


@dataclass(frozen=True)
class Setting:
    """The trials of a sweep that differ in nothing but their seed.

    Attributes:
        values: the swept settings by dotted key, without the seed.
        trials: indices of its trials, best first; those without a finite epoch last.
        acc: their best validation accuracies; None if no trial had a finite epoch.
        loss: the validation losses at those epochs.
        lost: how many trials had no finite epoch.
    """

    values: dict[str, Any]
    trials: tuple[int, ...]
    acc: Sample | None
    loss: Sample | None
    lost: int


def axes(trials: Sequence[Mapping[str, Any]]) -> list[str]:
    """The swept settings of a sweep, from its trials' rows."""
    return [key for key in (trials[0] if trials else ()) if key not in MEASURED]


def rank(trials: Sequence[Mapping[str, Any]], select: str = "acc") -> list[Setting]:
    """The settings of a sweep, best first.

    A setting with fewer lost trials comes first, then by its mean validation accuracy and loss (or
    by the loss alone), then in the order asked for.

    Args:
        trials: rows as in a sweep's summary, in the order asked for.
        select: `acc` or `loss`, as in `train.select`.
    """
    groups: dict[str, list[int]] = {}
    keys = [key for key in axes(trials) if key != SEED]
    for index, trial in enumerate(trials):
        groups.setdefault(repr([trial[key] for key in keys]), []).append(index)

    def score(acc: float | None, loss: float | None) -> tuple[float, float]:
        """Smaller is better."""
        if acc is None or loss is None:
            return math.inf, math.inf
        return (loss, 0.0) if select == "loss" else (-acc, loss)

    def setting(indices: list[int]) -> Setting:
        best_first = sorted(
            indices, key=lambda i: score(trials[i]["val/acc"], trials[i]["val/loss"])
        )
        finite = [trials[i] for i in indices if trials[i]["val/acc"] is not None]
        return Setting(
            values={key: trials[indices[0]][key] for key in keys},
            trials=tuple(best_first),
            acc=Sample.of([trial["val/acc"] for trial in finite]) if finite else None,
            loss=Sample.of([trial["val/loss"] for trial in finite]) if finite else None,
            lost=len(indices) - len(finite),
        )

    def place(found: Setting) -> tuple[int, tuple[float, float]]:
        means = (found.acc.mean, found.loss.mean) if found.acc and found.loss else (None, None)
        return found.lost, score(*means)

    return sorted((setting(indices) for indices in groups.values()), key=place)


def distinct(a: Sample, b: Sample) -> bool:
    """Whether two means differ at 95 % confidence, by Welch's t-test.

    Source: B. L. Welch, "The generalization of 'Student's' problem when several different
    population variances are involved", Biometrika 34, 1947. One value alone shows no difference.
    """
    if a.n < 2 or b.n < 2:
        return False
    va, vb = a.sd**2 / a.n, b.sd**2 / b.n
    if va + vb == 0:
        return a.mean != b.mean
    degrees = (va + vb) ** 2 / (va**2 / (a.n - 1) + vb**2 / (b.n - 1))
    return abs(a.mean - b.mean) > t95(degrees) * math.sqrt(va + vb)


def t95(degrees: float) -> float:
    """The two-sided 95 % quantile of Student's t; between two rows of the table, the wider."""
    whole = max(math.floor(degrees), 1)
    # Beyond the table, the first terms of the expansion around the normal quantile: right to 0.001.
    return T95[whole - 1] if whole <= len(T95) else 1.96 + 2.4 / whole
