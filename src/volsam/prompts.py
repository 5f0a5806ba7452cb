"""What a user says about an object: clicks, boxes, scribbles and masks, in millimetres RAS+.

A prompt knows no voxels. They appear when a set of prompts is put on a grid, and the same prompts can be put on any
number of grids: the scan, a region of interest, another scan of the same patient.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from volsam.errors import BadInput, PromptOutside
from volsam.geometry import Grid, resample

Point = tuple[float, float, float]


@dataclass(frozen=True)
class Click:
    """A point in mm RAS+ that belongs to the object, or (`positive=False`) does not."""

    position: Point
    positive: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "position", _point(self.position))


@dataclass(frozen=True)
class Box:
    """Two opposite corners in mm RAS+; the object lies inside.

    The box runs along the axes of the grid on which it is used, from the centre of one voxel to that of another, both
    of which belong to it. A box that is flat along one axis is a 2D box on that slice: the object is inside it there
    and may go on in other slices.
    """

    low: Point
    high: Point

    def __post_init__(self) -> None:
        object.__setattr__(self, "low", _point(self.low))
        object.__setattr__(self, "high", _point(self.high))


@dataclass(frozen=True)
class Scribble:
    """A stroke: points (n, 3) in mm RAS+, in order, all inside the object or all outside it."""

    points: tuple[Point, ...]
    positive: bool = True

    def __post_init__(self) -> None:
        points = tuple(_point(point) for point in self.points)
        if not points:
            raise BadInput("a scribble needs at least one point, got none")
        object.__setattr__(self, "points", points)


@dataclass(frozen=True, eq=False)
class MaskHint:
    """A mask to start from: an array (i, j, k) on a grid of its own; above 0 is object."""

    mask: NDArray[Any]
    grid: Grid

    def __post_init__(self) -> None:
        mask = np.asarray(self.mask)
        if mask.shape != self.grid.shape:
            raise BadInput(f"a starting mask of shape {mask.shape} does not fit its grid of shape {self.grid.shape}")
        object.__setattr__(self, "mask", mask > 0)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, MaskHint) and self.grid == other.grid and np.array_equal(self.mask, other.mask)

    def __hash__(self) -> int:
        return hash((self.grid, int(self.mask.sum())))


Prompt: TypeAlias = Click | Box | Scribble | MaskHint


@dataclass(frozen=True)
class GridPrompts:
    """Prompts in the voxels of one grid.

    points: (n, 3) float64 voxel indices of clicks and scribble points, `labels` (n,) bool, True inside the object,
    boxes: (m, 2, 3) lowest and highest voxel centre inside each box, mask: (i, j, k) float32 in 0..1, or None.
    """

    points: NDArray[np.float64]
    labels: NDArray[np.bool_]
    boxes: NDArray[np.float64]
    mask: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class PromptSet:
    """All prompts for one object, oldest first."""

    prompts: tuple[Prompt, ...] = field(default=())

    def __init__(self, prompts: Iterable[Prompt] = ()) -> None:
        object.__setattr__(self, "prompts", tuple(prompts))

    def __iter__(self) -> Iterator[Prompt]:
        return iter(self.prompts)

    def __len__(self) -> int:
        return len(self.prompts)

    def ready(self) -> tuple[MaskHint | None, PromptSet]:
        """The newest mask that was given and is not empty, with the prompts that came after it; else None with all."""
        for place in reversed(range(len(self.prompts))):
            hint = self.prompts[place]
            if isinstance(hint, MaskHint) and hint.mask.any():
                return hint, PromptSet(self.prompts[place + 1 :])
        return None, self

    def points(self, positive: bool | None = None) -> NDArray[np.float64]:
        """Positions (n, 3) in mm of all clicks and scribble points, or of those of one sign."""
        found = [
            point
            for prompt in self.prompts
            if isinstance(prompt, (Click, Scribble)) and (positive is None or prompt.positive == positive)
            for point in positions(prompt)
        ]
        return np.array(found, dtype=np.float64).reshape(-1, 3)

    def on(self, grid: Grid) -> GridPrompts:
        """The prompts in voxels of `grid`; points outside it are kept, with indices outside its shape."""
        signs = [
            prompt.positive
            for prompt in self.prompts
            if isinstance(prompt, (Click, Scribble))
            for _ in positions(prompt)
        ]
        corners = [grid.to_voxels([box.low, box.high]) for box in self.prompts if isinstance(box, Box)]
        boxes = np.array([[pair.min(axis=0), pair.max(axis=0)] for pair in corners]).reshape(-1, 2, 3)
        masks = [hint for hint in self.prompts if isinstance(hint, MaskHint)]
        mask = None
        if masks:
            mask = resample(masks[-1].mask.astype(np.float32), masks[-1].grid, grid, mode="area").astype(np.float32)
        return GridPrompts(grid.to_voxels(self.points()), np.array(signs, dtype=bool), boxes, mask)

    def require_inside(self, grid: Grid, name: str) -> None:
        """Raise `PromptOutside` for the first prompt that lies outside the volume called `name`."""
        for prompt in self.prompts:
            require_inside(prompt, grid, name)


def positions(prompt: Prompt) -> tuple[Point, ...]:
    """The points in mm RAS+ that a prompt names; none for a mask."""
    if isinstance(prompt, Click):
        return (prompt.position,)
    if isinstance(prompt, Scribble):
        return prompt.points
    if isinstance(prompt, Box):
        return (prompt.low, prompt.high)
    return ()


def require_inside(prompt: Prompt, grid: Grid, name: str) -> None:
    """Raise `PromptOutside`, naming the extent in millimetres and in voxels, unless the prompt lies in the volume."""
    for point in positions(prompt):
        if grid.contains(point):
            continue
        low, high = grid.extent()
        last = ",".join(str(size - 1) for size in grid.shape)
        raise PromptOutside(
            f"{type(prompt).__name__.lower()} at {shown(point)} mm (RAS+), voxel {shown(grid.to_voxels(point))}, lies "
            f"outside {name}, which spans {shown(low)} to {shown(high)} mm, voxels 0,0,0 to {last}: "
            "check the order of the axes and --space"
        )
    if isinstance(prompt, MaskHint) and not _touch(grid, prompt.grid):
        raise PromptOutside(f"the starting mask lies wholly outside {name}: it must belong to the same scan")


def to_record(prompt: Prompt) -> dict[str, Any]:
    """A prompt as plain data in mm RAS+, for JSON; a mask's voxels travel separately, see `inference.log`."""
    if isinstance(prompt, Click):
        return {"type": "point", "position": list(prompt.position), "positive": prompt.positive}
    if isinstance(prompt, Box):
        return {"type": "box", "low": list(prompt.low), "high": list(prompt.high)}
    if isinstance(prompt, Scribble):
        return {"type": "scribble", "points": [list(point) for point in prompt.points], "positive": prompt.positive}
    raise BadInput("a mask prompt is saved as a file, not as a record")


