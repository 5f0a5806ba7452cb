"""What the browser shows of the module: a drawer, and the one dataclass in which it meets `conversation`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from trame_server.utils.typed_state import TypedState
from trame_slicer.app.ui import SegmentEditorState
from trame_slicer.app.ui.flex_container import FlexContainer
from trame_vuetify.widgets.vuetify3 import (
    VAlert,
    VBtn,
    VBtnToggle,
    VChip,
    VDivider,
    VProgressLinear,
    VSelect,
    VSwitch,
    VTextField,
)
from undo_stack import Signal
from VolSamLib.asking import ADDRESS
from VolSamLib.marks import EXCLUDE, INCLUDE

ROW = "flex-grow-0 flex-shrink-0 mb-3"


@dataclass
class Choice:
    """One of several, as Vuetify wants it."""

    title: str = ""
    value: str = ""


@dataclass
class Shown:
    """A point of the segment: its turn, whether it is included, and its voxel."""

    turn: int = 0
    positive: bool = True
    voxel: list[float] = field(default_factory=list)


@dataclass
class VolSamState:
    """All that is seen."""

    message: str = ""
    is_error: bool = False
    address: str = ADDRESS
    key: str = ""
    model: str = ""
    models: list[Choice] = field(default_factory=list)
    segment: str = ""
    segments: list[Choice] = field(default_factory=list)
    placing: str = ""
    """INCLUDE, EXCLUDE, or nothing."""
    points: list[Shown] = field(default_factory=list)
    voxels: int = 0
    quality: str = ""
    """The Dice that the model expects."""
    has_volume: bool = False
    is_busy: bool = False
    can_undo: bool = False
    can_redo: bool = False


class VolSamPanel(FlexContainer):
    """The drawer; each signal is a button."""

    test_clicked = Signal()
    add_clicked = Signal()
    undo_clicked = Signal()
    redo_clicked = Signal()
    again_clicked = Signal()
    cancel_clicked = Signal()
    point_closed = Signal(int)

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(fill_height=True, classes="pa-3 overflow-y-auto", **kwargs)
        self.file: Callable[[], Any] = lambda: None
        """Gives the content of the file that is saved."""
        self._name = TypedState(self.state, VolSamState).name
        self._editor = TypedState(self.state, SegmentEditorState).name
        with self:
            VAlert(
                text=(self._name.message,),
                type=(f"{self._name.is_error} ? 'error' : 'info'",),
                v_if=(self._name.message,),
                variant="tonal",
                density="compact",
                classes="mb-3",
                style="flex: none;",
            )
            VProgressLinear(indeterminate=True, color="teal", v_if=(self._name.is_busy,), classes=ROW)
            self._build_points()
            VDivider(classes="my-3")
            self._build_segments()
            VDivider(classes="my-3")
            self._build_server()

    def _build_points(self) -> None:
        name = self._name
        with VBtnToggle(
            v_model=(name.placing,),
            disabled=(f"!{name.has_volume}",),
            divided=True,
            variant="outlined",
            density="comfortable",
            classes=ROW,
        ):
            VBtn("Include", value=INCLUDE, color="green", prepend_icon="mdi-plus-circle", classes="flex-grow-1")
            VBtn("Exclude", value=EXCLUDE, color="red", prepend_icon="mdi-minus-circle", classes="flex-grow-1")
        closed = self.server.trigger_name(self.point_closed)
        with FlexContainer(row=True, classes="flex-wrap mb-2"):
            VChip(
                "{{ point.voxel.map(Math.round).join(', ') }}",
                v_for=f"point in {name.points}",
                key="point.voxel.join()",  # a closed chip hides itself: never another point in its place
                color=("point.positive ? 'green' : 'red'",),
                closable=True,
                size="small",
                classes="mr-1 mb-1",
                click_close=f"trigger('{closed}', [point.turn])",
            )
        with FlexContainer(row=True, classes="flex-wrap"):
            self._button("Undo", "mdi-undo", self.undo_clicked, f"!{name.can_undo}")
            self._button("Redo", "mdi-redo", self.redo_clicked, f"!{name.can_redo}")
            self._button("Ask again", "mdi-refresh", self.again_clicked, f"!{name.points}.length")
            self._button("Cancel", "mdi-close", self.cancel_clicked, f"!{name.is_busy}")

    def _build_segments(self) -> None:
        name = self._name
        with FlexContainer(row=True, classes="mb-2"):
            self._select("Segment", name.segment, name.segments, "flex-grow-1")
            VBtn(
                icon="mdi-plus",
                variant="text",
                disabled=(f"!{name.has_volume}",),
                click=self.add_clicked,
                title="Begin another object",
            )
        FlexContainer(
            classes="text-body-2 mb-2",
            v_text=(f"`${{{name.voxels}}} voxels` + ({name.quality} ? `, expected Dice ${{{name.quality}}}` : '')",),
        )
        VSwitch(
            v_model=(self._editor.segment_display.show_3d,),
            label="Surface in 3D",
            color="teal",
            density="compact",
            hide_details=True,
            classes="flex-grow-0",
        )
        given = f"trigger('{self.server.trigger_name(self._on_save)}')"
        VBtn(
            "Save segments",
            prepend_icon="mdi-content-save",
            click=f"utils.download('segments.seg.nrrd', {given}, 'application/octet-stream')",
            disabled=(f"!{name.has_volume}",),
            size="small",
            variant="tonal",
            classes="mt-2 mr-2 flex-shrink-0",
        )

    def _build_server(self) -> None:
        name = self._name
        self._select("Model", name.model, name.models)
        self._field("Server", name.address)
        self._field("Key, if it asks for one", name.key, type="password")
        self._button("Test connection", "mdi-lan-connect", self.test_clicked, "false")

    def _on_save(self) -> Any:
        return self.file()

    @staticmethod
    def _button(text: str, icon: str, signal: Signal, disabled: str) -> None:
        VBtn(
            text,
            prepend_icon=icon,
            click=signal,
            disabled=(disabled,),
            size="small",
            variant="tonal",
            classes="mr-2 mb-2 flex-shrink-0",
        )

    @staticmethod
    def _select(label: str, chosen: str, choices: str, classes: str = ROW) -> None:
        VSelect(v_model=(chosen,), items=(choices,), label=label, density="compact", hide_details=True, classes=classes)

    @staticmethod
    def _field(label: str, text: str, **kwargs: Any) -> None:
        VTextField(
            v_model_lazy=(text,),
            label=label,
            density="compact",
            hide_details=True,
            autocomplete="off",
            classes=ROW,
            **kwargs,
        )
