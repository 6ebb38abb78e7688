"""What a training step costs on this machine: the tutorials' loop, one run, stacks, the roofline.

All are measured in rounds that go through everything, so that whatever else the machine does hits
every side, and each time in fresh processes, as `mnist` forks them to train. A time is that of
steps alone: what is evaluated is one image now and then, and nothing is written.
"""

import os
import platform
import re
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from mnist_cli import config as configs
from mnist_cli.config import Config, SyntheticData, with_settings
from mnist_cli.data.dataset import Dataset, Split, load
from mnist_cli.engine.capture import Captured
from mnist_cli.engine.device import computing, threaded
from mnist_cli.engine.loop import Record, prepare, train
from mnist_cli.engine.stack import PRECISIONS
from mnist_cli.errors import RunError, UsageError
from mnist_cli.models.modules import build, weight_uses
from mnist_cli.sweeps.plan import Plan, StackPlan, can_fork, cores, plan
from mnist_cli.sweeps.workers import Send, WorkerDied, run_jobs

LEARNING_RATE = 1e-4  # small enough that nothing diverges, whatever the optimizer

Document = dict[str, Any]  # becomes JSON
Steps = Callable[[int], object]  # does so many steps
Workload = Callable[[Sequence[Config], Dataset], Steps]  # of runs that train together


@dataclass(frozen=True)
class Case:
    """A network and how it is trained.

    Attributes:
        name: the shipped config.
        experiment: the reference experiment it is of.
        about: the network in short.
        overrides: settings other than the config's.
        stacks: how many runs are measured together.
        image_by_image: whether its tutorial makes each image by itself, in Python.
    """

    name: str
    experiment: str
    about: str
    overrides: tuple[str, ...] = ()
    stacks: tuple[int, ...] = (1, 4, 16, 64)
    image_by_image: bool = False


CASES = (
    Case("mlp", "E1", "784-32-10"),
    Case("logistic", "E1", "784-10"),
    Case("ffnn", "E2", "784-50-100-10", image_by_image=True),
    Case("cnn", "E3", "three convolutions"),
    # It fills the machine alone; more than a few together would only take long.
    Case("depth", "E5", "784-512-256-128-64-10", ("model.depth=5",), (1, 4)),
)


def select_cases(only: str | None) -> list[Case]:
    """The cases of a list such as `E1,cnn`: by experiment or by name; all of them for None.

    Raises:
        UsageError: one of them does not exist.
    """
    names = {case: {case.name, case.experiment.lower()} for case in CASES}
    known = set().union(*names.values())
    wanted = known if only is None else {name.strip() for name in only.lower().split(",")}
    for name in sorted(wanted - known):
        raise UsageError(
            f"--only: there is no {name!r} to measure", f"there are {', '.join(sorted(known))}"
        )
    return [case for case in CASES if names[case] & wanted]


# ----------------------------------------------------------------------------------- workloads


def bench_data(size: int, device: torch.device) -> Dataset:
    """Synthetic images, eight of ten to train and one to evaluate, which takes next to no time."""
    data = load(SyntheticData(name="synthetic", size=size), device, print)
    one = Split(data.val.images[:1], data.val.labels[:1], data.val.scale)
    return replace(data, val=one, test=one)


class ImageByImage(TensorDataset):
    """A dataset object as tutorials write it: one image's tensor at a time, in Python."""

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        """A row of pixels divided by 255, and its label."""
        pixels, label = (tensor[index] for tensor in self.tensors)
        return torch.tensor(pixels.numpy() / 255, dtype=torch.float32).flatten(), label


def tutorial(
    configs: Sequence[Config], data: Dataset, *, image_by_image: bool = False
) -> Callable[[int], float]:
    """The loop that tutorials write: a loader over a dataset object, a module, torch's optimizer.

    Args:
        configs: of one run.
        data: on what it is trained.
        image_by_image: whether the dataset object makes each image by itself.

    Returns:
        A function that does the next steps, epoch after epoch, and returns the sum of the losses of
        their batches.
    """
    (config,) = configs
    device = data.train.images.device
    pixels, labels = data.train.images.cpu(), data.train.labels.cpu()
    images = ImageByImage(pixels, labels) if image_by_image else TensorDataset(pixels / 255, labels)
    loader = DataLoader(images, config.data.batch_size, shuffle=config.data.shuffle)
    batches = chain.from_iterable(repeat(loader))
    model = build(config.model, data.shape, len(data.classes), config.train.seed).to(device)
    criterion = torch.nn.CrossEntropyLoss(
        reduction=config.loss.reduction, label_smoothing=config.loss.label_smoothing
    )
    kind = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}[config.optimizer.name]
    optimizer = kind(model.parameters(), **config.optimizer.model_dump(exclude={"name"}))

    def steps(number: int) -> float:
        total = 0.0
        for x, y in islice(batches, number):
            optimizer.zero_grad()
            loss = criterion(model(x.to(device)), y.to(device))
            loss.backward()
            optimizer.step()
            total += loss.item()
        return total

    return steps


