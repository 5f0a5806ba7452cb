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
"""

from __future__ import annotations

import gzip
import io
import logging
import os
import re
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from math import prod
from pathlib import Path
from threading import RLock
from typing import Any, BinaryIO, NamedTuple, cast
from uuid import uuid4

import nibabel
import numpy as np
from einops import rearrange
from nibabel.freesurfer.mghformat import MGHHeader
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header
from numpy.typing import NDArray

from volsam.errors import BadFile, BadInput, MissingExtra
from volsam.geometry import Grid
from volsam.volume import Volume

log = logging.getLogger(__name__)

READABLE = (".nii", ".nii.gz", ".hdr", ".img", ".mgh", ".mgz", ".nrrd", ".nhdr", ".mha", ".mhd", ".dcm", ".png")
WRITABLE = (".nii", ".nii.gz", ".mgh", ".mgz", ".nrrd", ".mha")

# Bytes, or voxels, that are worked on at once.
PIECE = 1 << 20
# Masks are mostly runs of zeros: level 3 packs them as fast as level 1, and a third smaller.
COMPRESSION = 3
# Deflate packs at best 1032 bytes into one; a header that promises more than that lies, or its file is cut short.
BEST_DEFLATE = 1032
# Slices of a series may be off an even spacing by this part of it; a missing slice is off by half a spacing or more.
UNEVEN = 0.05
# A format may move a voxel by this part of its size, and no more, when it rounds an affine.
ROUNDING = 1e-3
SCANNER = 1  # NIfTI code of an affine in the coordinates of the scanner
VECTOR_INTENTS = {1004, 1005, 1006, 1007, 2003, 2004}  # matrix, symmetric matrix, displacement, vector, RGB, RGBA
QFORM = ("qform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z")
SFORM = ("sform_code", "srow_x", "srow_y", "srow_z")
METRES, MICRONS = 1, 3  # NIfTI codes of units that are not millimetres
DICOM_SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
GZIP = b"\x1f\x8b"

Values = NDArray[np.generic]


class ItkGeometry(NamedTuple):
    """Geometry of an NRRD or MetaImage file in its own words (LPS+ mm), kept for a mask in one of these formats."""

    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: tuple[float, ...]


@dataclass(frozen=True)
class _Source:
    """A file whose header has been read: the lattice, the time frames, and `load`, which reads one frame (c i j k)."""

    grid: Grid
    frames: int
    load: Callable[[int], Values]
    header: object | None = None


def read_volume(path: str | os.PathLike[str], *, frame: int | None = None) -> Volume:
    """Read a volume from a file, or from a folder that holds one DICOM series.

    Args:
        path: NIfTI-1 or -2, MGH, NRRD, MetaImage, DICOM, or a PNG picture; told apart by content before ending.
        frame: which time point (from 0) of a file that holds several; such a file is refused without it.

    NRRD, MetaImage, DICOM and PNG need the extra "itk".
    """
    path = Path(path)
    with _one_line(path):
        source = _open(path)
        data = _finite(source.load(_chosen_frame(frame, source.frames, path)), path)
    return Volume(data, source.grid, volume_name(path), source.header)


def read_grid(path: str | os.PathLike[str]) -> Grid:
    """The lattice of a file, from its header only; whether the voxels are complete is not looked at."""
    path = Path(path)
    with _one_line(path):
        return _open(path).grid


def write_volume(volume: Volume, path: str | os.PathLike[str]) -> None:
    """Write a volume in the format that the ending of `path` names; booleans become uint8.

    The file appears whole or not at all. NIfTI states the volume's affine to the last bit: in the fields of the header
    that the volume was read with, else in single precision if that holds it, else as NIfTI-2. MGH, NRRD and MetaImage
    state it to their own rounding, and exactly when the volume came from such a file.
    """
    path = Path(path)
    writer = _writer(path)
    dtype = _storable(volume.data.dtype, path)
    with _replacing(path) as temporary:
        writer(volume.with_data(volume.data.astype(dtype, copy=False)), temporary, path.name)


def volume_name(path: str | os.PathLike[str]) -> str:
    """The name of a file without folder and endings: "ct" for "scans/ct.nii.gz"."""
    name = Path(os.path.abspath(path)).name  # noqa: PTH100  resolve() would follow a link to another name
    bare = name[:-3] if name.lower().endswith(".gz") else name
    for ending in READABLE:
        if bare.lower().endswith(ending) and len(bare) > len(ending):
            return bare[: -len(ending)]
    return name


# ---- Which format, and what can go wrong -----------------------------------------------------------------------------


@contextmanager
def _one_line(path: Path) -> Iterator[None]:
    """Turn whatever a format's library raises into one line of ours; the cause stays chained for `--debug`.

    Numbers that overflow, in a nonsense header or from double to single precision, become infinite without a warning:
    `Grid` refuses the former, and `_finite` deals with the latter.
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


