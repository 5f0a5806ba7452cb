"""What protocols need that know neither leases nor objects."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from volsam.errors import VolsamError
from volsam.server.conversation import Conversation
from volsam.server.core import Core
from volsam.server.leases import Lease
from volsam.server.problems import Problem

# Objects kept in a session whose client has a copy of every mask of its own.
MOST_OBJECTS = 100


class Seat:
    """A client's place: claimed when it opens a volume, and again, with that volume, after its lease has ended."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._token: str | None = None
        self._identity: str | None = None
        self._lock = threading.RLock()

    @property
    def taken(self) -> bool:
        """Whether a volume has been opened."""
        return self._identity is not None

    @property
    def token(self) -> str | None:
        """Of the lease, which may have ended."""
        return self._token

    def open(self, start: Callable[[Lease], Conversation]) -> None:
        """Open a volume by `start`, which closes what was open before; 503 if all places are taken."""
        with self._lock, self._core.using(self._living()) as lease:
            self._identity = start(lease).identity

    def ensure(self, start: Callable[[Lease], Conversation]) -> None:
        """Open a volume by `start` unless one has been opened; it is resumed where its lease has ended."""
        with self._lock:
            if self.taken:
                try:
                    self._living()
                except VolsamError:
                    if self.taken:  # no place is free
                        raise
            if not self.taken:  # nothing was opened, or what was saved is gone or somebody else's now
                self.open(start)

    @contextmanager
    def talk(self) -> Iterator[Conversation]:
        """The conversation, resumed where its lease has ended; 409 if nothing was opened."""
        with self._lock:
            token = self._living()
        with self._core.using(token) as lease, self._core.talk(lease) as talk:
            yield talk

    def leave(self) -> None:
        """Give the place back; what was done stays saved."""
        with self._lock:
            self._core.release(self._token)
            self._token = self._identity = None

    def _living(self) -> str:
        try:
            self._core.leases.look(self._token)
        except Problem:
            lease = self._core.claim()
            self._token = lease.token
            if self._identity is not None:
                self._resume(lease, self._identity)
        return str(self._token)

    def _resume(self, lease: Lease, identity: str) -> None:
        try:
            self._core.resume(lease, identity)
        except VolsamError:
            self.leave()
            raise


def start_next(talk: Conversation) -> None:
    """Begin the next object; the oldest goes when there are many."""
    with talk.held() as session:
        if session.entries:
            talk.new()
            if len(talk.things) > MOST_OBJECTS:
                talk.delete(talk.things[0].number)
