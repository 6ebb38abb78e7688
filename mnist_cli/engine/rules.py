"""Backpropagation as its formulas: for each kind of layer its forward and its backward pass.

A rule takes a tape and the values that a node reads. It writes the calls of the forward pass on the
tape, and returns what the node computes and a function that writes those of the backward pass:
from dy, the gradient of the objective by the node's result y, to the gradients by what it read.
All is written once for a batch shape and computed at every step: each tensor stays at its place.
A rule that returns None leaves its node to `torch.func`.

The formulas are those of Goodfellow, Bengio and Courville, Deep Learning (2016), section 6.5. Every
value has a leading axis, of R replicas or of G groups of them that read the same images. A linear
layer has its results in memory with the batch last: so no product, forward or backward, needs a
transposed copy, and the gradient of a weight comes as the weight lies.
"""

import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mnist_cli.engine import kernels
from mnist_cli.engine.convolution import convolution
from mnist_cli.engine.tape import Tape, Value, alike, buffer, multiply
from mnist_cli.models.modules import Dropout

Backward = Callable[[], None]
Result = tuple[Value, Backward] | None
Operand = Value | float
Parameters = dict[str, Value]


def no_gradient() -> None:
    """The backward pass of what has none."""


# ------------------------------------------------------------------------------------- products


def linear(tape: Tape, x: Value, weight: Value, bias: Value | None = None) -> Result:
    """Linear layer: y = x W^T + b; dW = dy^T x, db = the sum of dy over the batch, dx = dy W.

    Shapes: x (R or G, batch, inputs), W (R, outputs, inputs), b (R, outputs).
    """
    if x.data.dim() != 3:
        return None
    z = buffer(weight.data, tape.replicas, weight.data.shape[1], x.data.shape[1])
    multiply(tape, weight.data, x.data.mT, z)  # (R, outputs, batch)
    if bias is not None:
        tape.call(z.add_, bias.data.unsqueeze(2))
    y = Value(z.mT, disposable=True)

    def backward() -> None:
        assert y.grad is not None
        dz = y.grad.mT
        with tape.gradient(weight) as dw:
            multiply(tape, dz, x.data, dw)
        if bias is not None:
            with tape.gradient(bias) as db:
                tape.call(torch.sum, dz, 2, out=db)
        if x.needs_grad:
            with tape.gradient(x) as dx:
                multiply(tape, weight.data.mT, dz, dx.mT)

    return y, backward


def matmul(tape: Tape, x: Value, weight: Value) -> Result:
    """Product of matrices: y = x V; dV = x^T dy, dx = dy V^T.

    Shapes: x (R or G, batch, inputs), V (R, inputs, outputs). It is `linear` with W = V^T, and is
    computed so: a transposed matrix is another view of it.
    """
    if x.data.dim() != 3 or weight.data.dim() != 3 or len(weight.data) != tape.replicas:
        return None
    z = buffer(weight.data, tape.replicas, weight.data.shape[2], x.data.shape[1])
    multiply(tape, weight.data.mT, x.data.mT, z)  # (R, outputs, batch)
    y = Value(z.mT, disposable=True)

    def backward() -> None:
        assert y.grad is not None
        if weight.needs_grad:
            with tape.gradient(weight) as dv:
                multiply(tape, x.data.mT, y.grad, dv)
        if x.needs_grad:
            with tape.gradient(x) as dx:
                multiply(tape, weight.data, y.grad.mT, dx.mT)

    return y, backward


# ------------------------------------------------------------------------ functions of one number


def relu(tape: Tape, x: Value, inplace: bool = False) -> Result:  # noqa: ARG001
    """Rectifier: y = max(x, 0); dx = dy where y > 0, else 0."""
    return _of_result(tape, x, partial(torch.clamp_min, min=0), kernels.relu_backward)


def sigmoid(tape: Tape, x: Value) -> Result:
    """Logistic function: y = 1 / (1 + exp(-x)); dx = dy * y * (1 - y)."""
    return _of_result(tape, x, torch.sigmoid, kernels.sigmoid_backward)


def tanh(tape: Tape, x: Value) -> Result:
    """Hyperbolic tangent, y; dx = dy * (1 - y^2)."""
    return _of_result(tape, x, torch.tanh, kernels.tanh_backward)


def exp(tape: Tape, x: Value) -> Result:
    """Exponential function, y; dx = dy * y."""
    return _of_result(tape, x, torch.exp, torch.mul)


