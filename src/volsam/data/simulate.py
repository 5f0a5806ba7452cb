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

# A region whose box holds more voxels is looked at in blocks first, so many at most.
MOST_BLOCKS = 1 << 17
# The largest box for one distance transform, which takes about a second there.
MOST_VOXELS = 1 << 22
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


def deepest(region: Mask, spacing: NDArray[np.float64]) -> tuple[NDArray[np.int64], float] | None:
    """The voxel (3,) of `region` that is farthest from its outside and that distance in mm; None for an empty region.

    Of several such voxels it is the one nearest to the middle of them all, then the first in memory order. Where this
    needs a distance transform of more than `MOST_VOXELS` voxels, it is the deepest to within some voxels.
    """
    region = np.asarray(region, dtype=bool)
    box = bounding_box(region)
    if box is None:
        return None
    voxel, depth = _deepest(region[box], spacing)
    return np.array([side.start for side in box]) + voxel, depth


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


def _deepest(part: Mask, spacing: NDArray[np.float64]) -> tuple[NDArray[np.int64], float]:
    """`deepest` in an array that holds the region and little else; distances only where the deepest voxel can be."""
    block = _block(part.shape, spacing)
    if max(block) == 1:
        return _deepest_of(part, np.ones_like(part), spacing)
    bounds = _bounds(part, block, spacing)
    top = np.unravel_index(np.argmax(bounds), bounds.shape)
    first = np.zeros(bounds.shape, dtype=bool)
    first[top] = True
    found = _deepest_in(part, first, block, float(bounds[top]), spacing)
    if found is None:
        return _middle_of_block(part, np.array(top), block), float(bounds[top])
    rivals = bounds >= found[1] * (1 - TIE)
    return _deepest_in(part, rivals, block, float(bounds[top]), spacing) or found


def _block(shape: tuple[int, ...], spacing: NDArray[np.float64]) -> NDArray[np.int64]:
    """Voxels (3,) to take together so that few enough blocks remain, as near to cubes as powers of two allow."""
    block = np.ones(3, dtype=np.int64)
    while np.prod(np.ceil(np.array(shape) / block)) > MOST_BLOCKS:
        block[np.argmin(spacing * block)] *= 2
    return block


def _bounds(part: Mask, block: NDArray[np.int64], spacing: NDArray[np.float64]) -> NDArray[np.float64]:
    """For each block a depth in mm that none of its voxels exceeds; 0 where it holds no voxel of the region.

    It is the distance to the nearest block that is wholly outside: that one has a voxel at the same place as any voxel
    of this block, exactly so far away.
    """
    padded = np.pad(part, [(0, -length % size) for length, size in zip(part.shape, block, strict=True)])
    for axis, size in enumerate(block):
        starts = [(slice(None),) * axis + (slice(start, None, size),) for start in range(size)]
        padded = np.logical_or.reduce([padded[start] for start in starts])
    return np.asarray(distance_transform_edt(np.pad(padded, 1), sampling=spacing * block)[1:-1, 1:-1, 1:-1])


def _deepest_in(
    part: Mask, blocks: Mask, block: NDArray[np.int64], bound: float, spacing: NDArray[np.float64]
) -> tuple[NDArray[np.int64], float] | None:
    """The deepest voxel within some blocks, none deeper than `bound` mm; None where too much would have to be seen."""
    box = bounding_box(blocks)
    if box is None:
        return None
    margin = np.ceil(bound / spacing).astype(int)
    low = np.maximum(np.array([side.start for side in box]) * block - margin, 0)
    high = np.minimum(np.array([side.stop for side in box]) * block + margin, part.shape)
    if np.prod(high - low) > MOST_VOXELS:
        return None
    window = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    places = np.ix_(*(np.arange(a, b) // size for a, b, size in zip(low, high, block, strict=True)))
    voxel, depth = _deepest_of(part[window], blocks[places], spacing)
    return low + voxel, depth


def _deepest_of(region: Mask, among: Mask, spacing: NDArray[np.float64]) -> tuple[NDArray[np.int64], float]:
    """The deepest voxel of `region` of those in `among`; what lies outside the array is outside the region."""
    depths = np.where(among, distance_transform_edt(np.pad(region, 1), sampling=spacing)[1:-1, 1:-1, 1:-1], 0)
    top = float(depths.max())
    equal = np.argwhere(depths >= top * (1 - TIE))
    from_middle = np.linalg.norm((equal - equal.mean(axis=0)) * spacing, axis=1)
    return equal[np.argmin(from_middle.round(6))], top


def _middle_of_block(part: Mask, index: NDArray[np.int64], block: NDArray[np.int64]) -> NDArray[np.int64]:
    """The voxel of the region that is nearest to the middle of a block."""
    corner = index * block
    inside = np.argwhere(part[tuple(slice(a, b) for a, b in zip(corner, corner + block, strict=True))])
    return corner + inside[np.argmin(np.abs(inside - (block - 1) / 2).sum(axis=1))]


def _click(voxel: NDArray[np.int64], grid: Grid, positive: bool) -> Click:
    x, y, z = grid.to_world(voxel)
    return Click((float(x), float(y), float(z)), positive)
