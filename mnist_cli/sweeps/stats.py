"""What several seeds say together: means, spreads, rankings, which differences are real."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist, fmean, stdev
from typing import Any, Literal, Self

from mnist_cli.runs.selection import selection_score

SEED = "train.seed"
# What is not a swept setting in a trial's row.
MEASURED = ("run", "status", "val/loss", "val/acc", "seconds")
MANY_SEEDS = 10  # of which the distribution is shown
MIN_SEEDS = 3  # with two, an interval is 9 standard deviations wide to either side
ALPHA = 0.05
POWER = 0.8

Verdict = Literal["winner", "tied", "worse", "not judged"]


@dataclass(frozen=True)
class Sample:
    """The same figure measured with several seeds.

    Attributes:
        n: how many.
        mean: their mean.
        sd: their standard deviation (over n - 1); 0 for one.
        ci95_half_width: half the width of the 95 % t-interval of the mean; infinite for fewer
            than three.
    """

    n: int
    mean: float
    sd: float
    ci95_half_width: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """The sample of some values, at least one."""
        n, mean = len(values), fmean(values)
        sd = stdev(values) if n > 1 else 0.0
        enough = n >= MIN_SEEDS
        return cls(n, mean, sd, t95(n - 1) * sd / math.sqrt(n) if enough else math.inf)


@dataclass(frozen=True)
class SeedGroup:
    """The trials of a sweep that differ in nothing but their seed.

    Attributes:
        values: the swept settings by dotted key, without the seed.
        trials: indices of its trials, best first; those without a finite epoch last.
        acc: their best validation accuracies; None if no trial had a finite epoch.
        loss: the validation losses at those epochs.
        n_diverged: how many trials had no finite epoch.
        pruned: whether it ended early, at a rung of a search.
    """

    values: dict[str, Any]
    trials: tuple[int, ...]
    acc: Sample | None
    loss: Sample | None
    n_diverged: int
    pruned: bool = False


def axes(trials: Sequence[Mapping[str, Any]]) -> list[str]:
    """The swept settings of a sweep, from its trials' rows."""
    return [key for key in (trials[0] if trials else ()) if key not in MEASURED]


def rank(trials: Sequence[Mapping[str, Any]], select: str = "acc") -> list[SeedGroup]:
    """The seed groups of a sweep, best first.

    A group with fewer diverged trials comes first, then one that was not pruned, then by its mean
    validation accuracy and loss (or by the loss alone), then in the order asked for.

    Args:
        trials: rows as in a sweep's summary, in the order asked for.
        select: `acc` or `loss`, as in `train.select`.
    """
    keys = [key for key in axes(trials) if key != SEED]
    members: dict[str, list[int]] = {}
    for index, trial in enumerate(trials):
        members.setdefault(repr([trial[key] for key in keys]), []).append(index)

    def score(index: int) -> tuple[float, float]:
        return selection_score(trials[index], select)

    def group(indices: list[int]) -> SeedGroup:
        rows = [trials[i] for i in indices if trials[i]["val/acc"] is not None]
        return SeedGroup(
            values={key: trials[indices[0]][key] for key in keys},
            trials=tuple(sorted(indices, key=score, reverse=True)),
            acc=Sample.of([row["val/acc"] for row in rows]) if rows else None,
            loss=Sample.of([row["val/loss"] for row in rows]) if rows else None,
            n_diverged=len(indices) - len(rows),
            pruned=any(row.get("status") == "pruned" for row in rows),
        )

    groups = [group(indices) for indices in members.values()]
    return [groups[index] for index in ranked(groups, select)]


def ranked(groups: Sequence[SeedGroup], select: str = "acc") -> list[int]:
    """The order of groups, best first, as indices; ties in the order given."""

    def group_score(index: int) -> tuple[int, bool, tuple[float, float]]:
        found = groups[index]
        means = {
            "val/acc": found.acc and found.acc.mean,
            "val/loss": found.loss and found.loss.mean,
        }
        return -found.n_diverged, not found.pruned, selection_score(means, select)

    return sorted(range(len(groups)), key=group_score, reverse=True)


def best_over(ranked: Sequence[SeedGroup], nuisance: Sequence[str]) -> list[SeedGroup]:
    """Of groups that differ in nuisance settings alone the best one; the order stays.

    Args:
        ranked: as `rank` gives them.
        nuisance: dotted keys.
    """
    found: dict[str, SeedGroup] = {}
    for group in ranked:
        others = [value for key, value in group.values.items() if key not in nuisance]
        found.setdefault(repr(others), group)
    return list(found.values())


