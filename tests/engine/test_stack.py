"""The replica rule: replica r of a stack is the run you would have got alone."""

from collections.abc import Iterable
from dataclasses import replace
from itertools import cycle
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mnist_cli.config import Config, MlpModel, with_settings
from mnist_cli.data.augment import Augmentation, draws
from mnist_cli.data.dataset import Dataset, epoch_order
from mnist_cli.engine.loop import Record, Training, batches, compact, prepare, train
from mnist_cli.engine.optimizers import Optimizer
from mnist_cli.engine.stack import Stack
from mnist_cli.models.losses import LOSSES, loss_of
from mnist_cli.models.modules import build, dropouts
from tests.reliability.harness import plain

BATCH, EPOCHS, STEPS_PER_EPOCH = 16, 3, 4  # 60 training images: the last batch is smaller

MODELS: dict[str, dict[str, Any]] = {
    "logistic": {"name": "logistic"},
    "mlp": {"name": "mlp", "depth": 3, "width": 16},
    "mlp-sigmoid": {"name": "mlp", "hidden": [8], "activation": "sigmoid"},
    "mlp-dropout": {"name": "mlp", "width": 16, "activation": "tanh", "dropout": 0.5},
    "cnn": {"name": "cnn", "channels": [4, 4]},
    "cnn-sequential": {"name": "cnn_sequential", "channels": [4, 4]},
    "lenet": {"name": "lenet"},
    "lenet-modern": {"name": "lenet", "variant": "modern"},
    "resnet": {"name": "resnet", "width": 2},
    "vgg": {"name": "vgg", "width": 2},
    "scratch": {"name": "scratch"},
    "tensor-net": {"name": "tensor_net", "hidden": [8, 6]},
}
ADAMW_LR = 3e-3  # of what muon leaves to AdamW
MUON_RMS: dict[str, Any] = {
    "momentum": 0.8,
    "nesterov": False,
    "weight_decay": 0.02,
    "ns_steps": 3,
    "adjust_lr_fn": "match_rms_adamw",
}
# Models without a hidden matrix, which muon is for.
SHALLOW = ("logistic", "scratch")


class NAdam(torch.optim.NAdam):
    """torch's, with the product of its momenta in float64 and not in float32."""

    def step(self, closure: Any = None) -> Any:
        with mock.patch("torch.optim.nadam._get_scalar_dtype", return_value=torch.float64):
            return super().step(closure)


class Muon(torch.optim.Optimizer):
    """torch's Muon for hidden matrices and its AdamW for the rest, in the type of the weights.

    torch's Muon takes matrices alone, so it gets kernels of convolutions as such; and it computes
    in bfloat16, in which two ways to multiply need not come to the same.
    """

    def __init__(self, parameters: Iterable[Tensor], lr: float, **settings: Any) -> None:
        every = list(parameters)
        matrices = [i for i, p in enumerate(every) if p.dim() > 1]
        places = matrices[every[matrices[0]].dim() == 4 : -1]
        hidden = [every[i] for i in places]
        rest = [p for i, p in enumerate(every) if i not in places]
        super().__init__([{"params": hidden, "lr": lr}, {"params": rest, "lr": ADAMW_LR}], {})
        self.flat = [torch.nn.Parameter(p.detach().flatten(1)) for p in hidden]  # one memory
        self.muon = torch.optim.Muon(self.flat, **settings)
        self.adamw = torch.optim.AdamW(rest, betas=(0.9, 0.95))

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        muon, adamw = self.param_groups
        for flat, parameter in zip(self.flat, muon["params"], strict=True):
            flat.grad = parameter.grad.flatten(1)
        self.muon.param_groups[0]["lr"] = muon["lr"]
        self.adamw.param_groups[0]["lr"] = adamw["lr"]
        with mock.patch.object(Tensor, "bfloat16", Tensor.clone):
            self.muon.step(closure)
        self.adamw.step(closure)


