"""Arrays as nnInteractive 2 sends them: a small header, then chunks of blosc2; interfaces of other tools use it too.

Little endian: "NNIA", version 1, codec, axes, length of the dtype's name, one byte each; the name; int64 sizes of the
axes; uint32 count of chunks; for each chunk uint64 bytes unpacked, uint64 bytes packed, and these. Nothing is unpacked
before its size is known and allowed.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from math import prod
from typing import Any

import blosc2
import numpy as np
from numpy.typing import NDArray

from volsam.errors import BadInput

MAGIC, VERSION = b"NNIA", 1
CODECS = {1: blosc2.Codec.ZSTD, 2: blosc2.Codec.LZ4}
CHUNK = 1 << 30
MOST_AXES = 4
NUMBERS = frozenset(
    f"{kind}{bits}"
    for kind, sizes in (("int", (8, 16, 32, 64)), ("uint", (8, 16, 32, 64)), ("float", (16, 32, 64)))
    for bits in sizes
) | {"bool"}


def pack(values: NDArray[Any], level: int = 1) -> bytes:
    """An array as bytes. Masks pack best without a filter."""
    values = np.ascontiguousarray(values)
    name = values.dtype.name.encode("ascii")
    raw = values.reshape(-1).view(np.uint8).data
    starts = range(0, raw.nbytes, CHUNK)
    parts = [
        struct.pack("<4sBBBB", MAGIC, VERSION, 1, values.ndim, len(name)),
        name,
        struct.pack(f"<{values.ndim}qI", *values.shape, len(starts)),
    ]
    for start in starts:
        piece = raw[start : start + CHUNK]
        packed = blosc2.compress2(
            piece, typesize=values.itemsize, codec=CODECS[1], clevel=level, filters=[blosc2.Filter.NOFILTER]
        )
        parts += [struct.pack("<QQ", piece.nbytes, len(packed)), packed]
    return b"".join(parts)


def unpack(data: bytes | bytearray, allow: Callable[[int], None]) -> NDArray[Any]:
    """The array in some bytes; `allow` raises if the array, of so many bytes, is too large."""
    try:
        shape, dtype, at = _head(data)
        size = prod(shape) * dtype.itemsize
        allow(size)
        values = np.empty(prod(shape), dtype)
        _fill(values.view(np.uint8).data, data, at)
    except struct.error:
        raise BadInput("the packed array is cut short") from None
    return values.reshape(shape)


def _head(data: bytes | bytearray) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    magic, version, codec, axes, length = struct.unpack_from("<4sBBBB", data)
    if magic != MAGIC or version != VERSION or codec not in CODECS:
        raise BadInput("the body is not a packed array of version 1: update the client")
    name = bytes(data[8 : 8 + length]).decode("ascii", "replace")
    if name not in NUMBERS:
        raise BadInput(f"an array of {name!r} cannot be used: send integers, floats or booleans")
    if not 1 <= axes <= MOST_AXES:
        raise BadInput(f"an array has one to {MOST_AXES} axes, this one {axes}")
    shape = struct.unpack_from(f"<{axes}q", data, 8 + length)
    if min(shape) < 1:
        raise BadInput(f"an array has no axis of {min(shape)}")
    return shape, np.dtype(name), 8 + length + 8 * axes


def _fill(target: memoryview, data: bytes | bytearray, at: int) -> None:
    (count,) = struct.unpack_from("<I", data, at)
    at, done, source = at + 4, 0, memoryview(data)
    for _ in range(count):
        raw, packed = struct.unpack_from("<QQ", data, at)
        at += 16
        piece = source[at : at + packed]
        if len(piece) != packed:
            raise BadInput("the packed array is cut short")
        if done + raw > len(target):
            raise BadInput("the packed array holds more than its shape asks for")
        done += _unpacked(piece, target[done : done + raw])
        at += packed
    if done != len(target):
        raise BadInput(f"the packed array holds {done} bytes, its shape asks for {len(target)}")


def _unpacked(piece: memoryview, target: memoryview) -> int:
    """Unpack one chunk into its place; what its own header says must agree."""
    if len(target) == 0:
        return 0
    try:
        size, packed, _ = blosc2.get_cbuffer_sizes(piece)
        if size != len(target) or packed != len(piece):
            raise BadInput("a chunk of the packed array is not as long as it says")
        blosc2.decompress2(piece, dst=target)
    except (RuntimeError, ValueError, TypeError):
        raise BadInput("a chunk of the packed array is damaged") from None
    return len(target)
