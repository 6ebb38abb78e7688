"""Where torch's private functions are gone, its public ones come to the same."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mnist_cli.data.dataset import load
from mnist_cli.engine import kernels
from mnist_cli.engine.loop import prepare, train
from tests.engine.test_stack import OPTIMIZERS, config_of


def gone(*args: object, **kwargs: object) -> None:
    raise TypeError("no such function, or not with these arguments")


@pytest.fixture
def no_private(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in kernels.PRIVATE:
        monkeypatch.setitem(kernels.PRIVATE, name, gone)


def trained(model: str, optimizer: str) -> dict[str, Tensor]:
    data = {"name": "synthetic", "size": 140, "batch_size": 32}
    config = config_of(
        model, optimizer, "step", data=data, train={"epochs": 2, "precision": "fp64"}
    )
    run = prepare([config] * 2, load(config.data, torch.device("cpu"), print))
    list(train(run))
    return run.stack.state_dict(1)


def test_nothing_is_missing_today() -> None:
    assert all(callable(kernel) for kernel in kernels.PRIVATE.values())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_optimizers_come_to_the_same_by_public_functions(
    optimizer: str, request: pytest.FixtureRequest
) -> None:
    wanted = trained("mlp", optimizer)
    request.getfixturevalue("no_private")
    for name, value in trained("mlp", optimizer).items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-10, atol=1e-12)


@pytest.mark.usefixtures("no_private")
@pytest.mark.parametrize(
    ("function", "gradient"),
    [
        (F.relu, kernels.relu_backward),
        (torch.sigmoid, kernels.sigmoid_backward),
        (torch.tanh, kernels.tanh_backward),
    ],
)
def test_derivatives_come_to_the_same(
    function: Callable[[Tensor], Tensor], gradient: Callable[..., None]
) -> None:
    x = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    y, dy = function(x), torch.randn(5, 7, dtype=torch.float64)
    y.backward(dy)
    found = torch.empty_like(dy)
    gradient(dy, y.detach(), out=found)
    torch.testing.assert_close(found, x.grad)


@pytest.mark.usefixtures("no_private")
def test_a_convolution_comes_to_the_same() -> None:
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    y = F.conv2d(x, weight, None, 2, 1)
    dy = torch.randn_like(y)
    y.backward(dy)
    settings = ((2, 2), (1, 1), (1, 1), False, (0, 0), 1)
    dx, dw = kernels.convolution_backward(dy, x.detach(), weight.detach(), settings, True)
    torch.testing.assert_close(dx, x.grad)
    torch.testing.assert_close(dw, weight.grad)
