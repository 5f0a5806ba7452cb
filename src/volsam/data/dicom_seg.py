"""DICOM-SEG: masks as segments that refer to the slices they were drawn on. Needs the extra "dicom".

highdicom writes it: a binary segmentation, one segment for each object, frames without a voxel left out, the patient,
the study and the frame of reference of the source kept.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from einops import rearrange
from numpy.typing import NDArray

from volsam.data.dicom import series_files
from volsam.data.files import replacing
from volsam.errors import BadFile, BadInput, MissingExtra

MANUFACTURER = "volsam"
# Sorts behind what a scanner made.
SERIES_NUMBER = 9000
LONGEST_LABEL = 64


@dataclass(frozen=True)
class Segment:
    """An object: its name, its mask (i j k), and its colour as "#rrggbb" or None."""

    name: str
    mask: NDArray[np.bool_]
    colour: str | None = None


def write_dicom_seg(
    segments: Sequence[Segment], series: Path, target: Path, *, maker: tuple[str, str], name: str
) -> None:
    """Write segments on the voxels of a DICOM series, a file or a folder, as `read_volume` orders them.

    maker: the name of the model that made the masks, and the version of volsam; name: of the new series.
    """
    highdicom, pydicom = _libraries()
    filled = [segment for segment in segments if segment.mask.any()]
    if not filled:
        raise BadInput("no object has a voxel, and DICOM-SEG holds none that is empty: make a mask first")
    slices = [pydicom.dcmread(file) for file in series_files(series)]
    shape = (slices[0].Columns, slices[0].Rows, len(slices))
    for segment in filled:
        if segment.mask.shape != shape:
            raise BadInput(f"a mask of {list(segment.mask.shape)} voxels does not fit the series of {list(shape)}")
    pixels = rearrange([segment.mask for segment in filled], "segment i j k -> k j i segment").astype(np.uint8)
    try:
        with _hushed():
            written = highdicom.seg.Segmentation(
                source_images=slices,
                pixel_array=pixels,
                segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
                segment_descriptions=[_described(highdicom, at, one, maker) for at, one in enumerate(filled, 1)],
                series_instance_uid=highdicom.UID(),
                series_number=SERIES_NUMBER,
                sop_instance_uid=highdicom.UID(),
                instance_number=1,
                manufacturer=MANUFACTURER,
                manufacturer_model_name=maker[0],
                software_versions=maker[1],
                device_serial_number="1",
                series_description=name[:LONGEST_LABEL],
                omit_empty_frames=True,
            )
    except (AttributeError, KeyError, TypeError, ValueError) as reason:
        why = " ".join(str(reason).split())
        raise BadFile(f"{series.name} lacks what a DICOM-SEG must repeat of its source: {why}") from reason
    with replacing(target) as unfinished:
        written.save_as(unfinished)


def _libraries() -> tuple[Any, Any]:
    try:
        with _hushed():
            import highdicom
            import highdicom.seg
            import pydicom
    except ImportError:
        raise MissingExtra("writing DICOM-SEG", "dicom") from None
    return highdicom, pydicom


def _described(highdicom: Any, number: int, segment: Segment, maker: tuple[str, str]) -> Any:
    from pydicom.sr.codedict import codes

    algorithm = highdicom.AlgorithmIdentificationSequence(
        name=maker[0], version=maker[1], family=codes.cid7162.ArtificialIntelligence
    )
    return highdicom.seg.SegmentDescription(
        segment_number=number,
        segment_label=segment.name[:LONGEST_LABEL],
        segmented_property_category=codes.SCT.AnatomicalStructure,
        segmented_property_type=codes.SCT.Organ,
        algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.SEMIAUTOMATIC,
        algorithm_identification=algorithm,
        tracking_uid=highdicom.UID(),
        tracking_id=segment.name[:LONGEST_LABEL],
        **(
            {} if segment.colour is None else {"display_color": highdicom.color.CIELabColor.from_string(segment.colour)}
        ),
    )


@contextmanager
def _hushed() -> Iterator[None]:
    """Libraries talk about oddities of the source, which the user cannot change."""
    logger = logging.getLogger("highdicom")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
