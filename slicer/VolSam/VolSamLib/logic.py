"""The conversation about a volume in the scene: points in, segments out.

Everything here runs in the main thread and returns at once; answers come with `poll`, see `asking`. A mask follows from
what was said about its segment, so nothing is lost with a server: points stay, segments stay, and `again` asks another.
"""

from __future__ import annotations

from typing import Any

import slicer
from VolSamLib import geometry
from VolSamLib.asking import Asker
from VolSamLib.geometry import Refused
from VolSamLib.history import Step
from VolSamLib.prompts import Corners, Part, Point, Prompt, Said, Start, as_voxel
from VolSamLib.segments import Segments


class Annotator(Asker):
    """What a user of the module does, without its window.

    Args:
        tell: gets every message for the user, one sentence, and whether it is an error.
    """

    # --- choices -------------------------------------------------------------------------------------------------

    def use_server(self, address: str, key: str = "") -> None:
        """Ask another server from now on."""
        self.address, self.key = address.strip(), key.strip()

    def use_model(self, name: str) -> None:
        """Ask another model from now on; segments stay as they are until they are asked about again."""
        self.model = name

    def choose(self, volume: Any, segmentation: Any = None) -> None:
        """Work on a volume, in a segmentation that is there or in a new one."""
        geometry.require_usable(volume)
        if segmentation is None:
            segmentation = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", f"{volume.GetName()} segments")
            parent = volume.GetParentTransformNode()
            segmentation.SetAndObserveTransformNodeID(parent.GetID() if parent else None)
        segments = Segments(segmentation, volume)
        geometry.voxels_to_segmentation(volume, segmentation)  # refused here rather than at the first answer
        if self._segments is not None and (segmentation is not self._segments.node or volume is not self.volume):
            self.leave()
        self._segments = segments
        self.select(segments.ids[0] if segments.ids else segments.add())

    def leave(self) -> None:
        """Work on nothing; the scene keeps what is there."""
        self._pending = {}
        self._segments, self._scan, self.segment = None, None, ""
        self._written, self.quality, self.doubt = {}, {}, None
        self._history.clear()
        self.changed()

    def prepare(self) -> None:
        """Send the volume ahead, so that the first click is answered sooner."""
        self._ask((), self.segment, Said(), Said())

    # --- segments ------------------------------------------------------------------------------------------------

    def add_segment(self, name: str = "") -> str:
        """Begin another object; returns its id."""
        self.select(self.segments.add(name))
        return self.segment

    def select(self, segment: str) -> None:
        """Talk about another segment from now on."""
        if not self.segments.has(segment):
            raise Refused("That segment is not there any more: choose another.")
        self.segment, self.doubt = segment, None
        self.changed()

    def remove_segment(self, segment: str) -> None:
        """Take a segment out of the scene, with what was said about it."""
        self._require_open(segment)
        self._pending = {n: one for n, one in self._pending.items() if one.segment != segment}
        self.segments.node.GetSegmentation().RemoveSegment(segment)
        self._history.clear()
        ids = self.segments.ids
        self.select(ids[-1] if ids else self.segments.add())

    @property
    def said(self) -> Said:
        """What has been said about the current segment."""
        return self.segments.said(self.segment) if self._segments is not None and self.segment else Said()

    # --- prompts -------------------------------------------------------------------------------------------------

    def click(self, world: Any, positive: bool = True, slice_node: Any = None) -> None:
        """Point at a place, mm in the world; `slice_node` is the view, for a model of slices. Asks for the mask."""
        volume = self._ready()
        voxel = geometry.to_voxel(volume, world)
        if not geometry.is_inside(volume, voxel):
            raise Refused(f"The point lies outside {volume.GetName()}: place it inside.")
        said = self._begun()
        if not positive and not said.turns and self._part().voxels == 0:
            raise Refused("There is nothing yet to exclude from: place a point in the object first.")
        if not said.turns and slice_node is not None:
            said = Said(said.turns, geometry.plane_of(volume, slice_node))
        self._say(said, Point(as_voxel(voxel), positive))

    def box(self, roi: Any) -> None:
        """Ask with a markups ROI around the object; it takes the place of an earlier box."""
        low, high = geometry.box_of(self._ready(), roi)
        said = self._begun()
        for number in range(len(said.turns) - 1, -1, -1):
            if any(isinstance(prompt, Corners) for prompt in said.turns[number]):
                said = said.without(number)
        self._say(said, Corners(as_voxel(low), as_voxel(high)))

    def remove(self, number: int) -> None:
        """Take back any one turn, by its number."""
        self._ready()
        self._change(self.said.without(number))

    def move(self, number: int, world: Any) -> None:
        """Put the point of a turn somewhere else."""
        volume = self._ready()
        voxel = geometry.to_voxel(volume, world)
        if not geometry.is_inside(volume, voxel):
            raise Refused(f"The point lies outside {volume.GetName()}: place it inside.")
        self._change(self.said.moved(number, as_voxel(voxel)))

    def again(self) -> None:
        """Ask once more about what has been said, for example after a failure or with another model."""
        self._ready()
        said = self.said
        if not said.turns:
            raise Refused("Nothing has been said about this segment: place a point in the object.")
        self._ask(said.turns, self.segment, said, said)

    def undo(self) -> bool:
        """Take the last step back: what awaits an answer, else the last change of a segment. False if there is none."""
        if said := [number for number, one in self._pending.items() if one.before != one.after]:
            dropped = self._pending.pop(max(said))
            if dropped.segments.has(dropped.segment):
                dropped.segments.keep(dropped.segment, dropped.before)
            self.changed()
            return True
        return self._stepped(self._history.back(), back=True)

    def redo(self) -> bool:
        """Take a step forward that was taken back."""
        return not self._pending and self._stepped(self._history.forward(), back=False)

    @property
    def can_undo(self) -> bool:
        """Whether `undo` would do something."""
        return bool(self._history.done) or any(one.before != one.after for one in self._pending.values())

    @property
    def can_redo(self) -> bool:
        """Whether `redo` would do something."""
        return bool(self._history.undone) and not self._pending

    # --- how sure ------------------------------------------------------------------------------------------------

    def ask_doubt(self) -> None:
        """Ask how sure the model is; `doubt`, the bands and the map come with the answer."""
        self._ready()
        said = self.said
        if not said.turns:
            raise Refused("Nothing has been said about this segment: place a point in the object.")
        self._ask(said.turns, self.segment, said, said, doubt=True)

    def next_click(self) -> Any:
        """Where a click would tell most, mm in the world; None if that was not asked, or the model is sure."""
        if self.doubt is None or self.doubt.next_click is None:
            return None
        return geometry.to_world(self.volume, self.doubt.next_click)

    def close(self) -> None:
        """Leave, and give the place on the server back."""
        self.leave()
        if self._worker is not None:
            self._worker.stop()
            self._worker.join(2.0)
            self._worker = None

    # --- inside --------------------------------------------------------------------------------------------------

    def _ready(self) -> Any:
        volume = self.segments.volume
        geometry.require_usable(volume)
        self._require_open(self.segment)
        return volume

    def _require_open(self, segment: str) -> None:
        if self.segments.is_locked(segment):
            raise Refused(f"{self.segments.name(segment)} is locked: unlock it, or choose another segment.")

    def _part(self) -> Part:
        return self.segments.part(self.segment)

    def _begun(self) -> Said:
        """What has been said; nothing, if the segment was emptied by hand since."""
        said = self.said
        return (
            said if not said.turns or self._pending or self._part().voxels or not self._has_been_written() else Said()
        )

    def _has_been_written(self) -> bool:
        written = self._written.get(self.segment)
        return written is not None and written.voxels > 0

    def _say(self, said: Said, prompt: Prompt) -> None:
        """One more turn; what was changed by hand meanwhile is what the model starts from."""
        part = self._part()
        by_hand = not self._pending and part.voxels > 0 and part != self._written.get(self.segment, Part())
        if by_hand and not (said.turns and self.segment not in self._written):
            self._change(said.and_then(Start(part.packed()), prompt))
        else:
            self._change(said.and_then(prompt))

    def _change(self, said: Said) -> None:
        before = self.said
        self.segments.keep(self.segment, said)
        if said.turns:
            self._ask(said.turns, self.segment, before, said)
            return
        self._write(self.segments, self.segment, (before, said), Part())
        self.quality[self.segment] = None
        self.changed()

    def _stepped(self, step: Step | None, *, back: bool) -> bool:
        if step is None:
            return False
        self.segments.restore(step.before if back else step.after)
        self._written.update(step.before if back else step.after)
        if self.segments.has(step.segment):
            self.segments.keep(step.segment, step.said[0] if back else step.said[1])
            self.quality[step.segment] = None
            self.select(step.segment)
        self.changed()
        return True
