"""Ray Core as the place where stacks run: a task for each, on whatever machines its cluster has.

No file system is shared: a task gets its images through Ray's object store, which holds them once
on each machine, and sends its commits as bytes.
"""

import os
import pickle
import platform
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from mnist_cli import __version__
from mnist_cli.config import Config, FileModel, own_model
from mnist_cli.data.dataset import Dataset, Split
from mnist_cli.engine.device import resolve_device
from mnist_cli.errors import RunError, UsageError, in_words
from mnist_cli.models import own
from mnist_cli.runs import interrupts
from mnist_cli.runs.datasets import Datasets, images_key
from mnist_cli.sweeps.executors import Events
from mnist_cli.sweeps.jobs import StackJob
from mnist_cli.sweeps.plan import Machines, cores
from mnist_cli.sweeps.remote import Key, Lost, messages, remote_tasks
from mnist_cli.sweeps.workers import pickled

AHEAD = 4  # messages that a task may have sent before they are taken
POLL_S = 1.0
PATIENCE_S = 120  # for a machine to say what it is
STORE_BYTES = 1 << 30  # of a Ray of our own, for images and for commits on their way

Shared = tuple[Any, ...]  # a data set of arrays, which Ray shares without a copy


@contextmanager
def cluster(where: str, datasets: Datasets, report: Callable[[str], None]) -> "Iterator[Cluster]":
    """A connection to Ray.

    Args:
        where: `ray`, which is the cluster that `$RAY_ADDRESS` names or that was started on this
            machine, else a Ray of this process's own; or `ray://HOST:PORT`, by Ray's client.
        datasets: where the data comes from.
        report: takes a sentence about the cluster, and about a task that was lost.

    Raises:
        UsageError: Ray is not installed here, there is no such cluster, or a machine of it cannot
            be used.
    """
    if where != "ray" and not where.startswith("ray://"):
        raise UsageError(f"--on {where}: there is no such place", "ray, or ray://HOST:PORT")
    with interrupts.restored():  # Ray has a handler of its own for SIGTERM
        ray, about = _connect(where)
    try:
        connected = Cluster(ray, datasets, report)
        report(f"{about}; {connected}")
        yield connected
    finally:
        if about != CONNECTED:
            ray.shutdown()


CONNECTED = "Ray, to which this process was connected"


def _connect(where: str) -> tuple[Any, str]:
    """Ray, connected, and to what."""
    started = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir(), "ray/ray_current_cluster")
    address = where
    if where == "ray":
        address = os.environ.get("RAY_ADDRESS") or ("auto" if _is_own(started) else "local")
    options: dict[str, Any] = {}
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else it warns
    if address == "local":
        options = {"num_cpus": cores(), "include_dashboard": False}
        options["object_store_memory"] = STORE_BYTES
        # "No cluster", so that it listens on the loopback alone; read when Ray is imported.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    try:
        import ray  # noqa: PLC0415 - an extra
    except ImportError as error:
        hint = "install it with: pip install 'mnist-cli[ray]'"
        raise UsageError("--on ray needs the package ray, which is not here", hint) from error
    if ray.is_initialized():
        return ray, CONNECTED
    try:
        context = ray.init(address, log_to_driver=False, logging_level="ERROR", **options)
    except (ConnectionError, RuntimeError, ValueError, ImportError) as error:
        hint = "`ray status` says whether it is there; `ray stop` forgets one that has ended"
        raise UsageError(f"--on {where} ({address}): {in_words(error)}", hint) from error
    if address == "local":
        return ray, "Ray, started for this command and seen by this machine alone"
    board = getattr(context, "dashboard_url", None)
    return ray, f"Ray, whose dashboard is http://{board}" if board else "Ray"


def _is_own(path: Path) -> bool:
    """Whether a file is there and this user's: in a folder of all users anybody may make one."""
    return path.exists() and (os.name == "nt" or path.stat().st_uid == os.getuid())


