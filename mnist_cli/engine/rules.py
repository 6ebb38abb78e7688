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

from mnist_cli.engine.convolution import convolution
from mnist_cli.engine.normalization import batch_norm, layer_norm
from mnist_cli.engine.pooling import adaptive_average_pool, average_pool, max_pool
from mnist_cli.engine.tape import Result, Tape, Value, alike, buffer, multiply
from mnist_cli.models import scratch
from mnist_cli.models.modules import Dropout, keep_mask

Operand = Value | float
Parameters = dict[str, Value]

aten = torch.ops.aten


def no_gradient() -> None:
    """The backward pass of what has none."""


# ------------------------------------------------------------------------------------- products


def linear(
    tape: Tape, x: Value, weight: Value, bias: Value | None = None, *, transposed: bool = False
) -> Result:
    """Linear layer: y = x W^T + b; dW = dy^T x, db = the sum of dy over the batch, dx = dy W.

    Shapes: x (R or G, batch, inputs), W (R, outputs, inputs), b (R, outputs).
    """
    if x.data.dim() != 3:
        return None
    w = weight.data.mT if transposed else weight.data
    z = buffer(w, tape.replicas, w.shape[1], x.data.shape[1])
    multiply(tape, w, x.data.mT, z)  # (R, outputs, batch)
    if bias is not None:
        tape.call(z.add_, bias.data.unsqueeze(2))
    y = Value(z.mT, disposable=True)

    def backward() -> None:
        dz = y.gradient.mT
        if weight.needs_grad:
            with tape.gradient(weight) as dw:
                multiply(tape, dz, x.data, dw.mT if transposed else dw)
        if bias is not None:
            with tape.gradient(bias) as db:
                tape.call(torch.sum, dz, 2, out=db)
        if x.needs_grad:
            with tape.gradient(x) as dx:
                multiply(tape, w.mT, dz, dx.mT)

    return y, backward


def matmul(tape: Tape, x: Value, weight: Value) -> Result:
    """Product of matrices, y = x V: `linear` with W = V^T, which is another view of V.

    Shapes: x (R or G, batch, inputs), V (R, inputs, outputs).
    """
    if weight.data.dim() != 3 or len(weight.data) != tape.replicas:
        return None
    return linear(tape, x, weight, transposed=True)


# ---------------------------------------------------------------------------------- elementwise


def elementwise(
    function: Callable[..., Any], derivative: Callable[..., Any], *, from_result: bool = False
) -> Callable[..., Result]:
    """The rule of a function of each number.

    Args:
        function: writes y from x to `out`.
        derivative: writes dx from dy and x to `out`.
        from_result: whether it is from dy and y instead; then y may take the place of x.
    """

    def rule(tape: Tape, x: Value, inplace: bool = False) -> Result:  # noqa: ARG001
        data = tape.overwrite(x) if from_result else alike(x.data)
        y = Value(data, x.needs_grad, disposable=not from_result)
        known = y if from_result else x
        tape.call(function, x.data, out=y.data)

        def backward() -> None:
            with tape.gradient(x, over=y) as dx:
                tape.call(derivative, y.grad, known.data, out=dx)

        return y, backward

    return rule


# y = max(x, 0); dx = dy where y > 0, else 0
relu = elementwise(
    partial(torch.clamp_min, min=0),
    lambda dy, y, out: aten.threshold_backward.grad_input(dy, y, 0, grad_input=out),
    from_result=True,
)
# y = 1 / (1 + exp(-x)); dx = dy * y * (1 - y)
sigmoid = elementwise(
    torch.sigmoid,
    lambda dy, y, out: aten.sigmoid_backward.grad_input(dy, y, grad_input=out),
    from_result=True,
)
# y = tanh(x); dx = dy * (1 - y^2)
tanh = elementwise(
    torch.tanh,
    lambda dy, y, out: aten.tanh_backward.grad_input(dy, y, grad_input=out),
    from_result=True,
)


# y = x sigmoid(x); dx = dy (s + x s (1 - s)), s = sigmoid(x)
silu = elementwise(
    aten.silu.out, lambda dy, x, out: aten.silu_backward.grad_input(dy, x, grad_input=out)
)


def gelu(tape: Tape, x: Value, approximate: str = "none") -> Result:
    """Y = x Phi(x), dx = dy (Phi(x) + x phi(x)); Phi of the normal distribution, or near it.

    With `tanh`, Phi(x) is (1 + tanh(u)) / 2, where u = sqrt(2 / pi) (x + 0.044715 x^3) (Hendrycks
    and Gimpel 2016).
    """

    def derivative(dy: Tensor, x: Tensor, out: Tensor) -> None:
        aten.gelu_backward.grad_input(dy, x, approximate=approximate, grad_input=out)

    return elementwise(partial(aten.gelu.out, approximate=approximate), derivative)(tape, x)


