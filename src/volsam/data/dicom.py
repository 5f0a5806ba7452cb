"""DICOM: a single slice, or the one series in a folder, read by SimpleITK and refused where slices are missing."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from volsam.data.itk import (
    LPS_TO_RAS,
    hushed,
    itk_geometry,
    itk_pixels,
    itk_reader,
    itk_values,
    ras_affine,
    simpleitk,
    single_precision,
    unreadable,
)
from volsam.data.source import Source, Values, lattice
from volsam.errors import BadFile, BadInput
from volsam.geometry import Grid

log = logging.getLogger(__name__)

# Of several series in one folder so many are named.
SHOWN = 5
# Slices of a series may be off an even spacing by this part of it; a missing slice is off by half a spacing or more.
UNEVEN = 0.05
DICOM_SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"


def open_dicom(path: Path) -> Source:
    """A single slice."""
    reader = _dicom_slice(path)
    _warn_unplaced(reader, path)
    size, geometry = itk_geometry(reader, path)
    grid = lattice(size, single_precision(ras_affine(geometry), size), path)
    return Source(grid, 1, lambda _: _narrow(itk_values(itk_pixels(reader, path, "DICOM"), 0)))


def open_dicom_folder(folder: Path) -> Source:
    """The one series in a folder, its slices in order of position."""
    files = _series(folder)
    slices = [_dicom_slice(file) for file in files]
    _refuse_lost_slices(folder, files, _dicom_text(slices[0], "0008|0016"))
    if len(slices) == 1:
        return open_dicom(files[0])
    _warn_unplaced(slices[0], folder)
    grid = _series_grid(folder, slices)
    return Source(grid, 1, lambda _: _narrow(itk_values(_series_pixels(folder, files, slices), 0)))


def series_files(path: Path) -> list[Path]:
    """The files of a series, a folder or a single slice, in the order in which `read_volume` puts the slices."""
    return _series(path) if path.is_dir() else [path]


def is_slice(file: Path) -> bool:
    """Whether a file is meant to be DICOM, by its mark or its ending."""
    with file.open("rb") as content:
        return _meant_as_slice(file, content.read(132))


def _meant_as_slice(file: Path, start: bytes) -> bool:
    return start[128:132] == b"DICM" or file.suffix.lower() in (".dcm", ".ima")


def _dicom_slice(path: Path) -> Any:
    """A reader for one slice; objects that hold something else are refused."""
    reader = itk_reader(path, "DICOM")
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


def _series(folder: Path) -> list[Path]:
    sitk = simpleitk(f"reading {folder}")
    with hushed():
        found = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
        if len(found) == 1:
            return [Path(file) for file in sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), found[0])]
    if not found:
        raise BadFile(f"{folder} is a folder without a DICOM series in it: give a file, or the folder of a series")
    series = "; ".join(_in_words(folder, identity) for identity in found[:SHOWN])
    more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    raise BadInput(
        f"{folder} holds {len(found)} DICOM series: put the one that is meant into a folder of its own ({series}{more})"
    )


def _in_words(folder: Path, identity: str) -> str:
    """A series: its description, how many slices it has, and one of its files."""
    with hushed():
        files = simpleitk(f"reading {folder}").ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), identity)
    if not files:  # removed meanwhile
        return "no slice"
    described = _dicom_text(itk_reader(Path(files[0]), "DICOM"), "0008|103e") or "without a description"
    return f"{described}, {len(files)} slice{'s' * (len(files) != 1)} such as {Path(files[0]).name}"


def _refuse_lost_slices(folder: Path, files: Sequence[Path], image_class: str) -> None:
    """GDCM leaves out a damaged slice without a word; plans, reports and notes beside a series do no harm."""
    listed = {file.name for file in files}
    own_class = re.compile(re.escape(image_class.encode()) + rb"[\0\x02]")
    for file in sorted(folder.iterdir()):
        if file.name in listed or file.name.startswith(".") or not file.is_file():
            continue
        with file.open("rb") as content:
            start = content.read(1024)
        of_another_class = b"1.2.840.10008." in start and not own_class.search(start)
        if _meant_as_slice(file, start) and not of_another_class:
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
    size, geometry = itk_geometry(first, folder)
    affine = ras_affine(geometry)
    affine[:3, 2] = LPS_TO_RAS[:3, :3] @ step + 0.0
    shape = (size[0], size[1], len(slices))
    return lattice(shape, single_precision(affine, shape), folder)


def _series_pixels(folder: Path, files: Sequence[Path], slices: Sequence[Any]) -> Any:
    sitk = simpleitk(f"reading {folder}")
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([str(file) for file in files])
    scalings = {(_dicom_text(slice_, "0028|1053"), _dicom_text(slice_, "0028|1052")) for slice_ in slices}
    if len(scalings) > 1:
        # The first slice would set the type for all, and round the others (PET scales each slice by its own slope).
        reader.SetOutputPixelType(sitk.sitkFloat32)
    try:
        with hushed():
            return reader.Execute()
    except RuntimeError as error:
        raise unreadable(folder, "DICOM") from error


def _narrow(values: Values) -> Values:
    """GDCM makes 32 bits of a CT once it has applied the rescale slope; 16 hold nearly all of them."""
    if values.dtype != np.int32:
        return values
    limits = np.iinfo(np.int16)
    fits = values.min() >= limits.min and values.max() <= limits.max
    return values.astype(np.int16) if fits else values
