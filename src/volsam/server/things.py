"""The objects of an open session as users know them: number, name, colour, and whether they are locked or shown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from volsam.errors import BadInput
from volsam.server.problems import Problem

COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#42d4f4", "#f032e6", "#bfef45", "#469990", "#9a6324")
MOST_OBJECTS = 1000


@dataclass(frozen=True)
class Thing:
    """What is kept of an object beside its prompts.

    number: its value in label maps; changed: counts changes of its mask; voxels: of its mask.
    """

    number: int
    name: str
    colour: str
    locked: bool = False
    visible: bool = True
    changed: int = 0
    voxels: int = 0


class Things:
    """All objects of a session, in the order in which they were made; no number is given twice."""

    def __init__(self, things: Iterable[Thing] = (), following: int = 1) -> None:
        self._by_number = {thing.number: thing for thing in things}
        self.following = following
        """The number of the next one."""

    def __iter__(self) -> Iterator[Thing]:
        return iter(self._by_number.values())

    def __len__(self) -> int:
        return len(self._by_number)

    def __contains__(self, number: object) -> bool:
        return number in self._by_number

    def __getitem__(self, number: int) -> Thing:
        if number not in self._by_number:
            there = ", ".join(f"{thing.number} ({thing.name})" for thing in self)
            raise Problem(404, f"no object has the number {number}; there are: {there}")
        return self._by_number[number]

    def named(self, name: str) -> Thing:
        """The object of that name, which is there."""
        return next(thing for thing in self if thing.name == name)

    def new(self, name: str, colour: str | None = None, *, number: int | None = None) -> Thing:
        """One more, in a colour that its neighbours do not have; `number` is one that nobody has had."""
        if len(self) >= MOST_OBJECTS:
            raise Problem(409, f"a session holds at most {MOST_OBJECTS} objects: delete some")
        number = self.following if number is None else number
        thing = Thing(number, name, colour or COLOURS[(number - 1) % len(COLOURS)])
        self._by_number[thing.number] = thing
        self.following = max(self.following, number + 1)
        return thing

    def alter(self, number: int, **values: Any) -> Thing:
        """Put other values in place of some of an object's."""
        self._by_number[number] = replace(self[number], **values)
        return self._by_number[number]

    def delete(self, number: int) -> None:
        """Forget an object."""
        del self._by_number[number]

    def unused(self, name: str | None) -> str:
        """A name for a new object: the one that is wanted, refused if it is taken, or a new one."""
        taken = {thing.name for thing in self}
        if name is not None:
            if not name.strip():
                raise BadInput("an object needs a name, got an empty one")
            if name in taken:
                raise BadInput(f"an object is called {name!r} already: give another name")
            return name
        count = self.following
        while f"object {count}" in taken:
            count += 1
        return f"object {count}"

    def record(self) -> dict[str, Any]:
        """What is kept on disk."""
        return {"next": self.following, "objects": [vars(thing) for thing in self]}

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Things:
        """What was kept; values that this version does not know are left out."""
        known = Thing.__dataclass_fields__
        kept = ({name: value for name, value in item.items() if name in known} for item in record["objects"])
        return cls((Thing(**{**item, "number": int(item["number"])}) for item in kept), int(record["next"]))
