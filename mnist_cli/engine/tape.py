"""What rules write on: buffers that are kept, and the calls that compute into them, in order."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

Call = Callable[[], object]

GUARD = 32  # numbers that a product of bfloat16 reads at once; see `guarded`


@dataclass(eq=False)
class Value:
    """What a node of the graph computes, for all replicas.

    Attributes:
        data: shape (R, ...); (G, ...) while it depends on images alone.
        needs_grad: whether it depends on parameters.
        grad: the gradient of the objective by `data`, in the same layout, once there is one.
        reached: whether a call has written `grad`: what comes next is added to it.
        users: how many nodes read it.
        disposable: whether its producer can do without `data` in the backward pass.
    """

    data: Tensor
    needs_grad: bool = True
    grad: Tensor | None = None
    reached: bool = False
    users: int = 0
    disposable: bool = False

    @property
    def gradient(self) -> Tensor:
        """The gradient, which is there when the backward pass comes to this node."""
        assert self.grad is not None
        return self.grad


Backward = Callable[[], None]
Result = tuple[Value, Backward] | None  # of a rule; None leaves the node to `torch.func`


@dataclass
class Tape:
    """The calls of a program while it is being built.

    Attributes:
        replicas: R.
        training: whether there is a backward pass, and dropout drops.
        step: the number of the training step, int32, no axes; set before each.
        calls: what has been written so far, in order.
    """

    replicas: int
    training: bool
    step: Tensor
    calls: list[Call] = field(default_factory=list)

    def call(self, function: Callable[..., object], *args: Any, **kwargs: Any) -> None:
        """Writes down one call, to be made at every step with these very tensors."""
        self.calls.append(partial(function, *args, **kwargs))

    def overwrite(self, x: Value) -> Tensor:
        """Where an elementwise function of `x` goes: its own place, if no later node reads it."""
        return x.data if x.disposable and x.users == 1 else alike(x.data)

    @contextmanager
    def gradient(self, x: Value, over: Value | None = None) -> Iterator[Tensor]:
        """The buffer into which the block has to write a gradient of `x`.

        A value with several users gets the sum of what each of them writes.

        Args:
            x: has to need a gradient.
            over: the node's result: the gradient of `x` may take the place of its gradient.
        """
        if x.reached:
            assert x.grad is not None
            part = alike(x.data)
            yield part
            self.call(x.grad.add_, part)
            return
        if x.grad is None:
            same = over is not None and over.data.stride() == x.data.stride()
            x.grad = over.grad if over is not None and same else alike(x.data)
        assert x.grad is not None
        x.reached = True
        yield x.grad


def alike(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """A new tensor of the same shape and strides; zeros, also between its numbers."""
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    span = 1 + sum((size - 1) * stride for size, stride in sizes) + GUARD * guarded(tensor)
    return tensor.new_zeros(span, dtype=dtype).as_strided(tensor.shape, tensor.stride())


def guarded(tensor: Tensor) -> bool:
    """Whether products of these numbers have to be kept from reading beyond a replica's matrix.

    On a CPU products of bfloat16 read up to 32 numbers at once, and where a row ends before, they
    multiply what follows by 0. Is that a diverged neighbour's NaN, the product is NaN. So there
    every replica has a product of its own, and zeros behind each of its matrices.
    """
    return tensor.dtype is torch.bfloat16 and tensor.device.type == "cpu"


def buffer(like: Tensor, *shape: int) -> Tensor:
    """Zeros of the type and device of `like`, shape (R, ...), each replica's part contiguous."""
    replicas, *own = shape
    size = torch.Size(own).numel()
    pitch = -(-size // GUARD) * GUARD + GUARD if guarded(like) else size
    return like.new_zeros(replicas, pitch)[:, :size].view(shape)


def multiply(tape: Tape, a: Tensor, b: Tensor, out: Tensor) -> None:
    """Every replica's product: out[r] = a[r] @ b[r].

    Replicas that share the right factor, as first layers share the images, get one wide product.

    Args:
        tape: where the calls are written.
        a: shape (R, M, K), or (G, M, K) if the R/G replicas of a group share it.
        b: shape (R, K, N) or (G, K, N), likewise.
        out: shape (R, M, N).
    """
    replicas, left, right = len(out), len(a), len(b)
    wide = left == replicas and a.is_contiguous() and out.is_contiguous()
    if replicas == 1 or guarded(a) or (min(left, right) < replicas and not wide):
        for r in range(replicas):
            x, y = a[r * left // replicas], b[r * right // replicas]
            tape.call(torch.mm, x, y, out=out[r])
    elif right == 1:
        tape.call(torch.mm, a.flatten(0, 1), b[0], out=out.flatten(0, 1))
    else:
        rows = a if right == replicas else a.view(right, -1, a.shape[-1])
        tape.call(torch.bmm, rows, b, out=out.view(right, -1, out.shape[-1]))
