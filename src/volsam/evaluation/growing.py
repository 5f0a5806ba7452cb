"""Region growing and balls around the clicks: the simple methods that a model has to beat.

A rule is fixed: its numbers are the same for every image and every object. It looks at the first channel.

- `Grow`: from a positive click to all connected voxels of nearly the same intensity.
- `Ball`: everything near a positive click, whatever the image shows.

With several clicks the parts of the positive clicks are united, and each voxel of the union stays if it goes with a
positive click rather than with a negative one: with the nearer, or with the one of more similar intensity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from volsam.data.simulate import Mask, bounding_box
from volsam.evaluation.protocol import Add, Start
from volsam.prompts import Click
from volsam.volume import Volume

Values: TypeAlias = NDArray[np.float32]
Voxel: TypeAlias = tuple[int, int, int]
Box: TypeAlias = tuple[slice, slice, slice]
Rivals: TypeAlias = Literal["nearer", "similar"]

# In a larger box every second (third, ...) voxel of the finest axes is looked at.
MOST_VOXELS = 1 << 22
# Opening leaves out an axis whose voxels are this much longer than the shortest: one slice is not a thin bridge.
THICK = 3.0
# Soft tissue in Hounsfield units; air and dense bone become flat, so that they do not rule the standard deviation.
CT_WINDOW = (-160.0, 300.0)


@dataclass(frozen=True)
class Grow:
    """Voxels connected to the click whose intensity differs from the click's by less than a part of the SD.

    smooth: SD in mm of the Gaussian that smooths the image first, 0 for none. tolerance: part of the standard deviation
    within the box. box: edge in mm of the cube around the click that is looked at. opened: how many voxels of opening
    cut thin bridges; fewer where the click itself would be lost. rivals: see the module.
    """

    smooth: float
    tolerance: float
    box: float = 150.0
    opened: int = 0
    rivals: Rivals = "nearer"

    def __str__(self) -> str:
        parts = [
            f"smooth {self.smooth:g} mm" if self.smooth else "",
            f"{self.tolerance:g} SD",
            f"box {self.box:g} mm",
            f"opening {self.opened}" if self.opened else "",
            "similar click wins" if self.rivals == "similar" else "",
        ]
        return ", ".join(part for part in parts if part)


@dataclass(frozen=True)
class Ball:
    """Everything within `radius` mm of a positive click and nearer to it than to a negative one."""

    radius: float

    def __str__(self) -> str:
        return f"ball of {self.radius:g} mm"


Rule: TypeAlias = Grow | Ball

RULES: tuple[Rule, ...] = (
    *(Grow(smooth, part, opened=opened) for smooth, part, opened in product((0, 1), (0.2, 0.4, 0.6, 0.8), (1, 2))),
    *(Grow(1, part, opened=0) for part in (0.2, 0.4)),
    *(Grow(1, 0.4, box, opened=2) for box in (50, 90)),
    *(Grow(1, part, opened=2, rivals="similar") for part in (0.4, 0.6)),
    *(Ball(radius) for radius in (10, 18, 27, 40)),
)


@dataclass
class Scene:
    """An image made ready once for all rules: its first channel, clipped, and its smoothed versions."""

    volume: Volume
    window: tuple[float, float] | None = None
    _smoothed: dict[float, Values] = field(default_factory=dict)

    def smoothed(self, smooth: float) -> Values:
        """The image (i, j, k) after a Gaussian of SD `smooth` mm."""
        if smooth not in self._smoothed:
            image = np.asarray(self.volume.data[0], dtype=np.float32)
            if self.window is not None:
                image = np.clip(image, *self.window)
            if smooth > 0:
                image = ndimage.gaussian_filter(image, smooth / self.volume.grid.spacing)
            self._smoothed[smooth] = image
        return self._smoothed[smooth]


def start(rule: Rule, window: tuple[float, float] | None = None) -> Start:
    """The rule as something that `clicks_protocol` can evaluate; intensities are clipped to `window` first."""
    return lambda volume: begin(rule, Scene(volume, window))


def begin(rule: Rule, scene: Scene) -> Add:
    """Start with one object; the answer adds a click and gives the mask."""
    positive: list[Voxel] = []
    negative: list[Voxel] = []
    union = np.zeros(scene.volume.grid.shape, dtype=bool)

    def add(click: Click) -> Mask:
        voxel = _voxel(click, scene)
        (positive if click.positive else negative).append(voxel)
        if click.positive:
            box, part = _grow(rule, scene, voxel) if isinstance(rule, Grow) else _ball(rule, scene, voxel)
            union[box] |= part
        return _keep(union, positive, negative, rule, scene)

    return add


def _voxel(click: Click, scene: Scene) -> Voxel:
    grid = scene.volume.grid
    i, j, k = np.clip(np.rint(grid.to_voxels(click.position)), 0, np.array(grid.shape) - 1).astype(int)
    return int(i), int(j), int(k)


# ---------------------------------------------------------------------------------------------------------------------
# The part of one click


def _grow(rule: Grow, scene: Scene, voxel: Voxel) -> tuple[Box, Mask]:
    """A box and the voxels in it that the rule takes."""
    spacing = scene.volume.grid.spacing
    box = _cube(scene, voxel, rule.box / 2)
    steps = _steps([side.stop - side.start for side in box], spacing)
    first = [(at - side.start) % step for at, side, step in zip(voxel, box, steps, strict=True)]
    lattice = tuple(slice(start, None, step) for start, step in zip(first, steps, strict=True))
    image = scene.smoothed(rule.smooth)[box][lattice]
    seed = tuple((at - side.start) // step for at, side, step in zip(voxel, box, steps, strict=True))
    similar = np.abs(image - image[seed]) <= rule.tolerance * float(image.std())
    part = _component(similar, (seed[0], seed[1], seed[2]), rule.opened, spacing * steps)
    shape = [side.stop - side.start for side in box]
    return box, _refine(part, first, steps, shape)


def _component(similar: Mask, seed: Voxel, opened: int, spacing: NDArray[np.float64]) -> Mask:
    """The connected voxels around the seed after as much of the opening as leaves the seed in place."""
    axes = [axis for axis in range(3) if spacing[axis] < THICK * spacing.min()]
    for times in range(opened, 0, -1):
        trimmed = _open(similar, times, axes)
        if trimmed[seed]:
            similar = trimmed
            break
    labels, _ = ndimage.label(similar)
    component: Mask = labels == labels[seed]
    return component


def _open(mask: Mask, times: int, axes: Sequence[int]) -> Mask:
    """Erode, then dilate, by one voxel along `axes`, so many times; the border of the array does not erode."""
    for _ in range(times):
        mask = ~_dilate(~mask, axes)
    for _ in range(times):
        mask = _dilate(mask, axes)
    return mask


def _dilate(mask: Mask, axes: Sequence[int]) -> Mask:
    # Shifted views: a tenth of the time of scipy's general structuring element.
    grown = mask.copy()
    for axis in axes:
        ahead = (slice(None),) * axis + (slice(1, None),)
        behind = (slice(None),) * axis + (slice(None, -1),)
        grown[ahead] |= mask[behind]
        grown[behind] |= mask[ahead]
    return grown


def _ball(rule: Ball, scene: Scene, voxel: Voxel) -> tuple[Box, Mask]:
    box = _cube(scene, voxel, rule.radius)
    return box, _distance(box, voxel, scene) <= rule.radius


def _cube(scene: Scene, voxel: Voxel, half: float) -> Box:
    """The voxels within `half` mm of a voxel along each axis."""
    grid = scene.volume.grid
    sides = [
        slice(max(0, at - int(half / size)), min(length, at + int(half / size) + 1))
        for at, size, length in zip(voxel, grid.spacing, grid.shape, strict=True)
    ]
    return sides[0], sides[1], sides[2]


def _steps(shape: Sequence[int], spacing: NDArray[np.float64]) -> NDArray[np.int64]:
    """Strides (3,) that leave few enough voxels, coarser along the finest axes."""
    steps = np.ones(3, dtype=np.int64)
    while np.prod(np.ceil(np.array(shape) / steps)) > MOST_VOXELS:
        steps[np.argmin(spacing * steps)] += 1
    return steps


def _refine(part: Mask, first: Sequence[int], steps: NDArray[np.int64], shape: Sequence[int]) -> Mask:
    """Back to every voxel: each takes the value of the nearest one that was looked at."""
    for axis in range(3):
        if steps[axis] > 1:
            nearest = np.rint((np.arange(shape[axis]) - first[axis]) / steps[axis]).astype(int)
            part = part.take(np.clip(nearest, 0, part.shape[axis] - 1), axis=axis)
    return part


# ---------------------------------------------------------------------------------------------------------------------
# Several clicks


def _keep(union: Mask, positive: list[Voxel], negative: list[Voxel], rule: Rule, scene: Scene) -> Mask:
    """The voxels of the union that go with a positive click."""
    box = bounding_box(union)
    if box is None or not negative:
        return union.copy()

    def apart(voxel: Voxel) -> Values:
        if isinstance(rule, Ball) or rule.rivals == "nearer":
            return _distance(box, voxel, scene)
        image = scene.smoothed(rule.smooth)
        return np.abs(image[box] - image[voxel])

    to_positive = np.minimum.reduce([apart(voxel) for voxel in positive])
    to_negative = np.minimum.reduce([apart(voxel) for voxel in negative])
    mask = np.zeros_like(union)
    mask[box] = union[box] & (to_positive < to_negative)
    return mask


def _distance(box: Box, voxel: Voxel, scene: Scene) -> Values:
    """Distance in mm of the voxels of a box from one voxel."""
    squares = [
        (((np.arange(side.start, side.stop) - at) * size) ** 2).astype(np.float32)
        for side, at, size in zip(box, voxel, scene.volume.grid.spacing, strict=True)
    ]
    return np.sqrt(squares[0][:, None, None] + squares[1][None, :, None] + squares[2][None, None, :])
