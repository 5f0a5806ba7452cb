"""What the Slicer application would bring: Qt's widgets, its own, and the base classes of modules.

The fakes are strict. Each knows the members of the real class that the module uses, and no others: a misspelt property
or signal raises, where a mock would smile.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any


class Widget:
    """Members are class attributes: None of them can be made by setting it."""

    signals: tuple[str, ...] = ()
    text = ""
    toolTip = ""
    enabled = True
    styleSheet = ""

    def __init__(self, *_: Any) -> None:
        self._slots: dict[str, list[Callable[..., Any]]] = {}

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_") and not hasattr(type(self), name):
            raise AttributeError(f"{type(self).__name__} has no property {name!r}")
        object.__setattr__(self, name, value)

    def connect(self, signal: str, slot: Callable[..., Any]) -> None:
        if signal not in self.signals:
            raise ValueError(f"{type(self).__name__} has no signal {signal!r}")
        self._slots.setdefault(signal, []).append(slot)

    def emit(self, signal: str, *given: Any) -> None:
        """For tests: what Qt would do."""
        assert signal in self.signals
        for slot in self._slots.get(signal, []):
            slot(*given)


class QLabel(Widget):
    def __init__(self, text: str = "") -> None:
        super().__init__()
        self.text = text

    def setWordWrap(self, on: bool) -> None: ...


class QLineEdit(Widget):
    Password = 2
    echoMode = 0
    signals = ("editingFinished()",)


class QPushButton(Widget):
    checkable = False
    checked = False
    signals = ("clicked()",)

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text

    def click(self) -> None:
        assert self.enabled, f"{self.text} cannot be pressed"
        if self.checkable:
            self.checked = not self.checked
        self.emit("clicked()")


class QComboBox(Widget):
    signals = ("currentIndexChanged(int)",)
    currentIndex = -1
    count = 0

    def __init__(self) -> None:
        super().__init__()
        self._items: list[tuple[str, Any]] = []

    def clear(self) -> None:
        self._items = []
        self.count, self.currentIndex = 0, -1

    def addItem(self, text: str, data: Any) -> None:
        self._items.append((text, data))
        self.count = len(self._items)
        if self.count == 1:
            self.setCurrentIndex(0)

    def itemData(self, index: int) -> Any:
        return self._items[index][1]

    def setCurrentIndex(self, index: int) -> None:
        if index != self.currentIndex:
            self.currentIndex = index
            self.emit("currentIndexChanged(int)", index)


class Layout(Widget):
    def __init__(self, *parents: Any) -> None:
        super().__init__()
        self._held: list[Any] = []

    def addWidget(self, widget: Any) -> None:
        assert isinstance(widget, Widget)
        self._held.append(widget)

    def addStretch(self, share: int) -> None: ...


class QHBoxLayout(Layout): ...


class QVBoxLayout(Layout): ...


class QFormLayout(Layout):
    def addRow(self, *row: Any) -> None:
        assert 1 <= len(row) <= 2
        self._held.extend(row)


class QTimer(Widget):
    signals = ("timeout()",)

    def setInterval(self, milliseconds: int) -> None: ...

    def start(self) -> None:
        self._is_running = True

    def stop(self) -> None:
        self._is_running = False


class QKeySequence(Widget): ...


class QShortcut(Widget):
    signals = ("activated()",)

    def __init__(self, keys: QKeySequence, parent: Any) -> None:
        super().__init__()
        self._is_on = True

    def setEnabled(self, on: bool) -> None:
        self._is_on = on


class QSettings:
    stored: dict[str, Any] = {}  # noqa: RUF012  one for all, as Qt's

    def setValue(self, key: str, value: Any) -> None:
        self.stored[key] = value


class ctkCollapsibleButton(Widget):
    collapsed = False


class qMRMLNodeComboBox(Widget):
    nodeTypes: list[str] = []  # noqa: RUF012
    noneEnabled = False
    addEnabled = True
    removeEnabled = True
    showChildNodeTypes = True
    signals = ("currentNodeChanged(vtkMRMLNode*)",)

    def __init__(self) -> None:
        super().__init__()
        self._node: Any = None

    def setMRMLScene(self, scene: Any) -> None: ...

    def currentNode(self) -> Any:
        return self._node

    def setCurrentNode(self, node: Any) -> None:
        if node is not self._node:
            self._node = node
            self.emit("currentNodeChanged(vtkMRMLNode*)", node)


class qMRMLSegmentsTableView(Widget):
    signals = ("selectionChanged(QItemSelection,QItemSelection)",)

    def __init__(self) -> None:
        super().__init__()
        self._node: Any = None
        self._selected: list[str] = []

    def setSegmentationNode(self, node: Any) -> None:
        self._node = node

    def selectedSegmentIDs(self) -> tuple[str, ...]:
        return tuple(self._selected)

    def setSelectedSegmentIDs(self, ids: list[str]) -> None:
        self._selected = list(ids)
        self.emit("selectionChanged(QItemSelection,QItemSelection)", None, None)


def qt_and_ctk() -> dict[str, types.ModuleType]:
    """As modules."""
    qt, ctk = types.ModuleType("qt"), types.ModuleType("ctk")
    for kind in (
        QLabel, QLineEdit, QPushButton, QComboBox, QHBoxLayout, QVBoxLayout, QFormLayout, QTimer, QKeySequence,
        QShortcut, QSettings,
    ):  # fmt: skip
        setattr(qt, kind.__name__, kind)
    ctk.ctkCollapsibleButton = ctkCollapsibleButton  # type: ignore[attr-defined]
    return {"qt": qt, "ctk": ctk}


def scripted_modules() -> types.ModuleType:
    """Slicer's base classes, as far as the module leans on them."""
    import unittest

    class ScriptedLoadableModule:
        def __init__(self, parent: Any) -> None:
            self.parent = parent

    class ScriptedLoadableModuleWidget:
        def __init__(self, parent: Any = None) -> None:
            self.parent = parent or types.SimpleNamespace(isEntered=True)
            self.layout = QVBoxLayout()

        def setup(self) -> None: ...

    class ScriptedLoadableModuleLogic:
        def __init__(self, parent: Any = None) -> None: ...

    class ScriptedLoadableModuleTest(unittest.TestCase):
        def runTest(self) -> None: ...

    module = types.ModuleType("slicer.ScriptedLoadableModule")
    for kind in (
        ScriptedLoadableModule, ScriptedLoadableModuleWidget, ScriptedLoadableModuleLogic, ScriptedLoadableModuleTest,
    ):  # fmt: skip
        setattr(module, kind.__name__, kind)
    return module
