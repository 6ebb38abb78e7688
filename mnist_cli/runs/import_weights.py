"""Weights trained elsewhere, made into an ordinary checkpoint of a run.

Four formats are read, told apart by what is in the file: a pickled dict of NumPy arrays, `.npz`,
`.safetensors`, and a state dict saved by `torch.save`. None of them can run code here: pickles go
through a reader that builds arrays and nothing else, and torch's through `weights_only`.
"""

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from mnist_cli.config import Config, FileModel
from mnist_cli.data import pickles
from mnist_cli.data.dataset import form
from mnist_cli.engine.stack import PRECISIONS
from mnist_cli.errors import CheckpointError, in_words, printable
from mnist_cli.models.modules import build
from mnist_cli.runs import checkpoint as checkpoints
from mnist_cli.runs import store
from mnist_cli.runs.checkpoint import Checkpoint
from mnist_cli.runs.run import record_import
from mnist_cli.runs.store import RunDirectory

Format = Literal["pickle", "npz", "safetensors", "torch"]

HINT = (
    "what is read: a pickled dict of NumPy arrays, .npz, .safetensors, a state dict of torch.save"
)


@dataclass(frozen=True)
class Weights:
    """Named arrays, as a file has them.

    Attributes:
        path: the file.
        format: what it was found to be.
        sha256: its sum.
        tensors: the arrays by name, in the file's order, of any shape and type.
    """

    path: Path
    format: Format
    sha256: str
    tensors: dict[str, Tensor]


def read(path: Path) -> Weights:
    """Reads a file of weights; its format is found from its content.

    Raises:
        CheckpointError: it is missing, damaged, in none of the formats, or holds anything but named
            arrays of numbers.
    """
    data = checkpoints.read_file(path)
    found = _format(data)
    if found is None:
        raise CheckpointError(f"{path}: not a file of weights", HINT)
    try:
        match found:
            case "npz":
                content: object = _read_npz(data)
            case "safetensors":
                content = safetensors.torch.load(data)
            case "pickle":
                content = pickles.load(data)
            case "torch":
                content = checkpoints.read_archive(data)
        tensors = _tensors(content)
    except Exception as error:  # on a damaged file the libraries raise anything
        why = printable(in_words(error), keep="")[:300]
        raise CheckpointError(f"{path} ({found}): {why}", HINT) from error
    return Weights(path, found, hashlib.sha256(data).hexdigest(), tensors)


def fit(
    own: Mapping[str, Tensor], weights: Weights, dtype: torch.dtype
) -> tuple[dict[str, Tensor], bool]:
    """The state dict of a model with those weights.

    They have the model's own names and shapes; or `W1 b1 W2 b2 ...`, where `W` has shape (inputs,
    outputs), for a model whose parameters are the weights and biases of linear layers.

    Args:
        own: the state dict of the model.
        weights: the weights; float32 or float64.
        dtype: the type the state dict shall have.

    Returns:
        The state dict, and whether a number had to be rounded for it.

    Raises:
        CheckpointError: names, shapes or types are others, naming the first that differs; or there
            are values that are not finite.
    """
    given = weights.tensors
    by_number = "W1" not in own and not {"W1", "b1"}.isdisjoint(given)
    if by_number and max(value.dim() for value in own.values()) > 2:
        raise _misfit(
            weights, "W1, b1, ... are of linear layers, but the config's model has others"
        )
    names = [f"{'Wb'[n % 2]}{n // 2 + 1}" if by_number else name for n, name in enumerate(own)]
    # nn.Linear keeps its weight as (outputs, inputs).
    turned = {
        name: value.t() if by_number else value
        for name, value in zip(names, own.values(), strict=True)
    }
    if wrong := checkpoints.difference(turned, given):
        raise _misfit(weights, wrong)
    state: dict[str, Tensor] = {}
    rounded = False
    for name, own_name in zip(names, own, strict=True):
        value = given[name]
        like = own[own_name].dtype
        fitting = (torch.float32, torch.float64) if like.is_floating_point else (like,)
        if value.dtype not in fitting:
            kinds = "float32 or float64" if like.is_floating_point else like
            raise _misfit(weights, f"{name} is {value.dtype}, not {kinds}")
        kept = value.to(dtype if like.is_floating_point else like)
        if not torch.isfinite(kept).all():
            raise _misfit(weights, f"{name} has values that are not finite as {dtype}")
        rounded |= not torch.equal(kept.double(), value.double())
        # Copied: what torch.save wrote may be a view of something larger.
        state[own_name] = (kept.t() if by_number else kept).clone(
            memory_format=torch.contiguous_format
        )
    return state, rounded


