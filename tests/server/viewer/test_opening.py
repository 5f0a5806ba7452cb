"""What the page says of scans before and while they are opened, and of labels that are saved."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest

from volsam.data.io import read_volume

from .conftest import Viewer

pytestmark = [pytest.mark.slow, pytest.mark.browser]

BALL = (22, 20, 14)
FITS = "(place) => document.querySelector(place).scrollWidth <= document.querySelector(place).clientWidth"


def scan(file: Path, shape: tuple[int, ...] = (40, 36, 24), placed: bool = True) -> None:
    """A volume of noise; without a place it has neither qform nor sform."""
    noise = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    image = nibabel.Nifti1Image(noise, np.diag([2.0, 2.0, 2.0, 1.0]) if placed else None)
    nibabel.save(image, file)


def test_a_guessed_orientation_is_told_in_the_page(viewer: Viewer, studies: Path) -> None:
    scan(studies / "nowhere.nii.gz", placed=False)
    viewer.open("?study=nowhere.nii.gz")
    said = "This scan has neither qform nor sform: orientation and position are a guess"
    assert said in viewer.page.inner_text("#notes")
    viewer.page.goto(viewer.address + "?study=ct.nii.gz")
    viewer.page.wait_for_selector("body[data-ready=true]")
    assert viewer.page.is_hidden("#notes")


def test_of_a_file_with_several_frames_one_is_asked_for(viewer: Viewer, studies: Path, tmp_path: Path) -> None:
    scan(tmp_path / "perfusion.nii.gz", (20, 18, 12, 3))
    last = read_volume(tmp_path / "perfusion.nii.gz", frame=2).data[0]
    viewer.forgive("400")
    viewer.page.goto(viewer.address)
    viewer.page.wait_for_selector("#start[open]")
    viewer.page.set_input_files("#file", tmp_path / "perfusion.nii.gz")
    viewer.page.wait_for_selector("#frame-sheet[open]")
    assert "3 frames" in viewer.page.inner_text("#frame-text")
    viewer.page.get_by_role("button", name="Cancel").click()
    viewer.page.wait_for_selector("#start[open]")

    viewer.page.set_input_files("#file", tmp_path / "perfusion.nii.gz")
    viewer.page.fill("#frame", "2")
    viewer.page.keyboard.press("Enter")
    viewer.page.wait_for_selector("body[data-ready=true]")
    assert viewer.state("state.intensity.high") == pytest.approx(float(last.max()))


def test_the_list_of_scans_tells_their_size_and_stays_in_its_place(viewer: Viewer, studies: Path) -> None:
    (studies / "empty.nii.gz").write_bytes(b"")
    (studies / "small.nii.gz").write_bytes(b"0" * 2048)
    (studies / f"{'long_' * 45}.nii.gz").write_bytes(b"0" * 20)
    viewer.page.goto(viewer.address)
    viewer.page.wait_for_selector("#studies button")
    rows = dict(row.split("\n") for row in viewer.page.locator("#studies button").all_inner_texts())
    assert rows["empty.nii.gz"] == "0 bytes"
    assert rows["small.nii.gz"] == "2.0 KiB"
    cut = "[...document.querySelectorAll('#studies button')].filter((one) => one.scrollWidth > one.clientWidth)"
    assert viewer.page.evaluate(f"{cut}.length") == 0
    assert viewer.page.evaluate(FITS, "#start")
    assert viewer.page.locator("#studies span").nth(2).get_attribute("title") == f"{'long_' * 45}.nii.gz"


def test_a_scan_that_is_not_there_is_to_be_chosen_from_the_list(viewer: Viewer) -> None:
    viewer.forgive("404")
    viewer.page.goto(viewer.address + "?study=nix.nii.gz")
    viewer.page.wait_for_selector("#start-error:not([hidden])")
    said = viewer.page.inner_text("#start-error")
    assert said == "There is no scan nix.nii.gz on this server: choose one below."


def test_labels_of_an_earlier_day_are_replaced_only_after_a_question(viewer: Viewer, studies: Path) -> None:
    page = viewer.page
    viewer.forgive("409")
    viewer.open()
    viewer.click("axial", BALL)

    def save() -> None:
        page.keyboard.press("Control+s")
        page.wait_for_selector("#save-sheet[open]")
        assert "labels/final" in page.inner_text("#save-place")
        page.get_by_role("button", name="Save into labels/final").click()

    save()
    page.wait_for_function("document.getElementById('toast').textContent.includes('Saved as labels/final/ct.nii.gz')")
    file = studies / "labels" / "final" / "ct.nii.gz"
    before = file.read_bytes()
    viewer.click("axial", (34, 30, 20))
    save()
    page.get_by_role("button", name="No").click()
    page.wait_for_selector("#ask", state="hidden")
    assert file.read_bytes() == before
    save()
    page.get_by_role("button", name="Yes").click()
    page.wait_for_function("document.getElementById('toast').textContent.includes('Replaced labels/final/ct.nii.gz')")
    assert (read_volume(file).data[0] > 0).sum() == viewer.state("current.voxels")


# --- how it looks ----------------------------------------------------------------------------------------------------


def test_every_control_is_in_sight_in_large_type_on_a_small_screen(viewer: Viewer) -> None:
    page = viewer.page
    page.set_viewport_size({"width": 800, "height": 600})
    viewer.open()
    viewer.press("a", "a")
    for control in ("#model", "#open", "#save", "#size", "#theme", "#help"):
        box = page.locator(control).bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 800, control
    viewer.click("axial", BALL)
    page.wait_for_function("document.getElementById('times').textContent.includes('ms')")
    lines = "(() => { const range = document.createRange(); range.selectNodeContents(document.getElementById('hint'));"
    lines += " return new Set([...range.getClientRects()].map((one) => Math.round(one.top))).size; })()"
    assert page.evaluate(lines) <= 2
    inside = "(() => { const icon = document.querySelector('#sign svg').getBoundingClientRect();"
    inside += " const all = document.getElementById('sign').getBoundingClientRect();"
    inside += " return icon.left >= all.left && icon.right <= all.right && icon.bottom <= all.bottom; })()"
    assert page.evaluate(inside)
    assert page.locator("#axial").bounding_box()["height"] > 60


def test_a_long_name_of_an_object_ends_in_dots_and_is_told_in_full(viewer: Viewer) -> None:
    viewer.open()
    name = "metastasis of the left adrenal gland, followed since the spring"
    viewer.page.keyboard.press("F2")
    viewer.page.keyboard.type(name)
    viewer.press("Enter")
    field = viewer.page.locator("#objects .name")
    assert field.get_attribute("title") == name
    assert field.evaluate("field => getComputedStyle(field).textOverflow") == "ellipsis"
    assert viewer.page.evaluate(FITS, "aside")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_is_as_light_as_the_browser_asks_until_a_person_chooses(viewer: Viewer, scheme: str) -> None:
    theme = "document.documentElement.dataset.theme"
    viewer.page.emulate_media(color_scheme=scheme)
    viewer.open()
    assert viewer.page.evaluate(theme) == scheme
    viewer.page.keyboard.press("d")
    other = viewer.page.evaluate(theme)
    assert other != scheme
    viewer.forgive("409")
    viewer.page.reload()
    viewer.page.wait_for_selector("body[data-ready=true]")
    assert viewer.page.evaluate(theme) == other


def test_the_slices_of_a_series_are_opened_together(viewer: Viewer, a_dicom_series: Path) -> None:
    page = viewer.page
    page.goto(viewer.address)
    page.wait_for_selector("#start[open]")
    page.set_input_files("#file", [str(path) for path in sorted(a_dicom_series.iterdir())])
    page.wait_for_selector("body[data-ready=true]")
    assert viewer.state("state.shape") == [12, 10, 6]
    assert viewer.state("state.dicom") is True


def test_a_folder_that_is_chosen_is_a_series_of_its_name(viewer: Viewer, a_dicom_series: Path) -> None:
    page = viewer.page
    page.goto(viewer.address)
    page.wait_for_selector("#start[open]")
    page.set_input_files("#folder", str(a_dicom_series))
    page.wait_for_selector("body[data-ready=true]")
    assert viewer.state("state.name") == "series"
