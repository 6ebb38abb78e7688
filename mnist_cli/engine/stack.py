"""Many modules of one architecture as one, with a leading replica axis."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import stack_module_state

from mnist_cli.engine.convolution import HALVES
from mnist_cli.engine.flat import Flat
from mnist_cli.engine.normalization import BatchNorm
from mnist_cli.engine.program import Program
from mnist_cli.engine.tape import buffer
from mnist_cli.models.modules import Dropout


def without_rule(module: nn.Module, shape: tuple[int, int, int]) -> list[str]:
    """The calls in a module's forward that are left to `torch.func`, by name.

    Args:
        module: the module.
        shape: (channels, height, width) of an image.
    """
    stack = Stack([module], torch.device("cpu"), "fp32")
    return stack.program(torch.zeros(1, 2, *shape), training=True).without_rule


@dataclass(frozen=True)
class Precision:
    """Floating-point types: of the weights, and of what is multiplied with them."""

    weights: torch.dtype
    products: torch.dtype


# With `bf16` products take a copy of the weights and give gradients in bfloat16; weights, losses
# and updates stay fp32. `tf32` is how a GPU multiplies fp32 and no type.
PRECISIONS = {
    "fp32": Precision(torch.float32, torch.float32),
    "fp64": Precision(torch.float64, torch.float64),
    "bf16": Precision(torch.float32, torch.bfloat16),
    "tf32": Precision(torch.float32, torch.float32),
}


class Stack:
    """R replicas of one architecture that compute together and share nothing else.

    Args:
        models: the replicas, alike but for their values; the stack takes copies.
        device: where the stack lives.
        precision: one of `PRECISIONS`.

    Attributes:
        dtype: the type of what products take: images, activations.
        weights: what the optimizer changes, in place.
        gradients: what the optimizer reads, laid out as the weights.
        buffers: what the modules keep besides, such as running statistics, by name, shape (R, ...).
    """

    def __init__(self, models: Sequence[nn.Module], device: torch.device, precision: str) -> None:
        self.replicas = len(models)
        self.device = device
        self.dtype = PRECISIONS[precision].products
        values, buffers = stack_module_state(list(models))
        shapes = {name: value.shape[1:] for name, value in values.items()}
        dtype = PRECISIONS[precision].weights
        self.weights = Flat.zeros(shapes, self.replicas, dtype, device)
        self.gradients = self.weights.like()
        for name, value in values.items():
            self.parameters[name].copy_(value.detach())
        # The module lends its code; the values it was built with are never read.
        self._module = copy.deepcopy(models[0])
        self._step = torch.zeros((), dtype=torch.int32, device=device)
        # What products read and write: the very weights and gradients, or copies of their type.
        self._factors, self._products = self.parameters, self.gradients.views
        if self.dtype is not dtype:
            like = torch.empty(0, dtype=self.dtype, device=device)
            self._factors, self._products = (
                {name: buffer(like, self.replicas, *shape) for name, shape in shapes.items()}
                for _ in range(2)
            )
        # Integers (the keys of dropout) keep their type, and statistics all their digits.
        self.buffers = {
            name: b.to(device, self._buffer_type(name, b), copy=True) for name, b in buffers.items()
        }
        # What dropout layers read that no rule replaces, in modules which cannot be taken apart.
        layers = self._module.named_modules()
        drops = [name for name, layer in layers if isinstance(layer, Dropout)]
        self._counts = [self.buffers[f"{name}.step"] for name in drops]
        self.refresh()

    def _buffer_type(self, name: str, buffer: Tensor) -> torch.dtype:
        if not buffer.is_floating_point():
            return buffer.dtype
        owner = self._module.get_submodule(name.rpartition(".")[0])
        return self.weights.row.dtype if isinstance(owner, BatchNorm) else self.dtype

    @property
    def parameters(self) -> dict[str, Tensor]:
        """The weights by name, shape (R, *shape in the plain module)."""
        return self.weights.views

    def program(self, images: Tensor, *, training: bool) -> Program:
        """What computes the logits of all replicas, and if it is for training the gradients.

        Args:
            images: of type `dtype`, shape (G, batch, channels, height, width): one batch for each
                of G groups of R/G neighbouring replicas, or `parts` of one. Whatever stands there
                is the batch.
            training: whether there is a backward pass, and dropout drops.
        """
        gradients = self._products if training else None
        return Program(self._module, self._factors | self.buffers, gradients, images, self._step)

    def parts(self, batch: int) -> int:
        """In how many parts of one size a batch is best taken."""
        on_cpu = self.device.type == "cpu" and self.dtype is not torch.bfloat16
        layers = list(self._module.modules())
        # Dropout is by the place in the batch, and normalisation by all of it.
        whole = any(isinstance(layer, Dropout | BatchNorm) for layer in layers)
        convolves = any(isinstance(layer, nn.Conv2d) for layer in layers)
        halved = on_cpu and self.replicas == 1 and convolves and not whole
        return HALVES if halved and batch % HALVES == 0 else 1

    def begin(self, step: int) -> None:
        """Makes ready for a training step, counted from 0: what dropout drops depends on it."""
        self._step.fill_(step)
        for count in self._counts:
            count.fill_(step)

    def collect(self) -> None:
        """Brings gradients to where the optimizer reads them, if they are not there already."""
        if self._products is not self.gradients.views:
            for name, gradient in self._products.items():
                self.gradients.views[name].copy_(gradient)

    def refresh(self) -> None:
        """Brings changed weights to where products read them, if they are not there already."""
        if self._factors is not self.parameters:
            for name, value in self._factors.items():
                value.copy_(self.parameters[name])

    def average_in(self, other: "Stack", weight: float) -> None:
        """Moves weights and statistics by a share of what another stack has more; counts are its.

        Args:
            other: of the same modules.
            weight: the share, from 0 (nothing moves) to 1 (they are the other's).
        """
        self.weights.row.lerp_(other.weights.row, weight)
        for name, own in self.buffers.items():
            if own.is_floating_point():
                own.lerp_(other.buffers[name], weight)
            else:
                own.copy_(other.buffers[name])

    def state_dict(self, replica: int) -> dict[str, Tensor]:
        """A copy of one replica on the CPU: the `state_dict` of its plain module."""
        kept = self.weights.row.dtype
        state = self.weights.state_dict(replica)
        for name, each in self.buffers.items():
            own = each[replica]
            state[name] = own.to("cpu", kept if own.is_floating_point() else None, copy=True)
        return {name: state[name] for name in self._module.state_dict()}

    def load_state_dict(self, replica: int, state: Mapping[str, Tensor]) -> None:
        """Sets one replica's parameters and buffers.

        Raises:
            KeyError: one is missing.
            RuntimeError: a shape differs.
        """
        self.weights.load_state_dict(replica, state)
        for name in self._module.state_dict().keys() & self.buffers.keys():
            self.buffers[name][replica].copy_(state[name])
        self.refresh()
