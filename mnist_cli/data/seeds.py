"""Randomness as a function: of the seed, of what it is for, and of when; never of hidden state."""

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # whoever has tensors has torch; others do without
    from collections.abc import Callable

    from torch import Tensor


def derive(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed for one purpose, independent of every other purpose's.

    `derive(0, "order", 3)` is the seed of the fourth epoch's batch order in the run of seed 0,
    whatever was drawn before, so a run can be continued at any point and a replica of a stack draws
    what the same run would draw alone.

    Args:
        seed: the run's (or the data's) seed.
        purpose: what the numbers are for and, where there are several, which of them.
    """
    text = "/".join(str(part) for part in (seed, *purpose))
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def random_bits(positions: "Tensor", seed: "Tensor") -> "Callable[[Tensor], Tensor]":
    """Random numbers of 32 bits, as a function of the step's number, int32 or int64.

    Args:
        positions: what each number is of, int64.
        seed: int64; broadcast against the positions, as the step is.
    """
    # What does not depend on the step is hashed once. int32 adds and multiplies modulo 2^32 as the
    # hash wants it, in half the memory of int64.
    fixed = _hash32(_low32(positions + (seed & 0xFFFFFFFF))) ^ _low32(seed >> 32)

    def bits(step: "Tensor") -> "Tensor":
        step = _low32(step.long())
        return _hash32(_hash32(fixed ^ (step + step)) + step)

    return bits


def _low32(x: "Tensor") -> "Tensor":
    """The low 32 bits of int64."""
    return (x & 0xFFFFFFFF).sub((x & 0x80000000) << 1).int()


def _hash32(x: "Tensor") -> "Tensor":
    """A 32-bit hash of each element of int32, whose sign a shift to the right drags along.

    The constants are those of Chris Wellons' `lowbias32`, found by search for a low avalanche bias.
    """
    x = (x ^ ((x >> 16) & 0xFFFF)) * 0x7FEB352D
    x = (x ^ ((x >> 15) & 0x1FFFF)) * (0x846CA68B - 2**32)
    return x ^ ((x >> 16) & 0xFFFF)
