"""Many modules of one architecture as one, with a leading replica axis."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import stack_module_state

from mnist_cli.engine.batched import batched
from mnist_cli.models.modules import dropouts


@dataclass(frozen=True)
class Precision:
    """Floating-point types: of the weights, and of what is multiplied with them."""

    weights: torch.dtype
    products: torch.dtype


# With `bf16` torch's autocast decides, operation by operation; weights, losses and updates stay
# fp32. `tf32` is how a GPU multiplies fp32 and no type.
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
        parameters: by name, shape (R, *shape in the plain module): leaves, to be changed in place.
    """

    def __init__(self, models: Sequence[nn.Module], device: torch.device, precision: str) -> None:
        self.replicas = len(models)
        self.device = device
        self.dtype = PRECISIONS[precision].products
        weights = PRECISIONS[precision].weights
        values, buffers = stack_module_state(list(models))
        self.parameters = {
            name: value.detach().to(device, weights).contiguous().requires_grad_()
            for name, value in values.items()
        }
        # Integers (the keys of dropout) keep their type.
        self._buffers = {
            name: b.to(device, weights if b.is_floating_point() else None)
            for name, b in buffers.items()
        }
        # The module lends its code; the values it was built with are never read.
        self._module = copy.deepcopy(models[0])
        self._forward = batched(self._module, self.parameters | self._buffers, self.replicas)
        dropping = set(dropouts(self._module))
        self._step_buffers = [
            self._buffers[f"{name}.step"]
            for name, layer in self._module.named_modules()
            if layer in dropping
        ]
        self._autocast = self.dtype is not weights

    @property
    def size(self) -> int:
        """How many numbers all replicas learn together."""
        return sum(value.numel() for value in self.parameters.values())

    def train(self, step: int) -> None:
        """Makes ready for a training step, counted from 0: what dropout drops depends on it."""
        if not self._module.training:  # it walks the whole module
            self._module.train()
        for buffer in self._step_buffers:
            buffer.fill_(step)

    def eval(self) -> None:
        """Makes ready for evaluation: nothing is dropped."""
        self._module.eval()

    def __call__(self, images: Tensor) -> Tensor:
        """Logits of every replica, shape (R, batch, classes).

        Args:
            images: of type `dtype`, shape (G, batch, channels, height, width): one batch for each
                of G groups of R/G neighbouring replicas.
        """
        if not self._autocast:
            return self._forward(images)
        with torch.autocast(self.device.type, self.dtype):
            return self._forward(images).float()

    def gradients(self, losses: Tensor, weight: float) -> list[Tensor]:
        """The gradient of every replica's own objective, in the order of `parameters`.

        Args:
            losses: of each image, shape (R, batch).
            weight: what each counts in the objective: 1 for their sum, 1/batch for their mean.

        Returns:
            Shape (R, *shape) each. What is not finite in one replica stays there.
        """
        # Asked for and not accumulated: nothing has to be zeroed, and the images need none. What
        # is not finite in one replica's part of the sum is a constant to the others.
        objective = losses.sum() * weight
        found = torch.autograd.grad(objective, list(self.parameters.values()))
        # Some come transposed, and the kernels of the optimizers read them as they lie.
        return [gradient.contiguous() for gradient in found]

    def state_dict(self, replica: int) -> dict[str, Tensor]:
        """A copy of one replica's parameters on the CPU: the `state_dict` of its plain module."""
        return {
            name: value[replica].detach().to("cpu", copy=True).contiguous()
            for name, value in self.parameters.items()
        }

    @torch.no_grad()
    def load_state_dict(self, replica: int, state: Mapping[str, Tensor]) -> None:
        """Sets one replica's parameters.

        Raises:
            KeyError: a parameter is missing.
            RuntimeError: a shape differs.
        """
        for name, value in self.parameters.items():
            value[replica].copy_(state[name])
