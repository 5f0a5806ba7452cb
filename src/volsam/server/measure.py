"""What is measured of an object: volume, diameters, intensities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from volsam.geometry import Grid

# Corners of a hull compared at once; bounds the memory.
BLOCK = 2048

Points = NDArray[np.float64]


@dataclass(frozen=True)
class Diameter:
    """A straight line between the centres of two voxels, mm RAS+."""

    start: Points
    end: Points

    @property
    def length(self) -> float:
        """In mm."""
        return float(np.linalg.norm(self.end - self.start))

    def record(self) -> dict[str, Any]:
        """As plain data."""
        return {"mm": self.length, "from": self.start.tolist(), "to": self.end.tolist()}


def measured(mask: NDArray[np.bool_], values: NDArray[Any], grid: Grid, low: tuple[int, int, int]) -> dict[str, Any]:
    """All measures of a mask (i j k) and of the values under it, on `grid`, the part of a volume from `low`."""
    voxels = int(np.count_nonzero(mask))
    if voxels == 0:
        nothing = dict.fromkeys(("centre", "longest_diameter", "longest_in_plane", "intensity", "box"))
        return {"voxels": 0, "volume_ml": 0.0, **nothing}
    # Not a list of all voxels, which takes 24 bytes of each.
    along = [mask.sum(axis=tuple(other for other in range(3) if other != axis)) for axis in range(3)]
    centre = [float(counts @ np.arange(len(counts))) / voxels for counts in along]
    sides = [np.flatnonzero(counts)[[0, -1]] for counts in along]
    inside = values[mask]
    axis = _slice_axis(grid)
    corners = corners_by_slice(mask, axis)
    return {
        "voxels": voxels,
        "volume_ml": voxels * grid.voxel_volume / 1000,
        "centre": grid.to_world(centre).tolist(),
        "longest_diameter": longest(grid.to_world(np.concatenate(list(corners.values())))).record(),
        "longest_in_plane": _in_plane(mask, grid, low, axis, corners),
        "intensity": {
            "mean": float(inside.mean(dtype=np.float64)),
            "std": float(inside.std(dtype=np.float64)),
            "low": float(inside.min()),
            "high": float(inside.max()),
        },
        "box": {
            "low": [int(first) + int(start) for (first, _), start in zip(sides, low, strict=True)],
            "high": [int(last) + 1 + int(start) for (_, last), start in zip(sides, low, strict=True)],
        },
    }


def longest(points: Points) -> Diameter:
    """The two of some points (n, 3) that are farthest apart."""
    from scipy.spatial.distance import cdist  # takes long to load

    corners = _hull(points)
    best, pair = -1.0, (0, 0)
    for start in range(0, len(corners), BLOCK):
        apart = cdist(corners[start : start + BLOCK], corners)
        one, other = np.unravel_index(int(apart.argmax()), apart.shape)
        if apart[one, other] > best:
            best, pair = float(apart[one, other]), (start + int(one), int(other))
    return Diameter(corners[pair[0]], corners[pair[1]])


def _in_plane(
    mask: NDArray[np.bool_], grid: Grid, low: tuple[int, int, int], axis: int, corners: dict[int, Points]
) -> dict[str, Any]:
    found = {index: longest(grid.to_world(points)) for index, points in corners.items()}
    where = max(found, key=lambda index: found[index].length)
    places = np.insert(np.argwhere(mask.take(where, axis=axis)).astype(np.float64), axis, where, axis=1)
    across = _across(grid.to_world(places), found[where], float(grid.spacing.min()))
    return {**found[where].record(), "axis": axis, "index": int(where + low[axis]), "across": across.record()}


def corners_by_slice(mask: NDArray[np.bool_], axis: int) -> dict[int, Points]:
    """Of each slice across an axis, the voxels (n, 3) at the corners of the smallest convex body around the object.

    The longest lines within a slice and within the whole object end at such voxels, and there are few of them.
    """
    slices = np.moveaxis(mask, axis, 0)
    filled = np.asarray(np.any(slices, axis=2))
    first = slices.argmax(axis=2)
    last = slices.shape[2] - 1 - slices[:, :, ::-1].argmax(axis=2)
    found = {}
    for index in np.flatnonzero(filled.any(axis=1)):
        rows = np.flatnonzero(filled[index])
        ends = [np.stack([rows, end[index, rows]], axis=1) for end in (first, last)]
        corners = _hull(np.unique(np.concatenate(ends), axis=0).astype(np.float64))
        found[int(index)] = np.insert(corners, axis, index, axis=1)
    return found


def _slice_axis(grid: Grid) -> int:
    """The axis of largest spacing; among equals the one nearest to head and feet: people measure in axial slices."""
    thick = np.flatnonzero(grid.spacing > 0.999 * grid.spacing.max())
    upright = np.abs(grid.affine[2, :3]) / grid.spacing
    return int(thick[np.argmax(upright[thick])])


def _across(points: Points, line: Diameter, width: float) -> Diameter:
    """The longest extent of coplanar points at a right angle to a line, within strips of a voxel's width."""
    if line.length == 0:
        return Diameter(line.start, line.start)
    along = (line.end - line.start) / line.length
    offsets = points - line.start
    strips = np.round(offsets @ along / width).astype(int)
    sideways = offsets - np.outer(offsets @ along, along)
    normal = sideways[int(np.argmax(np.linalg.norm(sideways, axis=1)))]
    if np.linalg.norm(normal) < 1e-9:
        return Diameter(line.start, line.start)
    heights = sideways @ (normal / np.linalg.norm(normal))
    order = np.lexsort((heights, strips))
    first = np.flatnonzero(np.diff(strips[order], prepend=strips[order][0] - 1))
    last = np.append(first[1:], len(order)) - 1
    extents = heights[order[last]] - heights[order[first]]
    strip = int(np.argmax(extents))
    return Diameter(points[order[first[strip]]], points[order[last[strip]]])


def _hull(points: Points) -> Points:
    """The corners of the smallest convex body around points (n, 3), which may lie in a plane or on a line."""
    from scipy.spatial import ConvexHull, QhullError

    middle = points.mean(axis=0)
    _, spans, directions = np.linalg.svd(points - middle, full_matrices=False)
    rank = int((spans > 1e-6 * max(float(spans.max(initial=0.0)), 1e-12)).sum())
    flat = (points - middle) @ directions[:rank].T
    if len(points) <= rank + 1 or rank == 0:
        return points
    if rank == 1:
        return points[[int(flat.argmin()), int(flat.argmax())]]
    try:
        return np.asarray(points[ConvexHull(flat).vertices])
    except QhullError:
        return points
