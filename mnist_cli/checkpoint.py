"""Checkpoints: one run's weights with all it takes to use them, and no code.

A checkpoint is a `torch.save` archive of tensors and plain values. It is read with
`weights_only=True` and nothing else, after the archive has been looked at and before its contents
are believed: names, shapes and types are checked, and a digest over every tensor, because torch
does not check its archives' sums and a flipped bit would otherwise be a different accuracy.
"""

import hashlib
import io
import json
import pickle
import stat
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mnist_cli import files
from mnist_cli.errors import CheckpointError

FORMAT = "mnist-checkpoint"
SCHEMA = 1
MAX_BYTES = 2 << 30
MAX_ENTRIES = 10_000


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
    files.replace(path, buffer.getvalue())


def load(path: Path) -> Checkpoint:
    """Reads a checkpoint that can be trusted, onto the CPU.

    Raises:
        CheckpointError: it is not there, or not one of ours, or not whole.
    """
    content = read_archive(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{path}: a torch file, but not a checkpoint of mnist")
    if content.get("schema") != SCHEMA:
        raise CheckpointError(
            f"{path}: made by another version of mnist "
            f"(checkpoint schema {content.get('schema')!r}, this version reads {SCHEMA})",
            "update with: pip install --upgrade mnist-cli",
        )
    wanted = Checkpoint.__dataclass_fields__
    body = {key: content[key] for key in wanted if key in content}
    if len(body) < len(wanted) or digest(body) != content.get("digest"):
        raise CheckpointError(
            f"{path}: damaged: its contents do not match the digest saved with them",
            "take another checkpoint, or train again",
        )
    for name, tensor in body["model"].items():
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{path}: {name} has values that are not finite")
    return Checkpoint(**body)


def read_archive(path: Path) -> Any:
    """The tensors and plain values in a file of `torch.save`, on the CPU; no code of it runs.

    Raises:
        CheckpointError: it is not there, or not such a file, or asks for anything else.
    """
    look_at_file(path)
    _look_at_archive(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, ValueError, EOFError, KeyError, OSError) as error:
        raise CheckpointError(
            f"{path}: not a checkpoint that can be read safely: {_first_line(error)}",
            "checkpoints hold tensors and plain values; anything else is refused",
        ) from error


def fit(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Loads a checkpoint's weights into a plain module.

    Raises:
        CheckpointError: they are not this module's, naming the first that differs.
    """
    own = model.state_dict()
    for name, value in own.items():
        if name not in checkpoint.model:
            raise CheckpointError(f"checkpoint has no {name}, which the model of its config has")
        found = tuple(checkpoint.model[name].shape)
        if found != tuple(value.shape):
            raise CheckpointError(
                f"checkpoint: {name} has shape {found}, "
                f"but in the model of its config {tuple(value.shape)}"
            )
    for name in checkpoint.model.keys() - own.keys():
        raise CheckpointError(f"checkpoint has {name}, which the model of its config has not")
    model.load_state_dict(checkpoint.model)


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
    try:
        status = path.stat()
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode):
        kind = "a directory" if stat.S_ISDIR(status.st_mode) else "not a regular file"
        raise CheckpointError(f"{path}: {kind}, not a checkpoint")
    if status.st_size > MAX_BYTES:
        raise CheckpointError(f"{path}: {status.st_size:,} bytes is too large for a checkpoint")


def _look_at_archive(path: Path) -> None:
    """Refuses what torch should not even open: a bomb, an archive with room for tricks."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise CheckpointError(
            f"{path}: not a checkpoint: {_first_line(error)}",
            "give the best.pt or last.pt of a run; `mnist runs list` shows the runs",
        ) from error
    pickles = [entry for entry in entries if entry.filename.endswith(".pkl")]
    total = sum(entry.file_size for entry in entries)
    if (
        len(entries) > MAX_ENTRIES
        or len(pickles) != 1
        or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
        or total > path.stat().st_size
    ):
        raise CheckpointError(f"{path}: not an archive as checkpoints are saved in")


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
