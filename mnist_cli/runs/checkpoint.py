"""Checkpoints: one run's weights with all it takes to use them, and no code.

A checkpoint is a `torch.save` archive of tensors and plain values. It is read with
`weights_only=True` and nothing else, after the archive has been looked at and before its contents
are believed: names, shapes and types are checked, and a digest over every tensor and value, because
torch does not check its archives' sums and a flipped bit would otherwise be a different accuracy.
"""

import hashlib
import io
import json
import mmap
import re
import shlex
import stat
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from mnist_cli import config as configs
from mnist_cli.config.document import printable
from mnist_cli.data import durable
from mnist_cli.data.dataset import form
from mnist_cli.errors import CheckpointError, UsageError
from mnist_cli.models.modules import build

FORMAT = "mnist-checkpoint"
SCHEMA = 1
MAX_BYTES = 2 << 30
MAX_PICKLE = 64 << 20  # everything but the numbers of the tensors
MAX_ENTRIES = 10_000
MAX_DEPTH = 20
NUMBERS = {
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.bool),
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
}


@dataclass(frozen=True)
class Checkpoint:
    """The state of one run after one epoch.

    Attributes:
        config: the resolved config, plain values.
        epoch: epochs done.
        step: steps done.
        metrics: that epoch's record.
        model: the plain module's state dict.
        resume: what continuing needs besides; empty in a checkpoint that is only for using.
    """

    config: dict[str, Any]
    epoch: int
    step: int
    metrics: dict[str, Any]
    model: dict[str, Tensor]
    resume: dict[str, Any] = field(default_factory=dict)


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Writes a checkpoint in place of the one at `path`, or of none.

    Raises:
        OSError: it could not be written; the old one is as it was.
    """
    content = vars(checkpoint)
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, "schema": SCHEMA, "digest": digest(content), **content}, buffer)
    durable.replace(path, buffer.getvalue())


def load(path: Path) -> Checkpoint:
    """Reads a checkpoint that can be trusted, onto the CPU.

    Raises:
        CheckpointError: it is not there, or not one of ours, or not whole, or its tensors are not
            those of the model in its config.
    """
    content = read_archive(path)
    if not isinstance(content, dict) or content.get("format", "") != FORMAT:
        raise CheckpointError(
            f"{path}: {_kind(content)} saved by torch, not a checkpoint of mnist",
            "weights trained elsewhere become one with: "
            f"mnist import {shlex.quote(str(path))} --config CONFIG",
        )
    if unfit := _unfit_to_touch(content, path.stat().st_size):
        raise _unsafe(path, f"it holds {unfit}")
    again = "take another checkpoint, or train again"
    schema = content.get("schema")
    schema = schema if isinstance(schema, int) else 0
    if schema > SCHEMA:
        raise CheckpointError(
            f"{path}: made by a newer version of mnist "
            f"(checkpoint schema {schema}, this version reads {SCHEMA})",
            "update with: pip install --upgrade mnist-cli",
        )
    wanted = Checkpoint.__dataclass_fields__
    body = {key: content[key] for key in wanted if key in content}
    if schema != SCHEMA or len(body) < len(wanted) or digest(body) != content.get("digest"):
        raise CheckpointError(
            f"{path}: damaged: its contents do not match the digest saved with them", again
        )
    # Whoever makes a file can make a digest too: what has one can still be nonsense.
    kinds = {"config": dict, "epoch": int, "step": int, "metrics": dict, "model": dict}
    for key, kind in (kinds | {"resume": dict}).items():
        if not isinstance(body[key], kind):
            raise CheckpointError(f"{path}: {key} is not what a checkpoint has there", again)
    # A state dict of torch's own kind has attributes besides, of which there is no digest.
    body["model"] = dict(body["model"])
    checkpoint = Checkpoint(**body)
    if wrong := _misfit(checkpoint):
        raise CheckpointError(f"{path}: {wrong}", again)
    for name, tensor in checkpoint.model.items():
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{path}: {name} has values that are not finite", again)
    return checkpoint


def read_archive(path: Path) -> Any:
    """The tensors and plain values in a file of `torch.save`, on the CPU; no code of it runs.

    Raises:
        CheckpointError: it is not there, or not such a file, or holds anything else.
    """
    look_at_file(path)
    try:
        with path.open("rb") as file:
            _look_at_archive(path, file)
            file.seek(0)
            with warnings.catch_warnings(action="ignore"):  # of what is refused later
                content = torch.load(file, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # on a damaged file its unpickler raises anything
        # Not torch's own words: they advise to read the file without this protection.
        asked = re.search(r"GLOBAL (\S+)", str(error))
        why = (
            f"asks for {printable(asked[1])[:100]}, which is code" if asked else "is damaged or odd"
        )
        raise _unsafe(path, f"its pickle {why}") from error
    return content


def fit(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Loads a checkpoint's weights into a plain module, which takes on their precision.

    Raises:
        CheckpointError: they are not this module's, naming the first that differs.
    """
    if wrong := _differing(model, checkpoint.model):
        raise CheckpointError(f"checkpoint: {wrong}", "is it the checkpoint of another run?")
    model.to(next(iter(checkpoint.model.values())).dtype)
    model.load_state_dict(checkpoint.model)


def _misfit(checkpoint: Checkpoint) -> str | None:
    """Why a checkpoint's tensors are not weights of the model in its config, if they are not."""
    try:
        config = configs.load_saved(checkpoint.config, "config")
        shape, classes = form(config.data)
        # Without memory for its weights, of which a config can ask for any number.
        with torch.device("meta"):
            model = build(config.model, shape, len(classes), config.train.seed)
    except UsageError as error:
        return f"its config cannot be used: {error.message.splitlines()[0]}"
    except (RuntimeError, TypeError) as error:
        return f"the model of its config cannot be: {printable(_first_line(error))}"
    precision = config.train.precision
    kept = torch.float64 if precision == "fp64" else torch.float32  # whatever products are in
    for name, tensor in checkpoint.model.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            return f"{_name(name)} is not a tensor with a name"
        if tensor.dtype is not kept:
            kind = str(tensor.dtype).removeprefix("torch.")
            return f"{_name(name)} is {kind}, but its config says {precision}"
    return _differing(model, checkpoint.model)