def _open(path: Path) -> _Source:
    """Read the header with the reader that the content asks for."""
    if not path.exists():
        raise BadFile(f"{path} does not exist: check the name and the folder")
    if path.is_dir():
        return _open_dicom_folder(path)
    path = _header_of_pair(path)
    with path.open("rb") as file, _unpacked(file) as stream:
        packed = stream is not file
        start = _at_most(stream, 1024)
    if not start:
        raise BadFile(f"{path.name} is empty (0 bytes): copy or download it again")
    kind = _kind(path, start)
    if kind == "nifti":
        return _open_nifti(path, start)
    if kind == "mgh":
        return _open_mgh(path, start)
    if packed:
        raise BadFile(f"{path.name} is a gzipped {kind} file, which is not read: unpack it with gunzip")
    if kind == "DICOM":
        return _open_dicom(path)
    return _open_itk(path, kind)


def _header_of_pair(path: Path) -> Path:
    """The .hdr that goes with an .img, or the path itself."""
    found = re.search(r"\.img(\.gz)?$", path.name, re.IGNORECASE)
    if not found:
        return path
    stem = path.name[: found.start()]
    for ending in (".hdr", ".HDR", ".hdr.gz"):
        if (header := path.with_name(stem + ending)).exists():
            return header
    raise BadFile(f"{path.name} needs its header {stem}.hdr beside it, which is missing")


def _kind(path: Path, start: bytes) -> str:
    """What the first kilobyte says the file is; the ending decides only where content cannot."""
    name = path.name.lower().removesuffix(".gz")
    if _nifti_class(start) is not None:
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
        raise BadInput(f"{path.name} holds {frames} frames: choose one with --frame 0..{frames - 1}")
    if not 0 <= frame < frames:
        held = f"{frames} frames, 0..{frames - 1}" if frames > 1 else "one frame, 0"
        raise BadInput(f"frame {frame} was asked for, but {path.name} holds {held}")
    return frame


def _finite(data: Values, path: Path) -> Values:
    """Put finite values in place of NaN and infinities; a file without any finite value is refused."""
    if data.dtype.kind != "f" or (np.isfinite(data.min()) and np.isfinite(data.max())):
        return data
    finite = np.isfinite(data)
    if not finite.any():
        raise BadFile(f"{path.name} holds no finite value (all are NaN or infinite): export it again")
    low = float(np.min(data, where=finite, initial=np.inf))
    high = float(np.max(data, where=finite, initial=-np.inf))
    bad = finite.size - np.count_nonzero(finite)
    log.warning("%s: %d voxels are NaN or infinite; NaN is read as %g", path.name, bad, low)
    return np.nan_to_num(data, copy=False, nan=low, posinf=high, neginf=low)


def _grid(shape: Sequence[int], affine: NDArray[np.float64], path: Path) -> Grid:
    try:
        return Grid((int(shape[0]), int(shape[1]), int(shape[2])), affine)
    except BadInput as error:
        raise BadFile(f"{path.name}: {error}") from None


# ---- NIfTI and MGH: nibabel reads the header, the voxels come straight from the file ---------------------------------


@dataclass(frozen=True)
class _Voxels:
    """Where the voxels of a NIfTI or MGH file lie.

    In the order of the file, slowest first: `channels`, `frames`, k, j, i, `samples` (the parts of a colour).
    """

    path: Path
    offset: int
    dtype: np.dtype[Any]
    shape: tuple[int, int, int]
    frames: int = 1
    channels: int = 1
    samples: int = 1
    slope: float = 1.0
    inter: float = 0.0

    @property
    def frame_bytes(self) -> int:
        return prod(self.shape) * self.samples * self.dtype.itemsize

    @property
    def as_they_are(self) -> bool:
        """Whether the numbers need neither scaling nor a narrower type than double."""
        narrow = self.dtype.kind in "iu" or self.dtype.itemsize <= 4
        return narrow and self.slope == 1 and self.inter == 0


def _open_nifti(path: Path, start: bytes) -> _Source:
    header_class = _nifti_class(start) or Nifti1Header
    header = header_class(_at_least(start, header_class.sizeof_hdr), check=False)
    _refuse_zero_spacing(header, path)
    # nibabel repairs what it can, as its own `load` does, but talks about it on the error stream.
    header.check_fix(logger=logging.Logger("nowhere", level=logging.CRITICAL + 1))
    shape, frames, channels = _nifti_axes(header, path)
    if not (header["sform_code"] or header["qform_code"]):
        log.warning("%s has neither qform nor sform: orientation and position are a guess", path.name)
    if int(header["xyzt_units"]) & 7 in (METRES, MICRONS):
        log.warning("%s states its lengths in metres or microns; they are read as millimetres", path.name)
    grid = _grid(shape, header.get_best_affine(), path)
    dtype, samples = _nifti_type(header, path)
    slope, inter = _nifti_scaling(header, path) if samples == 1 else (1.0, 0.0)
    where = _voxel_file(path) if header["magic"].item().startswith(b"ni") else path
    voxels = _Voxels(where, header.get_data_offset(), dtype, grid.shape, frames, channels, samples, slope, inter)
    return _Source(grid, frames, lambda frame: _load(voxels, frame), header)


