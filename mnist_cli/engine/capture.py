"""Whole training steps as one CUDA graph: launched at once, with no Python between its kernels."""

from collections.abc import Callable

import torch
from torch import Tensor

WARM_UP = 3  # real steps, run eagerly: torch asks for some before it captures


class Captured:
    """A step on a GPU that is captured after a few calls and replayed from then on.

    All the step reads and changes has to stay at its place in memory: parameters, moments and
    totals are changed in place, learning rates and the number of the step are read from tensors,
    and weights can be loaded between steps. A batch of another size than the first, as the last of
    an epoch often is, runs eagerly. So does everything if torch refuses to capture.

    Args:
        step: takes images and labels, on the GPU; returns nothing.

    Attributes:
        refused: why steps are not captured, if they cannot be.
    """

    def __init__(self, step: Callable[[Tensor, Tensor], None]) -> None:
        self._step = step
        self._calls = 0
        self._batch: tuple[Tensor, Tensor] | None = None  # where a replayed step reads it
        self._graph: torch.cuda.CUDAGraph | None = None
        self._stream = torch.cuda.Stream()
        self.refused: str | None = None

    def __call__(self, images: Tensor, labels: Tensor) -> None:
        """Makes a step."""
        if self._batch is None:
            self._batch = images.clone(), labels.clone()
        if self.refused is not None or images.shape != self._batch[0].shape:
            self._step(images, labels)
            return
        self._calls += 1
        if self._calls <= WARM_UP:
            # On another stream, as capturing will be: what is set up lazily is set up there.
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                self._step(images, labels)
            torch.cuda.current_stream().wait_stream(self._stream)
            return
        self._batch[0].copy_(images)
        self._batch[1].copy_(labels)
        if self._graph is None:
            graph = torch.cuda.CUDAGraph()
            try:
                with torch.cuda.graph(graph, stream=self._stream):
                    self._step(*self._batch)
            except RuntimeError as error:
                self.refused = str(error).splitlines()[0]
                self._step(images, labels)
                return
            self._graph = graph
        self._graph.replay()
