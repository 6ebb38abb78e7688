"""A module as one program for all replicas: its graph, rule by rule, forward and backward.

The module's forward is traced once into a graph of calls (`torch.fx`). Rules write each call's
forward pass on a tape and then, walking the graph in reverse, each one's backward pass. Whatever
has no rule is left to `torch.func`, by itself: right for everything, and slower.
"""

import inspect
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap
from torch.fx import Graph, Node, Tracer
from torch.fx.node import map_aggregate

from mnist_cli.engine.rules import FUNCTIONS, LAYERS, Backward, Result, no_gradient
from mnist_cli.engine.tape import Call, Tape, Value


class _Tracer(Tracer):
    """Looks into all modules and functions but torch's own and those that have a rule."""

    def __init__(self) -> None:
        super().__init__(autowrap_functions=tuple(filter(inspect.isfunction, FUNCTIONS)))

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m) in LAYERS or super().is_leaf_module(m, module_qualified_name)


class _NoTensorError(Exception):
    """A node without a rule computes something else than one tensor."""


class Program:
    """Forward and backward pass of R replicas for one shape of images, in memory that is kept.

    Args:
        module: lends its code; its own values are never read.
        state: every parameter and buffer by name, shape (R, ...). Held, not copied: to change a
            replica is to change these.
        gradients: where the gradient of each parameter goes; None if there is no backward pass.
        images: where the images of each batch are put, shape (G, batch, channels, height, width);
            G divides R, or R is 1 and these are G parts of its batch.
        step: where the number of the step is put, int32.

    Attributes:
        tape: of its calls.
        logits: what the module makes of the images, shape (R or G, batch, classes).
        forward: the calls that compute it.
        without_rule: the nodes that were left to `torch.func`.
    """

    def __init__(
        self,
        module: nn.Module,
        state: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor] | None,
        images: Tensor,
        step: Tensor,
    ) -> None:
        self._module, self._state, self._gradients = module, state, gradients
        self._images, self._step = images, step
        module.train(gradients is not None)
        try:
            graph = _Tracer().trace(module)
        except Exception:  # noqa: BLE001 - code that cannot be traced raises anything
            self.logits = self._as_one()
        else:
            try:
                self.logits = self._walk(graph)
            except _NoTensorError:
                self.logits = self._as_one()
        self.forward = self.tape.calls

    def backward(self) -> list[Call]:
        """The calls that compute the gradients of all parameters from that of the logits.

        To be asked once, when `logits.grad` is there.
        """
        self.tape.calls = []
        for value, backward in reversed(self._backward):
            if value.grad is not None:
                backward()
        for parts, whole in self._parts:
            self.tape.call(torch.sum, parts, 0, keepdim=True, out=whole)
        return self.tape.calls

    def _begin(self) -> tuple[dict[str, Value], Value]:
        """An empty tape; the values of the module's own tensors, and of the images."""
        gradients = dict(self._gradients or {})
        state, replicas = self._state, len(next(iter(self._state.values())))
        self._parts: list[tuple[Tensor, Tensor]] = []
        if len(self._images) > replicas:  # parts of a batch: replicas that have all in common
            replicas = len(self._images)
            state = {name: data.expand(replicas, *data.shape[1:]) for name, data in state.items()}
            for name, whole in gradients.items():
                gradients[name] = whole.new_zeros(state[name].shape)
                self._parts.append((gradients[name], whole))
        self.tape = Tape(replicas, self._gradients is not None, self._step)
        self.without_rule: list[str] = []
        self._backward: list[tuple[Value, Backward]] = []
        own = {
            name: Value(data, name in gradients, gradients.get(name))
            for name, data in state.items()
        }
        return own, Value(self._images, needs_grad=False)

    def _as_one(self) -> Value:
        """The whole module as a node without a rule."""
        own, images = self._begin()
        self.without_rule.append(type(self._module).__name__)
        value, backward = _by_torch(self.tape, self._module, own, images)
        self._backward.append((value, backward))
        return value

    def _walk(self, graph: Graph) -> Value:
        """Writes the forward pass of each node; returns the value of the last."""
        own, images = self._begin()
        known: dict[Node, Any] = {}
        for node in graph.nodes:
            args, kwargs = map_aggregate(
                (node.args, node.kwargs), lambda x: known[x] if isinstance(x, Node) else x
            )
            backward = no_gradient
            if node.op == "placeholder":
                value = images
            elif node.op == "get_attr":
                value = own[str(node.target)]
            elif node.op == "output":
                logits: Value = args[0]
                return logits
            else:
                value, backward = self._node(node, own, args, kwargs)
            known[node] = value
            if isinstance(value, Value):
                value.users += len(node.users)
                self._backward.append((value, backward))
        raise AssertionError("a graph ends with its output")

    def _node(
        self, node: Node, own: dict[str, Value], args: Any, kwargs: Any
    ) -> tuple[Any, Backward]:
        """What a call in the graph computes, by its rule if that knows its arguments."""
        mine: dict[str, Value] = {}
        function: Any = node.target
        rule = FUNCTIONS.get(node.target)
        first: tuple[Any, ...] = ()
        if node.op == "call_module":
            layer = self._module.get_submodule(str(node.target))
            prefix = f"{node.target}."
            mine = {n.removeprefix(prefix): v for n, v in own.items() if n.startswith(prefix)}
            function, rule, first = layer, LAYERS.get(type(layer)), (layer, mine)
        elif node.op == "call_method":
            name = str(node.target)
            function = lambda x, *args, **kwargs: getattr(x, name)(*args, **kwargs)  # noqa: E731
        values = _values((args, kwargs))
        if not values:
            return function(*args, **kwargs), no_gradient  # arithmetic of sizes
        if function is getattr and args[1] == "shape":
            return values[0].data.shape[1:], no_gradient
        if node.op == "call_method" and node.target == "size":
            shape = values[0].data.shape[1:]
            return (shape[args[1]] if len(args) > 1 else shape), no_gradient
        result: Result = None
        if rule and _fits(rule, self.tape, *first, *args, **kwargs):
            result = rule(self.tape, *first, *args, **kwargs)
        if result is None:
            self.without_rule.append(node.name)
            result = _by_torch(self.tape, function, mine, *args, **kwargs)
        return result


