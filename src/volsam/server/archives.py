"""A DICOM series that comes as one upload: a tar archive of its slices."""

from __future__ import annotations

import tarfile
from pathlib import Path

from volsam.data.studies import clean_name
from volsam.errors import BadInput
from volsam.server.problems import Problem

# What an archive says of itself, and where.
MAGIC, PLACE = b"ustar", 257
ENDING = ".tar"
BLOCK = tarfile.BLOCKSIZE


def is_archive(upload: Path) -> bool:
    """Whether a file is a tar archive; compressed ones are not taken, slices may be."""
    with upload.open("rb") as file:
        file.seek(PLACE)
        return file.read(len(MAGIC)) == MAGIC


def unpack(upload: Path, folder: Path) -> None:
    """Write the files of an archive side by side into a new folder; where they lay in it is of no matter.

    Raises:
        BadInput: the archive is damaged, or holds no file.
        Problem: they cannot be kept (507).
    """
    folder.mkdir()
    count = 0
    try:
        with tarfile.open(upload, "r:") as archive:
            end = 0
            for member in archive:
                end = member.offset_data + -(-member.size // BLOCK) * BLOCK * member.isreg()
                name = member.name.rsplit("/", 1)[-1]
                # A link may lead anywhere, and a sparse file be of any size.
                if not member.isreg() or member.issparse() or name.startswith("."):
                    continue
                source = archive.extractfile(member)
                assert source is not None
                count += 1
                with (folder / f"{count:06d}_{clean_name(name)}").open("wb") as target:
                    while piece := source.read(1 << 20):
                        target.write(piece)
        _require_end(upload, end)
    except (tarfile.TarError, EOFError, ValueError):
        raise BadInput("the archive is damaged: send it again") from None
    except OSError as reason:
        raise Problem(507, f"the upload cannot be kept ({reason.strerror}): make room on the server") from None
    if count == 0:
        raise BadInput("the archive holds no file: send the slices of one DICOM series")


def _require_end(upload: Path, end: int) -> None:
    """An archive that is cut short between two files looks like one of fewer: only its end tells."""
    with upload.open("rb") as file:
        file.seek(end)
        if file.read(BLOCK) != bytes(BLOCK):
            raise EOFError
