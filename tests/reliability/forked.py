"""The harness, by the name that one of the tests still knows it by."""

from tests.reliability.harness import Command, alive, calls, end_all, until

__all__ = ["Command", "alive", "calls", "end_all", "until"]