def neg(tape: Tape, x: Value) -> Result:
    """Negation: y = -x; dx = -dy."""
    return _of_result(tape, x, torch.neg, lambda dy, _, out: torch.neg(dy, out=out))


def _of_result(
    tape: Tape, x: Value, function: Callable[..., Any], derivative: Callable[..., Any]
) -> Result:
    """A function of each number whose derivative is known from its result: dx from dy and y."""
    y = Value(tape.overwrite(x), x.needs_grad)
    tape.call(function, x.data, out=y.data)

    def backward() -> None:
        with tape.gradient(x, over=y) as dx:
            tape.call(derivative, y.grad, y.data, out=dx)

    return y, backward


def dropout(tape: Tape, x: Value, p: float, seed: Value) -> Result:
    """Dropout: y = x * m, dx = dy * m, where m is 0 with probability p and else 1 / (1 - p).

    The mask is that of `models.modules.Dropout`, bit for bit, in half the memory: int32 adds and
    multiplies modulo 2^32 as the hash wants it. What does not depend on the step is hashed once.
    """
    if not tape.training:
        return x, no_gradient
    count = x.data[0].numel()
    key = seed.data.view(-1, *(1,) * (x.data.dim() - 1))
    position = torch.arange(count, device=key.device).view(x.data.shape[1:])
    fixed = alike(x.data, torch.int32)
    fixed.copy_(_int32(position + (key & _MASK32)))
    at_once = Tape(tape.replicas, tape.training, tape.step)
    spare, bits = alike(fixed), alike(fixed)
    _hash32(at_once, fixed, spare)
    for call in at_once.calls:
        call()
    fixed.bitwise_xor_(_int32(key >> 32))

    twice, kept, factor = torch.zeros_like(tape.step), alike(fixed, torch.bool), alike(x.data)
    tape.call(torch.add, tape.step, tape.step, out=twice)
    tape.call(torch.bitwise_xor, fixed, twice, out=bits)
    _hash32(tape, bits, spare)
    tape.call(bits.add_, tape.step)
    _hash32(tape, bits, spare)
    tape.call(
        bits.bitwise_xor_, _of_type(bits, -(2**31))
    )  # now signed numbers lie in the order of unsigned ones
    tape.call(torch.ge, bits, _of_type(bits, min(round(p * 2**32), _MASK32) - 2**31), out=kept)
    tape.call(factor.copy_, kept)
    tape.call(factor.mul_, _of_type(factor, 1 / (1 - p)))
    y = Value(tape.overwrite(x), x.needs_grad, disposable=True)
    tape.call(torch.mul, x.data, factor, out=y.data)

    def backward() -> None:
        with tape.gradient(x, over=y) as dx:
            tape.call(torch.mul, y.grad, factor, out=dx)

    return y, backward


_MASK32 = 0xFFFFFFFF


def _int32(x: Tensor) -> Tensor:
    """The low 32 bits of int64."""
    return (x & _MASK32).sub_((x & 0x80000000) << 1).int()


def _hash32(tape: Tape, x: Tensor, spare: Tensor) -> None:
    """`_hash32` of `models.modules`, in place on int32, whose sign a shift drags along."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B - 2**32), (16, 1)):
        tape.call(torch.bitwise_right_shift, x, _of_type(x, shift), out=spare)
        tape.call(spare.bitwise_and_, _of_type(x, (1 << (32 - shift)) - 1))
        tape.call(x.bitwise_xor_, spare)
        if factor != 1:
            tape.call(x.mul_, _of_type(x, factor))


def _of_type(x: Tensor, number: float) -> Tensor:
    """A number as a tensor, which is read at each step faster than Python's."""
    return torch.tensor(number, dtype=x.dtype, device=x.device)


# ----------------------------------------------------------------------- functions of two numbers


def add(tape: Tape, a: Operand, b: Operand) -> Result:
    """Sum: y = a + b; da = dy, db = dy."""
    y = _binary(tape, torch.add, a, b)
    return y, lambda: _send(tape, y, (a, _copy), (b, _copy))


def sub(tape: Tape, a: Operand, b: Operand) -> Result:
    """Difference: y = a - b; da = dy, db = -dy."""
    y = _binary(tape, torch.sub, a, b)
    return y, lambda: _send(tape, y, (a, _copy), (b, torch.neg))


