"""Steps that can be timed: of the loop that tutorials write, of the engine, and their limit."""

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from mnist_cli.config import AdamOptimizer, Config, SgdOptimizer
from mnist_cli.data.dataset import Dataset, Split
from mnist_cli.engine.loop import Record, prepare, train
from mnist_cli.engine.stack import PRECISIONS
from mnist_cli.models.modules import Shape, build

INK = 0.19  # the share of MNIST's pixels that are not 0


@dataclass(frozen=True)
class Material:
    """The same images for everybody.

    Attributes:
        data: as the engine has them, on the device.
        pixels: uint8, shape (n, 1, 28, 28).
        floats: a tensor of the same, divided by 255, on the CPU.
        labels: int64, shape (n,), on the CPU.
    """

    data: Dataset
    pixels: np.ndarray
    floats: Tensor
    labels: Tensor

    @classmethod
    def generate(cls, images: int, device: torch.device) -> "Material":
        """Random pixels, as many of them 0 as in MNIST, and random labels."""
        random = np.random.default_rng(0)
        pixels = random.integers(1, 256, (images, 1, 28, 28), np.uint8)
        pixels *= random.random(pixels.shape, np.float32) < INK
        labels = torch.from_numpy(random.integers(0, 10, images))
        split = Split(torch.from_numpy(pixels).to(device), labels.to(device), 255)
        few = Split(split.images[:16], split.labels[:16], 255)  # evaluated, and never timed
        data = Dataset("generated", tuple("0123456789"), "", split, few, few)
        return cls(data, pixels, torch.from_numpy(pixels.astype(np.float32) / 255), labels)


class Subject(Protocol):
    """Something whose steps can be timed."""

    def advance(self, steps: int) -> float:
        """Does so many steps; returns the seconds they took."""
        ...


class ImageByImage(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """A dataset object as tutorials write it: one image's tensor at a time.

    Args:
        pixels: uint8, shape (n, 1, height, width).
        labels: n numbers.
    """

    def __init__(self, pixels: np.ndarray, labels: np.ndarray) -> None:
        self._pixels = pixels
        self._labels = labels

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """A row of pixels divided by 255, and its label."""
        image = torch.tensor(self._pixels[index] / 255, dtype=torch.float32).flatten()
        return image, torch.tensor(self._labels[index])


class Tutorial:
    """The loop that tutorials write: a loader over a dataset object, a module, torch's optimizer.

    Args:
        config: says what is trained.
        material: on what.
        image_by_image: whether the dataset makes each image by itself.

    Attributes:
        total: the sum of the losses of all batches.
    """

    def __init__(self, config: Config, material: Material, *, image_by_image: bool = False) -> None:
        dataset: torch.utils.data.Dataset[Any] = (
            ImageByImage(material.pixels, material.labels.numpy())
            if image_by_image
            else TensorDataset(material.floats, material.labels)
        )
        loader = DataLoader(dataset, config.data.batch_size, shuffle=config.data.shuffle)
        self._batches = itertools.chain.from_iterable(itertools.repeat(loader))  # epoch by epoch
        self._device = material.data.train.images.device
        data = material.data
        model = build(config.model, data.shape, len(data.classes), config.train.seed)
        self._model = model.to(self._device)
        self._criterion = nn.CrossEntropyLoss(reduction=config.loss.reduction)
        settings = config.optimizer.model_dump(exclude={"name"})
        optimizer = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}[config.optimizer.name]
        self._optimizer = optimizer(self._model.parameters(), **settings)
        self.total = 0.0

    def advance(self, steps: int) -> float:
        """See `Subject`."""
        model, criterion, optimizer = self._model, self._criterion, self._optimizer
        began = time.perf_counter()
        for x, y in itertools.islice(self._batches, steps):
            if self._device.type != "cpu":
                x, y = x.to(self._device), y.to(self._device)  # noqa: PLW2901 - as tutorials do
            optimizer.zero_grad()
            loss = criterion(model(x), y)
            loss.backward()
            optimizer.step()
            self.total += loss.item()
        return time.perf_counter() - began


class Engine:
    """A stack as `mnist train` and `mnist sweep` train it: the very loop, by its own clock.

    Args:
        configs: of each replica.
        material: on what they are trained.

    Attributes:
        records: the latest, one for each replica.
    """

    def __init__(self, configs: Sequence[Config], material: Material) -> None:
        self._training = prepare(configs, material.data)
        self._epochs = train(self._training)
        self.records: list[Record] = []

    def advance(self, steps: int) -> float:
        """See `Subject`."""
        run, seconds = self._training, 0.0
        run.steps = run.step + steps  # it cuts its epoch short there
        while run.step < run.steps:
            self.records = next(self._epochs)
            seconds += self.records[0]["time/epoch_s"]
        return seconds


