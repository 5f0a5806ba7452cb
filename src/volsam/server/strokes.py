"""Strokes that come as areas, a lasso, a box or a painted image, as prompts: points spread over what they cover."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from volsam.errors import BadInput, PromptOutside
from volsam.geometry import Grid
from volsam.inference.session import Changed
from volsam.prompts import Box, Point, Prompt, Scribble

# Enough to say where the area is; a model is shown about fifty in all.
MOST_POINTS = 64
# A contour belongs to one slice if it leaves it by no more than this, in voxels.
FLAT = 1.0
# A contour may cover no more than this; one of a client that errs could be of any size.
LARGEST = 1 << 26


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
    places = np.argwhere(mask).astype(np.float64)
    if len(places) == 0:
        raise BadInput("the stroke is empty: no voxel of it is set")
    return Scribble(_world(_spread(places) + np.asarray(low), grid), positive)


def boxed(box: Changed, positive: bool, grid: Grid) -> Prompt:
    """A half-open box of voxels around the object; one that holds nothing of it is like painting it out."""
    low, high = box
    if not positive:
        shape = tuple(b - a for a, b in zip(low, high, strict=True))
        return painted(np.ones(shape, bool), low, False, grid)
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


def _spread(places: NDArray[np.float64]) -> NDArray[np.float64]:
    """At most MOST_POINTS of the places (n, 3), one for each block of a lattice coarse enough."""
    step = 1
    chosen = places
    while len(chosen) > MOST_POINTS:
        step += 1
        _, first = np.unique(places // step, axis=0, return_index=True)
        chosen = places[np.sort(first)]
    return chosen


def _world(places: NDArray[np.float64], grid: Grid) -> tuple[Point, ...]:
    return tuple((float(x), float(y), float(z)) for x, y, z in grid.to_world(places))
