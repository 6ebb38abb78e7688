"""An ordinary module as one function of many replicas, with no code of its own for it.

The module's forward is traced once into a graph of calls (`torch.fx`). A linear layer or a
convolution becomes one product for all replicas, functions of single numbers stay as they are, and
whatever else a model does runs under `torch.func.vmap`, which is right for everything and slower.

Every tensor in here has a leading axis. It counts the R replicas, or, up to the first layer with
weights, the G groups of R/G neighbouring replicas that see the same images: what they share is
gathered once, and multiplied by the weights of the whole group in one product.
"""

import operator
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.fx import Node, Tracer

ELEMENTWISE_LAYERS = (nn.ReLU, nn.Sigmoid, nn.Tanh)
ELEMENTWISE: set[Any] = {
    *(F.relu, torch.relu, torch.sigmoid, torch.tanh, torch.exp, torch.where),
    *(operator.add, operator.sub, operator.mul, operator.truediv, operator.neg),
    *(operator.lt, operator.le, operator.gt, operator.ge),
}
PRODUCTS: set[Any] = {operator.matmul, torch.matmul}


def batched(
    module: nn.Module, state: Mapping[str, Tensor], replicas: int
) -> Callable[[Tensor], Tensor]:
    """What a module does, for all replicas at once.

    Args:
        module: lends its code; its own values are never read.
        state: every parameter and buffer by name, shape (R, *shape in the module). Held, not
            copied: to change a replica is to change these.
        replicas: R.

    Returns:
        A function of images, shape (G, batch, channels, height, width), that returns logits, shape
        (R, batch, classes). G divides R.
    """
    graph = _Tracer().trace(module)
    calls: list[tuple[Node, Callable[..., Tensor]]] = []
    known: dict[Node, Tensor] = {}
    for node in graph.nodes:
        match node.op:
            case "placeholder":
                images = node
            case "get_attr":
                known[node] = state[str(node.target)]
            case "call_module":
                layer = module.get_submodule(node.target)
                names = (name for name, _ in (*layer.named_parameters(), *layer.named_buffers()))
                own = {name: state[f"{node.target}.{name}"] for name in names}
                calls.append((node, _layer(layer, own, replicas)))
            case "call_function":
                calls.append((node, _function(node.target, replicas)))
            case "call_method":
                method = partial(_call_method, node.target)
                calls.append((node, partial(_one_by_one, method, replicas)))
            case "output":
                (result,) = node.all_input_nodes

    def forward(inputs: Tensor) -> Tensor:
        values = known | {images: inputs}
        for node, call in calls:
            args = [values[arg] if isinstance(arg, Node) else arg for arg in node.args]
            values[node] = call(*args, **node.kwargs)
        logits: Tensor = values[result]
        return logits

    return forward


