"""What the commands print under `--json`: the form of each document, as JSON Schema has it."""

from typing import Any, Literal, NotRequired, Required

import pydantic
from typing_extensions import TypedDict

from mnist_cli.runs.documents import ClassGrade, Meta, Summary


class Graded(TypedDict):
    """What the predictions of a split's images are worth."""

    data: str
    split: Literal["train", "val", "test"]
    n: int
    loss: float | None
    acc: float | None
    classes: list[ClassGrade]


class Evaluation(Graded):
    """What `eval` prints of a checkpoint."""

    checkpoint: str
    calibration: NotRequired[dict[str, Any]]  # see `grade.Calibration`
    plot: NotRequired[str]  # the reliability diagram


class Ensemble(Graded):
    """What `eval --ensemble` prints: of each run, and of the mean of their probabilities."""

    members: list[Evaluation]


# What `predict` prints of a picture: what it is taken for, or why it cannot be read.
Prediction = TypedDict(
    "Prediction",
    {
        "image": Required[str],
        "class": str,
        "probability": float,
        "probabilities": dict[str, float],
        "plot": str,
        "error": str,
    },
    total=False,
)


class ReportFile(TypedDict):
    """What `report` prints: the run and its page."""

    run: str
    report: str


class Failure(TypedDict):
    """Why there is no other document."""

    code: int
    message: str
    hint: str | None


class FailureDocument(TypedDict):
    """What every command prints for one that failed before it had anything to print."""

    error: Failure


class DrySweep(TypedDict):
    """What `sweep --dry-run` prints: of each run its stack and settings, and what divides them."""

    runs: list[dict[str, Any]]
    separated_by: list[str]


class ListedRun(TypedDict, total=False):
    """What `runs list` prints of a run or sweep, besides its summary."""

    name: Required[str]
    path: Required[str]
    status: Required[str]
    started: str | None
    tags: list[str] | None
    note: str | None
    settings: Required[dict[str, Any]]
    figures: Required[dict[str, float]]


class ShownRun(TypedDict):
    """What `runs show` prints: of the config, the settings that are not the defaults."""

    meta: Meta
    config: dict[str, Any]
    summary: Summary
    metrics: list[dict[str, Any]]


class Comparison(TypedDict):
    """What `runs compare` prints: the runs, by setting the values that differ, the picture."""

    runs: list[dict[str, Any]]
    differs: dict[str, list[Any]]
    plot: str | None


class File(TypedDict):
    """A file or folder that a command made or knows, by name where it has one."""

    path: str
    name: NotRequired[str]


class DataSet(TypedDict):
    """What `data list` prints of a data set: numbers of images, and where it is if it is ready."""

    name: str
    title: str
    train: int
    test: int
    path: str | None


class Verified(TypedDict):
    """What `data verify` prints of a data set: whether the sum of its images is published."""

    name: str
    published: bool


class ShownData(TypedDict):
    """What `data show` prints: the picture, and what is in it."""

    path: str
    split: Literal["train", "val", "test"]
    labels: list[str]


class Preset(TypedDict):
    """What `config list` prints of a shipped config."""

    name: str
    path: str
    description: str


class CheckedConfig(TypedDict):
    """What `config check` prints of a config: what is wrong, if anything is."""

    config: str
    error: str | None


class Spread(TypedDict):
    """Of several measurements: the middle one, and where the middle half of them lies."""

    median: float
    low: float
    high: float


class Timed(TypedDict):
    """What `bench` measured of a stack, or of the tutorial's loop, in microseconds."""

    name: str
    runs: int
    precision: str
    parts: list[int]  # how many runs each stack has
    processes: int
    threads: int
    step_us: Spread
    run_us: Spread
    limit_us: Spread | None
    speedup: float
    limit_share: float | None


class Work(TypedDict):
    """What `bench` measured of an experiment."""

    name: str
    experiment: str
    about: str
    batch_size: int
    optimizer: str
    variants: list[Timed]


class Bench(TypedDict):
    """What `bench` prints: what it was measured on, how often, and the figures."""

    machine: dict[str, Any]
    rounds: int
    works: list[Work]


PRINTED: dict[str, Any] = {
    "train": Summary,
    "sweep": Summary,
    "search": Summary,
    "sweep --dry-run": DrySweep,
    "resume": Summary,
    "import": Summary,
    "eval": Evaluation | list[Evaluation] | Ensemble,
    "predict": list[Prediction],
    "report": ReportFile,
    "plot": list[str],
    "bench": Bench,
    "runs list": list[ListedRun],
    "runs show": ShownRun,
    "runs compare": Comparison,
    "runs rm": list[str],
    "config list": list[Preset],
    "config check": list[CheckedConfig],
    "config copy": File,
    "data list": list[DataSet],
    "data fetch": File,
    "data verify": list[Verified],
    "data show": ShownData,
    "error": FailureDocument,
}
"""By command; `config show` prints what `config schema` describes."""


def json_schema(command: str) -> dict[str, Any]:
    """A JSON Schema of what a command of `PRINTED` prints; keys that it lacks may be there too."""
    return pydantic.TypeAdapter(PRINTED[command]).json_schema()