def _fits(function: Callable[..., Any], *args: Any, **kwargs: Any) -> bool:
    """Whether a function takes these arguments."""
    try:
        inspect.signature(function).bind(*args, **kwargs)
    except TypeError:
        return False
    return True


def _values(arguments: Any) -> list[Value]:
    """All values among arguments, however deep."""
    found: list[Value] = []
    map_aggregate(arguments, lambda x: found.append(x) if isinstance(x, Value) else None)
    return found


def _by_torch(
    tape: Tape, function: Callable[..., Any], own: dict[str, Value], *args: Any, **kwargs: Any
) -> tuple[Value, Backward]:
    """A node without a rule: `vmap` over replicas, and `vjp` for its gradients.

    Args:
        tape: where the calls are written.
        function: what the node does for one replica: a function, or a layer.
        own: the layer's parameters and buffers.
        args: values, constants, and lists of them.
        kwargs: likewise.
    """
    everything: Any = (own, args, kwargs)
    values = _values(everything)
    lead = max(len(value.data) for value in values)

    def alone(*tensors: Tensor) -> Any:
        rest = iter(tensors)
        mine, positional, named = map_aggregate(
            everything, lambda x: next(rest) if isinstance(x, Value) else x
        )
        if isinstance(function, nn.Module):
            function.train(tape.training)
            return functional_call(function, dict(mine), tuple(positional), dict(named))
        return function(*positional, **named)

    together: Callable[..., Any] = vmap(alone, randomness="different")

    def inputs() -> list[Tensor]:
        repeats = [(x.data, lead // len(x.data)) for x in values]
        return [data if n == 1 else data.repeat_interleave(n, 0) for data, n in repeats]

    result = together(*inputs())
    if not isinstance(result, Tensor):
        raise _NoTensorError
    learns = tape.training and result.is_floating_point()
    learned = [i for i, value in enumerate(values) if value.needs_grad and learns]
    y = Value(result.clone(memory_format=torch.contiguous_format), bool(learned))
    pull: list[Callable[[Tensor], tuple[Tensor, ...]]] = []

    def forward() -> None:
        tensors = inputs()

        def of_learned(*some: Tensor) -> Any:
            changed = dict(zip(learned, some, strict=True))
            return together(*(changed.get(i, tensor) for i, tensor in enumerate(tensors)))

        if learned:
            result, *pull[:] = vjp(of_learned, *(tensors[i] for i in learned))
        else:
            result = together(*tensors)
        y.data.copy_(result)

    def backward() -> None:
        with ExitStack() as targets:
            outs = [targets.enter_context(tape.gradient(values[i])) for i in learned]

            def write() -> None:
                for out, gradient in zip(outs, pull[0](y.gradient), strict=True):
                    out.copy_(gradient)

            tape.call(write)

    tape.call(forward)
    return y, backward
