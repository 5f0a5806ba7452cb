"""Where voxels are. Prompts are kept in voxels of the volume; everything else follows from the scene as it is now.

Three frames: voxels (i, j, k); the volume's own frame, in mm RAS+, which the server is told; and the world, which is
another one where the volume has a parent transform. Whatever is done to the parents, the server sees the same volume.
"""

from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np
import vtk
from numpy.typing import ArrayLike, NDArray

import slicer

Affine = NDArray[np.float64]
PLANES = ("sagittal", "coronal", "axial")
"""By the axis, R, A or S, that runs across them."""
# A model of slices looks across the third axis of its frame. These turn RAS so that the wanted plane lies there, with
# its rows and columns the way round that the plane is shown to people.
TURNS: dict[str, Affine] = {
    "axial": np.eye(3),
    "coronal": np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]]),
    "sagittal": np.array([[0.0, 1, 0], [0, 0, 1], [-1, 0, 0]]),
}


class Refused(Exception):
    """Something that cannot be done, in one sentence for the user."""


def require_usable(volume: Any) -> None:
    """Refuse what is not an image of one value per voxel."""
    if volume is None:
        raise Refused("No volume is chosen: load one and choose it under Volume.")
    name = volume.GetName()
    if volume.IsA("vtkMRMLLabelMapVolumeNode"):
        raise Refused(f"{name} is a label map, not an image: choose the image that it belongs to.")
    image = volume.GetImageData()
    if image is None or image.GetNumberOfPoints() == 0:
        raise Refused(f"{name} has no voxels: load it again, or choose another volume.")
    if image.GetNumberOfScalarComponents() != 1:
        raise Refused(
            f"{name} has {image.GetNumberOfScalarComponents()} values in each voxel, a colour or vector volume: make a "
            "grey one from it first, with the module Vector to Scalar Volume."
        )


def voxels_of(volume: Any) -> NDArray[Any]:
    """The values (i, j, k), not copied."""
    return slicer.util.arrayFromVolume(volume).transpose(2, 1, 0)


def affine_of(volume: Any) -> Affine:
    """(4, 4): voxel indices from 0 to mm RAS+ in the volume's own frame."""
    matrix = vtk.vtkMatrix4x4()
    volume.GetIJKToRASMatrix(matrix)
    affine = _array(matrix)
    first = np.array(volume.GetImageData().GetExtent()[::2], dtype=float)
    affine[:3, 3] += affine[:3, :3] @ first
    return affine


def to_voxel(volume: Any, world: ArrayLike) -> NDArray[np.float64]:
    """World mm to voxel indices, through all parent transforms."""
    local = [0.0, 0.0, 0.0]
    volume.TransformPointFromWorld([float(value) for value in np.asarray(world)], local)
    return (np.linalg.inv(affine_of(volume)) @ [*local, 1.0])[:3]


def to_world(volume: Any, voxel: ArrayLike) -> NDArray[np.float64]:
    """Voxel indices to world mm, through all parent transforms."""
    world = [0.0, 0.0, 0.0]
    volume.TransformPointToWorld((affine_of(volume) @ [*np.asarray(voxel, float), 1.0])[:3].tolist(), world)
    return np.array(world)


def is_inside(volume: Any, voxel: ArrayLike) -> bool:
    """Whether a place lies in one of the volume's voxels."""
    shape = np.array(volume.GetImageData().GetDimensions())
    return bool(np.all((np.asarray(voxel) >= -0.5) & (np.asarray(voxel) <= shape - 0.5)))


def box_of(volume: Any, roi: Any) -> tuple[list[float], list[float]]:
    """The voxels in a markups ROI, lowest and highest, cut to the volume.

    A box of voxels runs along the axes of the volume. One that was drawn along others is turned to the nearest: middle
    and edges stay as they are, where a box around its corners would be larger than what was meant.
    """
    to_scene = _array(roi.GetObjectToWorldMatrix())
    middle = to_voxel(volume, to_scene[:3, 3])
    ends = [to_voxel(volume, to_scene[:3, 3] + to_scene[:3, axis] * roi.GetSize()[axis] / 2) for axis in range(3)]
    affine = affine_of(volume)
    edges = affine[:3, :3] @ (np.array(ends) - middle).T
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    half = np.zeros(3)
    for axis, along in enumerate(_shared_out(np.linalg.inv(affine[:3, :3] / spacing) @ edges)):
        half[along] = np.linalg.norm(edges[:, axis]) / spacing[along]
    last = np.array(volume.GetImageData().GetDimensions()) - 1.0
    low, high = middle - half, middle + half
    if np.any(low > last + 0.5) or np.any(high < -0.5):
        raise Refused("The box lies outside the volume: move it over the object.")
    return np.clip(low, 0, last).tolist(), np.clip(high, 0, last).tolist()


def anatomical_axes(affine: Affine) -> tuple[int, ...]:
    """For each voxel axis the axis of RAS, 0 to 2, that it runs along, as nearly as three axes can share three."""
    return _shared_out(affine[:3, :3])


def _shared_out(columns: NDArray[np.float64]) -> tuple[int, ...]:
    """For each column the row in which it is largest, no row given twice."""
    share = np.abs(columns) / np.maximum(np.linalg.norm(columns, axis=0), 1e-12)
    return max(permutations(range(3)), key=lambda rows: sum(share[row, n] for n, row in enumerate(rows)))


def plane_of(volume: Any, slice_node: Any) -> str:
    """The plane of the volume, axial, coronal or sagittal, that a slice view shows, or comes nearest to."""
    matrix = _array(slice_node.GetSliceToRAS())
    across = to_voxel(volume, matrix[:3, 3] + matrix[:3, 2]) - to_voxel(volume, matrix[:3, 3])
    affine = affine_of(volume)
    distances = np.abs(across) * np.linalg.norm(affine[:3, :3], axis=0)
    return PLANES[anatomical_axes(affine)[int(distances.argmax())]]


def frame_for(affine: Affine, plane: str) -> Affine:
    """An affine in which a model of slices sees `plane`: cubes, turned so that it looks across the third axis.

    Such a model knows no millimetres; it takes the slices in which a scan was made, axial ones if voxels are cubes.
    """
    straight = np.zeros((3, 3))
    for axis, along in enumerate(anatomical_axes(affine)):
        straight[along, axis] = np.sign(affine[along, axis]) or 1.0
    frame = np.eye(4)
    frame[:3, :3] = TURNS[plane] @ straight
    return frame


def voxels_to_segmentation(volume: Any, segmentation: Any) -> Affine:
    """(4, 4): voxel indices of the volume to mm in the frame of the segmentation."""
    between = vtk.vtkMatrix4x4()
    source, target = volume.GetParentTransformNode(), segmentation.GetParentTransformNode()
    if not slicer.vtkMRMLTransformNode.GetMatrixTransformBetweenNodes(source, target, between) and source is not target:
        raise Refused(
            f"{volume.GetName()} and {segmentation.GetName()} have different transforms, one of them not linear: put "
            "the segmentation under the transform of the volume, or harden it."
        )
    return _array(between) @ affine_of(volume)


def matrix_of(affine: Affine) -> Any:
    """As VTK's."""
    matrix = vtk.vtkMatrix4x4()
    for row in range(4):
        for column in range(4):
            matrix.SetElement(row, column, float(affine[row, column]))
    return matrix


def _array(matrix: Any) -> Affine:
    return np.array([[matrix.GetElement(row, column) for column in range(4)] for row in range(4)])
