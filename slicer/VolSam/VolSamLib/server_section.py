"""The part of the panel about the server: its address, a test of it, and one on this computer."""

from __future__ import annotations

import atexit
from collections.abc import Callable
from pathlib import Path
from typing import Any

import qt

import slicer
from VolSamLib import server_process
from VolSamLib.asking import ADDRESS
from VolSamLib.connection import Errand, Found, look
from VolSamLib.geometry import Refused
from VolSamLib.logic import Annotator

ADDRESS_SETTING, FOLDER_SETTING = "VolSam/Address", "VolSam/Environment"
STARTS = "Starting the server …"


class ServerSection:
    """Address, key and three buttons.

    Args:
        form: the layout that they are put into.
        logic: is told which server to ask.
        tell: shows a sentence.
        offer: gets what a server has, when one was found.
        button: makes one, from its text, what it does and a tip.
    """

    def __init__(
        self,
        form: Any,
        logic: Annotator,
        tell: Callable[..., None],
        offer: Callable[[Found], None],
        button: Callable[..., Any],
    ) -> None:
        self.logic = logic
        self._tell, self._offer = tell, offer
        self._errands: list[Errand] = []
        self._setup: server_process.Setup | None = None
        self._process: server_process.Process | None = None
        self._awaits_address = False
        self.address = qt.QLineEdit()
        self.address.text = slicer.util.settingsValue(ADDRESS_SETTING, ADDRESS)
        self.address.connect("editingFinished()", self.on_address)
        self.key = qt.QLineEdit()
        self.key.echoMode = qt.QLineEdit.Password
        self.key.toolTip = "Only for servers that ask for one; it is not stored."
        self.key.connect("editingFinished()", self.on_address)
        form.addRow("Address:", self.address)
        form.addRow("Key:", self.key)
        self.test_button = button("Test connection", self.test, "Ask the server what it is, and which models it has.")
        self.start_button = button("Start on this computer", self.start, "Asks before it installs anything.")
        self.stop_button = button("Stop", self.stop, "End the server that was started here.")
        row = qt.QHBoxLayout()
        for one in (self.test_button, self.start_button, self.stop_button):
            row.addWidget(one)
        form.addRow(row)
        logic.use_server(self.address.text)
        atexit.register(self.stop)

    def close(self) -> None:
        """The module goes, and the server that it started."""
        if self._setup is not None:
            self._setup.stop()
        self.stop()
        atexit.unregister(self.stop)

    def poll(self) -> None:
        """What was found meanwhile, how the installation gets on, and whether the server has started."""
        self._errands = [errand for errand in self._errands if not errand.poll()]
        if self._setup is not None:
            self._watch_setup(self._setup)
        if self._awaits_address and self._process is not None:
            self._watch_start(self._process)

    def refresh(self) -> None:
        """Show what is."""
        self.stop_button.enabled = self._process is not None

    def on_address(self) -> None:
        """Another server or key."""
        if (self.address.text.strip(), self.key.text.strip()) != (self.logic.address, self.logic.key):
            self.logic.use_server(self.address.text, self.key.text)
            qt.QSettings().setValue(ADDRESS_SETTING, self.logic.address)

    def test(self) -> None:
        """Ask the server what it is."""
        self.on_address()
        self._tell(f"Asking {self.logic.address} …")
        self.look()

    def look(self, *, silent: bool = False) -> None:
        """Ask without a word, or with an answer for the user."""
        address, key = self.logic.address, self.logic.key

        def done(found: Found | None, error: str | None) -> None:
            if found is not None:
                self._offer(found)
            if silent and error is not None:
                self._tell("No server answers yet: start one under Server, or enter the address of one.")
            elif not silent:
                self._tell(error if found is None else found.text, found is None)

        self._errands.append(Errand(lambda: look(address, key), done))

    # --- a server here -------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start a server here; where there is no environment for it, ask before one is made."""
        if self._setup is not None:
            raise Refused("volsam is being installed: wait until that is done.")
        if self._process is not None and self._process.is_running:
            raise Refused(f"A server runs already, at {self._process.address or 'an address that it will say soon'}.")
        folder = Path(slicer.util.settingsValue(FOLDER_SETTING, str(server_process.default_folder())))

        def python_for_setup() -> str | None:
            return None if server_process.has_volsam(folder) else server_process.find_python()

        def done(python: str | None, error: str | None) -> None:
            if error is not None:
                self._tell(error, True)
            elif python is None:
                self._start(folder)
            else:
                self._ask(folder, python)

        self._tell(STARTS)
        self._errands.append(Errand(python_for_setup, done))

    def stop(self) -> None:
        """End the server that was started here."""
        if self._process is not None:
            self._process.stop()
            self._process, self._awaits_address = None, False
            self._tell("The server was stopped.")

    def _ask(self, folder: Path, python: str) -> None:
        if not slicer.util.confirmYesNoDisplay(
            f"volsam is not installed yet. Install it with {python} into {folder}? It is kept apart from Slicer, and "
            "takes about 2 GB; to remove it, delete the folder.",
            windowTitle="VolSam",
        ):
            self._tell("Nothing was installed. A server on another computer can be used by its address.")
            return
        try:
            self._setup = server_process.Setup(folder, python, server_process.requirement())
            self._tell("Installing volsam, which takes some minutes …")
        except server_process.NotPossible as reason:
            self._tell(str(reason), True)

    def _start(self, folder: Path) -> None:
        try:
            self._process = server_process.Process(folder)
            self._awaits_address = True
            self._tell(STARTS)
        except (server_process.NotPossible, OSError) as reason:
            self._tell(str(reason), True)
        self.refresh()

    def _watch_setup(self, setup: server_process.Setup) -> None:
        while not setup.lines.empty():
            self._tell(f"Installing volsam: {setup.lines.get_nowait()[:100]}")
        if setup.is_done:
            self._setup = None
            if setup.error is not None:
                self._tell(setup.error, True)
            else:
                self._start(setup.folder)

    def _watch_start(self, process: server_process.Process) -> None:
        if process.address is not None:
            self._awaits_address = False
            self.address.text, self.key.text = process.address, ""
            self.test()
        elif (error := process.error) is not None:
            self._awaits_address, self._process = False, None
            self._tell(error, True)
        self.refresh()
