"""Which runs a sweep is of, and which of them train as one stack."""

from mnist_cli.config import Config
from mnist_cli.sweeps.expand import expand, group
from tests.conftest import Mnist


def test_only_what_a_stack_cannot_hold_apart_makes_another() -> None:
    config = Config.model_validate(
        {
            "model": {"name": "mlp"},
            "scheduler": {"name": "step", "step_size": 2},
            "sweep": {
                "model.depth": [1, 2],
                "optimizer.name": ["sgd", "adam"],
                "optimizer.lr": [1e-2, 1e-3],
                "scheduler.gamma": [0.1, 0.5],
                "train.clip_grad_norm": [1.0, None],
                "train.seed": [0, 1],
            },
        }
    )
    stacks = group(expand(config))
    assert [len(stack) for stack in stacks] == [32, 32]


def test_a_grid_that_no_machine_finishes_is_refused_before_it_is_expanded(mnist: Mnist) -> None:
    grid = ("--grid", "train.seed=0..999", "--grid", "model.width=1..1000")
    for more in (("--dry-run",), ()):
        ended = mnist("sweep", *grid, *more)
        assert (ended.code, ended.out) == (2, "")
        assert "--grid" in ended.err
        assert "runs" in ended.err
