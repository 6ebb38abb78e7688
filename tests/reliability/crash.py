"""The harness, by a name that one of the tests still knows it by."""

from tests.reliability.harness import contents

__all__ = ["contents"]
