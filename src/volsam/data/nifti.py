"""NIfTI and MGH: nibabel reads the header, the voxels come straight from the file.

A NIfTI is written with the affine to the last bit: the header that the volume was read with says it best, else the
first kind of header that can hold it.
"""

from __future__ import annotations

import gzip
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, cast

import nibabel
import numpy as np
from einops import rearrange
from nibabel.freesurfer.mghformat import MGHHeader
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header
from numpy.typing import NDArray

from volsam.data.files import COMPRESSION, GZIP, PIECE, at_least, finish, read_into, skip, unpacked
from volsam.data.source import ROUNDING, Source, Values, lattice, voxel_shift
from volsam.errors import BadFile, BadInput
from volsam.volume import Volume

log = logging.getLogger(__name__)

# Deflate packs at best 1032 bytes into one; a header that promises more than that lies, or its file is cut short.
BEST_DEFLATE = 1032
SCANNER = 1  # NIfTI code of an affine in the coordinates of the scanner
VECTOR_INTENTS = {1004, 1005, 1006, 1007, 2003, 2004}  # matrix, symmetric matrix, displacement, vector, RGB, RGBA
QFORM = ("qform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z")
SFORM = ("sform_code", "srow_x", "srow_y", "srow_z")
METRES, MICRONS = 1, 3  # NIfTI codes of units that are not millimetres


def open_nifti(path: Path, start: bytes) -> Source:
    """A single file or a pair, NIfTI-1 or -2; `start` is its first kilobyte, unpacked."""
    header_class = nifti_class(start) or Nifti1Header
    header = header_class(at_least(start, header_class.sizeof_hdr), check=False)
    _refuse_zero_spacing(header, path)
    # nibabel repairs what it can, as its own `load` does, but talks about it on the error stream.
    header.check_fix(logger=logging.Logger("nowhere", level=logging.CRITICAL + 1))
    shape, frames, channels = _nifti_axes(header, path)
    if not (header["sform_code"] or header["qform_code"]):
        log.warning("%s has neither qform nor sform: orientation and position are a guess", path.name)
    if int(header["xyzt_units"]) & 7 in (METRES, MICRONS):
        log.warning("%s states its lengths in metres or microns; they are read as millimetres", path.name)
    grid = lattice(shape, header.get_best_affine(), path)
    dtype, samples = _nifti_type(header, path)
    slope, inter = _nifti_scaling(header, path) if samples == 1 else (1.0, 0.0)
    where = _voxel_file(path) if header["magic"].item().startswith(b"ni") else path
    voxels = _Voxels(where, header.get_data_offset(), dtype, grid.shape, frames, channels, samples, slope, inter)
    return Source(grid, frames, lambda frame: _load(voxels, frame), header, channels * samples)


def nifti_class(start: bytes) -> type[Nifti1Header] | None:
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


def header_of_pair(path: Path) -> Path:
    """The .hdr that goes with an .img, or the path itself."""
    found = re.search(r"\.img(\.gz)?$", path.name, re.IGNORECASE)
    if not found:
        return path
    stem = path.name[: found.start()]
    for ending in (".hdr", ".HDR", ".hdr.gz"):
        if (header := path.with_name(stem + ending)).exists():
            return header
    raise BadFile(f"{path.name} needs its header {stem}.hdr beside it, which is missing")


def _voxel_file(header: Path) -> Path:
    """The .img of a .hdr."""
    stem = re.sub(r"\.hdr(\.gz)?$", "", header.name, flags=re.IGNORECASE)
    for ending in (".img", ".IMG", ".img.gz"):
        if (found := header.with_name(stem + ending)).exists():
            return found
    raise BadFile(f"{header.name} is only a header; its voxels are in {stem}.img, which is missing: put it beside")


def open_mgh(path: Path, start: bytes) -> Source:
    """An .mgh or .mgz; `start` is its first kilobyte, unpacked."""
    header = MGHHeader(at_least(start, 284), check=False)
    sizes = [int(size) for size in header["dims"]]
    if min(sizes) < 1:
        raise BadFile(f"{path.name} has axes of {' × '.join(map(str, sizes))} voxels: export it again")
    if not any(start[28:30]):  # the flag that the directions are there
        log.warning("%s does not say where its axes point: orientation is a guess", path.name)
    grid = lattice(sizes[:3], header.get_affine(), path)
    voxels = _Voxels(path, header.get_data_offset(), header.get_data_dtype(), grid.shape, frames=sizes[3])
    return Source(grid, sizes[3], lambda frame: _load(voxels, frame), header)


# ---- Voxels ----------------------------------------------------------------------------------------------------------


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


def _load(voxels: _Voxels, frame: int) -> Values:
    """Read one frame (c i j k), straight into its array, and the rest of the file for completeness."""
    _refuse_short(voxels)
    i, j, k = voxels.shape
    dtype = voxels.dtype.newbyteorder("=") if voxels.as_they_are else np.float32
    result = np.empty((voxels.channels, k, j, i, voxels.samples), dtype=dtype)
    with voxels.path.open("rb") as file, unpacked(file) as stream:
        skip(stream, voxels.offset)
        for channel in result:
            skip(stream, frame * voxels.frame_bytes)
            _fill(channel.reshape(-1), stream, voxels)
            skip(stream, (voxels.frames - 1 - frame) * voxels.frame_bytes)
        if stream is not file:
            finish(stream)
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
        read_into(stream, target)
        if not voxels.dtype.isnative:
            target.byteswap(inplace=True)
        return
    for first in range(0, len(target), PIECE):
        part = target[first : first + PIECE]
        stored = np.empty(len(part), dtype=voxels.dtype)
        read_into(stream, stored)
        part[:] = stored.astype(np.float64) * voxels.slope + voxels.inter


# ---- Writing ---------------------------------------------------------------------------------------------------------


def write_nifti(volume: Volume, path: Path, name: str) -> None:
    """Write .nii or .nii.gz, whichever `path` ends in; `name` is what messages call it."""
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


def write_mgh(volume: Volume, path: Path, name: str) -> None:
    """Write .mgh or .mgz, whichever `path` ends in; `name` is what messages call it."""
    if volume.channels > 1:
        raise BadInput(f"{name} cannot hold {volume.channels} channels: write .nii.gz")
    source = volume.header
    own = isinstance(source, MGHHeader) and np.array_equal(source.get_affine(), volume.grid.affine)
    header = cast(MGHHeader, source).copy() if own else MGHHeader()
    values = _mgh_values(volume.data[0], name)
    header.set_data_dtype(values.dtype)
    image = nibabel.MGHImage(values, volume.grid.affine, header)
    if voxel_shift(volume.grid.affine, image.header.get_affine(), volume.grid.shape) > ROUNDING:
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
