"""Who works on which scan, what they go on with, and where they save it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from volsam.data.io import write_volume
from volsam.volume import Volume

from .conftest import Viewer

pytestmark = [pytest.mark.slow, pytest.mark.browser]

BALL = (22, 20, 14)
SHAPE = (48, 44, 30)


def begin(viewer: Viewer) -> Any:
    """The page with the sheet to choose a scan from."""
    viewer.page.goto(viewer.address)
    viewer.page.wait_for_selector("#studies button")
    return viewer.page


def test_the_list_asks_once_for_all_saved_sessions(viewer: Viewer, studies: Path, a_small_ct: Volume) -> None:
    for name in ("b.nii.gz", "c.nii.gz"):
        write_volume(a_small_ct, studies / name)
    viewer.open()
    viewer.click("axial", BALL)
    asked: list[str] = []
    viewer.page.on("request", lambda request: "/v1/sessions" in request.url and asked.append(request.url))
    page = begin(viewer)
    rows = [row.split("\n")[0] for row in page.locator("#studies button").all_inner_texts()]
    assert rows == ["b.nii.gz", "c.nii.gz", "ct.nii.gz", "Go on: object"]
    page.fill("#query", "ct")
    page.wait_for_function("document.querySelectorAll('#studies button').length === 2")
    page.fill("#query", "b.nii")
    page.wait_for_function("document.querySelectorAll('#studies button').length === 1")
    assert len(asked) == 1
    assert "study=" not in asked[0]


def test_a_name_goes_with_what_is_opened_and_tells_people_apart(viewer: Viewer, studies: Path) -> None:
    viewer.forgive("409")
    page = begin(viewer)
    assert page.input_value("#annotator") == ""
    page.fill("#annotator", "  Ana ")
    page.locator("#studies button", has_text="ct.nii.gz").click()
    page.wait_for_selector("body[data-ready=true]")
    assert viewer.state("state.annotator") == "Ana"
    viewer.click("axial", BALL)

    page = begin(viewer)
    assert page.input_value("#annotator") == "Ana"
    assert page.locator("#studies .resume small").inner_text().startswith("Ana, 1 prompt,")
    page.set_input_files("#file", studies / "ct.nii.gz")
    page.wait_for_selector("body[data-ready=true]")
    assert viewer.state("state.study") is None
    assert viewer.state("state.annotator") == "Ana"

    page.goto(viewer.address + "?study=ct.nii.gz")
    page.wait_for_selector("#ask[open]")
    assert "what you did" in page.inner_text("#ask-text")
    page.evaluate("localStorage.setItem('volsam-annotator', 'Ben')")
    page.reload()
    page.wait_for_selector("#ask[open]")
    assert "what Ana did" in page.inner_text("#ask-text")
    page.get_by_role("button", name="No").click()
    page.wait_for_selector("body[data-ready=true]")
    assert viewer.state("state.annotator") == "Ben"


def test_without_a_name_nobody_is_named(viewer: Viewer, studies: Path) -> None:
    page = begin(viewer)
    page.fill("#annotator", "  ")
    page.locator("#studies button", has_text="ct.nii.gz").click()
    page.wait_for_selector("body[data-ready=true]")
    assert viewer.state("state.annotator") is None
    viewer.page.goto(viewer.address)
    page.set_input_files("#file", studies / "ct.nii.gz")
    page.wait_for_selector("body[data-ready=true]")
    assert viewer.state("state.annotator") is None


def test_labels_are_saved_under_a_tag_of_ones_own(viewer: Viewer, studies: Path) -> None:
    page = viewer.page
    viewer.open()
    viewer.click("axial", BALL)
    page.keyboard.press("Control+s")
    page.wait_for_selector("#save-sheet[open]")
    assert page.input_value("#tag") == "final"
    for wrong in ("../out", "", "_a", "a b"):
        page.fill("#tag", wrong)
        page.locator("#save-beside").click()
        assert page.is_visible("#save-sheet"), wrong
    page.fill("#tag", "round-2")
    assert "labels/round-2" in page.inner_text("#save-place")
    page.keyboard.press("Enter")
    page.wait_for_function("document.getElementById('toast').textContent.includes('labels/round-2/ct.nii.gz')")
    assert (studies / "labels" / "round-2" / "ct.nii.gz").is_file()
    assert not (studies / "labels" / "final").exists()

    viewer.forgive("409")
    page.keyboard.press("Control+s")
    page.get_by_role("button", name="Save into labels/round-2").click()
    page.wait_for_selector("#ask[open]")
    assert "labels/round-2" in page.inner_text("#ask-text")
    page.get_by_role("button", name="No").click()

    # A tag that will not do stands in the way neither of leaving nor of a download.
    page.keyboard.press("Control+s")
    page.fill("#tag", "a b")
    page.get_by_role("button", name="Cancel").click()
    page.wait_for_selector("#save-sheet", state="hidden")
    page.wait_for_timeout(300)  # nobody is quicker than the browser tells that the sheet is closed
    page.keyboard.press("Control+s")
    assert page.input_value("#tag") == "final"
    page.fill("#tag", "a b")
    with page.expect_download():
        page.get_by_role("button", name="Download").click()


def test_an_uploaded_file_has_no_place_for_labels(viewer: Viewer, studies: Path) -> None:
    page = begin(viewer)
    page.set_input_files("#file", studies / "ct.nii.gz")
    page.wait_for_selector("body[data-ready=true]")
    page.keyboard.press("Control+s")
    page.wait_for_selector("#save-sheet[open]")
    assert page.is_hidden("#save-tag")
    assert page.is_hidden("#save-beside")
    assert page.is_hidden("#save-dicom")
    with page.expect_download():
        page.get_by_role("button", name="Download").click()


def test_a_session_of_a_model_that_is_gone_is_made_anew_only_after_a_question(viewer: Viewer, tmp_path: Path) -> None:
    viewer.forgive("409")
    viewer.open()
    viewer.click("axial", BALL)
    number, mask = viewer.state("state.id"), viewer.mask(1, SHAPE)
    viewer.page.goto("about:blank")  # gives the session back
    file = tmp_path / "sessions" / number / "session.json"
    record = json.loads(file.read_text())
    record["server"]["model"] = "yesterday"
    file.write_text(json.dumps(record))

    viewer.page.goto(f"{viewer.address}?session={number}")
    viewer.page.wait_for_selector("#ask[open]")
    assert "made with yesterday" in viewer.page.inner_text("#ask-text")
    assert "with volsam-s?" in viewer.page.inner_text("#ask-text")
    viewer.page.get_by_role("button", name="No").click()
    viewer.page.wait_for_selector("#start[open]")
    viewer.page.locator("#studies .resume").click()
    viewer.page.get_by_role("button", name="Yes").click()
    viewer.page.wait_for_selector("body[data-ready=true]")
    assert viewer.state("state.id") == number
    assert viewer.state("state.model") == "volsam-s"
    np.testing.assert_array_equal(viewer.mask(1, SHAPE), mask)


def test_labels_of_a_model_are_opened_corrected_and_saved(viewer: Viewer, studies: Path, a_small_ct: Volume) -> None:
    labels = np.zeros(SHAPE, np.uint8)
    labels[10:20, 10:22, 8:18], labels[28:36, 20:30, 12:20] = 1, 2
    place = studies / "labels" / "auto"
    place.mkdir(parents=True)
    write_volume(a_small_ct.with_data(labels[None]), place / "ct.nii.gz")
    (place / "labels.json").write_text('{"liver": 1, "spleen": 2}')
    page = begin(viewer)
    page.locator("#studies .resume", has_text="Correct: labels/auto").click()
    page.wait_for_selector("body[data-ready=true]")
    assert page.locator("#objects .name").evaluate_all("all => all.map(({ value }) => value)") == ["liver", "spleen"]
    page.wait_for_selector("#prompts >> text=Mask")
    before = viewer.state("current.voxels")
    assert before == (labels == 1).sum()
    viewer.click("axial", (30, 10, 14))
    page.wait_for_function(f"volsam.session.current.voxels > {before}")
    page.keyboard.press("Control+z")
    page.wait_for_function(f"volsam.session.current.voxels === {before}")
