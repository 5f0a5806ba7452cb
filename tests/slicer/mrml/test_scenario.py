"""A click in the scene, and what a user sees of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from VolSamLib import geometry
from worlds import MIDDLE, add_ball, ball_of, dice, load, mask_of, nifti, oblique, read_mask, volsam

import slicer


@pytest.fixture
def a_ball(scene):
    return add_ball()


def click(logic, voxel, positive=True) -> None:
    logic.click(geometry.to_world(logic.volume, voxel), positive)
    assert logic.wait()


def test_a_click_gives_the_segment_that_volsam_segment_gives(logic, said, a_ball, home, tmp_path):
    logic.choose(a_ball)
    click(logic, MIDDLE)
    assert not said.errors
    values = geometry.voxels_of(a_ball)
    image = nifti(tmp_path / "ball.nii", values, geometry.affine_of(a_ball))
    volsam(home, "segment", str(image), "-p", ",".join(map(str, MIDDLE)), "-o", str(tmp_path / "mask.nii"))
    expected = read_mask(tmp_path / "mask.nii")
    found = mask_of(logic)
    assert np.array_equal(found, expected)
    assert dice(found, ball_of(oblique())) > 0.7
    assert 0 < logic.quality[logic.segment] <= 1
    assert any("voxels, expected Dice" in text for text, _ in said.all)


def test_a_second_click_refines_and_undo_gives_back_exactly(logic, a_ball):
    logic.choose(a_ball)
    click(logic, MIDDLE)
    first = mask_of(logic)
    click(logic, (MIDDLE[0] + 7, MIDDLE[1], MIDDLE[2]))
    second = mask_of(logic)
    assert not np.array_equal(first, second)
    assert logic.undo()
    assert np.array_equal(mask_of(logic), first)
    assert len(logic.said.turns) == 1
    assert logic.redo()
    assert np.array_equal(mask_of(logic), second)
    assert logic.undo()
    assert logic.undo()
    assert not mask_of(logic).any()
    assert not logic.undo()


def test_what_is_said_after_an_undo_does_not_know_what_was_undone(logic, a_ball):
    logic.choose(a_ball)
    click(logic, MIDDLE)
    click(logic, (MIDDLE[0] + 7, MIDDLE[1], MIDDLE[2]))
    second = mask_of(logic)
    logic.undo()
    click(logic, (MIDDLE[0], MIDDLE[1] + 6, MIDDLE[2]))
    logic.undo()
    click(logic, (MIDDLE[0] + 7, MIDDLE[1], MIDDLE[2]))
    assert np.array_equal(mask_of(logic), second)


def test_any_point_can_be_taken_back(logic, a_ball):
    logic.choose(a_ball)
    click(logic, MIDDLE)
    only = mask_of(logic)
    click(logic, (MIDDLE[0], MIDDLE[1] + 6, MIDDLE[2]))
    both = mask_of(logic)
    logic.remove(1)
    assert logic.wait()
    assert np.array_equal(mask_of(logic), only)
    logic.undo()
    assert np.array_equal(mask_of(logic), both)
    logic.remove(0)
    assert logic.wait()
    logic.remove(0)
    assert not mask_of(logic).any()


def test_a_box_says_where_the_object_is(logic, a_ball):
    logic.choose(a_ball)
    roi = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsROINode")
    roi.SetCenterWorld(geometry.to_world(a_ball, MIDDLE))
    roi.SetSize(26, 26, 26)
    logic.box(roi)
    assert logic.wait()
    assert dice(mask_of(logic), ball_of(oblique())) > 0.7
    logic.box(roi)
    assert logic.wait()
    assert len(logic.said.turns) == 1


def test_nine_bands_a_map_and_the_next_click(logic, said, a_ball):
    logic.choose(a_ball)
    click(logic, MIDDLE)
    mask = mask_of(logic)
    logic.ask_doubt()
    assert logic.wait()
    assert not said.errors
    name = logic.segments.name(logic.segment)
    bands = slicer.util.getNode(f"{name} probability")
    ids = list(bands.GetSegmentation().GetSegmentIDs())
    assert [bands.GetSegmentation().GetSegment(one).GetName() for one in ids] == [
        f"{band / 10:.1f} to {(band + 1) / 10:.1f}" for band in range(1, 10)
    ]
    parts = [slicer.util.arrayFromSegmentBinaryLabelmap(bands, one, a_ball).transpose(2, 1, 0) > 0 for one in ids]
    assert np.sum(parts, axis=0).max() == 1
    assert (np.any(parts[5:], axis=0) & mask).sum() > 0.8 * mask.sum()
    spread = slicer.util.getNode(f"{name} uncertainty")
    assert slicer.util.arrayFromVolume(spread).transpose(2, 1, 0).shape == mask.shape
    assert 0 < slicer.util.arrayFromVolume(spread).max() < 0.6
    assert np.allclose(geometry.affine_of(spread), geometry.affine_of(a_ball))
    assert geometry.is_inside(a_ball, geometry.to_voxel(a_ball, logic.next_click()))
    assert np.array_equal(mask_of(logic), mask)
    logic.ask_doubt()
    assert logic.wait()
    assert len(slicer.util.getNodesByClass("vtkMRMLSegmentationNode")) == 2


@pytest.mark.data
def test_a_left_atrium_is_found_as_volsam_segment_finds_it(logic, said, shared_data, home, tmp_path):
    image = min((shared_data / "left_atrium" / "imagesTr").glob("*.nii.gz"))
    label = shared_data / "left_atrium" / "labelsTr" / image.name.replace("_0000.", ".")
    volume = load(image)
    truth = geometry.voxels_of(load(label)) > 0
    places = np.argwhere(truth)
    middle = places[np.linalg.norm(places - places.mean(axis=0), axis=1).argmin()]
    logic.choose(volume)
    click(logic, middle)
    assert not said.errors
    volsam(home, "segment", str(image), "-p", ",".join(map(str, middle)), "-o", str(tmp_path / "mask.nii"))
    found = mask_of(logic)
    assert np.array_equal(found, read_mask(tmp_path / "mask.nii"))
    first = dice(found, truth)
    missed = np.argwhere(truth & ~found)
    click(logic, missed[np.linalg.norm(missed - missed.mean(axis=0), axis=1).argmin()])
    assert dice(mask_of(logic), truth) > first


@pytest.fixture(scope="session")
def shared_data() -> Path:
    import os

    beside = Path(__file__).resolve().parents[4] / "shared" / "data"
    folder = Path(os.environ.get("VOLSAM_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"no real volumes at {folder}: set VOLSAM_DATA to their folder")
    return folder
