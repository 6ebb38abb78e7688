"""What is written by tensors alone against torch's own, and the ladder from one to the other."""

import ast
import json
import math
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import vmap
from torch.utils.data import DataLoader, TensorDataset

from mnist_cli.config import Config, MlpModel, ScratchModel, TensorNetModel
from mnist_cli.data.dataset import load
from mnist_cli.models import losses, scratch
from mnist_cli.models.modules import build
from tests.conftest import Mnist

Function = Callable[[Tensor], Tensor]

SHAPES = [(10,), (1, 10), (7, 10), (3, 1, 10), (3, 7, 10)]  # one image, batches, stacks of batches
DTYPES = [torch.float32, torch.float64]


def draw(*shape: int, scale: float = 1.0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.manual_seed(0)) * scale


def assert_alike(ours: Function, theirs: Function, x: Tensor) -> None:
    """Values, types and gradients are the same, and the gradient is that of every element."""
    results = []
    for function in (ours, theirs):
        leaf = x.clone().requires_grad_()
        value = function(leaf)
        weights = torch.linspace(1, 2, value.numel(), dtype=x.dtype).view(value.shape)
        results.append((value.detach(), *torch.autograd.grad((value * weights).sum(), leaf)))
    torch.testing.assert_close(*results, equal_nan=True)


# --------------------------------------------------------------------------------- activations

ACTIVATIONS: list[tuple[Function, Function]] = [
    (scratch.sigmoid, torch.sigmoid),
    (scratch.relu, torch.relu),
    (scratch.tanh, torch.tanh),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("ours", "theirs"), ACTIVATIONS)