def from_record(record: Mapping[str, Any], grid: Grid, space: str = "ras") -> Prompt:
    """A prompt from plain data whose coordinates are in `space`: "voxel" of `grid`, "ras" or "lps" millimetres."""
    kind = record.get("type")
    positive = record.get("positive", True)
    if not isinstance(positive, bool):
        raise BadInput(f'"positive" is true or false, got {positive!r}')
    try:
        if kind == "point":
            return Click(_world(record["position"], grid, space), positive)
        if kind == "box":
            return Box(_world(record["low"], grid, space), _world(record["high"], grid, space))
        if kind == "scribble":
            return Scribble(tuple(_world(point, grid, space) for point in record["points"]), positive)
    except KeyError as missing:
        raise BadInput(f"a prompt of type {kind!r} needs the field {missing}") from None
    except TypeError:
        raise BadInput(f"a prompt of type {kind!r} holds something that is not a list of numbers") from None
    raise BadInput(f'a prompt\'s "type" is point, box, scribble or mask, got {kind!r}')


def _world(point: Sequence[float], grid: Grid, space: str) -> Point:
    values = np.array(_point(point))
    if space == "voxel":
        values = grid.to_world(values)
    elif space == "lps":
        values = values * (-1, -1, 1)
    elif space != "ras":
        raise BadInput(f'"space" is voxel, ras or lps, got {space!r}')
    return _point(values)


def _point(values: Sequence[float] | NDArray[np.float64]) -> Point:
    """Three finite numbers, or a refusal."""
    if isinstance(values, str):  # "123" would pass as the numbers 1, 2 and 3
        raise BadInput(f"a position is three numbers, got {values!r}")
    try:
        numbers = [float(value) for value in values]
    except (TypeError, ValueError):
        raise BadInput(f"a position is three numbers, got {values!r}") from None
    if len(numbers) != 3 or not np.isfinite(numbers).all():
        raise BadInput(f"a position is three finite numbers, got {values!r}")
    return (numbers[0], numbers[1], numbers[2])


def shown(point: Sequence[float] | NDArray[np.float64]) -> str:
    """A position as a person would type it; what is nearly zero is what rounding leaves of one."""
    values = [0.0 if abs(value) < 5e-4 else value for value in point]
    return ",".join(f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0f}" for value in values)


def _touch(grid: Grid, other: Grid) -> bool:
    low, high = grid.overlap(other)
    return all(b > a for a, b in zip(low, high, strict=True))
