"""Where clicks are put when they are not the correction of an error: drawn in the object, at a depth of one's choice.

The papers that these serve draw clicks from the true object, so such scores say how a model takes clicks, and nothing
of what a user reaches who looks at the answer: that is `clicks_protocol`.
"""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from volsam.data.simulate import Mask, bounding_box
from volsam.errors import BadInput
from volsam.geometry import Grid
from volsam.prompts import Box, Click

Where: TypeAlias = Literal["random", "centre", "surround", "margin"]
WHERE: tuple[str, ...] = get_args(Where)

# Parts of the greatest depth between which a click lies. 3DSAM-adapter compares clicks in the centre, around it and at
# the margin without saying how deep each is: thirds are this project's reading.
DEPTHS: dict[str, tuple[float, float]] = {
    "random": (0.0, 1.0),
    "centre": (2 / 3, 1.0),
    "surround": (1 / 3, 2 / 3),
    "margin": (0.0, 1 / 3),
}


def drawn(target: Mask, grid: Grid, count: int, where: Where = "random", seed: int = 0) -> list[Click]:
    """`count` positive clicks at random places of the object, with replacement, as 3DSAM-adapter draws them.

    Of two draws with one seed the shorter is the beginning of the longer.

    Args:
        target: the object (i, j, k).
        grid: the grid that it lies on.
        count: clicks.
        where: anywhere in the object, or in the third of the depths (mm) that is called so; an object that is too thin
            to have voxels there is clicked where it comes nearest to it.
        seed: the same seed gives the same clicks.
    """
    voxels = _at_depth(np.asarray(target, dtype=bool), grid, where)
    chosen = np.random.default_rng(seed).random(count)
    return [click_at(voxels[int(place * len(voxels))], grid) for place in chosen]


def box_around(target: Mask, grid: Grid) -> Box:
    """The smallest box that holds the object, corners at centres of voxels.

    Where the object is one voxel thick, the box is a little thicker than flat: what is meant is all of the object, and
    not its outline on one slice. It still holds no other voxel.
    """
    low, high = _corners(target)
    some = np.where(low == high, 0.3, 0.0)
    return Box(_world(low - some, grid), _world(high + some, grid))


def flat_box(target: Mask, grid: Grid, axis: int, index: int | None = None) -> Box:
    """The smallest box on one slice across `axis`; without `index`, the slice that holds most of the object."""
    target = np.asarray(target, dtype=bool)
    if index is None:
        index = int(np.argmax(target.sum(axis=tuple(other for other in range(3) if other != axis))))
    place = tuple(slice(index, index + 1) if this == axis else slice(None) for this in range(3))
    low, high = _corners(target[place])
    low[axis] = high[axis] = index
    return Box(_world(low, grid), _world(high, grid))


class TrainingClicks:
    """The clicks of SAM-Med3D's and FastSAM3D's validation: two in the deep half of the worse error, then anywhere.

    Distances are in voxels there. `next` is None where the mask is right.
    """

    def __init__(self, seed: int = 0) -> None:
        self._random = np.random.default_rng(seed)
        self._given = 0

    def next(self, target: Mask, mask: Mask, grid: Grid) -> Click | None:
        """The next click on the error of `mask` (i, j, k)."""
        missed, wrong = target & ~mask, mask & ~target
        if not (missed.any() or wrong.any()):
            return None
        self._given += 1
        if self._given > 2:
            voxel = self._one_of(missed | wrong)
            return click_at(voxel, grid, positive=bool(missed[tuple(voxel)]))
        depths = [_depths(region, (1.0, 1.0, 1.0)) for region in (missed, wrong)]
        positive = bool(depths[0].max() > depths[1].max())
        deep = depths[0] if positive else depths[1]
        return click_at(self._one_of(deep > deep.max() / 2), grid, positive=positive)

    def _one_of(self, region: Mask) -> NDArray[np.int64]:
        voxels = np.argwhere(region)
        return voxels[self._random.integers(len(voxels))]


def click_at(voxel: NDArray[np.int64], grid: Grid, *, positive: bool = True) -> Click:
    """A click on the centre of a voxel."""
    return Click(_world(voxel, grid), positive)


def _at_depth(target: Mask, grid: Grid, where: Where) -> NDArray[np.int64]:
    """Voxels (n, 3) of the object in the asked part of its depth."""
    depth = _depths(target, tuple(float(size) for size in grid.spacing))
    deepest = float(depth.max())
    if deepest == 0:
        raise BadInput("the object holds no voxel, so there is nothing to click on")
    low, high = (part * deepest for part in DEPTHS[where])
    inside = (depth > low) & (depth <= high)
    if not inside.any():
        away = np.where(depth > 0, np.maximum(low - depth, depth - high), np.inf)
        inside = away <= away.min()
    return np.argwhere(inside)


def _depths(region: Mask, spacing: tuple[float, ...]) -> NDArray[np.float64]:
    """Distance of every voxel to the outside of the region; what lies beyond the array is outside."""
    depths = np.zeros(region.shape)
    box = bounding_box(region)
    if box is not None:
        depths[box] = distance_transform_edt(np.pad(region[box], 1), sampling=spacing)[1:-1, 1:-1, 1:-1]
    return depths


def _corners(target: Mask) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    box = bounding_box(np.asarray(target, dtype=bool))
    if box is None:
        raise BadInput("the object holds no voxel, so there is no box around it")
    return np.array([side.start for side in box]), np.array([side.stop - 1 for side in box])


def _world(voxel: NDArray[np.number], grid: Grid) -> tuple[float, float, float]:
    x, y, z = grid.to_world(voxel)
    return float(x), float(y), float(z)
