"""On a Ray cluster sweeps come to the bits of this machine, whatever becomes of its machines."""

import hashlib
import ipaddress
import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from mnist_cli.errors import UsageError
from mnist_cli.models import own
from mnist_cli.runs.datasets import Datasets
from mnist_cli.runs.store import RunDirectory
from mnist_cli.sweeps import on_ray
from mnist_cli.sweeps.executors import local_processes
from mnist_cli.sweeps.jobs import Epoch
from tests.conftest import Mnist
from tests.reliability.harness import alive, children, contents, disagreements, until
from tests.sweeps.trained import Trained, config

pytest.importorskip("ray")
pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.xdist_group("ray")]

LONG = 12  # epochs


@pytest.fixture(scope="session")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A cluster: a head without CPUs and two machines of one CPU, all of them here."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        patch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        small = {"object_store_memory": 80 << 20, "include_dashboard": False}
        cluster = Cluster(True, head_node_args={"num_cpus": 0, **small})
        for _ in range(2):
            cluster.add_node(num_cpus=1, object_store_memory=80 << 20)
        yield cluster
        cluster.shutdown()


@pytest.fixture(scope="session")
def _connected(nodes: Any) -> Iterator[None]:
    import ray

    ray.init(nodes.address, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.fixture
def ray_cluster(_connected: None) -> Iterator[on_ray.Cluster]:
    with on_ray.cluster("ray", Datasets(print), print) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return Trained(config(LONG, LONG), tmp_path_factory.mktemp("local"), _local()).contents


def _local() -> Any:
    return partial(local_processes, datasets=Datasets(print), processes=2)


def _training(node: Any) -> list[int]:
    """The processes of a machine's tasks that train."""
    found = []
    for raylet in node.all_processes["raylet"]:
        for pid in children(raylet.process.pid):
            with suppress(OSError):
                if "_train" in Path(f"/proc/{pid}/cmdline").read_text():
                    found.append(pid)
    return found


def test_a_sweep_is_that_of_this_machine(
    ray_cluster: on_ray.Cluster, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    machines = ray_cluster.machines(config())
    assert (machines.kind, machines.count, machines.slots, machines.threads) == ("cpu", 2, 2, 1)
    trained = Trained(config(LONG, LONG), tmp_path, ray_cluster.executor)
    assert trained.contents == undisturbed
    assert trained.attempts() == [1] * 6


def test_workers_that_are_killed_lose_nothing(
    nodes: Any,
    ray_cluster: on_ray.Cluster,
    undisturbed: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    killed: list[int] = []

    def kill(event: object) -> None:
        if isinstance(event, Epoch) and event.records[0] and len(killed) < 3:
            for pid in itertools.chain.from_iterable(map(_training, nodes.list_all_nodes())):
                killed.append(pid)
                os.kill(pid, signal.SIGKILL)

    trained = Trained(config(LONG, LONG), tmp_path, ray_cluster.executor, kill)
    assert len(killed) >= 3
    assert trained.contents == undisturbed
    assert sum(trained.attempts()) > 6
    assert capsys.readouterr().out == ""  # it is for results


def test_a_model_of_ones_own_goes_along(ray_cluster: on_ray.Cluster, tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    path.write_text(
        "from torch import nn\n"
        "def net(shape, classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(784, 8), nn.ReLU(), nn.Linear(8, 10))\n"
    )
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    asked = config(
        2, 1, model={"name": "file", "path": str(path), "factory": "net", "sha256": sha256}
    )
    own.allow(asked.model)  # type: ignore[arg-type]
    trained = Trained(asked, tmp_path / "ray", ray_cluster.executor)
    path.write_text(path.read_text())
    assert trained.contents == Trained(asked, tmp_path / "local", _local()).contents
    assert trained.contents["status"] == "finished"


@pytest.mark.usefixtures("_connected")
def test_machines_with_other_versions_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_ray, "__version__", "9.9")
    with (
        pytest.raises(UsageError, match=r"\n  \S+ \([\d.]+\): mnist_cli 0\..*here 9\.9"),
        on_ray.cluster("ray", Datasets(print), print),
    ):
        pass


def test_a_machine_that_goes_loses_nothing(
    nodes: Any, ray_cluster: on_ray.Cluster, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    seen, gone = set[str](), list[Any]()

    def remove(event: object) -> None:
        if isinstance(event, Epoch):
            seen.add(event.runs[0].folder.name)
        if len(seen) == 2 and not gone:
            # The stack that has just begun still trains: it is a few epochs ahead at most.
            gone.append([node for node in nodes.list_all_nodes() if _training(node)][-1])
            nodes.remove_node(gone[0], allow_graceful=False)

    trained = Trained(config(LONG, LONG), tmp_path, ray_cluster.executor, remove)
    assert trained.contents == undisturbed
    assert sum(trained.attempts()) > 6


def test_a_driver_that_is_interrupted_or_killed_goes_on(
    nodes: Any, tmp_path: Path, mnist: Mnist
) -> None:
    asked, folder = tmp_path / "asked.yaml", tmp_path / "remote-sweep-0001"
    local = Trained(config(60, 60), tmp_path, _local())
    asked.write_text((local.folder / "sweep.yaml").read_text())

    def epochs() -> int:
        return sum(len(trial.metrics()) for trial in RunDirectory(folder).trials())

    with _command(tmp_path, "local", "sweep", "-c", str(asked)) as process:  # on a Ray of its own
        until(lambda: epochs() > 4)
        family = [*_descendants(process.pid)]
        listening = [address for pid in family for address in _listening(pid)]
        process.send_signal(signal.SIGINT)
        assert "interrupted: " in process.communicate()[1]
        assert process.returncode == 130
    assert len(listening) > 2
    assert all(address.is_loopback for address in listening), listening
    assert disagreements(folder) == []
    until(lambda: not any(map(alive, family)))
    before = epochs()
    with _command(tmp_path, nodes.address, "resume", str(folder)) as process:
        until(lambda: epochs() > before + 4)
        process.kill()
        process.communicate()
    assert mnist("resume", str(folder)).code == 0
    assert contents(folder) == local.contents
    assert max(len(t.meta()["attempts"]) for t in RunDirectory(folder).trials()) > 1


def _command(runs: Path, address: str, *argv: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "mnist_cli", *argv, "--on", "ray", "--workers", "2"]
    variables = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_ADDRESS": address}
    pipes: Any = {"stderr": subprocess.PIPE, "stdout": subprocess.DEVNULL, "text": True}
    return subprocess.Popen([*command, "--runs-dir", str(runs)], env=variables, **pipes)


def _descendants(pid: int) -> Iterator[int]:
    yield pid
    for child in children(pid):
        yield from _descendants(child)


def _listening(pid: int) -> Iterator[ipaddress.IPv4Address]:
    """The addresses at which a process waits for connections."""
    inodes = set()
    for file in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            inodes.add(str(file.readlink()).removeprefix("socket:[").removesuffix("]"))
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:  # listening; see proc(5)
                last = fields[1].partition(":")[0][-8:]  # of an IPv6 address what IPv4 is mapped to
                yield ipaddress.IPv4Address(bytes.fromhex(last)[::-1])
