"""Learning rates as functions of the step: torch's schedulers in closed form, and WSD.

Nothing is carried from step to step, so a run that goes on needs no state of its schedule. The
tests hold every step against torch's classes. To add one, give its settings a class in
`config/schema.py` and its formula a case here.
"""

import math
from bisect import bisect_right

from mnist_cli.config.schema import (
    CosineScheduler,
    LinearScheduler,
    MultiStepScheduler,
    OneCycleScheduler,
    SchedulerConfig,
    StepScheduler,
    WsdScheduler,
)

WARMUP_START = 0.01  # of the learning rate, at the first step of a warm-up


def learning_rate(start: float, schedule: SchedulerConfig, done: int) -> float:
    """The learning rate of a step.

    A warm-up is torch's `LinearLR`, and what follows counts from its end, as in `SequentialLR`.

    Args:
        start: the optimizer's `lr`.
        schedule: how it goes on.
        done: steps or epochs done, whichever the schedule counts.
    """
    if isinstance(schedule, OneCycleScheduler):
        return _one_cycle(start, schedule, done)
    if done < schedule.warmup:
        return start * (WARMUP_START + (1 - WARMUP_START) * done / schedule.warmup)
    done -= schedule.warmup
    match schedule:
        case StepScheduler():
            return start * _power(schedule.gamma, done // schedule.step_size)
        case MultiStepScheduler():
            return start * _power(schedule.gamma, bisect_right(sorted(schedule.milestones), done))
        case CosineScheduler():
            swing = (1 + math.cos(math.pi * done / schedule.T_max)) / 2
            return schedule.eta_min + (start - schedule.eta_min) * swing
        case LinearScheduler(start_factor=first, end_factor=last):
            return start * (first + (last - first) * min(1.0, done / schedule.total_iters))
        case WsdScheduler(end_factor=last):
            share = min(1.0, max(0, done - schedule.stable) / schedule.decay)
            fallen = math.sqrt(share) if schedule.shape == "1-sqrt" else share
            return start * (1 + (last - 1) * fallen)
        case _:
            return start


def _power(gamma: float, times: int) -> float:
    """A factor applied so many times; where Python raises, infinity, as torch has it."""
    try:
        return gamma**times
    except OverflowError:
        return math.inf


def _one_cycle(peak: float, cycle: OneCycleScheduler, done: int) -> float:
    """As torch's `OneCycleLR`, but for its end, after which the rate stays at its lowest.

    Source: L. N. Smith and N. Topin, "Super-Convergence", 2017, arXiv 1708.07120.
    """
    first = peak / cycle.div_factor
    last = first / cycle.final_div_factor
    rise = cycle.pct_start * cycle.total_steps
    phases = [(rise - 1, first, peak)]  # where each ends, and its rates
    if cycle.three_phase:
        phases.append((2 * rise - 2, peak, first))
    phases.append((cycle.total_steps - 1, phases[-1][2], last))
    began = 0.0
    for ends, before, after in phases:
        if done <= ends:
            share = (done - began) / (ends - began) if ends > began else 1.0
            if cycle.anneal_strategy == "linear":
                return before + (after - before) * share
            return after + (before - after) / 2 * (1 + math.cos(math.pi * share))
        began = ends
    return last