def _nifti_class(start: bytes) -> type[Nifti1Header] | None:
    """The nibabel class for a header, or None if these bytes are not NIfTI."""
    if start[344:348] in (b"n+1\0", b"ni1\0"):
        return Nifti1Header
    if start[4:8] in (b"n+2\0", b"ni2\0"):
        return Nifti2Header
    return None


def _refuse_zero_spacing(header: Nifti1Header, path: Path) -> None:
    """An sform needs no pixdim; everything else does, and nibabel would put 1 mm for a zero without asking."""
    spacing = header["pixdim"][1:4][: int(np.clip(header["dim"][0], 0, 3))]
    if header["sform_code"] <= 0 and not (np.isfinite(spacing) & (spacing != 0)).all():
        found = " × ".join(f"{size:g}" for size in spacing)
        raise BadFile(f"{path.name} gives its voxels a size of {found} mm: put the true size into pixdim")


def _nifti_axes(header: Nifti1Header, path: Path) -> tuple[tuple[int, ...], int, int]:
    """Sizes of the three axes in space, number of time frames, number of channels."""
    sizes = tuple(int(size) for size in header.get_data_shape())
    if not sizes or min(sizes) < 1 or prod(sizes[5:]) > 1:
        raise BadFile(f"{path.name} has axes of {' × '.join(map(str, sizes))} voxels: a volume has three, or time too")
    sizes += (1,) * (5 - len(sizes))
    if sizes[4] == 1 and int(header["intent_code"]) in VECTOR_INTENTS:
        return sizes[:3], 1, sizes[3]
    return sizes[:3], sizes[3], sizes[4]


def _nifti_type(header: Nifti1Header, path: Path) -> tuple[np.dtype[Any], int]:
    """Type of a number in the file, and how many make up a voxel."""
    dtype = header.get_data_dtype()
    if dtype.names:
        return np.dtype(np.uint8), len(dtype.names)
    if dtype.kind == "c":
        raise BadFile(f"{path.name} holds complex numbers: save the magnitude or the phase as a file of its own")
    if dtype.kind not in "iuf":
        raise BadFile(f"{path.name} holds values of type {dtype}, which are not read: save it as int16 or float32")
    return dtype, 1


def _nifti_scaling(header: Nifti1Header, path: Path) -> tuple[float, float]:
    """Slope and intercept; a slope of 0 or NaN means none, as the standard and nibabel have it."""
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or np.isnan(slope):
        return 1.0, 0.0
    if not np.isfinite([slope, inter]).all():
        raise BadFile(f"{path.name} scales its values by {slope:g} and shifts them by {inter:g}: repair scl_slope")
    return slope, inter


def _voxel_file(header: Path) -> Path:
    """The .img of a .hdr."""
    stem = re.sub(r"\.hdr(\.gz)?$", "", header.name, flags=re.IGNORECASE)
    for ending in (".img", ".IMG", ".img.gz"):
        if (found := header.with_name(stem + ending)).exists():
            return found
    raise BadFile(f"{header.name} is only a header; its voxels are in {stem}.img, which is missing: put it beside")


def _open_mgh(path: Path, start: bytes) -> _Source:
    header = MGHHeader(_at_least(start, 284), check=False)
    sizes = [int(size) for size in header["dims"]]
    if min(sizes) < 1:
        raise BadFile(f"{path.name} has axes of {' × '.join(map(str, sizes))} voxels: export it again")
    if not any(start[28:30]):  # the flag that the directions are there
        log.warning("%s does not say where its axes point: orientation is a guess", path.name)
    grid = _grid(sizes[:3], header.get_affine(), path)
    voxels = _Voxels(path, header.get_data_offset(), header.get_data_dtype(), grid.shape, frames=sizes[3])
    return _Source(grid, sizes[3], lambda frame: _load(voxels, frame), header)


def _load(voxels: _Voxels, frame: int) -> Values:
    """Read one frame (c i j k), straight into its array, and the rest of the file for completeness."""
    _refuse_short(voxels)
    i, j, k = voxels.shape
    dtype = voxels.dtype.newbyteorder("=") if voxels.as_they_are else np.float32
    result = np.empty((voxels.channels, k, j, i, voxels.samples), dtype=dtype)
    with voxels.path.open("rb") as file, _unpacked(file) as stream:
        _skip(stream, voxels.offset)
        for channel in result:
            _skip(stream, frame * voxels.frame_bytes)
            _fill(channel.reshape(-1), stream, voxels)
            _skip(stream, (voxels.frames - 1 - frame) * voxels.frame_bytes)
        if stream is not file:
            _finish(stream)
    return rearrange(result, "c k j i sample -> (c sample) i j k")


def _refuse_short(voxels: _Voxels) -> None:
    """Compare sizes before memory is taken for voxels that cannot be there."""
    expected = voxels.offset + voxels.channels * voxels.frames * voxels.frame_bytes
    held = voxels.path.stat().st_size
    with voxels.path.open("rb") as file:
        most = held * BEST_DEFLATE if file.read(2) == GZIP else held
    if most < expected:
        raise BadFile(f"{voxels.path.name} is cut short: its header promises {expected} bytes; copy it again")


