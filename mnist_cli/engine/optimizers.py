"""torch's optimizers and schedules for a stack: each replica has settings of its own.

An optimizer here is torch's own kernel, called for all that share its settings, without what
`torch.optim.Optimizer` does around it at every step. A schedule is a pure function of the step. The
tests hold both against torch's classes. To add one, put it into the dict and give its settings a
class in `config/schema.py`.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim.rmsprop import rmsprop

from mnist_cli.config.schema import (
    AdamOptimizer,
    AdamWOptimizer,
    CosineScheduler,
    MultiStepScheduler,
    OptimizerConfig,
    RmspropOptimizer,
    SchedulerConfig,
    SgdOptimizer,
    StepScheduler,
)
from mnist_cli.models.scratch import sgd_update


@dataclass
class Group:
    """Replicas that have all settings in common: updated by one call.

    Attributes:
        members: which replicas.
        values: all parameters of the first, all of the second, and so on.
        moments: what is remembered about each of them, by torch's names.
        steps: how many there were with this one, as the kernels take it.
        first: whether this step is the first.
        rate: the learning rate of this step; on a GPU a tensor, which a captured step reads.
    """

    config: Any
    schedule: SchedulerConfig
    members: list[int]
    values: list[Tensor]
    moments: dict[str, list[Tensor]]
    steps: Tensor
    first: bool
    rate: float | Tensor


@dataclass(frozen=True)
class Rule:
    """An optimizer: the names of what it remembers, given its settings, and its update."""

    moments: Callable[[Any], list[str]]
    update: Callable[[Group, list[Tensor]], None]


def _sgd_moments(config: SgdOptimizer) -> list[str]:
    return ["momentum_buffer"] * (config.momentum != 0)


def _sgd(group: Group, gradients: list[Tensor]) -> None:
    torch._fused_sgd_(
        group.values,
        gradients,
        group.moments.get("momentum_buffer", []),
        lr=group.rate,
        momentum=group.config.momentum,
        dampening=group.config.dampening,
        weight_decay=group.config.weight_decay,
        nesterov=group.config.nesterov,
        maximize=False,
        is_first_step=group.first,
    )


def _adam_moments(config: AdamOptimizer | AdamWOptimizer) -> list[str]:
    return ["exp_avg", "exp_avg_sq"] + ["max_exp_avg_sq"] * config.amsgrad


def _adam(group: Group, gradients: list[Tensor]) -> None:
    kernel = torch._fused_adamw_ if group.config.name == "adamw" else torch._fused_adam_
    kernel(
        group.values,
        gradients,
        group.moments["exp_avg"],
        group.moments["exp_avg_sq"],
        group.moments.get("max_exp_avg_sq", []),
        [group.steps] * len(gradients),
        lr=group.rate,
        beta1=group.config.betas[0],
        beta2=group.config.betas[1],
        eps=group.config.eps,
        weight_decay=group.config.weight_decay,
        amsgrad=group.config.amsgrad,
        maximize=False,
    )


def _rmsprop_moments(config: RmspropOptimizer) -> list[str]:
    return [
        "square_avg",
        *["grad_avg"] * config.centered,
        *["momentum_buffer"] * (config.momentum > 0),
    ]


def _rmsprop(group: Group, gradients: list[Tensor]) -> None:
    # torch has no fused kernel for it; this is its function of many tensors at once.
    rmsprop(
        group.values,
        gradients,
        group.moments["square_avg"],
        group.moments.get("grad_avg", []),
        group.moments.get("momentum_buffer", []),
        [group.steps.clone() for _ in gradients],  # it counts in them
        foreach=True,
        capturable=group.steps.is_cuda,
        lr=group.rate,
        alpha=group.config.alpha,
        eps=group.config.eps,
        weight_decay=group.config.weight_decay,
        momentum=group.config.momentum,
        centered=group.config.centered,
    )


def _scratch_sgd(group: Group, gradients: list[Tensor]) -> None:
    sgd_update(group.values, gradients, group.rate)


OPTIMIZERS = {
    "sgd": Rule(_sgd_moments, _sgd),
    "adam": Rule(_adam_moments, _adam),
    "adamw": Rule(_adam_moments, _adam),
    "rmsprop": Rule(_rmsprop_moments, _rmsprop),
    "scratch_sgd": Rule(lambda _: [], _scratch_sgd),
}


def learning_rate(start: float, schedule: SchedulerConfig, epoch: int, step: int) -> float:
    """The learning rate of a step: torch's schedulers in closed form.

    Args:
        start: the optimizer's `lr`.
        schedule: how it goes on, and whether by epochs or by steps.
        epoch: epochs done.
        step: steps done.
    """
    done = step if getattr(schedule, "interval", "epoch") == "step" else epoch
    match schedule:
        case StepScheduler():
            return start * _power(schedule.gamma, done // schedule.step_size)
        case MultiStepScheduler():
            return start * _power(schedule.gamma, bisect_right(sorted(schedule.milestones), done))
        case CosineScheduler():
            swing = (1 + math.cos(math.pi * done / schedule.T_max)) / 2
            return schedule.eta_min + (start - schedule.eta_min) * swing
        case _:
            return start


def _power(gamma: float, times: int) -> float:
    """A factor applied so many times; where Python raises, infinity, as torch has it."""
    try:
        return gamma**times
    except OverflowError:
        return math.inf


class Optimizer:
    """Updates every replica of a stack by its own settings and its own schedule.

    Args:
        configs: optimizer and scheduler section of each replica, R of them.
        parameters: by name, shape (R, *shape); changed in place.
    """

    def __init__(
        self,
        configs: Sequence[tuple[OptimizerConfig, SchedulerConfig]],
        parameters: Mapping[str, Tensor],
    ) -> None:
        self._names = list(parameters)
        device = next(iter(parameters.values())).device
        self._steps = torch.zeros((), device=device)
        members: dict[str, list[int]] = {}
        for replica, (config, schedule) in enumerate(configs):
            same = f"{config.model_dump_json()} {schedule.model_dump_json()}"
            members.setdefault(same, []).append(replica)
        self._groups = []
        for alike in members.values():
            config, schedule = configs[alike[0]]
            # One tensor for each replica, and not for all: then its bits depend on nobody else.
            values = [value.detach()[r] for r in alike for value in parameters.values()]
            moments = {
                moment: [torch.zeros_like(value) for value in values]
                for moment in OPTIMIZERS[config.name].moments(config)
            }
            rate = torch.zeros((), device=device) if device.type == "cuda" else 0.0
            self._groups.append(
                Group(config, schedule, alike, values, moments, self._steps, first=True, rate=rate)
            )

    def begin(self, epoch: int, step: int) -> None:
        """Makes ready for a step: how many epochs and steps are done."""
        self._steps.fill_(step + 1)
        for group in self._groups:
            group.first = step == 0
            rate = learning_rate(group.config.lr, group.schedule, epoch, step)
            if isinstance(group.rate, Tensor):
                group.rate.fill_(rate)
            else:
                group.rate = rate

    def rates(self) -> list[float]:
        """The learning rate of each replica at this step."""
        rates = {r: float(group.rate) for group in self._groups for r in group.members}
        return [rates[r] for r in sorted(rates)]

    @torch.no_grad()
    def update(self, gradients: Sequence[Tensor]) -> None:
        """Makes the step.

        Args:
            gradients: in the order of the parameters, shape (R, *shape) each.
        """
        rows = [gradient.unbind() for gradient in gradients]
        for group in self._groups:
            own = [row[r] for r in group.members for row in rows]
            OPTIMIZERS[group.config.name].update(group, own)

    def state_dict(self, replica: int) -> dict[str, dict[str, Tensor]]:
        """What is remembered about one replica: by moment and parameter, copies on the CPU."""
        return {
            moment: {name: value.to("cpu", copy=True) for name, value in of_parameter.items()}
            for moment, of_parameter in self._of(replica)
        }

    def load_state_dict(self, replica: int, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Sets what is remembered about one replica.

        Raises:
            KeyError: something is missing.
            RuntimeError: a shape differs.
        """
        for moment, of_parameter in self._of(replica):
            for name, value in of_parameter.items():
                value.copy_(state[moment][name])

    def _of(self, replica: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
        group = next(group for group in self._groups if replica in group.members)
        first = group.members.index(replica) * len(self._names)
        for moment, values in group.moments.items():
            own = values[first : first + len(self._names)]
            yield moment, dict(zip(self._names, own, strict=True))


@torch.no_grad()
def clip_grad_norm(gradients: Sequence[Tensor], limits: Tensor) -> None:
    """Scales each replica's gradients, in place, so that their norm is at most its limit.

    As `torch.nn.utils.clip_grad_norm_` does, replica by replica.

    Args:
        gradients: shape (R, *shape) each.
        limits: shape (R,); infinite where nothing is to be clipped.
    """
    squares = [gradient.reshape(len(gradient), -1).square().sum(1) for gradient in gradients]
    norms = torch.stack(squares).sum(0).sqrt()
    # A gradient so long that its norm overflows is not touched where there is no limit.
    scales = torch.where(limits.isinf(), 1.0, (limits / (norms + 1e-6)).clamp(max=1.0))
    for gradient in gradients:
        gradient.mul_(scales.view(-1, *(1,) * (gradient.dim() - 1)))
