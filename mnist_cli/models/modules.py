"""The models: ordinary modules of one run, and one dict from name to class.

A model takes images of shape (batch, channels, height, width) and returns logits of shape
(batch, classes). It knows nothing of stacks, devices or training. To add one, write the module, put
it into `MODELS`, and give its settings a class in `config/schema.py`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mnist_cli.config.schema import (
    CnnModel,
    FileModel,
    LogisticModel,
    MlpModel,
    ModelConfig,
)
from mnist_cli.data.seeds import derive, random_bits
from mnist_cli.models import own
from mnist_cli.models.lenet import LeNet5
from mnist_cli.models.resnet import ResNet
from mnist_cli.models.scratch import SoftmaxRegression, TensorNet
from mnist_cli.models.shapes import Shape
from mnist_cli.models.vgg import Vgg

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh}


class Logistic(nn.Sequential):
    """Softmax regression: one linear layer on the pixels."""

    def __init__(self, config: LogisticModel, shape: Shape, classes: int) -> None:  # noqa: ARG002
        super().__init__(nn.Flatten(), nn.Linear(math.prod(shape), classes))


class Mlp(nn.Sequential):
    """Linear layers with a nonlinearity between them, and dropout before the last."""

    def __init__(self, config: MlpModel, shape: Shape, classes: int) -> None:
        layers: list[nn.Module] = [nn.Flatten()]
        inputs = math.prod(shape)
        for units in config.widths:
            layers += [nn.Linear(inputs, units), ACTIVATIONS[config.activation]()]
            inputs = units
        if config.dropout > 0:
            layers.append(Dropout(config.dropout))
        super().__init__(*layers, nn.Linear(inputs, classes))


class Cnn(nn.Module):
    """Three 3x3 convolutions of stride 2, ReLU after each, then the mean over the last map."""

    def __init__(self, config: CnnModel, shape: Shape, classes: int) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = _convolutions(config, shape, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images (batch, channels, height, width) to logits (batch, classes)."""
        x = F.relu(self.conv1(images))  # (batch, 16, 14, 14) for MNIST
        x = F.relu(self.conv2(x))  # (batch, 16, 7, 7)
        x = F.relu(self.conv3(x))  # (batch, classes, 4, 4)
        return x.mean(dim=(2, 3))


class CnnSequential(nn.Sequential):
    """`Cnn` as one chain of layers: the same parameters in the same order, the same outputs."""

    def __init__(self, config: CnnModel, shape: Shape, classes: int) -> None:
        conv1, conv2, conv3 = _convolutions(config, shape, classes)
        super().__init__(
            Reshape(shape),
            conv1,
            nn.ReLU(),
            conv2,
            nn.ReLU(),
            conv3,
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),  # (batch, classes, 1, 1)
            nn.Flatten(),  # (batch, classes)
        )


def _convolutions(config: CnnModel, shape: Shape, classes: int) -> list[nn.Conv2d]:
    channels = (shape[0], *config.channels, classes)
    return [
        nn.Conv2d(inputs, outputs, kernel_size=3, stride=2, padding=1)
        for inputs, outputs in pairwise(channels)
    ]


