"""The panel and the points in the scene, driven as a user would: buttons pressed, points placed, the timer fired."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import pytest
from VolSamLib import geometry, server_process
from worlds import MIDDLE, add_ball, mask_of

import slicer


@pytest.fixture
def window(scene, server, monkeypatch):
    import fakes
    from VolSam import VolSamWidget

    monkeypatch.setattr(fakes.QSettings, "stored", {"VolSam/Address": server.address})
    made = VolSamWidget()
    made.setup()
    made.enter()
    until(made, lambda: made.panel.model.count)
    yield made
    made.cleanup()


def until(window, condition, seconds=60.0) -> None:
    """Fire the timer until something is so."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, window.panel.message.text
        window.panel.timer.emit("timeout()")
        time.sleep(0.01)


def idle(window) -> None:
    until(window, lambda: not window.logic.is_busy)


def put(window, name, by=(0, 0, 0)) -> None:
    """Place a point as the mouse does: it follows the mouse first, and is defined with the click."""
    place = geometry.to_world(window.logic.volume, np.add(MIDDLE, by))
    window.marks.node(name).AddControlPointWorld(place.tolist())


def numbers(window, name) -> int:
    return window.marks.node(name).GetNumberOfControlPoints()


@pytest.fixture
def opened(window):
    window.panel.volume.setCurrentNode(add_ball())
    idle(window)
    return window


def test_from_a_volume_to_a_segment(opened):
    from VolSamLib.marks import EXCLUDE, INCLUDE

    panel = opened.panel
    panel.include_button.click()
    application = slicer.app.applicationLogic()
    assert application.GetInteractionNode().GetCurrentInteractionMode() == application.GetInteractionNode().Place
    assert application.GetSelectionNode().GetActivePlaceNodeID() == opened.marks.node(INCLUDE).GetID()
    put(opened, INCLUDE)
    assert panel.cancel_button.enabled
    idle(opened)
    first = mask_of(opened.logic)
    assert first.any()
    assert float(panel.quality.text) > 0
    panel.exclude_button.click()
    put(opened, EXCLUDE, (9, 0, 0))
    idle(opened)
    assert len(opened.logic.said.turns) == 2
    panel.undo_button.click()
    assert np.array_equal(mask_of(opened.logic), first)
    assert (numbers(opened, INCLUDE), numbers(opened, EXCLUDE)) == (1, 0)
    panel.redo_button.click()
    assert (numbers(opened, INCLUDE), numbers(opened, EXCLUDE)) == (1, 1)


def test_a_point_that_is_deleted_or_moved_in_the_scene(opened):
    from VolSamLib.marks import INCLUDE

    put(opened, INCLUDE)
    idle(opened)
    first = mask_of(opened.logic)
    put(opened, INCLUDE, (7, 0, 0))
    idle(opened)
    second = mask_of(opened.logic)
    node = opened.marks.node(INCLUDE)
    node.RemoveNthControlPoint(1)
    idle(opened)
    assert np.array_equal(mask_of(opened.logic), first)
    put(opened, INCLUDE, (0, 6, 0))
    idle(opened)
    node.SetNthControlPointPositionWorld(1, geometry.to_world(opened.logic.volume, np.add(MIDDLE, (7, 0, 0))).tolist())
    node.InvokeEvent(node.PointEndInteractionEvent)
    idle(opened)
    assert len(opened.logic.said.turns) == 2
    assert np.array_equal(mask_of(opened.logic), second)


def test_a_point_that_is_refused_disappears(opened):
    from VolSamLib.marks import EXCLUDE, INCLUDE

    put(opened, INCLUDE, (500, 0, 0))
    assert numbers(opened, INCLUDE) == 0
    assert "outside" in opened.panel.message.text
    put(opened, EXCLUDE)
    assert numbers(opened, EXCLUDE) == 0
    assert "nothing yet to exclude" in opened.panel.message.text


