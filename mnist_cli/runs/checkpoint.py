"""Checkpoints: one run's weights with all it takes to use them, and no code.

A checkpoint is a `torch.save` archive of tensors and plain values. It is read with
`weights_only=True` and nothing else, after the CRCs of the archive were checked: torch writes them
and does not check them, and a flipped bit would otherwise be a different accuracy. It is used after
its names, types and shapes were compared with the model of its config.
"""

import io
import json
import re
import shlex
import stat
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from mnist_cli import config as configs
from mnist_cli.config import Config, FileModel
from mnist_cli.data import durable
from mnist_cli.data.dataset import form
from mnist_cli.errors import CheckpointError, UsageError, in_words, printable
from mnist_cli.models.modules import build

FORMAT = "mnist-checkpoint"
SCHEMA = 2  # 1 had a digest of its own, and every epoch's record in `resume`
MAX_BYTES = 2 << 30
MAX_TOKENS = 100_000  # of a config, in JSON
HINT = "give the best.pt or last.pt of a run; `mnist runs list` shows the runs"

Values = dict[str, Any]  # plain values and tensors


@dataclass(frozen=True)
class Checkpoint:
    """The state of one run after one epoch.

    Attributes:
        config: the resolved config, plain values.
        epoch: epochs done.
        step: steps done.
        metrics: that epoch's record.
        model: the plain module's state dict.
        data: what it was trained on, as in `meta.json`, the shape of an image and the classes
            included; empty in checkpoints of earlier versions.
        resume: what resuming needs besides; empty in a checkpoint that is only for using.
    """

    config: Values
    epoch: int
    step: int
    metrics: Values
    model: dict[str, Tensor]
    data: Values = field(default_factory=dict)
    resume: Values = field(default_factory=dict)

    @property
    def form(self) -> tuple[tuple[int, int, int], tuple[str, ...]]:
        """The shape (channels, height, width) of an image and the name of each class."""
        return _form(self.data, configs.load_saved(self.config, "its config"))


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Writes a checkpoint in place of the one at `path`, or of none.

    Raises:
        OSError: it could not be written; the old one is as it was.
    """
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, "schema": SCHEMA, **vars(checkpoint)}, buffer)
    durable.replace(path, buffer.getvalue())


def load(path: Path) -> Checkpoint:
    """Reads a checkpoint that can be trusted, onto the CPU.

    Raises:
        CheckpointError: it is missing, not a checkpoint of mnist, or damaged, or its tensors are
            not those of the model in its config.
    """
    try:
        content = read_archive(read_file(path))
    except ValueError as error:
        why = printable(str(error), keep="")[:300]
        raise CheckpointError(f"{path}: not a checkpoint that can be read: {why}", HINT) from error
    if not isinstance(content, dict) or content.get("format", "") != FORMAT:
        raise CheckpointError(
            f"{path}: saved by torch, but not a checkpoint of mnist",
            f"make it one with: mnist import {shlex.quote(str(path))} --config CONFIG",
        )
    if wrong := _misfit(content):
        hint = "take another checkpoint, train again, or: pip install --upgrade mnist-cli"
        raise CheckpointError(f"{path}: {printable(wrong, keep='')[:300]}", hint)
    return Checkpoint(**{key: content[key] for key in Checkpoint.__dataclass_fields__})


def fit(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Loads a checkpoint's weights into a plain module, which takes on their precision.

    Raises:
        CheckpointError: they are not this module's, naming the first that differs.
    """
    if wrong := difference(model.state_dict(), checkpoint.model):
        raise CheckpointError(f"checkpoint: {wrong}", "is it the checkpoint of another run?")
    model.to(next(t.dtype for t in checkpoint.model.values() if t.is_floating_point()))
    model.load_state_dict(checkpoint.model)


