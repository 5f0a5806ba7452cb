"""Strokes that come as areas, a lasso, a box or a painted image, as prompts: points spread over what they cover."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
from numpy.typing import ArrayLike, NDArray

from volsam.data.simulate import bounding_box
from volsam.errors import BadInput, PromptOutside
from volsam.geometry import Grid
from volsam.inference.objects import Changed
from volsam.prompts import Box, MaskHint, Point, Prompt, Scribble

# Enough to say where the area is; a model is shown about fifty in all.
MOST_POINTS = 64
# A contour belongs to one slice if it leaves it by no more than this, in voxels.
FLAT = 1.0
# A contour may cover no more than this; one of a client that errs could be of any size.
LARGEST = 1 << 26
# Painted voxels that are looked at one by one, 24 bytes each.
MOST_VOXELS = 1 << 22


def lasso(points: Sequence[Sequence[float]], positive: bool, grid: Grid) -> Scribble:
    """What a closed contour (n, 3) in mm RAS+ on a slice of `grid` encloses."""
    voxels = grid.to_voxels(np.asarray(points, dtype=np.float64))
    if len(voxels) < 3:
        raise BadInput(f"a lasso needs at least three points, got {len(voxels)}")
    if not grid.contains(np.asarray(points, dtype=np.float64)).all():
        raise PromptOutside("a lasso leaves the volume: check the order of the axes and the space")
    spans = np.ptp(voxels, axis=0)
    axis = int(np.argmin(spans))
    if spans[axis] > FLAT:
        raise BadInput(f"a lasso lies on one slice of the volume, this one spans {spans[axis]:.1f} voxels across it")
    across = [other for other in range(3) if other != axis]
    low = np.floor(voxels[:, across].min(axis=0)).astype(int)
    filled = inside(voxels[:, across] - low, np.ceil(spans[across]).astype(int) + 2)
    places = np.full((int(filled.sum()), 3), round(float(voxels[:, axis].mean())), dtype=np.float64)
    places[:, across] = np.argwhere(filled) + low
    if len(places) == 0:  # thinner than a voxel
        places = voxels
    return Scribble(_world(_spread(places), grid), positive)


def painted(mask: NDArray[np.bool_], low: ArrayLike, positive: bool, grid: Grid) -> Scribble:
    """The voxels that are set in a box of `grid` whose first corner is `low`."""
    # Of an area of very many voxels every second or third along each axis tells where it is.
    step = max(1, int((np.count_nonzero(mask) / MOST_VOXELS) ** (1 / 3)))
    places = np.argwhere(mask[::step, ::step, ::step]).astype(np.float64) * step
    if len(places) == 0:
        raise BadInput("the stroke is empty: no voxel of it is set")
    return Scribble(_world(_spread(places) + np.asarray(low), grid), positive)


def hint(mask: NDArray[np.bool_], grid: Grid) -> tuple[MaskHint, Changed]:
    """A mask (i, j, k) on `grid` to start from, without the empty space around it, and where it lies."""
    inside = bounding_box(mask)
    if inside is None:
        raise BadInput("the starting mask is empty: no voxel of it is set")
    (a, d), (b, e), (c, f) = ((side.start, side.stop) for side in inside)
    box = ((a, b, c), (d, e, f))
    return MaskHint(mask[inside], grid.crop(*box)), box


def boxed(box: Changed, positive: bool, grid: Grid) -> Prompt:
    """A half-open box of voxels around the object; one that holds nothing of it is like painting it out."""
    low, high = box
    if not positive:
        step = 1
        while prod(_counts(box, step)) > MOST_POINTS:
            step += 1
        places = np.indices(_counts(box, step)).reshape(3, -1).T.astype(np.float64) * step + low
        return Scribble(_world(places, grid), False)
    first, last = grid.to_world([low, [index - 1 for index in high]]).tolist()
    return Box((first[0], first[1], first[2]), (last[0], last[1], last[2]))


def inside(contour: NDArray[np.float64], shape: ArrayLike) -> NDArray[np.bool_]:
    """Which points of a lattice of `shape` a closed contour (n, 2) encloses, by the even-odd rule."""
    rows, columns = np.asarray(shape, dtype=int)
    if int(rows) * int(columns) > LARGEST:
        raise BadInput(f"a lasso of {rows} × {columns} voxels is too large")
    y, x = np.arange(rows)[:, None], np.arange(columns)[None]
    crossed = np.zeros((rows, columns), bool)
    for (y0, x0), (y1, x1) in zip(contour, np.roll(contour, -1, axis=0), strict=True):
        if y0 == y1:
            continue
        between = (y0 <= y) != (y1 <= y)
        crossed ^= between & (x < x0 + (y - y0) * (x1 - x0) / (y1 - y0))
    return crossed


def _counts(box: Changed, step: int) -> tuple[int, int, int]:
    """How many voxels of a box there are along each axis, every `step`-th alone."""
    (a, b, c), (d, e, f) = box
    return -(-(d - a) // step), -(-(e - b) // step), -(-(f - c) // step)


def _spread(places: NDArray[np.float64]) -> NDArray[np.float64]:
    """At most MOST_POINTS of the places (n, 3), one for each block of a lattice coarse enough."""
    if len(places) <= MOST_POINTS:
        return places
    # A block holds no more places than it has voxels, so smaller ones are too many for sure.
    axes = int(np.count_nonzero(np.ptp(places, axis=0))) or 1
    step = max(2, int((len(places) / MOST_POINTS) ** (1 / axes)))
    while True:
        blocks = (places // step).astype(np.int64)
        blocks -= blocks.min(axis=0)
        keys = np.ravel_multi_index(tuple(blocks.T), tuple(blocks.max(axis=0) + 1))
        _, first = np.unique(keys, return_index=True)
        if len(first) <= MOST_POINTS:
            return places[np.sort(first)]
        # Blocks of no more than so many times the size are too many still.
        step = max(step + 1, int(step * (len(first) / MOST_POINTS) ** (1 / axes)))


def _world(places: NDArray[np.float64], grid: Grid) -> tuple[Point, ...]:
    return tuple((float(x), float(y), float(z)) for x, y, z in grid.to_world(places))