def engine(configs: Sequence[Config], data: Dataset) -> Callable[[int], list[Record]]:
    """A stack as `mnist train` and `mnist sweep` train it.

    Returns:
        A function that does the next steps and returns the latest record of each run.
    """
    training = prepare(configs, data)
    epochs = train(training)

    def steps(number: int) -> list[Record]:
        training.steps = training.step + number  # the last epoch is cut short there
        records: list[Record] = []
        while training.step < training.steps:
            records = next(epochs)
        return records

    return steps


def roofline(configs: Sequence[Config], data: Dataset) -> Steps:
    """What no engine can do without: a step's matrix products and its optimizer's arithmetic.

    Each layer's forward product, the product that gives the gradient of its weights and, but for
    the first layer, the one that gives the gradient of its input; then one update of everything.
    The tensors are there beforehand, full of noise, the patches of convolutions too; no batch is
    gathered, no activation, loss or graph computed. The first layer of all replicas is one wide
    product. On a GPU a step is a captured graph, or it would be the limit of launching kernels.

    Args:
        configs: how many are trained, in which precision and with which optimizer.
        data: says where and on which shapes.
    """
    config, replicas, device = configs[0], len(configs), data.train.images.device
    model = build(config.model, data.shape, len(data.classes), 0)
    noise = partial(torch.randn, device=device, dtype=PRECISIONS[config.train.precision].products)
    calls: list[Callable[[], object]] = []
    for weight, places in weight_uses(model, data.shape):
        first = not calls  # one product for all replicas, and no gradient of the images
        rows, inputs = config.data.batch_size * places, weight[0].numel()
        outputs = len(weight) * (replicas if first else 1)
        stack = () if first or replicas == 1 else (replicas,)
        product = torch.bmm if stack else torch.mm
        x, y = noise(*stack, rows, inputs), noise(*stack, rows, outputs)
        w = noise(*stack, outputs, inputs)
        calls.append(partial(product, x, w.mT, out=torch.empty_like(y)))
        calls.append(partial(product, y.mT, x, out=torch.empty_like(w)))
        if not first:
            calls.append(partial(product, y, w, out=torch.empty_like(x)))
    optimizer = prepare([config] * replicas, data).optimizer  # of one setting: one update of all
    optimizer.begin(0, 0)
    calls.append(optimizer.update)

    def step() -> None:
        for call in calls:
            call()

    captured = Captured(step) if device.type == "cuda" else step

    def steps(number: int) -> None:
        for _ in range(number):
            captured()

    return steps


# ------------------------------------------------------------------------------ how it is timed


@dataclass(frozen=True)
class Variant:
    """One way to train some runs, and what was measured of it.

    Attributes:
        name: `tutorial`, `alone`, `stack of 4`...
        configs: of each run.
        plan: how the runs are divided among processes and threads.
        step_s: seconds of a step of all runs, one for each round.
        roofline_s: the same of the roofline; none for the tutorial.
    """

    name: str
    workload: Workload
    configs: Sequence[Config]
    plan: Plan
    step_s: list[float] = field(default_factory=list)
    roofline_s: list[float] = field(default_factory=list)


def stack_variant(config: Config, runs: int, data: Dataset) -> Variant:
    """Runs with a learning rate each, divided as a sweep of them would be."""
    rates = [LEARNING_RATE * (1 + run / runs) for run in range(runs)]
    replicas = [with_settings(config, {"optimizer.lr": rate}) for rate in rates]
    name = "alone" if runs == 1 else f"stack of {runs}"
    return Variant(name, engine, replicas, plan([range(runs)], replicas, [data]))


def step_seconds(variant: Variant, workload: Workload, data: Dataset, window: float) -> float:
    """Seconds of a step of all runs of a variant.

    The first stacks of the plan, one for each process, stand for all, which are of nearly one size.
    They are measured at the same time, in fresh processes, and the slowest counts.

    Args:
        variant: says what is trained, and how it is divided.
        workload: the variant's own, or its roofline.
        data: what is trained on.
        window: how many seconds each stack is timed for, at least.

    Raises:
        RunError: a process ended before it was done.
    """
    tuned = variant.workload is engine  # else all but the threads is as tutorials have it

    def time_stack(stack: StackPlan, send: Send) -> None:
        configs = [variant.configs[member] for member in stack.members]
        precision = configs[0].train.precision
        with computing(stack.threads, precision) if tuned else threaded(stack.threads):
            steps, number, passed = workload(configs, data), 1, 0.0
            while passed < window:  # all but the last time warm up
                number *= 2
                start = time.perf_counter()
                steps(number)
                if data.train.images.is_cuda:
                    torch.cuda.synchronize()
                passed = time.perf_counter() - start
        send(passed / number)

    stacks, times = variant.plan.stacks[: variant.plan.workers], list[float]()
    if data.train.images.is_cuda or not can_fork():
        time_stack(stacks[0], times.append)
    else:
        jobs = [partial(time_stack, stack) for stack in stacks]
        with closing(run_jobs(jobs, len(jobs))) as messages:
            for _, message in messages:
                if isinstance(message, WorkerDied):
                    raise RunError(f"what was being measured failed: {message.why}")
                times.append(message)
    return max(times) * len(variant.plan.stacks) / len(stacks)


