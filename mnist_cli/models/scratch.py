"""A classifier from tensors alone: activations, softmax, losses, two networks and their update.

Everything that `torch.nn` and `torch.optim` would bring is written out here, each piece in the few
lines that define it; only gradients are left to autograd. What is borrowed is what lets the rest of
the program hold these pieces: `Module` and `Parameter`, which make tensors findable by name.

Classes lie along the last dimension; whatever comes before it, (...), is carried along, so every
function takes one image, a batch, or a stack of batches. The formulas and what they do to floating
point are those of Goodfellow, Bengio and Courville, Deep Learning (2016), sections 4.1 and 6.2.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import Module, Parameter

from mnist_cli.config.schema import ScratchModel, TensorNetModel

# --------------------------------------------------------------------------------- activations


def relu(x: Tensor) -> Tensor:
    """The larger of x and 0, element by element; NaN stays NaN."""
    return torch.where(x <= 0, 0.0, x)


def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + exp(-x)), element by element.

    Below zero it is written exp(x) / (1 + exp(x)), which is the same: either way what is
    exponentiated is -|x|, so nothing overflows, neither here nor in the gradient.
    """
    positive = x >= 0
    z = torch.exp(torch.where(positive, -x, x))  # not -x.abs(): the gradient of abs at 0 is 0
    return torch.where(positive, 1.0, z) / (1 + z)


def tanh(x: Tensor) -> Tensor:
    """(exp(x) - exp(-x)) / (exp(x) + exp(-x)), element by element: a sigmoid from -1 to 1."""
    return 2 * sigmoid(2 * x) - 1


# ------------------------------------------------------------------------------------- softmax


def softmax_plain(logits: Tensor, epsilon: float = 0.0) -> Tensor:
    """Softmax as it is defined: exp(logits), divided by their sum.

    It is good for small logits only: in float32 exp overflows above 88, and inf / inf is NaN.

    Args:
        logits: shape (..., classes).
        epsilon: added to the sum, often 1e-8. It guards against 0 / 0 when every exp underflows,
            and not against overflow; the probabilities then add up to a little less than 1.

    Returns:
        Probabilities, shape (..., classes).
    """
    exps = torch.exp(logits)
    return exps / (exps.sum(-1, keepdim=True) + epsilon)


def softmax(logits: Tensor) -> Tensor:
    """Softmax that cannot overflow: the largest logit is taken off all of them first.

    That divides numerator and denominator by the same number. The largest exponential is then
    1, so the sum lies between 1 and the number of classes.

    Args:
        logits: shape (..., classes).

    Returns:
        Probabilities, shape (..., classes).
    """
    return softmax_plain(_shifted(logits))


def log_softmax(logits: Tensor) -> Tensor:
    """The logarithm of `softmax`, in one piece.

    A probability too small for a float is rounded to 0, and its logarithm is lost. Here nothing is
    rounded: log(exp(x) / sum) is x - log(sum).

    Args:
        logits: shape (..., classes).

    Returns:
        Log-probabilities, shape (..., classes).
    """
    shifted = _shifted(logits)
    return shifted - shifted.exp().sum(-1, keepdim=True).log()


def _shifted(logits: Tensor) -> Tensor:
    # Detached: the shift cancels out of the result, and so it does out of the gradient.
    return logits - logits.detach().amax(-1, keepdim=True)


# -------------------------------------------------------------------------------------- losses


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """Each label as a row of zeros with a 1 at its place.

    Args:
        labels: class numbers, int64, shape (...).
        classes: how many classes there are.

    Returns:
        int64, shape (..., classes).

    Raises:
        IndexError: a label is not below `classes`.
    """
    rows = torch.eye(classes, dtype=torch.int64, device=labels.device)  # (classes, classes)
    return rows[labels]


def nll(log_probabilities: Tensor, labels: Tensor) -> Tensor:
    """Negative log-likelihood: minus the log-probability of the right class.

    Args:
        log_probabilities: shape (..., classes).
        labels: class numbers, int64, shape (...).

    Returns:
        Losses in nats, shape (...).
    """
    return -log_probabilities.gather(-1, labels[..., None]).squeeze(-1)