def compare_with_winner(ranked: Sequence[SeedGroup], select: str = "acc") -> list[Verdict]:
    """Which groups are worse than the winner, wrongly so in at most 5 % of sweeps.

    The winner was chosen by the figures it is now compared by, so testing each of the others
    against it at 5 % would find differences among equals. Each comparison is Welch's t-test at
    5 % divided by the number of all pairs of groups, which bounds the chance of any wrong verdict
    whichever pair is looked at (Bonferroni's inequality; O. J. Dunn, "Multiple comparisons among
    means", JASA 56, 1961).

    Args:
        ranked: as `rank` gives them.
        select: `acc` or `loss`: the figure that decides.

    Returns:
        Of each group what can be said. A group with diverged trials or fewer than three seeds is
        not judged.
    """
    figures = [group.loss if select == "loss" else group.acc for group in ranked]
    samples = [
        figure if figure and figure.n >= MIN_SEEDS and not group.n_diverged else None
        for figure, group in zip(figures, ranked, strict=True)
    ]
    pairs = math.comb(sum(sample is not None for sample in samples), 2)

    def verdict(sample: Sample | None) -> Verdict:
        if best is None or sample is None:
            return "not judged"
        return "worse" if welch_p(best, sample) < ALPHA / pairs else "tied"

    best = samples[0] if samples else None
    return ["winner", *map(verdict, samples[1:])]


def welch_p(a: Sample, b: Sample) -> float:
    """How likely means so far apart are if the true ones are equal, by Welch's t-test.

    Source: B. L. Welch, "The generalization of 'Student's' problem when several different
    population variances are involved", Biometrika 34, 1947.

    Args:
        a: at least two values.
        b: likewise.
    """
    va, vb = a.sd**2 / a.n, b.sd**2 / b.n
    if va + vb == 0:
        return float(a.mean == b.mean)
    df = (va + vb) ** 2 / (va**2 / (a.n - 1) + vb**2 / (b.n - 1))
    return t_two_sided(abs(a.mean - b.mean) / math.sqrt(va + vb), df)


def seeds_to_show(sd: float, gain: float) -> int:
    """How many seeds with, and as many without, show that a change raises the mean so much.

    That is, a two-sided test at 5 % finds it in 80 % of such experiments:
    n = 2 ((z_0.975 + z_0.8) s / d)^2, where s is sd and d the gain.
    Source: R. Lehr, "Sixteen S-squared over D-squared: a relation for crude sample size
    estimates", Statistics in Medicine 11, 1992. For few seeds it is a little too few, as it takes
    the normal distribution for Student's t.

    Args:
        sd: the standard deviation over seeds.
        gain: the difference of means, in the same unit; above 0.
    """
    z = NormalDist().inv_cdf(1 - ALPHA / 2) + NormalDist().inv_cdf(POWER)
    return max(MIN_SEEDS, math.ceil(2 * (z * sd / gain) ** 2))


@cache
def t95(df: float) -> float:
    """The two-sided 95 % quantile of Student's t with `df` >= 1 degrees of freedom."""
    low, high = 1.9, 13.0  # it falls from 12.71 to 1.96
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if t_two_sided(middle, df) > ALPHA else (low, middle)
    return high


def t_two_sided(t: float, df: float) -> float:
    """P(|T| > t) for Student's t: the incomplete beta function at df / (df + t^2), DLMF 8.17."""
    return _incomplete_beta(df / 2, 0.5, df / (df + t * t))


def _incomplete_beta(a: float, b: float, x: float) -> float:
    """I_x(a, b) by its continued fraction (DLMF 8.17.22), evaluated from its last term."""
    if x > (a + 1) / (a + b + 2):  # on this side the fraction converges slowly
        return 1 - _incomplete_beta(b, a, 1 - x)
    if x == 0:
        return 0.0
    fraction = 1.0
    for m in range(50 + 3 * int(math.sqrt(a + b)), -1, -1):
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        even = (m + 1) * (b - m - 1) * x / ((a + 2 * m + 1) * (a + 2 * m + 2))
        fraction = 1 + odd / (1 + even / fraction)
    log_beta = math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
    return math.exp(a * math.log(x) + b * math.log1p(-x) - log_beta) / (a * fraction)