def test_points_that_follow_the_mouse_are_left_alone(opened):
    from VolSamLib.marks import INCLUDE

    node = opened.marks.node(INCLUDE)
    put(opened, INCLUDE)
    node.AddControlPointWorld([0.0, 0.0, 0.0])
    node.SetNthControlPointPositionMissing(1) if numbers(opened, INCLUDE) > 1 else None
    idle(opened)
    assert len(opened.logic.said.turns) >= 1


def test_points_are_those_of_the_segment_that_is_chosen(opened):
    from VolSamLib.marks import INCLUDE

    put(opened, INCLUDE)
    idle(opened)
    first = opened.logic.segment
    opened.panel.add_button.click()
    assert numbers(opened, INCLUDE) == 0
    opened.panel.table.setSelectedSegmentIDs([first])
    assert opened.logic.segment == first
    assert numbers(opened, INCLUDE) == 1
    opened.panel.lock_button.click()
    put(opened, INCLUDE, (7, 0, 0))
    assert "locked" in opened.panel.message.text
    assert numbers(opened, INCLUDE) == 1
    opened.panel.lock_button.click()
    opened.panel.remove_button.click()
    assert numbers(opened, INCLUDE) == 0


def test_a_box_is_drawn_and_asked_with(opened):
    from VolSamLib.marks import BOX

    opened.panel.use_box_button.click()
    assert "There is no box" in opened.panel.message.text
    opened.panel.box_button.click()
    roi = opened.marks.node(BOX)
    roi.SetCenterWorld(geometry.to_world(opened.logic.volume, MIDDLE))
    roi.SetSize(26, 26, 26)
    opened.panel.use_box_button.click()
    idle(opened)
    assert mask_of(opened.logic).any()


def test_uncertainty_and_the_next_click(opened):
    from VolSamLib.marks import INCLUDE

    view = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSliceNode")
    view.SetLayoutName("Red")
    put(opened, INCLUDE)
    idle(opened)
    opened.panel.doubt_button.click()
    idle(opened)
    assert "varies by" in opened.panel.message.text
    opened.panel.next_button.click()
    matrix = view.GetSliceToRAS()
    place = [matrix.GetElement(row, 3) for row in range(3)]
    assert np.allclose(place, opened.logic.next_click(), atol=1e-3)


def test_a_scene_that_is_closed_while_an_answer_is_awaited(opened):
    from VolSamLib.marks import INCLUDE

    put(opened, INCLUDE)
    slicer.mrmlScene.Clear(0)
    assert "The scene was closed" in opened.panel.message.text
    assert not opened.panel.include_button.enabled
    opened.panel.volume.setCurrentNode(add_ball("next"))
    put(opened, INCLUDE)
    idle(opened)
    assert mask_of(opened.logic).any()


def test_a_volume_that_is_removed(opened):
    slicer.mrmlScene.RemoveNode(opened.logic.volume)
    assert "was removed" in opened.panel.message.text
    assert opened.logic.volume is None


def test_a_colour_volume_is_refused_in_the_window(window):
    volume = slicer.util.addVolumeFromArray(
        np.zeros((4, 4, 4, 3), np.uint8), name="photo", nodeClassName="vtkMRMLVectorVolumeNode"
    )
    window.panel.volume.setCurrentNode(volume)
    assert "photo has 3 values in each voxel" in window.panel.message.text
    assert window.logic.volume is None


def test_the_connection_is_tested_without_waiting(window, server):
    window.panel.server.test_button.click()
    until(window, lambda: "Connected to volsam" in window.panel.message.text)
    assert "volsam-s" in window.panel.message.text
    window.panel.server.address.text = "http://127.0.0.1:9"
    window.panel.server.address.emit("editingFinished()")
    window.panel.server.test_button.click()
    until(window, lambda: "does not answer" in window.panel.message.text)
    assert "points" not in window.panel.message.text


