"""Voxels in JSON: a box of them, packed."""

from __future__ import annotations

import base64
import gzip
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Box = tuple[tuple[int, int, int], tuple[int, int, int]]
BITS = "bits+deflate"
NIFTI_2 = 540  # bytes of its header, which begins with that number


def decoded(part: Mapping[str, Any]) -> NDArray[Any]:
    """The voxels of a box, (i, j, k): bool for bits, else uint8."""
    low, high = box_of(part)
    shape = tuple(b - a for a, b in zip(low, high, strict=True))
    values = np.frombuffer(zlib.decompress(base64.b64decode(part["data"])), np.uint8)
    if part["encoding"] == BITS:
        values = np.unpackbits(values, count=int(np.prod(shape))).view(bool)
    return values.reshape(shape, order="F")


def encoded(mask: NDArray[Any], low: Sequence[int] = (0, 0, 0)) -> dict[str, Any]:
    """A mask (i, j, k) whose first voxel is voxel `low` of the volume; only the box around it is sent."""
    places = np.argwhere(np.asarray(mask) > 0)
    first = places.min(axis=0) if len(places) else np.zeros(3, int)
    last = places.max(axis=0) + 1 if len(places) else np.ones(3, int)
    part = np.asarray(mask)[tuple(slice(a, b) for a, b in zip(first, last, strict=True))] > 0
    bits = np.packbits(part.ravel(order="F"))
    return {
        "low": (first + low).tolist(),
        "high": (last + low).tolist(),
        "encoding": BITS,
        "data": base64.b64encode(zlib.compress(bits.tobytes(), 1)).decode("ascii"),
    }


def box_of(part: Mapping[str, Any]) -> Box:
    """Lowest and highest (excluded) voxel."""
    (a, b, c), (d, e, f) = part["low"], part["high"]
    return (a, b, c), (d, e, f)


def window_of(part: Mapping[str, Any]) -> tuple[slice, slice, slice]:
    """The box as an index."""
    (a, b, c), (d, e, f) = box_of(part)
    return slice(a, d), slice(b, e), slice(c, f)


def nifti_values(packed: bytes, shape: tuple[int, int, int]) -> NDArray[np.float32]:
    """The voxels (i, j, k) of a .nii.gz of float32, as the server writes it: NIfTI-1, or -2 for a finer affine."""
    content = gzip.decompress(packed)
    second = np.frombuffer(content, "<i4", 1)[0] == NIFTI_2
    first = int(np.frombuffer(content, "<i8", 1, 168)[0] if second else np.frombuffer(content, "<f4", 1, 108)[0])
    return np.frombuffer(content, "<f4", int(np.prod(shape)), first).reshape(shape, order="F")
