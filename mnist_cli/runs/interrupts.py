"""Ctrl-C and SIGTERM: the first is raised, so that what runs can be saved; a second ends it.

A block that must be finished once it has begun holds them off for that moment.
"""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

SIGNALS = (signal.SIGINT, signal.SIGTERM)
RESTORE_CURSOR = b"\x1b[?25h\n"  # which a live line had hidden


class Terminated(SystemExit):
    """SIGTERM has come: for it what KeyboardInterrupt is for Ctrl-C."""


@dataclass
class _State:
    received: int = 0  # the first signal
    held: int = 0  # how many blocks want to be finished first
    raised: bool = False


_state = _State()


def listen() -> None:
    """From now on the first Ctrl-C or SIGTERM is raised; a signal that was ignored still is.

    A command calls it when it has something to save or to clean up, after what it imports.
    """
    vars(_state).update(vars(_State()))
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _handle)


@contextmanager
def listening() -> Iterator[None]:
    """Listens (see `listen`) while the block runs. Only the main thread can.

    Raises:
        ValueError: it is called from another thread.
    """
    with restored():
        listen()
        yield


@contextmanager
def restored() -> Iterator[None]:
    """After the block whoever handled the signals before it handles them again."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


@contextmanager
def held() -> Iterator[None]:
    """What is begun in this block is finished before a signal is raised."""
    _state.held += 1
    try:
        yield
    finally:
        _state.held -= 1
        if _state.received:
            _raise()


def _handle(number: int, _frame: object) -> None:
    if not _state.received:
        _state.received = number
        _raise()
    else:
        if sys.stderr and sys.stderr.isatty():
            os.write(sys.stderr.fileno(), RESTORE_CURSOR)
        os._exit(128 + number)  # every file is whole at every moment, and workers end by themselves


def _raise() -> None:
    if _state.held or _state.raised:
        return
    _state.raised = True
    if _state.received == signal.SIGINT:
        raise KeyboardInterrupt
    raise Terminated(128 + _state.received)
