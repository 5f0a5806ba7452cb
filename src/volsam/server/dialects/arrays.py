"""Arrays that other tools send: a size is known and allowed before anything is unpacked, and no more is taken."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Callable
from math import prod
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from volsam.data.files import PIECE, inflated
from volsam.errors import BadInput

Allow = Callable[[int], None]
"""Raises for an array of so many bytes that is too large."""


def read_npy(file: BinaryIO, allow: Allow, *, packed: bool) -> NDArray[Any]:
    """The array of numbers in a .npy file, which may be packed with gzip; nothing in it is ever run."""
    stream = inflated(file) if packed else file
    try:
        shape, fortran, dtype = _npy_head(stream)
    except (EOFError, zlib.error):
        raise BadInput("the upload is cut short or damaged: it is no packed .npy file") from None
    except BadInput:
        raise
    except Exception:  # whatever numpy's parser raises on a hostile header
        raise BadInput("the upload is no .npy file: its header makes no sense") from None
    return read_raw(stream, shape, dtype, allow, order="F" if fortran else "C")


def read_raw(
    stream: BinaryIO, shape: tuple[int, ...], dtype: np.dtype[Any], allow: Allow, *, order: str, packed: bool = False
) -> NDArray[Any]:
    """The array that the bytes of a stream are: exactly as many as its shape asks for."""
    size = prod(shape) * dtype.itemsize
    allow(size)
    source = inflated(stream) if packed else stream
    values = np.empty(prod(shape), dtype)
    target, done = values.view(np.uint8).data, 0
    try:
        while done < size:
            piece = source.read(min(PIECE, size - done))
            if not piece:
                raise EOFError
            target[done : done + len(piece)] = piece
            done += len(piece)
        more = source.read(1)
    except (EOFError, zlib.error):
        raise BadInput(f"the array is cut short or damaged: its shape asks for {size} bytes, {done} came") from None
    if more:
        raise BadInput(f"the array holds more than the {size} bytes that its shape asks for")
    return values.reshape(shape, order="F" if order == "F" else "C")


def _npy_head(stream: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        version = npy.read_magic(stream)
        readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
        if version not in readers:
            raise BadInput("the upload is a .npy file of a version that is not read: save it with numpy.save")
        shape, fortran, dtype = readers[version](stream)
    if dtype.kind not in "biuf" or dtype.itemsize > 8:
        raise BadInput(f"an array of {dtype} cannot be used: send integers, floats or booleans")
    if not shape or any(isinstance(size, bool) or size < 1 for size in shape):
        raise BadInput(f"an array has axes of at least one voxel, got {shape}")
    return shape, bool(fortran), dtype
