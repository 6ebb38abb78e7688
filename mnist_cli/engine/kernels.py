"""Kernels of torch that are not in its documentation.

Its private names are here and nowhere else. Where one is gone, or wants other arguments, a public
function computes the same, slower.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.adam import adam as public_adam
from torch.optim.rmsprop import rmsprop as public_rmsprop
from torch.optim.sgd import sgd as public_sgd

aten = torch.ops.aten
Tensors = list[Tensor]
Rate = float | Tensor

# None where torch has none, and to call that is a TypeError, as wrong arguments are.
PRIVATE: dict[str, Callable[..., Any]] = {
    name: getattr(torch, f"_fused_{name}_", None)  # type: ignore[misc]
    for name in ("adam", "adamw", "sgd")
}


def relu_backward(dy: Tensor, y: Tensor, out: Tensor) -> None:
    """Writes dy where y > 0, else 0."""
    aten.threshold_backward.grad_input(dy, y, 0, grad_input=out)


def sigmoid_backward(dy: Tensor, y: Tensor, out: Tensor) -> None:
    """Writes dy * y * (1 - y)."""
    aten.sigmoid_backward.grad_input(dy, y, grad_input=out)


def tanh_backward(dy: Tensor, y: Tensor, out: Tensor) -> None:
    """Writes dy * (1 - y^2)."""
    aten.tanh_backward.grad_input(dy, y, grad_input=out)


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
    wanted = [wants_input, True, False]
    dx, dw, _ = aten.convolution_backward.default(dy, x, weight, None, *settings, wanted)
    return dx, dw


def adam(
    kind: str,
    values: Tensors,
    gradients: Tensors,
    moments: dict[str, Tensors],
    step: Tensor,
    **settings: Any,
) -> None:
    """One step of Adam or AdamW, in place.

    Args:
        kind: `adam` or `adamw`.
        values: parameters.
        gradients: theirs.
        moments: `exp_avg`, `exp_avg_sq` and, with amsgrad, `max_exp_avg_sq`.
        step: the number of this step, from 1.
        settings: lr (on a GPU a tensor), beta1, beta2, eps, weight_decay, amsgrad.
    """
    first, second = moments["exp_avg"], moments["exp_avg_sq"]
    tensors = values, gradients, first, second, moments.get("max_exp_avg_sq", [])
    try:
        PRIVATE[kind](*tensors, [step] * len(values), maximize=False, **settings)
    except TypeError:
        steps = [step - 1 for _ in values]  # it counts in them
        settings |= {"capturable": step.is_cuda, "decoupled_weight_decay": kind == "adamw"}
        public_adam(*tensors, steps, foreach=True, maximize=False, **settings)


def sgd(
    values: Tensors, gradients: Tensors, buffers: Tensors, *, first: bool, **settings: Any
) -> None:
    """One step of gradient descent, in place.

    Args:
        values: parameters.
        gradients: theirs.
        buffers: the momentum of each, or nothing.
        first: whether this is the first step, whose gradients the momentum begins with.
        settings: lr (on a GPU a tensor), momentum, dampening, weight_decay, nesterov.
    """
    settings |= {"maximize": False}
    try:
        PRIVATE["sgd"](values, gradients, buffers, is_first_step=first, **settings)
    except TypeError:
        momenta: list[Tensor | None] = [None] * len(values)
        if not first:
            momenta[: len(buffers)] = buffers
        public_sgd(values, gradients, momenta, foreach=True, **settings)
        for buffer, momentum in zip(buffers, momenta, strict=False):
            if momentum is not None and momentum is not buffer:
                buffer.copy_(momentum)


def rmsprop(
    values: Tensors,
    gradients: Tensors,
    moments: dict[str, Tensors],
    step: Tensor,
    **settings: Any,
) -> None:
    """One step of RMSprop, in place: torch has no fused kernel, this is its public function.

    Args:
        values: parameters.
        gradients: theirs.
        moments: `square_avg` and, if centered, `grad_avg`, and with momentum `momentum_buffer`.
        step: the number of this step.
        settings: lr (on a GPU a tensor), alpha, eps, weight_decay, momentum, centered.
    """
    public_rmsprop(
        *(values, gradients, moments["square_avg"], moments.get("grad_avg", [])),
        moments.get("momentum_buffer", []),
        [step.clone() for _ in values],  # it counts in them
        foreach=True,
        capturable=step.is_cuda,
        **settings,
    )