class Reshape(nn.Module):
    """Gives every image of a batch a shape, so that rows of pixels will do as images too."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, images: Tensor) -> Tensor:
        """Images (batch, ...) to (batch, channels, height, width)."""
        return images.reshape(-1, *self.shape)


MODELS: dict[str, Callable[..., nn.Module]] = {  # take (config, shape, classes)
    "logistic": Logistic,
    "mlp": Mlp,
    "cnn": Cnn,
    "cnn_sequential": CnnSequential,
    "lenet": LeNet5,
    "resnet": ResNet,
    "vgg": Vgg,
    "scratch": SoftmaxRegression,
    "tensor_net": TensorNet,
}


def build(config: ModelConfig, shape: Shape, classes: int, seed: int) -> nn.Module:
    """A model in float32 on the CPU, its initial weights a function of the seed alone.

    torch initialises from its global generator, which is put back as it was.

    Raises:
        UsageError: the model is from a file that may not be run or makes none.
    """
    with torch.random.fork_rng(devices=[]):
        make: Callable[..., nn.Module] = partial(MODELS.get(config.name, nn.Module), config)
        if isinstance(config, FileModel):
            make = own.load(config)  # first: it may draw numbers too
        torch.manual_seed(derive(seed, "weights"))
        model = make(shape, classes)
    if isinstance(config, FileModel):
        _replace_dropout(model)
        own.check(config, model, shape, classes)
    for number, layer in enumerate(dropouts(model)):
        layer.seed.fill_(derive(seed, "dropout", number))
    return model


def _replace_dropout(model: nn.Module) -> None:
    """Puts this package's dropout in the place of torch's, which draws from a global generator."""
    for name, layer in list(model.named_modules(remove_duplicate=False)):
        if type(layer) is nn.Dropout:
            model.set_submodule(name, Dropout(layer.p))


@dataclass(frozen=True)
class Cost:
    """What one replica's share of a step takes.

    Attributes:
        parameters: numbers it learns.
        multiply_adds: of the forward pass; the backward pass takes about twice as many.
        activations: numbers kept for the backward pass.
    """

    parameters: int
    multiply_adds: int
    activations: int


def weight_uses(model: nn.Module, shape: Shape) -> list[tuple[Tensor, int]]:
    """The weight of every linear and convolutional layer, and at how many places it is applied.

    A linear layer is applied once to an image, a convolution once at each place of its output. As a
    matrix product, such a layer has batch times places rows.

    Returns:
        In the order in which the layers are called.
    """
    found: list[tuple[Tensor, int]] = []

    def add(layer: nn.Module, _: object, output: Tensor) -> None:
        weight = layer.get_parameter("weight")
        found.append((weight, output.numel() // len(weight)))

    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    hooks = [layer.register_forward_hook(add) for layer in layers]
    model.eval()  # one image is no batch to normalise over
    with torch.no_grad():
        model(torch.zeros(1, *shape))
    for hook in hooks:
        hook.remove()
    return found


def cost(model: nn.Module, shape: Shape, batch: int) -> Cost:
    """What a step takes, found by passing one image through the model."""
    own = {id(parameter) for parameter in model.parameters()}
    parameters = sum(parameter.numel() for parameter in model.parameters())
    kept: list[Tensor] = []
    model.eval()
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda kept: kept):
        model(torch.zeros(1, *shape))
    activations = sum(x.numel() for x in kept if id(x) not in own and x._base is None)
    # Each parameter is used once, but a convolution's kernel once at every place.
    again = sum(weight.numel() * (places - 1) for weight, places in weight_uses(model, shape))
    return Cost(parameters, batch * (parameters + again), batch * activations)


class Dropout(nn.Module):
    """Inverted dropout whose mask is a pure function of (seed, step, position in the batch).

    `nn.Dropout` draws from a global generator, so a run inside a stack, or a resumed one, would
    drop other units than the same run alone. Here the mask is a hash, computed where the
    activations are. `step` must be set before each training step; nothing else moves it.
    """

    seed: Tensor
    step: Tensor

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        # Not persistent: the state dict stays that of the plain architecture.
        self.register_buffer("seed", torch.zeros((), dtype=torch.int64), persistent=False)
        self.register_buffer("step", torch.zeros((), dtype=torch.int64), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Drops each element with probability `p` and scales the rest by 1 / (1 - p)."""
        if not self.training:
            return x
        positions = torch.arange(x.numel(), device=x.device).view(x.shape)
        return x * keep_mask(positions, self.seed, self.p)(self.step) / (1 - self.p)


def dropouts(model: nn.Module) -> list[Dropout]:
    """The dropout layers of a model, in order."""
    return [layer for layer in model.modules() if isinstance(layer, Dropout)]


def keep_mask(positions: Tensor, seed: Tensor, p: float) -> Callable[[Tensor], Tensor]:
    """What dropout keeps: a function of the step's number, int32 or int64, no axes.

    Args:
        positions: of the numbers in their batch, int64.
        seed: of the layer, int64; broadcast against the positions.
        p: the share that is dropped.
    """
    bits = random_bits(positions, seed)
    least = torch.tensor(min(round(p * 2**32), 2**32 - 1) - 2**31, dtype=torch.int32)
    # The sign flipped: signed numbers then lie in the order of unsigned ones.
    return lambda step: (bits(step) ^ -(2**31)) >= least