def _fill(target: NDArray[Any], stream: BinaryIO, voxels: _Voxels) -> None:
    """Read voxels into a flat array, scaled; a double or scaled volume never exists in its wide form."""
    if voxels.as_they_are:
        _read_into(stream, target)
        if not voxels.dtype.isnative:
            target.byteswap(inplace=True)
        return
    for first in range(0, len(target), PIECE):
        part = target[first : first + PIECE]
        stored = np.empty(len(part), dtype=voxels.dtype)
        _read_into(stream, stored)
        part[:] = stored.astype(np.float64) * voxels.slope + voxels.inter


# ---- Bytes -----------------------------------------------------------------------------------------------------------


@contextmanager
def _unpacked(file: BinaryIO) -> Iterator[BinaryIO]:
    """The content of a file, unpacked if it is gzipped, whatever its name says."""
    gzipped = file.read(2) == GZIP
    file.seek(0)
    yield _inflated(file) if gzipped else file


def _inflated(file: BinaryIO) -> BinaryIO:
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


def _read_into(stream: BinaryIO, target: NDArray[Any]) -> None:
    """Fill an array with the next bytes."""
    if cast(io.BufferedReader, stream).readinto(target.view(np.uint8).data) < target.nbytes:
        raise EOFError


def _skip(stream: BinaryIO, count: int) -> None:
    """Go on by `count` bytes."""
    while count > 0:
        piece = stream.read(min(count, PIECE))
        if not piece:
            raise EOFError
        count -= len(piece)


def _finish(stream: BinaryIO) -> int:
    """Read to the end, which checks the checksum of packed data; returns how many bytes there were."""
    count = 0
    while piece := stream.read(PIECE):
        count += len(piece)
    return count


def _at_most(stream: BinaryIO, count: int) -> bytes:
    """The first bytes, as many as can be had."""
    start = b""
    try:
        while len(start) < count and (piece := stream.read(count - len(start))):
            start += piece
    except (EOFError, zlib.error):
        if not start:
            raise
    return start


def _at_least(start: bytes, count: int) -> bytes:
    if len(start) < count:
        raise EOFError
    return start[:count]


# ---- NRRD, MetaImage, PNG: read by SimpleITK once they are known to be complete --------------------------------------


def _open_itk(path: Path, kind: str) -> _Source:
    fields = {} if kind == "PNG" else _words(path, kind)[0]
    if detached := _detached_name(fields):
        _detached(path, detached)
    reader = _itk_reader(path, kind)
    size, geometry = _itk_geometry(reader, path)
    if kind == "PNG" or (kind == "NRRD" and "space" not in fields):
        log.warning("%s does not say where its axes point: orientation is a guess", path.name)
    grid = _grid(size, _single_precision(_affine(geometry), size), path)

    def load(frame: int) -> Values:
        if kind != "PNG":  # its library refuses a PNG without the end mark
            _require_whole(path, kind, _number_bytes(reader))
        return _itk_values(_itk_pixels(reader, path, kind), frame)

    return _Source(grid, size[3], load, geometry)


def _simpleitk(what: str) -> Any:
    try:
        import SimpleITK
    except ImportError:
        raise MissingExtra(what, "itk") from None
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    return SimpleITK


def _itk_reader(path: Path, kind: str) -> Any:
    """A SimpleITK reader that has read the header; told which format it is, it does not mind the ending."""
    sitk = _simpleitk(f"reading {path.name}")
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.SetImageIO({"NRRD": "NrrdImageIO", "MetaImage": "MetaImageIO", "PNG": "PNGImageIO"}.get(kind, "GDCMImageIO"))
    try:
        with _hushed():
            reader.ReadImageInformation()
    except RuntimeError as error:
        raise _unreadable(path, kind) from error
    if "complex" in _number_type(reader):
        raise BadFile(f"{path.name} holds complex numbers: save the magnitude or the phase as a file of its own")
    return reader


def _number_type(reader: Any) -> str:
    """SimpleITK's words, such as "vector of 16-bit signed integer"."""
    import SimpleITK

    return str(SimpleITK.GetPixelIDValueAsString(reader.GetPixelID()))


def _number_bytes(reader: Any) -> int:
    found = re.search(r"(\d+)-bit", _number_type(reader))
    return int(found[1]) // 8 if found else 1


def _unreadable(path: Path, kind: str) -> BadFile:
    why = "cut short, damaged, packed in an unknown way, or without an image" if kind == "DICOM" else "damaged"
    return BadFile(f"{path.name} cannot be read as {kind}: it is {why}")


def _itk_geometry(reader: Any, path: Path) -> tuple[list[int], ItkGeometry]:
    """Sizes along i, j, k and time, and the geometry of the three axes in space."""
    dimension = reader.GetDimension()
    if dimension not in (2, 3, 4):
        raise BadFile(f"{path.name} has {dimension} axes: a volume has three, or time too")
    size = [*reader.GetSize(), 1, 1][:4]
    spacing = (*reader.GetSpacing(), 1.0)[:3]
    origin = (*reader.GetOrigin(), 0.0)[:3]
    direction = np.eye(max(dimension, 3))
    direction[:dimension, :dimension] = np.reshape(reader.GetDirection(), (dimension, dimension))
    return size, ItkGeometry(spacing, origin, tuple(direction[:3, :3].ravel()))


