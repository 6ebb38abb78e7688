"""Grades of predictions against their definitions, computed in another way."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mnist_cli.runs import grade


def predictions(n: int, sharpness: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities, and labels drawn from them as they were before they were sharpened."""
    logits = torch.randn(n, 10, dtype=torch.float64, generator=torch.manual_seed(seed)) * 2
    labels = torch.multinomial(logits.softmax(-1), 1, generator=torch.manual_seed(seed + 1))[:, 0]
    return (sharpness * logits).softmax(-1).numpy(), labels.numpy()


def test_the_likelihood_is_torchs() -> None:
    probabilities, labels = predictions(500, 3.0)
    logs = torch.from_numpy(probabilities).log()
    assert grade.nll(probabilities, labels) == pytest.approx(
        F.nll_loss(logs, torch.from_numpy(labels)).item(), rel=1e-12
    )
    assert np.isfinite(grade.nll(np.array([[1.0, 0.0]]), np.array([1])))


def test_the_calibration_error_is_its_definition() -> None:
    probabilities, labels = predictions(1000, 2.0)
    expected = 0.0
    for m in range(15):
        inside = [
            (row.max(), row.argmax() == label)
            for row, label in zip(probabilities, labels, strict=True)
            if m / 15 < row.max() <= (m + 1) / 15
        ]
        if inside:
            confidence, accuracy = np.mean(inside, axis=0)
            expected += len(inside) / 1000 * abs(accuracy - confidence)
    bins = grade.reliability(probabilities, labels)
    assert sum(each.n for each in bins) == 1000
    assert grade.expected_error(bins) == pytest.approx(expected, rel=1e-12)
    assert expected > 0.1
    sure = grade.reliability(np.array([[1.0, 0.0], [1.0, 0.0]]), np.array([0, 1]))
    assert sure == [grade.Bin(2, 1.0, 0.5)]


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 4.0])
def test_the_temperature_undoes_what_sharpened_the_logits(sharpness: float) -> None:
    held_out, measured = predictions(20_000, sharpness), predictions(5_000, sharpness, seed=7)
    found = grade.calibrate(*measured, held_out)
    assert found.temperature == pytest.approx(sharpness, rel=0.03)
    least = grade.nll(grade.at_temperature(held_out[0], found.temperature), held_out[1])
    for factor in (0.98, 1.02):
        other = grade.at_temperature(held_out[0], found.temperature * factor)
        assert grade.nll(other, held_out[1]) > least
    assert found.scaled_ece < 0.03
    if sharpness != 1.0:
        assert found.scaled_nll < found.nll
        assert found.scaled_ece < found.ece


def test_the_temperature_of_what_is_always_right_is_bounded() -> None:
    right = np.array([[0.9, 0.1], [0.2, 0.8]])
    found = grade.calibrate(right, np.array([0, 1]), (right, np.array([0, 1])))
    assert found.temperature == pytest.approx(1 / grade.MAX_SHARPENING)
    assert found.scaled_nll < 1e-12


def test_precision_and_recall_of_a_table() -> None:
    counts = np.array([[3, 1, 0], [2, 4, 0], [0, 0, 0]])
    rows = grade.per_class(counts, ("a", "b", "c"))
    assert [row["name"] for row in rows] == ["a", "b", "c"]
    assert [row["n"] for row in rows] == [4, 6, 0]
    assert [row["precision"] for row in rows] == [3 / 5, 4 / 5, None]
    assert [row["recall"] for row in rows] == [3 / 4, 4 / 6, None]


def test_a_confidence_on_the_edge_belongs_below_it() -> None:
    bins = grade.reliability(np.array([[0.6, 0.4], [0.61, 0.39]]), np.array([0, 0]))
    assert [each.confidence for each in bins] == [0.6, 0.61]  # 0.6 is 9 of 15
