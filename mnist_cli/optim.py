"""Stock torch optimizers and schedulers for a stack: one parameter group per replica.

To add one, put it into the dict and give its settings a class in `config/schema.py`: the settings
are passed to torch by name, as they are.
"""

from collections.abc import Callable, Sequence
from typing import Any

from pydantic import BaseModel
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    LambdaLR,
    LRScheduler,
    MultiStepLR,
    StepLR,
)

from mnist_cli.scratch import ScratchSGD

# `fused` is one kernel for the whole update; the others have none.
OPTIMIZERS: dict[str, tuple[Callable[..., Optimizer], dict[str, Any]]] = {
    "sgd": (SGD, {"fused": True}),
    "adam": (Adam, {"fused": True}),
    "adamw": (AdamW, {"fused": True}),
    "rmsprop": (RMSprop, {}),
    "scratch_sgd": (ScratchSGD, {}),
}


def _constant(optimizer: Optimizer) -> LRScheduler:
    return LambdaLR(optimizer, lambda _: 1.0)


SCHEDULERS: dict[str, Callable[..., LRScheduler]] = {
    "constant": _constant,
    "step": StepLR,
    "multistep": MultiStepLR,
    "cosine": CosineAnnealingLR,
}


def build_optimizer(configs: Sequence[BaseModel], rows: Sequence[Tensor]) -> Optimizer:
    """One optimizer over all replicas, each with settings of its own.

    Every optimizer here updates element by element, so a replica's parameters may be one flat
    tensor.

    Args:
        configs: the optimizer section of each replica; the names must be the same.
        rows: the parameters of each replica, shape (parameters,), with `.grad` set.
    """
    groups = [
        {"params": [row], **config.model_dump(exclude={"name"})}
        for row, config in zip(rows, configs, strict=True)
    ]
    (name,) = {config.model_dump()["name"] for config in configs}
    optimizer, options = OPTIMIZERS[name]
    return optimizer(groups, **options)


def build_scheduler(config: BaseModel, optimizer: Optimizer) -> LRScheduler:
    """The schedule of every replica's learning rate, each from its own start."""
    settings = config.model_dump(exclude={"name", "interval"})
    name = config.model_dump()["name"]
    return SCHEDULERS[name](optimizer, **settings)
