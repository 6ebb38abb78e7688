"""The loop's records and the evaluation, on data small enough to check by hand."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from mnist_cli.config import Config
from mnist_cli.config.schema import ResnetModel
from mnist_cli.data.dataset import Dataset, epoch_order, load
from mnist_cli.engine.loop import Pass, Record, Training, evaluate, prepare, train
from mnist_cli.engine.loss import MetricAccumulator
from mnist_cli.engine.stack import Stack
from mnist_cli.models.losses import cross_entropy
from mnist_cli.models.modules import build


def training(**sections: Any) -> Training:
    config = Config.model_validate(
        {
            "data": {"name": "synthetic", "size": 140, "split": "official", "batch_size": 32},
            **sections,
        }
    )
    data = load(config.data, torch.device("cpu"), print)
    config = config.model_copy(
        update={"train": config.train.model_copy(update={"precision": "fp64"})}
    )
    return prepare([config], data)


def records(**sections: Any) -> list[Record]:
    return [record for (record,) in train(training(**sections))]


def test_an_epoch_is_every_batch_and_steps_can_end_inside_one() -> None:
    by_epochs = records(train={"epochs": 2})
    assert [(r["epoch"], r["step"]) for r in by_epochs] == [(1, 4), (2, 8)]
    by_steps = records(train={"steps": 6})
    assert [(r["epoch"], r["step"]) for r in by_steps] == [(1, 4), (2, 6)]
    assert by_steps[0]["train/loss"] == by_epochs[0]["train/loss"]


@pytest.mark.parametrize(
    ("scheduler", "rates"),
    [
        ({"name": "constant"}, [1.0, 1.0, 1.0]),
        ({"name": "step", "step_size": 1, "gamma": 0.5}, [1.0, 0.5, 0.25]),
        ({"name": "step", "step_size": 2, "gamma": 0.5, "interval": "step"}, [1.0, 0.25, 0.0625]),
        ({"name": "multistep", "milestones": [2], "gamma": 0.1}, [1.0, 1.0, 0.1]),
        ({"name": "cosine", "T_max": 2}, [1.0, 0.5, 0.0]),
    ],
)
def test_schedules_count_what_they_are_told_to(
    scheduler: dict[str, Any], rates: list[float]
) -> None:
    found = records(
        scheduler=scheduler,
        optimizer={"name": "sgd", "lr": 1.0},
        model="logistic",
        train={"epochs": 3},
    )
    assert [r["lr"] for r in found] == pytest.approx(rates, abs=1e-12)


@pytest.mark.parametrize("normalize", [True, False])
def test_the_train_loss_of_an_epoch_is_the_mean_over_images_before_each_update(
    normalize: bool,
) -> None:
    data = {"name": "synthetic", "size": 140, "split": "official", "batch_size": 32}
    run = training(
        data=data | {"normalize": normalize},
        train={"steps": 1},
        optimizer={"name": "sgd", "lr": 0.1},
        model="logistic",
    )
    index = epoch_order(0, 0, 120, shuffle=True)[:32]
    weight, bias = run.stack.state_dict(0).values()
    pixels = run.data.train.images[index].flatten(1).double() / (255 if normalize else 1)
    labels = run.data.train.labels[index]
    logits = pixels @ weight.T + bias
    ((record,),) = train(run)
    assert record["train/loss"] == pytest.approx(F.cross_entropy(logits, labels).item())
    assert record["train/acc"] == pytest.approx((logits.argmax(1) == labels).double().mean().item())


def test_evaluation_counts_every_image_once(monkeypatch: pytest.MonkeyPatch) -> None:
    run = training(train={"epochs": 1})
    whole = evaluate(run.stack, run.data.train, run.loss)
    monkeypatch.setattr("mnist_cli.engine.loop.EVAL_IMAGES", 7)  # 120 images: a last batch of one
    parts = evaluate(run.stack, run.data.train, run.loss)
    assert parts[0] == pytest.approx(whole[0], rel=1e-12)
    assert parts[1] == whole[1]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_an_evaluation_is_that_of_the_plain_module(smoothing: float) -> None:
    run = training(
        model={"name": "resnet", "width": 2},
        loss={"label_smoothing": smoothing},
        train={"epochs": 2},
    )
    *_, (record,) = train(run)
    module = build(ResnetModel(name="resnet", width=2), run.data.shape, 10, 0).double()
    module.load_state_dict(run.stack.state_dict(0))
    module.eval()
    logits, labels = module(run.data.val.images.double() / 255), run.data.val.labels
    loss = F.cross_entropy(logits, labels, label_smoothing=smoothing)
    assert record["val/loss"] == pytest.approx(loss.item(), rel=1e-10)
    assert record["val/acc"] == pytest.approx((logits.argmax(1) == labels).double().mean().item())


def test_orders_are_a_function_of_seed_and_epoch() -> None:
    first = epoch_order(1, 2, 1000, shuffle=True)
    epoch_order(5, 5, 10, shuffle=True)
    assert torch.equal(first, epoch_order(1, 2, 1000, shuffle=True))
    assert torch.equal(first.sort().values, torch.arange(1000))
    assert not torch.equal(first, epoch_order(1, 3, 1000, shuffle=True))
    assert not torch.equal(first, epoch_order(2, 2, 1000, shuffle=True))
    assert torch.equal(epoch_order(1, 2, 5, shuffle=False), torch.arange(5))


@pytest.mark.parametrize(
    ("split", "sizes"),
    [("pooled", (560, 70, 70)), ("holdout", (500, 100, 100)), ("official", (600, 100, 100))],
)
def test_splits(split: str, sizes: tuple[int, int, int]) -> None:
    def dataset(**more: Any) -> Dataset:
        section = {"name": "synthetic", "size": 700, "split": split, **more}
        return load(Config.model_validate({"data": section}).data, torch.device("cpu"), print)

    data = dataset()
    assert (len(data.train), len(data.val), len(data.test)) == sizes
    assert data.train.images.dtype == torch.uint8
    again = dataset()
    assert torch.equal(data.test.images, again.test.images)
    if split == "pooled":
        # Nothing is in two splits, nothing is lost.
        rows = torch.cat([part.images.flatten(1) for part in (data.train, data.val, data.test)])
        assert len(rows.unique(dim=0)) == 700
    if split == "official":
        assert torch.equal(data.val.images, data.test.images)


class Normalized(torch.nn.Module):
    """What becomes of an image depends on the others in its batch."""

    def __init__(self, norm: type[torch.nn.Module]) -> None:
        super().__init__()
        self.convolution = torch.nn.Conv2d(1, 10, 3, stride=4)
        self.norm = norm(10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.norm(self.convolution(images)).relu().mean((2, 3))
        return y


class OwnNorm(torch.nn.BatchNorm2d):
    """No rule knows it."""


@pytest.mark.parametrize("norm", [torch.nn.BatchNorm2d, OwnNorm])
def test_a_batch_is_taken_in_parts_only_where_its_images_are_apart(
    norm: type[torch.nn.Module],
) -> None:
    """A convolutional network alone is computed in halves, which batch normalisation would see."""
    data = training().data
    torch.manual_seed(0)
    model = Normalized(norm).double()
    stack = Stack([model], torch.device("cpu"), "fp64")
    totals = MetricAccumulator(1, torch.device("cpu"))
    one = Pass(stack, data.train, cross_entropy, (1, 32), totals, weight=1 / 32)
    one.index.copy_(torch.arange(32)[None])
    one()
    logits = model(data.train.images[:32].double() / 255)
    torch.testing.assert_close(one.logits[0], logits)
    F.cross_entropy(logits, data.train.labels[:32]).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(stack.gradients.views[name][0], parameter.grad)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(stack.state_dict(0)[name], value)
