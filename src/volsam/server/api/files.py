"""Volumes as files in an answer."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from fastapi.responses import FileResponse, Response
from starlette.background import BackgroundTask

import volsam
from volsam.data.dicom_seg import Segment, write_dicom_seg
from volsam.data.io import write_volume
from volsam.volume import Volume

MEDIA = {"gz": "application/gzip", "json": "application/json", "dcm": "application/dicom"}


def sent_volume(volume: Volume, name: str) -> Response:
    """A volume in the format that the ending of `name` asks for."""
    folder = tempfile.TemporaryDirectory(prefix="volsam-")
    try:
        path = Path(folder.name) / f"volume.{_ending(name)}"
        write_volume(volume, path)
    except BaseException:
        folder.cleanup()
        raise
    return sent_file(path, name, BackgroundTask(folder.cleanup))


def sent_segments(segments: Sequence[Segment], series: Path, model: str, name: str) -> Response:
    """Objects of a DICOM series as DICOM-SEG."""
    folder = tempfile.TemporaryDirectory(prefix="volsam-")
    try:
        path = Path(folder.name) / "labels.dcm"
        write_dicom_seg(segments, series, path, maker=(model, volsam.__version__), name=name)
    except BaseException:
        folder.cleanup()
        raise
    return sent_file(path, f"{name}.dcm", BackgroundTask(folder.cleanup))


def sent_file(path: Path, name: str, after: BackgroundTask | None = None) -> Response:
    """A file under another name."""
    media = MEDIA.get(path.suffix[1:], "application/octet-stream")
    headers = {"Content-Disposition": disposition(name), "Cache-Control": "no-store"}
    return FileResponse(path, media_type=media, headers=headers, background=after)


def disposition(name: str) -> str:
    """The header that names a download, whatever letters the name has."""
    plain = "".join(letter if letter.isascii() and (letter.isalnum() or letter in "._-") else "_" for letter in name)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name)}"


def _ending(name: str) -> str:
    return "nii.gz" if name.endswith(".nii.gz") else name.rpartition(".")[2]
