"""Who may use the server now: leases with two clocks, one for acting and one for being alive."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING

from volsam.server.problems import Problem

if TYPE_CHECKING:
    from volsam.server.conversation import Conversation

RETRY_AFTER = "10"  # seconds


@dataclass(eq=False)
class Lease:
    """A client's place: its secret, and the conversation that it has open."""

    token: str
    acted: float
    heard: float
    beats: bool = False
    busy: int = 0
    conversation: Conversation | None = None
    lock: threading.RLock = field(default_factory=threading.RLock)
    """Held while a conversation is opened or closed; taken before the conversation's own."""


class Leases:
    """All leases. Times are seconds of `clock`, which tests may turn."""

    def __init__(
        self, most: int, idle: float, liveness: float, waiting: int, clock: Callable[[], float] = monotonic
    ) -> None:
        self.most = most
        self.idle = idle
        self.liveness = liveness
        self.waiting = waiting
        self._clock = clock
        self._all: dict[str, Lease] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[Lease]:
        with self._lock:
            return iter(list(self._all.values()))

    def claim(self) -> Lease:
        """A new lease; 503 if all are taken. Ended ones make room at once."""
        now = self._clock()
        with self._lock:
            living = [lease for lease in self._all.values() if not self._ended(lease, now)]
            if len(living) >= self.most:
                raise Problem(
                    503, f"all {self.most} places of this server are taken: try again later", Retry_After=RETRY_AFTER
                )
            lease = Lease(secrets.token_urlsafe(24), now, now)
            self._all[lease.token] = lease
        return lease

    @contextmanager
    def using(self, token: str | None) -> Iterator[Lease]:
        """The lease of a request that acts; it cannot end meanwhile."""
        with self._lock:
            lease = self._find(token)
            if lease.busy >= self.waiting:
                raise Problem(
                    429, f"{lease.busy} requests of this lease wait already: wait for answers", Retry_After="1"
                )
            lease.busy += 1
            lease.acted = lease.heard = self._clock()
        try:
            yield lease
        finally:
            with self._lock:
                lease.busy -= 1
                lease.acted = lease.heard = self._clock()

    def look(self, token: str | None, *, beat: bool = False) -> tuple[Lease, float]:
        """A lease and the seconds left until it idles out; a heartbeat proves life and no more."""
        now = self._clock()
        with self._lock:
            lease = self._find(token)
            if beat:
                lease.beats, lease.heard = True, now
            return lease, max(0.0, self.idle - (now - lease.acted))

    def remove(self, token: str | None) -> Lease | None:
        """Take a lease away; None if there was none."""
        with self._lock:
            return self._all.pop(token or "", None)

    def ended(self) -> list[Lease]:
        """Leases whose time is over, taken away."""
        now = self._clock()
        with self._lock:
            over = [lease for lease in self._all.values() if self._ended(lease, now)]
            for lease in over:
                del self._all[lease.token]
        return over

    def _find(self, token: str | None) -> Lease:
        lease = self._all.get(token or "")
        if lease is None or self._ended(lease, self._clock()):
            given = "is unknown or has ended" if token else "is missing (header X-Lease-Token)"
            raise Problem(410, f"the lease {given}: claim one, and resume the session by its id")
        return lease

    def _ended(self, lease: Lease, now: float) -> bool:
        if lease.busy:
            return False
        return now - lease.acted > self.idle or (lease.beats and now - lease.heard > self.liveness)
