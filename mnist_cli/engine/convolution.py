"""The convolution of all replicas: forward, and the gradients of kernels, biases and input."""

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from mnist_cli.engine.tape import Result, Tape, Value, buffer, guarded

# A run alone takes its batch in two halves, as if they were replicas: to oneDNN that is a grouped
# convolution, for which it has other kernels. Microseconds for the three layers of E3's network,
# batch 64, one thread, in 1, 2 and 4 parts: forward 216, 85, 75; 196, 202, 163; 92, 85, 81;
# gradients 140, 142, 142; 676, 385, 395; 252, 180, 181.
HALVES = 2


def convolution(tape: Tape, layer: nn.Conv2d, own: dict[str, Value], x: Value) -> Result:
    """Y = x * W + b; dW correlates x with dy, db sums dy, dx spreads dy over where W had lain.

    All replicas are one grouped convolution whose channels lie last in memory, where oneDNN is up
    to four times faster. Shapes: x (R or G, batch, channels, height, width), W (R, outputs,
    channels, rows, columns), b (R, outputs).
    """
    if layer.groups != 1 or layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        return None
    weight, bias = own["weight"], own.get("bias")
    replicas, groups = tape.replicas, len(x.data)
    data = x.data if _interleaved(x.data) else images(x.data, *x.data.shape)
    if data is not x.data:
        tape.call(data.copy_, x.data)
    height, width = (
        (size + 2 * padding - dilation * (extent - 1) - 1) // stride + 1
        for size, padding, dilation, extent, stride in zip(
            *(data.shape[3:], layer.padding, layer.dilation, layer.kernel_size, layer.stride),
            strict=True,
        )
    )
    shape = (replicas, data.shape[1], layer.out_channels, height, width)
    y = Value(images(data, *shape), disposable=True)
    # A grouped convolution of bfloat16 reads channels of neighbours: there each is one by itself.
    parts = [(slice(None), slice(None))]
    if guarded(data):
        parts = [
            (slice(r, r + 1), slice(r * groups // replicas, r * groups // replicas + 1))
            for r in range(replicas)
        ]
    settings = (layer.stride, layer.padding, layer.dilation, False, (0, 0))

    for mine, shared in parts:
        arguments = (_maps(data[shared]), weight.data[mine], bias and bias.data[mine])
        tape.call(_forward, *arguments, (*settings, len(data[shared])), _maps(y.data[mine]))

    def backward() -> None:
        with ExitStack() as targets:
            dw = targets.enter_context(tape.gradient(weight))
            db = targets.enter_context(tape.gradient(bias)) if bias else None
            dx = targets.enter_context(tape.gradient(x)) if x.needs_grad else None
            for mine, shared in parts:
                outs = [out if out is None else out[mine] for out in (dx, dw, db)]
                arguments = (_maps(y.gradient[mine]), _maps(data[shared]), weight.data[mine])
                tape.call(_backward, *arguments, (*settings, len(data[shared])), *outs)

    return y, backward


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, settings: tuple[Any, ...], out: Tensor
) -> None:
    flat = None if bias is None else bias.flatten()
    out.copy_(torch.convolution(x, _channels_last(weight), flat, *settings))


def _backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    settings: tuple[Any, ...],
    dx: Tensor | None,
    dw: Tensor,
    db: Tensor | None,
) -> None:
    kernel = _channels_last(weight)
    wanted = (dx is not None, True, False)
    given, kernels_given, _ = torch.ops.aten.convolution_backward.default(
        *(dy, x, kernel, None, *settings, wanted)
    )
    if dx is not None:
        dx.copy_(given.unflatten(1, (len(dx), -1)).transpose(0, 1))
    dw.copy_(kernels_given.view(dw.shape))
    if db is not None:
        db.copy_(dy.sum((0, 2, 3)).view(db.shape))


def _channels_last(weight: Tensor) -> Tensor:
    """The kernels of all replicas, (R * outputs, channels, ...), as oneDNN likes them best."""
    return weight.flatten(0, 1).contiguous(memory_format=torch.channels_last)


def images(like: Tensor, *shape: int) -> Tensor:
    """Room for images of all replicas, shape (R, batch, channels, height, width).

    In memory a pixel's channels lie side by side, and those of all replicas too, as a grouped
    convolution wants them, unless what one replica has must be kept from the others.
    """
    replicas, batch, channels, height, width = shape
    if guarded(like):
        return buffer(like, replicas, batch, height, width, channels).permute(0, 1, 4, 2, 3)
    rows = like.new_zeros(batch, height, width, replicas, channels)
    return rows.permute(3, 0, 4, 1, 2)


def images_like(x: Tensor, *shape: int) -> Tensor:
    """Room for as many images as `x` has, each of a shape, laid out in memory as those are."""
    shape = (*x.shape[:2], *shape)
    return images(x, *shape) if _interleaved(x) else buffer(x, *shape)


def merged(*tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """Views for a kernel that treats every channel by itself, and so all replicas at once.

    Args:
        tensors: shape (R, batch, channels, ...) each.

    Returns:
        One of each, (batch, R * channels, ...), if they lie so in memory; else R, replica by
        replica.
    """
    views = [tensor.transpose(0, 1).flatten(1, 2) for tensor in tensors]
    if all(view.data_ptr() == own.data_ptr() for view, own in zip(views, tensors, strict=True)):
        return [tuple(views)]
    return list(zip(*tensors, strict=True))


def _interleaved(x: Tensor) -> bool:
    """Whether images lie in memory as those of `images` do."""
    if x.shape[0] == x.shape[2] == 1:  # one channel of one replica: any order is that order
        return x[0].is_contiguous()
    return x.stride() == images(x.new_empty(0), *x.shape).stride()


def _maps(x: Tensor) -> Tensor:
    """Images as one convolution takes those of all replicas: (batch, R * channels, ...), a view."""
    maps = x.transpose(0, 1).flatten(1, 2)
    _, channels, height, width = maps.shape
    # One image, or one channel, has strides that could be another layout's: say which is meant.
    strides = height * width * channels, 1, width * channels, channels
    return maps.as_strided(maps.shape, strides)
