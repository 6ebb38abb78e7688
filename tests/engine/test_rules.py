"""Every rule against autograd, in float64: forward, and the gradient of everything it reads."""

import operator
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import stack_module_state

from mnist_cli.config import Config
from mnist_cli.engine import rules
from mnist_cli.engine.program import Program
from mnist_cli.errors import UsageError
from mnist_cli.models.modules import Dropout, build
from mnist_cli.models.scratch import relu, sigmoid, tanh

Rule = Callable[..., Any]

# R replicas, G groups of them that share images (or parts of one's batch), images in each.
SHAPES = {"alone": (1, 1, 1), "shared": (3, 1, 4), "own": (3, 3, 2), "groups": (4, 2, 1)}
PARTS = (1, 2, 2)

VECTOR, MAPS = (1, 1, 6), (2, 6, 8)


class Case(nn.Module):
    """A rule between parameters: it reads images times a parameter, so its input has a gradient.

    Args:
        function: what the rule is for; if it is a module, one of this.
        shape: of an image.
        flat: whether it is a row of numbers to the function.
    """

    def __init__(self, function: Callable[..., Tensor], shape: tuple[int, ...]) -> None:
        super().__init__()
        self.function = function
        self.flat = shape == VECTOR
        own = shape[-1:] if self.flat else shape
        self.scale = nn.Parameter(torch.rand(own) + 0.5)
        self.shift = nn.Parameter(torch.randn(own))

    def forward(self, images: Tensor) -> Tensor:
        x = images.flatten(1) if self.flat else images
        y: Tensor = self.function(x * self.scale + self.shift)
        return y.flatten(1)


class Weighted(nn.Module):
    """A function of two values that both have gradients."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor], *shape: int) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.rand(shape) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.weight)


class Residual(nn.Module):
    """Values that two nodes read, the first of which could write its result in their place."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        z = F.relu(y) + y
        x = self.second(F.silu(z))
        x += z
        return F.relu(x, inplace=True) * F.gelu(y)


def dropped(p: float) -> Dropout:
    layer = Dropout(p)
    layer.seed.random_()
    return layer


