"""How runs share the machine: which train as one stack, in how many processes and threads.

The rules, each justified by measurement (`mnist bench` measures again on your machine):

- Runs that differ only in what a stack holds apart make one stack: it shares the work of Python,
  and the images.
- On a CPU a stack is dealt out to one process per core, each with one thread. Steps of small models
  are so short that threads wait for each other longer than they compute; processes never wait.
- Threads are for large steps of fewer runs than there are cores, in one process. (A forked process
  could not have several anyway: the thread pool of its parent is lost, and it would wait for it.)
- A stack holds no more replicas than keep a step's activations in the cache; more would make every
  replica slower.
- On a GPU there is one process, and a stack holds all replicas that fit into its memory.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path

import torch

from mnist_cli.config import Config
from mnist_cli.data.dataset import Dataset
from mnist_cli.models.modules import Cost, build, cost

# Multiply-adds of a stack's forward pass from which a second thread pays for itself. Beside other
# work threads wait for each other: on two cores with a load of 4 a step of the convolutional
# network (11 million) took 3.8 ms with one thread and 33 to 95 with two, one of E5's depth 5 (600
# million) 34 ms with one and 68 to 132 with two, which on a quiet machine is almost twice as fast.
THREADS_PAY = 100_000_000

# Numbers a stack may keep for its backward pass: 16 MiB. Eight of the convolutional network's
# replicas fit (4.5 million); thirty-two in one stack take half as long again, each.
CACHED = 5_000_000

# Multiply-adds of one epoch of all runs below which no process is worth starting: a tenth of a
# second. Of one epoch, as a run that is extended later must be dealt out as if it had been longer
# from the start.
PROCESSES_PAY = 500_000_000

MEMORY_SHARE = 0.5  # of what is free, for the parameters and activations of all stacks together


@dataclass(frozen=True)
class StackPlan:
    """Runs that train as one stack, by their places in the sweep, and the threads they get.

    The order counts: replicas that share a seed are neighbours. The same stack on the same machine
    comes to the same bits.
    """

    members: tuple[int, ...]
    threads: int


@dataclass(frozen=True)
class Plan:
    """All stacks of a sweep, and how many processes take them one after another.

    Attributes:
        workers: 1 means this process.
    """

    stacks: tuple[StackPlan, ...]
    workers: int


@dataclass(frozen=True)
class Machines:
    """Where stacks can run: this machine, or those of a cluster.

    Attributes:
        kind: of device, `cpu` or `cuda`.
        count: how many machines, or GPUs of a cluster.
        slots: how many stacks of one thread they take at a time.
        threads: the most for one stack.
        memory: bytes of all together.
    """

    kind: str
    count: int
    slots: int
    threads: int
    memory: int


def this_machine(device: torch.device) -> Machines:
    """This machine, with processes as far as they can be forked."""
    slots = cores() if device.type == "cpu" and can_fork() else 1
    return Machines(device.type, 1, slots, cores(), _free_memory(device))


def cores() -> int:
    """How many CPU cores this process may use: by affinity, and by the quota of its cgroup."""
    affinity = getattr(os, "sched_getaffinity", None)
    count = len(affinity(0)) if affinity else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            count = min(count, max(1, int(quota) // int(period)))
    except (OSError, ValueError):
        pass  # not Linux, or no such limit
    return count


def can_fork() -> bool:
    """Whether workers can be forked: elsewhere they would import and load everything anew."""
    return hasattr(os, "fork") and os.uname().sysname == "Linux"


def plan(
    stacks: Sequence[Sequence[int]],
    configs: Sequence[Config],
    data: Sequence[Dataset],
    workers: int | None = None,
    machines: Machines | None = None,
) -> Plan:
    """How the runs of a sweep are dealt out.

    Args:
        stacks: runs that can train as one, by their places.
        configs: of every run.
        data: of every stack.
        workers: how many processes, if not as many as pay.
        machines: where they run, if not here.
    """
    devices = [dataset.train.images.device for dataset in data]
    device = max(devices, key=lambda device: device.type != "cpu")
    alone = machines is None and (device.type != "cpu" or not can_fork())
    machines = machines or this_machine(device)
    costs = [
        _step_cost(configs[stack[0]], dataset) for stack, dataset in zip(stacks, data, strict=True)
    ]
    if alone:
        workers = 1
    elif workers is None:
        work = sum(
            one.multiply_adds * len(stack) * _epoch_steps(configs[stack[0]], dataset)
            for one, stack, dataset in zip(costs, stacks, data, strict=True)
        )
        large = any(one.multiply_adds >= THREADS_PAY for one in costs)
        few = len(configs) < machines.slots and large
        most = min(machines.count, len(configs)) if few else machines.slots
        workers = most if work >= PROCESSES_PAY else 1
    room = machines.memory * MEMORY_SHARE / 4 / workers  # numbers
    pieces: list[tuple[tuple[int, ...], Cost]] = []
    for stack, one in zip(stacks, costs, strict=True):
        largest = room / (one.activations + 6 * one.parameters)
        if machines.kind == "cpu":
            largest = min(largest, CACHED / max(1, one.activations))
        least = max(workers, -(-len(stack) // max(1, int(largest))))
        least = min(len(stack), -(-least // workers) * workers)  # or some would wait for others
        pieces += [(piece, one) for piece in split(stack, configs, least)]
    workers = min(workers, len(pieces))
    threads = machines.threads if workers <= machines.count else 1
    planned = [
        StackPlan(piece, threads if one.multiply_adds * len(piece) >= THREADS_PAY else 1)
        for piece, one in pieces
    ]
    return Plan(tuple(planned), workers)


def split(stack: Sequence[int], configs: Sequence[Config], pieces: int) -> list[tuple[int, ...]]:
    """A stack in pieces of nearly one size, replicas of one seed side by side.

    If it goes up, every piece gets whole seeds, or the same share of every seed: what has an order
    of batches in common then shares them.
    """
    by_seed = sorted(stack, key=lambda index: configs[index].train.seed)
    seeds = [list(g) for _, g in groupby(by_seed, lambda index: configs[index].train.seed)]
    sizes = {len(group) for group in seeds}
    if len(seeds) % pieces and len(sizes) == 1 and not len(seeds[0]) % pieces:
        share = len(seeds[0]) // pieces
        return [
            tuple(index for group in seeds for index in group[share * n : share * (n + 1)])
            for n in range(pieces)
        ]
    ends = [len(by_seed) * n // pieces for n in range(pieces + 1)]
    return [tuple(by_seed[a:b]) for a, b in pairwise(ends)]


def _epoch_steps(config: Config, data: Dataset) -> int:
    per_epoch = -(-len(data.train) // config.data.batch_size)
    return min(per_epoch, config.train.steps or per_epoch)


def _step_cost(config: Config, data: Dataset) -> Cost:
    """What a step of one replica costs."""
    try:
        model = build(config.model, data.shape, len(data.classes), 0)
        return cost(model, data.shape, min(config.data.batch_size, len(data.train)))
    except Exception:  # noqa: BLE001 - it will fail again where its runs can say so
        return Cost(1, 0, 1)


def _free_memory(device: torch.device) -> int:
    """Bytes that are free, within a cgroup's limit."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = 4 << 30  # where the system does not say
    try:
        fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(fields["MemAvailable"].split()[0]) << 10
        limit = Path("/sys/fs/cgroup/memory.max").read_text()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        free = min(free, max(0, int(limit) - used))
    except (OSError, ValueError, KeyError):
        pass  # not Linux, or no such limit
    return free
