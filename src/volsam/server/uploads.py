"""Bodies of requests: taken piece by piece, and no further than what was promised or what there is room for."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Protocol

from fastapi.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from volsam.data.memory import available_memory, gigabytes
from volsam.errors import BadInput
from volsam.server.problems import Problem
from volsam.server.settings import Settings

PIECE = 1 << 20
# Of the memory that is free, an upload may be so much as it comes.
SHARE = 0.5
# Seconds between two pieces of a body.
SILENCE = 30.0


class Streamed(Protocol):
    """A request whose body comes in pieces."""

    def stream(self) -> AsyncIterator[bytes]:
        """The pieces."""


def upload_limit(settings: Settings) -> int:
    """Bytes of an upload."""
    free = available_memory()
    limits = [settings.max_upload, None if free is None else int(free * SHARE)]
    return min((limit for limit in limits if limit is not None), default=1 << 62)


def too_large(limit: int) -> Problem:
    """What is said of a body beyond a limit."""
    return Problem(413, f"the upload is larger than {gigabytes(limit)}, the most that this server takes now: crop it")


async def pieces(request: Streamed, limit: int) -> AsyncIterator[bytes]:
    """The body in pieces of about a megabyte; 413 as soon as it is longer than the limit."""
    waiting = bytearray()
    count = 0
    async for part in _coming(request):
        count += len(part)
        if count > limit:
            raise too_large(limit)
        waiting += part
        if len(waiting) >= PIECE:
            yield bytes(waiting)
            waiting.clear()
    if waiting:
        yield bytes(waiting)


async def _coming(request: Streamed) -> AsyncIterator[bytes]:
    """What comes of a body; a client that falls silent must not keep its place forever."""
    parts = request.stream()
    while True:
        try:
            yield await asyncio.wait_for(anext(parts), SILENCE)
        except StopAsyncIteration:
            return
        except (TimeoutError, asyncio.TimeoutError):
            raise Problem(408, f"nothing came of the upload for {SILENCE:g} s: send it again") from None
        except ClientDisconnect:
            raise Problem(400, "the upload was broken off") from None


async def into_file(request: Streamed, path: Path, limit: int) -> None:
    """Write the body to a file."""
    with path.open("wb") as file:
        async for piece in pieces(request, limit):
            try:
                await run_in_threadpool(file.write, piece)
            except OSError as reason:
                raise Problem(507, f"the upload cannot be kept ({reason.strerror}): make room on the server") from None
    if path.stat().st_size == 0:
        raise BadInput("the upload is empty: send the bytes of the file as the body of the request")


async def whole_body(request: Streamed, limit: int) -> bytearray:
    """The body in memory."""
    whole = bytearray()
    async for piece in pieces(request, limit):
        whole += piece
    return whole


class ArrayBytes:
    """The bytes of an array whose size is known, packed with zlib or gzip or not."""

    def __init__(self, size: int, *, packed: bool) -> None:
        self._size = size
        self._stream = zlib.decompressobj(wbits=47) if packed else None  # 32 + 15: gzip or zlib
        self._held = bytearray()

    async def take(self, request: Streamed) -> None:
        """Take a whole body."""
        # A packed body may be a little longer than what is in it, for noise.
        limit = self._size if self._stream is None else self._size + self._size // 100 + PIECE
        async for piece in pieces(request, limit):
            await run_in_threadpool(self._feed, piece)

    def whole(self) -> bytearray:
        """All of it, or a refusal that says what is missing."""
        complete = self._stream is None or self._stream.eof
        if len(self._held) != self._size or not complete:
            raise BadInput(
                f"the array holds {len(self._held)} bytes, its shape and dtype ask for {self._size}"
                + ("" if complete else ": the packed data are cut short")
            )
        return self._held

    def _feed(self, piece: bytes) -> None:
        if self._stream is not None:
            try:
                piece = self._stream.decompress(piece, self._size + 1 - len(self._held))
            except zlib.error:
                raise BadInput("the array is damaged: it is not packed as X-Meta says") from None
        self._held += piece
        if len(self._held) > self._size:
            raise BadInput(f"the array holds more than the {self._size} bytes that its shape and dtype ask for")
