"""Randomness as a function: of the seed, of what it is for, and of when; never of hidden state."""

import hashlib


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
