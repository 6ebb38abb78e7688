"""What is written by tensors alone against torch's own, and the ladder from one to the other."""

import ast
import functools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

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

IMAGE = (1, 28, 28)
SHAPES = [(10,), (1, 10), (7, 10), (3, 1, 10), (3, 7, 10)]  # one image, batches, stacks of batches
EXTREMES = [0.0, -0.0, 1e-30, 89.0, -89.0, 1e4, -1e4, math.inf, -math.inf]

both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
all_shapes = pytest.mark.parametrize("shape", SHAPES)


def draw(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.manual_seed(0))


def logits_of(shape: tuple[int, ...], dtype: torch.dtype) -> Iterator[Tensor]:
    """Usual ones and all sorts of extreme ones."""
    for scale in (1, 1e4):
        for shift in (-1e4, 0, 1e4):
            yield draw(*shape, dtype=dtype) * scale + shift


def labels_of(shape: tuple[int, ...]) -> Tensor:
    return torch.arange(math.prod(shape)).view(shape) % 10


def assert_alike(ours: Function, theirs: Function, x: Tensor) -> None:
    """Values, types and gradients are the same, and the gradient is that of every element."""
    results = []
    for function in (ours, theirs):
        leaf = x.clone().requires_grad_()
        value = function(leaf)
        weights = torch.linspace(1, 2, value.numel(), dtype=x.dtype).view(value.shape)
        results.append((value.detach(), *torch.autograd.grad((value * weights).sum(), leaf)))
    torch.testing.assert_close(*results, equal_nan=True)


# --------------------------------------------------------------------- activations and softmax


@both_dtypes
@pytest.mark.parametrize("name", ["sigmoid", "relu", "tanh"])
def test_activations(name: str, dtype: torch.dtype) -> None:
    ours, theirs = getattr(scratch, name), getattr(torch, name)
    assert_alike(ours, theirs, torch.linspace(-20, 20, 801, dtype=dtype))
    assert_alike(ours, theirs, torch.tensor(EXTREMES, dtype=dtype))
    assert ours(torch.tensor(math.nan, dtype=dtype)).isnan()  # it is not hidden


