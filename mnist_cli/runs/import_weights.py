"""Weights trained elsewhere, made into an ordinary checkpoint of a run.

Four formats are read, told apart by what is in the file: a pickled dict of NumPy arrays, `.npz`,
`.safetensors`, and a state dict saved by `torch.save`. None of them can run code here: pickles go
through a reader that builds arrays and nothing else, and torch's through `weights_only`.
"""

import hashlib
import io
import json
import re
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from mnist_cli.config import Config
from mnist_cli.data import pickles
from mnist_cli.data.dataset import form
from mnist_cli.engine.stack import PRECISIONS
from mnist_cli.errors import CheckpointError
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
# As NumPy writes it: what else a header may be in Python is not read, so nothing is evaluated.
NPY_HEADER = re.compile(
    rb"\{'descr': '([^']*)', 'fortran_order': (True|False), 'shape': \(([\d, ]*)\), \}\s*"
)
NPY_TYPES = re.compile(r"[<>|=](b1|[iu][1248]|f[248])")
SAFETENSORS_TYPES = {"F32": "<f4", "F64": "<f8"}
# The one number that torch.save began a file with before it wrote zip archives.
OLD_TORCH = 0x1950A86A20F9469CFC6C


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
        CheckpointError: it is not there, is damaged, is none of the formats, or holds anything but
            named arrays of numbers.
    """
    checkpoints.look_at_file(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from error
    found = _format(data)
    try:
        match found:
            case "npz":
                content: Any = _read_npz(data)
            case "safetensors":
                content = _read_safetensors(data)
            case "pickle":
                content = pickles.load(data)
            case "torch":
                content = checkpoints.read_archive(path)
            case None:
                raise CheckpointError(f"{path}: not a file of weights", HINT)
    except ValueError as error:
        raise CheckpointError(f"{path}: this {found} file {error}", HINT) from error
    if isinstance(content, int) and content == OLD_TORCH:
        again = "load it with torch and save it again: torch.save(torch.load(...), ...)"
        raise CheckpointError(f"{path}: a file of torch before version 1.6", again)
    if isinstance(content, dict) and content.get("format") == checkpoints.FORMAT:
        hint = f"use it as it is: mnist eval --checkpoint {path}"
        raise CheckpointError(f"{path}: a checkpoint of mnist already", hint)
    tensors = _tensors(content, path)
    return Weights(path, found, hashlib.sha256(data).hexdigest(), tensors)


def fit(model: nn.Module, weights: Weights, dtype: torch.dtype) -> tuple[dict[str, Tensor], bool]:
    """The state dict of a model with those weights.

    They have the model's own names and shapes; or `W1 b1 W2 b2 ...`, where `W` has shape (inputs,
    outputs), for a model whose parameters are the weights and biases of linear layers.

    Args:
        model: the model.
        weights: the weights; float32 or float64.
        dtype: the type the state dict shall have.

    Returns:
        The state dict, and whether a number had to be rounded for it.

    Raises:
        CheckpointError: names, shapes or types are others, naming the first that differs; or there
            are values that are not finite.
    """
    path, given = weights.path, weights.tensors
    state: dict[str, Tensor] = {}
    rounded = False
    wanted = _wanted(model, weights)
    for name, (own, shape, turned) in wanted.items():
        if name not in given:
            named = f" (the model's {own})" if own != name else ""
            raise CheckpointError(f"{path}: has no {name}{named}, which must have shape {shape}")
        value = given[name]
        if tuple(value.shape) != shape:
            raise CheckpointError(
                f"{path}: {name} has shape {tuple(value.shape)}, "
                f"but for the model of the config it must be {shape}",
                "is it the config that the weights were trained with?",
            )
        if value.dtype not in (torch.float32, torch.float64):
            kind = str(value.dtype).removeprefix("torch.")
            raise CheckpointError(f"{path}: {name} is {kind}, not float32 or float64")
        kept = value.to(dtype)
        if not torch.isfinite(kept).all():
            kind = str(dtype).removeprefix("torch.")
            raise CheckpointError(f"{path}: {name} has values that are not finite as {kind}")
        rounded |= not torch.equal(kept.double(), value.double())
        # Copied: what torch.save wrote may be a view of something larger.
        state[own] = (kept.T if turned else kept).clone(memory_format=torch.contiguous_format)
    if extra := [name for name in given if name not in wanted]:
        shape = tuple(given[extra[0]].shape)
        raise CheckpointError(
            f"{path}: has {extra[0]} of shape {shape}, which the model of the config has not"
        )
    return state, rounded


def adopt(weights: Weights, config: Config, root: Path) -> tuple[RunDirectory, bool]:
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
    shape, classes = form(config.data)
    model = build(config.model, shape, len(classes), config.train.seed)
    state, rounded = fit(model, weights, PRECISIONS[config.train.precision].weights)
    folder = store.create(root, f"{config.name or 'run'}-imported")
    checkpoints.save(folder.best, Checkpoint(config.resolved(), 0, 0, {}, state))
    source = {"file": weights.path.name, "format": weights.format, "sha256": weights.sha256}
    record_import(folder, config, source)
    return folder, rounded


# ------------------------------------------------------------------------------- names and shapes


def _wanted(model: nn.Module, weights: Weights) -> dict[str, tuple[str, tuple[int, ...], bool]]:
    """What a file must hold: by name the model's own name, the shape, and whether it is turned."""
    own = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    if "W1" in own or not {"W1", "b1"} & weights.tensors.keys():
        return {name: (name, shape, False) for name, shape in own.items()}
    wanted = {}
    for place, (name, shape) in enumerate(own.items()):
        kind, layer = name.rpartition(".")[2], place // 2 + 1
        if (kind, len(shape)) != (("weight", 2), ("bias", 1))[place % 2]:
            raise CheckpointError(
                f"{weights.path}: W1, b1, ... are of linear layers, which have weight and bias, "
                f"but the model of the config has {name} of shape {shape}",
                f"name them as the model does: {', '.join(own)}",
            )
        # nn.Linear keeps its weight as (outputs, inputs).
        wanted[f"{'bW'[kind == 'weight']}{layer}"] = name, shape[::-1], kind == "weight"
    return wanted


