"""Ctrl-C and SIGTERM: the first is an exception, so that what runs can be saved; a second ends it.

Whoever is in the middle of something that is worth finishing holds them off for that moment.
"""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

RESTORE_CURSOR = b"\x1b[?25h\n"  # which a live line had hidden


class Terminated(SystemExit):
    """SIGTERM has come: for it what KeyboardInterrupt is for Ctrl-C."""


@dataclass
class _State:
    heard: int = 0  # the first signal that came
    held: int = 0  # how many blocks want to be finished first
    raised: bool = False
    patient: bool = False  # whether a second signal is nothing new


_state = _State()


def listen() -> None:
    """From now on Ctrl-C and SIGTERM interrupt; those that were to be ignored still are."""
    vars(_state).update(vars(_State()))
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _hear)


def listen_as_worker() -> None:
    """The same for a process whose parent decides: Ctrl-C reaches it too, and SIGTERM tells."""
    vars(_state).update(vars(_State(patient=True)))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _hear)


def ignore() -> None:
    """Nothing is left that could be interrupted."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


@contextmanager
def held() -> Iterator[None]:
    """What is begun in this block is finished before an interruption is raised."""
    _state.held += 1
    try:
        yield
    finally:
        _state.held -= 1
        if _state.heard:
            _raise()


def _hear(number: int, _frame: object) -> None:
    if not _state.heard:
        _state.heard = number
        _raise()
    elif not _state.patient:
        if sys.stderr and sys.stderr.isatty():
            os.write(sys.stderr.fileno(), RESTORE_CURSOR)
        os._exit(128 + number)  # every file is whole at every moment, and workers end by themselves


def _raise() -> None:
    if _state.held or _state.raised:
        return
    _state.raised = True
    if _state.heard == signal.SIGINT:
        raise KeyboardInterrupt
    raise Terminated(128 + _state.heard)
