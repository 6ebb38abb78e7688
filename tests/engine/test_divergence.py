"""A run whose loss is no longer finite ends, and nobody else notices; gradients kept short."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from mnist_cli.config.schema import StepScheduler
from mnist_cli.data.dataset import Dataset
from mnist_cli.engine.loop import prepare, train
from mnist_cli.engine.optimizers import clip_grad_norm
from mnist_cli.engine.schedules import learning_rate
from mnist_cli.runs import checkpoint as checkpoints
from mnist_cli.runs.store import RunDirectory
from tests.conftest import Mnist
from tests.engine.test_stack import BATCH, assert_same, config_of, train_alone

SMALL = ("data={name: synthetic, size: 140, batch_size: 32}", "--epochs", "3", "optimizer=sgd")
# From epoch 2 on the learning rate is beyond anything, or as it was.
WILD, CALM = "1e38", "1.0"
LATE = "scheduler={name: step, step_size: 1, gamma: 1}"


def bits(run: RunDirectory) -> tuple[Any, ...]:
    records = [
        {key: value for key, value in record.items() if not key.startswith("time/")}
        for record in run.metrics()
    ]
    states = [checkpoints.load(path).model for path in (run.best, run.last)]
    return records, [{k: v.numpy().tobytes() for k, v in state.items()} for state in states]


# --------------------------------------------------------------------------------- a run diverges


def test_a_run_ends_where_it_diverges(mnist: Mnist, tmp_path: Path) -> None:
    late = ("scheduler={name: step, step_size: 1, gamma: 1e38}", "--epochs", "9")
    ended = mnist("train", *SMALL[:1], "optimizer=sgd", *late, "--json")
    assert ended.code == 1
    assert "error: mlp-0001 diverged: its loss is no longer finite in epoch 2\n" in ended.err
    run = RunDirectory(tmp_path / "runs" / "mlp-0001")
    assert (run.meta()["status"], run.summary()["status"]) == ("diverged", "diverged")
    assert run.summary()["diverged"] == ended.json["diverged"] == 2
    assert run.meta()["error"] == "the loss is no longer finite in epoch 2"
    first, second = run.metrics()
    assert math.isfinite(first["val/loss"])
    assert not math.isfinite(second["train/loss"] + second["val/loss"])
    assert run.summary()["best"]["epoch"] == 1
    for path in (run.best, run.last):
        assert checkpoints.load(path).epoch == 1
    assert mnist("eval", "--checkpoint", str(run.best)).code == 0
    assert "no longer finite in epoch 2" in mnist("runs", "show", "mlp-0001").out
    again = mnist("resume", "mlp-0001", "--json")
    assert (again.code, again.json["status"]) == (0, "diverged")  # there is nothing to go on with


def test_what_diverges_at_once_has_no_checkpoint(mnist: Mnist, tmp_path: Path) -> None:
    ended = mnist("train", *SMALL, "--lr", "1e38", "--json")
    assert (ended.code, ended.json["diverged"], ended.json["checkpoint"]) == (1, 1, None)
    run = RunDirectory(tmp_path / "runs" / "mlp-0001")
    assert not run.best.exists()
    assert not run.last.exists()


@pytest.mark.parametrize(
    "deal", [("--workers", "1"), ("--workers", "2"), ("--fuse", "off")], ids=" ".join
)
def test_neighbours_and_the_sweep_go_on_as_if_nothing_was(
    deal: tuple[str, ...], mnist: Mnist, tmp_path: Path
) -> None:
    for gamma in (CALM, WILD):
        axes = ("--seeds", "2", "--grid", f"scheduler.gamma=0.5,{gamma}")
        ended = mnist("sweep", *SMALL, LATE, "--lrs", "1e-1", *axes, *deal, "--json")
        assert ended.code == 0
    calm, wild = (RunDirectory(tmp_path / "runs" / f"mlp-sweep-000{n}") for n in (1, 2))
    statuses = [trial["status"] for trial in ended.json["trials"]]
    assert statuses == ["finished", "diverged"] * 2
    assert [trial["scheduler.gamma"] for trial in ended.json["trials"]] == [0.5, 1e38] * 2
    assert ended.json["status"] == "finished"
    for index in (0, 2):
        kept, other = bits(calm.trial(index)), bits(wild.trial(index))
        if "--fuse" in deal:
            assert kept == other
            continue
        # To the bit while they share a stack; what goes on without it is the same to rounding.
        assert kept[0][:2] == other[0][:2]
        assert kept[0][2] == pytest.approx(other[0][2], rel=1e-4)
    for index in (1, 3):
        assert wild.trial(index).summary()["diverged"] == 2
        # Up to there it was as it would have been.
        before, after = calm.trial(index).metrics(), wild.trial(index).metrics()
        assert before[0]["val/loss"] == after[0]["val/loss"]
        assert len(after) == 2
    assert ended.err.count("diverged: mlp-sweep-0002/trials/00") == 2


def test_only_when_all_diverge_the_sweep_has_failed(mnist: Mnist) -> None:
    ended = mnist("sweep", *SMALL, "--lrs", "1e38,1e-2", "--json")
    assert (ended.code, ended.json["status"]) == (0, "finished")
    ended = mnist("sweep", *SMALL, "--lrs", "1e38,1e37", "--workers", "2", "--json")
    assert (ended.code, ended.json["status"]) == (1, "diverged")
    assert ended.err.count("error: ") == 1
    assert ended.json["best"] is None


def test_a_sweep_that_all_left_has_the_best_of_what_was(mnist: Mnist, tmp_path: Path) -> None:
    """Every run diverges in its second epoch: what the first left can be used."""
    late = "scheduler={name: step, step_size: 1, gamma: 1e38}"
    ended = mnist("sweep", *SMALL, late, "--lrs", "1e-1,1e-2", "--json")
    assert (ended.code, ended.json["status"]) == (1, "diverged")
    assert ended.json["checkpoint"]
    assert mnist("eval", "--checkpoint", ended.json["checkpoint"]).code == 0


@pytest.mark.parametrize("kind", ["step", "multistep"])
def test_a_learning_rate_beyond_all_numbers_is_infinite(
    kind: str, mnist: Mnist, tmp_path: Path
) -> None:
    """Python raises where torch has infinity, and the neighbours would have failed with it."""
    schedule = StepScheduler(name="step", step_size=1, gamma=1e38)
    assert learning_rate(1e-3, schedule, 8) == pytest.approx(1e301)
    assert learning_rate(1e-3, schedule, 9) == math.inf
    more = "step_size: 1" if kind == "step" else f"milestones: {list(range(1, 12))}"
    late = f"scheduler={{name: {kind}, {more}, gamma: 1, interval: step}}"
    ended = mnist("sweep", *SMALL, late, "--lrs", "1e-2", "--grid", "scheduler.gamma=1,1e38")
    assert ended.code == 0
    sweep = RunDirectory(tmp_path / "runs" / "mlp-sweep-0001")
    assert [trial.status() for trial in sweep.trials()] == ["finished", "diverged"]
    for trial in sweep.trials():
        for line in (trial.path / "metrics.jsonl").read_text().splitlines():
            json.loads(line, parse_constant=pytest.fail)


# ----------------------------------------------------------------------------- gradients kept short


def gradients(replicas: int, seed: int, scale: float = 1.0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(4, 3), (4,), (2, 4, 3, 3), ()]
    return [
        scale * torch.randn(replicas, *shape, generator=generator, dtype=torch.float64)
        for shape in shapes
    ]


def clipped_alone(rows: list[torch.Tensor], limit: float) -> list[torch.Tensor]:
    """What torch makes of one run's gradients."""
    parameters = [torch.nn.Parameter(torch.zeros_like(row)) for row in rows]
    for parameter, row in zip(parameters, rows, strict=True):
        parameter.grad = row.clone()
    torch.nn.utils.clip_grad_norm_(parameters, limit)
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def test_each_run_is_clipped_as_torch_clips_it_alone() -> None:
    limits = [0.1, 1.0, 3.7, 1e6, math.inf]
    whole = gradients(len(limits), 0)
    found = [gradient.clone() for gradient in whole]
    clip_grad_norm(found, torch.tensor(limits, dtype=torch.float64))
    for r, limit in enumerate(limits):
        wanted = clipped_alone([gradient[r] for gradient in whole], limit)
        for mine, theirs in zip(found, wanted, strict=True):
            torch.testing.assert_close(mine[r], theirs, rtol=1e-14, atol=0)
    norms = torch.stack([f.reshape(len(f), -1).square().sum(1) for f in found]).sum(0).sqrt()
    assert norms[:3].tolist() == pytest.approx(limits[:3], rel=1e-5)
    for r in (3, 4):  # shorter than the limit: not a bit of it has changed
        assert all(torch.equal(f[r], w[r]) for f, w in zip(found, whole, strict=True))


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e200])
def test_what_is_not_finite_in_one_run_does_not_touch_another(bad: float) -> None:
    """1e200: finite itself, but its square is not, and so the norm is infinite."""
    limits = torch.tensor([1.0, 1.0, math.inf], dtype=torch.float64)
    calm = gradients(3, 1)
    wild = [gradient.clone() for gradient in calm]
    wild[0][1, 2, 2] = bad
    clip_grad_norm(calm, limits)
    clip_grad_norm(wild, limits)
    for r in (0, 2):
        assert all(torch.equal(a[r], b[r]) for a, b in zip(calm, wild, strict=True))


