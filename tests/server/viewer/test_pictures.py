"""Pictures of the page for the documentation: made when VOLSAM_PICTURES names a folder for them.

VOLSAM_PICTURES=docs/images pytest tests/server/viewer/test_pictures.py
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from volsam.data.io import write_volume
from volsam.data.synthetic import sample_volume

from .conftest import Viewer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.browser,
    pytest.mark.skipif("VOLSAM_PICTURES" not in os.environ, reason="pictures are made when VOLSAM_PICTURES asks"),
]

LARGEST = 300_000  # bytes


def test_pictures_of_the_page_are_made(viewer: Viewer, studies: Path) -> None:
    write_volume(sample_volume()[0], studies / "sample.nii.gz")
    viewer.open("?study=sample.nii.gz")
    name(viewer, "left kidney")
    viewer.click("axial", (36, 38, 26))

    viewer.press("n")
    name(viewer, "liver")
    viewer.look_at((78, 56, 48))
    viewer.press("b", "f")
    viewer.drag("axial", (60, 35, 48), (97, 82, 48))
    viewer.picture("viewer-box.png")
    viewer.drag("coronal", (60, 56, 27), (97, 56, 70))
    viewer.press("p")
    viewer.click("axial", (88, 66, 56))

    viewer.press("n")
    name(viewer, "right kidney")
    viewer.click("coronal", (76, 38, 26))
    viewer.press("e", "e")
    viewer.press("h")
    viewer.page.wait_for_selector("#measurements dt")
    viewer.picture("viewer.png")

    viewer.page.keyboard.press("u")
    viewer.page.wait_for_function("volsam.session.heat !== null")
    viewer.page.keyboard.press("g")
    viewer.page.wait_for_function("volsam.view.hint !== null")
    viewer.picture("viewer-doubt.png")

    viewer.page.keyboard.press("u")
    viewer.press("h", "a", "a", "d", "1")
    viewer.picture("viewer-projector.png")
    for picture in Path(os.environ["VOLSAM_PICTURES"]).glob("viewer*.png"):
        assert picture.stat().st_size < LARGEST, picture


def name(viewer: Viewer, text: str) -> None:
    viewer.page.keyboard.press("F2")
    viewer.page.keyboard.type(text)
    viewer.press("Enter")