LAYERS: dict[str, tuple[Callable[[], Any], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(6, 5), VECTOR),
    "linear without bias": (lambda: nn.Linear(6, 5, bias=False), VECTOR),
    "convolution": (lambda: nn.Conv2d(2, 3, 3, stride=2, padding=1), MAPS),
    "convolution without bias": (lambda: nn.Conv2d(2, 3, (2, 3), bias=False), MAPS),
    "dilated": (lambda: nn.Conv2d(2, 4, 2, dilation=2, padding=(0, 1)), MAPS),
    "relu": (nn.ReLU, VECTOR),
    "sigmoid": (nn.Sigmoid, VECTOR),
    "tanh": (nn.Tanh, MAPS),
    "identity": (nn.Identity, VECTOR),
    "flatten": (lambda: nn.Flatten(1, 2), MAPS),
    "dropout": (lambda: dropped(0.4), VECTOR),
    "average pool": (lambda: nn.AvgPool2d(2), MAPS),
    "average with a gap": (lambda: nn.AvgPool2d((2, 3), stride=(3, 4)), MAPS),
    "max pool": (lambda: nn.MaxPool2d(2), MAPS),
    "max with a gap": (lambda: nn.MaxPool2d((2, 1), stride=(2, 3)), MAPS),
    "average that overlaps": (lambda: nn.AvgPool2d((3, 2), stride=(2, 1), padding=1), MAPS),
    "average of what is there": (
        lambda: nn.AvgPool2d(3, 2, padding=1, ceil_mode=True, count_include_pad=False),
        MAPS,
    ),
    "max that overlaps": (lambda: nn.MaxPool2d(3, stride=(2, 1), padding=1), MAPS),
    "dilated max": (lambda: nn.MaxPool2d(2, dilation=(2, 3), ceil_mode=True), MAPS),
    "pools after a convolution": (
        lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.MaxPool2d(3, 1, 1), nn.AvgPool2d(2, 1)),
        MAPS,
    ),
    "batch norm": (lambda: nn.BatchNorm2d(2), MAPS),
    "batch norm of maps": (
        lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3, eps=0.1, momentum=0.3)),
        MAPS,
    ),
    "batch norm of pooled maps": (
        lambda: nn.Sequential(nn.AvgPool2d(2), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(24, 2)),
        MAPS,
    ),
    "batch norm without parameters": (lambda: nn.BatchNorm2d(2, affine=False), MAPS),
    "batch norm without statistics": (
        lambda: nn.BatchNorm2d(2, track_running_stats=False),
        MAPS,
    ),
    "batch norm with mean statistics": (lambda: nn.BatchNorm2d(2, momentum=None), MAPS),
    "batch norm of rows": (
        lambda: nn.Sequential(nn.Flatten(2), nn.BatchNorm1d(2), nn.Flatten(), nn.Linear(96, 2)),
        MAPS,
    ),
    "layer norm": (lambda: nn.LayerNorm(6), VECTOR),
    "layer norm of maps": (lambda: nn.LayerNorm((6, 8), eps=0.1, bias=False), MAPS),
    "layer norm without parameters": (lambda: nn.LayerNorm(8, elementwise_affine=False), MAPS),
    "gelu": (nn.GELU, VECTOR),
    "gelu by tanh": (lambda: nn.GELU(approximate="tanh"), MAPS),
    "silu": (nn.SiLU, MAPS),
    "leaky relu": (lambda: nn.LeakyReLU(0.2), VECTOR),
    "adaptive pool": (lambda: nn.AdaptiveAvgPool2d(1), MAPS),
    "adaptive in parts": (lambda: nn.AdaptiveAvgPool2d((3, 2)), MAPS),
}
FUNCTIONS: dict[str, tuple[Callable[[], Any], tuple[int, ...]]] = {
    "relu()": (lambda: F.relu, VECTOR),
    "sigmoid()": (lambda: torch.sigmoid, VECTOR),
    "tanh()": (lambda: torch.tanh, VECTOR),
    "gelu()": (lambda: F.gelu, MAPS),
    "silu()": (lambda: F.silu, VECTOR),
    "leaky_relu()": (lambda: F.leaky_relu, VECTOR),
    "max_pool2d()": (lambda: lambda x: F.max_pool2d(x, 2), MAPS),
    "avg_pool2d()": (lambda: lambda x: F.avg_pool2d(x, 3, padding=1), MAPS),
    "adaptive_avg_pool2d()": (lambda: lambda x: F.adaptive_avg_pool2d(x, (2, 4)), MAPS),
    "with numbers": (lambda: lambda x: 3 * x + 0.1 + x * 2, VECTOR),
    "from scratch": (lambda: lambda x: tanh(sigmoid(x) + relu(x)), VECTOR),
    "matmul": (lambda: Weighted(operator.matmul, 6, 3), VECTOR),
    "add": (lambda: Weighted(operator.add, 6), VECTOR),
    "multiply": (lambda: Weighted(operator.mul, 2, 1, 8), MAPS),
    "reshape": (lambda: lambda x: x.reshape(-1, 3, 2).view(-1, 6), VECTOR),
    "by its sizes": (lambda: lambda x: x.reshape(x.shape[0], x.size(1) * x.size(2), -1), MAPS),
    "mean": (lambda: lambda x: x.mean(dim=(2, 3)), MAPS),
    "mean of an axis": (lambda: lambda x: x.mean(-1, keepdim=True), MAPS),
    "residual": (lambda: Weighted(lambda x, w: x + F.relu(x @ w) * x, 6, 6), VECTOR),
    "residual of what could be overwritten": (Residual, VECTOR),
}
CASES = LAYERS | FUNCTIONS
TRAINED: dict[str, dict[str, Any]] = {
    "mlp": {"name": "mlp", "depth": 3, "width": 8, "dropout": 0.5},
    "cnn": {"name": "cnn", "channels": [3, 4]},
    "cnn_sequential": {"name": "cnn_sequential", "channels": [3, 4]},
    "lenet": {"name": "lenet"},
    "lenet-modern": {"name": "lenet", "variant": "modern"},
    "resnet": {"name": "resnet", "depth": 14, "width": 3},
    "vgg": {"name": "vgg", "width": 2},
    "scratch": {"name": "scratch"},
    "tensor_net": {"name": "tensor_net", "hidden": [5, 4]},
}


