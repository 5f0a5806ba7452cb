"""The way of an annotator through the page, with the mouse."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest

from volsam.data.io import read_volume
from volsam.inference.session import Model, Session
from volsam.prompts import Click

from .conftest import Viewer

pytestmark = [pytest.mark.slow, pytest.mark.browser]

BALL = (22, 20, 14)  # the middle of the lesion in the small CT
BESIDE = (8, 8, 14)


def test_clicks_undo_a_second_object_a_lock_and_saving(
    viewer: Viewer, studies: Path, the_model: Model, tmp_path: Path
) -> None:
    scan = read_volume(studies / "ct.nii.gz")
    shape = scan.grid.shape
    viewer.open()
    grey = viewer.colour_at("axial", BALL)
    assert grey[0] == grey[1] == grey[2], "nothing is painted yet"

    # A click; the mask is that of a session in Python with the same click, and it is on the screen.
    viewer.click("axial", BALL)
    reference = Session(the_model, scan)
    reference.add(Click(tuple(scan.grid.to_world(BALL))))
    assert reference.mask.data.any()
    np.testing.assert_array_equal(viewer.mask(1, shape), reference.mask.data[0] > 0)
    voxels = np.argwhere(reference.mask.data[0])
    i, j, k = (int(at) for at in voxels[len(voxels) // 2])
    viewer.look_at((i, 0, k))  # the crosshair out of the way
    red, green, blue = viewer.colour_at("axial", (i, j, k))
    assert red > green, "the mask has not the colour of its object"
    assert red > blue

    # In three dimensions: a surface around the voxels of the mask, in mm.
    viewer.page.wait_for_function("volsam.space.meshes.size === 1")
    low, high = viewer.page.evaluate(
        "[...volsam.space.meshes.values()].map((mesh) => [[...mesh.extentsMin], [...mesh.extentsMax]])[0]"
    )
    world = scan.grid.to_world(voxels)
    np.testing.assert_allclose(low, world.min(axis=0), atol=2.5)
    np.testing.assert_allclose(high, world.max(axis=0), atol=2.5)

    # Another one outside, with Alt; back, and forth again.
    viewer.click("axial", BESIDE, with_key="Alt")
    reference.add(Click(tuple(scan.grid.to_world(BESIDE)), positive=False))
    both = viewer.mask(1, shape)
    np.testing.assert_array_equal(both, reference.mask.data[0] > 0)
    viewer.press("Control+z")
    reference.undo()
    np.testing.assert_array_equal(viewer.mask(1, shape), reference.mask.data[0] > 0)
    viewer.press("Control+y")
    np.testing.assert_array_equal(viewer.mask(1, shape), both)

    # A second object, which may not take voxels of the first.
    viewer.step(lambda: viewer.page.get_by_label("Keep").check())
    viewer.press("n")
    viewer.click("coronal", (30, 26, 18))
    second = viewer.mask(2, shape)
    assert second.any()
    assert not (second & both).any()
    viewer.press("k")
    assert viewer.state("current.locked")
    viewer.click("axial", BALL)
    assert "locked" in viewer.page.inner_text("#toast")
    np.testing.assert_array_equal(viewer.mask(2, shape), second)
    viewer.page.get_by_label("Close", exact=True).first.click()

    # Saved: the same voxels, on the grid of the scan to the last bit.
    viewer.page.keyboard.press("Control+s")
    with viewer.page.expect_download() as arriving:
        viewer.page.get_by_role("button", name="Download").click()
    arriving.value.save_as(tmp_path / "labels.nii.gz")
    saved = nibabel.load(tmp_path / "labels.nii.gz")
    original = nibabel.load(studies / "ct.nii.gz")
    assert saved.shape == original.shape
    assert np.array_equal(saved.affine, original.affine)
    np.testing.assert_array_equal(np.asarray(saved.dataobj), 1 * both + 2 * second)


def test_boxes_scribbles_and_lassos_are_drawn_and_any_prompt_can_be_deleted(viewer: Viewer) -> None:
    viewer.open()
    viewer.look_at(BALL)
    viewer.press("b")
    viewer.drag("axial", (12, 10, 14), (32, 30, 14))
    viewer.press("s")
    viewer.drag("axial", (20, 18, 14), (23, 20, 14), (24, 22, 14))
    viewer.press("l")
    viewer.drag("axial", (4, 4, 14), (9, 4, 14), (9, 9, 14), (4, 9, 14), with_key="Alt")
    prompts = viewer.state("prompts")
    assert [prompt["type"] for prompt in prompts] == ["box", "scribble", "scribble"]
    assert prompts[0]["low"] == pytest.approx([12, 10, 14])
    assert prompts[0]["high"] == pytest.approx([32, 30, 14])
    assert prompts[1]["positive"]
    assert not prompts[2]["positive"]
    assert viewer.state("current.voxels") > 0

    viewer.step(lambda: viewer.page.get_by_label("Delete prompt").nth(1).click())
    viewer.page.wait_for_function("volsam.session.prompts.length === 2")
    assert [prompt["id"] for prompt in viewer.state("prompts")] == [prompts[0]["id"], prompts[2]["id"]]


def test_a_box_gets_its_depth_in_another_plane(viewer: Viewer) -> None:
    viewer.open()
    viewer.look_at(BALL)
    viewer.press("b", "f")
    viewer.drag("axial", (12, 10, 14), (32, 30, 14))
    assert viewer.state("prompts") == []
    assert "depth" in viewer.page.inner_text("#hint")
    viewer.drag("coronal", (12, 20, 9), (32, 20, 19))
    viewer.page.wait_for_function("volsam.session.prompts.length === 1")
    (box,) = viewer.state("prompts")
    assert box["low"] == pytest.approx([12, 10, 9])
    assert box["high"] == pytest.approx([32, 30, 19])


def test_doubt_the_next_click_and_measurements_are_shown(viewer: Viewer) -> None:
    viewer.open()
    viewer.click("axial", BALL)
    viewer.page.wait_for_selector("#measurements dt")
    shown = viewer.page.inner_text("#measurements")
    assert "ml" in shown
    assert "mm" in shown
    viewer.page.keyboard.press("u")
    viewer.page.wait_for_function("volsam.session.heat !== null")
    viewer.page.keyboard.press("g")
    viewer.page.wait_for_function("volsam.view.hint !== null")
    assert viewer.page.evaluate("volsam.view.hint.join() === volsam.view.cursor.join()")
    before = len(viewer.state("prompts"))
    viewer.press("Enter")
    viewer.page.wait_for_function(f"volsam.session.prompts.length === {before + 1}")


def test_the_window_follows_presets_and_the_right_button(viewer: Viewer) -> None:
    viewer.open()
    viewer.look_at(BALL)
    grey = viewer.colour_at("axial", (22, 24, 14))
    viewer.page.get_by_role("button", name="Full").click()
    assert viewer.page.evaluate("volsam.view.window") != [0, 1]
    x, y = viewer.place_of("axial", (10, 10, 14))
    viewer.page.mouse.move(x, y)
    viewer.page.mouse.down(button="right")
    viewer.page.mouse.move(x + 5, y + 80, steps=5)
    viewer.page.mouse.up(button="right")
    assert viewer.colour_at("axial", (22, 24, 14)) != grey
    assert viewer.state("prompts") == [], "pointing with the right button sends nothing"


def test_a_dicom_series_is_saved_as_dicom_seg(
    viewer: Viewer, studies: Path, a_dicom_series: Path, tmp_path: Path
) -> None:
    import highdicom

    a_dicom_series.rename(studies / "series")
    viewer.open("?study=series")
    viewer.click("axial", (5, 4, 2))
    voxels = viewer.state("current.voxels")
    asked: list[str] = []
    viewer.page.on("request", lambda request: asked.append(request.url))
    viewer.page.keyboard.press("Control+s")
    viewer.page.get_by_label("DICOM-SEG").check()
    assert not [url for url in asked if "/studies" in url], "all scans are listed to know what kind this one is"
    with viewer.page.expect_download() as arriving:
        viewer.page.get_by_role("button", name="Download").click()
    arriving.value.save_as(tmp_path / "labels.dcm")
    assert np.count_nonzero(highdicom.seg.segread(tmp_path / "labels.dcm").pixel_array) == voxels > 0
    viewer.page.keyboard.press("Control+s")
    viewer.page.get_by_role("button", name="Save into labels/final").click()
    viewer.page.wait_for_function("document.getElementById('toast').textContent.includes('labels/final/series.dcm')")
    assert (studies / "labels" / "final" / "series.dcm").is_file()
