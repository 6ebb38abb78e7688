"""Why a run stops, from its records alone."""

import math
from typing import Any

import pytest

from mnist_cli.config import Config
from mnist_cli.engine.loop import Record
from mnist_cli.runs.stopping import leaves, stop_reason

RECORD: Record = {
    "epoch": 1, "step": 10, "lr": 0.1, "train/loss": 3.0, "train/acc": 0.1, "val/loss": 1.0,
    "val/acc": 0.5, "time/epoch_s": 2.0, "time/eval_s": 0.5,
}  # fmt: skip


def records(accuracies: list[float], losses: list[float] | None = None) -> list[Record]:
    figures = zip(accuracies, losses or [1.0] * len(accuracies), strict=True)
    return [{**RECORD, "val/acc": accuracy, "val/loss": loss} for accuracy, loss in figures]


def stops(found: list[Record], **train: Any) -> tuple[int, str] | None:
    """After which epoch, and why."""
    section = Config.model_validate({"train": train}).train
    for epochs in range(len(found) + 1):
        if reason := stop_reason(found[:epochs], section):
            return epochs, reason
    return None


@pytest.mark.parametrize(
    ("accuracies", "early_stop", "epochs"),
    [
        ([0.5, 0.6, 0.6, 0.6, 0.6], {}, 5),  # three in a row by default
        ([0.5, 0.6, 0.55, 0.7, 0.6, 0.7], {"patience": 2}, 6),  # equal is not better
        ([0.5, 0.6, 0.7, 0.8], {"patience": 1}, None),
        ([0.5, 0.4], {"patience": 1}, 2),
        # Slow progress adds up: what counts is how far it is from the last that was better.
        ([0.5, 0.52, 0.54, 0.56, 0.58], {"patience": 2, "min_delta": 0.03}, None),
        ([0.5, 0.52, 0.525, 0.56], {"patience": 2, "min_delta": 0.03}, 3),
    ],
)
def test_patience(accuracies: list[float], early_stop: dict[str, Any], epochs: int | None) -> None:
    wanted = (epochs, "early_stop") if epochs else None
    assert stops(records(accuracies), early_stop=early_stop) == wanted


def test_what_is_better_is_what_is_selected_by() -> None:
    found = records([0.5, 0.5, 0.5, 0.6], [1.0, 0.9, 0.8, 0.9])
    patient = {"early_stop": {"patience": 1}}
    assert stops(found, **patient) is None  # of equal accuracies the lowest loss
    assert stops(found, select="loss", **patient) == (4, "early_stop")
    assert stops(found[:3], select="loss", early_stop={"patience": 1, "min_delta": 0.2}) is not None


def test_all_targets_are_reached_in_one_epoch() -> None:
    found = records([0.9, 0.7, 0.8], [0.5, 0.3, 0.4])
    assert stops(found, target={"val/acc": 0.9}) == (1, "target")
    assert stops(found, target={"val/loss": 0.3}) == (2, "target")
    assert stops(found, target={"val/acc": 0.8, "val/loss": 0.4}) == (3, "target")
    assert stops(found, target={"val/acc": 0.9, "val/loss": 0.4}) is None
    assert stops(found, target={"train/acc": 0.2}) is None


def test_seconds_are_those_of_all_epochs_with_their_evaluation() -> None:
    found = records([0.5, 0.6, 0.7, 0.8])
    assert stops(found, max_seconds=7.4) == (3, "max_seconds")
    assert stops(found, max_seconds=7.5) == (4, "max_seconds")  # it is exceeded
    assert stops(found, max_seconds=10.0) is None


def test_a_run_leaves_its_stack_when_it_stops_or_diverges() -> None:
    train = Config.model_validate({"train": {"target": {"val/acc": 0.9}}}).train
    assert [leaves(records(found), train) for found in ([], [0.5], [0.5, 0.9])] == [0, 0, 1]
    assert leaves(records([0.5], [math.nan]), train)
    assert leaves([{**records([0.5])[0], "train/loss": math.inf}], train)


@pytest.mark.parametrize(
    "train",
    [
        {"target": {}},
        {"target": {"test/acc": 0.9}},
        {"target": {"val/acc": "high"}},
        {"early_stop": {"patience": 0}},
        {"early_stop": {"min_delta": -0.1}},
        {"max_seconds": 0.0},
    ],
    ids=str,
)
def test_what_cannot_be_meant_is_refused(train: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(train))):
        Config.model_validate({"train": train})
