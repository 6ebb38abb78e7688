"""Statistics over seeds, against figures worked out by hand, published tables and simulation."""

import math
from statistics import stdev

import numpy as np
import pytest

from mnist_cli.sweeps.stats import (
    Sample,
    SeedGroup,
    compare_with_winner,
    rank,
    seeds_to_show,
    t95,
    t_two_sided,
    welch_p,
)


def test_a_sample_by_hand() -> None:
    sample = Sample.of([1.0, 2.0, 3.0, 4.0])
    assert sample.mean == 2.5
    assert sample.sd == pytest.approx(math.sqrt(5 / 3))
    assert sample.ci95_half_width == pytest.approx(3.182446 * math.sqrt(5 / 3) / 2)
    assert Sample.of([7.0]) == Sample(1, 7.0, 0.0, math.inf)
    assert Sample.of([1.0, 2.0]).ci95_half_width == math.inf


# From the NIST/SEMATECH handbook, table 1.3.6.7.2.
@pytest.mark.parametrize(
    ("degrees", "quantile"),
    [(1, 12.706), (2, 4.303), (3, 3.182), (8, 2.306), (30, 2.042), (60, 2.0), (100, 1.984)],
)
def test_quantiles_are_those_of_the_tables(degrees: int, quantile: float) -> None:
    assert t95(degrees) == pytest.approx(quantile, abs=0.0006)


@pytest.mark.parametrize("degrees", [1, 1.5, 2.001, 2.5, 4.9, 17.3, 99.9, 1e4, 1e6])
def test_quantiles_of_any_degrees_hold_95_per_cent(degrees: float) -> None:
    """By the integral of the density."""
    quantile = t95(degrees)
    t = np.linspace(0, quantile, 100_001)
    log = math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)
    density = np.exp(log - (degrees + 1) / 2 * np.log1p(t**2 / degrees))
    density /= math.sqrt(degrees * math.pi)
    error = 0.95 - 2 * float(np.trapezoid(density, t))
    assert abs(error / 2 / density[-1]) < 0.001


def test_the_tail_of_t_by_its_closed_forms() -> None:
    """For one degree of freedom an arc tangent, for two a root."""
    for t in (0.1, 1.0, 3.0, 50.0):
        assert t_two_sided(t, 1) == pytest.approx(1 - 2 / math.pi * math.atan(t), rel=1e-9)
        assert t_two_sided(t, 2) == pytest.approx(1 - t / math.sqrt(2 + t * t), rel=1e-6)


def test_welch_by_hand() -> None:
    """Means 1 or 2 apart, sd 1, n 5: t = 1.58 or 3.16 at 8 degrees; p from tables of t."""
    values = [-1.264911, -0.632456, 0.0, 0.632456, 1.264911]
    a = Sample.of(values)
    assert a.sd == pytest.approx(1.0, abs=1e-5)
    assert welch_p(a, Sample.of([x + 1.0 for x in values])) == pytest.approx(0.1525, abs=1e-3)
    assert welch_p(a, Sample.of([x + 2.0 for x in values])) == pytest.approx(0.0133, abs=1e-3)
    same = Sample.of([1.0] * 3)
    assert (welch_p(same, same), welch_p(same, Sample.of([2.0] * 3))) == (1.0, 0.0)


def group(values: "np.ndarray[tuple[int], np.dtype[np.float64]]", n_diverged: int = 0) -> SeedGroup:
    n, mean, sd = len(values), float(values.mean()), float(values.std(ddof=1))
    return SeedGroup({}, (), Sample(n, mean, sd, 0.0), None, n_diverged)


@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize("settings", [2, 5, 10, 20])
def test_equal_settings_are_rarely_called_worse(settings: int, seeds: int) -> None:
    """However many there are, of equal settings 5 % of sweeps at most call any one worse."""
    generator = np.random.default_rng(0)
    sweeps = 4000 // settings
    wrong = 0
    for _ in range(sweeps):
        values = generator.normal(size=(settings, seeds))
        ranked = [group(row) for row in sorted(values, key=lambda row: -row.mean())]
        wrong += "worse" in compare_with_winner(ranked)
    assert wrong / sweeps <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / sweeps)  # two standard errors


def test_what_differs_much_is_called_worse_and_the_rest_tied() -> None:
    values = np.array([0.0, 0.1, -0.1])
    ranked = [group(values + 9.0), group(values + 8.95), group(values), group(values + 9, 1)]
    assert compare_with_winner(ranked) == ["winner", "tied", "worse", "not judged"]
    assert compare_with_winner([group(v[:2]) for v in (values + 9, values)])[1] == "not judged"


def row(acc: float | None, loss: float | None = 1.0, **settings: object) -> dict[str, object]:
    return {"run": "r", "status": "finished", **settings, "val/loss": loss, "val/acc": acc}


def test_groups_are_ranked_by_their_means_and_diverged_runs_count_against_them() -> None:
    trials = [
        row(0.90, **{"optimizer.lr": 0.1, "train.seed": 0}),
        row(0.92, **{"optimizer.lr": 0.1, "train.seed": 1}),
        row(0.99, **{"optimizer.lr": 1.0, "train.seed": 0}),
        row(None, None, **{"optimizer.lr": 1.0, "train.seed": 1}),
        row(0.93, **{"optimizer.lr": 0.2, "train.seed": 0}),
        row(0.90, **{"optimizer.lr": 0.2, "train.seed": 1}),
    ]
    ranked = rank(trials)
    assert [found.values["optimizer.lr"] for found in ranked] == [0.2, 0.1, 1.0]
    assert [found.trials for found in ranked] == [(4, 5), (1, 0), (2, 3)]
    assert ranked[2].n_diverged == 1
    assert ranked[2].acc == Sample.of([0.99])


def test_equal_accuracies_are_ranked_by_loss_and_select_loss_by_loss_alone() -> None:
    trials = [row(0.9, 0.5, a=1), row(0.9, 0.4, a=2), row(0.8, 0.1, a=3), row(None, None, a=4)]
    assert [found.values["a"] for found in rank(trials)] == [2, 1, 3, 4]
    assert [found.values["a"] for found in rank(trials, "loss")] == [3, 2, 1, 4]


def test_so_many_seeds_find_the_gain_in_four_of_five_experiments() -> None:
    """By simulation; and by the rule of thumb of the source, 16 s^2 / d^2."""
    values = [0.0, 0.001, 0.002, 0.003]
    seeds = seeds_to_show(stdev(values), 0.001)
    assert seeds == pytest.approx(16 * Sample.of(values).sd ** 2 / 0.001**2, rel=0.05)
    draws = np.random.default_rng(0).normal(0, Sample.of(values).sd, (2, 2000, seeds))
    found = [
        welch_p(Sample.of(a.tolist()), Sample.of(b.tolist())) < 0.05
        for a, b in zip(draws[0], draws[1] + 0.001, strict=True)
    ]
    assert np.mean(found) == pytest.approx(0.8, abs=0.04)
    assert seeds_to_show(stdev(values), 0.1) == 3