def _affine(geometry: ItkGeometry) -> NDArray[np.float64]:
    """Voxel indices to mm in RAS+."""
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(geometry.direction, (3, 3)) * np.array(geometry.spacing)
    affine[:3, 3] = geometry.origin
    return LPS_TO_RAS @ affine + 0.0  # turns -0 into 0


def _single_precision(affine: NDArray[np.float64], shape: Sequence[int]) -> NDArray[np.float64]:
    """The affine as a NIfTI-1 header can hold it, unless that would move a voxel (stage coordinates of microscopes)."""
    rounded = affine.astype(np.float32).astype(np.float64)
    return rounded if _voxel_shift(affine, rounded, shape) < ROUNDING else affine


def _voxel_shift(affine: NDArray[np.float64], other: NDArray[np.float64], shape: Sequence[int]) -> float:
    """How far two affines put a corner of the lattice apart, in voxels."""
    corners = np.array(list(product(*((0, size) for size in shape[:3]), (1,))), dtype=np.float64)
    shift = (corners @ (other - affine).T)[:, :3]
    if np.linalg.matrix_rank(affine[:3, :3]) < 3:
        return np.inf
    return float(np.abs(np.linalg.solve(affine[:3, :3], shift.T)).max())


def _itk_pixels(reader: Any, path: Path, kind: str) -> Any:
    try:
        if kind in ("NRRD", "MetaImage"):
            return reader.Execute()
        with _hushed():
            return reader.Execute()
    except RuntimeError as error:
        raise _unreadable(path, kind) from error


def _itk_values(image: Any, frame: int) -> Values:
    """One frame of a SimpleITK image as (c i j k)."""
    import SimpleITK

    values = SimpleITK.GetArrayViewFromImage(image)
    if image.GetNumberOfComponentsPerPixel() == 1:
        values = values[..., None]
    if image.GetDimension() == 2:
        values = values[None]
    if image.GetDimension() == 4:
        values = values[frame]
    # The view dies with the image, so the values are copied, and doubles halved on the way.
    copied = np.array(values, dtype=np.float32 if values.dtype == np.float64 else values.dtype)
    return rearrange(copied, "k j i c -> c i j k")


_HUSH = RLock()


@contextmanager
def _hushed() -> Iterator[None]:
    """Keep what compiled libraries print from the terminal: their decoders complain even when they succeed.

    The error stream belongs to the whole process, so this is held only while a header or a DICOM file is read.
    """
    if sys.stderr is None:  # a program without a terminal
        yield
        return
    with _HUSH, Path(os.devnull).open("wb") as nowhere:
        sys.stderr.flush()
        saved = os.dup(2)
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)


# ---- Is an NRRD or MetaImage file complete? --------------------------------------------------------------------------


class _Promise(NamedTuple):
    """What a header in words says of the voxels behind it.

    `packing` is raw, gzip or text; `lines` and then `skip` bytes (unpacked ones, if packed) come before `numbers`
    numbers.
    """

    packing: str
    numbers: int
    lines: int = 0
    skip: int = 0


def _require_whole(path: Path, kind: str, number_bytes: int) -> None:
    """Refuse a file that holds fewer voxels than its header promises."""
    fields, start = _words(path, kind)
    promise = _nrrd_promise(fields, path) if kind == "NRRD" else _meta_promise(fields)
    detached = _detached_name(fields)
    where = _detached(path, detached) if detached else path
    expected = promise.numbers if promise.packing == "text" else promise.skip + promise.numbers * number_bytes
    with where.open("rb") as file:
        file.seek(0 if detached else start)
        for _ in range(promise.lines):
            file.readline()
        held = _measure(file, promise.packing)
    if held < expected:
        unit = "numbers" if promise.packing == "text" else "bytes"
        raise BadFile(f"{where.name} is cut short: {held} {unit} of {expected} are there; copy or download it again")


def _words(path: Path, kind: str) -> tuple[dict[str, str], int]:
    """The fields of a header, names in lower case without spaces, and where the data begin that follow it."""
    fields: dict[str, str] = {}
    with path.open("rb") as file:
        while "elementdatafile" not in fields and (line := file.readline(PIECE)):
            if kind == "NRRD" and not line.strip():
                break
            name, _, value = line.decode("latin-1").partition(":" if kind == "NRRD" else "=")
            if not value.startswith("="):  # "key:=value" is a remark of an NRRD's author
                fields[name.lower().replace(" ", "")] = value.strip()
        return fields, file.tell()


def _nrrd_promise(fields: dict[str, str], path: Path) -> _Promise:
    encoding = fields.get("encoding", "")
    packing = {"gz": "gzip", "txt": "text", "ascii": "text"}.get(encoding, encoding)
    if packing not in ("raw", "gzip", "text"):
        raise BadFile(f"{path.name} is encoded as {encoding!r}, which is not read: save it as raw or gzip")
    numbers = prod(int(size) for size in fields["sizes"].split())
    # A skip of -1 means that the data are the last bytes of the file.
    skip = max(int(fields.get("byteskip", 0)), 0)
    return _Promise(packing, numbers, int(fields.get("lineskip", 0)), skip)