@dataclass(frozen=True)
class Layer:
    """A layer as a matrix product: (rows, inputs) by (inputs, outputs).

    A linear layer has a row for each image, a convolution one for each place where its kernel lies:
    the patch of the image there.

    Attributes:
        first: whether it is the network's first: its input has no gradient, and is the same for
            all replicas.
    """

    rows: int
    inputs: int
    outputs: int
    first: bool


def layers(model: nn.Module, shape: Shape, batch: int) -> list[Layer]:
    """The layers of a model in order, found by passing a batch through it."""
    found: list[Layer] = []

    def keep(module: Any, _: Any, output: Tensor) -> None:
        outputs, inputs = module.weight.flatten(1).shape
        found.append(Layer(output.numel() // outputs, inputs, outputs, first=not found))

    hooks = [
        module.register_forward_hook(keep)
        for module in model.modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    ]
    with torch.no_grad():
        model(torch.zeros(batch, *shape))
    for hook in hooks:
        hook.remove()
    return found


class Limit:
    """What no engine can do without: the products of a step, and the optimizer's arithmetic.

    Each layer's forward product, the product that gives the gradient of its weights and, but for
    the first layer, the one that gives the gradient of its input; then one fused update of
    everything. The tensors are there beforehand, full of noise, the patches of convolutions too; no
    batch is gathered, no activation, loss or graph computed. The first layer of all replicas is one
    wide product.

    Args:
        config: says what is trained, and in which precision.
        replicas: how many together.
        data: says where and on which shapes.
    """

    def __init__(self, config: Config, replicas: int, data: Dataset) -> None:
        device = self._device = data.train.images.device
        precision = PRECISIONS[config.train.precision]
        model = build(config.model, data.shape, len(data.classes), 0)
        noise = partial(_noise, device, precision.products)
        self._products = [
            product
            for layer in layers(model, data.shape, config.data.batch_size)
            for product in _products(layer, replicas, noise)
        ]
        noise = partial(_noise, device, precision.weights)
        shapes = [(replicas, *parameter.shape) for parameter in model.parameters()]
        self._update = _update(config, [noise(*s) for s in shapes], [noise(*s) for s in shapes])
        self._step = self.step
        if device.type == "cuda":  # else it would be the limit of launching kernels
            graph = torch.cuda.CUDAGraph()
            self.step()
            with torch.cuda.graph(graph):
                self.step()
            self._step = graph.replay

    def step(self) -> None:
        """All of it, once."""
        for product in self._products:
            product()
        self._update()

    def advance(self, steps: int) -> float:
        """See `Subject`."""
        _finish(self._device)
        began = time.perf_counter()
        for _ in range(steps):
            self._step()
        _finish(self._device)
        return time.perf_counter() - began


def _noise(device: torch.device, dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.randn(shape, device=device).to(dtype)


def _products(
    layer: Layer, replicas: int, noise: Callable[..., Tensor]
) -> list[Callable[[], object]]:
    """The products of a layer of all replicas, forward and backward."""
    product: Callable[..., Tensor] = torch.mm
    many: tuple[int, ...] = ()
    outputs = layer.outputs
    if layer.first:
        outputs *= replicas  # together they are one wide layer
    elif replicas > 1:
        product, many = torch.bmm, (replicas,)
    x, y = noise(*many, layer.rows, layer.inputs), noise(*many, layer.rows, outputs)
    weights = noise(*many, outputs, layer.inputs)
    calls: list[Callable[[], object]] = [
        partial(product, x, weights.mT, out=torch.empty_like(y)),
        partial(product, y.mT, x, out=torch.empty_like(weights)),
    ]
    if not layer.first:
        calls.append(partial(product, y, weights, out=torch.empty_like(x)))
    return calls


def _update(config: Config, values: list[Tensor], gradients: list[Tensor]) -> Callable[[], object]:
    """One call that updates everything, by the rule of a config."""

    def moments(fill: float) -> list[Tensor]:
        return [torch.full_like(value, fill) for value in values]

    optimizer = config.optimizer
    if isinstance(optimizer, SgdOptimizer):
        return partial(
            torch._fused_sgd_,
            values,
            gradients,
            moments(0.0) if optimizer.momentum else [],
            lr=optimizer.lr,
            momentum=optimizer.momentum,
            dampening=optimizer.dampening,
            weight_decay=optimizer.weight_decay,
            nesterov=optimizer.nesterov,
            maximize=False,
            is_first_step=False,
        )
    assert isinstance(optimizer, AdamOptimizer)
    steps = torch.ones((), device=values[0].device)
    return partial(
        torch._fused_adam_,
        values,
        gradients,
        moments(0.0),
        moments(1.0),
        [],
        [steps] * len(values),
        lr=optimizer.lr,
        beta1=optimizer.betas[0],
        beta2=optimizer.betas[1],
        eps=optimizer.eps,
        weight_decay=optimizer.weight_decay,
        amsgrad=False,
        maximize=False,
    )


def _finish(device: torch.device) -> None:
    """Waits for whatever the device has to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