def test_activations(ours: Function, theirs: Function, dtype: torch.dtype) -> None:
    assert_alike(ours, theirs, torch.linspace(-20, 20, 801, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("x", [0.0, -0.0, 1e-30, 89.0, -89.0, 1e4, -1e4, math.inf, -math.inf])
@pytest.mark.parametrize(("ours", "theirs"), ACTIVATIONS)
def test_activations_of_extreme_numbers(
    ours: Function, theirs: Function, x: float, dtype: torch.dtype
) -> None:
    assert_alike(ours, theirs, torch.tensor(x, dtype=dtype))


@pytest.mark.parametrize(("ours", "theirs"), ACTIVATIONS)
def test_activations_do_not_hide_what_is_not_a_number(ours: Function, theirs: Function) -> None:
    assert ours(torch.tensor(math.nan)).isnan()


# ------------------------------------------------------------------------------------- softmax


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_softmax(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = draw(*shape, dtype=dtype)
    assert_alike(scratch.softmax_plain, lambda x: x.softmax(-1), x)
    assert_alike(scratch.softmax, lambda x: x.softmax(-1), x)
    assert_alike(scratch.log_softmax, lambda x: x.log_softmax(-1), x)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("shift", [-1e4, 0, 1e4])
def test_safe_softmax_of_extreme_logits(
    shape: tuple[int, ...], shift: float, dtype: torch.dtype
) -> None:
    for scale in (1, 1e4):
        x = draw(*shape, scale=scale, dtype=dtype) + shift
        assert_alike(scratch.softmax, lambda x: x.softmax(-1), x)
        assert_alike(scratch.log_softmax, lambda x: x.log_softmax(-1), x)


def test_equal_logits_share_the_gradient() -> None:
    for level in (0.0, 1e4):
        x = torch.full((10,), level)
        assert_alike(scratch.softmax, lambda x: x.softmax(-1), x)
        assert_alike(scratch.log_softmax, lambda x: x.log_softmax(-1), x)


def test_plain_softmax_overflows_where_the_safe_one_does_not() -> None:
    high = torch.tensor([88.0, 0.0]), torch.tensor([89.0, 0.0])
    assert scratch.softmax_plain(high[0])[0] == 1
    assert scratch.softmax_plain(high[1])[0].isnan()  # inf / inf
    assert scratch.softmax(high[1]).tolist() == pytest.approx([1, 0])
    low = torch.tensor([-1e4, -1e4])
    assert scratch.softmax_plain(low).isnan().all()  # 0 / 0
    assert scratch.softmax(low).tolist() == [0.5, 0.5]


def test_an_epsilon_guards_against_underflow_and_not_against_overflow() -> None:
    x = draw(7, 10)
    guarded = scratch.softmax_plain(x, epsilon=1e-8)
    torch.testing.assert_close(guarded, x.exp() / (x.exp().sum(-1, keepdim=True) + 1e-8))
    torch.testing.assert_close(guarded, x.softmax(-1), rtol=1e-8, atol=0)
    assert (guarded.sum(-1) < 1).all()
    assert scratch.softmax_plain(torch.tensor([-1e4, -1e4]), 1e-8).tolist() == [0, 0]
    assert scratch.softmax_plain(torch.tensor([1e4, 0]), 1e-8)[0].isnan()


# -------------------------------------------------------------------------------------- losses


def labels_of(shape: tuple[int, ...]) -> Tensor:
    return torch.arange(math.prod(shape)).view(shape) % 10


@pytest.mark.parametrize("shape", SHAPES)
def test_one_hot(shape: tuple[int, ...]) -> None:
    labels = labels_of(shape[:-1])
    assert torch.equal(scratch.one_hot(labels, 10), F.one_hot(labels, 10))
    with pytest.raises(IndexError):
        scratch.one_hot(labels + 10, 10)


def theirs_of(labels: Tensor) -> Function:
    def theirs(logits: Tensor) -> Tensor:
        flat = F.cross_entropy(logits.view(-1, 10), labels.view(-1), reduction="none")
        return flat.view(labels.shape)

    return theirs


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("loss", [losses.scratch_nll, losses.scratch_cross_entropy])
def test_losses(loss: losses.Loss, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    labels = labels_of(shape[:-1])
    assert_alike(lambda x: loss(x, labels), theirs_of(labels), draw(*shape, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("shift", [-1e4, 0, 1e4])
def test_nll_of_extreme_logits(shape: tuple[int, ...], shift: float, dtype: torch.dtype) -> None:
    labels = labels_of(shape[:-1])
    x = draw(*shape, scale=1e4, dtype=dtype) + shift
    assert_alike(lambda x: losses.scratch_nll(x, labels), theirs_of(labels), x)


def test_cross_entropy_takes_any_distribution_as_its_target() -> None:
    logits, targets = draw(7, 10), torch.rand(7, 10).double().softmax(-1)
    torch.testing.assert_close(
        scratch.cross_entropy(scratch.softmax(logits), targets),
        F.cross_entropy(logits, targets, reduction="none"),
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_rounding_lost_costs_much_but_nothing_infinite(dtype: torch.dtype) -> None:
    """Right and wrong by 1e4: probabilities of exactly 1 and 0."""
    logits = torch.tensor([[1e4, 0], [0, 1e4]], dtype=dtype, requires_grad=True)
    labels = torch.tensor([0, 0])
    right, wrong = losses.scratch_cross_entropy(logits, labels)
    assert right == 0
    assert wrong.item() == pytest.approx(-math.log(torch.finfo(dtype).tiny))
    (gradient,) = torch.autograd.grad(right + wrong, logits)
    assert torch.equal(gradient, torch.zeros_like(gradient))
    wrong = losses.scratch_nll(logits, labels)[1]  # loses nothing
    assert wrong == 1e4
    (gradient,) = torch.autograd.grad(wrong, logits)
    assert gradient.tolist() == [[0, 0], [-1, 1]]


@pytest.mark.parametrize(
    "function",
    [
        scratch.relu,
        scratch.sigmoid,
        scratch.tanh,
        scratch.softmax,
        scratch.softmax_plain,
        scratch.log_softmax,
        lambda x: losses.scratch_nll(x, labels_of((7,))),
        lambda x: losses.scratch_cross_entropy(x, labels_of((7,))),
    ],
)
def test_every_function_can_be_mapped_over_a_stack(function: Function) -> None:
    x = draw(3, 7, 10)
    torch.testing.assert_close(vmap(function)(x), torch.stack([function(each) for each in x]))


# -------------------------------------------------------------------------------------- update


def test_the_update_is_that_of_torch() -> None:
    start, targets = draw(3, 5), draw(3, 5, scale=2)
    ours, theirs = (start.clone().requires_grad_() for _ in range(2))
    optimizer = torch.optim.SGD([theirs], lr=0.1)
    for _ in range(5):
        optimizer.zero_grad()
        (theirs - targets).square().sum().backward()
        optimizer.step()
        scratch.sgd_update([ours], torch.autograd.grad((ours - targets).square().sum(), ours), 0.1)
    torch.testing.assert_close(ours, theirs)
    assert not torch.equal(ours, start)


def test_the_update_leaves_a_leaf_a_leaf() -> None:
    moved, gradient = torch.ones(2, requires_grad=True), torch.tensor([1.0, -2.0])
    scratch.sgd_update([moved], [gradient], lr=0.5)
    assert moved.tolist() == [0.5, 2.0]
    assert gradient.tolist() == [1.0, -2.0]
    assert moved.requires_grad
    assert moved.is_leaf


# ------------------------------------------------------------------------------------ networks


def test_the_networks_begin_as_they_say() -> None:
    regression = build(ScratchModel(name="scratch"), (1, 28, 28), 10, seed=0)
    assert isinstance(regression, scratch.SoftmaxRegression)
    shapes = {name: tuple(p.shape) for name, p in regression.named_parameters()}
    assert shapes == {"weights": (784, 10), "bias": (10,)}
    # 7,840 draws: their deviation is within five standard errors (0.8 % each) of what was asked.
    assert regression.weights.std().item() == pytest.approx(1 / 28, rel=0.04)
    assert not regression.bias.any()
    net = build(TensorNetModel(name="tensor_net"), (1, 28, 28), 10, seed=0)
    assert {name: tuple(p.shape) for name, p in net.named_parameters()} == {
        "W1": (784, 50),
        "b1": (50,),
        "W2": (50, 100),
        "b2": (100,),
        "W3": (100, 10),
        "b3": (10,),
    }
    parameters = dict(net.named_parameters())
    for name, std in {"W1": 4 / 28, "W2": 4 / 50**0.5, "W3": 1 / 10}.items():
        assert parameters[name].std().item() == pytest.approx(std, rel=0.12), name
    assert not any(parameters[f"b{layer}"].any() for layer in (1, 2, 3))


@pytest.mark.parametrize("hidden", [(), (5,), (50, 100), (8, 7, 6)])
@pytest.mark.parametrize("scale", [1, 255])
def test_the_network_is_that_of_layers(hidden: tuple[int, ...], scale: float) -> None:
    ours = build(TensorNetModel(name="tensor_net", hidden=hidden), (1, 28, 28), 10, seed=0)
    theirs = build(
        MlpModel(name="mlp", hidden=hidden, activation="sigmoid"), (1, 28, 28), 10, seed=0
    )
    for own, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        other.data = own.detach().mT if own.ndim == 2 else own.detach() + 0.0
    images = torch.rand(7, 1, 28, 28) * scale  # scaled or not
    torch.testing.assert_close(ours(images), theirs(images))


def test_nothing_is_borrowed_that_could_be_written_out() -> None:
    tree = ast.parse(Path(scratch.__file__).read_text(encoding="utf-8"))
    borrowed = {
        f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torch")
        for alias in node.names
    }
    assert borrowed == {
        "torch.Tensor",
        "torch.nn.Module",
        "torch.nn.Parameter",
    }
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    ready = {"nn", "functional", "special", "relu", "sigmoid", "tanh", "softmax", "log_softmax"}
    assert not used & (ready | {"logsumexp", "nll_loss", "cross_entropy", "one_hot"})


# ---------------------------------------------------------------------------------- the ladder
# From tensors alone to what torch offers, one thing replaced at each rung; no number may change.

RATE, BATCH, EPOCHS = 0.5, 64, 2

# What a rung is made of: images (n, 784) to what its loss takes; the mean loss of that; the update
# after backward, gradients zeroed.
Rung = tuple[Function, Callable[[Tensor, Tensor], Tensor], Callable[[], None]]


def own_nll(log_probabilities: Tensor, labels: Tensor) -> Tensor:
    return scratch.nll(log_probabilities, labels).mean()


def by_hand(weights: Tensor, bias: Tensor) -> Rung:
    weights.requires_grad_()
    bias.requires_grad_()

    def update() -> None:
        with torch.no_grad():
            for parameter in (weights, bias):
                assert parameter.grad is not None
                parameter.sub_(RATE * parameter.grad)
                parameter.grad.zero_()

    return lambda x: scratch.log_softmax(x @ weights + bias), own_nll, update


def by_our_update(weights: Tensor, bias: Tensor) -> Rung:
    model, loss, _ = by_hand(weights, bias)

    def update() -> None:
        assert weights.grad is not None
        assert bias.grad is not None
        scratch.sgd_update((weights, bias), (weights.grad, bias.grad), RATE)
        weights.grad = bias.grad = None

    return model, loss, update


def with_own_cross_entropy(weights: Tensor, bias: Tensor) -> Rung:
    _, _, update = by_hand(weights, bias)

    def loss(probabilities: Tensor, labels: Tensor) -> Tensor:
        return scratch.cross_entropy(probabilities, scratch.one_hot(labels, 10)).mean()

    return lambda x: scratch.softmax(x @ weights + bias), loss, update


def with_functional(weights: Tensor, bias: Tensor) -> Rung:
    _, _, update = by_hand(weights, bias)
    return lambda x: x @ weights + bias, F.cross_entropy, update


class Regression(nn.Module):
    def __init__(self, weights: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weights = nn.Parameter(weights)
        self.bias = nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weights + self.bias


def updated_by_hand(model: nn.Module) -> Rung:
    def update() -> None:
        with torch.no_grad():
            for parameter in model.parameters():
                assert parameter.grad is not None
                parameter.sub_(RATE * parameter.grad)
        model.zero_grad()

    return model, F.cross_entropy, update


def with_parameter(weights: Tensor, bias: Tensor) -> Rung:
    return updated_by_hand(Regression(weights, bias))


def linear(weights: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(784, 10, dtype=weights.dtype)
    layer.load_state_dict({"weight": weights.mT, "bias": bias})
    return layer


def with_linear(weights: Tensor, bias: Tensor) -> Rung:
    return updated_by_hand(linear(weights, bias))


def with_sgd(weights: Tensor, bias: Tensor) -> Rung:
    model = linear(weights, bias)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)

    def update() -> None:
        optimizer.step()
        optimizer.zero_grad()

    return model, F.cross_entropy, update


def slices(x: Tensor, y: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    for start in range(0, len(x), size):
        yield x[start : start + size], y[start : start + size]


def loader(x: Tensor, y: Tensor, size: int) -> Iterable[tuple[Tensor, Tensor]]:
    return DataLoader(TensorDataset(x, y), batch_size=size, shuffle=False)


Batches = Callable[[Tensor, Tensor, int], Iterable[tuple[Tensor, Tensor]]]
LADDER: dict[str, tuple[Callable[[Tensor, Tensor], Rung], Batches]] = {
    "own tensors, the update written out": (by_hand, slices),
    "own tensors, the shipped update": (by_our_update, slices),
    "own softmax and cross-entropy": (with_own_cross_entropy, slices),
    "functional": (with_functional, slices),
    "Parameter": (with_parameter, slices),
    "nn.Linear": (with_linear, slices),
    "optim.SGD": (with_sgd, slices),
    "Dataset and DataLoader": (with_sgd, loader),
}
# Of 700 synthetic images the first 500 train and the next 100 validate.
DATA = {"name": "synthetic", "size": 700, "split": "holdout"}


def climb(rung: str) -> list[tuple[float, float]]:
    """Trains in float64 from seed 0; train and validation loss of each epoch."""
    data = load(Config.model_validate({"data": DATA}).data, torch.device("cpu"), print)
    x, x_val = (split.images.flatten(1).double() / 255 for split in (data.train, data.val))
    start = build(ScratchModel(name="scratch"), data.shape, 10, seed=0).double().state_dict()
    make, batches = LADDER[rung]
    model, loss, update = make(start["weights"], start["bias"])
    epochs = []
    for _ in range(EPOCHS):
        train = val = 0.0
        for images, labels in batches(x, data.train.labels, BATCH):
            mean = loss(model(images), labels)
            mean.backward()
            update()
            train += mean.item() * len(images)
        with torch.no_grad():
            for images, labels in batches(x_val, data.val.labels, 2 * BATCH):
                val += loss(model(images), labels).item() * len(images)
        epochs.append((train / len(x), val / len(x_val)))
    return epochs


@pytest.mark.parametrize(("lower", "upper"), list(pairwise(LADDER)))
def test_no_number_changes_from_rung_to_rung(lower: str, upper: str) -> None:
    assert climb(upper) == [pytest.approx(losses, rel=1e-12) for losses in climb(lower)]


def test_the_shipped_config_is_a_rung_of_the_ladder(mnist: Mnist, tmp_path: Path) -> None:
    data = [f"data.{key}={value}" for key, value in DATA.items()]
    run = ["--epochs", str(EPOCHS), "--device", "cpu", "train.precision=fp64"]
    assert mnist("train", "--config", "scratch", *run, *data).code == 0
    lines = (tmp_path / "runs" / "scratch-0001" / "metrics.jsonl").read_text().splitlines()
    shipped = [(r["train/loss"], r["val/loss"]) for r in map(json.loads, lines)]
    by_tensors = climb(next(iter(LADDER)))
    assert shipped == [pytest.approx(losses, rel=1e-12) for losses in by_tensors]
    assert by_tensors[1][0] < by_tensors[0][0] / 1.5  # it learns
