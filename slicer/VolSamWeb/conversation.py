"""The module's logic and points behind the drawer; what VolSamWidget and Panel are in Slicer.

All of it is in `VolSamLib`: here it is only told what was pressed, and shown as plain values in the state of the page.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from trame_server.utils.asynchronous import create_task
from trame_slicer.app.logic import BaseLogic
from VolSamLib import server_process
from VolSamLib.connection import Errand, Found, look
from VolSamLib.geometry import Refused
from VolSamLib.logic import Annotator
from VolSamLib.marks import EXCLUDE, INCLUDE, Marks

import slicer

from .panel import Choice, Shown, VolSamPanel, VolSamState

POLL = 0.02  # seconds
FIRST = "Press Include, then click into the object in one of the slices."
HINTS = {
    INCLUDE: "Click into the object. The right mouse button ends it.",
    EXCLUDE: "Click on what does not belong to the object. The right mouse button ends it.",
}


class Conversation(BaseLogic[VolSamState]):
    """Ties the drawer, the points in the scene and the module's logic together.

    Args:
        server: trame's, not the one that is asked.
        slicer_app: the scene and its logics.
    """

    def __init__(self, server: Any, slicer_app: Any) -> None:
        super().__init__(server, slicer_app, VolSamState)
        self.logic = Annotator(self.tell)
        self.logic.changed = self._on_changed
        self.marks = Marks(self.logic)
        self._errands: list[Errand] = []
        self._process: server_process.Process | None = None
        self._awaits_address = False
        self._placing = ""
        self._observer = self.scene.AddObserver(slicer.vtkMRMLScene.StartCloseEvent, self._on_scene_closes)
        self._editor = slicer_app.segmentation_editor
        self._editor.segmentation_modified.connect(self.refresh)
        self._editor.active_segment_id_changed.connect(self._on_segment_in_editor)
        self.bind_changes(
            {
                self.name.placing: self._on_placing,
                self.name.segment: self._on_segment,
                self.name.model: self.logic.use_model,
                self.name.address: self._on_server,
                self.name.key: self._on_server,
            }
        )

    def set_ui(self, ui: VolSamPanel) -> None:
        """Hear of its buttons."""
        ui.test_clicked.connect(self.look)
        ui.add_clicked.connect(self._on_add)
        ui.undo_clicked.connect(self._on_undo)
        ui.redo_clicked.connect(self._on_redo)
        ui.again_clicked.connect(self._on_again)
        ui.cancel_clicked.connect(self.logic.cancel)
        ui.point_closed.connect(self._on_point_closed)
        ui.file = self._file

    def begin(self) -> None:
        """Poll from now on, as soon as the page can be served."""
        create_task(self._run())

    def close(self) -> None:
        """Give the place on the server back, and end a server that was started here."""
        self.scene.RemoveObserver(self._observer)
        self.marks.close()
        self.logic.close()
        if self._process is not None:
            self._process.stop()

    def tell(self, text: str, is_error: bool = False) -> None:
        """Show a sentence."""
        self.data.message, self.data.is_error = text, is_error

    # --- server --------------------------------------------------------------------------------------------------

    def use_server(self, address: str, key: str = "") -> None:
        """Ask another server from now on."""
        self.data.address, self.data.key = address, key
        self._on_server()

    def start_server(self, environment: Path) -> None:
        """Start one on this computer, with the volsam that is installed in an environment. Raises NotPossible."""
        self._process = server_process.Process(environment)
        self._awaits_address = True
        self.tell("Starting the server …")

    def look(self) -> None:
        """Ask the server what it is, and which models it has."""
        address, key = self.logic.address, self.logic.key

        def done(found: Found | None, error: str | None) -> None:
            if found is None:
                self.tell(str(error), True)
                return
            self.data.models = [Choice(f"{name}: {summary}", name) for name, summary in found.models.items()]
            if self.data.model not in found.models:
                self.data.model = next(iter(found.models))
            self.tell(
                FIRST if self.logic.volume is not None else f"{found.text} Open a volume: the first button above."
            )

        self._errands.append(Errand(lambda: look(address, key), done))

    def _on_server(self, *_: Any) -> None:
        self.logic.use_server(self.data.address, self.data.key)

    # --- volume and segments -------------------------------------------------------------------------------------

    def on_volume(self, volume: Any) -> None:
        """A volume was loaded: work on it, in the segmentation that the application has for it."""

        def act() -> None:
            self.marks.watch()
            self.logic.choose(volume, self._editor.active_segmentation_node)
            self.tell(FIRST)
            self.logic.prepare()

        self._guarded(act)

    def _on_scene_closes(self, *_: Any) -> None:
        self.marks.close()
        self.logic.leave()

    def _on_segment(self, segment: str, *_: Any) -> None:
        if self.logic.volume is not None and segment and segment != self.logic.segment:
            self._guarded(lambda: self.logic.select(segment))

    def _on_segment_in_editor(self, segment: str) -> None:
        if self.logic.volume is not None and self.logic.segments.has(segment) and segment != self.logic.segment:
            self._guarded(lambda: self.logic.select(segment))

    def _on_add(self) -> None:
        self._guarded(self.logic.add_segment)

    def _file(self) -> Any:
        """The segmentation, with names, colours and what was said, as Slicer saves it."""
        with TemporaryDirectory() as folder:
            file = Path(folder) / "segments.seg.nrrd"
            node, kind = self.logic.segments.node, slicer.vtkMRMLSegmentationStorageNode
            self._slicer_app.io_manager.write_node(node, file, kind, do_convert_from_slicer_coord=True)
            return self.server.protocol.addAttachment(file.read_bytes())

    # --- points --------------------------------------------------------------------------------------------------

    def _on_placing(self, name: str | None, *_: Any) -> None:
        if not name:
            self.marks.stop_placing()
        elif name != self.marks.placing:
            self.tell(HINTS[name])
            self._guarded(lambda: self.marks.place(name))

    def _on_point_closed(self, turn: int) -> None:
        self._guarded(lambda: self.logic.remove(turn))

    def _on_undo(self) -> None:
        self._guarded(self.logic.undo)

    def _on_redo(self) -> None:
        self._guarded(self.logic.redo)

    def _on_again(self) -> None:
        self._guarded(self.logic.again)

    def _guarded(self, action: Callable[[], Any]) -> None:
        try:
            action()
        except Refused as refusal:
            self.tell(str(refusal), True)
        self.refresh()

    # --- what is seen --------------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Show what is."""
        logic, data = self.logic, self.data
        data.has_volume, data.is_busy = logic.volume is not None, logic.is_busy
        data.can_undo, data.can_redo = logic.can_undo, logic.can_redo
        if logic.volume is None:
            data.segments, data.segment, data.points, data.voxels, data.quality = [], "", [], 0, ""
            return
        segments = logic.segments
        if not segments.has(logic.segment):  # taken away in the application's own list
            logic.select(segments.ids[0] if segments.ids else segments.add())
        data.segments = [Choice(segments.name(one), one) for one in segments.ids]
        data.segment = logic.segment
        data.points = [Shown(turn, point.positive, list(point.voxel)) for turn, point in logic.said.points()]
        data.voxels = segments.part(logic.segment).voxels
        quality = logic.quality.get(logic.segment)
        data.quality = "" if quality is None else f"{quality:.2f}"

    def _on_changed(self) -> None:
        self.marks.show()
        if self._editor.undo_stack is not None:
            # The brush's own undo would put back a segment as it was before this.
            self._editor.undo_stack.clear()
        if self._editor.active_segmentation is not None:
            self._editor.set_active_segment_id(self.logic.segment)
            self._editor.active_segmentation.trigger_modified()  # ends in `refresh`, too
        else:
            self.refresh()
        for view in self._slicer_app.view_manager.get_views():
            view.schedule_render()

    # --- waiting -------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        await self.server.ready
        if self._process is None:
            self.look()
        while True:
            with self.state:
                try:
                    self._poll()
                except Exception:  # as a timer in Slicer: it is said, and the next one comes
                    logging.exception("VolSam")
            await asyncio.sleep(POLL)

    def _poll(self) -> None:
        self.logic.poll()
        self._errands = [errand for errand in self._errands if not errand.poll()]
        if self._process is not None:
            self._watch_start(self._process)
        if (placing := self.marks.placing) != self._placing:  # also ended by the mouse, with its right button
            self._placing = self.data.placing = placing

    def _watch_start(self, process: server_process.Process) -> None:
        if self._awaits_address and process.address is not None:
            self._awaits_address = False
            self.use_server(process.address)
            self.look()
        elif (error := process.error) is not None:
            self._process = None
            self.tell(error, True)
