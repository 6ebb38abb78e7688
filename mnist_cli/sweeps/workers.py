"""Forked processes that do jobs and send this one what happens in them.

A worker shares what its parent had loaded when it was forked, without a copy: torch, the images. It
computes with its own threads and touches neither files nor the terminal. It ends when its parent
does, however that ends; and when it is killed, its parent knows.
"""

import io
import multiprocessing
import os
import pickle
import signal
import threading
import time
import warnings
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from typing import Any

import torch
from torch import Tensor

from mnist_cli.runs import interrupts

GRACE = 3.0  # seconds workers have to end when they are asked to

Send = Callable[[Any], None]


@dataclass(frozen=True)
class WorkerDied:
    """A worker ended before its job did.

    Attributes:
        why: in words.
    """

    why: str


def run_jobs(
    jobs: Sequence[Callable[[Send], None]], processes: int
) -> Generator[tuple[int, Any], bool | None, None]:
    """Does jobs in forked processes, so many at a time.

    Closing the generator ends them all: they get SIGTERM, and a few seconds.

    Args:
        jobs: each takes what sends a message to this process; it must not raise.
        processes: how many at a time.

    Yields:
        (which job, message) for every message, and for a job whose process died a `WorkerDied`.
        A false value sent back in answer ends that job.
    """
    waiting = list(enumerate(jobs))[::-1]
    running: dict[Connection, tuple[int, ForkProcess]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < processes:
                number, job = waiting.pop()
                with interrupts.held():  # or a worker could be started that nothing ends
                    connection, process = _start(job)
                    running[connection] = number, process
            for ready in wait(list(running)):
                assert isinstance(ready, Connection)
                number, process = running[ready]
                try:
                    message = pickle.loads(ready.recv_bytes())  # noqa: S301 - of our own fork
                except (EOFError, OSError):  # the latter in the middle of a message
                    process.join()
                    del running[ready]
                    ready.close()
                    if process.exitcode:
                        yield number, WorkerDied(_exit_in_words(process.exitcode))
                    continue
                if (yield number, message) is False:
                    del running[ready]
                    ready.close()
                    _end([process])
    finally:
        _end([process for _, process in running.values()])


def _start(job: Callable[[Send], None]) -> tuple[Connection, ForkProcess]:
    receiving, sending = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(
        target=_work, args=(job, sending), daemon=True
    )
    with warnings.catch_warnings():
        # From Python 3.12 on, forking beside threads warns. Ours only draw the progress line.
        warnings.simplefilter("ignore", DeprecationWarning)
        process.start()
    sending.close()
    return receiving, process


def _work(job: Callable[[Send], None], sending: Connection) -> None:
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # its parent gets it too, and ends it
        interrupts.listen()
        torch.set_num_threads(1)  # its parent's are not here, and it would wait for them for ever
        threading.Thread(target=_end_with_parent, daemon=True).start()
        job(lambda message: sending.send_bytes(pickled(message)))
        code = 0
    except interrupts.Terminated:
        code = 143
    finally:
        sending.close()
        os._exit(code)  # nothing of the parent's is flushed, closed or unlocked twice


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _end(processes: Sequence[ForkProcess]) -> None:
    """Ends workers: asks, waits, and then does not ask."""
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + GRACE
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.exitcode is None:
            process.kill()
            process.join()


def _exit_in_words(code: int) -> str:
    if code > 0:
        return f"its process ended with exit code {code}"
    return f"its process was ended by signal {-code} ({signal.strsignal(-code)})"


class _Pickler(pickle.Pickler):
    """Tensors travel as arrays: torch's own way would need a file for each."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return torch.from_numpy, (value.numpy(),)
        return NotImplemented


def pickled(message: Any) -> bytes:
    """A message as bytes; `pickle.loads` reads them."""
    buffer = io.BytesIO()
    _Pickler(buffer, pickle.HIGHEST_PROTOCOL).dump(message)
    return buffer.getvalue()