def _tensors(content: Any, path: Path) -> dict[str, Tensor]:
    """Named arrays of NumPy or torch as dense tensors on the CPU."""
    if not isinstance(content, dict) or not content:
        kind = f"a {type(content).__name__}" if not isinstance(content, dict) else "an empty dict"
        raise CheckpointError(f"{path}: holds {kind}, not named arrays", HINT)
    tensors = {}
    for name, value in content.items():
        if isinstance(value, np.ndarray):
            value = torch.from_numpy(np.array(value))  # noqa: PLW2901 - a copy that can be written
        if not isinstance(name, str) or type(value) not in (Tensor, nn.Parameter):
            raise CheckpointError(
                f"{path}: {name!r} is a {type(value).__name__}, not an array", HINT
            )
        if value.layout is not torch.strided or value.device.type != "cpu":
            raise CheckpointError(f"{path}: {name} is not an array whose every number is there")
        tensors[name] = value.detach()
    return tensors


# --------------------------------------------------------------------------------------- formats


def _format(data: bytes) -> Format | None:
    """What a file is, by how it begins."""
    if data[:4] == b"PK\x03\x04":
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                arrays = [name.endswith(".npy") for name in archive.namelist()]
        except (zipfile.BadZipFile, ValueError, NotImplementedError):
            return "torch"  # whose reader says what is wrong
        return "npz" if arrays and all(arrays) else "torch"
    # A pickle read as such a length would be longer than any file.
    if data[8:9] == b"{" and int.from_bytes(data[:8], "little") <= len(data) - 8:
        return "safetensors"
    return "pickle" if data[:1] in (b"\x80", b"(", b"}", b"c") else None


def _read_npz(data: bytes) -> dict[str, np.ndarray]:
    """The arrays of an .npz.

    NumPy's own reader makes room for as much as a header claims; here an array is as large as its
    member of the archive, and all of them no larger than a checkpoint may be.

    Raises:
        ValueError: it is anything but arrays of plain numbers.
    """
    arrays = {}
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > checkpoints.MAX_BYTES:
                raise ValueError("unpacks to more than a checkpoint may have")
            for entry in archive.infolist():
                name = entry.filename.removesuffix(".npy")
                if name in arrays:
                    raise ValueError(f"holds {name} twice")
                arrays[name] = _read_npy(archive.read(entry), name)
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError) as error:
        raise ValueError(f"is damaged: {error}") from error
    return arrays


def _read_npy(data: bytes, name: str) -> np.ndarray:
    """The array of an .npy file."""
    if data[:6] != b"\x93NUMPY" or data[6:7] not in (b"\x01", b"\x02"):
        raise ValueError(f"holds {name}, which is not an array of NumPy")
    start = 10 if data[6] == 1 else 12  # magic, version, and a length of two or of four bytes
    end = start + int.from_bytes(data[8:start], "little")
    header = NPY_HEADER.fullmatch(data[start:end])
    if header is None:
        raise ValueError(f"holds {name}, whose header is damaged")
    kind = header[1].decode("latin-1")
    if not NPY_TYPES.fullmatch(kind):
        raise ValueError(f"holds {name} of type {kind!r}, which is not plain numbers")
    shape = tuple(int(n) for n in header[3].split(b",") if n.strip())
    values = _array(data[end:], np.dtype(kind), shape, name)
    return values.reshape(shape, order="F" if header[2] == b"True" else "C")


def _read_safetensors(data: bytes) -> dict[str, np.ndarray]:
    """The arrays of a .safetensors: a length of 8 bytes, a header of JSON, and then the numbers.

    Raises:
        ValueError: it is anything but arrays of float32 and float64, one after the other, with
            nothing between them or after the last.
    """
    start = 8 + int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8:start])
    except (ValueError, RecursionError) as error:
        raise ValueError(f"has a damaged header: {error}") from error
    header.pop("__metadata__", None)
    arrays, end = {}, 0
    try:
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            kind, shape, (begin, stop) = entry["dtype"], entry["shape"], entry["data_offsets"]
            if any(type(n) is not int or n < 0 for n in (*shape, begin, stop)) or begin != end:
                raise ValueError(f"places {name} where it cannot be")
            if kind not in SAFETENSORS_TYPES:
                raise ValueError(f"holds {name} of type {kind}, which is not F32 or F64")
            values = _array(
                data[start + begin : start + stop], np.dtype(SAFETENSORS_TYPES[kind]), shape, name
            )
            arrays[name], end = values.reshape(shape), stop
    except (TypeError, KeyError) as error:
        raise ValueError("has a header that does not describe arrays") from error
    if end != len(data) - start:
        raise ValueError(f"is {len(data) - start:,} bytes of numbers, and describes {end:,}")
    return arrays


def _array(data: bytes, dtype: np.dtype[Any], shape: Sequence[int], name: str) -> np.ndarray:
    """Bytes as so many numbers, flat, in this machine's byte order."""
    if len(data) != prod(shape) * dtype.itemsize:
        raise ValueError(f"holds {len(data):,} bytes for {name} of shape {tuple(shape)}")
    return np.frombuffer(data, dtype).astype(dtype.newbyteorder("="))