def cross_entropy(probabilities: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of probabilities against target probabilities: -sum(targets * log(p)).

    A probability of 0 counts as the smallest normal float, since 0 * log(0) is NaN. So an image
    whose class was given no chance at all has a large finite loss (87 in float32) and a gradient
    of 0: what rounding lost does not come back. `nll` of `log_softmax` loses nothing.

    Args:
        probabilities: shape (..., classes).
        targets: one-hot rows, or any distribution over the classes; shape (..., classes).

    Returns:
        Losses in nats, shape (...).
    """
    tiny = torch.finfo(probabilities.dtype).tiny
    return -(targets * probabilities.clamp_min(tiny).log()).sum(-1)


# ------------------------------------------------------------------------------------ networks
# Both return logits: softmax belongs to the loss, which can then take the logarithm safely, and
# the class of the largest logit is the class of the largest probability anyway.


class SoftmaxRegression(Module):
    """One matrix product and a bias: `logistic`, by tensors alone.

    Args:
        config: has no settings.
        shape: (channels, height, width) of one image.
        classes: how many there are.
    """

    def __init__(self, config: ScratchModel, shape: tuple[int, int, int], classes: int) -> None:  # noqa: ARG002
        super().__init__()
        inputs = math.prod(shape)
        self.weights = Parameter(torch.randn(inputs, classes) / math.sqrt(inputs))
        self.bias = Parameter(torch.zeros(classes))

    def forward(self, images: Tensor) -> Tensor:
        """Images (batch, channels, height, width) to logits (batch, classes)."""
        x = images.flatten(1)  # (batch, inputs)
        return x @ self.weights + self.bias


class TensorNet(Module):
    """Matrix products with a sigmoid after each but the last; the parameters are W1, b1, W2, ...

    Initial weights are N(0, 1) / sqrt(inputs), which keeps the scale of a signal from layer to
    layer, times 4 in front of a sigmoid, whose slope is at most 1/4: else signal and gradient would
    shrink fourfold at each layer (Glorot and Bengio 2010 argue so for a slope of 1). Biases are 0.

    Args:
        config: the widths of the hidden layers.
        shape: (channels, height, width) of one image.
        classes: how many there are.
    """

    def __init__(self, config: TensorNetModel, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        widths = (math.prod(shape), *config.hidden, classes)
        self.depth = len(widths) - 1
        for layer in range(1, self.depth + 1):
            inputs, outputs = widths[layer - 1 : layer + 1]
            gain = 4 if layer < self.depth else 1
            weights = torch.randn(inputs, outputs) * (gain / math.sqrt(inputs))
            self.register_parameter(f"W{layer}", Parameter(weights))
            self.register_parameter(f"b{layer}", Parameter(torch.zeros(outputs)))

    def forward(self, images: Tensor) -> Tensor:
        """Images (batch, channels, height, width) to logits (batch, classes)."""
        x = images.flatten(1)  # (batch, inputs)
        for layer in range(1, self.depth):
            x = sigmoid(self._linear(layer, x))  # (batch, 50), then (batch, 100), by default
        return self._linear(self.depth, x)

    def _linear(self, layer: int, x: Tensor) -> Tensor:
        weights: Tensor = getattr(self, f"W{layer}")  # (inputs, outputs)
        bias: Tensor = getattr(self, f"b{layer}")  # (outputs,)
        return x @ weights + bias


# -------------------------------------------------------------------------------------- update


@torch.no_grad()
def sgd_update(
    parameters: Iterable[Tensor], gradients: Iterable[Tensor], lr: float | Tensor
) -> None:
    """One step of gradient descent, in place: each parameter goes lr times its gradient downhill.

    Without `no_grad` autograd would record the update as part of the model, and refuse to change
    a leaf in place.
    """
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.sub_(lr * gradient)  # parameter -= lr * gradient, in place