# What the config says, and what the plain loop does instead: the two are written apart on purpose.
OPTIMIZERS: dict[str, tuple[dict[str, Any], Any]] = {
    "sgd": ({"name": "sgd"}, lambda p, lr: torch.optim.SGD(p, lr=lr)),
    "sgd-momentum": (
        {"name": "sgd", "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4},
        lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9, nesterov=True, weight_decay=5e-4),
    ),
    "adam": ({"name": "adam"}, lambda p, lr: torch.optim.Adam(p, lr=lr)),
    "adam-amsgrad": (
        {"name": "adam", "betas": [0.8, 0.99], "weight_decay": 1e-2, "amsgrad": True},
        lambda p, lr: torch.optim.Adam(
            p, lr=lr, betas=(0.8, 0.99), weight_decay=1e-2, amsgrad=True
        ),
    ),
    "adamw": ({"name": "adamw"}, lambda p, lr: torch.optim.AdamW(p, lr=lr)),
    "rmsprop": (
        {"name": "rmsprop", "momentum": 0.5, "centered": True},
        lambda p, lr: torch.optim.RMSprop(p, lr=lr, momentum=0.5, centered=True),
    ),
    "nadam": (
        {"name": "nadam", "weight_decay": 1e-2, "momentum_decay": 0.02},
        lambda p, lr: NAdam(p, lr=lr, weight_decay=1e-2, momentum_decay=0.02),
    ),
    "nadam-decoupled": (
        {
            "name": "nadam",
            "betas": [0.8, 0.99],
            "weight_decay": 0.1,
            "decoupled_weight_decay": True,
        },
        lambda p, lr: NAdam(
            p, lr=lr, betas=(0.8, 0.99), weight_decay=0.1, decoupled_weight_decay=True
        ),
    ),
    "muon": ({"name": "muon", "adamw_lr": ADAMW_LR, "adamw_betas": [0.9, 0.95]}, Muon),
    "muon-rms": (
        {"name": "muon", "adamw_lr": ADAMW_LR, "adamw_betas": [0.9, 0.95], **MUON_RMS},
        lambda p, lr: Muon(p, lr, **MUON_RMS),
    ),
    "scratch-sgd": ({"name": "scratch_sgd"}, lambda p, lr: torch.optim.SGD(p, lr=lr)),
}
SCHEDULERS: dict[str, tuple[dict[str, Any], Any]] = {
    "constant": ({"name": "constant"}, lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda _: 1)),
    "step": (
        {"name": "step", "step_size": 3, "gamma": 0.5, "interval": "step"},
        lambda o: torch.optim.lr_scheduler.StepLR(o, step_size=3, gamma=0.5),
    ),
    "multistep": (
        {"name": "multistep", "milestones": [1, 2], "interval": "epoch"},
        lambda o: torch.optim.lr_scheduler.MultiStepLR(o, milestones=[1, 2]),
    ),
    "cosine": (
        {"name": "cosine", "T_max": 5, "eta_min": 1e-4, "interval": "step"},
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=5, eta_min=1e-4),
    ),
    "warmup": (
        {"name": "linear", "end_factor": 0.5, "warmup": 3, "interval": "step"},
        lambda o: torch.optim.lr_scheduler.SequentialLR(
            o,
            [
                torch.optim.lr_scheduler.LinearLR(o, 0.01, total_iters=3),
                torch.optim.lr_scheduler.LinearLR(o, end_factor=0.5),
            ],
            [3],
        ),
    ),
    "one-cycle": (
        {"name": "one_cycle", "total_steps": 20},
        lambda o: torch.optim.lr_scheduler.OneCycleLR(
            o, [group["lr"] for group in o.param_groups], total_steps=20, cycle_momentum=False
        ),
    ),
}
AUGMENT = {
    "translate": 2, "rotate": 20.0, "scale": [0.8, 1.2], "shear": 10.0, "flip": 0.5,
    "erase": 0.5, "elastic": 30.0,
}  # fmt: skip
RATES = [1e-2, 3e-3, 1e-3]


def config_of(model: str, optimizer: str, scheduler: str, **more: Any) -> Config:
    return Config.model_validate(
        {
            "model": MODELS[model],
            "optimizer": OPTIMIZERS[optimizer][0],
            "scheduler": SCHEDULERS[scheduler][0],
            **more,
        }
    )


def train_stack(
    config: Config,
    data: Dataset,
    rates: list[float],
    seeds: list[int],
    precision: str = "fp64",
) -> tuple[Stack, list[list[Record]]]:
    models = [build(config.model, data.shape, 10, seed) for seed in seeds]
    stack = Stack(models, torch.device("cpu"), precision)
    configs = [config.optimizer.model_copy(update={"lr": rate}) for rate in rates]
    run = Training(
        stack=stack,
        optimizer=Optimizer(
            [(each, config.scheduler) for each in configs], stack.weights, stack.gradients
        ),
        data=data,
        loss=loss_of(config.loss),
        seeds=seeds,
        steps=EPOCHS * STEPS_PER_EPOCH,
        batch_size=BATCH,
        shuffle=True,
        reduction=config.loss.reduction,
        augment=config.augment,
    )
    return stack, list(train(run))


