"""Scripts that measure, and print the machine, torch's version and ratios. Nothing is asserted."""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch

from mnist_cli.sweeps.bench import machine

CPU = torch.device("cpu")
QUICK = ("data.name=synthetic", "data.size=700", "--epochs", "1")  # as little as can be trained


def options(about: str, rounds: int) -> argparse.ArgumentParser:
    """The options of every script: `--rounds N` and `--quick`."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--rounds", type=int, default=rounds, metavar="N")
    parser.add_argument("--quick", action="store_true", help="once and briefly: does it work?")
    return parser


def print_machine() -> None:
    found = machine(CPU, torch.get_num_threads())
    print("{cpu}, {cores} cores, torch {torch}, Python {python}, load {load}".format_map(found))


def mnist_seconds(*argv: str) -> float:
    """How long a command takes from the start of its process to the end, in a folder of its own.

    Raises:
        CalledProcessError: it failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "mnist_cli", *argv],
            env={**os.environ, "MNIST_RUNS_DIR": str(Path(folder) / "runs")},
            stdout=subprocess.DEVNULL,
            check=True,
        )
        return time.perf_counter() - start


def in_words(values: list[float], digits: int = 2) -> str:
    """The median of some values and the least and the largest of them."""
    least, most = min(values), max(values)
    return f"{median(values):.{digits}f} ({least:.{digits}f} to {most:.{digits}f})"
