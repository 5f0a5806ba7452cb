"""What a user sees, drawn offscreen; with VOLSAM_PICTURES=docs/images these are the pictures of the documentation."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from VolSamLib import geometry
from worlds import load, volsam

EDGE = 420  # pixels


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return Path(os.environ.get("VOLSAM_PICTURES", tmp_path))


@pytest.fixture
def views(app, scene):
    """Axial, coronal and sagittal, as Slicer's libraries draw them."""
    from trame_slicer.views import SliceView

    made = []
    for name in ("Axial", "Coronal", "Sagittal"):
        view = SliceView(scene, app.app_logic, name)
        view.render_window().SetSize(EDGE, EDGE)
        view.interactor().UpdateSize(EDGE, EDGE)
        view.set_orientation(name)
        made.append(view)
    yield made
    for view in made:
        view.finalize()


def picture(views, volume, world) -> np.ndarray:
    """The three views through a place, side by side: (rows, columns, 3)."""
    from vtk.util.numpy_support import vtk_to_numpy
    from vtkmodules.vtkRenderingCore import vtkWindowToImageFilter

    drawn = []
    for view in views:
        view.set_background_volume_id(volume.GetID())
        view.fit_view_to_content()
        view.get_view_node().JumpSliceByCentering(*(float(value) for value in world))
        view.render()
        grab = vtkWindowToImageFilter()
        grab.SetInput(view.render_window())
        grab.ReadFrontBufferOff()
        grab.Update()
        image = grab.GetOutput()
        columns, rows, _ = image.GetDimensions()
        drawn.append(vtk_to_numpy(image.GetPointData().GetScalars()).reshape(rows, columns, -1)[::-1, :, :3])
    return np.concatenate(drawn, axis=1)


def kept(drawn: np.ndarray, folder: Path, name: str) -> np.ndarray:
    """The same, also as a file."""
    Image.fromarray(drawn).save(folder / f"slicer-{name}.png", optimize=True)
    return drawn


def colourful(drawn: np.ndarray) -> int:
    """How many pixels are not grey."""
    return int((np.ptp(drawn.astype(int), axis=-1) > 25).sum())


def test_the_segment_is_seen_where_it_is(logic, views, pictures, tmp_path):
    from VolSamLib.marks import Marks

    marks = Marks(logic)
    volume, clicks = an_organ(tmp_path)
    logic.choose(volume)
    display = logic.segments.node.GetDisplayNode()
    display.SetVisibility2DFill(False)
    display.SetSliceIntersectionThickness(3)
    world = geometry.to_world(volume, clicks[0][0])
    plain = colourful(picture(views, volume, world))
    logic.click(world)
    assert logic.wait()
    marks.show()
    first = kept(picture(views, volume, world), pictures, "first-click")
    assert colourful(first) > plain + 200
    for voxel, positive in clicks[1:]:
        logic.click(geometry.to_world(volume, voxel), positive)
    assert logic.wait()
    marks.show()
    refined = kept(picture(views, volume, world), pictures, "refined")
    assert not np.array_equal(first, refined)
    logic.ask_doubt()
    assert logic.wait()
    logic.segments.node.SetDisplayVisibility(False)
    assert colourful(kept(picture(views, volume, world), pictures, "bands")) > plain + 500


def an_organ(folder: Path):
    """An organ of the sample of `volsam demo`: nothing here is of a person, since the pictures are published."""
    volsam(folder, "demo", "-o", str(folder / "demo"), "--device", "cpu")
    return load(folder / "demo" / "sample.nii.gz"), [((70, 54, 44), True), ((88, 60, 50), True), ((54, 58, 44), False)]