def mul(tape: Tape, a: Operand, b: Operand) -> Result:
    """Product: y = a * b; da = dy * b, db = dy * a."""
    y = _binary(tape, torch.mul, a, b)
    return y, lambda: _send(tape, y, (a, torch.mul, b), (b, torch.mul, a))


def div(tape: Tape, a: Operand, b: Operand) -> Result:
    """Quotient: y = a / b; da = dy / b, db = -dy * y / b."""
    y = _binary(tape, torch.div, a, b)

    def minus(dy: Tensor, y: Tensor, b: Tensor, out: Tensor) -> None:
        torch.mul(dy, y, out=out)
        torch.div(out, b, out=out)
        torch.neg(out, out=out)

    return y, lambda: _send(tape, y, (a, torch.div, b), (b, minus, y, b))


def where(tape: Tape, condition: Value, a: Operand, b: Operand) -> Result:
    """Choice: y = a where the condition holds, else b; da = dy there, and db elsewhere."""
    zero = torch.tensor(0.0, device=condition.data.device)

    def chosen(dy: Tensor, condition: Tensor, out: Tensor) -> None:
        torch.where(condition, dy, zero, out=out)

    def other(dy: Tensor, condition: Tensor, out: Tensor) -> None:
        torch.where(condition, zero, dy, out=out)

    y = _binary(tape, torch.where, a, b, condition)
    return y, lambda: _send(tape, y, (a, chosen, condition), (b, other, condition))


def compare(function: Callable[..., Tensor], tape: Tape, a: Operand, b: Operand) -> Result:
    """Comparison: y = whether a < b, or the like; it has no gradient."""
    return _binary(tape, function, a, b, dtype=torch.bool), no_gradient


def _binary(
    tape: Tape,
    function: Callable[..., Any],
    a: Operand,
    b: Operand,
    condition: Value | None = None,
    dtype: torch.dtype | None = None,
) -> Value:
    """A function of two numbers for each element, broadcast as it is for a replica alone."""
    operands = (a, b) if condition is None else (condition, a, b)
    values = [x for x in operands if isinstance(x, Value)]
    tensors = _aligned(*operands)
    groups, each, *shape = torch.broadcast_shapes(*(t.shape for t in tensors))
    whole = (groups * each, *shape)
    real = next(x.data for x in values if x is not condition)
    layout = next((x.data for x in values if x.data.shape == whole), real.new_zeros(whole))
    data = alike(layout, dtype or real.dtype)
    tape.call(function, *tensors, out=data.view(groups, each, *shape))
    return Value(data, dtype is None and any(x.needs_grad for x in values))


def _aligned(*operands: Operand) -> list[Tensor]:
    """Views that broadcast against each other as they would for each replica alone.

    Returns:
        Shape (G, R/G, ...), or (G, 1, ...) of what a group has in common. Further axes of size 1
        are put behind these two, where broadcasting would have put them in front.
    """
    values = [x.data for x in operands if isinstance(x, Value)]
    groups, rank = min(len(t) for t in values), max(t.dim() for t in values)
    return [
        x.data.view(groups, -1, *(1,) * (rank - x.data.dim()), *x.data.shape[1:])
        if isinstance(x, Value)
        else torch.tensor(x, dtype=torch.float64)  # no axes: it takes on the others' type
        for x in operands
    ]


def _copy(dy: Tensor, out: Tensor) -> None:
    out.copy_(dy)


def _send(tape: Tape, y: Value, *formulas: tuple[Any, ...]) -> None:
    """Writes the gradients of what `y` was computed from.

    Where a value was broadcast, its gradient is the sum over what was made of each number.

    Args:
        tape: where the calls are written.
        y: the result.
        formulas: (x, function, operands): the gradient of x is function(dy, *operands).
    """
    assert y.grad is not None
    for x, function, *operands in formulas:
        if not isinstance(x, Value) or not x.needs_grad:
            continue
        own, dy, *others = _aligned(x, Value(y.grad), *operands)
        summed = [axis for axis in range(dy.dim()) if own.shape[axis] != dy.shape[axis]]
        with tape.gradient(x) as dx:
            target = dx.view(own.shape)
            whole = alike(dy) if summed else target
            tape.call(function, dy, *others, out=whole)
            if summed:
                tape.call(torch.sum, whole, summed, keepdim=True, out=target)


