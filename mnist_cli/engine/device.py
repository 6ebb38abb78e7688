"""Devices, and what torch and the C library keep for the whole process while it computes."""

import ctypes
import functools
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from mnist_cli.errors import UsageError


def resolve_device(name: str) -> torch.device:
    """The device of a config's `train.device`.

    Raises:
        UsageError: it is not there; names those that are.
    """
    available = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if name == "auto":
        return torch.device(available[1] if len(available) > 1 else "cpu")
    wanted = "cuda:0" if name == "cuda" else name
    if wanted not in available:
        raise UsageError(
            f"train.device: there is no {name} here", f"available: {', '.join(available)}"
        )
    return torch.device(wanted)


def describe_device(device: torch.device) -> str:
    """A device in words: what it is, and on a CPU with how many threads."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    threads = torch.get_num_threads()
    return f"cpu, {threads} thread{'s' * (threads > 1)}"


@contextmanager
def threaded(number: int) -> Iterator[int]:
    """Has torch compute with so many CPU threads for a while; gives how many it had."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield before
    finally:
        torch.set_num_threads(before)


@contextmanager
def computing(threads: int, precision: str) -> Iterator[None]:
    """Sets for a while what torch keeps for the whole process.

    Args:
        threads: CPU threads.
        precision: as in `train.precision`.
    """
    cuda = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    _keep_memory()
    try:
        with threaded(threads):
            _flush_denormals(threads)
            yield
    finally:
        torch.set_flush_denormal(False)
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = cuda


def _flush_denormals(threads: int) -> None:
    """Has this thread and all of OpenMP's take numbers below 1e-38 for 0.

    What an optimizer remembers of a weight that no longer learns fades to such numbers and stays
    there, and a CPU computes with them up to a hundred times slower. The setting is a thread's own;
    new ones get it from the thread that starts them, but those that torch has started before would
    do without, and the same run would come to other bits with another number of threads.
    """
    torch.set_flush_denormal(True)
    if threads > 1 and sys.platform == "linux":
        with suppress(OSError, AttributeError, StopIteration):  # another OpenMP
            lines = Path("/proc/self/maps").read_text().splitlines()
            library = next(line.split()[-1] for line in lines if "libgomp" in line)
            in_each = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
            flush = in_each(lambda _: bool(torch.set_flush_denormal(True)) and None)
            ctypes.CDLL(library).GOMP_parallel(flush, None, threads, 0)


@functools.cache
def _keep_memory() -> None:
    """Has the C library keep what a step frees, as the next step wants the same again.

    Otherwise glibc gives blocks of some size back to the system, which clears every page of them
    anew: a fifth of the time of a step of the convolutional network.
    """
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # another C library
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # the most there can be
            mallopt(_M_TRIM_THRESHOLD, 256 << 20)


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