def test_a_run_without_a_limit_keeps_a_gradient_too_long_to_measure() -> None:
    """Alone it would not be clipped at all; beside a run that is it must not be either."""
    found = gradients(2, 2, scale=1e200)
    before = [gradient.clone() for gradient in found]
    clip_grad_norm(found, torch.tensor([1.0, math.inf], dtype=torch.float64))
    assert all(torch.equal(f[1], b[1]) for f, b in zip(found, before, strict=True))


def test_a_stack_of_limits_is_the_plain_loop_with_each(data: Dataset) -> None:
    section, ends = {"name": "synthetic", "batch_size": BATCH}, []
    configs = [
        config_of(
            *("mlp", "adam", "constant"),
            data=section,
            train={"epochs": 3, "precision": "fp64", "clip_grad_norm": limit},
        )
        for limit in (0.1, 0.7, None)
    ]
    run = prepare(configs, data)
    list(train(run))
    for r, config in enumerate(configs):
        alone, _ = train_alone(config, "adam", "constant", data, config.optimizer.lr, 0)
        assert_same(run.stack, r, alone)
        ends.append(next(iter(alone.values())))
    assert not torch.allclose(ends[0], ends[2], rtol=1e-3)  # the limit does something


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_sweep_over_limits_is_one_stack(workers: str, mnist: Mnist, tmp_path: Path) -> None:
    axes = ("--lrs", "1e-1,1e-2", "--grid", "train.clip_grad_norm=1e-3,0.5,null")
    ended = mnist("sweep", *SMALL, *axes, "--dry-run", "--json")
    assert {run["stack"] for run in ended.json["runs"]} == {1}
    precise = (*SMALL, "train.precision=fp64")
    ended = mnist("sweep", *precise, *axes, "--workers", workers, "--json")
    assert ended.code == 0, ended.err
    sweep = RunDirectory(tmp_path / "runs" / "mlp-sweep-0001")
    assert len(sweep.meta()["stacks"]) == int(workers)
    losses = [trial.metrics()[-1]["val/loss"] for trial in sweep.trials()]
    assert len(set(losses)) == 6
    for index, limit in ((1, "0.5"), (2, "null")):  # of the first learning rate
        alone = mnist("train", *precise, "--lr", "1e-1", f"train.clip_grad_norm={limit}", "--json")
        assert alone.json["best"]["val/loss"] == pytest.approx(
            sweep.trial(index).summary()["best"]["val/loss"], rel=1e-9
        )


def test_a_limit_keeps_a_run_from_diverging(mnist: Mnist) -> None:
    wild = ("--lr", "50", "loss={name: cross_entropy, reduction: sum}")
    free = mnist("train", *SMALL, *wild, "--json")
    short = mnist("train", *SMALL, *wild, "train.clip_grad_norm=1e-3", "--json")
    assert short.code == 0
    assert free.code == 1 or free.json["best"]["val/loss"] > 10 * short.json["best"]["val/loss"]