# --------------------------------------------------------------------------------- shapes and means


def flatten(tape: Tape, x: Value, start_dim: int = 0, end_dim: int = -1) -> Result:
    """The same numbers with neighbouring axes as one."""
    shape = x.data[0].flatten(start_dim, end_dim).shape
    return reshape(tape, x, shape)


def reshape(tape: Tape, x: Value, *shape: Any) -> Result:
    """The same numbers in another shape: dx is dy in the shape of x."""
    sizes = x.data[0].reshape(*shape).shape
    if sizes[:1] != x.data.shape[1:2]:
        return None  # images would no longer be apart
    try:
        data = x.data.view(len(x.data), *sizes)
    except RuntimeError:  # they do not lie so that this is a view
        data = buffer(x.data, len(x.data), *sizes)
        tape.call(data.view(x.data.shape).copy_, x.data)
        y = Value(data, x.needs_grad, disposable=True)
    else:
        y = Value(data, x.needs_grad, disposable=x.disposable and x.users == 1)

    def backward() -> None:
        assert y.grad is not None
        if x.grad is None and data.data_ptr() == x.data.data_ptr():
            x.grad, x.reached = y.grad.as_strided(x.data.shape, x.data.stride()), True
            return
        with tape.gradient(x) as dx:
            if data.data_ptr() == x.data.data_ptr():
                tape.call(dx.copy_, y.grad.as_strided(x.data.shape, x.data.stride()))
            else:
                tape.call(dx.copy_, y.grad.view(x.data.shape))

    return y, backward


def mean(tape: Tape, x: Value, dim: Any, keepdim: bool = False) -> Result:
    """Mean of n numbers; dx = dy / n for each of them."""
    axes = sorted(d % (x.data.dim() - 1) + 1 for d in ((dim,) if isinstance(dim, int) else dim))
    kept = [1 if axis in axes else size for axis, size in enumerate(x.data.shape)]
    whole = buffer(x.data, *kept)
    tape.call(torch.mean, x.data, axes, keepdim=True, out=whole)
    sizes = [size for axis, size in enumerate(kept) if keepdim or axis not in axes]
    y = Value(whole.view(sizes), x.needs_grad, disposable=True)
    share = torch.tensor(whole.numel() / x.data.numel(), dtype=torch.float64)

    def backward() -> None:
        assert y.grad is not None
        with tape.gradient(x) as dx:
            tape.call(torch.mul, y.grad.view(kept).expand(x.data.shape), share, out=dx)

    return y, backward


def average_pool(tape: Tape, x: Value, kernel: tuple[int, int], stride: tuple[int, int]) -> Result:
    """Mean over each window of n numbers; each gets dy / n of every window it is in."""
    windows, y = _windows(x, kernel, stride)
    share = torch.tensor(1 / len(windows), dtype=torch.float64)
    tape.call(y.data.copy_, windows[0])
    for window in windows[1:]:
        tape.call(y.data.add_, window)
    tape.call(y.data.mul_, share)

    def backward() -> None:
        assert y.grad is not None
        tape.call(y.grad.mul_, share)
        with tape.gradient(x) as dx:
            tape.call(dx.zero_)
            for part in _windows(Value(dx), kernel, stride)[0]:
                tape.call(part.add_, y.grad)

    return y, backward


def max_pool(tape: Tape, x: Value, kernel: tuple[int, int], stride: tuple[int, int]) -> Result:
    """Largest number of each window; of several the first gets dy."""
    windows, y = _windows(x, kernel, stride)
    tape.call(y.data.copy_, windows[0])
    for window in windows[1:]:
        tape.call(torch.maximum, y.data, window, out=y.data)

    def backward() -> None:
        found, free = alike(y.data, torch.bool), alike(y.data, torch.bool)
        part = alike(y.data)
        tape.call(free.fill_, True)
        with tape.gradient(x) as dx:
            tape.call(dx.zero_)
            pairs = zip(windows, _windows(Value(dx), kernel, stride)[0], strict=True)
            for window, target in pairs:
                tape.call(torch.eq, window, y.data, out=found)
                tape.call(found.logical_and_, free)
                tape.call(free.logical_xor_, found)
                tape.call(torch.mul, y.grad, found, out=part)
                tape.call(target.add_, part)

    return y, backward