def assert_gradients(
    make: Callable[[], nn.Module], shape: tuple[int, ...], dimensions: tuple[int, int, int]
) -> list[str]:
    """Forward and backward pass are those of autograd; returns what had no rule."""
    replicas, groups, batch = dimensions
    torch.manual_seed(batch)
    models = [make().double() for _ in range(replicas)]
    state, buffers = stack_module_state(models)
    own = {name: value.detach() for name, value in state.items()}
    gradients = {name: torch.zeros_like(value) for name, value in own.items()}
    images = torch.rand(groups, batch, *shape, dtype=torch.float64)
    step = torch.tensor(7, dtype=torch.int32)
    program = Program(models[0], own | dict(buffers), gradients, images, step)
    logits = program.logits
    logits.grad = torch.empty_strided(
        logits.data.shape, logits.data.stride(), dtype=torch.float64
    ).normal_()
    dy = logits.grad.clone()
    calls = program.forward + program.backward()
    for _ in range(2):  # the second step overwrites whatever the first has left
        logits.grad.copy_(dy)
        for call in calls:
            call()
    parts = max(1, groups // replicas)
    for r, model in enumerate(models):
        for module in model.modules():
            if isinstance(module, Dropout):
                module.step.fill_(7)
        rows = slice(r * groups // replicas, r * groups // replicas + parts)
        own_logits, own_dy = (
            t.unflatten(0, (-1, parts))[r].flatten(0, 1) for t in (logits.data, dy)
        )
        model(images[rows].flatten(0, 1))
        found = model(images[rows].flatten(0, 1))
        torch.testing.assert_close(own_logits, found, rtol=1e-12, atol=1e-12)
        found.backward(own_dy)
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(
                gradients[name][r],
                parameter.grad,
                rtol=1e-10,
                atol=1e-12,
            )
        for name, value in buffers.items():
            if not name.endswith("step"):
                torch.testing.assert_close(value[r], model.get_buffer(name), rtol=1e-12, atol=0)
    return program.without_rule


@pytest.mark.parametrize("dimensions", SHAPES)
@pytest.mark.parametrize("name", CASES)
def test_every_rule_is_autograd(name: str, dimensions: str) -> None:
    make, shape = CASES[name]
    assert not assert_gradients(lambda: Case(make(), shape), shape, SHAPES[dimensions])


@pytest.mark.parametrize("name", [n for n in CASES if n != "dropout" and "batch norm" not in n])
def test_every_rule_is_autograd_over_a_batch_in_parts(name: str) -> None:
    make, shape = CASES[name]
    assert not assert_gradients(lambda: Case(make(), shape), shape, PARTS)


@pytest.mark.parametrize("dimensions", ["shared", "own"])
@pytest.mark.parametrize("before", [nn.Linear, nn.Identity])
def test_batch_norm_of_one_number_for_each_channel(before: Any, dimensions: str) -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.Flatten(), before(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 2))

    assert not assert_gradients(make, VECTOR, SHAPES[dimensions])


def test_batch_norm_of_one_image_has_no_variance() -> None:
    """torch refuses it too."""
    make = lambda: nn.Sequential(nn.Flatten(), nn.BatchNorm1d(6))  # noqa: E731
    with pytest.raises(UsageError, match="batch"):
        assert_gradients(make, VECTOR, SHAPES["alone"])


@pytest.mark.parametrize("dimensions", SHAPES)
@pytest.mark.parametrize("name", TRAINED)
def test_every_shipped_model_is_made_of_rules(name: str, dimensions: str) -> None:
    config = Config.model_validate({"model": TRAINED[name]}).model
    seeds = iter(range(9))
    make = lambda: build(config, (1, 28, 28), 10, next(seeds))  # noqa: E731
    assert not assert_gradients(make, (1, 28, 28), SHAPES[dimensions])


class Odd(nn.Module):
    """What no rule knows: methods, keywords, a layer of torch's, lists, a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(3, 12)
        self.first = nn.Linear(12, 12)
        self.scale = nn.Parameter(torch.rand(12))
        self.convolution = nn.Conv1d(1, 2, kernel_size=3, padding=1)
        self.last = nn.Linear(24, 5, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        x = self.norm(images.flatten(start_dim=1))
        x = x + F.softplus(self.first(x)) * self.scale
        x = torch.cat([x, -x], 1)[:, :12]
        x = self.convolution(x.unsqueeze(1)).clamp(min=-1.0)
        x -= 0.1
        x = F.max_pool1d(torch.where(x > 0, x, -x), 3, stride=1, padding=1)
        logits: Tensor = self.last(x.flatten(1) / 2)
        return logits


class Untraceable(nn.Module):
    """What it does depends on numbers, so that its code cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(12, 5)

    def forward(self, images: Tensor) -> Tensor:
        x = images.flatten(1)
        for _ in range(len(x.shape)):
            x = x * 0.9
        y: Tensor = self.linear(x)
        return y


class Stateful(nn.Module):
    """Buffers that it changes: in place, and by a new tensor."""

    mean: Tensor
    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(12, 5), nn.BatchNorm1d(2)
        self.register_buffer("mean", torch.zeros(12))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, images: Tensor) -> Tensor:
        x = self.norm(images.flatten(2).expand(-1, 2, -1))[:, 0]
        self.calls += 1
        self.mean = self.mean * 0.9 + x.detach().mean(0) * 0.1
        y: Tensor = self.linear(x - self.mean)
        return y