def read_file(path: Path) -> bytes:
    """The content of a regular file of a size that weights can have; nothing else is opened.

    Raises:
        CheckpointError: it is missing, empty, too large, or no regular file, or cannot be read.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            wrong = "a directory" if stat.S_ISDIR(status.st_mode) else "not a regular file"
        elif not 0 < status.st_size <= MAX_BYTES:
            wrong = f"a file of {status.st_size:,} bytes"
        else:
            return path.read_bytes()
    except (OSError, ValueError) as error:
        wrong = getattr(error, "strerror", None) or str(error)
    raise CheckpointError(f"{path}: {wrong}, not a checkpoint", HINT)


def read_archive(data: bytes) -> object:
    """The tensors and plain values in a file of `torch.save`, on the CPU; no code of it runs.

    Raises:
        ValueError: it is not such a file, is damaged, or holds anything else.
    """
    try:
        _check_archive(data)
        with warnings.catch_warnings(action="ignore"):  # of what is refused later
            content: object = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # on a damaged file these readers raise anything
        # Torch's own words advise to read the file without this protection.
        code = re.search(r"GLOBAL (\S+)", str(error))
        why = f"it asks for {code[1]}, which is code" if code else in_words(error).split(". ")[0]
        raise ValueError(why) from error
    return content


def is_dense(value: object) -> TypeGuard[Tensor]:
    """Whether a value is a tensor on the CPU whose every number is there, none of them repeated."""
    return (
        isinstance(value, Tensor)
        and value.layout is torch.strided
        and value.device.type == "cpu"
        and value.nbytes <= value.untyped_storage().nbytes()
    )


def _check_archive(data: bytes) -> None:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for entry in archive.infolist():
            # No CRC covers the attributes: torch does not fill the memory of what is a directory.
            if entry.compress_type or entry.compress_size != entry.file_size or entry.external_attr:
                raise ValueError(f"{entry.filename} is not stored as torch stores files")
        if damaged := archive.testzip():
            raise ValueError(f"{damaged} is damaged")


def _misfit(content: Values) -> str | None:
    """Why what a file holds is not a checkpoint with weights of its config's model, if so."""
    schema = content.get("schema")
    if isinstance(schema, int) and schema > SCHEMA:
        return f"made by a newer version of mnist (checkpoint schema {schema})"
    content.setdefault("data", {})
    for key in ("schema", *Checkpoint.__dataclass_fields__):
        kind = int if key in ("schema", "epoch", "step") else dict
        if not isinstance(content.get(key), kind):
            return f"damaged: {key} is not what a checkpoint has there"
    try:
        # A list can hold one list, or itself, any number of times.
        tokens = json.JSONEncoder().iterencode([content["config"], content["data"]])
        if sum(1 for _ in islice(tokens, MAX_TOKENS)) == MAX_TOKENS:
            return "its config or data is longer than any config"
        config = configs.load_saved(content["config"], "config")
        precision = config.train.precision
        kept = torch.float64 if precision == "fp64" else torch.float32  # whatever products are in
        own: Mapping[str, Tensor] = content["model"]  # a file's, held against it when that is run
        shape, classes = _form(content["data"], config)
        if not isinstance(config.model, FileModel):
            with torch.device("meta"):  # without memory, of which a config can ask for any amount
                model = build(config.model, shape, len(classes), config.train.seed)
            own = model.to(kept).state_dict()
    except (UsageError, RuntimeError, TypeError, ValueError, KeyError) as error:
        return f"its config cannot be used: {in_words(error)}"
    for name, tensor in content["model"].items():
        if not isinstance(name, str) or not is_dense(tensor):
            return f"{name} is not a named tensor with all its numbers"
        if name in own and tensor.dtype is not own[name].dtype:
            return f"{name} is {tensor.dtype}, but its config says {precision}"
        if not torch.isfinite(tensor).all():
            return f"{name} has values that are not finite"
    return difference(own, content["model"])


def _form(data: Values, config: Config) -> tuple[tuple[int, int, int], tuple[str, ...]]:
    if not data:
        return form(config.data)
    channels, height, width = map(int, data["shape"])
    return (channels, height, width), tuple(map(str, data["classes"]))


def difference(own: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str | None:
    """The first difference in name or shape between the tensors of a model and others."""
    for name in [*own, *found]:
        shapes = [tuple(each[name].shape) if name in each else None for each in (own, found)]
        if shapes[1] is None:
            return f"it has no {name} of shape {shapes[0]}, which the config's model has"
        if shapes[0] is None:
            return f"it has {name} of shape {shapes[1]}, which the config's model has not"
        if shapes[0] != shapes[1]:
            return f"{name} has shape {shapes[1]}, but in the config's model {shapes[0]}"
    return None
