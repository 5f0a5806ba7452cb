"""Which voxels each object of a session has, by the rule for objects that meet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from volsam.inference.objects import Changed
from volsam.inference.session import Session
from volsam.server import wire
from volsam.server.ownership import Mask, Ownership, Policy, window_of
from volsam.server.things import Thing, Things


@dataclass(eq=False)
class Masks:
    """The masks of all objects, as far as others leave them; the session has what each object claims."""

    session: Session
    things: Things
    policy: Policy = "overlap"
    _owners: Ownership | None = None
    _lost: dict[int, tuple[int, dict[str, Any] | None]] = field(default_factory=dict)
    """What an object claims and others own, packed, and at which of its changes that was found."""

    @classmethod
    def resumed(cls, session: Session, things: Things, kept: Mapping[str, Any]) -> Masks:
        """As they were when `record` was kept."""
        masks = cls(session, things)
        if kept["policy"] != "overlap":
            masks.policy = kept["policy"]
            masks._owners = masks._settled({int(number): part for number, part in kept.get("hidden", {}).items()})
        return masks

    def record(self) -> dict[str, Any]:
        """The rule, and what objects claim and others own, which does not follow from the prompts."""
        return {"policy": self.policy, "hidden": self._hidden()}

    # --- looking -------------------------------------------------------------------------------------------------

    def bounds(self, number: int) -> Changed | None:
        """A box that holds an object's mask, None where it has none."""
        return self.session.bounds_of(self.things[number].name)

    def part(self, number: int, box: Changed) -> Mask:
        """The voxels of an object in a box, as an array of its own."""
        if self._owners is not None:
            return self._owners.part(number, window_of(box))
        return np.array(self._claimed(number, box), order="F")

    def whole(self, number: int) -> Mask:
        """The voxels of an object in its own box."""
        box = self.bounds(number)
        return np.zeros((0, 0, 0), bool) if box is None else self.part(number, box)

    def voxels(self, number: int, changed: Mask | None = None) -> int:
        """How many an object has; `changed` is its part in a box that has just been settled."""
        # Where objects overlap, that box holds the whole object.
        return int(np.count_nonzero(self.whole(number) if changed is None or self._owners is not None else changed))

    def _claimed(self, number: int, box: Changed) -> Mask:
        return np.asarray(self.session.mask_of(self.things[number].name).data[0][window_of(box)]) > 0

    # --- changing ------------------------------------------------------------------------------------------------

    def settle(self, number: int, box: Changed) -> list[int]:
        """An object claims other voxels in a box; the other objects that lost or got back some there."""
        if self._owners is None:
            return []
        claims = {thing.number: self._claimed(thing.number, box) for thing in self.things}
        locked = {thing.number for thing in self.things if thing.locked}
        return sorted(self._owners.settle(number, window_of(box), claims, locked, self.policy))

    def adopt(self, session: Session) -> None:
        """The same objects, answered by another model."""
        self.session = session
        if self._owners is not None:
            self._owners = self._settled({})

    def follow(self, policy: Policy) -> list[int]:
        """Go by another rule from now on; the objects whose masks are others by that."""
        if policy == self.policy:
            return []
        before = {thing.number: self.whole(thing.number) for thing in self.things}
        self.policy = policy
        self._lost.clear()
        if policy == "overlap":
            self._owners = None
        elif self._owners is None:
            self._owners = self._settled({})
        return [number for number, mask in before.items() if not np.array_equal(mask, self.whole(number))]

    # --- where objects meet --------------------------------------------------------------------------------------

    def _settled(self, hidden: Mapping[int, Mapping[str, Any]]) -> Ownership:
        """Owners for masks as they are: who was made first has the voxel; with "overwrite" who was made last.

        hidden: what objects have lost already, as `record` has it.
        """
        shape = self.session.volume.grid.shape
        owners = Ownership(shape)
        things = list(self.things)
        for thing in things if self.policy == "overwrite" or hidden else things[::-1]:
            box = self.bounds(thing.number)
            if box is None:
                continue
            claim = self._claimed(thing.number, box)
            if thing.number in hidden:
                lost_box, lost = wire.unpacked(hidden[thing.number], shape)
                if lost_box == box:
                    claim = claim & ~lost
            owners.give(thing.number, window_of(box), claim)
        return owners

    def _hidden(self) -> dict[str, dict[str, Any]]:
        if self._owners is None:
            return {}
        for thing in self.things:
            if self._lost.get(thing.number, (-1,))[0] != thing.changed:
                self._lost[thing.number] = (thing.changed, self._lost_by(thing, self._owners))
        return {str(number): part for number, (_, part) in self._lost.items() if number in self.things and part}

    def _lost_by(self, thing: Thing, owners: Ownership) -> dict[str, Any] | None:
        box = self.bounds(thing.number)
        if box is None:
            return None
        lost = self._claimed(thing.number, box) & ~owners.part(thing.number, window_of(box))
        return wire.packed(box, lost) if lost.any() else None