def leaky_relu(
    tape: Tape,
    x: Value,
    negative_slope: float = 0.01,
    inplace: bool = False,  # noqa: ARG001
) -> Result:
    """Y = x where x > 0, else a x; dx = dy, or a dy."""

    def function(x: Tensor, out: Tensor) -> None:
        aten.leaky_relu.out(x, negative_slope, out=out)

    def derivative(dy: Tensor, x: Tensor, out: Tensor) -> None:
        aten.leaky_relu_backward.grad_input(dy, x, negative_slope, False, grad_input=out)

    return elementwise(function, derivative)(tape, x)


def dropout(tape: Tape, x: Value, p: float, seed: Value) -> Result:
    """Dropout: y = x * m, dx = dy * m, where m is 0 with probability p and else 1 / (1 - p)."""
    if not tape.training:
        return x, no_gradient
    y = Value(tape.overwrite(x), x.needs_grad, disposable=True)
    mask = alike(x.data)
    keys = seed.data.view(-1, *(1,) * (x.data.dim() - 1))
    positions = torch.arange(x.data[0].numel(), device=keys.device).view(x.data.shape[1:])
    keep = keep_mask(positions, keys, p)
    tape.call(lambda: mask.copy_(keep(tape.step)))
    tape.call(mask.mul_, torch.tensor(1 / (1 - p), dtype=torch.float64))
    tape.call(torch.mul, x.data, mask, out=y.data)

    def backward() -> None:
        with tape.gradient(x, over=y) as dx:
            tape.call(torch.mul, y.grad, mask, out=dx)

    return y, backward


def of_two(function: Callable[..., Any], *derivatives: Callable[..., Any]) -> Callable[..., Result]:
    """The rule of a function of two numbers for each element, broadcast as for a replica alone.

    Args:
        function: writes y from a and b to `out`.
        derivatives: write da and db, from dy, a and b to `out`. Where a number was broadcast, its
            gradient is the sum over what was made of it.
    """

    def rule(tape: Tape, a: Operand, b: Operand) -> Result:
        values = [x for x in (a, b) if isinstance(x, Value)]
        tensors = _aligned(a, b)
        shape = torch.broadcast_shapes(*(t.shape for t in tensors))
        whole = torch.Size((shape[0] * shape[1], *shape[2:]))
        full = (x.data for x in values if x.data.shape == whole)
        data = alike(next(full, values[0].data.new_zeros(whole)))
        y = Value(data, any(x.needs_grad for x in values))
        tape.call(function, *tensors, out=y.data.view(shape))

        def backward() -> None:
            dy = y.gradient.view(shape)
            for x, own, derivative in zip((a, b), tensors, derivatives, strict=True):
                if not isinstance(x, Value) or not x.needs_grad:
                    continue
                summed = [axis for axis in range(len(shape)) if own.shape[axis] != shape[axis]]
                with tape.gradient(x) as dx:
                    each = alike(dy) if summed else dx.view(shape)
                    tape.call(derivative, dy, *tensors, out=each)
                    if summed:
                        tape.call(torch.sum, each, summed, keepdim=True, out=dx.view(own.shape))

        return y, backward

    return rule


# y = a + b; da = dy, db = dy
add = of_two(torch.add, *[lambda dy, _a, _b, out: out.copy_(dy)] * 2)
# y = a * b; da = dy * b, db = dy * a
mul = of_two(
    torch.mul,
    lambda dy, _, b, out: torch.mul(dy, b, out=out),
    lambda dy, a, _, out: torch.mul(dy, a, out=out),
)


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


# --------------------------------------------------------------------------- shapes, means


def flatten(tape: Tape, x: Value, start_dim: int = 0, end_dim: int = -1) -> Result:
    """The same numbers with neighbouring axes as one."""
    return reshape(tape, x, x.data[0].flatten(start_dim, end_dim).shape)


