"""Which region of a scan to look at, and how closely.

A model sees a cube of fixed size; what matters most for the first mask is that the object fills a good part of it. A
box or a mask says how large the object is. A single click does not: then several zooms are tried and the model's own
expectation of its quality chooses.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from volsam.geometry import Grid
from volsam.prompts import Box, MaskHint, Prompt, PromptSet, positions

# Part of the region's edge that the object should span.
FILL = 0.62
# Neighbouring zooms differ by this factor, and there are at most so many of them.
RATIO = 1.5
MOST_LEVELS = 6
# The closest look is this part of the finest voxel spacing; closer only magnifies blur.
CLOSEST = 0.5
# A change of zoom is worth an encoding only if the object fills less or more than FILL by these factors.
TOLERANCE = (0.7, 1.45)


def ladder(grid: Grid, edge: int) -> list[float]:
    """Voxel spacings in mm to try around a click, closest first; the last one sees the whole volume."""
    extent = float((grid.spacing * grid.shape).max())
    closest = CLOSEST * float(grid.spacing.min())
    widest = max(closest, extent / edge)
    count = int(np.clip(np.ceil(np.log(widest / closest) / np.log(RATIO)) + 1, 1, MOST_LEVELS))
    return [float(step) for step in np.geomspace(closest, widest, count)] if count > 1 else [closest]


def fitting(grid: Grid, points: ArrayLike, edge: int, fill: float = FILL) -> Grid:
    """The region in which the box around `points` (n, 3), mm RAS+, spans `fill` of the edge."""
    frame = grid.around((0, 0, 0), (edge,) * 3, 1.0)
    places = frame.to_voxels(points)
    low, high = places.min(axis=0), places.max(axis=0)
    span = float((high - low).max()) + float(grid.spacing.min())
    closest = CLOSEST * float(grid.spacing.min())
    widest = max(closest, 1.3 * float((grid.spacing * grid.shape).max()) / edge)
    spacing = float(np.clip(span / (edge * fill), closest, widest))
    return grid.around(frame.to_world((low + high) / 2), (edge,) * 3, spacing)


def spanning(prompts: Iterable[Prompt]) -> NDArray[np.float64] | None:
    """Points in mm that tell the object's extent: corners of boxes and masks; None from clicks and scribbles."""
    found: list[NDArray[np.float64]] = []
    for prompt in prompts:
        if isinstance(prompt, Box):
            found.append(np.array(positions(prompt)))
        elif isinstance(prompt, MaskHint) and prompt.mask.any():
            places = np.argwhere(prompt.mask)
            found.append(prompt.grid.to_world(_corners(places.min(axis=0), places.max(axis=0))))
    return np.concatenate(found) if found else None


def covers(roi: Grid, points: NDArray[np.float64], margin: float = 2.0) -> bool:
    """Whether all points lie in the region, `margin` voxels from its border."""
    if len(points) == 0:
        return True
    voxels = roi.to_voxels(points)
    return bool(((voxels >= margin) & (voxels <= np.array(roi.shape) - 1 - margin)).all())


def object_points(mask: NDArray[np.bool_], grid: Grid) -> NDArray[np.float64] | None:
    """Corners in mm of the box around a mask on `grid`; None if it is empty."""
    bounds = [np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis))) for axis in range(3)]
    if any(len(line) == 0 for line in bounds):
        return None
    return grid.to_world(_corners([line[0] for line in bounds], [line[-1] for line in bounds]))


def misfit(roi: Grid, wanted: Grid) -> bool:
    """Whether `wanted` shows the object so differently that looking again pays."""
    ratio = float(wanted.spacing[0] / roi.spacing[0])
    return ratio < TOLERANCE[0] or ratio > TOLERANCE[1]


def positive_points(prompts: PromptSet) -> NDArray[np.float64]:
    """Everything the user said is in the object, as points (n, 3) in mm."""
    boxes = [np.array(positions(prompt)) for prompt in prompts if isinstance(prompt, Box)]
    return np.concatenate([prompts.points(positive=True), *boxes])


def _corners(low: ArrayLike, high: ArrayLike) -> NDArray[np.float64]:
    pair = np.array([low, high], dtype=np.float64)
    return np.array([[pair[i, 0], pair[j, 1], pair[k, 2]] for i in (0, 1) for j in (0, 1) for k in (0, 1)])
