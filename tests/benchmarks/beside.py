"""How much slower `mnist train` gets beside a busy process: `python -m tests.benchmarks.beside`."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tests.benchmarks import QUICK, in_words, mnist_seconds, options, print_machine

CONFIGS = ("cnn_sequential", "mlp")
BUSY = (
    "import os; parent = os.getppid()\nwhile os.getppid() == parent: pass"  # ends with this script
)


@contextmanager
def busy(number: int) -> Iterator[None]:
    """So many processes that each keep a core busy."""
    processes = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(number)
    ]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def main() -> None:
    parser = options("How much slower `mnist train` gets beside busy processes.", rounds=3)
    parser.add_argument("--busy", type=int, default=1, metavar="N", help="how many [1]")
    chosen = parser.parse_args()
    quick = QUICK if chosen.quick else ()
    print_machine()
    times: dict[tuple[str, int], list[float]] = {}
    for number in range(1 if chosen.quick else chosen.rounds):
        for config in CONFIGS:
            # In turn first and second, as the machine may get slower or faster meanwhile.
            for beside in sorted((0, chosen.busy), reverse=number % 2 == 1):
                with busy(beside):
                    seconds = mnist_seconds("train", "-c", config, *quick)
                times.setdefault((config, beside), []).append(seconds)
    for config in CONFIGS:
        alone, beside = times[config, 0], times[config, chosen.busy]
        ratios = [b / a for a, b in zip(alone, beside, strict=True)]
        print(
            f"mnist train -c {config}: alone {in_words(alone)} s, beside {chosen.busy} busy "
            f"{in_words(beside)} s, ratio {in_words(ratios)}"
        )


if __name__ == "__main__":
    main()
