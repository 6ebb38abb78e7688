"""Normalisation: of a channel over a batch, and of an image over its own numbers."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from mnist_cli.engine.convolution import merged
from mnist_cli.engine.tape import Backward, Tape, Value, alike, buffer
from mnist_cli.errors import UsageError

aten = torch.ops.aten

BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d


def batch_norm(
    tape: Tape, layer: BatchNorm, own: dict[str, Value], x: Value
) -> tuple[Value, Backward]:
    """Batch normalisation: y = w h + b, where h = (x - m) / s (Ioffe and Szegedy 2015).

    In training m and s^2 are a channel's mean and variance in the batch, and move its running
    statistics; in evaluation they are these. With n numbers of a channel in the batch,
    db = sum(dy), dw = sum(dy h) and dx = (dy - db / n - h dw / n) w / s.

    Shapes: x (R or G, batch, channels, ...), w, b and the statistics (R, channels).

    Raises:
        UsageError: a channel has one number in the batch, and so no variance.
    """
    data = _laid_out(tape, x)
    running = [own[name].data if name in own else None for name in ("running_mean", "running_var")]
    by_batch = tape.training or running[0] is None
    if by_batch and data[0, :, 0].numel() == 1:
        raise UsageError(
            "batch normalisation needs more than one number of each channel in a batch",
            "choose a data.batch_size that leaves no batch of one image at the end of an epoch",
        )
    learned = own.get("weight"), own.get("bias")
    factors = [_in_full(tape, value) for value in learned]
    shape, exact = (len(data), data.shape[2]), _full(data.dtype)
    batch = [data.new_zeros(shape, dtype=exact) for _ in range(2)]  # m and 1 / s
    normal = alike(data)
    y = Value(normal if x.data.dim() > 3 else normal.squeeze(1).mT, disposable=True)
    tracked = own.get("num_batches_tracked") if tape.training else None
    if tracked:
        tape.call(tracked.data.add_, 1)

    def forward(x: Tensor, read: list[Tensor | None], kept: list[Tensor], out: Tensor) -> None:
        momentum = layer.momentum or 0.0
        if layer.momentum is None and tracked:  # running statistics are means over all batches
            momentum = 1 / float(tracked.data[0])
        settings = (by_batch, momentum, layer.eps)
        mean, scale = kept
        aten.native_batch_norm.out(
            *(x, *read, *settings), out=out, save_mean=mean, save_invstd=scale
        )

    for part, (images, out) in _parts(data, normal):
        read = _channels(part, *factors, *running)
        tape.call(forward, images, read, _channels(part, *batch), out)

    def backward() -> None:
        with ExitStack() as targets:
            dx, *of_learned = (_gradient(targets, tape, value) for value in (x, *learned))
            for part, (dy, images) in _parts(_turned(y.gradient), data):
                outs = [dx if dx is None else _turned(dx)[part].transpose(0, 1)]
                outs += [d if d is None else d[part] for d in of_learned]
                weight, mean, scale = _channels(part, factors[0], *batch)
                read = (dy, images, weight, None, None, mean, scale, True, layer.eps)
                tape.call(_write, aten.native_batch_norm_backward, read, outs)

    return y, backward


def layer_norm(
    tape: Tape, layer: nn.LayerNorm, own: dict[str, Value], x: Value
) -> tuple[Value, Backward]:
    """Layer normalisation: as `batch_norm`, of each image over its last axes (Ba et al. 2016).

    m, s, n and the sums in dx are of the numbers of an image, and the sums in dw and db of images.

    Shapes: x (R or G, batch, ...), w and b (R, *layer.normalized_shape).
    """
    replicas = tape.replicas
    places = [r * len(x.data) // replicas for r in range(replicas)]
    learned = own.get("weight"), own.get("bias")
    factors = [[v and v.data[r] for v in learned] for r in range(replicas)]
    own_input = len(x.data) == replicas
    y = Value(
        alike(x.data) if own_input else buffer(x.data, replicas, *x.data.shape[1:]),
        disposable=True,
    )
    size = layer.normalized_shape
    first = aten.native_layer_norm(x.data[0], size, *factors[0], layer.eps)
    mean, scale = (like.new_zeros(replicas, *like.shape) for like in first[1:])
    for r, place in enumerate(places):
        read = (x.data[place], size, *factors[r], layer.eps)
        outs = {"out0": y.data[r], "out1": mean[r], "out2": scale[r]}
        tape.call(aten.native_layer_norm.out, *read, **outs)

    def backward() -> None:
        with ExitStack() as targets:
            into = [_gradient(targets, tape, value) for value in (x, *learned)]
            for r, place in enumerate(places):
                read = (y.gradient[r], x.data[place], size, mean[r], scale[r], *factors[r])
                outs = [out if out is None else out[r] for out in into]
                tape.call(_write, aten.native_layer_norm_backward, read, outs)

    return y, backward


def _turned(x: Tensor) -> Tensor:
    """Rows of numbers as one image each whose pixels are the batch, as a linear layer has them."""
    return x if x.dim() > 3 else x.mT.unsqueeze(1)


def _laid_out(tape: Tape, x: Value) -> Tensor:
    """The input of each replica, turned, in an order that torch's kernel is right and fast for."""
    data = _turned(x.data)
    wanted = [torch.contiguous_format] + [torch.channels_last] * (data.dim() == 5)
    views = [view for _, (view,) in _parts(data)]
    in_order = [any(view.is_contiguous(memory_format=kind) for kind in wanted) for view in views]
    if len(data) == tape.replicas and all(in_order):
        return data
    own = buffer(data, tape.replicas, *data.shape[1:])
    tape.call(own.unflatten(0, (len(data), -1)).copy_, data.unsqueeze(1))
    return own


def _parts(*tensors: Tensor) -> list[tuple[slice, tuple[Tensor, ...]]]:
    """Which replicas, and what is theirs of each tensor, with all their channels in one axis."""
    views = merged(*tensors)
    if len(views) == 1:
        return [(slice(None), views[0])]
    return [(slice(r, r + 1), own) for r, own in enumerate(views)]


def _channels(part: slice, *tensors: Tensor | None) -> list[Tensor | None]:
    """What some replicas have of tensors (R, channels), in one axis."""
    return [tensor if tensor is None else tensor[part].flatten() for tensor in tensors]


def _full(dtype: torch.dtype) -> torch.dtype:
    """The type of what is summed over numbers of a type."""
    return torch.float32 if dtype is torch.bfloat16 else dtype


def _in_full(tape: Tape, value: Value | None) -> Tensor | None:
    """A parameter as it is at every step, in that type, replicas side by side."""
    if value is None:
        return None
    copy = value.data.new_zeros(value.data.shape, dtype=_full(value.data.dtype))
    tape.call(copy.copy_, value.data)
    return copy


def _gradient(targets: ExitStack, tape: Tape, value: Value | None) -> Tensor | None:
    if value is None or not value.needs_grad:
        return None
    return targets.enter_context(tape.gradient(value))


def _write(function: Callable[..., Any], arguments: Any, outs: list[Tensor | None]) -> None:
    """Computes gradients, of which some are wanted, and puts them where they belong."""
    found = function(*arguments, [out is not None for out in outs])
    for out, gradient in zip(outs, found, strict=True):
        if out is not None:
            out.copy_(gradient.reshape(out.shape))