class _Tracer(Tracer):
    """Looks into modules that are made of others, and takes each of the others as one call."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:  # noqa: ARG002
        return next(m.children(), None) is None


def _layer(
    layer: nn.Module, own: Mapping[str, Tensor], replicas: int
) -> Callable[[Tensor], Tensor]:
    """A layer for all replicas.

    Args:
        layer: one of the module's.
        own: its parameters and buffers, shape (R, ...).
        replicas: R.
    """
    if isinstance(layer, ELEMENTWISE_LAYERS):
        return layer
    if isinstance(layer, nn.Flatten) and (layer.start_dim, layer.end_dim) == (1, -1):
        return partial(torch.flatten, start_dim=2)
    if isinstance(layer, nn.Linear):
        return lambda x: _linear(x, own["weight"], own.get("bias"))
    if isinstance(layer, nn.Conv2d) and (layer.groups, layer.padding_mode) == (1, "zeros"):
        return lambda x: _convolution(layer, x, own["weight"], own.get("bias"))

    def call(own: dict[str, Tensor], *inputs: Tensor) -> Tensor:
        output: Tensor = functional_call(layer, own, inputs)
        return output

    return lambda *inputs: _one_by_one(call, replicas, dict(own), *inputs)


def _function(function: Callable[..., Any], replicas: int) -> Callable[..., Tensor]:
    """A function of tensors for all replicas."""

    def call(*args: Any, **kwargs: Any) -> Tensor:
        tensors = [arg for arg in args if isinstance(arg, Tensor)]
        if function in PRODUCTS and [t.dim() for t in tensors] == [3, 3]:
            return _linear(tensors[0], tensors[1].transpose(1, 2).contiguous())
        if function in ELEMENTWISE:
            rank = max(t.dim() for t in tensors)
            output: Tensor = function(*(_of_rank(arg, rank) for arg in args), **kwargs)
            return output
        return _one_by_one(function, replicas, *args, **kwargs)

    return call


def _of_rank(value: Any, rank: int) -> Any:
    """A tensor with axes of size 1 behind the first, as broadcasting would add them in front."""
    if not isinstance(value, Tensor) or value.dim() == rank:
        return value
    return value.view(value.shape[0], *(1,) * (rank - value.dim()), *value.shape[1:])


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Every replica's rows through its own linear layer.

    Views are made by reshaping and never by indexing, whose gradient is a copy among zeros.

    Args:
        x: shape (G, batch, inputs).
        weight: shape (R, outputs, inputs).
        bias: shape (R, outputs).

    Returns:
        Shape (R, batch, outputs).
    """
    groups, batch = x.shape[:2]
    replicas, outputs, inputs = weight.shape
    if groups == 1:
        # The layers of all replicas side by side are one layer, and what comes out is a view.
        flat = None if bias is None else bias.flatten()
        wide = F.linear(x.flatten(0, 1), weight.flatten(0, 1), flat)
        if replicas == 1:
            return wide.unsqueeze(0)
        return wide.view(batch, replicas, outputs).transpose(0, 1)
    # Matrices first: their gradients come as they lie, which spares a copy at every step.
    width = replicas // groups * outputs
    rows, columns = weight.view(groups, width, inputs), x.transpose(1, 2)
    if bias is None:
        wide = torch.bmm(rows, columns)
    else:
        wide = torch.baddbmm(bias.view(groups, width, 1), rows, columns)
    return wide.view(replicas, outputs, batch).transpose(1, 2)


def _convolution(layer: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Every replica's images convolved with its kernels: one grouped convolution.

    Args:
        layer: says stride, padding and dilation.
        x: shape (G, batch, channels, height, width).
        weight: shape (R, outputs, channels, kernel height, kernel width).
        bias: shape (R, outputs).

    Returns:
        Shape (R, batch, outputs, height, width).
    """
    groups, batch = x.shape[:2]
    replicas, outputs = weight.shape[:2]
    images = x.transpose(0, 1).flatten(1, 2)  # (batch, G * channels, height, width)
    kernels = weight.flatten(0, 1)  # (R * outputs, channels, ...)
    if x.device.type == "cpu":
        # oneDNN is up to four times faster so, and whatever follows keeps the layout.
        kernels = kernels.contiguous(memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)
        if images.shape[1] == 1:  # which lies in memory either way: say which is meant
            height, width = images.shape[2:]
            images = images.as_strided(images.shape, (height * width, 1, width, 1))
    maps = F.conv2d(
        images,
        kernels,
        None if bias is None else bias.flatten(),
        layer.stride,
        layer.padding,
        layer.dilation,
        groups,
    )
    if replicas == 1:
        return maps.unsqueeze(0)
    return maps.view(batch, replicas, outputs, *maps.shape[2:]).transpose(0, 1)


def _one_by_one(function: Callable[..., Any], replicas: int, *args: Any, **kwargs: Any) -> Tensor:
    """A function of one replica's values, for all replicas.

    Args:
        function: knows nothing of replicas.
        replicas: R.
        args: tensors and dicts of tensors, shape (R, ...) or (G, ...), and anything else.
        kwargs: no tensors.
    """
    mapped = [isinstance(arg, Tensor | dict) for arg in args]
    if replicas == 1:
        first = [_first(arg) if has else arg for arg, has in zip(args, mapped, strict=True)]
        alone: Tensor = function(*first, **kwargs)
        return alone[None]
    spread = [
        arg.repeat_interleave(replicas // arg.shape[0], 0) if isinstance(arg, Tensor) else arg
        for arg in args
    ]
    over = vmap(partial(function, **kwargs), in_dims=tuple(0 if has else None for has in mapped))
    together: Tensor = over(*spread)
    return together


def _first(value: Any) -> Any:
    """What belongs to the only replica there is."""
    return {k: v[0] for k, v in value.items()} if isinstance(value, dict) else value[0]


def _call_method(name: str, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    output: Tensor = getattr(tensor, name)(*args, **kwargs)
    return output