class Overwriting(nn.Module):
    """Calls that change what others read later, as pre-activation networks do by mistake."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.relu, self.last = (
            nn.Linear(12, 12),
            nn.ReLU(inplace=True),
            nn.Linear(12, 5),
        )

    def forward(self, images: Tensor) -> Tensor:
        x = self.first(images.flatten(1))
        y: Tensor = self.last(self.relu(x)) + x[:, :5]
        return y


class Counting(nn.Module):
    """Keeps a mean of what it has seen, by code that can be traced."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(12, 5)
        self.register_buffer("mean", torch.zeros(12))

    def forward(self, images: Tensor) -> Tensor:
        x = images.flatten(1)
        self.mean.mul_(0.9).add_(x.mean(0))
        y: Tensor = self.linear(x - self.mean)
        return y


class Pieces(nn.Module):
    """A node that computes several tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(12, 6)

    def forward(self, images: Tensor) -> Tensor:
        first, second = self.linear(images.flatten(1)).chunk(2, dim=1)
        product: Tensor = first * second
        return product


@pytest.mark.parametrize("dimensions", SHAPES)
def test_a_model_without_rules_is_autograd_all_the_same(dimensions: str) -> None:
    without = assert_gradients(Odd, (1, 3, 4), SHAPES[dimensions])
    nodes = (
        "norm softplus neg cat getitem unsqueeze convolution clamp sub gt neg_1 where max_pool1d"
    )
    assert without == [*nodes.split(), "truediv"]


@pytest.mark.parametrize("kind", [Untraceable, Pieces, Stateful, Overwriting, Counting])
@pytest.mark.parametrize("dimensions", SHAPES)
def test_what_cannot_be_taken_apart_is_one_node(kind: type[nn.Module], dimensions: str) -> None:
    assert assert_gradients(kind, (1, 3, 4), SHAPES[dimensions]) == ["module"]


@contextmanager
def rules_as(change: Callable[[Rule], Rule]) -> Iterator[None]:
    """Has every rule changed by a function."""
    with ExitStack() as stack:
        for table in (rules.LAYERS, rules.FUNCTIONS):
            changed = {kind: change(rule) for kind, rule in table.items()}
            stack.enter_context(mock.patch.dict(table, changed))
        yield


@pytest.fixture(scope="module")
def cases() -> dict[Rule, list[str]]:
    """By rule, the names of the cases that use it."""
    found: dict[Rule, list[str]] = {rule: [] for rule in BY_RULE}

    def noted(name: str, rule: Rule) -> Rule:
        def noting(*args: Any, **kwargs: Any) -> Any:
            found[rule].append(name)
            return rule(*args, **kwargs)

        return noting

    for name, (make, shape) in CASES.items():
        with rules_as(partial(noted, name)):
            assert_gradients(lambda: Case(make(), shape), shape, SHAPES["shared"])  # noqa: B023
    return {rule: sorted(set(names)) for rule, names in found.items()}


def wrong(rule: Rule) -> Rule:
    """A rule that takes a gradient with the wrong sign."""

    def changed(tape: Any, *args: Any, **kwargs: Any) -> Any:
        y, backward = rule(tape, *args, **kwargs)

        def negated() -> None:
            tape.call(y.grad.neg_)
            backward()

        return y, negated

    return changed


BY_RULE = {rule: kind for kind, rule in {**rules.FUNCTIONS, **rules.LAYERS}.items()}


@pytest.mark.parametrize(
    "rule", BY_RULE, ids=lambda rule: getattr(BY_RULE[rule], "__name__", BY_RULE[rule])
)
def test_a_wrong_sign_in_any_rule_is_seen(rule: Rule, cases: dict[Rule, list[str]]) -> None:
    def seen(name: str) -> bool:
        make, shape = CASES[name]
        try:
            assert_gradients(lambda: Case(make(), shape), shape, SHAPES["shared"])
        except AssertionError:
            return True
        return False

    with rules_as(lambda own: wrong(own) if own is rule else own):
        assert any(map(seen, cases[rule]))  # in some it cancels out
