"""Voxels in JSON: a box, packed and in base64. See "Voxels on the wire" in docs/reference/http.md."""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from volsam.errors import BadInput
from volsam.geometry import Shape
from volsam.inference.objects import Changed

BITS, BYTES = "bits+deflate", "uint8+deflate"
LEVEL = 1  # masks are runs: more work packs them hardly better


def packed(box: Changed, values: NDArray[Any]) -> dict[str, Any]:
    """A box of bool or uint8 values, (i j k)."""
    bits = values.dtype == bool
    line = values.ravel(order="F")
    data = np.packbits(line) if bits else line
    return {
        "low": [int(index) for index in box[0]],
        "high": [int(index) for index in box[1]],
        "encoding": BITS if bits else BYTES,
        "data": base64.b64encode(zlib.compress(data.data, LEVEL)).decode("ascii"),
        "voxels": int(np.count_nonzero(values)),
    }


def unpacked(part: Mapping[str, Any], shape: Shape) -> tuple[Changed, NDArray[np.bool_]]:
    """The box and the mask in it that a client sent for a volume of `shape`; never more than the box is unpacked."""
    box = _box(part, shape)
    size = tuple(high - low for low, high in zip(*box, strict=True))
    if part.get("encoding") != BITS:
        raise BadInput(f'a mask\'s "encoding" is {BITS}, got {part.get("encoding")!r}')
    count = int(np.prod(size))
    try:
        bits = inflated(base64.b64decode(str(part["data"]), validate=True), -(-count // 8))
    except binascii.Error:
        raise BadInput("the data of a mask are not base64") from None
    return box, np.unpackbits(np.frombuffer(bits, np.uint8), count=count).astype(bool).reshape(size, order="F")


def inflated(data: bytes, size: int) -> bytes:
    """What zlib data unpack to, which must be `size` bytes; no more than that is ever unpacked."""
    stream = zlib.decompressobj()
    try:
        whole = stream.decompress(data, size + 1)
    except zlib.error:
        raise BadInput("packed data are damaged: they are not zlib (deflate) data") from None
    if len(whole) != size or not stream.eof:
        came = f"more than {size}" if len(whole) > size or stream.unconsumed_tail else str(len(whole))
        raise BadInput(f"packed data hold {came} bytes, the shape asks for {size}")
    return whole


def _box(part: Mapping[str, Any], shape: Shape) -> Changed:
    low, high = ([int(value) for value in part[key]] for key in ("low", "high"))
    fits = len(low) == len(high) == 3 and all(0 <= a < b <= n for a, b, n in zip(low, high, shape, strict=True))
    if not fits:
        raise BadInput(f"a box of voxels from {low} to {high} does not lie in a volume of {list(shape)}")
    return (low[0], low[1], low[2]), (high[0], high[1], high[2])
