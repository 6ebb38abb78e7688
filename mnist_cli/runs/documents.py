"""`meta.json` and `summary.json`: what they hold, how they are written and read back."""

import functools
import json
import math
import os
import platform
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Required, TypeVar

import pydantic
from typing_extensions import TypedDict  # pydantic, which needs it itself, asks for this one

from mnist_cli import __version__
from mnist_cli.data import durable

SCHEMA = 1
_Ended = Literal["finished", "diverged", "pruned", "failed", "interrupted", "imported"]
Status = Literal["waiting", "running"] | _Ended

_T = TypeVar("_T")
_STRICT = pydantic.ConfigDict(extra="allow", strict=True, allow_inf_nan=False)

# The best epoch of a run, or a trial of a sweep with its swept settings besides.
Row = TypedDict(
    "Row",
    {
        "run": str,
        "status": str,
        "epoch": int,
        "seconds": float,
        "val/loss": Required[float | None],
        "val/acc": Required[float | None],
        "test/loss": float,
        "test/acc": float,
    },
    total=False,
)
Row.__pydantic_config__ = _STRICT  # type: ignore[attr-defined]


def _refuse_paths(row: Row) -> Row:
    """Settings become parts of file names (of plots), so none may be a path."""
    if not all(key in Row.__annotations__ or re.fullmatch(r"[\w.]+", key) for key in row):
        raise ValueError("a swept setting is not the name of one")
    return row


_Row = Annotated[Row, pydantic.AfterValidator(_refuse_paths)]


@pydantic.with_config(_STRICT)
class Summary(TypedDict, total=False):
    """What `summary.json` holds: `run` and `epochs` of a run, `sweep` and `trials` of a sweep."""

    run: str
    sweep: str
    status: str
    epochs: int
    stopped: str  # why a run goes no further, however many epochs are asked for
    diverged: int  # the epoch in which the loss was no longer finite
    seconds: float
    precision: str
    best: _Row | None
    final: dict[str, float]
    trials: list[_Row]
    checkpoint: str | None


class Members(TypedDict):
    """A stack of a sweep, as a `StackPlan` has it."""

    members: list[int]
    threads: int


@pydantic.with_config(_STRICT)
class Meta(TypedDict, total=False):
    """What `meta.json` holds: how a run goes on, where and by whom it is trained."""

    schema: int
    status: Status
    started: str
    ended: str
    seconds: float
    pid: int
    host: str
    argv: list[str]
    git: str | None
    versions: dict[str, str]
    device: str
    threads: int
    attempts: list[dict[str, str]]  # host and device of each start, the last one last
    data: dict[str, Any]  # which, its sum, and what a model needs to know of it
    model: dict[str, str]  # the file that it is made in: path and sum
    weights: dict[str, str]  # of a run that was imported: the file they come from
    runs_in_stack: int
    error: str
    discarded: bool  # whether its checkpoints were removed once it had ended
    epochs: int  # how many there shall be, once more were asked for than at the start
    resumed: list[str]
    note: str  # what a person says of it
    tags: list[str]
    # Of a sweep:
    runs: int
    test: bool  # whether the winner is measured on the test split
    fuse: bool
    workers: int | None
    stacks: list[Members]  # how the runs are divided
    keep: str  # `best` if the checkpoints of runs that are no longer the best of their setting go
    batches: list[int]  # of a search, how many trials were asked for at a time
    rounds: list[list[Members]]  # likewise, what trained together from rung to rung
    storage: str  # likewise, where Optuna's own tools find it
    tested: dict[str, Any]  # what was measured on the test split, and of which weights


def new_meta(status: Status) -> Meta:
    """What a run says about itself when it starts: no environment, no secrets."""
    return {
        "schema": SCHEMA,
        "status": status,
        "started": now(),
        "argv": sys.argv[1:],
        **this_process(),
        "git": _git_commit(),
        "versions": {"mnist": __version__, "python": platform.python_version()},
    }


def this_process() -> Meta:
    """Who trains a run."""
    return {"pid": os.getpid(), "host": platform.node()}


def now() -> str:
    """The time, as ISO 8601 in UTC, to the microsecond."""
    return datetime.now(UTC).isoformat()


@functools.cache  # every run of a sweep asks
def _git_commit() -> str | None:
    """The commit of the working directory's repository, if it is in one.

    `rev-parse` runs nothing that the repository configures (no hooks, filters or monitors), which
    asking whether files have changed would.
    """
    command = ["git", "rev-parse", "HEAD"]
    try:
        return subprocess.check_output(  # noqa: S603
            command, stderr=subprocess.DEVNULL, text=True, timeout=5
        ).strip()
    except (OSError, subprocess.SubprocessError):
        return None


def write_json(path: Path, value: Any) -> None:
    """Saves a document, in place of what was there; what is not finite becomes null."""
    durable.replace(path, json.dumps(finite(value), indent=2).encode() + b"\n")


def finite(value: Any) -> Any:
    """The same value with null for every number that JSON cannot say."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(kind: type[_T], path: Path) -> _T | None:
    """What a JSON file holds, `Meta` or `Summary`; None if it is not there or damaged."""
    known: Any = kind
    try:
        return _validator(known).validate_json(path.read_bytes()) if path.is_file() else None
    except (OSError, pydantic.ValidationError):
        return None


@functools.cache  # takes some ten milliseconds, which commands that read none are spared
def _validator(kind: Any) -> pydantic.TypeAdapter[Any]:
    return pydantic.TypeAdapter(kind)


class ClassGrade(TypedDict):
    """How well a class is told from the others; None where there is nothing to count."""

    name: str
    n: int
    precision: float | None
    recall: float | None
