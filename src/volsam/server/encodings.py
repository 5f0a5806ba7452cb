"""Encoded regions of all sessions, together in no more memory than was set; what was given away is made again.

A session keeps what it asked for as long as it likes. What it keeps is a promise, though: the encoding behind it is
dropped when others need the room, the least recently used first, and made again, to the same last bit,
when it is asked for. So an idle session costs little, and eight sessions do not cost eight times one.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any


class Encoded:
    """A region that somebody may ask about: how to encode it, and the encoding while it is kept.

    draft: an answer not yet finished that holds on to the encoding; it goes with it.
    """

    __slots__ = ("__weakref__", "draft", "found", "make", "size")

    def __init__(self, make: Callable[[], Any]) -> None:
        self.make = make
        self.clear()

    def clear(self) -> None:
        """Let go of the encoding."""
        self.found: Any = None
        self.draft: Any = None
        self.size = 0


class Encodings:
    """Keeps encodings of at most so many bytes in all; the one needed last is kept however large it is."""

    def __init__(self, most: int) -> None:
        self.most = most
        # Those whose encodings are kept, needed longest ago first. Sessions own them: they end with their sessions.
        self._kept: dict[weakref.ref[Encoded], None] = {}
        self._lock = threading.Lock()

    @property
    def size(self) -> int:
        """Bytes kept now."""
        with self._lock:
            return sum(encoded.size for encoded in self._living())

    def new(self, make: Callable[[], Any]) -> Encoded:
        """Encode, now, and again by the same call if need be."""
        encoded = Encoded(make)
        self.of(encoded)
        return encoded

    def of(self, encoded: Encoded) -> Any:
        """The encoding, made again if it was given away."""
        found = encoded.found
        if found is None:
            found = encoded.make()
        with self._lock:
            if encoded.found is None:
                encoded.found, encoded.size = found, size_of(found)
            reference = weakref.ref(encoded)
            self._kept.pop(reference, None)
            self._kept[reference] = None
            kept = self._living()
            over = sum(one.size for one in kept) - self.most
            for old in kept[:-1]:
                if over <= 0:
                    break
                over -= old.size
                old.clear()
                del self._kept[weakref.ref(old)]
        return found

    def attach(self, encoded: Encoded, draft: Any) -> None:
        """Hold an unfinished answer as long as the encoding that it needs; the one before it goes."""
        with self._lock:
            encoded.draft = None if encoded.found is None else draft

    def _living(self) -> list[Encoded]:
        """What is kept and still somebody's, needed longest ago first."""
        known = [(reference, reference()) for reference in self._kept]
        for reference in (reference for reference, encoded in known if encoded is None):
            del self._kept[reference]
        return [encoded for _, encoded in known if encoded is not None]


def size_of(value: Any) -> int:
    """Bytes of the arrays and tensors in a value, in its fields and in the items of tuples and lists."""
    if hasattr(value, "untyped_storage"):
        return int(value.untyped_storage().nbytes())  # an expanded tensor takes less than its shape says
    if hasattr(value, "nbytes"):
        return int(value.nbytes)
    if is_dataclass(value):
        return sum(size_of(getattr(value, field.name)) for field in fields(value))
    if isinstance(value, tuple | list):
        return sum(map(size_of, value))
    return 0
