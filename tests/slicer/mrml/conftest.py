"""A real MRML scene with the real logics, fakes for Qt, and a live `volsam serve`.

These tests run in an environment of their own (`make slicer-env`), in a process of their own, started by
`tests/slicer/test_module.py`. The server runs in the environment of everything else, named by VOLSAM_PYTHON.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
collect_ignore_glob = [] if find_spec("trame_slicer") else ["test_*.py"]
SLICER = HERE.parents[2] / "slicer"
sys.path[:0] = [str(HERE), str(SLICER / "VolSam"), str(SLICER)]

from worlds import VOLSAM, server_environment  # noqa: E402


@dataclass
class Said:
    """Every sentence that a user was told."""

    all: list[tuple[str, bool]] = field(default_factory=list)

    def __call__(self, text: str, is_error: bool = False) -> None:
        self.all.append((text, is_error))

    @property
    def errors(self) -> list[str]:
        return [text for text, is_error in self.all if is_error]


@dataclass
class Serving:
    """A running `volsam serve`."""

    address: str
    process: subprocess.Popen[str]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="session")
def serve(home: Path) -> Iterator[Callable[..., Serving]]:
    """Starts servers, `serve("--port", "1527")`."""
    running: list[Serving] = []

    def start(*words: str) -> Serving:
        process = subprocess.Popen(
            [*VOLSAM, "serve", *(() if "--port" in words else ("--port", "0")), *words],
            env=server_environment(home),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdout is not None
        lines: list[str] = []
        for line in process.stdout:
            lines.append(line)
            if found := re.search(r"serves at (http://\S+)", line):
                running.append(Serving(found[1], process))
                return running[-1]
        raise AssertionError(f"the server did not start: {''.join(lines)}")

    yield start
    for one in running:
        one.kill()


@pytest.fixture(scope="session")
def server(serve: Callable[..., Serving]) -> Serving:
    """One with the default model, for all tests that leave it running."""
    return serve()


@pytest.fixture(scope="session")
def app() -> Any:
    """Slicer's logics around a scene, and what its application would add to the module `slicer`."""
    import fakes

    sys.modules.update(fakes.qt_and_ctk())
    import slicer.util
    from trame_slicer.core import SlicerApp
    from VolSamWeb.scene import furnish

    import slicer

    made = SlicerApp()
    furnish(made)
    slicer.qMRMLNodeComboBox = fakes.qMRMLNodeComboBox
    slicer.qMRMLSegmentsTableView = fakes.qMRMLSegmentsTableView
    sys.modules["slicer.ScriptedLoadableModule"] = fakes.scripted_modules()
    slicer.util.settingsValue = lambda key, default, **_: fakes.QSettings.stored.get(key, default)
    slicer.util.mainWindow = lambda: None
    return made


@pytest.fixture
def scene(app: Any) -> Iterator[Any]:
    """Empty before and after."""
    app.scene.Clear(0)
    yield app.scene
    app.scene.Clear(0)


@pytest.fixture
def said() -> Said:
    return Said()


@pytest.fixture
def logic(scene: Any, server: Serving, said: Said) -> Iterator[Any]:
    """The module's logic at the server."""
    from VolSam import VolSamLogic

    made = VolSamLogic(said)
    made.use_server(server.address)
    yield made
    made.close()