def train_alone(
    config: Config,
    optimizer: str,
    scheduler: str,
    data: Dataset,
    rate: float,
    seed: int,
    averages: list[AveragedModel] | None = None,
) -> tuple[dict[str, Tensor], list[float]]:
    """The plain loop: one model, stock torch, no stack."""
    model = build(config.model, data.shape, 10, seed).double()
    optim = OPTIMIZERS[optimizer][1](model.parameters(), rate)
    schedule = SCHEDULERS[scheduler][1](optim)
    per_step = getattr(config.scheduler, "interval", "epoch") == "step"
    losses, step = [], 0
    average = None
    if averages is not None:
        decay = get_ema_multi_avg_fn(config.train.ema or 0.0)
        average = AveragedModel(model, multi_avg_fn=decay, use_buffers=True)
        averages.append(average)
    for epoch in range(EPOCHS):
        total = 0.0
        for index in epoch_order(seed, epoch, len(data.train), shuffle=True).split(BATCH):
            for layer in dropouts(model):
                layer.step.fill_(step)
            images, labels = data.train.images[index].double() / 255, data.train.labels[index]
            if config.augment.active:
                images = augmented(config, data, index, step, seed)
            optim.zero_grad()
            loss = F.cross_entropy(
                *(model(images), labels),
                reduction=config.loss.reduction,
                label_smoothing=config.loss.label_smoothing,
            )
            loss.backward()
            if config.train.clip_grad_norm is not None:
                torch.nn.utils.clip_grad_norm_(model.parameters(), config.train.clip_grad_norm)
            optim.step()
            if average is not None:
                average.update_parameters(model)
            if per_step:
                schedule.step()
            total += loss.item() * (len(index) if config.loss.reduction == "mean" else 1)
            step += 1
        if not per_step:
            schedule.step()
        losses.append(total / len(data.train))
    return model.state_dict(), losses


def augmented(config: Config, data: Dataset, index: Tensor, step: int, seed: int) -> Tensor:
    """Each image by itself."""
    images = torch.empty(len(index), *data.shape, dtype=torch.float64)
    for image, place in zip(images, index, strict=True):
        augmentation = Augmentation(config.augment, 255, image[None])
        (rows,) = draws(config.augment, [seed], data.shape[1:], step, [place.view(1, 1)])
        augmentation.pixels.copy_(data.train.images[place])
        augmentation.rows.copy_(rows[0])
        augmentation()
    return images