def test_nothing_is_installed_without_being_asked_to(window, monkeypatch, tmp_path):
    import fakes

    asked = []
    fakes.QSettings.stored["VolSam/Environment"] = str(tmp_path / "environment")
    monkeypatch.setattr(server_process, "find_python", lambda: sys.executable)
    monkeypatch.setattr(
        slicer.util, "confirmYesNoDisplay", lambda text, **_: asked.append(text) or False, raising=False
    )
    window.panel.server.start_button.click()
    until(window, lambda: asked)
    assert str(tmp_path / "environment") in asked[0]
    assert "Nothing was installed" in window.panel.message.text
    assert not (tmp_path / "environment").exists()


def test_a_server_is_set_up_started_and_stopped(window, monkeypatch, tmp_path):
    import fakes

    folder = tmp_path / "environment"
    fakes.QSettings.stored["VolSam/Environment"] = str(folder)
    monkeypatch.setattr(server_process, "find_python", lambda: sys.executable)
    monkeypatch.setattr(slicer.util, "confirmYesNoDisplay", lambda text, **_: True, raising=False)
    monkeypatch.setattr(server_process, "requirement", lambda: str(a_package(tmp_path / "package")))
    window.panel.server.start_button.click()
    until(
        window,
        lambda: "does not answer" in window.panel.message.text or "not that of" in window.panel.message.text,
        120,
    )
    assert window.logic.address == "http://127.0.0.1:9"
    assert server_process.has_volsam(folder)
    window.panel.server.stop_button.click()
    assert "stopped" in window.panel.message.text
    window.panel.server.start_button.click()
    until(window, lambda: "does not answer" in window.panel.message.text)


def a_package(folder: Path) -> Path:
    """A few lines in place of volsam, that say that they serve at a place where nobody is."""
    serve = (
        "import time\ndef main():\n    print('volsam serves at http://127.0.0.1:9 (stop with Ctrl-C)', flush=True)\n"
        "    time.sleep(60)\n"
    )
    for name, text in {
        "volsam/__init__.py": "",
        "volsam/cli.py": serve,
        "fastapi.py": "",
        "uvicorn.py": "",
        "setup.py": "import setuptools\n"
        "setuptools.setup(name='volsam', packages=['volsam'], py_modules=['fastapi', 'uvicorn'])\n",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_an_environment_is_never_made_over_something_else(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(server_process.NotPossible, match="is not empty"):
        server_process.Setup(tmp_path, sys.executable, "volsam")
    assert (tmp_path / "thesis.txt").is_file()


def test_a_setup_that_fails_says_why_and_leaves_nothing(tmp_path):
    setup = server_process.Setup(tmp_path / "environment", sys.executable, str(tmp_path / "nowhere"))
    while not setup.is_done:
        time.sleep(0.05)
    assert "could not be set up" in str(setup.error)
    assert not (tmp_path / "environment").exists()


def test_slicers_own_python_is_never_used(monkeypatch, tmp_path):
    own = Path(sys.prefix) / "bin" / "python"
    with pytest.raises(server_process.NotPossible, match=r"no Python 3\.10 to 3\.13"):
        server_process.find_python([str(own), "not-a-python"])
    monkeypatch.setenv("PYTHONHOME", "/slicer")
    assert "PYTHONHOME" not in server_process.outside_environment()


def test_a_server_that_cannot_start_says_why(tmp_path):
    with pytest.raises(server_process.NotPossible, match="no environment"):
        server_process.Process(tmp_path)
    process = fake_process(tmp_path, "import sys; sys.exit('error: the port is taken')")
    while process.is_running:
        time.sleep(0.02)
    assert process.error == "The server has ended (the port is taken): start it again."


def fake_process(folder: Path, code: str) -> server_process.Process:
    python = server_process.python_in(folder)
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{code}"\n')
    python.chmod(0o755)
    return server_process.Process(folder)
