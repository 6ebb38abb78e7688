"""Which epoch, and which run, is the better one."""

import math
from collections.abc import Mapping
from typing import Any


def selection_score(figures: Mapping[str, object] | None, select: str) -> tuple[float, float]:
    """How good an epoch or a run is: the larger, the better.

    What is missing or not finite is the worst.

    Args:
        figures: its `val/acc` and `val/loss`, if it has any.
        select: `train.select`: by accuracy, then loss (`acc`), or by loss alone (`loss`).
    """
    found: list[Any] = [figures[key] for key in ("val/acc", "val/loss")] if figures else [None]
    if not all(value is not None and math.isfinite(value) for value in found):
        return -math.inf, -math.inf
    accuracy, loss = found
    return (-loss, 0.0) if select == "loss" else (accuracy, -loss)
