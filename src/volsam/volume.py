"""A volume: values on a grid, with a name for messages."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from volsam.errors import BadInput
from volsam.geometry import Grid


@dataclass(frozen=True, eq=False)
class Volume:
    """Values on a grid.

    `data` is (c, i, j, k); an (i, j, k) array becomes one channel. Intensities are as the file means them (its scaling
    applied), in the smallest type that holds them. `header` is what a reader keeps so that a mask written beside the
    volume carries the same geometry fields to the last bit; nothing else looks at it.
    """

    data: NDArray[np.generic]
    grid: Grid
    name: str = "volume"
    header: object | None = None

    def __post_init__(self) -> None:
        data = np.asarray(self.data)
        if data.ndim == 3:
            data = data[None]
        if data.ndim != 4 or data.shape[1:] != self.grid.shape:
            raise BadInput(f"{self.name}: data of shape {data.shape} do not fit a grid of shape {self.grid.shape}")
        object.__setattr__(self, "data", data)

    @property
    def channels(self) -> int:
        """Number of values in each voxel."""
        return int(self.data.shape[0])

    @property
    def megabytes(self) -> float:
        """Memory that the values take."""
        return self.data.nbytes / 2**20

    def with_data(self, data: NDArray[np.generic], name: str | None = None) -> Volume:
        """Other values on this volume's own grid."""
        return Volume(data, self.grid, name or self.name, self.header)

    def __repr__(self) -> str:
        return f"Volume({self.name}, {self.channels} × {self.grid!r}, {self.data.dtype})"
