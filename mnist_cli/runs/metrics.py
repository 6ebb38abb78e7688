"""`metrics.jsonl`: the one place that holds all records of a run, and what a commit has of it."""

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

from mnist_cli.data import durable
from mnist_cli.errors import UsageError
from mnist_cli.runs.documents import finite

if TYPE_CHECKING:  # as it imports torch
    from mnist_cli.engine.loop import Record

REQUIRED = {"epoch", "lr", "train/loss", "train/acc", "val/loss", "val/acc"}  # of all epochs


class MetricsLog:
    """The file, and the length and the sum of its lines.

    A commit holds both for the lines it belongs to, so it costs the same after any number of
    epochs; whatever lies beyond that length was never committed.

    Args:
        path: the file, which is empty or not there.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._sum = hashlib.sha256()
        self._length = 0

    def append(self, record: Mapping[str, Any]) -> None:
        """Adds a record, flushed to the disk; what is not finite becomes null.

        Raises:
            OSError: it could not be written.
        """
        line = json.dumps(finite(record)).encode() + b"\n"
        durable.append(self._path, line)
        self._sum.update(line)
        self._length += len(line)

    def mark(self) -> dict[str, int | str]:
        """The length and the sum of all lines, for a commit."""
        return {"bytes": self._length, "sha256": self._sum.hexdigest()}

    @classmethod
    def recover(cls, path: Path, mark: Mapping[str, Any]) -> "tuple[Self, list[Record], int]":
        """The file as it was at a commit; what was added since is cut off.

        Args:
            path: the file.
            mark: what `mark` gave; empty for a run without a commit.

        Returns:
            The log, its records, and how many bytes were cut off.

        Raises:
            ValueError: lines that were committed are missing or damaged.
            OSError: it could not be read or cut.
        """
        log = cls(path)
        content = path.read_bytes() if path.is_file() else b""
        log._length = mark.get("bytes", 0)
        kept, extra = content[: log._length], content[log._length :]
        log._sum.update(kept)
        if mark and log._sum.hexdigest() != mark["sha256"]:
            raise ValueError("lines are missing or damaged")
        if extra:
            os.truncate(path, log._length)
        return log, read_records(kept, path), len(extra)


def figures_of(records: "Sequence[Record]", final: Mapping[str, float], metric: str) -> list[float]:
    """A metric epoch by epoch; the last one measured with the final weights, if it was."""
    found = [float(record[metric]) for record in records if metric in record]  # type: ignore[literal-required]
    return [*found[:-1], final[metric]] if metric in final else found


def read_records(content: bytes, path: Path) -> "list[Record]":
    """The records in whole lines of JSON; JSON has null for what was not finite.

    Raises:
        UsageError: a line is damaged.
    """
    records = []
    for number, line in enumerate(content.split(b"\n")[:-1], 1):
        with suppress(ValueError):
            record = json.loads(line)
            if isinstance(record, dict) and record.keys() >= REQUIRED:
                records.append({k: math.nan if v is None else v for k, v in record.items()})
        if len(records) < number:
            raise UsageError(f"{path}: line {number} is not the record of an epoch")
    return cast("list[Record]", records)