def reshape(tape: Tape, x: Value, *shape: Any) -> Result:
    """The same numbers in another shape: dx is dy in the shape of x."""
    sizes = x.data[0].reshape(*shape).shape
    if sizes[:1] != x.data.shape[1:2]:
        return None  # images would no longer be apart
    try:
        data = x.data.view(len(x.data), *sizes)
        y = Value(data, x.needs_grad, disposable=x.disposable and x.users == 1)
    except RuntimeError:  # they do not lie so that this is a view
        y = Value(buffer(x.data, len(x.data), *sizes), x.needs_grad, disposable=True)
        tape.call(y.data.view(x.data.shape).copy_, x.data)
    same = y.data.data_ptr() == x.data.data_ptr()

    def backward() -> None:
        layout = x.data if same else y.data.view(x.data.shape)
        dy = y.gradient.as_strided(layout.shape, layout.stride())
        if same and x.grad is None:
            x.grad, x.reached = dy, True
            return
        with tape.gradient(x) as dx:
            tape.call(dx.copy_, dy)

    return y, backward


def mean(tape: Tape, x: Value, dim: Any, keepdim: bool = False) -> Result:
    """Mean of n numbers; dx = dy / n for each of them."""
    axes = sorted(d % (x.data.dim() - 1) + 1 for d in ((dim,) if isinstance(dim, int) else dim))
    if axes[0] == 1:
        return None  # over the images of a batch
    kept = [1 if axis in axes else size for axis, size in enumerate(x.data.shape)]
    y = Value(buffer(x.data, *kept), x.needs_grad)
    tape.call(torch.mean, x.data, axes, keepdim=True, out=y.data)
    share = torch.tensor(y.data.numel() / x.data.numel(), dtype=torch.float64)
    if not keepdim:
        y.data = y.data.view([s for axis, s in enumerate(kept) if axis not in axes])

    def backward() -> None:
        with tape.gradient(x) as dx:
            tape.call(torch.mul, y.gradient.view(kept).expand(x.data.shape), share, out=dx)

    return y, backward


def _settings(rule: Callable[..., Result]) -> Callable[..., Result]:
    """The rule of a layer without parameters: that of a function of its settings."""

    def of_layer(tape: Tape, layer: nn.Module, _: Parameters, x: Value) -> Result:
        names: Any = layer.__constants__
        return rule(tape, x, **{name: getattr(layer, name) for name in names})

    return of_layer


# By the class of a layer: (tape, layer, its parameters and buffers, x).
LAYERS: dict[type[nn.Module], Callable[..., Result]] = {
    nn.Linear: lambda tape, _layer, own, x: linear(tape, x, own["weight"], own.get("bias")),
    nn.Conv2d: convolution,
    nn.ReLU: lambda tape, _layer, _own, x: relu(tape, x),
    nn.Sigmoid: lambda tape, _layer, _own, x: sigmoid(tape, x),
    nn.Tanh: lambda tape, _layer, _own, x: tanh(tape, x),
    nn.Identity: lambda _tape, _layer, _own, x: (x, no_gradient),
    nn.Flatten: lambda tape, layer, _own, x: flatten(tape, x, layer.start_dim, layer.end_dim),
    nn.GELU: _settings(gelu),
    nn.SiLU: _settings(silu),
    nn.LeakyReLU: _settings(leaky_relu),
    nn.BatchNorm1d: batch_norm,
    nn.BatchNorm2d: batch_norm,
    nn.LayerNorm: layer_norm,
    nn.AvgPool2d: _settings(average_pool),
    nn.MaxPool2d: _settings(max_pool),
    nn.AdaptiveAvgPool2d: _settings(adaptive_average_pool),
    Dropout: lambda tape, layer, own, x: dropout(tape, x, layer.p, own["seed"]),
}

# By function, or by the name of a tensor's method: (tape, *arguments as they stand in the code).
FUNCTIONS: dict[Any, Callable[..., Result]] = {
    **dict.fromkeys((F.relu, torch.relu, scratch.relu, "relu"), relu),
    **dict.fromkeys((torch.sigmoid, scratch.sigmoid, "sigmoid"), sigmoid),
    **dict.fromkeys((torch.tanh, scratch.tanh, "tanh"), tanh),
    F.gelu: gelu,
    F.silu: silu,
    F.leaky_relu: leaky_relu,
    F.max_pool2d: max_pool,
    F.avg_pool2d: average_pool,
    F.adaptive_avg_pool2d: adaptive_average_pool,
    **dict.fromkeys((operator.matmul, torch.matmul), matmul),
    **dict.fromkeys((operator.add, operator.iadd, torch.add, "add", "add_"), add),
    **dict.fromkeys((operator.mul, operator.imul, torch.mul, "mul", "mul_"), mul),
    **dict.fromkeys((torch.flatten, "flatten"), flatten),
    **dict.fromkeys((torch.reshape, "reshape", "view"), reshape),
    **dict.fromkeys((torch.mean, "mean"), mean),
}