def assert_same(stack: Stack, r: int, alone: dict[str, Tensor]) -> None:
    state = stack.state_dict(r)
    assert list(state) == list(alone)
    for name, value in alone.items():
        torch.testing.assert_close(state[name], value, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("model", MODELS)
def test_replicas_are_the_runs_alone(model: str, every: bool, data: Dataset) -> None:
    """Every optimizer with every schedule, all in one stack, two seeds and many rates.

    Else every optimizer with one schedule, with another one for the next model: of model, optimizer
    and schedule each two still meet.
    """
    first = list(MODELS).index(model)
    pairs = [
        (optimizer, scheduler)
        for which, optimizer in enumerate(OPTIMIZERS)
        for number, scheduler in enumerate(SCHEDULERS)
        if every or number == (first + which) % len(SCHEDULERS)
        if "muon" not in optimizer or model not in SHALLOW
    ]
    half = len(pairs) // 2
    configs = []
    for number, (optimizer, scheduler) in enumerate(pairs):
        section = {"batch_size": BATCH, "name": "synthetic"}
        train_section = {"epochs": EPOCHS, "precision": "fp64", "seed": 5 + 2 * (number >= half)}
        config = config_of(model, optimizer, scheduler, data=section, train=train_section)
        own = config.optimizer.model_copy(update={"lr": RATES[number % len(RATES)]})
        configs.append(config.model_copy(update={"optimizer": own}))
    run = prepare(configs, data)
    epochs = list(train(run))
    for r, (config, pair) in enumerate(zip(configs, pairs, strict=True)):
        alone = train_alone(config, *pair, data, config.optimizer.lr, config.train.seed)
        assert_same(run.stack, r, alone[0])
        assert [records[r]["train/loss"] for records in epochs] == pytest.approx(alone[1], rel=1e-8)


@pytest.mark.parametrize("model", MODELS)
def test_one_replica_is_the_run_alone(model: str, data: Dataset) -> None:
    config = config_of(model, "sgd-momentum", "step")
    stack, epochs = train_stack(config, data, [1e-2], [7])
    state, losses = train_alone(config, "sgd-momentum", "step", data, 1e-2, 7)
    assert_same(stack, 0, state)
    assert [records[0]["train/loss"] for records in epochs] == pytest.approx(losses, rel=1e-8)


@pytest.mark.parametrize("replicas", [1, 3, 8])
@pytest.mark.parametrize("shared", [True, False], ids=["shared order", "own orders"])
def test_any_number_of_replicas_and_orders(replicas: int, shared: bool, data: Dataset) -> None:
    config = config_of("mlp-dropout", "adam", "step")
    seeds = [3] * replicas if shared else list(range(replicas))
    rates = [1e-3 * (r + 1) for r in range(replicas)]
    stack, _ = train_stack(config, data, rates, seeds)
    for r in range(replicas):
        state, _ = train_alone(config, "adam", "step", data, rates[r], seeds[r])
        assert_same(stack, r, state)


@pytest.mark.parametrize("model", ["mlp-dropout", "cnn"])
def test_replicas_see_images_augmented_as_the_runs_alone_do(model: str, data: Dataset) -> None:
    config = config_of(model, "sgd-momentum", "constant", augment=AUGMENT)
    alone = [train_alone(config, "sgd-momentum", "constant", data, 1e-2, s) for s in range(4)]
    for seeds in ([3], [0, 1, 2], [3, 3, 3], [1, 1, 2, 2], [1, 1, 2]):
        stack, epochs = train_stack(config, data, [1e-2] * len(seeds), seeds)
        for r, seed in enumerate(seeds):
            state, losses = alone[seed]
            assert_same(stack, r, state)
            found = [records[r]["train/loss"] for records in epochs]
            assert found == pytest.approx(losses, rel=1e-8)
            with pytest.raises(AssertionError):
                assert_same(stack, r, alone[seed - 1][0])


@pytest.mark.parametrize("precision", ["fp64", "fp32", "bf16"])
def test_seeds_have_images_of_their_own_in_one_order(precision: str, data: Dataset) -> None:
    section = {"name": "synthetic", "batch_size": BATCH, "shuffle": False}
    length = {"epochs": EPOCHS, "precision": precision}
    config = config_of("mlp", "sgd", "constant", data=section, augment=AUGMENT, train=length)
    configs = [
        config.model_copy(update={"train": config.train.model_copy(update={"seed": seed})})
        for seed in (0, 1)
    ]
    run, alone = prepare(configs, data), prepare(configs[1:], data)
    for each in (run, alone):
        list(train(each))
    for name, value in alone.stack.state_dict(0).items():
        near = {"fp64": 1e-12, "fp32": 1e-6, "bf16": 1e-4}[precision]
        torch.testing.assert_close(run.stack.state_dict(1)[name], value, rtol=0, atol=near)


@pytest.mark.parametrize("loss", [*({"name": name} for name in LOSSES), {"label_smoothing": 0.1}])
@pytest.mark.parametrize("model", ["mlp", "cnn"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_every_loss_and_reduction(
    loss: dict[str, Any], model: str, reduction: str, data: Dataset
) -> None:
    config = config_of(model, "sgd", "constant", loss={**loss, "reduction": reduction})
    stack, epochs = train_stack(config, data, [1e-3, 1e-4], [0, 1])
    for r, rate in enumerate([1e-3, 1e-4]):
        state, losses = train_alone(config, "sgd", "constant", data, rate, r)
        assert_same(stack, r, state)
        assert [records[r]["train/loss"] for records in epochs] == pytest.approx(losses, rel=1e-8)


@pytest.mark.parametrize("model", ["mlp-dropout", "resnet"])
def test_averaged_weights_are_torchs(model: str, data: Dataset) -> None:
    section = {"batch_size": BATCH, "name": "synthetic"}
    configs = [
        config_of(
            *(model, "adam", "step"),
            data=section,
            train={"epochs": EPOCHS, "precision": "fp64", "ema": 0.8, "seed": seed},
        )
        for seed in (3, 4, 4)
    ]
    run = prepare(configs, data)
    records = list(train(run))[-1]
    for r, config in enumerate(configs):
        averages: list[AveragedModel] = []
        state, _ = train_alone(config, "adam", "step", data, 1e-3, config.train.seed, averages)
        assert_same(run.stack, r, state)
        average = averages[0].module
        counts = {name: n for name, n in state.items() if not n.is_floating_point()}
        assert_same(run.evaluated, r, {**average.state_dict(), **counts})  # torch averages them too
        average.eval()
        logits = average(data.val.images.double() / 255)
        loss = F.cross_entropy(logits, data.val.labels).item()
        assert records[r]["val/loss"] == pytest.approx(loss, rel=1e-6)


def test_those_that_stay_in_a_smaller_stack_keep_all_that_they_are(data: Dataset) -> None:
    section, length = {"batch_size": BATCH, "name": "synthetic"}, {"epochs": EPOCHS, "ema": 0.8}
    config = config_of("resnet", "adam", "step", data=section, train=length)
    run = prepare([with_settings(config, {"train.seed": seed}) for seed in range(3)], data)
    next(train(run))
    smaller = compact(run, [config, None, config], data)
    for place, replica in enumerate((0, 2)):
        was, now = run.state_dicts(replica), smaller.state_dicts(place)
        assert plain(was) == plain(now)
        assert plain(was[0]) != plain(was[2])


def test_the_rule_is_seen_to_fail_when_one_learning_rate_is_wrong(data: Dataset) -> None:
    config = config_of("mlp", "adam", "cosine")
    stack, _ = train_stack(config, data, RATES, [0, 0, 0])
    wrong, _ = train_alone(config, "adam", "cosine", data, RATES[1] * 1.0001, 0)
    with pytest.raises(AssertionError):
        assert_same(stack, 1, wrong)


def test_the_rule_is_seen_to_fail_when_one_mask_is_wrong(data: Dataset) -> None:
    config = config_of("mlp-dropout", "sgd", "constant")
    stack, _ = train_stack(config, data, RATES, [0, 1, 2])
    model = MlpModel.model_validate({**MODELS["mlp-dropout"], "dropout": 0.0})
    dry = config.model_copy(update={"model": model})
    wrong, _ = train_alone(dry, "sgd", "constant", data, RATES[0], 0)
    wrong = dict(zip(stack.state_dict(0), wrong.values(), strict=True))
    with pytest.raises(AssertionError):
        assert_same(stack, 0, wrong)


@pytest.mark.parametrize(
    ("model", "optimizer"),
    [*zip(MODELS, cycle(["sgd-momentum", "adam", "rmsprop", "nadam", "muon"]), strict=False)],
)
def test_a_diverging_replica_leaves_its_neighbours_as_they_were(
    model: str, optimizer: str, data: Dataset
) -> None:
    config = config_of(model, optimizer, "constant")
    calm, calm_epochs = train_stack(config, data, [1e-3, 1e-3, 1e-2], [0, 1, 2], "fp32")
    wild, wild_epochs = train_stack(config, data, [1e-3, 1e38, 1e-2], [0, 1, 2], "fp32")
    lost = wild.state_dict(1)
    assert not all(torch.isfinite(value).all() for value in lost.values())
    for r in (0, 2):
        before, after = calm.state_dict(r), wild.state_dict(r)
        assert all(torch.equal(before[name], after[name]) for name in before)
        for a, b in zip(calm_epochs, wild_epochs, strict=True):
            assert measured(a[r]) == measured(b[r])


def measured(record: Record) -> dict[str, Any]:
    return {key: value for key, value in record.items() if not key.startswith("time/")}


def test_a_stack_ends_when_every_replica_has_diverged(data: Dataset) -> None:
    config = config_of("mlp", "sgd", "constant")
    _, epochs = train_stack(config, data, [1e38, 1e38], [0, 1], "fp32")
    assert len(epochs) == 1


def test_a_state_is_a_copy_that_its_plain_module_takes(data: Dataset) -> None:
    config = config_of("cnn", "sgd", "constant")
    stack, _ = train_stack(config, data, [1e-2, 1e-3], [0, 1], "fp32")
    state = stack.state_dict(1)
    plain = build(config.model, data.shape, 10, 9)
    plain.load_state_dict(state)
    images = data.val.images[:5].float() / 255
    found = stack.program(images[None], training=False)
    for call in found.forward:
        call()
    torch.testing.assert_close(found.logits.data[1], plain(images), rtol=1e-5, atol=1e-6)
    for value in state.values():
        assert value.untyped_storage().nbytes() == value.numel() * value.element_size()
    stack.load_state_dict(0, state)
    assert all(torch.equal(stack.state_dict(0)[name], state[name]) for name in state)


def test_batches_do_not_depend_on_how_the_run_was_cut(data: Dataset) -> None:
    """The second half of an epoch, begun in its middle, sees the same images."""
    config = config_of("logistic", "sgd", "constant", train={"steps": 7, "seed": 4})
    config = config.model_copy(
        update={"data": config.data.model_copy(update={"batch_size": BATCH})}
    )
    run = prepare([config], data)
    assert [index.shape for index in batches(run, 0)] == [(1, 16)] * 3 + [(1, 12)]
    (index,) = batches(replace(run, step=6), 1)  # steps 4 to 6 are the second epoch
    order = epoch_order(4, 1, len(data.train), shuffle=True)[2 * BATCH : 3 * BATCH]
    assert torch.equal(index[0], order)
