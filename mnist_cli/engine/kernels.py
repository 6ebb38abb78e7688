"""Kernels that torch keeps to itself, each behind a function that can do without it.

Here and nowhere else are torch's private names. Where one is gone, or wants other arguments, a
public function computes the same, slower.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import vjp
from torch.optim.adam import adam as public_adam
from torch.optim.rmsprop import rmsprop as public_rmsprop
from torch.optim.sgd import sgd as public_sgd

Tensors = list[Tensor]
Rate = float | Tensor


def _private(name: str) -> Callable[..., Any]:
    """A private function of torch; if torch has none of that name, to call it is a TypeError."""
    found: Any = torch
    for part in name.split("."):
        found = getattr(found, part, None)
    return found  # type: ignore[no-any-return]


PRIVATE = {
    "adam": _private("_fused_adam_"),
    "adamw": _private("_fused_adamw_"),
    "sgd": _private("_fused_sgd_"),
    "relu_backward": _private("ops.aten.threshold_backward.grad_input"),
    "sigmoid_backward": _private("ops.aten.sigmoid_backward.grad_input"),
    "tanh_backward": _private("ops.aten.tanh_backward.grad_input"),
    "convolution_backward": _private("ops.aten.convolution_backward.default"),
}


def relu_backward(dy: Tensor, y: Tensor, out: Tensor) -> None:
    """Writes dy where y > 0, else 0."""
    try:
        PRIVATE["relu_backward"](dy, y, 0, grad_input=out)
    except TypeError:
        torch.where(y <= 0, dy.new_zeros(()), dy, out=out)


def sigmoid_backward(dy: Tensor, y: Tensor, out: Tensor) -> None:
    """Writes dy * y * (1 - y)."""
    try:
        PRIVATE["sigmoid_backward"](dy, y, grad_input=out)
    except TypeError:
        torch.mul(dy, y * (1 - y), out=out)


def tanh_backward(dy: Tensor, y: Tensor, out: Tensor) -> None:
    """Writes dy * (1 - y^2)."""
    try:
        PRIVATE["tanh_backward"](dy, y, grad_input=out)
    except TypeError:
        torch.mul(dy, 1 - y * y, out=out)


def convolution_backward(
    dy: Tensor, x: Tensor, weight: Tensor, settings: tuple[Any, ...], wants_input: bool
) -> tuple[Tensor, Tensor]:
    """The gradients of a convolution's input, if it is wanted, and of its kernels.

    Args:
        dy: the gradient of its result.
        x: its input.
        weight: its kernels.
        settings: what `torch.convolution` takes after the bias.
        wants_input: whether the first is computed.
    """
    kernel, wanted = PRIVATE["convolution_backward"], [wants_input, True, False]
    try:
        dx, dw, _ = kernel(dy, x, weight, None, *settings, wanted)
    except TypeError:
        _, pull, *_ = vjp(lambda x, w: torch.convolution(x, w, None, *settings), x, weight)
        dx, dw = pull(dy)
    return dx, dw


def adam(
    values: Tensors,
    gradients: Tensors,
    moments: dict[str, Tensors],
    step: Tensor,
    lr: Rate,
    *,
    decoupled: bool,
    **settings: Any,
) -> None:
    """One step of Adam, or with decoupled weight decay of AdamW, in place.

    Args:
        values: parameters.
        gradients: theirs.
        moments: `exp_avg`, `exp_avg_sq` and, with amsgrad, `max_exp_avg_sq`.
        step: the number of this step, from 1.
        lr: the learning rate; on a GPU a tensor.
        decoupled: whether it is AdamW.
        settings: beta1, beta2, eps, weight_decay, amsgrad.
    """
    first, second = moments["exp_avg"], moments["exp_avg_sq"]
    largest = moments.get("max_exp_avg_sq", [])
    kernel = PRIVATE["adamw" if decoupled else "adam"]
    common = {"lr": lr, "maximize": False, **settings}
    try:
        kernel(values, gradients, first, second, largest, [step] * len(values), **common)
    except TypeError:
        steps = [step - 1 for _ in values]  # it counts in them
        public_adam(
            *(values, gradients, first, second, largest, steps),
            foreach=True,
            capturable=step.is_cuda,
            decoupled_weight_decay=decoupled,
            **common,
        )


def sgd(
    values: Tensors, gradients: Tensors, buffers: Tensors, lr: Rate, *, first: bool, **settings: Any
) -> None:
    """One step of gradient descent, in place.

    Args:
        values: parameters.
        gradients: theirs.
        buffers: the momentum of each, or nothing.
        lr: the learning rate; on a GPU a tensor.
        first: whether this is the first step, whose gradients the momentum begins with.
        settings: momentum, dampening, weight_decay, nesterov.
    """
    common = {"lr": lr, "maximize": False, **settings}
    try:
        PRIVATE["sgd"](values, gradients, buffers, is_first_step=first, **common)
    except TypeError:
        momenta: list[Tensor | None] = [*buffers] or [None] * len(values)
        if first:
            momenta = [None] * len(values)
        public_sgd(values, gradients, momenta, foreach=True, **common)
        for buffer, momentum in zip(buffers, momenta, strict=False):
            if momentum is not None and momentum is not buffer:
                buffer.copy_(momentum)


def rmsprop(
    values: Tensors,
    gradients: Tensors,
    moments: dict[str, Tensors],
    step: Tensor,
    lr: Rate,
    **settings: Any,
) -> None:
    """One step of RMSprop, in place: torch has no fused kernel, this is its public function.

    Args:
        values: parameters.
        gradients: theirs.
        moments: `square_avg` and, if centered, `grad_avg`, and with momentum `momentum_buffer`.
        step: the number of this step.
        lr: the learning rate; on a GPU a tensor.
        settings: alpha, eps, weight_decay, momentum, centered.
    """
    averages, centers = moments["square_avg"], moments.get("grad_avg", [])
    buffers = moments.get("momentum_buffer", [])
    public_rmsprop(
        *(values, gradients, averages, centers, buffers),
        [step.clone() for _ in values],  # it counts in them
        foreach=True,
        capturable=step.is_cuda,
        lr=lr,
        **settings,
    )
