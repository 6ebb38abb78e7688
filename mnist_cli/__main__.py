"""The command `mnist`, also as `python -m mnist_cli`."""

import gc
import os
import signal
import sys

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def main() -> None:
    """Runs the command line of this process, and exits with its code.

    Until a command has something to save (see `runs.interrupts`), Ctrl-C and SIGTERM end the
    process at once and in silence: an exception in the midst of imports would be shown as a
    traceback, or abort the process inside a library that is being loaded.
    """
    for number in SIGNALS:  # before anything else is imported
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda number, _: os._exit(128 + number))
    # Read when torch is loaded. Threads that spin while they wait for each other hold cores which
    # another process needs; beside four such processes a step took forty times as long.
    # `bench` leaves it as it is: the tutorial's loop is to wait as a script of its own would.
    if sys.argv[1:2] != ["bench"]:
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    gc.set_threshold(100_000)  # imports make many objects and no garbage
    from mnist_cli.cli import run_command  # noqa: PLC0415

    # All output is flushed by then. Taking torch apart would take as long again as loading it.
    try:
        os._exit(run_command(sys.argv[1:]))
    except KeyboardInterrupt:  # it came while the command was ending
        os._exit(130)


if __name__ == "__main__":
    main()
