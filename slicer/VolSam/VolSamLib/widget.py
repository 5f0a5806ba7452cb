"""The panel: buttons and what they call. It holds no state of its own beyond what a user can see."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ctk
import qt

import slicer
from VolSamLib.connection import Found
from VolSamLib.doubt import jump_to
from VolSamLib.geometry import Refused
from VolSamLib.logic import Annotator
from VolSamLib.marks import BOX, EXCLUDE, INCLUDE, Marks
from VolSamLib.server_section import ServerSection


class Panel:
    """Builds itself into a layout of the module."""

    def __init__(self, layout: Any, logic: Annotator, marks: Marks) -> None:
        self.logic = logic
        self.marks = marks
        self._is_refreshing = False
        self._layout = layout
        self.message = qt.QLabel("")
        self.message.setWordWrap(True)
        self.server = ServerSection(self._section("Server"), logic, self.tell, self._offer, self._button)
        self._build_inputs()
        self._build_segments()
        self._build_prompts()
        self._build_doubt()
        layout.addWidget(self.message)
        layout.addStretch(1)
        self.timer = qt.QTimer()
        self.timer.connect("timeout()", self.poll)
        self.refresh()

    # --- building ------------------------------------------------------------------------------------------------

    def _section(self, title: str, collapsed: bool = False) -> Any:
        box = ctk.ctkCollapsibleButton()
        box.text = title
        box.collapsed = collapsed
        self._layout.addWidget(box)
        return qt.QFormLayout(box)

    def _button(self, text: str, action: Callable[[], Any], tip: str) -> Any:
        button = qt.QPushButton(text)
        button.toolTip = tip
        button.connect("clicked()", lambda: self._guarded(action))
        return button

    @staticmethod
    def _row(form: Any, *buttons: Any) -> None:
        row = qt.QHBoxLayout()
        for button in buttons:
            row.addWidget(button)
        form.addRow(row)

    def _build_inputs(self) -> None:
        form = self._section("Volume and model")
        self.volume = self._selector(["vtkMRMLScalarVolumeNode"], "The image to segment.")
        self.volume.connect("currentNodeChanged(vtkMRMLNode*)", self.on_volume)
        self.segmentation = self._selector(
            ["vtkMRMLSegmentationNode"], "Where segments go; a new one is made if none is chosen."
        )
        self.segmentation.connect("currentNodeChanged(vtkMRMLNode*)", self.on_segmentation)
        self.model = qt.QComboBox()
        self.model.toolTip = "Models that the server offers. Models of slices work in the view that is clicked."
        self.model.connect("currentIndexChanged(int)", self.on_model)
        form.addRow("Volume:", self.volume)
        form.addRow("Segmentation:", self.segmentation)
        form.addRow("Model:", self.model)

    @staticmethod
    def _selector(kinds: list[str], tip: str) -> Any:
        box = slicer.qMRMLNodeComboBox()
        box.nodeTypes = kinds
        box.noneEnabled = True
        box.addEnabled = False
        box.removeEnabled = False
        box.showChildNodeTypes = False
        box.toolTip = tip
        box.setMRMLScene(slicer.mrmlScene)
        return box

    def _build_segments(self) -> None:
        form = self._section("Segments")
        self.table = slicer.qMRMLSegmentsTableView()
        self.table.connect("selectionChanged(QItemSelection,QItemSelection)", self.on_selection)
        form.addRow(self.table)
        self.add_button = self._button("Add segment", self.logic.add_segment, "Begin another object (N).")
        self.remove_button = self._button(
            "Remove", lambda: self.logic.remove_segment(self.logic.segment), "Remove the segment and its points."
        )
        self.lock_button = self._button(
            "Lock", self.on_lock, "Nothing here changes a locked segment, nor takes voxels from it."
        )
        self.lock_button.checkable = True
        self._row(form, self.add_button, self.remove_button, self.lock_button)

    def _build_prompts(self) -> None:
        form = self._section("Points")
        self.include_button = self._button(
            "Include", lambda: self.marks.place(INCLUDE), "Place points in the object (I)."
        )
        self.exclude_button = self._button(
            "Exclude", lambda: self.marks.place(EXCLUDE), "Place points that are not in it (E)."
        )
        self._row(form, self.include_button, self.exclude_button)
        self.box_button = self._button("Draw box", lambda: self.marks.place(BOX), "Place a box around the object (B).")
        self.use_box_button = self._button("Ask with the box", self.use_box, "The object lies in the box.")
        self._row(form, self.box_button, self.use_box_button)
        self.undo_button = self._button("Undo", self.logic.undo, "Take the last step back (Ctrl+Z).")
        self.redo_button = self._button("Redo", self.logic.redo, "Take it forward again (Ctrl+Y).")
        self.again_button = self._button("Ask again", self.logic.again, "After a failure, or with another model.")
        self.cancel_button = self._button("Cancel", self.logic.cancel, "Wait no longer; points stay.")
        self._row(form, self.undo_button, self.redo_button, self.again_button, self.cancel_button)
        self.shortcuts = []
        for keys, action in (
            ("i", lambda: self.marks.place(INCLUDE)),
            ("e", lambda: self.marks.place(EXCLUDE)),
            ("b", lambda: self.marks.place(BOX)),
            ("n", self.logic.add_segment),
            ("Ctrl+Z", self.logic.undo),
            ("Ctrl+Y", self.logic.redo),
        ):
            shortcut = qt.QShortcut(qt.QKeySequence(keys), slicer.util.mainWindow())
            shortcut.setEnabled(False)
            shortcut.connect("activated()", lambda action=action: self._guarded(action))
            self.shortcuts.append(shortcut)

    def _build_doubt(self) -> None:
        form = self._section("How sure")
        self.quality = qt.QLabel("")
        form.addRow("Expected Dice:", self.quality)
        self.doubt_button = self._button(
            "Show uncertainty", self.logic.ask_doubt, "Nine bands of probability, and a map."
        )
        self.next_button = self._button("Go to next click", self.go_to_next, "Where a click would tell the model most.")
        self._row(form, self.doubt_button, self.next_button)

    # --- life ----------------------------------------------------------------------------------------------------

    def start_timer(self, interval: int) -> None:
        """Call `poll` from now on."""
        self.timer.setInterval(interval)
        self.timer.start()

    def enter(self) -> None:
        """The module is shown."""
        for shortcut in self.shortcuts:
            shortcut.setEnabled(True)
        if self.model.count == 0:
            self.server.look(silent=True)

    def leave(self) -> None:
        """Another module is shown: keys and the mouse are its own."""
        for shortcut in self.shortcuts:
            shortcut.setEnabled(False)
        self.marks.stop_placing()

    def close(self) -> None:
        """The module goes."""
        self.timer.stop()
        self.leave()
        self.server.close()

    def poll(self) -> None:
        """What the timer does."""
        self.logic.poll()
        self.server.poll()

    def tell(self, text: str, is_error: bool = False) -> None:
        """Show a sentence."""
        self.message.text = text
        self.message.styleSheet = "color: #c0392b" if is_error else ""

    def refresh(self) -> None:
        """Show what is."""
        self._is_refreshing = True
        try:
            logic, has_volume = self.logic, self.logic.volume is not None
            if has_volume:
                self.segmentation.setCurrentNode(logic.segments.node)
                self.table.setSegmentationNode(logic.segments.node)
                if list(self.table.selectedSegmentIDs()) != [logic.segment]:
                    self.table.setSelectedSegmentIDs([logic.segment])
                self.lock_button.checked = logic.segments.is_locked(logic.segment)
            else:
                self.volume.setCurrentNode(None)
                self.table.setSegmentationNode(None)
            for button in (
                self.add_button,
                self.remove_button,
                self.lock_button,
                self.include_button,
                self.exclude_button,
            ):
                button.enabled = has_volume
            said = bool(has_volume and logic.said.turns)
            self.box_button.enabled = self.use_box_button.enabled = has_volume
            self.again_button.enabled = self.doubt_button.enabled = said
            self.undo_button.enabled, self.redo_button.enabled = logic.can_undo, logic.can_redo
            self.cancel_button.enabled = logic.is_busy
            self.next_button.enabled = logic.doubt is not None and logic.doubt.next_click is not None
            self.server.refresh()
            quality = logic.quality.get(logic.segment)
            self.quality.text = "" if quality is None else f"{quality:.2f}"
        finally:
            self._is_refreshing = False

    def _guarded(self, action: Callable[[], Any]) -> None:
        """Whatever happens, the user gets a sentence and the module goes on."""
        try:
            action()
        except Refused as refusal:
            self.tell(str(refusal), True)
        self.refresh()

    # --- volume, segmentation, model -----------------------------------------------------------------------------

    def on_volume(self, node: Any = None) -> None:
        """Another volume was chosen."""
        if self._is_refreshing:
            return
        chosen = self.volume.currentNode()
        if chosen is None or chosen is self.logic.volume:
            if chosen is None:
                self.logic.leave()
            return

        def act() -> None:
            self.logic.choose(chosen)
            self.tell("Place a point in the object.")
            self.logic.prepare()

        self._guarded(act)

    def on_segmentation(self, node: Any = None) -> None:
        """Another segmentation was chosen."""
        chosen = self.segmentation.currentNode()
        if self._is_refreshing or chosen is None or self.logic.volume is None or chosen is self.logic.segments.node:
            return
        self._guarded(lambda: self.logic.choose(self.logic.volume, chosen))

    def on_selection(self, *_: Any) -> None:
        """Another segment was chosen."""
        chosen = list(self.table.selectedSegmentIDs())
        if self._is_refreshing or len(chosen) != 1 or chosen[0] == self.logic.segment:
            return
        self._guarded(lambda: self.logic.select(chosen[0]))

    def on_lock(self) -> None:
        """Lock or unlock the segment."""
        self.logic.segments.lock(self.logic.segment, bool(self.lock_button.checked))

    def on_model(self, index: int) -> None:
        """Another model was chosen."""
        if not self._is_refreshing and index >= 0:
            self.logic.use_model(str(self.model.itemData(index)))

    # --- prompts -------------------------------------------------------------------------------------------------

    def use_box(self) -> None:
        """Ask with the box that was drawn."""
        node = self.marks.node(BOX)
        if node.GetNumberOfDefinedControlPoints() == 0:
            raise Refused("There is no box: press Draw box, and place it around the object.")
        self.logic.box(node)

    def go_to_next(self) -> None:
        """Show where a click would tell most."""
        place = self.logic.next_click()
        if place is None:
            raise Refused("The model is equally sure everywhere: no place stands out.")
        jump_to(place)
        self.tell("This is where the model is least sure: say whether it belongs to the object.")

    def _offer(self, found: Found) -> None:
        self._is_refreshing = True
        self.model.clear()
        for name, summary in found.models.items():
            self.model.addItem(f"{name}: {summary}", name)
        names = list(found.models)
        chosen = self.logic.model if self.logic.model in names else names[0]
        self.model.setCurrentIndex(names.index(chosen))
        self._is_refreshing = False
        self.logic.use_model(chosen)
