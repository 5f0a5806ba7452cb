"""What was said about a segment, as plain data in voxels; it is kept in a tag of the segment and saved with the scene.

A turn is what was said at once: a point, a box, or a mask to start from together with a point. A mask follows from the
turns of a segment in their order, whatever was undone or removed between them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from volsam_client import Box, Click, MaskHint, wire

TAG = "VolSam.prompts"
LOCK = "VolSam.locked"
Voxel = tuple[float, float, float]


@dataclass(frozen=True)
class Point:
    """In the object, or outside it."""

    voxel: Voxel
    positive: bool = True

    def said(self, session: Any) -> Any:
        """As the server hears it."""
        return Click(session.to_world(self.voxel), self.positive)


@dataclass(frozen=True)
class Corners:
    """A box, lowest and highest voxel."""

    low: Voxel
    high: Voxel

    def said(self, session: Any) -> Any:
        """As the server hears it."""
        return Box(session.to_world(self.low), session.to_world(self.high))


@dataclass(frozen=True)
class Start:
    """A mask to start from, packed."""

    packed: str

    def said(self, _: Any) -> Any:
        """As the server hears it."""
        part = json.loads(self.packed)
        return MaskHint(wire.decoded(part), part["low"])


Prompt = Point | Corners | Start
Turn = tuple[Prompt, ...]


@dataclass(frozen=True)
class Said:
    """All turns about a segment, and the plane that a model of slices is to look at."""

    turns: tuple[Turn, ...] = ()
    plane: str | None = None

    def and_then(self, *prompts: Prompt) -> Said:
        """With one more turn."""
        return Said((*self.turns, prompts), self.plane)

    def without(self, number: int) -> Said:
        """Without a turn."""
        return Said((*self.turns[:number], *self.turns[number + 1 :]), self.plane)

    def moved(self, number: int, voxel: Sequence[float]) -> Said:
        """With the point of a turn in another place."""
        turn = tuple(
            Point(as_voxel(voxel), one.positive) if isinstance(one, Point) else one for one in self.turns[number]
        )
        return Said((*self.turns[:number], turn, *self.turns[number + 1 :]), self.plane)

    def points(self) -> list[tuple[int, Point]]:
        """Every point with the number of its turn."""
        return [(n, one) for n, turn in enumerate(self.turns) for one in turn if isinstance(one, Point)]

    def text(self) -> str:
        """As JSON, for the tag."""
        turns = [[_record(prompt) for prompt in turn] for turn in self.turns]
        return json.dumps({"version": 1, "plane": self.plane, "turns": turns})


def read(text: str) -> Said:
    """What a tag says; nothing if it is damaged or of a later version."""
    try:
        found = json.loads(text)
        if found["version"] != 1:
            return Said()
        return Said(tuple(tuple(_prompt(record) for record in turn) for turn in found["turns"]), found["plane"])
    except (ValueError, LookupError, TypeError):
        return Said()


def as_voxel(place: Sequence[float]) -> Voxel:
    """Three numbers."""
    i, j, k = (float(value) for value in place)
    return i, j, k


@dataclass(frozen=True, eq=False)
class Part:
    """The voxels of a segment in a box: mask (i, j, k) whose first voxel is voxel `low` of the volume."""

    mask: np.ndarray = field(default_factory=lambda: np.zeros((0, 0, 0), bool))
    low: tuple[int, int, int] = (0, 0, 0)

    @classmethod
    def around(cls, mask: np.ndarray, low: Sequence[int] = (0, 0, 0)) -> Part:
        """The smallest box around what is set in a mask."""
        mask = np.asarray(mask, bool)
        window = []
        for axis in range(3):
            used = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
            if len(used) == 0:
                return cls()
            window.append(slice(int(used[0]), int(used[-1]) + 1))
        i, j, k = (int(start.start + first) for start, first in zip(window, low, strict=True))
        return cls(mask[tuple(window)].copy(), (i, j, k))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Part) and self.low == other.low and np.array_equal(self.mask, other.mask)

    __hash__ = None  # type: ignore[assignment]

    @property
    def voxels(self) -> int:
        """How many are set."""
        return int(np.count_nonzero(self.mask))

    def without(self, other: Part) -> Part:
        """Less what another has."""
        mask = self.mask.copy()
        low = np.maximum(self.low, other.low)
        high = np.minimum(np.add(self.low, self.mask.shape), np.add(other.low, other.mask.shape))
        if self.voxels and other.voxels and np.all(high > low):
            here = tuple(slice(a, b) for a, b in zip(low - self.low, high - self.low, strict=True))
            there = tuple(slice(a, b) for a, b in zip(low - other.low, high - other.low, strict=True))
            mask[here] &= ~other.mask[there]
        return Part.around(mask, self.low)

    def packed(self) -> str:
        """As text."""
        return json.dumps(wire.encoded(self.mask, self.low))


def _record(prompt: Prompt) -> dict[str, Any]:
    if isinstance(prompt, Point):
        return {"type": "point", "voxel": prompt.voxel, "positive": prompt.positive}
    if isinstance(prompt, Corners):
        return {"type": "box", "low": prompt.low, "high": prompt.high}
    return {"type": "mask", "packed": prompt.packed}


def _prompt(record: dict[str, Any]) -> Prompt:
    if record["type"] == "point":
        return Point(as_voxel(record["voxel"]), bool(record["positive"]))
    if record["type"] == "box":
        return Corners(as_voxel(record["low"]), as_voxel(record["high"]))
    return Start(str(record["packed"]))
