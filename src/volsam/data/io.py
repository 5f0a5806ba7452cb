"""Volumes from files and back: `read_volume`, `write_volume`, and `read_grid` where the header is enough.

Rules that hold for every format:

- Geometry is RAS+ millimetres. NIfTI and MGH mean what nibabel says they mean; the LPS+ of NRRD, MetaImage and DICOM is
  turned, and rounded to the single precision of a NIfTI-1 header, so that a mask in any format carries the same bits.
- A file that is cut short or damaged is refused, never read in part. SimpleITK fills missing voxels without a word,
  so NIfTI never goes through it, and what does is either measured first or of a kind that is known to fail loudly.
- Values are as the file means them. Integers without scaling keep their type, scaled ones and doubles become float32.
  NaN becomes the lowest finite value (it marks what was not measured, which is background); infinities become the
  nearest finite value. Several values in a voxel are channels; several time points are frames, of which one is chosen.
- What goes wrong is one line: what was asked, what came, what to do.

Each kind of file is a chapter of its own: `nifti`, `itk` and `dicom`. What they share is in `files` and `source`.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from volsam.data.dicom import open_dicom, open_dicom_folder
from volsam.data.files import at_most, one_line, replacing, unpacked
from volsam.data.itk import open_itk, write_itk
from volsam.data.nifti import header_of_pair, nifti_class, open_mgh, open_nifti, write_mgh, write_nifti
from volsam.data.source import Source, Values
from volsam.errors import BadFile, BadInput
from volsam.geometry import Grid
from volsam.volume import Volume

log = logging.getLogger(__name__)

READABLE = (".nii", ".nii.gz", ".hdr", ".img", ".mgh", ".mgz", ".nrrd", ".nhdr", ".mha", ".mhd", ".dcm", ".png")
WRITABLE = (".nii", ".nii.gz", ".mgh", ".mgz", ".nrrd", ".mha")

# Takes the volume, a temporary path with the right ending, and the name for messages.
Writer = Callable[[Volume, Path, str], None]


def read_volume(path: str | os.PathLike[str], *, frame: int | None = None) -> Volume:
    """Read a volume from a file, or from a folder that holds one DICOM series.

    Args:
        path: NIfTI-1 or -2, MGH, NRRD, MetaImage, DICOM, or a PNG picture; told apart by content before ending.
        frame: which time point (from 0) of a file that holds several; such a file is refused without it.

    NRRD, MetaImage, DICOM and PNG need the extra "itk".

    Returns:
        Data (c, i, j, k) with an affine from voxel indices to mm RAS+, all of it finite: see `with_finite_values`.

    Raises:
        BadFile: the file is missing, damaged, or of a kind that is not read.
        BadInput: several frames, and none was chosen; several DICOM series, or slices that make no lattice.
        MissingExtra: the format needs a library that is not installed.
    """
    path = Path(path)
    with one_line(path):
        source = _open(path)
        data = with_finite_values(source.load(_chosen_frame(frame, source.frames, path)), path.name)
    return Volume(data, source.grid, volume_name(path), source.header)


def read_header(path: str | os.PathLike[str]) -> Source:
    """What a file promises to hold, from its header only; whether the voxels are complete is not looked at."""
    path = Path(path)
    with one_line(path):
        return _open(path)


def read_grid(path: str | os.PathLike[str]) -> Grid:
    """The lattice of a file, from its header only."""
    return read_header(path).grid


def write_volume(volume: Volume, path: str | os.PathLike[str]) -> None:
    """Write a volume in the format that the ending of `path` names; booleans become uint8.

    The file appears whole or not at all. NIfTI states the volume's affine to the last bit: in the fields of the header
    that the volume was read with, else in single precision if that holds it, else as NIfTI-2. MGH, NRRD and MetaImage
    state it to their own rounding, and exactly when the volume came from such a file.

    Raises:
        BadInput: the ending is of no format that can be written, the format cannot hold the data, or the disk cannot.
        MissingExtra: the format needs a library that is not installed.
    """
    path = Path(path)
    writer = _writer(path)
    dtype = _storable(volume.data.dtype, path)
    with replacing(path) as temporary:
        writer(volume.with_data(volume.data.astype(dtype, copy=False)), temporary, path.name)


def volume_name(path: str | os.PathLike[str]) -> str:
    """The name of a file without folder and endings: "ct" for "scans/ct.nii.gz"."""
    name = Path(os.path.abspath(path)).name  # noqa: PTH100  resolve() would follow a link to another name
    bare = name[:-3] if name.lower().endswith(".gz") else name
    for ending in READABLE:
        if bare.lower().endswith(ending) and len(bare) > len(ending):
            return bare[: -len(ending)]
    return name


# ---- Reading ---------------------------------------------------------------------------------------------------------


def _open(path: Path) -> Source:
    """Read the header with the reader that the content asks for."""
    if not path.exists():
        raise BadFile(f"{path} does not exist: check the name and the folder")
    if path.is_dir():
        return open_dicom_folder(path)
    path = header_of_pair(path)
    with path.open("rb") as file, unpacked(file) as stream:
        packed = stream is not file
        start = at_most(stream, 1024)
    if not start:
        raise BadFile(f"{path.name} is empty (0 bytes): copy or download it again")
    kind = _kind(path, start)
    if kind == "nifti":
        return open_nifti(path, start)
    if kind == "mgh":
        return open_mgh(path, start)
    if packed:
        raise BadFile(f"{path.name} is a gzipped {kind} file, which is not read: unpack it with gunzip")
    if kind == "DICOM":
        return open_dicom(path)
    return open_itk(path, kind)


def _kind(path: Path, start: bytes) -> str:
    """What the first kilobyte says the file is; the ending decides only where content cannot."""
    name = path.name.lower().removesuffix(".gz")
    if nifti_class(start) is not None:
        return "nifti"
    if start.startswith(b"NRRD000"):
        return "NRRD"
    if start[128:132] == b"DICM":
        return "DICOM"
    if start.startswith(b"\x89PNG\r\n"):
        return "PNG"
    if re.match(rb"\s*(Comment|ObjectType|ObjectSubType|NDims)\s*=", start):
        return "MetaImage"
    if start.startswith(b"\0\0\0\x01") and name.endswith((".mgh", ".mgz")):
        return "mgh"
    if name.endswith((".dcm", ".ima")):
        return "DICOM"
    if int.from_bytes(start[:4], "little") == 348 or int.from_bytes(start[:4], "big") == 348:
        raise BadFile(f"{path.name} is Analyze 7.5, which does not say where left is: convert it to NIfTI")
    if name.endswith(READABLE):
        raise BadFile(
            f"{path.name} does not hold what its ending says: it may be text, a web page or a download that failed"
        )
    raise BadFile(f"{path.name} is of no kind that is read; known endings are {', '.join(READABLE)}: convert it")


def _chosen_frame(frame: int | None, frames: int, path: Path) -> int:
    if frame is None and frames == 1:
        return 0
    if frame is None:
        raise BadInput(
            f"{path.name} holds {frames} frames: choose one with --frame 0..{frames - 1} of `volsam segment`, or save "
            "it as a file of its own"
        )
    if not 0 <= frame < frames:
        held = f"{frames} frames, 0..{frames - 1}" if frames > 1 else "one frame, 0"
        raise BadInput(f"frame {frame} was asked for, but {path.name} holds {held}")
    return frame


def with_finite_values(data: Values, name: str) -> Values:
    """Finite values in place of NaN and infinities, in the array itself; one without any finite value is refused."""
    if data.dtype.kind != "f" or (np.isfinite(data.min()) and np.isfinite(data.max())):
        return data
    finite = np.isfinite(data)
    if not finite.any():
        raise BadFile(f"{name} holds no finite value (all are NaN or infinite): export it again")
    low = float(np.min(data, where=finite, initial=np.inf))
    high = float(np.max(data, where=finite, initial=-np.inf))
    bad = finite.size - np.count_nonzero(finite)
    log.warning("%s: %d voxels are NaN or infinite; NaN is read as %g", name, bad, low)
    return np.nan_to_num(data, copy=False, nan=low, posinf=high, neginf=low)


# ---- Writing ---------------------------------------------------------------------------------------------------------


def _writer(path: Path) -> Writer:
    """What writes to such a path, or a refusal."""
    name = path.name.lower()
    if path.is_dir():
        raise BadInput(f"{path} is a folder: give the name of a file in it")
    if not path.parent.is_dir():
        raise BadInput(f"the folder {path.parent} does not exist: make it first")
    if name.endswith((".mhd", ".nhdr", ".hdr", ".img")):
        better = {".mhd": ".mha", ".nhdr": ".nrrd"}.get(path.suffix.lower(), ".nii")
        raise BadInput(f"{path.name} would be two files that can lose each other: write {better} instead")
    if name.endswith((".nii", ".nii.gz")):
        return write_nifti
    if name.endswith((".mgh", ".mgz")):
        return write_mgh
    if name.endswith((".nrrd", ".mha")):
        return write_itk
    raise BadInput(f"{path.name} has an ending that cannot be written; choose one of {', '.join(WRITABLE)}")


def _storable(dtype: np.dtype[Any], path: Path) -> np.dtype[Any]:
    """A type that every format knows, in native byte order."""
    if dtype.kind not in "biuf":
        raise BadInput(f"{path.name}: values of type {dtype} cannot be written; give integers, floats or booleans")
    known = {"b1": np.uint8, "f2": np.float32, "f12": np.float64, "f16": np.float64}
    return np.dtype(known.get(f"{dtype.kind}{dtype.itemsize}", dtype.newbyteorder("=")))
