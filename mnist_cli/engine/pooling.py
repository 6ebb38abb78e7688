"""Pooling: the largest number or the mean of each window, windows that overlap included."""

from typing import Any

import torch
from torch import Tensor

from mnist_cli.engine.convolution import images_like, merged
from mnist_cli.engine.tape import Result, Tape, Value, alike

aten = torch.ops.aten


def max_pool(
    tape: Tape,
    x: Value,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Result:
    """Largest number of each window, of equal ones the first.

    A number's gradient is the sum of dy over the windows of which it is the largest.
    """
    if return_indices:
        return None
    settings = (kernel_size, stride or [], padding, dilation, ceil_mode)
    y = _result(x, aten.max_pool2d_with_indices(x.data[0], *settings)[0])
    places = alike(y.data, torch.int64)
    for images, out, found in merged(x.data, y.data, places):
        call = aten.max_pool2d_with_indices.out
        tape.call(call, images, *settings, out=out, indices=found)

    def backward() -> None:
        with tape.gradient(x) as dx:
            for dy, images, found, out in merged(y.gradient, x.data, places, dx):
                call = aten.max_pool2d_with_indices_backward.grad_input
                tape.call(call, dy, images, *settings, found, grad_input=out)

    return y, backward


def average_pool(
    tape: Tape,
    x: Value,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Result:
    """Mean of each window of n numbers: the gradient of each is the sum of dy / n over windows."""
    settings = (
        *(kernel_size, stride or [], padding, ceil_mode),
        *(count_include_pad, divisor_override),
    )
    y = _result(x, aten.avg_pool2d(x.data[0], *settings))
    for images, out in merged(x.data, y.data):
        tape.call(aten.avg_pool2d.out, images, *settings, out=out)

    def backward() -> None:
        with tape.gradient(x) as dx:
            for dy, images, out in merged(y.gradient, x.data, dx):
                call = aten.avg_pool2d_backward.grad_input
                tape.call(call, dy, images, *settings, grad_input=out)

    return y, backward


def adaptive_average_pool(tape: Tape, x: Value, output_size: Any) -> Result:
    """Mean of windows of one size, of which there are so many in a row and in a column."""
    rows, columns = (output_size,) * 2 if isinstance(output_size, int) else output_size
    height, width = x.data.shape[-2:]
    if None in (rows, columns) or height % rows or width % columns:
        return None
    return average_pool(tape, x, (height // rows, width // columns))


def _result(x: Value, of_one: Tensor) -> Value:
    """Room for what every replica or group gets, given what the first does."""
    return Value(images_like(x.data, *of_one.shape[1:]), x.needs_grad)
