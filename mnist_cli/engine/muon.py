"""Muon: momentum made orthogonal, for the hidden matrices of all replicas in batched products.

As its authors advise, it is for hidden layers: convolution kernels count as matrices with a row for
each output channel; the last layer, a convolution that is the first layer, and whatever is no
matrix are left to AdamW. (A linear first layer is hidden: it reads pixels and no table of words.)

Source: K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024,
kellerjordan.github.io/posts/muon. The tests hold it against `torch.optim.Muon`.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mnist_cli.config.schema import AdamWOptimizer, MuonOptimizer
from mnist_cli.errors import UsageError

KERNEL = 4  # dimensions of the kernel of a convolution


# The shape of a matrix; coefficients, steps and eps of what makes it orthogonal.
_Alike = tuple[torch.Size, tuple[float, float, float], int, float]


def parts(
    config: MuonOptimizer, shapes: Mapping[str, torch.Size]
) -> list[tuple[AdamWOptimizer | MuonOptimizer, list[str]]]:
    """Which optimizer updates which parameters.

    Args:
        config: of Muon and, for the rest, of AdamW.
        shapes: of the parameters of one replica, in the order of its layers.

    Raises:
        UsageError: there is no hidden matrix.
    """
    matrices = [name for name, shape in shapes.items() if len(shape) > 1]
    first_is_kernel = matrices and len(shapes[matrices[0]]) == KERNEL
    hidden = matrices[1 if first_is_kernel else 0 : -1]
    if not hidden:
        raise UsageError(
            "optimizer muon: this model has no hidden matrix, which is what it is for",
            "take another optimizer, such as adamw, or a deeper model",
        )
    rest = AdamWOptimizer(
        name="adamw",
        lr=config.adamw_lr,
        betas=config.adamw_betas,
        eps=config.adamw_eps,
        weight_decay=config.adamw_weight_decay,
    )
    return [(rest, [name for name in shapes if name not in hidden]), (config, hidden)]


def orthogonalize(
    matrices: Tensor, coefficients: Sequence[float], steps: int, eps: float
) -> Tensor:
    """The nearest orthogonal matrices, nearly: singular values become about 1.

    A Newton-Schulz iteration with a polynomial of degree 5, in the type of the matrices, where
    torch takes bfloat16: so a replica does not depend on the others.

    Args:
        matrices: shape (N, rows, columns).
        coefficients: of the polynomial.
        steps: how many times it is applied.
        eps: the smallest norm to divide by.
    """
    a, b, c = coefficients
    wide = matrices.mT if matrices.shape[1] > matrices.shape[2] else matrices
    norms = wide.flatten(1).norm(dim=1).clamp(min=eps)  # no singular value is larger
    wide = wide / norms[:, None, None]
    for _ in range(steps):
        gram = wide @ wide.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        wide = torch.baddbmm(wide, polynomial, wide, beta=a)
    return wide.mT if matrices.shape[1] > matrices.shape[2] else wide


def update_scale(adjust_lr_fn: str | None, rows: int, columns: int) -> float:
    """What the learning rate of a matrix is multiplied by, as `torch.optim.Muon` has it."""
    if adjust_lr_fn == "match_rms_adamw":
        return 0.2 * math.sqrt(max(rows, columns))
    ratio = rows / columns
    return math.sqrt(ratio if adjust_lr_fn == "spectral_unclamped" else max(1.0, ratio))


def add_momentum(
    config: MuonOptimizer, gradients: Sequence[Tensor], buffers: Sequence[Tensor]
) -> None:
    """Turns gradients into momenta (of Nesterov's kind, if so set), both in place."""
    for gradient, buffer in zip(gradients, buffers, strict=True):
        buffer.lerp_(gradient, 1 - config.momentum)
        gradient.lerp_(buffer, config.momentum if config.nesterov else 1.0)


class Orthogonalizer:
    """Turns momenta into the updates that a learning rate is multiplied by.

    Args:
        momenta: of every replica and matrix, in the shape of the parameter, changed in place; and
            the settings.
    """

    def __init__(self, momenta: Sequence[tuple[MuonOptimizer, Tensor]]) -> None:
        self._batches: dict[_Alike, list[tuple[Tensor, float]]] = {}
        for config, momentum in momenta:
            matrix = momentum.flatten(1)
            alike = matrix.shape, config.ns_coefficients, config.ns_steps, config.eps
            scale = update_scale(config.adjust_lr_fn, *matrix.shape)
            self._batches.setdefault(alike, []).append((matrix, scale))

    def __call__(self) -> None:
        """Does all replicas and all matrices of one shape together."""
        for (_, coefficients, steps, eps), batch in self._batches.items():
            matrices = torch.stack([matrix for matrix, _ in batch])
            updates = orthogonalize(matrices, coefficients, steps, eps)
            for (matrix, scale), update in zip(batch, updates, strict=True):
                torch.mul(update, scale, out=matrix)