def bench(
    cases: Sequence[Case],
    device: torch.device,
    track: Callable[[Sequence[Variant]], Iterable[Variant]],
    rounds: int = 5,
    *,
    quick: bool = False,
) -> Document:
    """Measures cases: the tutorials' loop, a run alone, stacks, and the roofline of each.

    Args:
        cases: what to measure.
        device: where.
        track: passes on what is to be measured, one after the other, and may show how far it is.
        rounds: how often; the results are medians and quartiles over them.
        quick: few images and short measurements, to see that it works.

    Returns:
        machine: see `machine`.
        rounds: how many.
        works: of each case `name`, `experiment`, `about`, `batch_size`, `optimizer` and `variants`.
            Of each variant:

            name: see `Variant`.
            runs: how many train together.
            precision: as in `train.precision`.
            parts: how many runs each stack of the plan holds.
            processes: how many of them run at the same time.
            threads: those of a process.
            step_us: microseconds of a step of all runs: `median`, `low` and `high` (quartiles).
            run_us: the same for each run.
            limit_us: the roofline, for each run; null for the tutorial.
            speedup: how many times as fast as the tutorial's loop a run's step is.
            limit_share: the roofline's time as a share of this one's; null for the tutorial.

    Raises:
        RunError: something that was measured failed.
    """
    window, images = (0.01, 2560) if quick else (0.125, 75 * 1024)  # every batch is whole
    # A process that has computed with several threads cannot be forked: its children would wait for
    # threads that they do not have.
    with threaded(1) as threads:
        torch.optim.SGD([torch.zeros(1)])  # imports, once and for all, what the first one does
        data, found = bench_data(images, device), machine(device, threads)
        variants = {case: case_variants(case, data, threads) for case in cases}
        for variant in track([each for of_case in variants.values() for each in of_case] * rounds):
            variant.step_s.append(step_seconds(variant, variant.workload, data, window))
            if variant.workload is engine:
                variant.roofline_s.append(step_seconds(variant, roofline, data, window))
    works = [_results(case, of_case) for case, of_case in variants.items()]
    return {"machine": found, "rounds": rounds, "works": works}


def case_variants(case: Case, data: Dataset, threads: int) -> list[Variant]:
    """The tutorials' loop with so many threads, and every stack of a case."""
    config = configs.load(case.name, (*case.overrides, f"optimizer.lr={LEARNING_RATE}")).config
    loop = partial(tutorial, image_by_image=case.image_by_image)
    alone = Plan((StackPlan((0,), threads),), 1)
    return [
        Variant("tutorial", loop, [config], alone),
        *(stack_variant(config, runs, data) for runs in case.stacks),
    ]


def _results(case: Case, variants: Sequence[Variant]) -> Document:
    config = variants[0].configs[0]
    return {
        **{key: vars(case)[key] for key in ("name", "experiment", "about")},
        "batch_size": config.data.batch_size,
        "optimizer": config.optimizer.name,
        "variants": [_figures(variant, variants[0]) for variant in variants],
    }


def _figures(variant: Variant, loop: Variant) -> Document:
    """Ratios are medians too, each of two times of one round."""
    step, limit, runs = np.array(variant.step_s), np.array(variant.roofline_s), len(variant.configs)
    return {
        "name": variant.name,
        "runs": runs,
        "precision": variant.configs[0].train.precision,
        "parts": [len(stack.members) for stack in variant.plan.stacks],
        "processes": variant.plan.workers,
        "threads": variant.plan.stacks[0].threads,
        "step_us": spread(step * 1e6),
        "run_us": spread(step * 1e6 / runs),
        "limit_us": spread(limit * 1e6 / runs) if len(limit) else None,
        "speedup": spread(runs * np.array(loop.step_s) / step)["median"],
        "limit_share": spread(limit / step)["median"] if len(limit) else None,
    }


def spread(values: np.ndarray) -> dict[str, float]:
    """The median of some values and their quartiles, as `median`, `low` and `high`."""
    low, median, high = np.quantile(values, (0.25, 0.5, 0.75)).round(3).tolist()
    return {"median": median, "low": low, "high": high}


def machine(device: torch.device, threads: int) -> Document:
    """What it was measured on.

    Args:
        device: where it was computed.
        threads: that torch takes by itself.

    Returns:
        `cpu` (model), `cores` (that may be used), `threads`, `device` (the GPU's name, or cpu),
        `torch`, `python`, `system`, and `load`: how many processes wanted a core in the minute
        before, null where the system does not count them.
    """
    info = Path("/proc/cpuinfo")  # of Linux
    model = re.search(r"^model name\s*: (.*)", info.read_text() if info.exists() else "", re.M)
    return {
        "cpu": model[1] if model else platform.processor() or platform.machine(),
        "cores": cores(),
        "threads": threads,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }
