"""Whole training steps as one CUDA graph: launched at once, with no Python between its kernels."""

import torch

from mnist_cli.engine.tape import Call

WARM_UP = 3  # real steps, run eagerly: torch asks for some before it captures


class Captured:
    """A step on a GPU that is captured after a few calls and replayed from then on.

    All that it reads and changes stays at its place in memory: parameters, moments and totals are
    changed in place; batches, learning rates and the number of the step are read from tensors.

    Args:
        step: takes and returns nothing.

    Attributes:
        refused: why the step is not captured, if torch refuses: then it always runs eagerly.
    """

    def __init__(self, step: Call) -> None:
        self._step = step
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._stream = torch.cuda.Stream()
        self.refused: str | None = None

    def __call__(self) -> None:
        """Makes a step."""
        self._calls += 1
        if self._graph is not None:
            self._graph.replay()
        elif self.refused is not None:
            self._step()
        elif self._calls <= WARM_UP:
            # On another stream, as capturing will be: what is set up lazily is set up there.
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                self._step()
            torch.cuda.current_stream().wait_stream(self._stream)
        else:
            graph = torch.cuda.CUDAGraph()
            try:
                with torch.cuda.graph(graph, stream=self._stream):
                    self._step()
            except RuntimeError as error:
                self.refused = str(error).splitlines()[0]
                self._step()
                return
            self._graph = graph
            self._graph.replay()
