"""The models, the hash behind dropout, and initial weights as a function of the seed."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mnist_cli.config import Config
from mnist_cli.config.schema import (
    CnnModel,
    LenetModel,
    LogisticModel,
    MlpModel,
    ModelConfig,
    ResnetModel,
    ScratchModel,
    TensorNetModel,
    VggModel,
    variants,
)
from mnist_cli.data.seeds import derive
from mnist_cli.errors import UsageError
from mnist_cli.models.losses import cross_entropy, nll
from mnist_cli.models.modules import MODELS, Dropout, build, cost, weight_uses

SHAPE = (1, 28, 28)


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        (LogisticModel(name="logistic"), 7850),
        (MlpModel(name="mlp"), 784 * 32 + 32 + 32 * 10 + 10),
        (MlpModel(name="mlp", depth=1), 7850),
        (MlpModel(name="mlp", depth=4, width=8), 785 * 8 + 9 * 4 + 5 * 2 + 3 * 10),
        (MlpModel(name="mlp", hidden=(50, 100)), 784 * 50 + 50 * 100 + 100 * 10 + 160),
        (CnnModel(name="cnn"), 9 * 16 + 16 + 16 * 16 * 9 + 16 + 16 * 10 * 9 + 10),
        (CnnModel(name="cnn_sequential"), 3930),
        (LenetModel(name="lenet"), 156 + 2416 + 48_120 + 10_164 + 850),
        (LenetModel(name="lenet", variant="modern"), 61_706),
        (ResnetModel(name="resnet", depth=20), 272_186),  # published: 0.27 million
        (VggModel(name="vgg", width=4), 9 * 4 * (1 + 4 + 8 + 16 + 32) + 2 * 40 + 64 * 10 + 10),
        (ScratchModel(name="scratch"), 7850),
        (TensorNetModel(name="tensor_net"), 784 * 50 + 50 * 100 + 100 * 10 + 160),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_sizes(config: ModelConfig, parameters: int) -> None:
    model = build(config, SHAPE, 10, seed=0)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert model(torch.zeros(3, *SHAPE)).shape == (3, 10)


@pytest.mark.parametrize(
    ("config", "products"),
    [
        (MlpModel(name="mlp"), [(1, 784, 32), (1, 32, 10)]),
        (CnnModel(name="cnn"), [(14**2, 9, 16), (7**2, 144, 16), (4**2, 144, 10)]),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_what_a_step_takes(config: ModelConfig, products: list[tuple[int, int, int]]) -> None:
    model = build(config, SHAPE, 10, seed=0)
    found = [(n, weight[0].numel(), len(weight)) for weight, n in weight_uses(model, SHAPE)]
    assert found == products
    once, batch = cost(model, SHAPE, 1), cost(model, SHAPE, 64)
    biases = sum(outputs for _, _, outputs in products)
    assert once.multiply_adds == sum(a * b * c for a, b, c in products) + biases
    assert (batch.multiply_adds, batch.activations) == (
        64 * once.multiply_adds,
        64 * once.activations,
    )


@pytest.mark.parametrize("depth", [8, 20])
def test_the_depth_of_a_resnet_counts_its_longest_path(depth: int) -> None:
    model = build(ResnetModel(name="resnet", depth=depth, width=2), SHAPE, 10, 0)
    layers = [*weight_uses(model, SHAPE)]
    assert len([weight for weight, _ in layers if weight.shape[2:] != (1, 1)]) == depth
    assert {n for _, n in layers} == {28 * 28, 14 * 14, 7 * 7, 1}


@pytest.mark.parametrize(("name", "least"), [("lenet", 12), ("resnet", 4), ("vgg", 24)])
def test_images_that_are_too_small_are_told(name: str, least: int) -> None:
    config = Config.model_validate({"model": name}).model
    for shape in [(3, least, least), (1, 33, least + 1), (1, 32, 32)]:
        assert build(config, shape, 7, 0).eval()(torch.zeros(1, *shape)).shape == (1, 7)
    with pytest.raises(UsageError, match=rf"{least - 1}x50.* {least}x{least}"):
        build(config, (1, least - 1, 50), 10, 0)


def test_every_model_of_the_schema_can_be_built() -> None:
    assert set(MODELS) == set(variants("model")) - {"file"}


def test_initial_weights_are_a_function_of_the_seed_and_leave_torch_as_it_was() -> None:
    config = MlpModel(name="mlp")
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = build(config, SHAPE, 10, seed=3).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    again = build(config, SHAPE, 10, seed=3).state_dict()
    other = build(config, SHAPE, 10, seed=4).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["1.weight"], other["1.weight"])


def test_the_cnn_is_the_one_written_out_by_hand() -> None:
    model = build(CnnModel(name="cnn"), SHAPE, 10, seed=0)
    layers: list[nn.Module] = []
    for name in ("conv1", "conv2", "conv3"):
        layers += [getattr(model, name), nn.ReLU()]
    by_hand = nn.Sequential(*layers, nn.AvgPool2d(4), nn.Flatten())
    images = torch.rand(7, *SHAPE)
    torch.testing.assert_close(model(images), by_hand(images))


def test_both_forms_of_the_cnn_are_the_same_network() -> None:
    module = build(CnnModel(name="cnn"), SHAPE, 10, seed=3)
    chain = build(CnnModel(name="cnn_sequential"), SHAPE, 10, seed=3)
    images, labels = torch.rand(7, *SHAPE), torch.arange(7)
    assert torch.equal(module(images), chain(images))
    assert torch.equal(module(images), chain(images.flatten(1)))  # its first layer reshapes
    for model in (module, chain):
        F.cross_entropy(model(images), labels).backward()
    for a, b in zip(module.parameters(), chain.parameters(), strict=True):
        assert torch.equal(a, b)
        assert a.grad is not None
        torch.testing.assert_close(a.grad, b.grad)


def test_dropout_drops_the_share_it_says_and_keeps_the_mean() -> None:
    layer = Dropout(0.3)
    layer.seed.fill_(derive(0, "dropout", 0))
    output = layer(torch.ones(1000, 1000))
    assert output.unique().tolist() == pytest.approx([0.0, 1 / 0.7])
    dropped = (output == 0).float()
    # A million draws: the share is within five standard deviations (0.0023) of what was asked.
    assert dropped.mean().item() == pytest.approx(0.3, abs=0.0023)
    for along in (0, 1):  # no row and no column differs from another but by chance
        deviation = dropped.mean(along).std().item()
        assert deviation == pytest.approx((0.3 * 0.7 / 1000) ** 0.5, rel=0.1)


def test_dropout_masks_differ_by_seed_and_step_and_by_nothing_else() -> None:
    layer = Dropout(0.5)
    x = torch.ones(100, 100)
    masks = {}
    for seed in (derive(0, "dropout", 0), derive(0, "dropout", 1), derive(1, "dropout", 0)):
        for step in (0, 1, 2, 1000):
            layer.seed.fill_(seed)
            layer.step.fill_(step)
            masks[seed, step] = layer(x) > 0
            assert torch.equal(masks[seed, step], layer(x) > 0)
    keys = list(masks)
    for i, a in enumerate(keys):
        for b in keys[:i]:
            # Two independent fair masks agree in half of 10,000 places, give or take 5 x 0.5 %.
            assert (masks[a] == masks[b]).float().mean().item() == pytest.approx(0.5, abs=0.025)
    layer.eval()
    assert torch.equal(layer(x), x)


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_losses_are_those_of_torch(scale: float) -> None:
    logits = torch.randn(3, 5, 10, dtype=torch.float64, generator=torch.manual_seed(0)) * scale
    labels = torch.arange(15).view(3, 5) % 10
    wanted = F.cross_entropy(logits.view(15, 10), labels.view(15), reduction="none").view(3, 5)
    torch.testing.assert_close(cross_entropy(logits, labels), wanted)
    torch.testing.assert_close(nll(logits, labels), wanted)
