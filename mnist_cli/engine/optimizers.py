"""torch's optimizers for a stack: each replica has settings of its own.

An optimizer here is torch's own kernel, called once for all that share their settings, without what
`torch.optim.Optimizer` does around it at every step. The tests hold all against torch's classes. To
add one, put it into the dict and give its settings a class in `config/schema.py`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.nadam import nadam
from torch.optim.rmsprop import rmsprop
from torch.optim.sgd import sgd

from mnist_cli.config.schema import (
    MuonOptimizer,
    NadamOptimizer,
    OptimizerConfig,
    SchedulerConfig,
)
from mnist_cli.engine.flat import Flat
from mnist_cli.engine.muon import Orthogonalizer, add_momentum, parts
from mnist_cli.engine.schedules import learning_rate
from mnist_cli.models.scratch import sgd_update

# Kernels that are not in torch's documentation. Where one is gone, or wants other arguments (to
# call None is a TypeError too), torch's public function computes the same, slower.
FUSED: dict[str, Callable[..., Any]] = {
    name: getattr(torch, f"_fused_{name}_", None)  # type: ignore[misc]
    for name in ("adam", "adamw", "sgd")
}


@dataclass
class ParamGroup:
    """Replicas that have all settings in common, and parameters: updated by one call.

    Attributes:
        members: which replicas.
        values: their parameters, in pieces.
        gradients: likewise.
        moments: what is remembered about them, likewise, by torch's names.
        step: the number of the step, from 1, as the kernels take it.
        rate: the learning rate as the kernels take it; on a GPU a tensor, which a captured step
            reads.
        learning_rate: the same as the schedule has it, which no type limits.
        first: whether this step is the first.
        done: how many steps or epochs the schedule had seen when the rate was set.
        by_step: whether the schedule counts steps, or epochs.
        momentum_product: of the steps before this one, for NAdam.
        settings: of the optimizer by name, as the kernels take them, but for the rate.
    """

    config: Any
    schedule: SchedulerConfig
    members: list[int]
    values: list[Tensor]
    gradients: list[Tensor]
    moments: dict[str, list[Tensor]]
    step: Tensor
    rate: Any
    learning_rate: float = 0.0
    first: bool = True
    done: int = -1

    def __post_init__(self) -> None:
        self.momentum_product = torch.ones((), dtype=torch.float64, device=self.step.device)
        self.by_step = self.schedule.interval == "step"
        self.settings = self.config.model_dump(exclude={"name", "lr"}) | {"maximize": False}
        if "betas" in self.settings:
            self.settings["beta1"], self.settings["beta2"] = self.settings.pop("betas")


@dataclass(frozen=True)
class OptimizerSpec:
    """An optimizer: the names of what it remembers, given its settings, and its update."""

    moments: Callable[[Any], list[str]]
    update: Callable[[ParamGroup], None]


def _sgd(group: ParamGroup) -> None:
    buffers = group.moments.get("momentum_buffer", [])
    settings = group.settings | {"lr": group.rate}
    try:
        FUSED["sgd"](group.values, group.gradients, buffers, is_first_step=group.first, **settings)
    except TypeError:
        if group.first:  # the momentum begins with the whole gradient
            settings["dampening"] = 0.0
        momenta: list[Any] = buffers or [None] * len(group.values)
        sgd(group.values, group.gradients, momenta, foreach=True, **settings)


def _adam(group: ParamGroup) -> None:
    first, second = group.moments["exp_avg"], group.moments["exp_avg_sq"]
    tensors = group.values, group.gradients, first, second, group.moments.get("max_exp_avg_sq", [])
    settings = group.settings | {"lr": group.rate}
    try:
        FUSED[group.config.name](*tensors, [group.step] * len(group.values), **settings)
    except TypeError:
        steps = [group.step - 1 for _ in group.values]  # it counts in them
        settings["capturable"] = group.step.is_cuda
        settings["decoupled_weight_decay"] = group.config.name == "adamw"
        adam(*tensors, steps, foreach=True, **settings)


def _nadam(group: ParamGroup) -> None:
    tensors = group.values, group.gradients, group.moments["exp_avg"], group.moments["exp_avg_sq"]
    products = [group.momentum_product.clone() for _ in group.values]  # it multiplies them
    steps = [group.step - 1 for _ in group.values]  # it counts in them
    settings = group.settings | {"lr": group.rate, "capturable": group.step.is_cuda}
    nadam(*tensors, products, steps, foreach=True, **settings)


def _muon(group: ParamGroup) -> None:
    for value, update in zip(group.values, group.gradients, strict=True):
        value.mul_(1 - group.rate * group.config.weight_decay).sub_(update * group.rate)


def _rmsprop(group: ParamGroup) -> None:
    squares, means = group.moments["square_avg"], group.moments.get("grad_avg", [])
    tensors = group.values, group.gradients, squares, means
    steps = [group.step.clone() for _ in group.values]  # it counts in them
    settings = group.settings | {"lr": group.rate, "capturable": group.step.is_cuda}
    rmsprop(*tensors, group.moments.get("momentum_buffer", []), steps, foreach=True, **settings)


def _scratch_sgd(group: ParamGroup) -> None:
    sgd_update(group.values, group.gradients, group.rate)


def _adam_moments(config: Any) -> list[str]:
    return ["exp_avg", "exp_avg_sq"] + ["max_exp_avg_sq"] * config.amsgrad


def _rmsprop_moments(config: Any) -> list[str]:
    more = ["grad_avg"] * config.centered + ["momentum_buffer"] * (config.momentum > 0)
    return ["square_avg", *more]


OPTIMIZERS = {
    "sgd": OptimizerSpec(lambda sgd: ["momentum_buffer"] * (sgd.momentum != 0), _sgd),
    "adam": OptimizerSpec(_adam_moments, _adam),
    "adamw": OptimizerSpec(_adam_moments, _adam),
    "nadam": OptimizerSpec(lambda _: ["exp_avg", "exp_avg_sq"], _nadam),
    "muon": OptimizerSpec(lambda _: ["momentum_buffer"], _muon),
    "rmsprop": OptimizerSpec(_rmsprop_moments, _rmsprop),
    "scratch_sgd": OptimizerSpec(lambda _: [], _scratch_sgd),
}


def momentum_product(beta1: float, decay: float, steps: int) -> float:
    """The product of NAdam's momenta over the first steps; a function of their number, no state.

    Source: T. Dozat, "Incorporating Nesterov Momentum into Adam", 2016.
    """
    product = 1.0
    for step in range(1, steps + 1):
        product *= beta1 * (1 - 0.5 * 0.96 ** (step * decay))
        if 1 - product == 1:  # which is how it counts
            break
    return product


class Optimizer:
    """Updates every replica of a stack by its own settings and its own schedule.

    Args:
        configs: optimizer and scheduler section of each replica, R of them.
        weights: what it changes, in place.
        gradients: what it reads, laid out as the weights.
    """

    def __init__(
        self,
        configs: Sequence[tuple[OptimizerConfig, SchedulerConfig]],
        weights: Flat,
        gradients: Flat,
    ) -> None:
        device = weights.row.device
        self._largest = torch.finfo(weights.row.dtype).max
        self._step = torch.zeros((), device=device)
        self._like = weights
        self._moments: dict[str, Flat] = {}
        members: dict[str, list[int]] = {}
        for replica, (config, schedule) in enumerate(configs):
            same = f"{config.model_dump_json()} {schedule.model_dump_json()}"
            members.setdefault(same, []).append(replica)
        self._groups: list[ParamGroup] = []
        matrices: list[tuple[MuonOptimizer, Tensor]] = []
        shapes = {name: view.shape[1:] for name, view in weights.views.items()}
        for alike in members.values():
            config, schedule = configs[alike[0]]
            if not isinstance(config, MuonOptimizer):
                self._add(config, schedule, alike, weights, gradients)
                continue
            for part, names in parts(config, shapes):
                own = gradients.only(names)
                self._add(part, schedule, alike, weights.only(names), own)
                if isinstance(part, MuonOptimizer):
                    matrices += [(part, view[r]) for r in alike for view in own.views.values()]
        self._orthogonalize = Orthogonalizer(matrices)

    def _add(
        self, config: Any, schedule: SchedulerConfig, alike: list[int], weights: Flat, grads: Flat
    ) -> None:
        """Has one optimizer update some parameters of replicas that are alike."""
        names, device = OPTIMIZERS[config.name].moments(config), weights.row.device
        self._moments |= {n: self._like.like() for n in names if n not in self._moments}
        moments = {name: self._moments[name].only(weights.views) for name in names}
        self._groups.append(
            ParamGroup(
                config,
                schedule,
                alike,
                weights.runs(alike),
                grads.runs(alike),
                {name: flat.runs(alike) for name, flat in moments.items()},
                self._step,
                torch.zeros((), device=device) if device.type == "cuda" else 0.0,
            )
        )

    def begin(self, epoch: int, step: int) -> None:
        """Makes ready for a step: how many epochs and steps are done."""
        self._step.fill_(step + 1)
        for group in self._groups:
            group.first = step == 0
            if isinstance(group.config, NadamOptimizer):
                beta1, decay = group.config.betas[0], group.config.momentum_decay
                group.momentum_product.fill_(momentum_product(beta1, decay, step))
            done = step if group.by_step else epoch
            if done == group.done:
                continue
            group.done = done
            group.learning_rate = learning_rate(group.config.lr, group.schedule, done)
            # torch raises at a number that the weights' type cannot hold, and for all replicas.
            rate = group.learning_rate if group.learning_rate <= self._largest else math.inf
            if isinstance(group.rate, Tensor):
                group.rate.fill_(rate)
            else:
                group.rate = rate

    def learning_rates(self) -> list[float]:
        """The learning rate of each replica at this step."""
        rates = {r: group.learning_rate for group in self._groups for r in group.members}
        return [rates[r] for r in sorted(rates)]

    def update(self) -> None:
        """Makes the step; of the gradients nothing can be said after it."""
        for group in self._groups:
            if isinstance(group.config, MuonOptimizer):
                add_momentum(group.config, group.gradients, group.moments["momentum_buffer"])
        self._orthogonalize()
        for group in self._groups:
            OPTIMIZERS[group.config.name].update(group)

    def state_dict(self, replica: int) -> dict[str, dict[str, Tensor]]:
        """What is remembered about one replica: by moment and parameter, copies on the CPU."""
        return {name: self._moments[name].state_dict(replica) for name in self._remembered(replica)}

    def load_state_dict(self, replica: int, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Sets what is remembered about one replica.

        Raises:
            KeyError: something is missing.
            RuntimeError: a shape differs.
        """
        for name in self._remembered(replica):
            self._moments[name].load_state_dict(replica, state[name])

    def _remembered(self, replica: int) -> list[str]:
        return [name for g in self._groups if replica in g.members for name in g.moments]


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
