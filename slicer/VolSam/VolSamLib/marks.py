"""The points of the current segment in the scene: one markups node for what is in the object, one for what is not.

The nodes show what has been said, and are where it is said: a new point, a moved one and one that was taken away are
told to the logic, which may refuse. After every change the nodes show again what stands.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from slicer.util import VTKObservationMixin

import slicer
from VolSamLib import geometry
from VolSamLib.geometry import Refused
from VolSamLib.logic import Annotator

INCLUDE, EXCLUDE, BOX = "VolSam include", "VolSam exclude", "VolSam box"
POINTS, ROI = "vtkMRMLMarkupsFiducialNode", "vtkMRMLMarkupsROINode"
COLOURS = {INCLUDE: (0.2, 0.8, 0.2), EXCLUDE: (0.9, 0.2, 0.2), BOX: (0.2, 0.5, 1.0)}
NEAR = 1e-3  # mm: nearer than this, a point has not moved


class Marks(VTKObservationMixin):
    """Two lists of points, and a box."""

    def __init__(self, logic: Annotator) -> None:
        VTKObservationMixin.__init__(self)
        self._logic = logic
        self._shown: dict[str, dict[str, int]] = {INCLUDE: {}, EXCLUDE: {}}
        """For each list, control points by id, and the turn each belongs to."""
        self._is_showing = False

    def node(self, name: str) -> Any:
        """A list of points, or the box; made when it is first needed."""
        kind = ROI if name == BOX else POINTS
        for node in slicer.util.getNodesByClass(kind):
            if node.GetAttribute("VolSam") == name:
                return node
        node = slicer.mrmlScene.AddNewNodeByClass(kind, name)
        node.SetAttribute("VolSam", name)
        node.SetSaveWithScene(name == BOX)
        node.CreateDefaultDisplayNodes()
        node.GetDisplayNode().SetSelectedColor(COLOURS[name])
        node.GetDisplayNode().SetColor(COLOURS[name])
        node.GetDisplayNode().SetPointLabelsVisibility(False)
        return node

    def watch(self) -> None:
        """Hear of every point that is placed, moved or taken away, until `close`."""
        for name in (INCLUDE, EXCLUDE):
            node = self.node(name)
            for event in (node.PointPositionDefinedEvent, node.PointRemovedEvent, node.PointEndInteractionEvent):
                if not self.hasObserver(node, event, self._on_points):
                    self.addObserver(node, event, self._on_points)

    def close(self) -> None:
        """Hear of nothing any more."""
        self.removeObservers()

    def place(self, name: str) -> None:
        """Have the mouse place points, or the box."""
        self._logic.segments  # noqa: B018  refused where no volume is chosen
        application = slicer.app.applicationLogic()
        node = self.node(name)
        if name == BOX:
            node.RemoveAllControlPoints()
        selection = application.GetSelectionNode()
        selection.SetReferenceActivePlaceNodeClassName(ROI if name == BOX else POINTS)
        selection.SetActivePlaceNodeID(node.GetID())
        interaction = application.GetInteractionNode()
        interaction.SetPlaceModePersistence(0 if name == BOX else 1)
        interaction.SetCurrentInteractionMode(interaction.Place)

    def stop_placing(self) -> None:
        """Give the mouse back."""
        interaction = slicer.app.applicationLogic().GetInteractionNode()
        if interaction is not None:
            interaction.SetCurrentInteractionMode(interaction.ViewTransform)

    @property
    def placing(self) -> str:
        """What the mouse places now, INCLUDE, EXCLUDE or BOX; "" if nothing of this module."""
        application = slicer.app.applicationLogic()
        interaction, selection = application.GetInteractionNode(), application.GetSelectionNode()
        if interaction is None or interaction.GetCurrentInteractionMode() != interaction.Place:
            return ""
        node = slicer.mrmlScene.GetNodeByID(selection.GetActivePlaceNodeID() or "")
        return (node.GetAttribute("VolSam") or "") if node is not None else ""

    def read(self) -> None:
        """Tell the logic what was changed in the lists; then show what stands."""
        if self._is_showing:
            return
        try:
            for name, positive in ((INCLUDE, True), (EXCLUDE, False)):
                self._read(name, positive)
        except Refused as refusal:
            self._logic.tell(str(refusal), True)
        self.show()

    def show(self) -> None:
        """Show what has been said about the current segment."""
        self._is_showing = True
        try:
            volume = self._logic.volume
            points = self._logic.said.points() if volume is not None else []
            for name, positive in ((INCLUDE, True), (EXCLUDE, False)):
                own = [(turn, point) for turn, point in points if point.positive == positive]
                places = [geometry.to_world(volume, point.voxel) for _, point in own]
                self._show(self.node(name), name, places, [turn for turn, _ in own])
        finally:
            self._is_showing = False

    def _on_points(self, caller: Any, event: Any) -> None:
        self.read()

    def _read(self, name: str, positive: bool) -> None:
        node, known = self.node(name), self._shown[name]
        found = {
            node.GetNthControlPointID(n): np.array(node.GetNthControlPointPositionWorld(n))
            for n in range(node.GetNumberOfControlPoints())
            if node.GetNthControlPointPositionStatus(n) == node.PositionDefined
        }
        if any(turn >= len(self._logic.said.turns) for turn in known.values()):
            return  # what stands has changed since it was shown
        for point in sorted(set(known) - set(found), key=known.__getitem__, reverse=True):
            self._logic.remove(known[point])
        if set(known) - set(found):
            return
        for point, turn in known.items():
            stands = dict(self._logic.said.points())[turn]
            if np.linalg.norm(found[point] - geometry.to_world(self._logic.volume, stands.voxel)) > NEAR:
                self._logic.move(turn, found[point])
        for point in found:
            if point not in known:
                self._logic.click(found[point], positive, _slice_under_cursor())

    def _show(self, node: Any, name: str, places: list[Any], turns: list[int]) -> None:
        """Keep control points that stand where they should, so that one that is being dragged is not torn away."""
        status = [node.GetNthControlPointPositionStatus(n) for n in range(node.GetNumberOfControlPoints())]
        undefined = [n for n, one in enumerate(status) if one != node.PositionDefined]
        count = len(status) - len(undefined)
        while count > len(places):
            last = max(n for n, one in enumerate(status) if one == node.PositionDefined)
            node.RemoveNthControlPoint(last)
            del status[last]
            count -= 1
        defined = [n for n, one in enumerate(status) if one == node.PositionDefined]
        for n, place in zip(defined, places, strict=False):
            if np.linalg.norm(np.array(node.GetNthControlPointPositionWorld(n)) - place) > NEAR:
                node.SetNthControlPointPositionWorld(n, place.tolist())
        for place in places[len(defined) :]:
            defined.append(node.AddControlPointWorld(place.tolist()))
        self._shown[name] = {node.GetNthControlPointID(n): turn for n, turn in zip(defined, turns, strict=True)}


def _slice_under_cursor() -> Any:
    """The slice view in which the mouse is, or None: over a 3D view, or in a script."""
    crosshair = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLCrosshairNode")
    return crosshair.GetCursorPositionXYZ([0.0, 0.0, 0.0]) if crosshair is not None else None
