"""The Python API: what it returns, how it fails, what it leaves of the process that calls it."""

import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mnist_cli as mnist
from mnist_cli.errors import CheckpointError, RunError, UsageError
from mnist_cli.runs import checkpoint as checkpoints
from mnist_cli.runs.run import commit

README = Path(__file__).parents[1] / "README.md"
SMALL: dict[str, Any] = {"data": {"name": "synthetic", "size": 140}, "quiet": True}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_these_are_the_public_names_and_importing_them_is_cheap() -> None:
    assert set(mnist.__all__) == {"Run", "__version__", "load", "search", "sweep", "train"}
    assert all(getattr(mnist, name) for name in mnist.__all__)
    with pytest.raises(AttributeError, match="trian"):
        mnist.trian  # noqa: B018
    code = (
        "import sys, mnist_cli; assert not {'torch', 'numpy', 'rich', 'pydantic'} & {*sys.modules}"
    )
    code += "; mnist_cli.train; assert not {'torch', 'rich'} & {*sys.modules}"
    environment = {"PYTHONPATH": str(README.parent)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def test_a_trained_run_is_the_run_of_its_folder(tmp_path: Path) -> None:
    dotted: dict[str, Any] = {"train.seed": 3}
    run = mnist.train("mlp", lr=1e-2, epochs=2, model__width=16, **dotted, **SMALL)
    assert (run.name, run.path, run.status) == ("mlp-0001", tmp_path / "runs/mlp-0001", "finished")
    assert (run.config.optimizer.lr, run.config.train.seed) == (1e-2, 3)
    assert [row["epoch"] for row in run.metrics] == [1, 2]
    best = max(run.metrics, key=lambda row: (row["val/acc"], -row["val/loss"]))
    assert run.summary["best"]["epoch"] == best["epoch"]
    again = mnist.load("mlp-0001")
    assert (again, again.metrics) == (run, run.metrics)
    assert mnist.load(run.path).path == run.path


def test_the_model_and_the_predictions_are_those_of_the_best_weights() -> None:
    run = mnist.train("mlp", epochs=1, lr=1e-2, model__dropout=0.5, **SMALL)
    saved = checkpoints.load(run.path / "best.pt")
    model = run.model()
    assert not model.training
    assert all(torch.equal(value, saved.model[name]) for name, value in model.state_dict().items())
    images = np.random.default_rng(0).integers(0, 256, (5, 28, 28), np.uint8)
    with torch.no_grad():
        expected = model(torch.from_numpy(images)[:, None] / 255).softmax(-1).numpy()
    np.testing.assert_allclose(run.predict(images), expected, atol=1e-6)
    np.testing.assert_allclose(run.predict(images[:, None]), expected, atol=1e-6)
    assert run.predict(images[:0]).shape == (0, 10)
    for wrong in (images / 255, images[:, :27], images[0]):
        with pytest.raises(UsageError, match="uint8"):
            run.predict(wrong)


def test_a_sweep_has_its_runs_and_is_made_of_the_axes() -> None:
    config = {"model": "logistic", "data": SMALL["data"]}
    grid = {"momentum": (0.0, 0.9)}
    sweep = mnist.sweep(
        config, lrs=[1e-3, 1e-2], seeds=2, grid=grid, epochs=1, optimizer__name="sgd", quiet=True
    )
    assert sweep.name == "logistic-sweep-0001"
    assert len(sweep.runs) == len(sweep.metrics) == len(sweep.summary["trials"]) == 8
    assert {row["run"] for row in sweep.metrics} == {run.name for run in sweep.runs}
    settings = {(run.config.optimizer.lr, run.config.train.seed) for run in sweep.runs}
    assert settings == {(1e-3, 0), (1e-3, 1), (1e-2, 0), (1e-2, 1)}
    assert "test/acc" in sweep.summary["best"]
    seeds = mnist.train(config, seeds=[3, 5], epochs=1, quiet=True)
    assert seeds.name == "logistic-seeds-0001"
    assert [run.config.train.seed for run in seeds.runs] == [3, 5]
    assert "test/acc" not in seeds.summary["best"]


def test_errors_are_those_of_the_command_line() -> None:
    wrong: list[tuple[Any, dict[str, Any], str]] = [
        ("mlp", {"lr": -0.1}, r"lr=-0.1: optimizer.lr: must be greater than 0"),
        ("mlp", {"model__widht": 3}, r"model.widht=3: model.widht: unknown setting"),
        ("mpl", {}, "did you mean 'mlp'"),
        ({"modle": "mlp"}, {}, "modle: unknown setting"),
        ({"model": torch}, {}, "not a config"),
        ("mlp", {"lr": torch}, "lr: must be a plain value"),
        ("mlp", {"name": "a/b"}, "name"),
    ]
    for config, settings, words in wrong:
        with pytest.raises(UsageError, match=words):
            mnist.train(config, **settings)
    with pytest.raises(UsageError, match=r"optimizer.lr is set, but mlp sweeps it"):
        mnist.sweep("mlp", lr=0.1)
    with pytest.raises(UsageError, match="no run 'mlp-0001'"):
        mnist.load("mlp-0001")
    assert not Path("runs").exists()
    with pytest.raises(RunError, match="mlp-0001 diverged"):
        mnist.train("mlp", lr=1e38, optimizer__name="sgd", epochs=1, **SMALL)
    assert mnist.load("mlp-0001").status == "diverged"
    with pytest.raises(CheckpointError, match="mlp-0001 has no checkpoint"):
        mnist.load("mlp-0001").model()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_is_raised_saved_and_the_handlers_are_put_back(
    monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]

    def interrupt(*arguments: Any) -> None:
        commit(*arguments)
        signal.raise_signal(number)

    monkeypatch.setattr("mnist_cli.sweeps.driver.commit", interrupt)
    kind = KeyboardInterrupt if number is signal.SIGINT else SystemExit
    with pytest.raises(kind):
        mnist.train("logistic", epochs=3, **SMALL)
    run = mnist.load("logistic-0001")
    assert (run.status, len(run.metrics)) == ("interrupted", 1)
    monkeypatch.undo()
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_it_works_in_another_thread_and_says_nothing_when_quiet(
    capfd: pytest.CaptureFixture[str],
) -> None:
    found: list[mnist.Run] = []
    thread = threading.Thread(
        target=lambda: found.append(mnist.train("logistic", epochs=1, **SMALL))
    )
    thread.start()
    thread.join()
    assert found[0].status == "finished"
    assert capfd.readouterr() == ("", "")
    mnist.train("logistic", epochs=1, data=SMALL["data"])
    said = capfd.readouterr()
    assert "epoch 1/1" in said.err
    assert not said.out


@pytest.mark.real_data
@pytest.mark.usefixtures("real_mnist")
def test_the_examples_of_the_readme_run(capsys: pytest.CaptureFixture[str]) -> None:
    _, section = README.read_text().split("## From Python\n")
    (code,) = re.findall(r"```python\n(.*?)```", section.partition("\n## ")[0], re.DOTALL)
    exec(compile(code, "README.md", "exec"), {})
    assert "optimizer.lr: must be greater than 0" in capsys.readouterr().out


def test_a_search_is_that_of_the_command(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    space: dict[str, Any] = {"lr": "log:1e-4:1e-1", "optimizer.name": ["adam", "sgd"]}
    found = mnist.search("mlp", space=space, trials=4, sampler="random", epochs=1, **SMALL)
    assert (found.name, found.status, len(found.runs)) == ("mlp-search-0001", "finished", 4)
    assert {run.config.optimizer.name for run in found.runs} <= {"adam", "sgd"}
    assert all(1e-4 <= run.config.optimizer.lr <= 1e-1 for run in found.runs)
    assert "test/acc" in found.summary["best"]
    with pytest.raises(UsageError, match="nothing to search"):
        mnist.search("mlp", **SMALL)