def _windows(
    x: Value, kernel: tuple[int, int], stride: tuple[int, int]
) -> tuple[list[Tensor], Value]:
    """For each place within a window, what stands there in all windows; and room for a result."""
    steps = [
        range(0, size - extent + 1, step)
        for size, extent, step in zip(x.data.shape[-2:], kernel, stride, strict=True)
    ]
    rows, columns = (len(step) for step in steps)
    views = [
        x.data[..., i : i + steps[0][-1] + 1 : stride[0], j : j + steps[1][-1] + 1 : stride[1]]
        for i in range(kernel[0])
        for j in range(kernel[1])
    ]
    shape = (*x.data.shape[:-2], rows, columns)
    return views, Value(x.data.new_zeros(shape), x.needs_grad)


# ---------------------------------------------------------------------------------------- layers


def _both(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _average_layer(tape: Tape, layer: nn.AvgPool2d, _: Parameters, x: Value) -> Result:
    if _both(layer.padding) != (0, 0) or layer.ceil_mode or layer.divisor_override:
        return None
    return average_pool(tape, x, _both(layer.kernel_size), _both(layer.stride))


def _max_layer(tape: Tape, layer: nn.MaxPool2d, _: Parameters, x: Value) -> Result:
    plain = (_both(layer.padding), _both(layer.dilation)) == ((0, 0), (1, 1))
    if not plain or layer.ceil_mode or layer.return_indices:
        return None
    return max_pool(tape, x, _both(layer.kernel_size), _both(layer.stride))


def _adaptive_layer(tape: Tape, layer: nn.AdaptiveAvgPool2d, _: Parameters, x: Value) -> Result:
    sizes = zip(x.data.shape[-2:], _both(layer.output_size), strict=True)
    splits = [divmod(size, parts or size) for size, parts in sizes]
    if any(rest for _, rest in splits):
        return None
    if _both(layer.output_size) == (1, 1):
        return mean(tape, x, (-2, -1), keepdim=True)
    kernel = _both([size for size, _ in splits])
    return average_pool(tape, x, kernel, kernel)


# By the class of a layer: (tape, layer, its parameters and buffers, x).
LAYERS: dict[type[nn.Module], Callable[..., Result]] = {
    nn.Linear: lambda tape, _layer, own, x: linear(tape, x, own["weight"], own.get("bias")),
    nn.Conv2d: convolution,
    nn.ReLU: lambda tape, _layer, _own, x: relu(tape, x),
    nn.Sigmoid: lambda tape, _layer, _own, x: sigmoid(tape, x),
    nn.Tanh: lambda tape, _layer, _own, x: tanh(tape, x),
    nn.Identity: lambda _tape, _layer, _own, x: (x, no_gradient),
    nn.Flatten: lambda tape, layer, _own, x: flatten(tape, x, layer.start_dim, layer.end_dim),
    nn.AvgPool2d: _average_layer,
    nn.MaxPool2d: _max_layer,
    nn.AdaptiveAvgPool2d: _adaptive_layer,
    Dropout: lambda tape, layer, own, x: dropout(tape, x, layer.p, own["seed"]),
}

# By function, or by the name of a tensor's method: (tape, *arguments as they stand in the code).
FUNCTIONS: dict[Any, Callable[..., Result]] = {
    **dict.fromkeys((F.relu, torch.relu, "relu"), relu),
    **dict.fromkeys((torch.sigmoid, "sigmoid"), sigmoid),
    **dict.fromkeys((torch.tanh, "tanh"), tanh),
    **dict.fromkeys((torch.exp, "exp"), exp),
    **dict.fromkeys((operator.neg, torch.neg, "neg"), neg),
    **dict.fromkeys((operator.matmul, torch.matmul), matmul),
    **dict.fromkeys((operator.add, torch.add), add),
    **dict.fromkeys((operator.sub, torch.sub), sub),
    **dict.fromkeys((operator.mul, torch.mul), mul),
    **dict.fromkeys((operator.truediv, torch.div), div),
    **dict.fromkeys((torch.flatten, "flatten"), flatten),
    **dict.fromkeys((torch.reshape, "reshape", "view"), reshape),
    **dict.fromkeys((torch.mean, "mean"), mean),
    torch.where: where,
    operator.lt: partial(compare, torch.lt),
    operator.le: partial(compare, torch.le),
    operator.gt: partial(compare, torch.gt),
    operator.ge: partial(compare, torch.ge),
}
