"""Figures and models leave whole; a package that is missing is a sentence with what installs it."""

import csv
import json
import sys
import time
from pathlib import Path

import pytest
import torch

from mnist_cli import api
from mnist_cli.runs import export_model
from tests.conftest import Mnist

SMALL = ("data={name: synthetic, size: 140}", "--epochs", "1")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_table_has_every_epoch_and_the_settings_in_which_runs_differ(mnist: Mnist) -> None:
    assert mnist("train", SMALL[0], "--epochs", "2", "model.width=8").code == 0
    assert mnist("sweep", *SMALL, "--lrs", "1e-3,1e-2").code == 0
    assert mnist("runs", "export", "mlp-0001", "mlp-sweep-0001", "--to", "csv").code == 0
    rows = list(csv.DictReader(Path("runs.csv").read_text().splitlines()))
    assert [row["run"] for row in rows] == [
        *["mlp-0001"] * 2, "mlp-sweep-0001/trials/000", "mlp-sweep-0001/trials/001"
    ]  # fmt: skip
    assert [row["model.width"] for row in rows] == ["8", "8", "32", "32"]
    assert [row["optimizer.lr"] for row in rows[2:]] == ["0.001", "0.01"]
    assert "model.depth" not in rows[0]
    lines = Path("runs/mlp-0001/metrics.jsonl").read_text().splitlines()
    for row, line in zip(rows, lines, strict=False):
        assert {key: float(row[key]) for key in json.loads(line)} == json.loads(line)
    assert mnist("runs", "export", "mlp-0001", "--to", "csv").code == 2  # it is there


@pytest.mark.parametrize(
    ("module", "argv"),
    [
        ("pyarrow", ("runs", "export", "mlp-0001", "--to", "parquet")),
        ("torch.utils.tensorboard", ("runs", "export", "mlp-0001", "--to", "tensorboard")),
        ("torch.utils.tensorboard", ("train", *SMALL, "--tensorboard")),
        ("mlflow", ("runs", "export", "mlp-0001", "--to", "mlflow")),
        ("wandb", ("runs", "export", "mlp-0001", "--to", "wandb")),
        ("onnxscript", ("export", "mlp-0001", "--to", "onnx")),
    ],
)
def test_a_missing_package_is_a_sentence_that_says_what_installs_it(
    mnist: Mnist, monkeypatch: pytest.MonkeyPatch, module: str, argv: tuple[str, ...]
) -> None:
    assert mnist("train", *SMALL).code == 0
    monkeypatch.setitem(sys.modules, module, None)
    ended = mnist(*argv)
    assert ended.code == 2
    assert "not installed here" in ended.err
    assert "hint: pip install" in ended.err
    assert sorted(path.name for path in Path("runs").iterdir() if path.is_dir()) == ["mlp-0001"]


def test_parquet_and_tensorboard_hold_every_epoch(mnist: Mnist) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

    assert mnist("train", *SMALL).code == 0
    (own,) = api.load("mlp-0001").metrics
    for to in ("parquet", "tensorboard"):
        assert mnist("runs", "export", "mlp-0001", "--to", to).code == 0
    assert parquet.read_table("runs.parquet").to_pylist() == [{"run": "mlp-0001", **own}]
    events = accumulator.EventAccumulator("runs.tensorboard/mlp-0001").Reload()
    (found,) = events.Scalars("val/loss")
    assert (found.step, found.value) == (1, pytest.approx(own["val/loss"]))


@pytest.mark.filterwarnings("ignore::Warning")  # these packages warn of their own parts
def test_mlflow_and_wandb_take_every_epoch(mnist: Mnist) -> None:
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("wandb")

    assert mnist("train", *SMALL).code == 0
    (own,) = api.load("mlp-0001").metrics
    for to in ("mlflow", "wandb"):
        assert mnist("runs", "export", "mlp-0001", "--to", to).code == 0
    client = mlflow.MlflowClient("sqlite:///runs.mlflow")
    (experiment,) = client.search_experiments(filter_string="name = 'mnist'")
    (logged,) = client.search_runs([experiment.experiment_id])
    assert logged.data.params["model.depth"] == "2"
    (found,) = client.get_metric_history(logged.info.run_id, "val/acc")
    assert (found.step, found.value) == (1, own["val/acc"])
    assert list(Path("runs.wandb").rglob("*.wandb"))


def test_tensorboard_can_look_on(mnist: Mnist) -> None:
    """Also where a run goes on: an epoch stands there once."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

    assert mnist("train", *SMALL, "--seeds", "2", "--tensorboard").code == 0
    time.sleep(1)  # TensorBoard reads files in the order of the seconds in their names
    assert mnist("resume", "mlp-seeds-0001", "--epochs", "2", "--tensorboard").code == 0
    for run in api.load("mlp-seeds-0001").runs:
        events = accumulator.EventAccumulator(str(run.path / "tensorboard")).Reload()
        found = [(each.step, pytest.approx(each.value)) for each in events.Scalars("val/loss")]
        assert found == [(row["epoch"], row["val/loss"]) for row in run.metrics]


@pytest.mark.parametrize(
    "model",
    ["cnn", "resnet", *(pytest.param(m, marks=pytest.mark.slow) for m in ("lenet", "scratch"))],
)
def test_a_program_gives_the_logits_of_the_module(mnist: Mnist, model: str) -> None:
    assert mnist("train", "-c", model, *SMALL, "--name", "a").code == 0
    assert mnist("export", "a-0001", "--to", "pt2", "-o", "a.pt2").code == 0
    images = torch.rand(7, 1, 28, 28)
    found = torch.export.load("a.pt2").module()(images)
    own = api.load("a-0001").model()(images)
    torch.testing.assert_close(found, own, rtol=1e-4, atol=1e-5)
    assert mnist("export", "a-0001", "--to", "pt2", "-o", "a.pt2").code == 2  # it is there


def test_a_program_with_other_logits_is_not_written(
    mnist: Mnist, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert mnist("train", *SMALL).code == 0
    load = torch.export.load

    class Off:
        def __init__(self, file: object) -> None:
            self.program = load(file)  # type: ignore[arg-type]

        def module(self) -> object:
            return lambda images: self.program.module()(images) + 0.01

    monkeypatch.setattr(torch.export, "load", Off)
    ended = mnist("export", "mlp-0001", "--to", "pt2")
    assert ended.code == 5
    assert "off by 0.01" in ended.err
    assert not Path("model.pt2").exists()


def test_an_onnx_program_gives_the_logits_of_the_module(mnist: Mnist) -> None:
    for package in export_model.ONNX:
        pytest.importorskip(package)
    import onnxruntime

    assert mnist("train", "-c", "cnn", *SMALL, "--name", "a").code == 0
    assert mnist("export", "runs/a-0001/best.pt", "--to", "onnx").code == 0
    images = torch.rand(7, 1, 28, 28)
    (found,) = onnxruntime.InferenceSession("model.onnx").run(None, {"images": images.numpy()})
    own = api.load("a-0001").model()(images).detach()
    torch.testing.assert_close(torch.from_numpy(found), own, rtol=1e-4, atol=1e-5)
