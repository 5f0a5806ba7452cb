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
    """Of the size of a case's images and of their first, middle and last bytes; 16 hexadecimal digits.

    Of a folder of slices these are the first and the last file, and how many there are.
    """
    digest = blake2b(digest_size=8)
    for path in (file for image in dict.fromkeys(case.images) for file in _ends(image, digest)):
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


def _ends(image: Path, digest: blake2b) -> list[Path]:
    if not image.is_dir():
        return [image]
    files = sorted(file for file in image.iterdir() if file.is_file() and not file.name.startswith("."))
    digest.update(len(files).to_bytes(8, "little"))
    return [files[0], files[-1]] if files else []


def fingerprint(cases: Iterable[Case], images: Mapping[str, str]) -> str:
    """Of names, images and labels of some cases, the labels whole, since they are drawn anew in places.

    images: `image_digest` of every case, by its name.
    """
    digest = blake2b(digest_size=8)
    for case in cases:
        digest.update(f"{case.name} {images[case.name]}\n".encode())
        if case.label is not None:
            digest.update(file_digest(case.label))
    return digest.hexdigest()


def file_digest(path: Path) -> bytes:
    """Of all that is in a file."""
    digest = blake2b(digest_size=8)
    try:
        with path.open("rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
    except OSError as error:
        raise BadFile(f"{path} cannot be read: {error.strerror}") from None
    return digest.digest()