def _differing(model: nn.Module, state: Mapping[str, Tensor]) -> str | None:
    """The first difference in name or shape between a module's state and another."""
    own = model.state_dict()
    for name, value in own.items():
        if name not in state:
            return f"it has no {name}, which the model of its config has"
        found, wanted = tuple(state[name].shape), tuple(value.shape)
        if found != wanted:
            return f"{name} has shape {found}, but in the model of its config {wanted}"
    extra = next((name for name in state if name not in own), None)
    return extra and f"it has {_name(extra)}, which the model of its config has not"


def digest(value: Any) -> str:
    """SHA-256 over plain values and tensors (names, types, shapes and every byte)."""
    total = hashlib.sha256()
    _digest_into(total, value)
    return total.hexdigest()


def _digest_into(total: "hashlib._Hash", value: Any) -> None:
    # Every part is preceded by its kind and length, so two different values never read the same.
    match value:
        case Tensor():
            data = value.detach().to("cpu").contiguous()
            total.update(f"tensor {data.dtype} {tuple(data.shape)}".encode())
            total.update(b" that requires grad" * value.requires_grad)
            total.update(data.flatten().view(torch.uint8).numpy().data)
        case Mapping():
            total.update(f"mapping {len(value)}".encode())
            for key, item in value.items():
                _digest_into(total, key)
                _digest_into(total, item)
        case list() | tuple():
            total.update(f"sequence {len(value)}".encode())
            for item in value:
                _digest_into(total, item)
        case _:
            text = json.dumps(value)
            total.update(f"value {len(text)} {text}".encode())


def look_at_file(path: Path) -> None:
    """Refuses what should not even be opened.

    Raises:
        CheckpointError: it is not there, is no regular file, or is too large.
    """
    hint = "give the best.pt or last.pt of a run, or a file of weights"
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise CheckpointError(f"{path}: {why}", hint) from error
    if not stat.S_ISREG(status.st_mode):
        kind = "a directory" if stat.S_ISDIR(status.st_mode) else "not a regular file"
        raise CheckpointError(f"{path}: {kind}, not a checkpoint", hint)
    if status.st_size == 0:
        raise CheckpointError(f"{path}: an empty file, not a checkpoint", hint)
    if status.st_size > MAX_BYTES:
        raise CheckpointError(f"{path}: {status.st_size:,} bytes is too large for weights", hint)


def _look_at_archive(path: Path, file: BinaryIO) -> None:
    """Refuses what torch should not even open: a bomb, an archive with room for tricks."""
    try:
        if _crowded(file):
            raise ValueError(f"an archive of more than {MAX_ENTRIES:,} files")
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise CheckpointError(
            f"{path}: not a checkpoint: {_first_line(error)}",
            "give the best.pt or last.pt of a run; `mnist runs list` shows the runs",
        ) from error
    pickles = [entry for entry in entries if entry.filename.lower().endswith(".pkl")]
    if (
        len(pickles) != 1
        or pickles[0].file_size > MAX_PICKLE
        or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
        or sum(entry.file_size for entry in entries) > path.stat().st_size
    ):
        raise CheckpointError(
            f"{path}: not an archive as checkpoints are saved in",
            "give the best.pt or last.pt of a run, as it was written",
        )


def _crowded(file: BinaryIO) -> bool:
    """Whether an archive can have more entries than a checkpoint, found without listing them."""
    at, count = -1, 0
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        while count <= MAX_ENTRIES and (at := content.find(b"PK\1\2", at + 1)) >= 0:
            count += 1
    return count > MAX_ENTRIES


def _unfit_to_touch(content: Any, size: int) -> str | None:
    """What a file holds that is not to be computed with, if it does.

    A tensor can claim any shape over a few numbers, and lists can hold one list many times over:
    what a file of some size holds, unfolded, must be of about that size.
    """
    room = 4 * size  # two names for one tensor are fine
    pending: list[tuple[Any, int]] = [(content, 0)]
    while pending:
        value, depth = pending.pop()
        room -= 1
        if isinstance(value, Tensor):
            dense = value.layout is torch.strided and value.device.type == "cpu"
            if not dense or value.dtype not in NUMBERS or value.is_neg():
                return "a tensor that is not plain numbers"
            room -= value.numel() * value.element_size()
        elif isinstance(value, int) and value.bit_length() > 64:
            return "a whole number that is too long"
        elif isinstance(value, dict):
            pending += ((part, depth + 1) for item in value.items() for part in item)
        elif isinstance(value, list | tuple):
            pending += ((part, depth + 1) for part in value)
        elif not isinstance(value, str | int | float | None):
            return f"a {type(value).__name__}"
        if room < 0 or depth > MAX_DEPTH:
            return "far more than there is room for in it"
    return None


def _unsafe(path: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: not a checkpoint that can be read safely: {why}",
        "checkpoints hold tensors and plain values; anything else is refused",
    )


def _kind(content: Any) -> str:
    """What somebody else's file holds, in words."""
    if isinstance(content, Tensor):
        return "a tensor"
    if isinstance(content, dict) and any(isinstance(v, Tensor) for v in content.values()):
        return "a state dict"
    return f"a {type(content).__name__}"


def _name(name: Any) -> str:
    """A name out of a file, fit to be shown."""
    return printable(str(name))[:100]


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
