"""Oblique, flipped, anisotropic, transformed and cropped volumes: the same mask, in the same place."""

from __future__ import annotations

import numpy as np
import pytest
import vtk
from VolSamLib import geometry
from VolSamLib.geometry import Refused
from worlds import MIDDLE, SHAPE, add_ball, ball_of, dice, mask_of, oblique

import slicer


def transformed(affine: np.ndarray, node) -> None:
    parent = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    parent.SetMatrixTransformToParent(geometry.matrix_of(affine))
    node.SetAndObserveTransformNodeID(parent.GetID())


def a_move() -> np.ndarray:
    turn, angle = np.eye(4), np.radians(25)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    turn[:3, 3] = (40, -30, 12)
    return turn


def world_places(volume, mask: np.ndarray) -> np.ndarray:
    """The middle of a mask in the world, mm."""
    return geometry.to_world(volume, np.argwhere(mask).mean(axis=0))


def click(logic, world) -> np.ndarray:
    logic.click(world)
    assert logic.wait()
    return mask_of(logic)


def test_a_parent_transform_moves_the_mask_with_the_volume(logic, said):
    still, moved = add_ball("still"), add_ball("moved")
    transformed(a_move(), moved)
    logic.choose(still)
    place = geometry.to_world(still, MIDDLE)
    expected = click(logic, place)
    segments = logic.segments.node
    logic.choose(moved)
    found = click(logic, (a_move() @ [*place, 1])[:3])
    assert not said.errors
    assert np.array_equal(found, expected)
    middle = (a_move() @ [*world_places(still, expected), 1])[:3]
    assert np.allclose(world_places(moved, found), middle, atol=1e-3)
    bounds = [0.0] * 6, [0.0] * 6
    segments.GetRASBounds(bounds[0])
    logic.segments.node.GetRASBounds(bounds[1])
    assert not np.allclose(*bounds)


def test_a_segmentation_outside_of_the_transform_shows_the_mask_where_the_volume_is(logic):
    volume = add_ball()
    transformed(a_move(), volume)
    segmentation = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    logic.choose(volume, segmentation)
    found = click(logic, geometry.to_world(volume, MIDDLE))
    assert dice(found, ball_of(oblique())) > 0.7
    part = logic.segments.part(logic.segment)
    assert part.voxels == found.sum()


def test_a_bent_transform_is_followed_and_two_different_ones_are_refused(logic):
    volume = add_ball()
    spline = vtk.vtkThinPlateSplineTransform()
    source, target = vtk.vtkPoints(), vtk.vtkPoints()
    for corner in np.indices((2, 2, 2)).reshape(3, -1).T * 100.0 - 50:
        source.InsertNextPoint(corner)
        target.InsertNextPoint(corner * 1.05 + (3, 0, -2))
    spline.SetSourceLandmarks(source)
    spline.SetTargetLandmarks(target)
    spline.SetBasisToR()
    parent = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTransformNode")
    parent.SetAndObserveTransformToParent(spline)
    volume.SetAndObserveTransformNodeID(parent.GetID())
    logic.choose(volume)
    place = geometry.to_world(volume, MIDDLE)
    assert np.allclose(geometry.to_voxel(volume, place), MIDDLE, atol=0.05)
    assert dice(click(logic, place), ball_of(oblique())) > 0.7
    elsewhere = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    with pytest.raises(Refused, match="different transforms"):
        logic.choose(volume, elsewhere)


@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, 1), (1, -1, -1), (-1, -1, 1)])
def test_axes_that_run_the_other_way_do_no_harm(logic, signs):
    affine = np.eye(4)
    affine[:3, :3] = np.diag(np.multiply(signs, (1.0, 0.8, 3.0)))[:, [1, 2, 0]]
    volume = add_ball(affine=affine)
    logic.choose(volume)
    assert dice(click(logic, geometry.to_world(volume, MIDDLE)), ball_of(affine)) > 0.6


def test_a_cropped_volume_has_voxels_of_its_own(logic):
    volume = add_ball()
    low = np.array((5, 4, 3))
    affine = geometry.affine_of(volume)
    affine[:3, 3] += affine[:3, :3] @ low
    values = geometry.voxels_of(volume)[5:44, 4:40, 3:27]
    cropped = slicer.util.addVolumeFromArray(values.transpose(2, 1, 0).copy(), affine, "cropped")
    logic.choose(cropped)
    found = click(logic, geometry.to_world(volume, MIDDLE))
    assert dice(found, ball_of(oblique())[5:44, 4:40, 3:27]) > 0.7


def test_a_segmentation_on_other_voxels_takes_the_mask_too(logic):
    other = slicer.util.addVolumeFromArray(np.zeros((20, 20, 20), np.int16), np.diag([3.0, 3, 3, 1]), "other")
    segmentation = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    segmentation.SetReferenceImageGeometryParameterFromVolumeNode(other)
    segmentation.GetSegmentation().AddEmptySegment("", "there already")
    volume = add_ball(affine=np.diag([1.0, 1.0, 1.0, 1.0]))
    logic.choose(volume, segmentation)
    found = click(logic, geometry.to_world(volume, MIDDLE))
    assert dice(found, ball_of(np.eye(4))) > 0.6


@pytest.mark.parametrize(
    ("kind", "components", "words"),
    [
        ("vtkMRMLVectorVolumeNode", 3, "3 values in each voxel"),
        ("vtkMRMLScalarVolumeNode", 4, "4 values in each voxel"),
        ("vtkMRMLLabelMapVolumeNode", 1, "is a label map"),
        ("vtkMRMLScalarVolumeNode", 0, "has no voxels"),
    ],
)
def test_other_kinds_of_volumes_are_refused_politely(logic, kind, components, words):
    volume = slicer.mrmlScene.AddNewNodeByClass(kind, "odd")
    if components:
        image = vtk.vtkImageData()
        image.SetDimensions(4, 4, 4)
        image.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, components)
        volume.SetAndObserveImageData(image)
    with pytest.raises(Refused, match=words):
        logic.choose(volume)


def test_a_point_outside_is_refused_where_it_was_placed(logic):
    volume = add_ball()
    logic.choose(volume)
    with pytest.raises(Refused, match="outside ball"):
        logic.click(geometry.to_world(volume, np.add(SHAPE, 3)))
    roi = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsROINode")
    roi.SetCenterWorld(geometry.to_world(volume, np.add(SHAPE, 100)))
    roi.SetSize(5, 5, 5)
    with pytest.raises(Refused, match="box lies outside"):
        logic.box(roi)


@pytest.mark.parametrize(("name", "plane"), [("Axial", "axial"), ("Sagittal", "sagittal"), ("Coronal", "coronal")])
def test_the_plane_that_is_clicked_is_known(scene, name, plane):
    volume = add_ball()
    view = scene.AddNewNodeByClass("vtkMRMLSliceNode")
    view.SetOrientation(name)
    assert geometry.plane_of(volume, view) == plane
    transformed(a_move(), volume)
    view.GetSliceToRAS().DeepCopy(vtk.vtkMatrix4x4())
    assert geometry.plane_of(volume, view) == "axial"


@pytest.mark.parametrize("plane", geometry.PLANES)
def test_a_frame_turns_the_wanted_plane_across_its_third_axis(plane):
    affine = oblique()[:, [2, 0, 1, 3]]
    frame = geometry.frame_for(affine, plane)
    assert np.isclose(abs(np.linalg.det(frame[:3, :3])), 1)
    across = int(np.abs(frame[2, :3]).argmax())
    assert geometry.PLANES[geometry.anatomical_axes(affine)[across]] == plane