class Cluster:
    """The machines that Ray has, and the tasks of this process there.

    Args:
        ray: the module, connected.
        datasets: where the data comes from.
        report: takes a sentence about a task that was lost.

    Raises:
        UsageError: a machine has other versions than this one, or does not answer.
    """

    def __init__(self, ray: Any, datasets: Datasets, report: Callable[[str], None]) -> None:
        self._ray, self._datasets, self._report = ray, datasets, report
        self._images: dict[str, Any] = {}
        nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
        self._nodes = [node["Resources"] for node in nodes]
        self._gpu_bytes = _ask(ray, nodes)
        by_client = ray.util.client.ray.is_connected()  # which cannot stream
        self._pool: Any = _Relay(ray) if by_client else _Pool()

    def __str__(self) -> str:
        cpus, gpus = (int(sum(n.get(kind, 0) for n in self._nodes)) for kind in ("CPU", "GPU"))
        return f"machines: {len(self._nodes)}, CPUs: {cpus}, GPUs: {gpus}"

    def executor(self, jobs: Sequence[StackJob]) -> Events:
        """An `Executor`. While it runs, what is printed on stdout is lost.

        Ray prints there, from a thread of its own, that a worker has died.
        """
        with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
            yield from remote_tasks(jobs, tasks=self, report=self._report)

    def machines(self, config: Config) -> Machines:
        """What there is for the runs of a config.

        Raises:
            UsageError: there is no such device.
        """
        device = config.train.device
        if device != "cpu" and self._gpu_bytes:
            count = sum(int(node.get("GPU", 0)) for node in self._nodes)
            return Machines("cuda", count, count, 1, count * self._gpu_bytes)
        if not self._nodes or device not in ("cpu", "auto"):
            raise UsageError(f"train.device: the Ray cluster has nothing for {device}")
        cpus = [int(node["CPU"]) for node in self._nodes]
        memory = min(int(node["memory"]) for node in self._nodes)
        return Machines("cpu", len(cpus), sum(cpus), min(cpus), memory * len(cpus))

    def submit(self, key: Key, job: StackJob) -> None:
        """Starts a task as soon as there is room for it (see `remote.Tasks`)."""
        config = job.configs[0]
        name = images_key(config)
        if name not in self._images:
            self._images[name] = self._ray.put(_shared(self._datasets.get(config)))
        text = None
        if isinstance(config.model, FileModel):
            text = own_model.read(config.model.path, config.model.sha256)
        needs = {"num_cpus": min(job.threads, max(int(node["CPU"]) for node in self._nodes))}
        if self.machines(config).kind == "cuda":
            needs["num_gpus"] = 1
        self._pool.submit(key, pickled((job, text)), [self._images[name]], needs)

    def poll(self) -> Sequence[tuple[Key, bytes | Lost]]:
        """What tasks have sent, a message of each.

        Raises:
            RunError: the cluster is gone.
        """
        try:
            return self._pool.poll()  # type: ignore[no-any-return]
        except (self._ray.exceptions.RayError, ConnectionError) as error:
            raise RunError(f"the connection to Ray is lost: {in_words(error)}") from error

    def cancel(self, key: Key) -> None:
        """Ends a task, if it has not ended."""
        with suppress(self._ray.exceptions.RayError, ConnectionError):
            self._pool.cancel(key)


# ----------------------------------------------------------------------- in whatever has the tasks


class _Pool:
    """Tasks and their streams of messages."""

    def __init__(self) -> None:
        import ray  # noqa: PLC0415 - an extra

        self._ray: Any = ray
        self._streams: dict[Any, Key] = {}

    def submit(
        self, key: Key, work: bytes, images: Sequence[Any], needs: Mapping[str, int]
    ) -> None:
        options = {"num_returns": "streaming", "max_retries": 0, **needs}
        options["_generator_backpressure_num_objects"] = AHEAD
        stream = self._ray.remote(_train).options(**options).remote(work, images)
        self._streams[stream] = key

    def poll(self) -> list[tuple[Key, bytes | Lost]]:
        found: list[tuple[Key, bytes | Lost]] = []
        streams = [*self._streams]
        self._ray.wait(streams, timeout=POLL_S)
        for stream in self._ray.wait(streams, num_returns=len(streams), timeout=0)[0]:
            try:
                message = self._ray.get(next(stream))
            except StopIteration:
                message = Lost("it ended too early")
            except self._ray.exceptions.RayTaskError as error:  # before it could train
                message = Lost(in_words(error.cause), for_good=True)
            except self._ray.exceptions.RayError as error:
                message = Lost(f"{type(error).__name__}: {in_words(error)}")
            found.append((self._streams[stream], message))
            if isinstance(message, Lost):
                del self._streams[stream]
        return found

    def cancel(self, key: Key) -> None:
        for stream in [stream for stream, its in self._streams.items() if its == key]:
            del self._streams[stream]
            self._ray.cancel(stream, force=True)


