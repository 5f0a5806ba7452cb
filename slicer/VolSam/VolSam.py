"""Segment volumes from clicks in 3D Slicer, with the models of a volsam server."""

from __future__ import annotations

import vtk
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)
from slicer.util import VTKObservationMixin
from VolSamLib.logic import Annotator
from VolSamLib.marks import BOX, Marks
from VolSamLib.widget import Panel

import slicer

POLL = 10  # milliseconds


class VolSam(ScriptedLoadableModule):
    """What Slicer shows of the module in its menus."""

    def __init__(self, parent) -> None:
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = "VolSam"
        self.parent.categories = ["Segmentation"]
        self.parent.dependencies = ["Segmentations", "Markups", "Volumes"]
        self.parent.contributors = ["The volsam authors"]
        self.parent.helpText = (
            "Point at something in a volume, and a segment of it appears; correct it with more points. A volsam server "
            "answers, on this computer or another one. "
            '<a href="https://github.com/volsam/volsam/blob/main/docs/how-to/slicer.md">How to use it</a>'
        )
        self.parent.acknowledgementText = (
            "Research software, not a medical device: look at every mask before you use it."
        )


class VolSamLogic(Annotator, ScriptedLoadableModuleLogic):
    """The conversation, with what Slicer wants of a logic."""

    def __init__(self, tell=None) -> None:
        ScriptedLoadableModuleLogic.__init__(self)
        Annotator.__init__(self, tell)


class VolSamWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    """Ties the panel, the points in the scene and the logic together, and calls `poll` from a timer."""

    def __init__(self, parent=None) -> None:
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)

    def setup(self) -> None:
        """Build the panel."""
        ScriptedLoadableModuleWidget.setup(self)
        self.logic = VolSamLogic()
        self.marks = Marks(self.logic)
        self.panel = Panel(self.layout, self.logic, self.marks)
        self.logic.tell = self.panel.tell
        self.logic.changed = self.refresh
        self.panel.start_timer(POLL)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.StartCloseEvent, self.on_scene_closes)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.EndCloseEvent, self.on_scene_closed)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.NodeAboutToBeRemovedEvent, self.on_node_goes)
        self.marks.watch()

    def cleanup(self) -> None:
        """Called when the module goes, with Slicer or before a reload."""
        self.removeObservers()
        self.marks.close()
        self.panel.close()
        self.logic.changed = lambda: None
        self.logic.close()

    def enter(self) -> None:
        """Called when the module is shown."""
        self.marks.watch()
        self.panel.enter()

    def exit(self) -> None:
        """Called when another module is shown: points are placed no longer."""
        self.panel.leave()

    def refresh(self) -> None:
        """Show what is."""
        self.marks.show()
        self.panel.refresh()

    def on_scene_closes(self, caller, event) -> None:
        """Nothing of the scene may be touched while it closes."""
        awaited = self.logic.is_busy
        self.marks.stop_placing()
        self.logic.leave()
        if awaited:
            self.panel.tell("The scene was closed while an answer was awaited, so the answer was left out.", True)

    def on_scene_closed(self, caller, event) -> None:
        """An empty scene has points to place again."""
        if self.parent.isEntered:
            self.marks.watch()
        self.panel.refresh()

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def on_node_goes(self, caller, event, node) -> None:
        """The volume or the segmentation that is worked on is removed."""
        if slicer.mrmlScene.IsClosing() or self.logic.volume is None:
            return
        if node is self.logic.volume or node is self.logic.segments.node:
            awaited = self.logic.is_busy
            self.logic.leave()
            more = " while an answer was awaited" if awaited else ""
            self.panel.tell(f"{node.GetName()} was removed{more}: choose a volume.", awaited)


class VolSamTest(ScriptedLoadableModuleTest):
    """Runs inside of Slicer, against a server at the address that the module uses."""

    def setUp(self) -> None:
        """An empty scene."""
        slicer.mrmlScene.Clear(0)

    def runTest(self) -> None:
        """All of it."""
        self.setUp()
        self.test_a_click_makes_a_segment()

    def test_a_click_makes_a_segment(self) -> None:
        """A bright ball is found, and taken back."""
        import numpy as np

        places = np.stack(np.indices((48, 48, 48)), axis=-1)
        ball = np.linalg.norm(places - 24, axis=-1) < 10
        values = (40 + 100 * ball + np.random.default_rng(0).normal(0, 10, ball.shape)).astype(np.int16)
        volume = slicer.util.addVolumeFromArray(values, np.diag([2.0, 2.0, 2.0, 1.0]), "ball")
        said = []
        logic = VolSamLogic(lambda text, is_error: said.append((text, is_error)))
        logic.choose(volume)
        logic.click((48.0, 48.0, 48.0))
        assert logic.wait(120)
        assert not any(is_error for _, is_error in said), said
        found = slicer.util.arrayFromSegmentBinaryLabelmap(logic.segments.node, logic.segment, volume) > 0
        assert 2 * (found & ball).sum() / (found.sum() + ball.sum()) > 0.7
        logic.undo()
        assert logic.segments.part(logic.segment).voxels == 0
        logic.close()


__all__ = ["BOX", "VolSam", "VolSamLogic", "VolSamTest", "VolSamWidget"]
