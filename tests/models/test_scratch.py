"""What is written by tensors alone against torch's own, and the ladder from one to the other."""

import ast
import functools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import vmap
from torch.utils.data import DataLoader, TensorDataset

from mnist_cli.config.schema import Config, MlpModel, ScratchModel, TensorNetModel
from mnist_cli.data.dataset import load
from mnist_cli.models import losses, scratch
from mnist_cli.models.modules import build
from tests.conftest import Mnist

Function = Callable[..., Tensor]

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


def assert_alike(ours: Function, theirs: Function, x: Tensor, *labels: Tensor) -> None:
    """Values, types and gradients of every element are the same; one function does for a stack."""
    results = []
    for function in (ours, theirs):
        leaf = x.clone().requires_grad_()
        value = function(leaf, *labels)
        weights = torch.linspace(1, 2, value.numel(), dtype=x.dtype).view(value.shape)
        results.append((value.detach(), *torch.autograd.grad((value * weights).sum(), leaf)))
    torch.testing.assert_close(*results, equal_nan=True)
    if x.ndim > 1:
        torch.testing.assert_close(vmap(ours)(x, *labels), ours(x, *labels))


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


@pytest.mark.parametrize(
    ("logits", "plain", "guarded"),
    [
        ([88.0, 0.0], [1, 0], [1, 0]),
        ([89.0, 0.0], [math.nan, 0], [math.nan, 0]),  # inf / inf: no epsilon helps
        ([-1e4, -1e4], [math.nan, math.nan], [0, 0]),  # 0 / 0 and 0 / epsilon
    ],
)
def test_plain_softmax_overflows_and_epsilon_guards_against_underflow_only(
    logits: list[float], plain: list[float], guarded: list[float]
) -> None:
    x = torch.tensor(logits)
    assert scratch.softmax_plain(x).tolist() == pytest.approx(plain, nan_ok=True)
    assert scratch.softmax_plain(x, epsilon=1e-8).tolist() == pytest.approx(guarded, nan_ok=True)
    assert scratch.softmax(x).sum() == 1
    assert scratch.softmax_plain(torch.zeros(2), epsilon=1.0).tolist() == pytest.approx([1 / 3] * 2)


# -------------------------------------------------------------------------------------- losses


@all_shapes
def test_one_hot(shape: tuple[int, ...]) -> None:
    labels = labels_of(shape[:-1])
    assert torch.equal(scratch.one_hot(labels, 10), F.one_hot(labels, 10))
    with pytest.raises(IndexError):
        scratch.one_hot(labels + 10, 10)


def torchs_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    flat = F.cross_entropy(logits.view(-1, 10), labels.view(-1), reduction="none")
    return flat.view(labels.shape)


@both_dtypes
@all_shapes
def test_losses(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    labels, usual = labels_of(shape[:-1]), draw(*shape, dtype=dtype)
    assert_alike(losses.scratch_cross_entropy, torchs_cross_entropy, usual, labels)
    for x in logits_of(shape, dtype):
        assert_alike(losses.scratch_nll, torchs_cross_entropy, x, labels)


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
    nodes = list(ast.walk(ast.parse(Path(scratch.__file__).read_text(encoding="utf-8"))))
    imports = [node for node in nodes if isinstance(node, ast.ImportFrom)]
    borrowed = {(node.module, name.name) for node in imports for name in node.names}
    torchs = {name for module, name in borrowed if module and module.startswith("torch")}
    assert torchs == {"Tensor", "Module", "Parameter"}
    used = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    ready = {"nn", "functional", "special", "relu", "sigmoid", "tanh", "softmax", "log_softmax"}
    assert not used & (ready | {"logsumexp", "nll_loss", "cross_entropy", "one_hot"})


# ---------------------------------------------------------------------------------- the ladder
# From tensors alone to what torch offers, one thing replaced at each rung; no number may change.

RATE, BATCH, EPOCHS = 0.5, 64, 2

Start = Mapping[str, Tensor]


def own_tensors(start: Start) -> tuple[Function, list[Tensor]]:
    weights, bias = (value.requires_grad_() for value in start.values())
    return lambda x: x @ weights + bias, [weights, bias]


def own_module(start: Start) -> tuple[Function, list[Tensor]]:
    model = build(ScratchModel(name="scratch"), IMAGE, 10, seed=1).double()
    model.load_state_dict(start)
    return model, list(model.parameters())


def linear(start: Start) -> tuple[Function, list[Tensor]]:
    model = nn.Linear(784, 10, dtype=torch.float64)
    model.load_state_dict({"weight": start["weights"].mT, "bias": start["bias"]})
    return model, list(model.parameters())


def own_nll(logits: Tensor, labels: Tensor) -> Tensor:
    return scratch.nll(scratch.log_softmax(logits), labels).mean()


def own_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return scratch.cross_entropy(scratch.softmax(logits), scratch.one_hot(labels, 10)).mean()


@torch.no_grad()
def written_out(parameters: list[Any]) -> None:
    for parameter in parameters:
        parameter.sub_(RATE * parameter.grad)


def shipped_update(parameters: list[Any]) -> None:
    scratch.sgd_update(parameters, [parameter.grad for parameter in parameters], RATE)


def optim_sgd(parameters: list[Any]) -> None:
    torch.optim.SGD(parameters, lr=RATE).step()  # it remembers nothing from step to step


def slices(x: Tensor, y: Tensor, size: int) -> Iterable[tuple[Tensor, Tensor]]:
    return zip(x.split(size), y.split(size), strict=True)


def loader(x: Tensor, y: Tensor, size: int) -> Iterable[tuple[Tensor, Tensor]]:
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
    model, parameters = make(start)
    epochs = []
    for _ in range(EPOCHS):
        total = 0.0
        for images, labels in batches(x, data.train.labels, BATCH):
            mean = loss(model(images), labels)
            for parameter in parameters:
                parameter.grad = None
            mean.backward()
            update(parameters)
            total += mean.item() * len(images)
        with torch.no_grad():
            val = loss(model(x_val), data.val.labels).item()
        epochs.append((total / len(x), val))
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
