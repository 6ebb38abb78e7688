"""What torch keeps for the whole process while it computes."""

import torch

from mnist_cli.engine.device import computing, threaded


def any_denormal() -> bool:
    """Whether some thread computes with numbers below 1e-38: each takes a part of these."""
    return bool(torch.full((1 << 20,), 1e-30).mul_(1e-10).any())


def test_denormals_are_flushed_in_threads_that_were_there_before() -> None:
    with threaded(2):
        assert any_denormal()
        with computing(2, "fp32"):
            assert torch.get_num_threads() == 2
            assert not any_denormal()


def test_denormals_are_flushed_with_one_thread_and_then_as_before() -> None:
    with threaded(1), computing(1, "fp32"):
        assert not any_denormal()
    assert any_denormal()
