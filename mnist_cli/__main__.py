"""The command `mnist`, also as `python -m mnist_cli`."""

import sys
from typing import NoReturn

from mnist_cli.runs import interrupts


def main() -> NoReturn:
    """Runs the command line of this process."""
    interrupts.listen()
    try:
        # Imported here, so that Ctrl-C during the first tenths of a second is no traceback either.
        from mnist_cli.cli import run_command  # noqa: PLC0415

        code = run_command(sys.argv[1:])
    except (KeyboardInterrupt, interrupts.Terminated) as interruption:
        print("interrupted", file=sys.stderr)  # noqa: T201
        code = 130 if isinstance(interruption, KeyboardInterrupt) else 143
    interrupts.ignore()
    sys.exit(code)


if __name__ == "__main__":
    main()
