"""Several segments: masking, overwriting, locks, hand-made voxels, and scenes that are saved and opened again."""

from __future__ import annotations

import numpy as np
import pytest
from VolSamLib import asking, connection, geometry
from VolSamLib.geometry import Refused
from VolSamLib.prompts import Part
from worlds import MIDDLE, add_ball, mask_of

import slicer


@pytest.fixture
def at_work(logic):
    """One click was answered."""
    logic.choose(add_ball())
    click(logic)
    return logic


def click(logic, by=(0, 0, 0), positive=True) -> None:
    logic.click(geometry.to_world(logic.volume, np.add(MIDDLE, by)), positive)
    assert logic.wait()


def masking(logic):
    """The settings of the module Segment Editor, working on the same segmentation."""
    node = slicer.vtkMRMLSegmentEditorNode()
    node.SetSingletonTag("SegmentEditor")
    node = slicer.mrmlScene.AddNode(node)
    node.SetAndObserveSegmentationNode(logic.segments.node)
    node.SetOverwriteMode(node.OverwriteNone)
    return node


def test_segments_may_overlap_unless_the_segment_editor_says_otherwise(at_work, said):
    first, mask = at_work.segment, mask_of(at_work)
    at_work.add_segment("second")
    click(at_work)
    assert np.array_equal(mask_of(at_work, first), mask)
    assert (mask_of(at_work) & mask).any()
    at_work.undo()
    masking(at_work).SetOverwriteMode(slicer.vtkMRMLSegmentEditorNode.OverwriteAllSegments)
    click(at_work)
    second = mask_of(at_work)
    assert np.array_equal(mask_of(at_work, first), mask & ~second)
    at_work.undo()
    assert np.array_equal(mask_of(at_work, first), mask)
    at_work.redo()
    assert np.array_equal(mask_of(at_work, first), mask & ~second)
    assert not said.errors


def test_masking_by_intensity_is_honoured(at_work):
    mask = mask_of(at_work)
    node = masking(at_work)
    node.SourceVolumeIntensityMaskOn()
    node.SetSourceVolumeIntensityMaskRange(100, 2000)
    at_work.add_segment()
    click(at_work)
    values = geometry.voxels_of(at_work.volume)
    assert np.array_equal(mask_of(at_work), mask & (values >= 100))


def test_masking_by_another_segment_is_honoured(at_work):
    mask = mask_of(at_work)
    half = np.zeros_like(mask)
    half[: MIDDLE[0]] = True
    fence = at_work.segments.add("fence")
    at_work.segments.restore({fence: Part.around(half)})
    node = masking(at_work)
    node.SetMaskMode(slicer.vtkMRMLSegmentationNode.EditAllowedInsideSingleSegment)
    node.SetMaskSegmentID(fence)
    at_work.add_segment()
    click(at_work)
    assert np.array_equal(mask_of(at_work), mask & half)


def test_a_locked_segment_keeps_its_voxels_and_refuses_everything(at_work):
    first, mask = at_work.segment, mask_of(at_work)
    at_work.segments.lock(first, True)
    masking(at_work).SetOverwriteMode(slicer.vtkMRMLSegmentEditorNode.OverwriteAllSegments)
    for act in (
        lambda: click(at_work),
        at_work.again,
        lambda: at_work.remove(0),
        lambda: at_work.remove_segment(first),
    ):
        with pytest.raises(Refused, match="locked: unlock it"):
            act()
    at_work.add_segment("second")
    click(at_work, (9, 0, 0))
    assert np.array_equal(mask_of(at_work, first), mask)
    assert not (mask_of(at_work) & mask).any()
    at_work.select(first)
    at_work.segments.lock(first, False)
    click(at_work, (7, 0, 0))
    assert len(at_work.said.turns) == 2


def test_voxels_made_by_hand_are_what_the_model_starts_from(at_work):
    mask = mask_of(at_work)
    drawn = mask.copy()
    drawn[MIDDLE[0] :] = False
    at_work.segments.restore({at_work.segment: Part.around(drawn)})
    click(at_work, (-4, 0, 0))
    assert [type(prompt).__name__ for prompt in at_work.said.turns[-1]] == ["Start", "Point"]
    assert np.array_equal(mask_of(at_work), drawn), "the click agrees with what was drawn"
    click(at_work, (4, 0, 0))
    more = mask_of(at_work)
    assert more[tuple(np.add(MIDDLE, (4, 0, 0)))]
    assert not (drawn & ~more).any()
    at_work.undo()
    at_work.undo()
    assert np.array_equal(mask_of(at_work), drawn)
    at_work.undo()
    assert not mask_of(at_work).any()


def test_a_segment_that_was_emptied_by_hand_begins_anew(at_work):
    at_work.segments.restore({at_work.segment: Part()})
    click(at_work)
    assert len(at_work.said.turns) == 1


def test_each_segment_has_prompts_of_its_own(at_work):
    first = at_work.segment
    at_work.add_segment("second")
    assert not at_work.said.turns
    click(at_work, (-5, 0, 0))
    click(at_work, (5, 0, 0), positive=False)
    at_work.select(first)
    assert len(at_work.said.turns) == 1
    at_work.remove_segment(at_work.segments.ids[1])
    assert at_work.segment == first
    with pytest.raises(Refused, match="not there any more"):
        at_work.select("gone")


def test_a_scene_that_was_saved_is_gone_on_with(at_work, tmp_path):
    click(at_work, (7, 0, 0))
    mask, said = mask_of(at_work), at_work.said
    segmentation = at_work.segments.node
    storage = slicer.vtkMRMLSegmentationStorageNode()
    storage.SetFileName(str(tmp_path / "saved.seg.nrrd"))
    assert storage.WriteData(segmentation)
    at_work.leave()
    slicer.mrmlScene.RemoveNode(segmentation)
    read = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "read")
    assert storage.ReadData(read)
    volume = next(iter(slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")))
    at_work.choose(volume, read)
    assert at_work.said == said
    assert np.array_equal(mask_of(at_work), mask)
    click(at_work, (0, 6, 0))
    assert len(at_work.said.turns) == 3
    at_work.undo()
    assert np.array_equal(mask_of(at_work), mask)


def test_clicks_are_answered_in_their_order_and_the_last_one_can_be_taken_back_before_that(logic):
    logic.choose(add_ball())
    for by in ((0, 0, 0), (7, 0, 0)):
        logic.click(geometry.to_world(logic.volume, np.add(MIDDLE, by)))
    assert logic.can_undo
    assert not logic.can_redo
    assert logic.undo()
    assert len(logic.said.turns) == 1
    assert logic.wait()
    once = mask_of(logic)
    assert once.any()
    logic.undo()
    click(logic)
    assert np.array_equal(mask_of(logic), once)


def test_a_server_is_told_the_name_in_slicers_settings(logic, monkeypatch):
    class Person:
        name = ""

        def GetName(self):
            return self.name

    class Application:
        def __getattr__(self, name):
            return getattr(before, name)

        def GetUserInformation(self):
            return Person()

    before = slicer.app.applicationLogic()
    monkeypatch.setattr(slicer.app, "applicationLogic", Application)
    assert asking.annotator() == "3D Slicer"
    monkeypatch.setattr(Person, "name", "Ana")
    logic.choose(add_ball())
    sent = []
    monkeypatch.setattr(connection.Server, "send", lambda *what, **more: sent.append(more) or 1 / 0)
    logic.click(geometry.to_world(logic.volume, MIDDLE), True)
    logic.wait(20)
    assert [more["annotator"] for more in sent[:1]] == ["Ana"]
