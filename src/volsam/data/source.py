"""What opening a file of any format gives: a `Source`, whose voxels are read only when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from volsam.errors import BadFile, BadInput
from volsam.geometry import Grid

# A format may move a voxel by this part of its size, and no more, when it rounds an affine.
ROUNDING = 1e-3

Values = NDArray[np.generic]


@dataclass(frozen=True)
class Source:
    """A file whose header has been read: the lattice, the time frames, and `load`, which reads one frame (c i j k).

    values: how many numbers there are in a voxel.
    """

    grid: Grid
    frames: int
    load: Callable[[int], Values]
    header: object | None = None
    values: int = 1


def lattice(shape: Sequence[int], affine: NDArray[np.float64], path: Path) -> Grid:
    """The grid of a file, or a refusal that names the file."""
    try:
        return Grid((int(shape[0]), int(shape[1]), int(shape[2])), affine)
    except BadInput as error:
        raise BadFile(f"{path.name}: {error}") from None


def voxel_shift(affine: NDArray[np.float64], other: NDArray[np.float64], shape: Sequence[int]) -> float:
    """How far two affines put a corner of the lattice apart, in voxels."""
    corners = np.array(list(product(*((0, size) for size in shape[:3]), (1,))), dtype=np.float64)
    shift = (corners @ (other - affine).T)[:, :3]
    if np.linalg.matrix_rank(affine[:3, :3]) < 3:
        return np.inf
    return float(np.abs(np.linalg.solve(affine[:3, :3], shift.T)).max())
