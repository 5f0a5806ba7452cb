"""Lattices in space and the one operation between them.

Orientation, cropping, padding, flipping, resizing and all their inverses are one thing: reading values that live on
one lattice at the positions of another. So there is one type, `Grid`, and one function, `resample`; the way back is
the same call with the grids swapped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np
from nibabel.orientations import aff2axcodes, axcodes2ornt, io_orientation, ornt_transform
from numpy.typing import ArrayLike, NDArray

from volsam.errors import BadInput

Shape = tuple[int, int, int]
Mode = Literal["linear", "nearest", "area"]

# Two lattices count as aligned when no position of the target is off by more than this part of a source voxel.
ALIGNED = 1e-4
# An area mean takes at most this many samples along an axis, so that a coarse look costs the same in any volume.
MOST_SAMPLES = 2
# Voxels, or positions, that are worked on at once; bounds memory to some tens of megabytes.
CHUNK = 1 << 21


@dataclass(frozen=True, eq=False)
class Grid:
    """A voxel lattice in space.

    `shape` counts voxels along the three axes; `affine` (4 × 4, float64) maps voxel indices to millimetres in RAS+
    (x to the right, y to the front, z to the head). Index 0 is the centre of the first voxel.
    """

    shape: Shape
    affine: NDArray[np.float64]

    def __post_init__(self) -> None:
        shape = tuple(int(size) for size in self.shape)
        affine = np.array(self.affine, dtype=np.float64)
        if len(shape) != 3 or min(shape) < 1:
            raise BadInput(f"a grid has three axes of at least one voxel, got the shape {shape}")
        if affine.shape != (4, 4) or not np.isfinite(affine).all():
            raise BadInput("an affine is a 4 × 4 matrix of finite numbers; this one is not: repair the file's header")
        if not np.allclose(affine[3], (0, 0, 0, 1)):
            raise BadInput(f"the last row of an affine is 0 0 0 1, got {_numbers(affine[3])}: repair the file's header")
        affine[3] = (0, 0, 0, 1)
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        if spacing.min() <= 0 or abs(np.linalg.det(affine[:3, :3] / spacing)) < 1e-6:
            raise BadInput(
                f"the voxel axes do not span space (spacing {_numbers(spacing)} mm): repair the file's header"
            )
        affine.setflags(write=False)
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "affine", affine)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Grid) and self.shape == other.shape and np.array_equal(self.affine, other.affine)

    def __hash__(self) -> int:
        return hash((self.shape, self.affine.tobytes()))

    @classmethod
    def at(
        cls, shape: Sequence[int], spacing: float | Sequence[float] = 1.0, origin: Sequence[float] = (0, 0, 0)
    ) -> Grid:
        """A grid along the RAS+ axes, `spacing` and `origin` (centre of the first voxel) in millimetres."""
        affine = np.diag([*np.broadcast_to(spacing, 3), 1.0])
        affine[:3, 3] = origin
        return cls((shape[0], shape[1], shape[2]), affine)

    @property
    def spacing(self) -> NDArray[np.float64]:
        """Distance of neighbouring voxel centres in mm, along each axis."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    @property
    def axes(self) -> str:
        """Where the axes point, nearest anatomical directions, such as "RAS" or "PIR"."""
        return "".join(aff2axcodes(self.affine))

    @property
    def voxel_volume(self) -> float:
        """Volume of a voxel in mm³."""
        return float(abs(np.linalg.det(self.affine[:3, :3])))

    def to_world(self, voxels: ArrayLike) -> NDArray[np.float64]:
        """Voxel indices (…, 3), fractions allowed, to millimetres RAS+ (…, 3)."""
        return np.asarray(voxels, dtype=np.float64) @ self.affine[:3, :3].T + self.affine[:3, 3]

    def to_voxels(self, points: ArrayLike) -> NDArray[np.float64]:
        """Millimetres RAS+ (…, 3) to voxel indices (…, 3); index 0 is the centre of the first voxel."""
        return (np.asarray(points, dtype=np.float64) - self.affine[:3, 3]) @ np.linalg.inv(self.affine[:3, :3]).T

    def contains(self, points: ArrayLike) -> NDArray[np.bool_]:
        """Whether points (…, 3) in mm lie in the volume, its outer voxel faces included."""
        voxels = self.to_voxels(points)
        return np.all((voxels >= -0.5 - 1e-6) & (voxels <= np.array(self.shape) - 0.5 + 1e-6), axis=-1)

    def extent(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Lowest and highest corner of the volume in mm RAS+, voxel faces included."""
        faces = [(-0.5, size - 0.5) for size in self.shape]
        corners = self.to_world(list(product(*faces)))
        return corners.min(axis=0), corners.max(axis=0)

    def crop(self, low: Sequence[int], high: Sequence[int]) -> Grid:
        """The part from voxel `low` to `high` (excluded); it may reach beyond the grid, which pads."""
        affine = self.affine.copy()
        affine[:3, 3] = self.to_world(low)
        return Grid((int(high[0] - low[0]), int(high[1] - low[1]), int(high[2] - low[2])), affine)

    def reoriented(self, axes: str = "RAS") -> Grid:
        """The same voxels with axes permuted and flipped so that they point nearest to `axes`."""
        change = ornt_transform(io_orientation(self.affine), axcodes2ornt(tuple(axes)))
        affine = np.eye(4)
        shape = [0, 0, 0]
        origin = np.zeros(3)
        for axis, (target, sign) in enumerate(change.astype(int)):
            shape[target] = self.shape[axis]
            affine[:3, target] = sign * self.affine[:3, axis]
            origin[axis] = 0 if sign > 0 else self.shape[axis] - 1
        affine[:3, 3] = self.to_world(origin)
        return Grid((shape[0], shape[1], shape[2]), affine)

    def around(
        self, center: ArrayLike, shape: Sequence[int], spacing: float | Sequence[float], axes: str = "RAS"
    ) -> Grid:
        """A grid with this one's directions, ordered nearest to `axes`, whose middle lies at `center` (mm RAS+).

        Following the directions of the volume, not of the world, keeps thick oblique slices unmixed; ordering them
        anatomically gives the same region whatever the order in which a file stores its axes.
        """
        directions = self.reoriented(axes).affine[:3, :3]
        affine = np.eye(4)
        affine[:3, :3] = directions / np.linalg.norm(directions, axis=0) * np.broadcast_to(spacing, 3)
        middle = (np.asarray(shape, dtype=np.float64) - 1) / 2
        affine[:3, 3] = np.asarray(center, dtype=np.float64) - affine[:3, :3] @ middle
        return Grid((shape[0], shape[1], shape[2]), affine)

    def coarsened(self, step: int) -> Grid:
        """The grid whose voxels are blocks of `step`³ of this one's; voxels left over at the far ends are dropped."""
        affine = self.affine.copy()
        affine[:3, :3] = self.affine[:3, :3] * step
        affine[:3, 3] = self.to_world(np.full(3, (step - 1) / 2))
        return Grid((self.shape[0] // step, self.shape[1] // step, self.shape[2] // step), affine)

    def overlap(self, other: Grid) -> tuple[Shape, Shape]:
        """The box of this grid's voxels, `low` to `high` (excluded), that holds all of `other` that lies inside."""
        faces = [(-0.5, size - 0.5) for size in other.shape]
        corners = self.to_voxels(other.to_world(list(product(*faces))))
        low = np.clip(np.floor(corners.min(axis=0)), 0, self.shape).astype(int)
        high = np.clip(np.ceil(corners.max(axis=0)) + 1, low, self.shape).astype(int)
        return (low[0], low[1], low[2]), (high[0], high[1], high[2])

    def __repr__(self) -> str:
        size = " × ".join(map(str, self.shape))
        return f"Grid({size}, {_numbers(self.spacing)} mm, {self.axes})"


def resample(
    data: NDArray[np.generic], source: Grid, target: Grid, *, mode: Mode = "linear", fill: float = 0.0
) -> NDArray[np.generic]:
    """Read `data`, which lives on `source`, at the voxels of `target`; resampling back is the same call, swapped.

    Args:
        data: array (i, j, k) or (c, i, j, k) of the source's shape.
        source: where the data are.
        target: where they are wanted.
        mode: "linear" between voxel centres; "nearest" for labels; "area" is linear with several samples in each target
            voxel where the target is coarser, against aliasing.
        fill: value of target voxels whose centre lies outside the source.

    Grids that differ by a signed permutation of axes and whole voxels are indexed: exact, and the data type stays.
    Otherwise linear and area give float32, nearest keeps the data type.

    Raises:
        BadInput: the data do not have the shape of `source`.
    """
    if data.ndim == 4:
        return np.stack([resample(channel, source, target, mode=mode, fill=fill) for channel in data])
    if data.shape != source.shape:
        raise BadInput(f"data of shape {data.shape} cannot lie on a grid of shape {source.shape}")
    matrix: NDArray[np.float64] = np.linalg.solve(source.affine, target.affine).astype(np.float64)
    steps = _axis_steps(matrix, target.shape)
    if steps is None:
        return _resample_anywhere(data, matrix, target.shape, mode, fill)
    if all(step.exact for step in steps):
        return _index(data, steps, target.shape, fill)
    return _resample_along_axes(data, steps, target.shape, mode, fill)


@dataclass(frozen=True)
class _Step:
    """Along one source axis: which target axis runs there, and source index = offset + scale * target index."""

    target: int
    scale: float
    offset: float
    exact: bool


def _axis_steps(matrix: NDArray[np.float64], shape: Shape) -> list[_Step] | None:
    """One step for each source axis if every target axis runs along one source axis, else None."""
    linear, offset = matrix[:3, :3], matrix[:3, 3]
    target_of = np.abs(linear).argmax(axis=1)
    if len(set(target_of)) < 3:
        return None
    steps = []
    for axis, target in enumerate(target_of):
        strays = sum(abs(linear[axis, other]) * shape[other] for other in range(3) if other != target)
        if strays > ALIGNED:
            return None
        scale = linear[axis, target]
        whole = abs(abs(scale) - 1) * shape[target] + abs(offset[axis] - round(offset[axis])) < ALIGNED
        steps.append(_Step(int(target), float(scale), float(offset[axis]), bool(whole)))
    return steps


def _index(data: NDArray[np.generic], steps: list[_Step], shape: Shape, fill: float) -> NDArray[np.generic]:
    """Copy voxels between grids that differ by flips, a permutation and whole steps."""
    sources, targets = [], []
    for axis, step in enumerate(steps):
        positions = round(step.offset) + int(np.sign(step.scale)) * np.arange(shape[step.target])
        inside = np.flatnonzero((positions >= 0) & (positions < data.shape[axis]))
        sources.append(_as_slice(positions[inside]))
        targets.append(slice(inside[0], inside[-1] + 1) if len(inside) else slice(0, 0))
    result = np.full(shape, fill, dtype=data.dtype)
    order = np.argsort([step.target for step in steps])
    window = tuple(targets[axis] for axis in order)
    result[window] = data[tuple(sources)].transpose(order)
    return result


def _as_slice(positions: NDArray[np.int64]) -> slice:
    """Consecutive rising or falling positions as a slice, which copies without an index array."""
    if len(positions) == 0:
        return slice(0, 0)
    first, last = int(positions[0]), int(positions[-1])
    if last >= first:
        return slice(first, last + 1)
    return slice(first, last - 1 if last > 0 else None, -1)


def _resample_along_axes(
    data: NDArray[np.generic], steps: list[_Step], shape: Shape, mode: Mode, fill: float
) -> NDArray[np.generic]:
    """Aligned axes: gather only the source planes that matter, then one small matrix product along each axis."""
    plans = [_axis_weights(step, data.shape[axis], shape[step.target], mode) for axis, step in enumerate(steps)]
    order = np.argsort([step.target for step in steps])
    inside = [plans[axis].inside for axis in order]
    if mode == "nearest":
        picked = data[np.ix_(*(plan.planes[plan.weights.argmax(axis=1)] for plan in plans))]
        return _fill_outside(np.ascontiguousarray(picked.transpose(order)), inside, fill)
    # Slowest axis first: the planes of a large volume are read once, from front to back, and shrunk as they come.
    layout = np.argsort([-abs(stride) for stride in data.strides], kind="stable")
    ordered = [plans[axis] for axis in layout]
    values = _read(data.transpose(layout), ordered).transpose(np.argsort(layout))
    return _fill_outside(np.ascontiguousarray(values.transpose(order)), inside, fill)


def _read(data: NDArray[np.generic], plans: list[_Plan]) -> NDArray[np.float32]:
    """Weighted sums along all three axes, of some planes of the first axis at a time; those that shrink come first."""
    axes = sorted(range(3), key=lambda axis: len(plans[axis].weights) / len(plans[axis].planes))
    early = [axis for axis in axes if axis > 0 and len(plans[axis].weights) < len(plans[axis].planes)]
    planes = max(1, CHUNK // max(1, len(plans[1].planes) * len(plans[2].planes)))
    parts = []
    for start in range(0, len(plans[0].planes), planes):
        some = plans[0].planes[start : start + planes]
        part = data[np.ix_(some, plans[1].planes, plans[2].planes)].astype(np.float32)
        parts.append(_summed(part, plans, early))
    return _summed(np.concatenate(parts), plans, [axis for axis in axes if axis not in early])


def _summed(values: NDArray[np.float32], plans: list[_Plan], axes: list[int]) -> NDArray[np.float32]:
    """Weighted sums along some axes as matrix products on the values as they lie: nothing is copied for them."""
    for axis in axes:
        weights = plans[axis].weights
        if axis == 2:
            values = values @ weights.T
        elif axis == 1:
            values = weights @ values
        else:
            values = (weights @ values.reshape(len(values), -1)).reshape(-1, *values.shape[1:])
    return values


def _fill_outside(values: NDArray[np.generic], inside: list[NDArray[np.bool_]], fill: float) -> NDArray[np.generic]:
    for axis, flags in enumerate(inside):
        if not flags.all():
            values[(slice(None),) * axis + (~flags,)] = fill
    return values


@dataclass(frozen=True)
class _Plan:
    """Along one axis: the source planes read, their weights (target × planes), and which targets lie inside."""

    planes: NDArray[np.int64]
    weights: NDArray[np.float32]
    inside: NDArray[np.bool_]


def _axis_weights(step: _Step, source_size: int, target_size: int, mode: Mode) -> _Plan:
    centers = step.offset + step.scale * np.arange(target_size)
    inside = (centers >= -0.5 - ALIGNED) & (centers <= source_size - 0.5 + ALIGNED)
    samples = 1 if mode != "area" else int(np.clip(np.ceil(abs(step.scale) - 1e-3), 1, MOST_SAMPLES))
    shifts = (np.arange(samples) + 0.5) / samples - 0.5
    positions = np.clip(centers[:, None] + step.scale * shifts, 0, source_size - 1)
    low = np.minimum(np.floor(positions).astype(np.int64), max(source_size - 2, 0))
    part = positions - low
    if mode == "nearest":
        part = (part >= 0.5).astype(np.float64)
    high = np.minimum(low + 1, source_size - 1)
    planes = np.unique(np.concatenate([low.ravel(), high.ravel()]))
    weights = np.zeros((target_size, len(planes)), dtype=np.float32)
    rows = np.broadcast_to(np.arange(target_size)[:, None], low.shape)
    np.add.at(weights, (rows, np.searchsorted(planes, low)), (1 - part) / samples)
    np.add.at(weights, (rows, np.searchsorted(planes, high)), part / samples)
    return _Plan(planes, weights, inside)


def _resample_anywhere(
    data: NDArray[np.generic], matrix: NDArray[np.float64], shape: Shape, mode: Mode, fill: float
) -> NDArray[np.generic]:
    """Oblique to one another: interpolate position by position, some planes at a time."""
    from scipy.ndimage import map_coordinates  # takes long to load, and most grids lie along one another

    step = np.abs(np.linalg.norm(matrix[:3, :3], axis=0))
    samples = [1 if mode != "area" else int(np.clip(np.ceil(size - 1e-3), 1, MOST_SAMPLES)) for size in step]
    shifts = list(product(*((np.arange(count) + 0.5) / count - 0.5 for count in samples)))
    exact_type = mode == "nearest"
    result = np.empty(shape, dtype=data.dtype if exact_type else np.float32)
    values = data if exact_type else data.astype(np.float32, copy=False)
    sizes = np.array(data.shape)[:, None]
    planes = max(1, CHUNK // (shape[1] * shape[2]))
    for start in range(0, shape[0], planes):
        stop = min(start + planes, shape[0])
        index = np.stack(np.meshgrid(np.arange(start, stop), *map(np.arange, shape[1:]), indexing="ij")).reshape(3, -1)
        total = np.zeros(index.shape[1], dtype=result.dtype)
        for shift in shifts:
            positions = matrix[:3, :3] @ (index + np.array(shift)[:, None]) + matrix[:3, 3:]
            clipped = np.clip(positions, 0, sizes - 1)
            total += map_coordinates(values, clipped, order=0 if exact_type else 1, mode="nearest")
        if len(shifts) > 1:
            total /= len(shifts)
        centers = matrix[:3, :3] @ index + matrix[:3, 3:]
        outside = ((centers < -0.5 - ALIGNED) | (centers > sizes - 0.5 + ALIGNED)).any(axis=0)
        total[outside] = fill
        result[start:stop] = total.reshape(stop - start, *shape[1:])
    return result


def _numbers(values: ArrayLike) -> str:
    return " × ".join(f"{value:.4g}" for value in np.asarray(values))
