"""One open session: the prompts and masks of `Session`, the names and colours around it, and its place on disk."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from volsam.data.files import now
from volsam.inference.objects import Changed, around
from volsam.inference.session import Model, Session
from volsam.inference.uncertainty import Uncertainty
from volsam.prompts import Prompt, PromptSet
from volsam.server.device import Clock, Device
from volsam.server.masks import Masks
from volsam.server.ownership import Policy, window_of
from volsam.server.problems import Problem
from volsam.server.ready import Ready
from volsam.server.store import Store
from volsam.server.things import Thing, Things
from volsam.server.volumes import Origin
from volsam.volume import Volume

# Voxels looked at for a viewer's window, and the percentiles that it spans.
SAMPLED = 200_000
SHOWN = (1, 99)


@dataclass(frozen=True, eq=False)
class Change:
    """The new voxels of an object in the box in which they changed; the mask is the caller's own."""

    number: int
    box: Changed
    mask: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Outcome:
    """What an action did to an object, and to others by the policy; `done` is False if there was nothing to do."""

    number: int
    changes: tuple[Change, ...] = ()
    added: tuple[int, ...] = ()
    done: bool = True


@dataclass(eq=False)
class Conversation:
    """A session that a lease has open. Every public method takes the lock; the device is asked under it.

    After every method that changes something, the record on disk is written before the method returns.
    """

    identity: str
    session: Session
    chosen: str
    """The model, by the name that clients choose it by."""
    origin: Origin
    store: Store
    device: Device
    annotator: str | None = None
    created: str = field(default_factory=now)
    notes: Sequence[str] = ()
    """What was warned of when the volume was read."""
    lock: threading.RLock = field(default_factory=threading.RLock)
    closed: bool = False
    _things: Things = field(default_factory=Things)
    _doubt: tuple[tuple[int, int, str], Uncertainty] | None = None

    def __post_init__(self) -> None:
        self._masks = Masks(self.session, self._things)

    # --- making and saving ---------------------------------------------------------------------------------------

    @classmethod
    def start(
        cls,
        identity: str,
        chosen: str,
        model: Model,
        volume: Volume,
        origin: Origin,
        store: Store,
        device: Device,
        *,
        name: str = "object",
        annotator: str | None = None,
        notes: Sequence[str] = (),
    ) -> Conversation:
        """A new conversation about a volume, saved."""
        session = Session(model, volume, object_name=name)
        talk = cls(identity, session, chosen, origin, store, device, annotator, notes=tuple(notes))
        talk._things.new(name)
        talk._save()
        return talk

    @classmethod
    def resume(
        cls,
        identity: str,
        record: Mapping[str, Any],
        chosen: str,
        model: Model,
        volume: Volume,
        store: Store,
        device: Device,
        *,
        notes: Sequence[str] = (),
    ) -> Conversation:
        """Go on with a saved one: its prompts are answered again."""
        kept = record["server"]
        # Records of before have this among what is the server's.
        record = {"neighbours": bool(kept.get("neighbours", False)), **record}
        session = Session.from_record(record, model, volume, f"the saved session {identity}")
        talk = cls(
            identity,
            session,
            chosen,
            origin_of(record),
            store,
            device,
            kept.get("annotator"),
            kept["created"],
            tuple(notes),
            _things=Things.of(kept),
        )
        talk._masks = Masks.resumed(session, talk._things, kept)
        for thing in talk.things:
            talk._things.alter(thing.number, voxels=talk._masks.voxels(thing.number))
        return talk

    def record(self) -> dict[str, Any]:
        """The session as `Session.load` reads it, and under "server" what belongs to it here."""
        kept = {
            "id": self.identity,
            "name": self.session.volume.name,
            "origin": self.origin.record(),
            "annotator": self.annotator,
            "created": self.created,
            "modified": now(),
            "model": self.chosen,
            **self._things.record(),
            **self._masks.record(),
        }
        return {**self.session.record(), "server": kept}

    def _save(self) -> None:
        self.store.write(self.identity, self.record())

    # --- looking -------------------------------------------------------------------------------------------------

    @contextmanager
    def held(self, clock: Clock | None = None) -> Iterator[Session]:
        """The session, nobody else's meanwhile; steps of the device go onto `clock`."""
        clock = clock or Clock()
        with clock("wait"):
            self.lock.acquire()
        try:
            if self.closed:
                raise Problem(409, "the session has been closed: open or resume one")
            with self.device.timed(clock):
                yield self.session
        finally:
            self.lock.release()

    @property
    def current(self) -> int:
        """The object that is worked on."""
        return self._things.named(self.session.current).number

    @property
    def things(self) -> list[Thing]:
        """All objects, in the order in which they were made."""
        return list(self._things)

    def thing(self, number: int | None = None) -> Thing:
        """An object by its number; the current one for None."""
        return self._things[self.current if number is None else number]

    @contextmanager
    def about(self, number: int | None, clock: Clock | None = None) -> Iterator[tuple[Session, Thing]]:
        """The session with an object made the current one for a moment, for all that is asked of one object."""
        with self.held(clock) as session:
            thing = self.thing(number)
            before = session.current
            session.select(thing.name)
            try:
                yield session, thing
            finally:
                if before in session.objects:
                    session.select(before)

    @property
    def policy(self) -> Policy:
        """The rule where objects meet."""
        return self._masks.policy

    def bounds(self, number: int) -> Changed | None:
        """A box that holds an object's mask, None where it has none; to be asked while held."""
        return self._masks.bounds(number)

    def mask(self, number: int, box: Changed) -> NDArray[np.bool_]:
        """The voxels of an object in a box, as the policy leaves them, as an array of its own; while held."""
        return self._masks.part(number, box)

    def whole(self, number: int) -> NDArray[np.bool_]:
        """The voxels of an object on the volume's own grid, as an array of its own; while held."""
        mask = np.zeros(self.session.volume.grid.shape, bool, order="F")
        box = self.bounds(number)
        if box is not None:
            mask[window_of(box)] = self.mask(number, box)
        return mask

    @cached_property
    def intensity(self) -> dict[str, Any]:
        """The lowest and highest value of the volume, and the window in which a viewer shows it best."""
        data = self.session.volume.data[0]
        some = data.ravel(order="K")[:: max(1, data.size // SAMPLED)]
        window = np.percentile(some, SHOWN).tolist()
        return {"low": float(data.min()), "high": float(data.max()), "window": window}

    def doubt(self, session: Session, thing: Thing) -> Uncertainty:
        """The uncertainty of an object's mask, made once; while the object is held."""
        if session.quality is None and session.bounds_of(thing.name) is None:
            raise Problem(409, f"{thing.name} has no mask yet: add a click, box or scribble first")
        key = (thing.number, thing.changed, session.model.name)
        if self._doubt is None or self._doubt[0] != key:
            self._doubt = (key, session.uncertainty())
        return self._doubt[1]

    # --- acting --------------------------------------------------------------------------------------------------

    def add(self, prompts: Sequence[Prompt], number: int | None = None, clock: Clock | None = None) -> Outcome:
        """Give prompts to an object, together, and make it the current one."""
        with self.held(clock) as session:
            thing = self._free(number)
            before = {known for known, _ in self._standing(thing)}
            outcome = self._act(thing, lambda: session.add_all(PromptSet(prompts)), clock)
            return replace(outcome, added=tuple(known for known, _ in session.prompts if known not in before))

    def take_up(self, ready: Sequence[Ready]) -> None:
        """Ready masks as objects, to be corrected, in place of the empty object that is there."""
        with self.held() as session:
            self._things.delete(self.current)
            session.rename(session.current, ready[0].name)
            for one in ready:
                thing = self._things.new(one.name, number=one.value)
                self._act(thing, partial(session.add, one.mask), None, save=False)
            session.select(ready[0].name)
            self._save()

    def undo(self, number: int | None = None, clock: Clock | None = None) -> Outcome:
        """Take an object's last step back."""
        with self.held(clock) as session:
            thing = self._free(number)
            session.select(thing.name)
            if not session.can_undo:
                return Outcome(thing.number, done=False)
            return self._act(thing, session.undo, clock)

    def redo(self, number: int | None = None, clock: Clock | None = None) -> Outcome:
        """Take it forward again."""
        with self.held(clock) as session:
            thing = self._free(number)
            session.select(thing.name)
            if not session.can_redo:
                return Outcome(thing.number, done=False)
            return self._act(thing, session.redo, clock)

    def reset(self, number: int | None = None, clock: Clock | None = None) -> Outcome:
        """Take all prompts of an object away; can be undone."""
        with self.held(clock) as session:
            return self._act(self._free(number), session.reset, clock)

    def remove(self, prompt: int, number: int | None = None, clock: Clock | None = None) -> Outcome:
        """Take one prompt of an object away."""
        with self.held(clock) as session:
            thing = self._free(number)
            if all(known != prompt for known, _ in self._standing(thing)):
                raise Problem(404, f"no standing prompt of {thing.name} has the number {prompt}")
            return self._act(thing, lambda: session.remove(prompt), clock)

    def exchange(self, chosen: str, model: Model, clock: Clock | None = None) -> Outcome:
        """Answer everything with another model; nothing changes if it does not take what was asked."""
        with self.held(clock) as old:
            record = old.record()
            old_boxes = {thing.number: self.bounds(thing.number) for thing in self.things}
            self.session, self.chosen = Session.from_record(record, model, old.volume), chosen
            self._masks.adopt(self.session)
            changes = [self._changed(thing.number, old_boxes[thing.number]) for thing in self.things]
            self._saved(clock)
            return Outcome(self.current, tuple(change for change in changes if change is not None))

    # --- objects -------------------------------------------------------------------------------------------------

    def new(self, name: str | None = None, colour: str | None = None, *, select: bool = True) -> Thing:
        """A new, empty object."""
        with self.held() as session:
            thing = self._things.new(self._things.unused(name), colour)
            before = session.current
            session.select(thing.name)
            if not select:
                session.select(before)
            self._save()
            return thing

    def alter(self, number: int, *, select: bool = False, **values: Any) -> Thing:
        """Rename, recolour, lock, hide or select an object."""
        with self.held() as session:
            thing = self.thing(number)
            if values.get("name", thing.name) != thing.name:
                session.rename(thing.name, values["name"])
            thing = self._things.alter(number, **values)
            if select:
                session.select(thing.name)
            self._save()
            return thing

    def delete(self, number: int, clock: Clock | None = None) -> Outcome:
        """Forget an object; what it had may be another's now. Something is always there to work on."""
        with self.held(clock) as session:
            thing, before = self._free(number), session.current
            outcome = self._act(thing, session.reset, clock, save=False)
            session.delete(thing.name)
            if before in session.objects:
                session.select(before)
            self._things.delete(number)
            if not len(self._things):
                session.rename(session.current, "object")
                self._things.new("object")
            self._saved(clock)
            return replace(outcome, changes=tuple(change for change in outcome.changes if change.number != number))

    def settle(
        self, *, policy: Policy | None = None, neighbours: bool | None = None, annotator: str | None = None
    ) -> Outcome:
        """Change what holds for all objects; another policy may change masks at once."""
        with self.held() as session:
            if neighbours is not None:
                session.neighbours = neighbours
            if annotator is not None:
                self.annotator = annotator
            others = [] if policy is None else self._masks.follow(policy)
            changes = [self._changed(number, None) for number in others]
            self._save()
            return Outcome(self.current, tuple(change for change in changes if change is not None))

    def close(self) -> None:
        """Wait for what is going on, and let nothing more happen; all is on disk already."""
        with self.lock:
            self.closed = True

    # --- inside --------------------------------------------------------------------------------------------------

    def _act(
        self, thing: Thing, action: Callable[[], Changed | None], clock: Clock | None, *, save: bool = True
    ) -> Outcome:
        clock = clock or Clock()
        self.session.select(thing.name)
        known = sum(clock.seconds.values())
        with clock("paint"):
            box = action()
        # The steps of the device within are counted already.
        clock.add("paint", -(sum(clock.seconds.values()) - known - clock.seconds["paint"]))
        changes: list[Change] = []
        with clock("pack"):
            if box is not None:
                changes = self._settle_box(thing.number, box)
        if save:
            self._saved(clock)
        return Outcome(thing.number, tuple(changes))

    def _settle_box(self, number: int, box: Changed) -> list[Change]:
        return [self._note(other, box) for other in (number, *self._masks.settle(number, box))]

    def _note(self, number: int, box: Changed) -> Change:
        change = Change(number, box, self.mask(number, box))
        counted = self._things[number].changed + 1
        self._things.alter(number, changed=counted, voxels=self._masks.voxels(number, change.mask))
        return change

    def _changed(self, number: int, old: Changed | None) -> Change | None:
        box = around([box for box in (old, self.bounds(number)) if box is not None])
        return None if box is None else self._note(number, box)

    def _saved(self, clock: Clock | None) -> None:
        with (clock or Clock())("save"):
            self._save()

    def _free(self, number: int | None) -> Thing:
        thing = self.thing(number)
        if thing.locked:
            raise Problem(409, f"{thing.name} is locked: unlock it first, or choose another object")
        return thing

    def _standing(self, thing: Thing) -> Any:
        self.session.select(thing.name)
        return self.session.prompts


def origin_of(record: Mapping[str, Any]) -> Origin:
    """Where the volume of a saved session came from."""
    return Origin(**record["server"]["origin"])
