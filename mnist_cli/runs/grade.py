"""How good predictions are beyond accuracy: each class, calibration; and where that is kept."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnist_cli.runs.documents import ClassGrade, read_json, write_json
from mnist_cli.runs.store import RunDirectory, refuse_link

BINS = 15  # as in Guo et al. 2017
MAX_SHARPENING = 100.0  # the temperature lies between this and its inverse


@dataclass(frozen=True)
class Bin:
    """The images of which the prediction is about as confident."""

    n: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Calibration:
    """Whether predictions are right as often as they are confident, as they are and scaled.

    Source: C. Guo, G. Pleiss, Y. Sun, K. Q. Weinberger, "On Calibration of Modern Neural
    Networks", ICML 2017.

    Attributes:
        nll: mean negative log-likelihood, in nats.
        ece: the expected calibration error, a fraction.
        temperature: what logits are divided by, for the least `nll` on other images.
        scaled_nll: `nll` with logits so divided.
        scaled_ece: likewise.
        bins: those of the predictions as they are that have images.
        scaled_bins: likewise.
    """

    nll: float
    ece: float
    temperature: float
    scaled_nll: float
    scaled_ece: float
    bins: list[Bin]
    scaled_bins: list[Bin]

    def document(self) -> dict[str, Any]:
        """All of it as plain values."""
        return asdict(self)


def calibrate(
    probabilities: NDArray[np.float64],
    labels: NDArray[np.int64],
    held_out: tuple[NDArray[np.float64], NDArray[np.int64]],
) -> Calibration:
    """The calibration of predictions, and with a temperature fitted on other images.

    Args:
        probabilities: of each class, shape (n, classes).
        labels: the true classes, int64, shape (n,).
        held_out: both for the images that the temperature is fitted on.
    """
    temperature = fit_temperature(*held_out)
    scaled = at_temperature(probabilities, temperature)
    bins, scaled_bins = reliability(probabilities, labels), reliability(scaled, labels)
    return Calibration(
        nll=nll(probabilities, labels),
        ece=expected_error(bins),
        temperature=temperature,
        scaled_nll=nll(scaled, labels),
        scaled_ece=expected_error(scaled_bins),
        bins=bins,
        scaled_bins=scaled_bins,
    )


def nll(probabilities: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """The mean negative log-likelihood, in nats; shapes as in `calibrate`."""
    return float(-_log(probabilities)[np.arange(len(labels)), labels].mean())


def reliability(probabilities: NDArray[np.float64], labels: NDArray[np.int64]) -> list[Bin]:
    """Predictions by their confidence, in `BINS` intervals of the same width, (low, high]."""
    confidences, right = probabilities.max(1), probabilities.argmax(1) == labels
    places = np.ceil(confidences * BINS).clip(1, BINS)
    members = [places == place for place in range(1, BINS + 1)]
    return [
        Bin(int(each.sum()), float(confidences[each].mean()), float(right[each].mean()))
        for each in members
        if each.any()
    ]


def expected_error(bins: list[Bin]) -> float:
    """ECE: the mean distance of confidence and accuracy, over images (Guo et al., equation 5)."""
    n = sum(each.n for each in bins)
    return sum(each.n * abs(each.accuracy - each.confidence) for each in bins) / n


def fit_temperature(probabilities: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """The temperature with the least negative log-likelihood (Guo et al., section 4.2).

    The likelihood is concave in the inverse of the temperature, so its slope is bisected.
    """
    logits = _log(probabilities)
    true = logits[np.arange(len(labels)), labels].mean()
    low, high = 1 / MAX_SHARPENING, MAX_SHARPENING
    for _ in range(60):
        inverse = (low * high) ** 0.5
        expected = (at_temperature(probabilities, 1 / inverse) * logits).sum(1).mean()
        low, high = (inverse, high) if expected <= true else (low, inverse)
    return float(1 / inverse)


def at_temperature(probabilities: NDArray[np.float64], temperature: float) -> NDArray[np.float64]:
    """The probabilities with all logits divided by a temperature."""
    logits = _log(probabilities) / temperature
    raised: NDArray[np.float64] = np.exp(logits - logits.max(1, keepdims=True))
    raised /= raised.sum(1, keepdims=True)
    return raised


def per_class(counts: NDArray[np.int64], classes: tuple[str, ...]) -> list[ClassGrade]:
    """How many images each class has, its precision and its recall.

    Args:
        counts: the confusion matrix, true classes in rows.
        classes: their names.

    Returns:
        A row for each; None for the precision of what is never predicted, or the recall of what
        never occurs.
    """
    right, said, true = counts.diagonal(), counts.sum(0), counts.sum(1)
    return [
        {
            "name": name,
            "n": int(true[c]),
            "precision": float(right[c] / said[c]) if said[c] else None,
            "recall": float(right[c] / true[c]) if true[c] else None,
        }
        for c, name in enumerate(classes)
    ]


def keep(folder: RunDirectory, key: str, document: dict[str, Any]) -> None:
    """Puts a result into the `eval.json` of a run, in place of an earlier one of the same key.

    Raises:
        UsageError: the file is a link.
        OSError: it cannot be written.
    """
    path = refuse_link(folder.path / "eval.json")
    kept = read_json(dict[str, Any], path) or {}
    before = kept.get(key)
    if isinstance(before, dict) and before.get("val/loss") == document["val/loss"]:
        document = before | document  # of the same weights: what was measured besides stays
    write_json(path, kept | {key: document})


def _log(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    logs: NDArray[np.float64] = np.log(probabilities.clip(np.finfo(np.float64).tiny))
    return logs