def import_weights(weights: Weights, config: Config, root: Path) -> tuple[RunDirectory, bool]:
    """Makes weights a run that was not trained here, as ordinary as any in the runs directory.

    Args:
        weights: the weights.
        config: the config whose model they are of; its sweep is left out.
        root: the runs directory.

    Returns:
        The run's folder, and whether a weight had to be rounded.

    Raises:
        CheckpointError: the weights are not of the config's model. There is no folder then.
        UsageError: the folder cannot be made.
    """
    config = config.model_copy(update={"sweep": {}})
    own: Mapping[str, Tensor] = weights.tensors  # a file's, held against it when that is run
    if not isinstance(config.model, FileModel):
        shape, classes = form(config.data)
        own = build(config.model, shape, len(classes), config.train.seed).state_dict()
    state, rounded = fit(own, weights, PRECISIONS[config.train.precision].weights)
    folder = store.create(root, f"{config.name or 'run'}-imported")
    checkpoints.save(folder.best, Checkpoint(config.resolved(), 0, 0, {}, state))
    source = {"file": weights.path.name, "format": weights.format, "sha256": weights.sha256}
    record_import(folder, config, source)
    return folder, rounded


def _misfit(weights: Weights, why: str) -> CheckpointError:
    hint = "is it the config that the weights were trained with?"
    return CheckpointError(f"{weights.path}: {printable(why, keep='')[:300]}", hint)


# ---------------------------------------------------------------------------------------- formats


def _format(data: bytes) -> Format | None:
    """What a file is, by how it begins."""
    if data[:4] == b"PK\x03\x04":
        name_length = int.from_bytes(data[26:28], "little")  # of the first file in the archive
        return "npz" if data[30 : 30 + name_length].endswith(b".npy") else "torch"
    # A pickle read as such a length would be longer than any file.
    if data[8:9] == b"{" and int.from_bytes(data[:8], "little") <= len(data) - 8:
        return "safetensors"
    return "pickle" if data[:1] in (b"\x80", b"(", b"}", b"c") else None


def _read_npz(data: bytes) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
        if sum(entry.file_size for entry in archive.zip.infolist()) > checkpoints.MAX_BYTES:
            raise ValueError("unpacks to more than a checkpoint may have")
        return dict(archive)


def _tensors(content: object) -> dict[str, Tensor]:
    """Named arrays of NumPy or torch as dense tensors on the CPU."""
    if not isinstance(content, dict) or not content:
        raise ValueError(f"holds {type(content).__name__}, not named arrays")
    if content.get("format") == checkpoints.FORMAT:
        raise ValueError("is a checkpoint of mnist already: mnist eval --checkpoint takes it")
    tensors = {}
    for name, value in content.items():
        if isinstance(value, np.ndarray):
            # A copy, which can be written to, in this machine's byte order.
            value = torch.from_numpy(np.array(value, value.dtype.newbyteorder("=")))  # noqa: PLW2901
        if not isinstance(name, str) or not checkpoints.is_dense(value):
            raise ValueError(f"holds {name!r}, which is not an array whose every number is there")
        tensors[name] = value.detach()
    return tensors