def _meta_promise(fields: dict[str, str]) -> _Promise:
    def true(name: str, default: str) -> bool:
        return fields.get(name, default).lower() in ("true", "1")

    packed = "gzip" if true("compresseddata", "False") else "raw"
    packing = packed if true("binarydata", "True") else "text"
    numbers = prod(int(size) for size in fields["dimsize"].split()) * int(fields.get("elementnumberofchannels", 1))
    return _Promise(packing, numbers, skip=max(int(fields.get("headersize", 0)), 0))


def _detached_name(fields: dict[str, str]) -> str:
    """The name of the file that holds the voxels, or nothing if they follow the header."""
    name = fields.get("datafile", fields.get("elementdatafile", ""))
    return "" if name.lower() == "local" else name


def _detached(header: Path, name: str) -> Path:
    """The file that holds the voxels of a header; one elsewhere is none of the header's business."""
    if name.startswith("LIST") or "%" in name:
        raise BadFile(f"{header.name} spreads its voxels over several files, which is not read: save it as one file")
    found = (header.parent / name).resolve()
    if not found.is_file() or not found.is_relative_to(header.parent.resolve()):
        raise BadFile(f"{header.name} is only a header; its voxels are in {name}, which is missing: put it beside")
    return found


def _measure(file: BinaryIO, packing: str) -> int:
    """How many bytes (unpacked) or, of text, numbers there are from here on."""
    if packing == "text":
        return sum(len(line.split()) for line in file)
    if packing == "gzip":
        return _finish(_inflated(file))
    here = file.tell()
    return file.seek(0, os.SEEK_END) - here


# ---- DICOM -----------------------------------------------------------------------------------------------------------


def _open_dicom(path: Path) -> _Source:
    """A single slice."""
    reader = _dicom_slice(path)
    _warn_unplaced(reader, path)
    size, geometry = _itk_geometry(reader, path)
    grid = _grid(size, _single_precision(_affine(geometry), size), path)
    return _Source(grid, 1, lambda _: _narrow(_itk_values(_itk_pixels(reader, path, "DICOM"), 0)))


def _dicom_slice(path: Path) -> Any:
    """A reader for one slice; objects that hold something else are refused."""
    reader = _itk_reader(path, "DICOM")
    if _dicom_text(reader, "0008|0016") == DICOM_SEGMENTATION:
        raise BadFile(f"{path.name} is a DICOM segmentation, not an image: give the series that it was drawn on")
    if len(reader.GetSize()) > 2 and reader.GetSize()[2] > 1:
        raise BadFile(f"{path.name} is a DICOM file of many frames, which is not read: convert it to NIfTI (dcm2niix)")
    return reader


def _dicom_text(reader: Any, tag: str) -> str:
    return str(reader.GetMetaData(tag)).strip("\0 ") if reader.HasMetaDataKey(tag) else ""


def _warn_unplaced(reader: Any, path: Path) -> None:
    """ITK puts 1 mm, the origin and straight axes where a tag is missing."""
    tags = {"0028|0030": "pixel spacing", "0020|0032": "position", "0020|0037": "orientation"}
    missing = [word for tag, word in tags.items() if not _dicom_text(reader, tag)]
    if missing:
        log.warning("%s does not state its %s: where it lies is a guess", path.name, " or ".join(missing))


def _open_dicom_folder(folder: Path) -> _Source:
    """The one series in a folder, its slices in order of position."""
    files = _series(folder)
    slices = [_dicom_slice(file) for file in files]
    _refuse_lost_slices(folder, files, _dicom_text(slices[0], "0008|0016"))
    if len(slices) == 1:
        return _open_dicom(files[0])
    _warn_unplaced(slices[0], folder)
    grid = _series_grid(folder, slices)
    return _Source(grid, 1, lambda _: _narrow(_itk_values(_series_pixels(folder, files, slices), 0)))


def _series(folder: Path) -> list[Path]:
    sitk = _simpleitk(f"reading {folder}")
    with _hushed():
        found = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
        if len(found) == 1:
            return [Path(file) for file in sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), found[0])]
    if not found:
        raise BadFile(f"{folder} is a folder without a DICOM series in it: give a file, or the folder of a series")
    raise BadInput(f"{folder} holds {len(found)} DICOM series: put the one that is meant into a folder of its own")


def _refuse_lost_slices(folder: Path, files: Sequence[Path], image_class: str) -> None:
    """GDCM leaves out a damaged slice without a word; plans, reports and notes beside a series do no harm."""
    listed = {file.name for file in files}
    own_class = re.compile(re.escape(image_class.encode()) + rb"[\0\x02]")
    for file in sorted(folder.iterdir()):
        if file.name in listed or file.name.startswith(".") or not file.is_file():
            continue
        with file.open("rb") as content:
            start = content.read(1024)
        meant_as_slice = start[128:132] == b"DICM" or file.suffix.lower() in (".dcm", ".ima")
        of_another_class = b"1.2.840.10008." in start and not own_class.search(start)
        if meant_as_slice and not of_another_class:
            raise BadFile(f"{folder}: the slice {file.name} is cut short or damaged; copy the series again")


