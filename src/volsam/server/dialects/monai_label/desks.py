"""Who works on which image: a client sends all its points every time, and gets what a session would answer."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from volsam.errors import BadInput
from volsam.inference.session import Session
from volsam.prompts import Prompt, PromptSet
from volsam.server.conversation import Conversation
from volsam.server.core import Core
from volsam.server.device import Clock
from volsam.server.dialects.seat import Seat
from volsam.server.leases import Lease
from volsam.server.problems import Problem
from volsam.server.things import Thing

LONGEST_NAME = 200

Key = tuple[str, ...]


class Desks:
    """Places by client, image and model; where all are taken, the one that was used longest ago gives way."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._all: OrderedDict[Key, Seat] = OrderedDict()
        self._lock = threading.RLock()

    @contextmanager
    def at(self, key: Key, start: Callable[[Lease], Conversation]) -> Iterator[Conversation]:
        """The conversation of a key, opened by `start` where there is none yet."""
        with self._seated(key, start).talk() as talk:
            yield talk

    def leave(self, belongs: Callable[[Key], bool]) -> None:
        """Give places back."""
        with self._lock:
            gone = [self._all.pop(key) for key in list(self._all) if belongs(key)]
        for seat in gone:
            seat.leave()

    def _seated(self, key: Key, start: Callable[[Lease], Conversation]) -> Seat:
        with self._lock:
            seat = self._all.setdefault(key, Seat(self._core))
            self._all.move_to_end(key)
        while True:
            try:
                seat.ensure(start)
                with seat.talk():
                    return seat
            except Problem as problem:
                if problem.status == 503 and (other := self._oldest_but(key)) is not None:
                    other.leave()
                elif problem.status in (404, 409) and seat.taken:  # somebody took it over, or removed what was saved
                    seat.leave()
                else:
                    if not seat.taken:
                        self.leave(lambda known: known == key)
                    raise

    def _oldest_but(self, key: Key) -> Seat | None:
        """The place that was used longest ago, taken off the list."""
        with self._lock:
            oldest = next((known for known in self._all if known != key), None)
            return None if oldest is None else self._all.pop(oldest)


def settle(
    talk: Conversation, name: str, wanted: Sequence[Prompt], clock: Clock, *, anew: bool = False, together: bool = False
) -> Thing:
    """Make `wanted` the standing prompts of an object, by as few steps as can be.

    Prompts that stand already stay as they are; others are taken away or given, one after the other where answers
    build on answers, or `together` in one turn.
    """
    with talk.held(clock) as session:
        number = _object(talk, name)
        session.select(name)
        standing = session.prompts
        left = list(wanted)
        gone = []
        for known, prompt in standing:
            if prompt in left:
                left.remove(prompt)
            else:
                gone.append(known)
        if standing and (anew or together or len(gone) == len(standing)):
            talk.reset(number, clock)
            left = list(wanted)
        else:
            for known in gone:
                talk.remove(known, number, clock)
        for turn in turns(session, left, together=together):
            talk.add(turn, number, clock)
        return talk.thing(number)


def turns(session: Session, prompts: Sequence[Prompt], *, together: bool = False) -> list[list[Prompt]]:
    """Prompts as they are best given: one after the other where answers build on answers, else all at once."""
    if session.builds_on_answers and not together:
        return [[prompt] for prompt in prompts]
    return [list(prompts)] if prompts else []


def ask(session: Session, name: str, prompts: Sequence[Prompt], clock: Clock, *, together: bool = False) -> None:
    """Give prompts to an object of a session that nobody keeps."""
    session.select(_named(name))
    with clock("paint"):
        for turn in turns(session, prompts, together=together):
            session.add_all(PromptSet(turn))


def _object(talk: Conversation, name: str) -> int:
    """The number of an object; the first, empty one of a session takes the name."""
    for thing in talk.things:
        if thing.name == _named(name):
            return thing.number
    first = talk.things[0]
    talk.session.select(first.name)
    if len(talk.things) == 1 and not talk.session.entries:
        return talk.alter(first.number, name=name).number
    return talk.new(name).number


def _named(name: str) -> str:
    if not name.strip() or len(name) > LONGEST_NAME:
        raise BadInput(f"a label has a name of 1 to {LONGEST_NAME} letters, got {len(name)}")
    return name
