"""Segments on the voxels of a volume: read, written through the Segment Editor's logic, locked, put back."""

from __future__ import annotations

from typing import Any

import numpy as np
import vtk
from numpy.typing import NDArray
from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

import slicer
from VolSamLib import prompts
from VolSamLib.geometry import Refused, matrix_of, voxels_to_segmentation
from VolSamLib.prompts import Part, Said

EDITOR = "VolSam"
"""Singleton tag of the settings with which this module writes."""
CLOSE = 1e-4  # voxels
# Amber, blue, magenta, cyan, orange, violet: seen on grey, and not taken for points, which are green and red.
COLOURS = ((0.95, 0.75, 0.15), (0.2, 0.6, 1), (0.85, 0.35, 0.85), (0.1, 0.8, 0.8), (1, 0.5, 0.2), (0.6, 0.45, 1))


class Segments:
    """A segmentation beside the volume that it is drawn on."""

    def __init__(self, segmentation: Any, volume: Any) -> None:
        self.node = segmentation
        self.volume = volume
        segmentation.CreateDefaultDisplayNodes()
        if segmentation.GetSegmentation().GetNumberOfSegments() == 0:
            segmentation.SetReferenceImageGeometryParameterFromVolumeNode(volume)

    @property
    def ids(self) -> list[str]:
        """All segments, in their order."""
        return list(self.node.GetSegmentation().GetSegmentIDs())

    def has(self, segment: str) -> bool:
        """Whether there is such a segment (still)."""
        return self._segment(segment) is not None

    def name(self, segment: str) -> str:
        """What people call it."""
        return str(self._required(segment).GetName())

    def add(self, name: str = "") -> str:
        """A new, empty segment; returns its id."""
        colour = COLOURS[len(self.ids) % len(COLOURS)]
        return str(self.node.GetSegmentation().AddEmptySegment("", name, colour))

    # --- tags ----------------------------------------------------------------------------------------------------

    def said(self, segment: str) -> Said:
        """The prompts that are kept with a segment."""
        return prompts.read(self._tag(segment, prompts.TAG))

    def keep(self, segment: str, said: Said) -> None:
        """Keep prompts with a segment."""
        self._required(segment).SetTag(prompts.TAG, said.text())

    def is_locked(self, segment: str) -> bool:
        """Whether nothing here may change a segment."""
        return self._tag(segment, prompts.LOCK) == "1"

    def lock(self, segment: str, locked: bool) -> None:
        """Protect a segment, or open it again."""
        self._required(segment).SetTag(prompts.LOCK, "1" if locked else "0")

    # --- voxels --------------------------------------------------------------------------------------------------

    def part(self, segment: str) -> Part:
        """What a segment has, in voxels of the volume."""
        image = slicer.vtkOrientedImageData()
        self._required(segment)
        if not self.node.GetBinaryLabelmapRepresentation(segment, image) or image.GetNumberOfPoints() == 0:
            return Part()
        own = vtk.vtkMatrix4x4()
        image.GetImageToWorldMatrix(own)
        here = np.array([[own.GetElement(row, column) for column in range(4)] for row in range(4)])
        shift = np.linalg.inv(voxels_to_segmentation(self.volume, self.node)) @ here
        extent = image.GetExtent()
        offset = shift[:3, 3] + np.array(extent[::2])
        if np.abs(shift[:3, :3] - np.eye(3)).max() < CLOSE and np.abs(offset - np.round(offset)).max() < 0.05:
            values = vtk_to_numpy(image.GetPointData().GetScalars()).reshape(image.GetDimensions(), order="F")
            return self._inside(values > 0, np.round(offset).astype(int))
        whole = slicer.util.arrayFromSegmentBinaryLabelmap(self.node, segment, self.volume)
        return Part.around(whole.transpose(2, 1, 0) > 0)

    def parts_written_with(self, segment: str) -> dict[str, Part]:
        """What a segment has, and every other one that may lose voxels when it is written."""
        node = self._editor_node()
        alone = node.GetOverwriteMode() == node.OverwriteNone
        return {one: self.part(one) for one in ([segment] if alone else self.ids)}

    def write(self, segment: str, part: Part) -> None:
        """Make `part` the segment, as far as masking, overwriting and locks allow it."""
        for other in self.ids:
            if other != segment and self.is_locked(other):
                part = part.without(self.part(other))
        self._modify(self._editor_node(), segment, part, bypass=False)

    def restore(self, parts: dict[str, Part]) -> None:
        """Put segments back as they were, whatever the masking says."""
        node = self._editor_node()
        node.SetOverwriteMode(node.OverwriteNone)
        for segment, part in parts.items():
            if self.has(segment):
                self._modify(node, segment, part, bypass=True)

    def _modify(self, node: Any, segment: str, part: Part, *, bypass: bool) -> None:
        self._required(segment)
        editor = _editor_logic()
        editor.SetMRMLScene(slicer.mrmlScene)
        editor.SetSegmentEditorNode(node)
        editor.SetSegmentationHistory(None)  # undo is our own, it knows of prompts
        image = self._image(part)
        editor.ModifySegmentByLabelmap(self.node, segment, image, editor.ModificationModeSet, False, bypass)
        editor.SetSegmentEditorNode(None)

    def _image(self, part: Part) -> Any:
        mask = part.mask if part.mask.size else np.zeros((1, 1, 1), bool)
        image = slicer.vtkOrientedImageData()
        i, j, k = part.low
        a, b, c = np.add(part.low, mask.shape) - 1
        image.SetExtent(i, int(a), j, int(b), k, int(c))
        values = numpy_to_vtk(mask.ravel(order="F").astype(np.uint8), deep=True)
        image.GetPointData().SetScalars(values)
        image.SetImageToWorldMatrix(matrix_of(voxels_to_segmentation(self.volume, self.node)))
        return image

    def _inside(self, mask: NDArray[np.bool_], low: NDArray[np.int_]) -> Part:
        """Without voxels that lie outside of the volume."""
        shape = self.volume.GetImageData().GetDimensions()
        first = np.maximum(0, -low)
        last = np.minimum(mask.shape, np.array(shape) - low)
        if np.any(last <= first):
            return Part()
        return Part.around(mask[tuple(slice(a, b) for a, b in zip(first, last, strict=True))], (low + first).tolist())

    def _segment(self, segment: str) -> Any:
        return self.node.GetSegmentation().GetSegment(segment) if segment else None

    def _required(self, segment: str) -> Any:
        found = self._segment(segment)
        if found is None:
            raise Refused("No segment is chosen: press Add segment.")
        return found

    def _tag(self, segment: str, tag: str) -> str:
        value = vtk.reference("")
        return str(value) if self._required(segment).GetTag(tag, value) else ""

    def _editor_node(self) -> Any:
        """Settings of our own, with the masking of the module Segment Editor where that works on this segmentation."""
        own = slicer.mrmlScene.GetSingletonNode(EDITOR, "vtkMRMLSegmentEditorNode")
        if own is None:
            node = slicer.vtkMRMLSegmentEditorNode()
            node.SetSingletonTag(EDITOR)
            node.SetName(EDITOR)
            own = slicer.mrmlScene.AddNode(node)
        theirs = slicer.mrmlScene.GetSingletonNode("SegmentEditor", "vtkMRMLSegmentEditorNode")
        if theirs is not None and theirs.GetSegmentationNode() is self.node:
            own.SetOverwriteMode(theirs.GetOverwriteMode())
            own.SetMaskMode(theirs.GetMaskMode())
            own.SetMaskSegmentID(theirs.GetMaskSegmentID())
            own.SetSourceVolumeIntensityMask(theirs.GetSourceVolumeIntensityMask())
            own.SetSourceVolumeIntensityMaskRange(theirs.GetSourceVolumeIntensityMaskRange())
        else:
            own.SetOverwriteMode(own.OverwriteNone)
            own.SetMaskMode(slicer.vtkMRMLSegmentationNode.EditAllowedEverywhere)
            own.SetSourceVolumeIntensityMask(False)
        own.SetAndObserveSegmentationNode(self.node)
        own.SetAndObserveSourceVolumeNode(self.volume)
        return own


def _editor_logic() -> Any:
    if not hasattr(slicer, "vtkSlicerSegmentEditorLogic"):
        raise Refused("This Slicer is too old: VolSam needs one with vtkSlicerSegmentEditorLogic, install the newest.")
    return slicer.vtkSlicerSegmentEditorLogic()