def _series_grid(folder: Path, slices: Sequence[Any]) -> Grid:
    """The lattice through the positions of all slices; a tilted gantry gives a sheared one, as it should."""
    first = slices[0]
    for other in slices[1:]:
        same = other.GetSize() == first.GetSize() and np.allclose(other.GetDirection(), first.GetDirection(), atol=1e-3)
        if not same or not np.allclose(other.GetSpacing()[:2], first.GetSpacing()[:2], rtol=1e-3):
            raise BadInput(f"{folder} holds slices of different size or direction: leave only those of one stack")
    positions = np.array([slice_.GetOrigin()[:3] for slice_ in slices])
    step = (positions[-1] - positions[0]) / (len(slices) - 1)
    even = positions[0] + np.arange(len(slices))[:, None] * step
    worst = np.linalg.norm(positions - even, axis=1).max()
    if worst > UNEVEN * np.linalg.norm(step) or not step.any():
        gaps = np.linalg.norm(np.diff(positions, axis=0), axis=1)
        raise BadInput(
            f"{folder}: the {len(slices)} slices lie {gaps.min():.3g} to {gaps.max():.3g} mm apart, but must be even: "
            "a slice is missing, or there are several stacks"
        )
    size, geometry = _itk_geometry(first, folder)
    affine = _affine(geometry)
    affine[:3, 2] = LPS_TO_RAS[:3, :3] @ step + 0.0
    shape = (size[0], size[1], len(slices))
    return _grid(shape, _single_precision(affine, shape), folder)


def _series_pixels(folder: Path, files: Sequence[Path], slices: Sequence[Any]) -> Any:
    sitk = _simpleitk(f"reading {folder}")
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([str(file) for file in files])
    scalings = {(_dicom_text(slice_, "0028|1053"), _dicom_text(slice_, "0028|1052")) for slice_ in slices}
    if len(scalings) > 1:
        # The first slice would set the type for all, and round the others (PET scales each slice by its own slope).
        reader.SetOutputPixelType(sitk.sitkFloat32)
    try:
        with _hushed():
            return reader.Execute()
    except RuntimeError as error:
        raise _unreadable(folder, "DICOM") from error


def _narrow(values: Values) -> Values:
    """GDCM makes 32 bits of a CT once it has applied the rescale slope; 16 hold nearly all of them."""
    if values.dtype != np.int32:
        return values
    limits = np.iinfo(np.int16)
    fits = values.min() >= limits.min and values.max() <= limits.max
    return values.astype(np.int16) if fits else values


# ---- Writing ---------------------------------------------------------------------------------------------------------

# Takes the volume, a temporary path with the right ending, and the name for messages.
Writer = Callable[[Volume, Path, str], None]


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
        return _write_nifti
    if name.endswith((".mgh", ".mgz")):
        return _write_mgh
    if name.endswith((".nrrd", ".mha")):
        return _write_itk
    raise BadInput(f"{path.name} has no ending that can be written; known are {', '.join(WRITABLE)}")


def _storable(dtype: np.dtype[Any], path: Path) -> np.dtype[Any]:
    """A type that every format knows, in native byte order."""
    if dtype.kind not in "biuf":
        raise BadInput(f"{path.name}: values of type {dtype} cannot be written; give integers, floats or booleans")
    known = {"b1": np.uint8, "f2": np.float32, "f12": np.float64, "f16": np.float64}
    return np.dtype(known.get(f"{dtype.kind}{dtype.itemsize}", dtype.newbyteorder("=")))


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A temporary name in the same folder, which takes the place of `path` only when all went well."""
    # In small letters, since ITK does not know its formats by endings in capitals.
    temporary = path.with_name(f".{uuid4().hex[:8]}.{path.name.lower()}")
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise BadInput(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _write_nifti(volume: Volume, path: Path, name: str) -> None:
    header = _nifti_header(volume)
    with path.open("wb") as file:
        if not path.name.lower().endswith(".gz"):
            _write_nifti_parts(header, volume.data, file)
            return
        # No time and no name inside: the same mask makes the same bytes.
        with gzip.GzipFile("", "wb", COMPRESSION, file, mtime=0) as packed:
            _write_nifti_parts(header, volume.data, cast(BinaryIO, packed))


def _write_nifti_parts(header: Nifti1Header, data: Values, file: BinaryIO) -> None:
    file.write(header.binaryblock)
    file.write(bytes(4))  # no extensions
    for channel in data:
        some = max(1, PIECE // prod(channel.shape[:2]))
        for first in range(0, channel.shape[2], some):
            file.write(np.ascontiguousarray(rearrange(channel[:, :, first : first + some], "i j k -> k j i")).data)


def _nifti_header(volume: Volume) -> Nifti1Header:
    """The first header, of those that programs read best, whose affine equals the volume's to the last bit."""
    for header in _nifti_headers(volume):
        if np.array_equal(header.get_best_affine(), volume.grid.affine):
            header.set_data_dtype(volume.data.dtype)
            header.set_slope_inter(1, 0)
            header["vox_offset"] = header.sizeof_hdr + 4
            return header
    raise BadInput(f"{volume.name}: no NIfTI header holds its affine: write .nrrd")  # pragma: no cover


