"""What the model is unsure of, in the scene: nine bands as segments, and a map as a volume."""

from __future__ import annotations

from typing import Any

import numpy as np

import slicer
from VolSamLib import geometry
from VolSamLib.connection import Doubt
from VolSamLib.prompts import Part
from VolSamLib.segments import Segments

BANDS = 9
# From doubtful to sure.
FIRST, LAST = np.array([0.27, 0.0, 0.33]), np.array([0.99, 0.91, 0.14])


def band_name(band: int) -> str:
    """1 is a probability above 0.1 up to 0.2, 9 one above 0.9."""
    return f"{band / 10:.1f} to {(band + 1) / 10:.1f}"


def show_bands(doubt: Doubt, segments: Segments, segment: str) -> Any:
    """A segmentation with a segment for each band, beside that of the object; an older one of it is replaced."""
    node = _node("vtkMRMLSegmentationNode", f"{segments.name(segment)} probability", segments.node)
    node.CreateDefaultDisplayNodes()
    node.GetSegmentation().RemoveAllSegments()
    node.SetReferenceImageGeometryParameterFromVolumeNode(segments.volume)
    shown = Segments(node, segments.volume)
    parts = {}
    for band in range(1, BANDS + 1):
        colour = (FIRST + (LAST - FIRST) * (band - 1) / (BANDS - 1)).tolist()
        name = band_name(band)
        node.GetSegmentation().AddEmptySegment(f"band_{band}", name, colour)
        parts[f"band_{band}"] = Part.around(doubt.bands == band, doubt.low)
    shown.restore(parts)
    node.GetDisplayNode().SetOpacity2DFill(0.5)
    return node


def show_map(doubt: Doubt, segments: Segments, segment: str) -> Any:
    """A volume of the standard deviation of the probability, on the voxels of the object's volume."""
    volume = segments.volume
    node = _node("vtkMRMLScalarVolumeNode", f"{segments.name(segment)} uncertainty", volume)
    slicer.util.updateVolumeFromArray(node, np.ascontiguousarray(doubt.spread.transpose(2, 1, 0)))
    node.SetIJKToRASMatrix(geometry.matrix_of(geometry.affine_of(volume)))
    node.CreateDefaultDisplayNodes()
    node.GetDisplayNode().SetAndObserveColorNodeID("vtkMRMLColorTableNodeFileViridis.txt")
    return node


def _node(kind: str, name: str, beside: Any) -> Any:
    """The node of that name, or a new one, under the same transform as another."""
    found = slicer.mrmlScene.GetNodesByClassByName(kind, name)
    found.UnRegister(None)
    node = found.GetItemAsObject(0) if found.GetNumberOfItems() else slicer.mrmlScene.AddNewNodeByClass(kind, name)
    parent = beside.GetParentTransformNode()
    node.SetAndObserveTransformNodeID(parent.GetID() if parent else None)
    return node


def jump_to(world: Any) -> None:
    """Have every slice view show a place."""
    slicer.vtkMRMLSliceNode.JumpAllSlices(
        slicer.mrmlScene, *(float(value) for value in world), slicer.vtkMRMLSliceNode.CenteredJumpSlice
    )
