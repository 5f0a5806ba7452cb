"""What the user says: the same words as in volsam, mm RAS+."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from volsam_client import wire

Point = Sequence[float]


@dataclass(frozen=True)
class Click:
    """A point in the object, or outside it."""

    position: Point
    positive: bool = True

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return {"type": "point", "position": _numbers(self.position), "positive": self.positive}


@dataclass(frozen=True)
class Box:
    """Two opposite corners; flat along one axis for a 2D box."""

    low: Point
    high: Point

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return {"type": "box", "low": _numbers(self.low), "high": _numbers(self.high)}


@dataclass(frozen=True)
class Scribble:
    """A stroke of points."""

    points: Sequence[Point]
    positive: bool = True

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return {"type": "scribble", "points": [_numbers(point) for point in self.points], "positive": self.positive}


@dataclass(frozen=True)
class Lasso:
    """A closed contour on one slice of the volume."""

    points: Sequence[Point]
    positive: bool = True

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return {"type": "lasso", "points": [_numbers(point) for point in self.points], "positive": self.positive}


@dataclass(frozen=True, eq=False)
class MaskHint:
    """A mask to start from, (i, j, k), whose first voxel is voxel `low` of the volume."""

    mask: NDArray[Any]
    low: Sequence[int] = (0, 0, 0)

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return {"type": "mask", **wire.encoded(self.mask, self.low)}


Prompt = Click | Box | Scribble | Lasso | MaskHint


def _numbers(point: Point) -> list[float]:
    return [float(value) for value in point]
