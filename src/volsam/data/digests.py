"""Cases told apart by what is in their files, so that they are the same ones after a dataset was copied or renamed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import blake2b
from pathlib import Path

from volsam.data.dataset import Case
from volsam.errors import BadFile

# Of an image so many bytes are looked at in three places: packed pixels are alike nowhere.
PIECE = 1 << 16


def image_digest(case: Case) -> str:
    """Of the size of a case's images and of their first, middle and last bytes; 16 hexadecimal digits."""
    digest = blake2b(digest_size=8)
    for path in dict.fromkeys(case.images):
        try:
            size = path.stat().st_size
            digest.update(size.to_bytes(8, "little"))
            with path.open("rb") as file:
                for start in (0, size // 2, size - PIECE):
                    file.seek(max(0, start))
                    digest.update(file.read(PIECE))
        except OSError as error:
            raise BadFile(f"{path} cannot be read: {error.strerror}") from None
    return digest.hexdigest()


def fingerprint(cases: Iterable[Case], images: Mapping[str, str]) -> str:
    """Of names, images and labels of some cases, the labels whole, since they are drawn anew in places.

    images: `image_digest` of every case, by its name.
    """
    digest = blake2b(digest_size=8)
    for case in cases:
        digest.update(f"{case.name} {images[case.name]}\n".encode())
        if case.label is not None:
            digest.update(_whole(case.label))
    return digest.hexdigest()


def _whole(path: Path) -> bytes:
    digest = blake2b(digest_size=8)
    try:
        with path.open("rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
    except OSError as error:
        raise BadFile(f"{path} cannot be read: {error.strerror}") from None
    return digest.digest()
