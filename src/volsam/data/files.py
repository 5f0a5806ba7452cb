"""Bytes of files: unpacking that notices damage, writing whole or not at all, and errors in one line."""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, BinaryIO, cast
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from volsam.errors import BadFile, BadInput, MissingExtra

# Bytes, or voxels, that are worked on at once.
PIECE = 1 << 20
# Masks are mostly runs of zeros: level 3 packs them as fast as level 1, and a third smaller.
COMPRESSION = 3
GZIP = b"\x1f\x8b"


@contextmanager
def one_line(path: Path) -> Iterator[None]:
    """Turn whatever a format's library raises into one line of ours; the cause stays chained for `--debug`.

    Numbers that overflow, in a nonsense header or from double to single precision, become infinite without a warning:
    `Grid` refuses the former, and `read_volume` puts finite values for the latter.
    """
    try:
        with np.errstate(all="ignore"):
            yield
    except (BadInput, MissingExtra):
        raise
    except EOFError as error:
        raise BadFile(f"{path.name} is cut short: copy or download it again") from error
    except zlib.error as error:
        raise BadFile(f"{path.name} is damaged, its packed data do not add up: copy or download it again") from error
    except MemoryError as error:
        raise BadInput(f"{path.name} does not fit into the memory of this machine: crop or resample it") from error
    except OSError as error:
        raise BadFile(f"{path} cannot be read: {error.strerror or 'the system refuses'}") from error
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BadFile(f"{path.name} cannot be read, its header makes no sense: {reason}") from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name in the same folder, which takes the place of `path` only when all went well."""
    # In small letters, since ITK does not know its formats by endings in capitals.
    temporary = path.with_name(f".{uuid4().hex[:8]}.{path.name.lower()}")
    try:
        temporary.touch()
        usual = temporary.stat().st_mode
        yield temporary
        # Some libraries write files that nobody else may read.
        temporary.chmod(usual)
        temporary.replace(path)
    except (OSError, RuntimeError) as error:
        # torch raises an error of its own in place of the one of the file that it was given.
        reason = error if isinstance(error, OSError) else error.__context__
        if not isinstance(reason, OSError):
            raise
        raise BadInput(f"{path} cannot be written: {reason.strerror or reason}") from reason
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write JSON whole or not at all."""
    with replacing(path) as unfinished:
        unfinished.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """A table that was written by `write_json`."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadFile(f"{path} cannot be read ({error}): remove it, and it will be made again") from None
    if not isinstance(content, dict):
        raise BadFile(f"{path} is damaged: remove it, and it will be made again")
    return content


# ---- Reading ---------------------------------------------------------------------------------------------------------


@contextmanager
def unpacked(file: BinaryIO) -> Iterator[BinaryIO]:
    """The content of a file, unpacked if it is gzipped, whatever its name says."""
    gzipped = file.read(2) == GZIP
    file.seek(0)
    yield inflated(file) if gzipped else file


def inflated(file: BinaryIO) -> BinaryIO:
    """What a gzip or zlib stream unpacks to, as a stream."""
    return cast(BinaryIO, io.BufferedReader(_Inflated(file), PIECE))


class _Inflated(io.RawIOBase):
    """What a gzip or zlib stream unpacks to.

    Unlike `gzip.GzipFile` it tells a stream that is cut short (EOFError) and a damaged one (zlib.error) from mere
    garbage behind the last member, which is ignored.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._pieces = _inflate(file)
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any) -> int:
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._rest = memoryview(piece)
        count = min(len(target), len(self._rest))
        target[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count


def _inflate(file: BinaryIO) -> Iterator[bytes]:
    """Unpack member after member, each to the end of its checksum."""
    packed = file.read(PIECE)
    while packed:
        member = zlib.decompressobj(wbits=47)  # 32 + 15: finds out whether it is gzip or zlib
        while not member.eof:
            if not packed:
                raise EOFError
            yield member.decompress(packed, PIECE)
            packed = member.unconsumed_tail or (b"" if member.eof else file.read(PIECE))
        packed = member.unused_data + file.read(PIECE)
        if not packed.startswith(GZIP):
            return


def at_most(stream: BinaryIO, count: int) -> bytes:
    """The first bytes, as many as can be had."""
    start = b""
    try:
        while len(start) < count and (piece := stream.read(count - len(start))):
            start += piece
    except (EOFError, zlib.error):
        if not start:
            raise
    return start


def at_least(start: bytes, count: int) -> bytes:
    """The first bytes, or `EOFError` where there are fewer."""
    if len(start) < count:
        raise EOFError
    return start[:count]


def read_into(stream: BinaryIO, target: NDArray[Any]) -> None:
    """Fill an array with the next bytes."""
    if cast(io.BufferedReader, stream).readinto(target.view(np.uint8).data) < target.nbytes:
        raise EOFError


def skip(stream: BinaryIO, count: int) -> None:
    """Go on by `count` bytes."""
    while count > 0:
        piece = stream.read(min(count, PIECE))
        if not piece:
            raise EOFError
        count -= len(piece)


def finish(stream: BinaryIO) -> int:
    """Read to the end, which checks the checksum of packed data; returns how many bytes there were."""
    count = 0
    while piece := stream.read(PIECE):
        count += len(piece)
    return count


def now() -> str:
    """This moment as records of ours have it: ISO 8601, UTC, to the second."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
