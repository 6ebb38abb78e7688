"""When a run ends before its last epoch: a function of its records and its config, and no state.

So the process that trains, the one that writes, and one that opens the folder again, all come to
the same.
"""

import math
from collections.abc import Sequence
from typing import Literal

from mnist_cli.config.schema import TrainConfig
from mnist_cli.engine.loop import Record
from mnist_cli.runs.selection import selection_score

StopReason = Literal["target", "early_stop", "max_seconds"]


def stop_reason(records: Sequence[Record], train: TrainConfig) -> StopReason | None:
    """Why a run stops after its last record, if it does.

    Args:
        records: one per epoch, all that there are.
        train: the section of its config.
    """
    if not records:
        return None
    last, early = records[-1], train.early_stop
    if train.target and all(_reached(last, key, goal) for key, goal in train.target.items()):
        return "target"
    if early and _no_better(records, train.select, early.min_delta) >= early.patience:
        return "early_stop"
    took = sum(record["time/epoch_s"] + record["time/eval_s"] for record in records)
    if train.max_seconds is not None and took > train.max_seconds:
        return "max_seconds"
    return None


def leaves(records: Sequence[Record], train: TrainConfig) -> bool:
    """Whether a run leaves its stack after its last record: it stops, or has diverged."""
    losses = (records[-1]["train/loss"], records[-1]["val/loss"]) if records else ()
    return not all(map(math.isfinite, losses)) or stop_reason(records, train) is not None


def _reached(record: Record, metric: str, goal: float) -> bool:
    figure: float = record[metric]  # type: ignore[literal-required]
    return figure <= goal if metric.endswith("loss") else figure >= goal


def _no_better(records: Sequence[Record], select: str, min_delta: float) -> int:
    """How many epochs there were since the last that was better, by so much, than all before."""
    best, waited = (-math.inf, -math.inf), 0
    for record in records:
        figure, second = selection_score(record, select)
        waited += 1
        if (figure - min_delta, second) > best:
            best, waited = (figure, second), 0
    return waited
