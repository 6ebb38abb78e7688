"""The command `mnist`, also as `python -m mnist_cli`."""

import sys
from typing import NoReturn


def main() -> NoReturn:
    """Runs the command line of this process."""
    try:
        # Imported here, so that Ctrl-C during the first tenths of a second is no traceback either.
        from mnist_cli.cli import run_command  # noqa: PLC0415

        sys.exit(run_command(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
