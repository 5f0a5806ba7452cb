"""Where a simulated annotator clicks: first the middle of the object, then the middle of the worst error.

"Middle" is the deepest point of a region: the voxel farthest, in millimetres, from everything that is not the region,
where what lies outside the volume is not the region either. It is the usual convention of interactive benchmarks, and
close to what a person does who corrects the largest visible mistake first.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from volsam.errors import BadInput
from volsam.geometry import Grid
from volsam.prompts import Click

Mask: TypeAlias = NDArray[np.bool_]

# A region whose box holds more voxels is looked at in blocks first: there a voxel matters less than the time it takes.
MOST_VOXELS = 1 << 19
# Depths that differ by less than this part of the depth are equal.
TIE = 1e-6


def first_click(target: Mask, grid: Grid) -> Click:
    """A positive click on the deepest point of the object.

    Args:
        target: the object (i, j, k).
        grid: the grid that it lies on.
    """
    found = deepest(target, grid.spacing)
    if found is None:
        raise BadInput("the object holds no voxel, so there is nothing to click on")
    return _click(found[0], grid, positive=True)


def next_click(target: Mask, mask: Mask, grid: Grid) -> Click | None:
    """A click on the deepest point where `mask` is wrong, or None where it is right everywhere.

    The click is positive where the object was missed and negative where something else was taken for it; a missed
    part wins over a wrong one of the same depth.

    Args:
        target: the object (i, j, k).
        mask: the current segmentation, same shape.
        grid: the grid that both lie on.
    """
    target, mask = np.asarray(target, dtype=bool), np.asarray(mask, dtype=bool)
    missed = deepest(target & ~mask, grid.spacing)
    wrong = deepest(mask & ~target, grid.spacing)
    if missed is not None and (wrong is None or missed[1] >= wrong[1]):
        return _click(missed[0], grid, positive=True)
    return None if wrong is None else _click(wrong[0], grid, positive=False)


def clicks_per_slice(target: Mask, grid: Grid, count: int, axis: int = 2, seed: int = 0) -> list[Click]:
    """`count` positive clicks on every slice that holds some of the object, at random places in it.

    The protocol by which 2D models are compared with 3D ones: N clicks on N slices (3DSAM-adapter, table 1, with 1, 3
    and 10 of them; FastSAM3D, section 4). It needs the true object, so it says nothing of what a user would get.

    Args:
        target: the object (i, j, k).
        grid: the grid that it lies on.
        count: clicks on each slice; places are drawn with replacement, as there.
        axis: of the volume that runs across the slices.
        seed: the same seed gives the same clicks.
    """
    target = np.moveaxis(np.asarray(target, dtype=bool), axis, 0)
    random = np.random.default_rng(seed)
    clicks = []
    for index in np.flatnonzero(target.any(axis=(1, 2))):
        places = np.argwhere(target[index])
        for row, column in places[random.integers(len(places), size=count)]:
            voxel = np.insert(np.array([row, column]), axis, index)
            clicks.append(_click(voxel, grid, positive=True))
    if not clicks:
        raise BadInput("the object holds no voxel, so there is nothing to click on")
    return clicks


def deepest(region: Mask, spacing: NDArray[np.float64]) -> tuple[NDArray[np.int64], float] | None:
    """The voxel (3,) of `region` that is farthest from its outside and that distance in mm; None for an empty region.

    Of several such voxels it is the one nearest to the middle of them all, then the first in memory order. In a region
    whose box holds more than `MOST_VOXELS` voxels it is the deepest to within a block of a few voxels.
    """
    region = np.asarray(region, dtype=bool)
    box = bounding_box(region)
    if box is None:
        return None
    part = region[box]
    corner = np.array([side.start for side in box])
    block = _block(part.shape, spacing)
    if max(block) == 1:
        voxel, depth = _deepest(part, spacing)
        return corner + voxel, depth
    coarse, depth = _deepest(_blocks(part, block), spacing * block)
    window = tuple(slice(max(0, (i - 1) * size), (i + 2) * size) for i, size in zip(coarse, block, strict=True))
    voxel, _ = _deepest(part[window], spacing)
    return corner + [side.start for side in window] + voxel, depth


def bounding_box(region: Mask, margin: int = 0) -> tuple[slice, slice, slice] | None:
    """The smallest box of voxels that holds `region`, `margin` voxels wider where the array allows; None if empty."""
    plane = np.any(region, axis=0)
    lines = [np.any(region, axis=(1, 2)), np.any(plane, axis=1), np.any(plane, axis=0)]
    sides = []
    for line, size in zip(lines, region.shape, strict=True):
        inside = np.flatnonzero(line)
        if len(inside) == 0:
            return None
        sides.append(slice(max(0, int(inside[0]) - margin), min(size, int(inside[-1]) + 1 + margin)))
    return sides[0], sides[1], sides[2]


def _deepest(region: Mask, spacing: NDArray[np.float64]) -> tuple[NDArray[np.int64], float]:
    """The same for an array that holds the region and little else."""
    depths = distance_transform_edt(np.pad(region, 1), sampling=spacing)[1:-1, 1:-1, 1:-1]
    top = float(depths.max())
    equal = np.argwhere(depths >= top * (1 - TIE))
    from_middle = np.linalg.norm((equal - equal.mean(axis=0)) * spacing, axis=1)
    return equal[np.argmin(from_middle.round(6))], top


def _block(shape: tuple[int, ...], spacing: NDArray[np.float64]) -> NDArray[np.int64]:
    """Voxels (3,) to take together so that few enough blocks remain, as near to cubes as powers of two allow."""
    block = np.ones(3, dtype=np.int64)
    while np.prod(np.ceil(np.array(shape) / block)) > MOST_VOXELS:
        block[np.argmin(spacing * block)] *= 2
    return block


def _blocks(region: Mask, block: NDArray[np.int64]) -> Mask:
    """Blocks that lie wholly in the region; where it is too thin to hold any, blocks that it touches."""
    whole = touched = np.pad(region, [(0, -length % size) for length, size in zip(region.shape, block, strict=True)])
    for axis, size in enumerate(block):
        starts = [(slice(None),) * axis + (slice(start, None, size),) for start in range(size)]
        whole = np.logical_and.reduce([whole[start] for start in starts])
        touched = np.logical_or.reduce([touched[start] for start in starts])
    return whole if whole.any() else touched


def _click(voxel: NDArray[np.int64], grid: Grid, positive: bool) -> Click:
    x, y, z = grid.to_world(voxel)
    return Click((float(x), float(y), float(z)), positive)
