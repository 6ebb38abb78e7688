"""What Muon makes of momenta, beside torch's; the matrix of `test_stack.py` has whole runs."""

from typing import Any

import pytest
import torch

from mnist_cli.config import Config
from mnist_cli.config.schema import MuonOptimizer
from mnist_cli.data.dataset import Dataset
from mnist_cli.engine.loop import prepare
from mnist_cli.engine.muon import orthogonalize, parts
from mnist_cli.engine.optimizers import Optimizer
from mnist_cli.engine.stack import Stack
from mnist_cli.errors import UsageError
from mnist_cli.models.modules import build

COEFFICIENTS = MuonOptimizer(name="muon").ns_coefficients


@pytest.mark.parametrize("shape", [(5, 40), (40, 5), (16, 16), (1, 7), (7, 1)])
def test_singular_values_become_about_one_and_vectors_stay(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    matrices = torch.randn(3, *shape, dtype=torch.float64) * torch.tensor([[[1e-3]], [[1]], [[50]]])
    found = orthogonalize(matrices, COEFFICIENTS, 5, 1e-7)
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    inside = u.mT @ found @ v.mT
    values = inside.diagonal(dim1=1, dim2=2)
    assert ((values > 0.3) & (values < 1.3)).all()  # the smallest need more than five steps
    torch.testing.assert_close(inside, torch.diag_embed(values), rtol=0, atol=1e-12)


def test_a_matrix_of_zeros_stays_one() -> None:
    assert not orthogonalize(torch.zeros(2, 3, 4), COEFFICIENTS, 5, 1e-7).any()


@pytest.mark.parametrize("scale", ["original", "match_rms_adamw", "spectral_unclamped"])
@pytest.mark.parametrize("nesterov", [True, False])
def test_a_step_is_torchs_but_for_its_bfloat16(scale: Any, nesterov: bool) -> None:
    """Wide, tall and square matrices of two replicas, of which one has another learning rate."""
    settings: dict[str, Any] = {"adjust_lr_fn": scale, "nesterov": nesterov, "weight_decay": 0.3}
    model = Config.model_validate({"model": {"name": "mlp", "hidden": [20, 60, 60]}}).model
    models = [build(model, (1, 4, 4), 10, seed).double() for seed in (0, 1)]
    stack = Stack(models, torch.device("cpu"), "fp64")
    pairs = [
        (MuonOptimizer(name="muon", lr=lr, **settings), Config().scheduler) for lr in (0.02, 0.05)
    ]
    mine = Optimizer(pairs, stack.weights, stack.gradients)
    hidden = parts(pairs[0][0], {n: p.shape for n, p in models[0].named_parameters()})[1][1]
    theirs = [
        torch.optim.Muon([dict(m.named_parameters())[n] for n in hidden], lr=lr, **settings)
        for m, lr in zip(models, (0.02, 0.05), strict=True)
    ]
    before = {name: value.clone() for name, value in stack.parameters.items()}
    for step in range(3):
        for name, gradient in stack.gradients.views.items():
            gradient.normal_()
            for r in (0, 1):
                dict(models[r].named_parameters())[name].grad = gradient[r].clone()
        mine.begin(0, step)
        mine.update()
        for optimizer in theirs:
            optimizer.step()
    for name in hidden:
        for r in (0, 1):
            wanted = dict(models[r].named_parameters())[name].detach()
            way = (wanted - before[name][r]).norm()
            assert (stack.parameters[name][r] - wanted).norm() < 0.02 * way


def test_hidden_matrices_are_muons_and_the_rest_adamws() -> None:
    config = MuonOptimizer(name="muon", lr=0.5, adamw_lr=0.1, adamw_weight_decay=0.2)
    cnn = {"1.weight": (16, 1, 3, 3), "1.bias": (16,), "2.weight": (16, 16, 3, 3), "2.bias": (16,)}
    linear = {"3.weight": (32, 16), "3.bias": (32,), "4.weight": (10, 32), "4.bias": (10,)}
    for layers, hidden in [(cnn | linear, {"2.weight", "3.weight"}), (linear, {"3.weight"})]:
        shapes = {name: torch.Size(shape) for name, shape in layers.items()}
        (adamw, rest), (muon, found) = parts(config, shapes)
        assert set(found) == hidden
        assert set(rest) == layers.keys() - hidden
        assert muon is config
        assert (adamw.name, adamw.lr, adamw.weight_decay) == ("adamw", 0.1, 0.2)


def test_a_model_without_hidden_matrices_is_refused(data: Dataset) -> None:
    config = Config.model_validate({"model": "logistic", "optimizer": "muon"})
    with pytest.raises(UsageError, match=r"muon.*no hidden matrix"):
        prepare([config], data)
