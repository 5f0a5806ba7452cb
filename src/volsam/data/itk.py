"""NRRD, MetaImage and PNG: read and written by SimpleITK, which is also what DICOM is read with.

SimpleITK fills voxels that a file lacks without a word, so an NRRD or MetaImage file is measured before it is read.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from threading import RLock
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from einops import rearrange
from numpy.typing import NDArray

from volsam.data.files import COMPRESSION, PIECE, finish, inflated
from volsam.data.source import ROUNDING, Source, Values, lattice, voxel_shift
from volsam.errors import BadFile, BadInput, MissingExtra
from volsam.volume import Volume

log = logging.getLogger(__name__)

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])

_HUSH = RLock()


class ItkGeometry(NamedTuple):
    """Geometry of an NRRD or MetaImage file in its own words (LPS+ mm), kept for a mask in one of these formats."""

    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: tuple[float, ...]


def open_itk(path: Path, kind: str) -> Source:
    """A file of the kind "NRRD", "MetaImage" or "PNG"."""
    fields = {} if kind == "PNG" else _words(path, kind)[0]
    if detached := _detached_name(fields):
        _detached(path, detached)
    reader = itk_reader(path, kind)
    size, geometry = itk_geometry(reader, path)
    if kind == "PNG" or (kind == "NRRD" and "space" not in fields):
        log.warning("%s does not say where its axes point: orientation is a guess", path.name)
    grid = lattice(size, single_precision(ras_affine(geometry), size), path)

    def load(frame: int) -> Values:
        if kind != "PNG":  # its library refuses a PNG without the end mark
            _require_whole(path, kind, _number_bytes(reader))
        return itk_values(itk_pixels(reader, path, kind), frame)

    return Source(grid, size[3], load, geometry, reader.GetNumberOfComponents())


def simpleitk(what: str) -> Any:
    """The library, imported when it is needed; `what` needs it, says the message where it is missing."""
    try:
        import SimpleITK
    except ImportError:
        raise MissingExtra(what, "itk") from None
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    return SimpleITK


def itk_reader(path: Path, kind: str) -> Any:
    """A SimpleITK reader that has read the header; told which format it is, it does not mind the ending."""
    sitk = simpleitk(f"reading {path.name}")
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.SetImageIO({"NRRD": "NrrdImageIO", "MetaImage": "MetaImageIO", "PNG": "PNGImageIO"}.get(kind, "GDCMImageIO"))
    try:
        with hushed():
            reader.ReadImageInformation()
    except RuntimeError as error:
        raise unreadable(path, kind) from error
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


def unreadable(path: Path, kind: str) -> BadFile:
    """What is said of a file at which SimpleITK gives up."""
    why = "cut short, damaged, packed in an unknown way, or without an image" if kind == "DICOM" else "damaged"
    return BadFile(f"{path.name} cannot be read as {kind}: it is {why}")


def itk_geometry(reader: Any, path: Path) -> tuple[list[int], ItkGeometry]:
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


def ras_affine(geometry: ItkGeometry) -> NDArray[np.float64]:
    """Voxel indices to mm in RAS+."""
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(geometry.direction, (3, 3)) * np.array(geometry.spacing)
    affine[:3, 3] = geometry.origin
    return LPS_TO_RAS @ affine + 0.0  # turns -0 into 0


def single_precision(affine: NDArray[np.float64], shape: Sequence[int]) -> NDArray[np.float64]:
    """The affine as a NIfTI-1 header can hold it, unless that would move a voxel (stage coordinates of microscopes)."""
    rounded = affine.astype(np.float32).astype(np.float64)
    return rounded if voxel_shift(affine, rounded, shape) < ROUNDING else affine


def itk_pixels(reader: Any, path: Path, kind: str) -> Any:
    """The SimpleITK image behind a header."""
    try:
        if kind in ("NRRD", "MetaImage"):
            return reader.Execute()
        with hushed():
            return reader.Execute()
    except RuntimeError as error:
        raise unreadable(path, kind) from error


def itk_values(image: Any, frame: int) -> Values:
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


@contextmanager
def hushed() -> Iterator[None]:
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
        return finish(inflated(file))
    here = file.tell()
    return file.seek(0, os.SEEK_END) - here


# ---- Writing ---------------------------------------------------------------------------------------------------------


def write_itk(volume: Volume, path: Path, name: str) -> None:
    """Write NRRD or MetaImage, whichever `path` ends in; `name` is what messages call it."""
    sitk = simpleitk(f"writing {name}")
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
        raise BadInput(f"{name} cannot be written: check free space and permissions") from error


def _itk_words(volume: Volume) -> ItkGeometry:
    """Spacing, origin and direction in LPS+, as the source had them if it had them."""
    affine = volume.grid.affine
    if isinstance(volume.header, ItkGeometry):
        own = single_precision(ras_affine(volume.header), volume.grid.shape)
        if np.array_equal(own, affine):
            return volume.header
    turned = LPS_TO_RAS @ affine
    spacing = volume.grid.spacing
    direction = turned[:3, :3] / spacing
    return ItkGeometry(tuple(spacing), tuple(turned[:3, 3]), tuple(direction.ravel()))
