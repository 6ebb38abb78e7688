"""A module as one program for all replicas: its graph, rule by rule, forward and backward.

The module's forward is traced once into a graph of calls (`torch.fx`). Rules write each call's
forward pass on a tape and then, walking the graph in reverse, each one's backward pass. Whatever
has no rule is left to `torch.func`, by itself: right for everything, and slower.
"""

import copy
import inspect
import operator
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.fx import Graph, Node, Tracer
from torch.fx.node import map_aggregate

from mnist_cli.engine.rules import FUNCTIONS, LAYERS, no_gradient
from mnist_cli.engine.tape import Backward, Call, Result, Tape, Value

IN_PLACE = (operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.imatmul)


class _Tracer(Tracer):
    """Looks into all modules and functions but torch's own and those that have a rule."""

    def __init__(self) -> None:
        super().__init__(autowrap_functions=tuple(filter(inspect.isfunction, FUNCTIONS)))

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m) in LAYERS or super().is_leaf_module(m, module_qualified_name)


def _graph(module: nn.Module) -> Graph:
    """The calls that a module makes, or where its code cannot be taken apart that of itself."""
    module = copy.deepcopy(module)  # code that keeps something would keep what tracing gives it
    before = [(buffer, buffer._version) for buffer in module.buffers()]
    try:
        graph = _Tracer().trace(module)
    except Exception:  # noqa: BLE001 - such code raises anything
        return _one_node()
    kept = [
        now is was and now._version == version
        for now, (was, version) in zip(module.buffers(), before, strict=True)
    ]
    return graph if all(kept) and not _overwrites(graph, module) else _one_node()


def _overwrites(graph: Graph, module: nn.Module) -> bool:
    """Whether a call changes, in its place, what others read too."""
    for node in graph.nodes:
        call: Any = node.target
        if node.op == "call_module":
            changes = getattr(module.get_submodule(call), "inplace", False)
        else:
            name = call if isinstance(call, str) else getattr(call, "__name__", "")
            changes = name.endswith("_") and not name.startswith("_")
            changes = changes or call in IN_PLACE or node.kwargs.get("inplace", False)
        for read in node.all_input_nodes[:1] if changes else ():
            if read.op == "get_attr" or len(read.users) > 1:
                return True
    return False


def _one_node() -> Graph:
    graph = Graph()
    images = graph.placeholder("images")
    graph.output(graph.create_node("call_module", "", (images,), name="module"))
    return graph


class _NoTensorError(Exception):
    """A node without a rule computes something else than one tensor, or not for all replicas."""


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
        self._module, self._step = module, step
        self._images = Value(images, needs_grad=False)
        self._training = gradients is not None
        self._parts: list[tuple[Tensor, Tensor]] = []
        gradients = dict(gradients or {})
        replicas = len(next(iter(state.values())))
        if len(images) > replicas:  # parts of a batch: replicas that have all in common
            state = {name: x.expand(len(images), *x.shape[1:]) for name, x in state.items()}
            for name, whole in gradients.items():
                gradients[name] = whole.new_zeros(state[name].shape)
                self._parts.append((gradients[name], whole))
        self._state, self._gradients = state, gradients
        module.train(self._training)
        try:
            self.logits = self._walk(_graph(module))
        except _NoTensorError:
            self.logits = self._walk(_one_node())
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

    def _walk(self, graph: Graph) -> Value:
        """Writes the forward pass of each node; returns the value of the last."""
        replicas = len(next(iter(self._state.values())))
        self.tape = Tape(replicas, self._training, self._step)
        self.without_rule: list[str] = []
        self._backward: list[tuple[Value, Backward]] = []
        own = {
            name: Value(data, name in self._gradients, self._gradients.get(name))
            for name, data in self._state.items()
        }
        known: dict[Node, Any] = {}
        for node in graph.nodes:
            args, kwargs = map_aggregate(
                (node.args, node.kwargs), lambda x: known[x] if isinstance(x, Node) else x
            )
            backward = no_gradient
            if node.op == "placeholder":
                value = self._images
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
            prefix = f"{node.target}." if node.target else ""
            mine = {n.removeprefix(prefix): v for n, v in own.items() if n.startswith(prefix)}
            function, rule, first = layer, LAYERS.get(type(layer)), (layer, mine)
        elif node.op == "call_method":
            name = str(node.target)
            function = lambda x, *args, **kwargs: getattr(x, name)(*args, **kwargs)  # noqa: E731
        values = _values((args, kwargs))
        if not values:
            return function(*args, **kwargs), no_gradient  # arithmetic of sizes
        sized = node.op == "call_method" and node.target == "size"
        if sized or (node.target is getattr and args[1] == "shape"):
            return function(values[0].data[0], *args[1:], **kwargs), no_gradient
        result: Result = None
        if rule and _fits(rule, self.tape, *first, *args, **kwargs):
            result = rule(self.tape, *first, *args, **kwargs)
        if result is None:
            self.without_rule.append(node.name)
            whole = function is self._module
            result = _by_torch(self.tape, function, mine, whole, *args, **kwargs)
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


