"""trame-slicer's segmentation application, with the module as one more tool in it."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from trame.app import TrameApp
from trame_slicer import module as trame_slicer_module
from trame_slicer.app.logic import SegmentationAppLogic
from trame_slicer.app.ui import SegmentationAppUI
from trame_slicer.core import SlicerApp

from .conversation import Conversation
from .panel import VolSamPanel
from .scene import furnish

ICON = Path(__file__).resolve().parents[1] / "VolSam" / "Resources" / "Icons" / "VolSam.png"
UNREADABLE = "cannot be read as a volume: open a .nii.gz, or another that Slicer reads"


class Unreadable(Exception):
    """A file that is no volume, in one sentence for the user."""


class Logic(SegmentationAppLogic):
    """The application's, which also tells the module of a volume."""

    def __init__(self, server: Any, slicer_app: Any) -> None:
        super().__init__(server, slicer_app)
        self.conversation = Conversation(server, slicer_app)
        self._load_files_logic.volume_loaded.connect(self.conversation.on_volume)
        self._load_files_logic.volume_loaded.connect(self._on_volume)
        server.state["trame__title"] = "VolSam"
        # Theirs would be fetched from elsewhere.
        server.state["trame__favicon"] = f"data:image/png;base64,{base64.b64encode(ICON.read_bytes()).decode()}"

    def set_ui(self, ui: UI) -> None:
        """Hear of its buttons."""
        super().set_ui(ui)
        self.conversation.set_ui(ui.tool_registry[VolSamPanel])
        ui.load_volume_items_buttons.on_load_volume.connect(self._on_files)
        self._show_module()
        # The image is to be seen under a segment that is being corrected.
        display = self._segment_editor_logic.data.segment_display
        display.opacity_2d.value, display.border_thickness.value = 0.3, 3

    def open(self, file: Path) -> None:
        """Load a volume, as the button does. Raises Unreadable."""
        volumes = self._slicer_app.io_manager.load_volumes([str(file)])
        if not volumes:
            raise Unreadable(f"{file} {UNREADABLE}")
        self._slicer_app.display_manager.show_volume(volumes[0], do_reset_views=True)
        self._load_files_logic.volume_loaded(volumes[0])

    def _on_volume(self, volume: Any) -> None:
        self._show_module()
        # Drawn by a processor it takes seconds, and the page stands still meanwhile; segments are seen without it.
        self._slicer_app.volume_rendering.get_vr_display_node(volume).SetVisibility(False)

    def _on_files(self, files: list[dict[str, Any]]) -> None:
        """After the application has tried to read them; it says nothing of those that it cannot."""
        if files and self.conversation.logic.volume is None:
            self.data.is_volume_loaded = False
            self.conversation.tell(f"{files[0].get('name', 'The file')} {UNREADABLE}.", True)

    def _show_module(self) -> None:
        self.data.is_drawer_visible = True
        self.data.active_tool = VolSamPanel.__name__


class UI(SegmentationAppUI):
    """The application's, with the module's drawer and a button for it."""

    def __init__(self, server: Any, layout_manager: Any) -> None:
        super().__init__(server, layout_manager)
        with self.layout:
            self.layout.title.set_text("VolSam")
            with self.layout.drawer:
                self._register_tool_ui(VolSamPanel)
            with self.layout.toolbar:
                self._create_tool_button(icon="mdi-cursor-default-click", name="VolSam", tool_ui_type=VolSamPanel)


class VolSamApp(TrameApp):
    """Everything put together."""

    def __init__(self, server: Any = None) -> None:
        super().__init__(server)
        self.server.enable_module(trame_slicer_module)
        slicer_app = SlicerApp()
        furnish(slicer_app)
        self.logic = Logic(self.server, slicer_app)
        self._ui = UI(self.server, self.logic.layout_manager)
        self.logic.set_ui(self._ui)
        self.logic.conversation.begin()
