"""Many modules of one architecture as one, with a leading replica axis.

The parameters of all replicas lie in one matrix, a row each. Layers see views of it, of shape
(replicas, *shape of the parameter); the optimizer sees its rows. What computes is one plain
`nn.Module`, run for all replicas at once by `torch.func.vmap`, so no model has code of its own for
stacking.
"""

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from mnist_cli.models import Dropout


class Stack:
    """R replicas of one architecture that compute together and share nothing else.

    Args:
        models: the replicas, alike but for their values; the stack takes copies.
        device: where the stack lives.
        dtype: floating-point type of weights and activations.
    """

    def __init__(
        self, models: Sequence[nn.Module], device: torch.device, dtype: torch.dtype
    ) -> None:
        self.replicas = len(models)
        self.device = device
        self.dtype = dtype
        values, buffers = stack_module_state(list(models))
        # Integers (the keys of dropout) keep their type.
        self._buffers = {
            name: b.to(device, dtype if b.is_floating_point() else None)
            for name, b in buffers.items()
        }
        sizes = [value[0].numel() for value in values.values()]
        flat = torch.cat([value.detach().flatten(1) for value in values.values()], dim=1)
        self._values = flat.to(device, dtype).contiguous()  # (R, parameters)
        self._gradients = torch.zeros_like(self._values)  # (R, parameters)
        self._parameters: dict[str, Tensor] = {}  # leaf views, (R, *shape)
        self._gradient_views: list[Tensor] = []
        columns = zip(
            values.items(),
            self._values.split(sizes, dim=1),
            self._gradients.split(sizes, dim=1),
            strict=True,
        )
        for (name, value), column, gradient in columns:
            self._parameters[name] = column.view(value.shape).requires_grad_()
            self._gradient_views.append(gradient.view(value.shape))

        self._state = self._parameters | self._buffers
        # The module lends its code; the values it was built with are never read.
        self._module = copy.deepcopy(models[0]).to("meta")
        self._step_buffers = [
            self._buffers[f"{name}.step"]
            for name, layer in self._module.named_modules()
            if isinstance(layer, Dropout)
        ]

    @property
    def parameters(self) -> int:
        """How many numbers all replicas learn together."""
        return self._values.numel()

    def rows(self) -> list[Tensor]:
        """The parameters of each replica, each a flat leaf with its `.grad`, for an optimizer.

        They share memory with the stack: a step on a row is a step on the replica.
        """
        leaves = []
        for value, gradient in zip(self._values, self._gradients, strict=True):
            leaf = value.detach().requires_grad_()
            leaf.grad = gradient
            leaves.append(leaf)
        return leaves

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
            images: shape (G, batch, channels, height, width), where G is R (each replica its own
                batch) or 1 (all the same).
        """
        if self.replicas == 1:
            alone = {name: value[0] for name, value in self._state.items()}
            return self._forward(alone, images[0])[None]
        shared = images.shape[0] == 1
        forward = vmap(self._forward, in_dims=(0, None if shared else 0))
        return forward(self._state, images[0] if shared else images)

    def backward(self, objectives: Tensor) -> None:
        """Sets the gradients of every replica to those of its own objective.

        Args:
            objectives: one number for each replica, shape (R,). The gradient of their sum is, for
                each replica, that of its own, so what is not finite in one stays there.
        """
        gradients = torch.autograd.grad(objectives.sum(), list(self._parameters.values()))
        # Copied and not accumulated: nothing has to be zeroed, and the optimizer's views stay.
        torch._foreach_copy_(self._gradient_views, gradients)

    def state_dict(self, replica: int) -> dict[str, Tensor]:
        """A copy of one replica's parameters on the CPU: the `state_dict` of its plain module."""
        return {
            name: value[replica].detach().to("cpu", copy=True).contiguous()
            for name, value in self._parameters.items()
        }

    @torch.no_grad()
    def load_state_dict(self, replica: int, state: Mapping[str, Tensor]) -> None:
        """Sets one replica's parameters.

        Raises:
            KeyError: a parameter is missing.
            RuntimeError: a shape differs.
        """
        for name, value in self._parameters.items():
            value[replica].copy_(state[name])

    def _forward(self, state: dict[str, Tensor], images: Tensor) -> Tensor:
        logits: Tensor = functional_call(self._module, state, (images,))
        return logits