def _alone(function: Callable[..., Any], everything: Any, training: bool) -> Callable[..., Any]:
    """A node for one replica: from tensors for its values to its result, and its buffers then."""

    def alone(*tensors: Tensor) -> Any:
        rest = iter(tensors)
        own, args, kwargs = map_aggregate(
            # A copy, for it may be changed.
            *(everything, lambda x: next(rest).clone() if isinstance(x, Value) else x)
        )
        if not isinstance(function, nn.Module):
            return function(*args, **kwargs), []
        function.train(training)
        state = dict(own)
        result = functional_call(function, state, tuple(args), dict(kwargs))
        return result, [state[name] for name, _ in function.named_buffers()]

    return alone


def _in_turn(alone: Callable[..., Any], *tensors: Tensor) -> Any:
    """What `vmap` makes of a function, for one that it cannot take."""
    results, states = zip(*(alone(*each) for each in zip(*tensors, strict=True)), strict=True)
    return torch.stack(results), [torch.stack(each) for each in zip(*states, strict=True)]


def _by_torch(
    tape: Tape,
    function: Callable[..., Any],
    own: dict[str, Value],
    whole: bool,
    *args: Any,
    **kwargs: Any,
) -> tuple[Value, Backward]:
    """A node without a rule: `vmap` over replicas, and autograd for its gradients.

    A whole module that `vmap` cannot take, since what it does depends on what it reads, is called
    for one replica after another.

    Args:
        tape: where the calls are written.
        function: what the node does for one replica: a function, or a layer.
        own: the layer's parameters and buffers.
        whole: whether it is the whole module, and not a part of which that can be asked again.
        args: values, constants, and lists of them.
        kwargs: likewise.
    """
    everything: Any = (own, args, kwargs)
    values = _values(everything)
    lead = max(len(value.data) for value in values)
    alone = _alone(function, everything, tape.training)
    module = function if isinstance(function, nn.Module) else None
    buffers = [own[name] for name, _ in module.named_buffers()] if module else []
    together: Callable[..., Any] = vmap(alone, randomness="different")

    def inputs() -> list[Tensor]:
        repeats = [(x.data.detach(), lead // len(x.data)) for x in values]
        return [data if n == 1 else data.repeat_interleave(n, 0) for data, n in repeats]

    try:
        result, _ = together(*inputs())
    except RuntimeError as error:
        if not whole:
            raise _NoTensorError from error
        together = partial(_in_turn, alone)
        result, _ = together(*inputs())
    if not isinstance(result, Tensor):
        raise _NoTensorError
    learns = tape.training and result.is_floating_point()
    learned = [i for i, value in enumerate(values) if value.needs_grad and learns]
    y = Value(result.clone(memory_format=torch.contiguous_format), bool(learned))
    latest: list[Any] = []  # what autograd computed in this step, and from what

    def forward() -> None:
        tensors = inputs()
        leaves = [tensors[i].requires_grad_() for i in learned]
        result, changed = together(*tensors)
        if result.shape != y.data.shape:
            shapes = tuple(y.data.shape[1:]), tuple(result.shape[1:])
            raise ValueError("the forward made {} of such a batch, and now {}".format(*shapes))
        y.data.copy_(result.detach())
        for value, now in zip(buffers, changed, strict=True):
            value.data.copy_(now.detach())
        latest[:] = result, leaves

    def backward() -> None:
        with ExitStack() as targets:
            outs = [targets.enter_context(tape.gradient(values[i])) for i in learned]

            def write() -> None:
                result, leaves = latest
                found = torch.autograd.grad(result, leaves, y.gradient, materialize_grads=True)
                for out, gradient in zip(outs, found, strict=True):
                    out.copy_(gradient)

            tape.call(write)

    tape.call(forward)
    return y, backward