class _Relay:
    """A `_Pool` in an actor on the cluster."""

    def __init__(self, ray: Any) -> None:
        self._ray = ray
        self._actor = ray.remote(_Pool).options(num_cpus=0).remote()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._actor, name)
        return lambda *arguments: self._ray.get(method.remote(*arguments))


# ------------------------------------------------------------------------------- on other machines


def _ask(ray: Any, nodes: Sequence[Mapping[str, Any]]) -> int:
    """Sees to it that machines can be used; returns the free memory of their smallest GPU.

    Raises:
        UsageError: one cannot; says which and why.
    """
    options = {"num_cpus": 0, "max_retries": 0}
    task, asked = ray.remote(_answer), {}
    for node in nodes:
        there = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node["NodeID"], False)
        ref = task.options(scheduling_strategy=there, **options).remote()
        asked[f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"] = ref
    problems, memory, ours = [], [], _versions()
    for name, ref in asked.items():
        try:
            theirs, gpus = ray.get(ref, timeout=PATIENCE_S)
        except ray.exceptions.RayError as error:
            problems.append(f"{name}: {in_words(getattr(error, 'cause', None) or error)}")
            continue
        memory += gpus
        differ = [key for key in ours if ours[key] != theirs.get(key)]
        problems += [f"{name}: {key} {theirs.get(key)}, here {ours[key]}" for key in differ]
    if problems:
        hint = "install the same on every machine"
        raise UsageError("\n  ".join(["machines of the cluster cannot be used:", *problems]), hint)
    return min(memory, default=0)


def _versions() -> dict[str, str]:
    found = {"mnist_cli": __version__, "torch": version("torch").partition("+")[0]}
    return {**found, "Python": ".".join(platform.python_version_tuple()[:2])}


def _answer() -> tuple[dict[str, str], list[int]]:
    """What a machine has: versions, and bytes free on each GPU, whichever this process may use."""
    command = ["nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits"]
    try:
        found = subprocess.check_output(command, text=True, timeout=PATIENCE_S)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        found = ""
    return _versions(), [int(line) << 20 for line in found.split()]


def _train(work: bytes, images: Sequence[Any]) -> Iterator[bytes]:
    """The task: trains a stack; yields its messages."""
    import ray  # noqa: PLC0415 - an extra

    job, text = pickle.loads(work)  # noqa: S301 - of the driver, whose code this machine runs
    with tempfile.TemporaryDirectory(prefix="mnist-") as folder:
        if text is not None:
            path = Path(folder, "model.py")
            path.write_bytes(text)
            job = replace(job, configs=[_moved(config, path) for config in job.configs])
            os.environ["XDG_STATE_HOME"] = folder  # nothing is left behind
            own.allow(job.configs[0].model)
        yield from messages(job, _Received(ray.get(images[0])))


def _moved(config: Config, path: Path) -> Config:
    return config.model_copy(update={"model": config.model.model_copy(update={"path": str(path)})})


def _shared(data: Dataset) -> Shared:
    splits = [
        (s.images.numpy(), s.labels.numpy(), s.scale) for s in (data.train, data.val, data.test)
    ]
    return data.name, data.classes, data.sha256, splits


class _Received(Datasets):
    """The one data set that the driver has sent."""

    def __init__(self, shared: Shared) -> None:
        super().__init__(print)
        self._shared = shared

    def get(self, config: Config, trained_with: str | None = None) -> Dataset:  # noqa: ARG002
        device = resolve_device(config.train.device)
        name, classes, sha256, splits = self._shared
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # they cannot be written, and are not
            made = [
                Split(torch.from_numpy(images).to(device), torch.from_numpy(labels).to(device), s)
                for images, labels, s in splits
            ]
        return Dataset(name, classes, sha256, *made)