@both_dtypes
@all_shapes
def test_softmax(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    assert_alike(scratch.softmax_plain, lambda x: x.softmax(-1), draw(*shape, dtype=dtype))
    equal = [torch.full(shape, level, dtype=dtype) for level in (0.0, 1e4)]
    for x in (*logits_of(shape, dtype), *equal):
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


@all_shapes
def test_one_hot(shape: tuple[int, ...]) -> None:
    labels = labels_of(shape[:-1])
    assert torch.equal(scratch.one_hot(labels, 10), F.one_hot(labels, 10))
    with pytest.raises(IndexError):
        scratch.one_hot(labels + 10, 10)


@both_dtypes
@all_shapes
def test_losses(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    labels = labels_of(shape[:-1])

    def theirs(logits: Tensor) -> Tensor:
        flat = F.cross_entropy(logits.view(-1, 10), labels.view(-1), reduction="none")
        return flat.view(labels.shape)

    x = draw(*shape, dtype=dtype)
    assert_alike(lambda x: losses.scratch_cross_entropy(x, labels), theirs, x)
    for x in logits_of(shape, dtype):
        assert_alike(lambda x: losses.scratch_nll(x, labels), theirs, x)


def test_cross_entropy_takes_any_distribution_as_its_target() -> None:
    logits, targets = draw(7, 10), torch.rand(7, 10).double().softmax(-1)
    torch.testing.assert_close(
        scratch.cross_entropy(scratch.softmax(logits), targets),
        F.cross_entropy(logits, targets, reduction="none"),
    )


@both_dtypes
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
    start, targets = draw(3, 5), torch.linspace(-2, 2, 15, dtype=torch.float64).view(3, 5)
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


@pytest.mark.parametrize(
    ("config", "deviations"),
    [
        (ScratchModel(name="scratch"), {"weights": 1 / 28, "bias": 0}),
        (
            TensorNetModel(name="tensor_net"),
            {"W1": 4 / 28, "b1": 0, "W2": 4 / 50**0.5, "b2": 0, "W3": 1 / 10, "b3": 0},
        ),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_the_networks_begin_as_they_say(
    config: ScratchModel | TensorNetModel, deviations: dict[str, float]
) -> None:
    parameters = dict(build(config, IMAGE, 10, seed=0).named_parameters())
    assert list(parameters) == list(deviations)
    for name, deviation in deviations.items():
        # Five standard errors of the fewest draws, 1,000, are 11 %.
        assert parameters[name].std().item() == pytest.approx(deviation, rel=0.11), name
        assert parameters[name].mean().item() == pytest.approx(0, abs=deviation / 6), name


@pytest.mark.parametrize("hidden", [(), (5,), (50, 100), (8, 7, 6)])
@pytest.mark.parametrize("scale", [1, 255])
def test_the_network_is_that_of_layers(hidden: tuple[int, ...], scale: float) -> None:
    ours = build(TensorNetModel(name="tensor_net", hidden=hidden), IMAGE, 10, seed=0)
    theirs = build(MlpModel(name="mlp", hidden=hidden, activation="sigmoid"), IMAGE, 10, seed=0)
    for own, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        other.data = own.detach().mT if own.ndim == 2 else own.detach() + 0.0
    images = torch.rand(7, *IMAGE) * scale  # scaled or not
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

Parameters = list[Tensor]
Batches = Iterable[tuple[Tensor, Tensor]]


class Regression(nn.Module):
    def __init__(self, weights: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weights = nn.Parameter(weights)
        self.bias = nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weights + self.bias


def own_tensors(weights: Tensor, bias: Tensor) -> tuple[Function, Parameters]:
    parameters = [weights.requires_grad_(), bias.requires_grad_()]
    return lambda x: x @ weights + bias, parameters


def own_module(weights: Tensor, bias: Tensor) -> tuple[Function, Parameters]:
    model = Regression(weights, bias)
    return model, list(model.parameters())


def linear(weights: Tensor, bias: Tensor) -> tuple[Function, Parameters]:
    model = nn.Linear(784, 10, dtype=weights.dtype)
    model.load_state_dict({"weight": weights.mT, "bias": bias})
    return model, list(model.parameters())


def own_nll(logits: Tensor, labels: Tensor) -> Tensor:
    return scratch.nll(scratch.log_softmax(logits), labels).mean()


def own_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return scratch.cross_entropy(scratch.softmax(logits), scratch.one_hot(labels, 10)).mean()


def gradients(parameters: Parameters) -> list[Tensor]:
    found = [parameter.grad for parameter in parameters if parameter.grad is not None]
    assert len(found) == len(parameters)
    return found


def written_out(parameters: Parameters) -> None:
    with torch.no_grad():
        for parameter, gradient in zip(parameters, gradients(parameters), strict=True):
            parameter.sub_(RATE * gradient)
            gradient.zero_()


def shipped_update(parameters: Parameters) -> None:
    scratch.sgd_update(parameters, gradients(parameters), RATE)
    for parameter in parameters:
        parameter.grad = None


def optim_sgd(parameters: Parameters) -> None:
    optimizer = torch.optim.SGD(parameters, lr=RATE)  # it remembers nothing from step to step
    optimizer.step()
    optimizer.zero_grad()


def slices(x: Tensor, y: Tensor, size: int) -> Batches:
    return zip(x.split(size), y.split(size), strict=True)


def loader(x: Tensor, y: Tensor, size: int) -> Batches:
    return DataLoader(TensorDataset(x, y), batch_size=size, shuffle=False)


LADDER: Sequence[tuple[Callable[..., Any], ...]] = (
    (own_tensors, own_nll, written_out, slices),
    (own_tensors, own_nll, shipped_update, slices),
    (own_tensors, own_cross_entropy, shipped_update, slices),
    (own_tensors, F.cross_entropy, shipped_update, slices),
    (own_module, F.cross_entropy, shipped_update, slices),
    (linear, F.cross_entropy, shipped_update, slices),
    (linear, F.cross_entropy, optim_sgd, slices),
    (linear, F.cross_entropy, optim_sgd, loader),
)
# Of 700 synthetic images the first 500 train and the next 100 validate.
DATA = {"name": "synthetic", "size": 700, "split": "holdout"}


@functools.cache
def climb(rung: int) -> list[tuple[float, float]]:
    """Trains in float64 from seed 0; train and validation loss of each epoch."""
    make, loss, update, batches = LADDER[rung]
    data = load(Config.model_validate({"data": DATA}).data, torch.device("cpu"), print)
    x, x_val = (split.images.flatten(1).double() / 255 for split in (data.train, data.val))
    start = build(ScratchModel(name="scratch"), data.shape, 10, seed=0).double().state_dict()
    model, parameters = make(start["weights"], start["bias"])
    epochs = []
    for _ in range(EPOCHS):
        train = val = 0.0
        for images, labels in batches(x, data.train.labels, BATCH):
            mean = loss(model(images), labels)
            mean.backward()
            update(parameters)
            train += mean.item() * len(images)
        with torch.no_grad():
            for images, labels in batches(x_val, data.val.labels, 2 * BATCH):
                val += loss(model(images), labels).item() * len(images)
        epochs.append((train / len(x), val / len(x_val)))
    return epochs


@pytest.mark.parametrize(("lower", "upper"), list(pairwise(range(len(LADDER)))))
def test_no_number_changes_from_rung_to_rung(lower: int, upper: int) -> None:
    assert sum(a is not b for a, b in zip(LADDER[lower], LADDER[upper], strict=True)) == 1
    assert climb(upper) == [pytest.approx(losses, rel=1e-12) for losses in climb(lower)]


def test_the_shipped_config_is_a_rung_of_the_ladder(mnist: Mnist, tmp_path: Path) -> None:
    data = [f"data.{key}={value}" for key, value in DATA.items()]
    run = ["--epochs", str(EPOCHS), "--device", "cpu", "train.precision=fp64"]
    assert mnist("train", "--config", "scratch", *run, *data).code == 0
    lines = (tmp_path / "runs" / "scratch-0001" / "metrics.jsonl").read_text().splitlines()
    shipped = [(r["train/loss"], r["val/loss"]) for r in map(json.loads, lines)]
    by_tensors = climb(0)
    assert shipped == [pytest.approx(losses, rel=1e-12) for losses in by_tensors]
    assert by_tensors[1][0] < by_tensors[0][0] / 1.5  # it learns