def _nifti_headers(volume: Volume) -> Iterator[Nifti1Header]:
    source = volume.header
    if isinstance(source, Nifti1Header):
        shape = tuple(source.get_data_shape())
        two = Nifti2Header if isinstance(source, Nifti2Header) else Nifti1Header
        header = _empty_nifti(volume, two, flat=len(shape) == 2)
        header["pixdim"][:4] = source["pixdim"][:4]
        for field in QFORM + SFORM:
            header[field] = source[field]
        yield header
    if max(volume.grid.shape) <= np.iinfo(np.int16).max:
        yield _with_affine(_empty_nifti(volume, Nifti1Header), volume.grid.affine)
    log.warning("%s needs the double precision of NIfTI-2 for its affine, which not every program reads", volume.name)
    yield _with_affine(_empty_nifti(volume, Nifti2Header), volume.grid.affine)


def _empty_nifti(volume: Volume, header_class: type[Nifti1Header], flat: bool = False) -> Nifti1Header:
    """A header with the volume's axes: `flat` for a slice that came as a 2D image, and a fifth axis for channels."""
    header = header_class()
    shape: tuple[int, ...] = volume.grid.shape
    if volume.channels > 1:
        header.set_data_shape((*shape, 1, volume.channels))
        header.set_intent("vector")
    else:
        header.set_data_shape(shape[:2] if flat and shape[2] == 1 else shape)
    header.set_xyzt_units("mm")
    return header


def _with_affine(header: Nifti1Header, affine: NDArray[np.float64]) -> Nifti1Header:
    """State the affine as sform, and as qform too unless it is sheared, for programs that look only there."""
    with np.errstate(over="ignore"):
        header.set_qform(affine, SCANNER)
        if not np.allclose(header.get_qform(), affine, rtol=1e-4, atol=1e-4):
            header["qform_code"] = 0
        header.set_sform(affine, SCANNER)
    return header


def _write_mgh(volume: Volume, path: Path, name: str) -> None:
    if volume.channels > 1:
        raise BadInput(f"{name} cannot hold {volume.channels} channels: write .nii.gz")
    source = volume.header
    own = isinstance(source, MGHHeader) and np.array_equal(source.get_affine(), volume.grid.affine)
    header = cast(MGHHeader, source).copy() if own else MGHHeader()
    values = _mgh_values(volume.data[0], name)
    header.set_data_dtype(values.dtype)
    image = nibabel.MGHImage(values, volume.grid.affine, header)
    if _voxel_shift(volume.grid.affine, image.header.get_affine(), volume.grid.shape) > ROUNDING:
        raise BadInput(f"{name} cannot hold the affine of {volume.name}: write .nii.gz")
    image.to_filename(path)


def _mgh_values(values: Values, name: str) -> Values:
    """In a type that MGH has: uint8, int16, uint16, int32 or float32."""
    kinds = (np.uint8, np.int16, np.uint16, np.int32, np.float32)
    if values.dtype in kinds:
        return values
    if values.dtype.kind == "f":
        return values.astype(np.float32)
    limits = np.iinfo(np.int32)
    if values.min() < limits.min or values.max() > limits.max:
        raise BadInput(f"{name} cannot hold integers beyond 32 bits: write .nii.gz")
    return values.astype(np.int32)


def _write_itk(volume: Volume, path: Path, name: str) -> None:
    sitk = _simpleitk(f"writing {name}")
    geometry = _itk_words(volume)
    if volume.channels > 1:
        image = sitk.GetImageFromArray(rearrange(volume.data, "c i j k -> k j i c"), isVector=True)
    else:
        image = sitk.GetImageFromArray(rearrange(volume.data, "1 i j k -> k j i"), isVector=False)
    image.SetSpacing(geometry.spacing)
    image.SetOrigin(geometry.origin)
    image.SetDirection(geometry.direction)
    writer = sitk.ImageFileWriter()
    writer.SetFileName(str(path))
    writer.UseCompressionOn()
    writer.SetCompressionLevel(COMPRESSION)
    try:
        writer.Execute(image)
    except RuntimeError as error:
        raise BadInput(f"{name} cannot be written: is there room, and may files be made there?") from error


def _itk_words(volume: Volume) -> ItkGeometry:
    """Spacing, origin and direction in LPS+, as the source had them if it had them."""
    affine = volume.grid.affine
    if isinstance(volume.header, ItkGeometry):
        own = _single_precision(_affine(volume.header), volume.grid.shape)
        if np.array_equal(own, affine):
            return volume.header
    turned = LPS_TO_RAS @ affine
    spacing = volume.grid.spacing
    direction = turned[:3, :3] / spacing
    return ItkGeometry(tuple(spacing), tuple(turned[:3, 3]), tuple(direction.ravel()))
