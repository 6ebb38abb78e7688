"""Statistics over seeds, against figures worked out by hand and published tables."""

import math

import pytest

from mnist_cli.sweeps.stats import Sample, distinct, rank, t95


def test_a_sample_by_hand() -> None:
    sample = Sample.of([1.0, 2.0, 3.0, 4.0])
    assert sample.mean == 2.5
    assert sample.sd == pytest.approx(math.sqrt(5 / 3))
    assert sample.half == pytest.approx(3.182 * math.sqrt(5 / 3) / 2)
    assert Sample.of([7.0]) == Sample(1, 7.0, 0.0, math.inf)


@pytest.mark.parametrize(
    ("degrees", "quantile"),
    [(1, 12.706), (4, 2.776), (4.9, 2.776), (30, 2.042), (60, 2.000), (1000, 1.962)],
)
def test_quantiles_are_those_of_the_tables(degrees: float, quantile: float) -> None:
    assert t95(degrees) == pytest.approx(quantile, abs=0.0011)


def test_welch_by_hand() -> None:
    """Means 0 and 1.0 or 2.0 apart, sd 1, n 5: t = 1.58 or 3.16 against 2.306 at 8 degrees."""
    spread = [-1.264911, -0.632456, 0.0, 0.632456, 1.264911]
    a = Sample.of(spread)
    assert a.sd == pytest.approx(1.0, abs=1e-5)
    assert not distinct(a, Sample.of([x + 1.0 for x in spread]))
    assert distinct(a, Sample.of([x + 2.0 for x in spread]))
    assert not distinct(a, Sample.of([100.0]))


def row(acc: float | None, loss: float | None = 1.0, **settings: object) -> dict[str, object]:
    return {"run": "r", "status": "finished", **settings, "val/loss": loss, "val/acc": acc}


def test_settings_are_ranked_by_their_means_and_lost_runs_count_against_them() -> None:
    trials = [
        row(0.90, **{"optimizer.lr": 0.1, "train.seed": 0}),
        row(0.92, **{"optimizer.lr": 0.1, "train.seed": 1}),
        row(0.99, **{"optimizer.lr": 1.0, "train.seed": 0}),
        row(None, None, **{"optimizer.lr": 1.0, "train.seed": 1}),
        row(0.93, **{"optimizer.lr": 0.2, "train.seed": 0}),
        row(0.90, **{"optimizer.lr": 0.2, "train.seed": 1}),
    ]
    found = rank(trials)
    assert [setting.values["optimizer.lr"] for setting in found] == [0.2, 0.1, 1.0]
    assert [setting.trials for setting in found] == [(4, 5), (1, 0), (2, 3)]
    assert found[2].lost == 1
    assert found[2].acc == Sample.of([0.99])


def test_equal_accuracies_are_ranked_by_loss_and_select_loss_by_loss_alone() -> None:
    trials = [row(0.9, 0.5, a=1), row(0.9, 0.4, a=2), row(0.8, 0.1, a=3), row(None, None, a=4)]
    assert [setting.values["a"] for setting in rank(trials)] == [2, 1, 3, 4]
    assert [setting.values["a"] for setting in rank(trials, "loss")] == [3, 2, 1, 4]
