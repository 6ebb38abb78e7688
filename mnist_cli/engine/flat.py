"""The numbers of all parameters in one row: so one call of an optimizer's kernel serves many."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Size, Tensor

ALIGNED = 16  # numbers: a vector register of floats, so that no rounding depends on neighbours


@dataclass(frozen=True)
class Flat:
    """One number for each that a stack learns, as a row and by parameter.

    Attributes:
        row: all of them: of the first parameter for all replicas, then of the second, and so on.
            Every replica's part begins at a multiple of `ALIGNED`; what is left between is 0.
        views: by name, shape (R, *shape in the plain module).
    """

    row: Tensor
    views: dict[str, Tensor]

    @classmethod
    def zeros(
        cls, shapes: Mapping[str, Size], replicas: int, dtype: torch.dtype, device: torch.device
    ) -> Self:
        """All numbers 0."""
        pitches = [-(-shape.numel() // ALIGNED) * ALIGNED for shape in shapes.values()]
        row = torch.zeros(replicas * sum(pitches), dtype=dtype, device=device)
        parts = row.split([replicas * pitch for pitch in pitches])
        views = {
            name: part.view(replicas, -1)[:, : shape.numel()].view(replicas, *shape)
            for (name, shape), part in zip(shapes.items(), parts, strict=True)
        }
        return cls(row, views)

    def like(self) -> "Flat":
        """As many zeros, in the same places."""
        shapes = {name: view.shape[1:] for name, view in self.views.items()}
        replicas = len(next(iter(self.views.values())))
        return Flat.zeros(shapes, replicas, self.row.dtype, self.row.device)

    def only(self, names: Iterable[str]) -> "Flat":
        """The same numbers, of which only some parameters are seen."""
        return Flat(self.row, {name: self.views[name] for name in names})

    def state_dict(self, replica: int) -> dict[str, Tensor]:
        """What belongs to one replica, by parameter: copies on the CPU."""
        return {
            name: view[replica].to("cpu", copy=True).contiguous()
            for name, view in self.views.items()
        }

    def load_state_dict(self, replica: int, state: Mapping[str, Tensor]) -> None:
        """Sets what belongs to one replica.

        Raises:
            KeyError: a parameter is missing.
            RuntimeError: a shape differs.
        """
        for name, view in self.views.items():
            view[replica].copy_(state[name].detach())

    def runs(self, replicas: Sequence[int]) -> list[Tensor]:
        """The row without what belongs to other replicas, in as few pieces as it can be."""
        edges: list[list[int]] = []
        for view in self.views.values():
            pitch = view.stride(0)
            for replica in replicas:
                start = int(view.storage_offset()) + replica * pitch
                if edges and edges[-1][1] == start:
                    edges[-1][1] += pitch
                else:
                    edges.append([start, start + pitch])
        return [self.row[a:b] for a, b in edges]
