"""The prompt log of an object: append-only, and the source of everything a session shows.

Undo, redo, removal and reset are entries like any other. What stands at any moment follows from reading the log from
its start, so nothing is lost, any state can be reached again, and a saved log can be replayed with another model.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from volsam.errors import BadInput
from volsam.geometry import Grid
from volsam.prompts import Click, MaskHint, Point, Prompt, from_record, to_record

Active = tuple[tuple[int, Prompt], ...]


@dataclass
class PromptLog:
    """Entries of one object, oldest first, and the prompts that stand after each undoable step."""

    entries: list[dict[str, Any]] = field(default_factory=list)
    _steps: list[Active] = field(default_factory=lambda: [()])
    _at: int = 0
    _next: int = 1
    _turn: dict[int, int] = field(default_factory=dict)
    _beside: dict[int, tuple[Point, ...]] = field(default_factory=dict)

    def copy(self) -> PromptLog:
        """The same log, which goes on by itself."""
        return PromptLog(list(self.entries), self._steps, self._at, self._next, dict(self._turn), dict(self._beside))

    @property
    def active(self) -> Active:
        """The standing prompts with their numbers, oldest first."""
        return self._steps[self._at]

    @property
    def turns(self) -> list[int]:
        """How many prompts stand after each turn; prompts that were added together are one turn."""
        turn = [self._turn[number] for number, _ in self.active]
        return [end for end in range(1, len(turn) + 1) if turn[end - 1 : end] != turn[end : end + 1]]

    @property
    def can_undo(self) -> bool:
        """Whether there is a step to take back."""
        return self._at > 0

    @property
    def can_redo(self) -> bool:
        """Whether a step was taken back."""
        return self._at + 1 < len(self._steps)

    def add(self, prompt: Prompt, together_with: int | None = None, beside: Sequence[Point] = ()) -> int:
        """Append a prompt; returns its number. Prompts `together_with` the same one are to be answered together.

        beside: places in mm RAS+ that other objects held at that moment, to be kept out of the answer.
        """
        number = self._next
        self._next += 1
        self._turn[number] = number if together_with is None else together_with
        self._beside[number] = tuple(beside)
        together = {} if together_with is None else {"with": together_with}
        others = {"beside": [list(point) for point in beside]} if beside else {}
        self.entries.append({"op": "add", "id": number, **together, **others, "prompt": to_saved(prompt)})
        self._step((*self.active, (number, prompt)))
        return number

    def beside(self, number: int) -> tuple[Point, ...]:
        """The places of other objects that a prompt was added with."""
        return self._beside[number]

    def remove(self, number: int) -> None:
        """Take one standing prompt away, whatever came after it."""
        if all(number != known for known, _ in self.active):
            standing = ", ".join(str(known) for known, _ in self.active) or "none"
            raise BadInput(f"no standing prompt has the number {number}; standing are: {standing}")
        self.entries.append({"op": "remove", "id": number})
        self._step(tuple(pair for pair in self.active if pair[0] != number))

    def reset(self) -> None:
        """Take all prompts away; this too can be undone."""
        self.entries.append({"op": "reset"})
        self._step(())

    def undo(self) -> bool:
        """One step back; False at the start."""
        if not self.can_undo:
            return False
        self.entries.append({"op": "undo"})
        self._at -= 1
        return True

    def redo(self) -> bool:
        """One step forward again; False where nothing was taken back since the last change."""
        if not self.can_redo:
            return False
        self.entries.append({"op": "redo"})
        self._at += 1
        return True

    def _step(self, active: Active) -> None:
        self._steps = [*self._steps[: self._at + 1], active]
        self._at += 1

    @classmethod
    def replay(cls, entries: list[Mapping[str, Any]], grid: Grid) -> PromptLog:
        """The log that `entries` describe."""
        log = cls()
        for entry in entries:
            op = entry.get("op")
            if op == "add":
                beside = tuple(Click(point).position for point in entry.get("beside", ()))
                log.add(from_saved(entry["prompt"], grid), entry.get("with"), beside)
            elif op == "remove":
                log.remove(int(entry["id"]))
            elif op in ("undo", "redo", "reset"):
                getattr(log, op)()
            else:
                raise BadInput(f"a session's log holds the unknown entry {op!r}; it was saved by a newer version")
        return log


def to_saved(prompt: Prompt) -> dict[str, Any]:
    """A prompt as plain data in mm RAS+; the voxels of a mask as packed bits, in base64."""
    if not isinstance(prompt, MaskHint):
        return to_record(prompt)
    bits = zlib.compress(np.packbits(prompt.mask > 0).tobytes())
    return {
        "type": "mask",
        "shape": list(prompt.grid.shape),
        "affine": prompt.grid.affine.tolist(),
        "bits": base64.b64encode(bits).decode(),
    }


def from_saved(record: Mapping[str, Any], grid: Grid) -> Prompt:
    """The prompt that `to_saved` saved, for a volume on `grid`."""
    if record.get("type") != "mask":
        return from_record(record, grid)
    own = Grid(tuple(record["shape"]), np.array(record["affine"]))
    bits = np.frombuffer(zlib.decompress(base64.b64decode(record["bits"])), np.uint8)
    voxels = int(np.prod(own.shape))
    if len(bits) != -(-voxels // 8):  # numpy would fill with zeros
        raise ValueError("the bits of a mask do not fit its shape")
    return MaskHint(np.unpackbits(bits, count=voxels).reshape(own.shape), own)
