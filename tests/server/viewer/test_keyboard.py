"""The page without a mouse."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from .conftest import Viewer

pytestmark = [pytest.mark.slow, pytest.mark.browser]


def test_everything_is_done_with_the_keyboard_alone(viewer: Viewer) -> None:
    viewer.open()
    page = viewer.page

    # Into the axial plane by the first link of the page, then to the lesion by arrow keys and slices.
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "axial"
    start = page.evaluate("volsam.view.cursor")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("volsam.view.cursor") != start
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("PageUp")
    page.keyboard.press("PageDown")
    assert page.evaluate("volsam.view.cursor") == start
    page.wait_for_function("document.activeElement.getAttribute('aria-label').includes('slice 16 of 30')")

    # A click, one with the other sign, and back.
    viewer.press("Enter")
    assert viewer.state("current.voxels") > 0
    page.wait_for_function("document.getElementById('live').textContent.includes('ml')")
    for _ in range(2):
        page.keyboard.press("Shift+ArrowUp")
    viewer.press("Shift+Enter")
    page.wait_for_function("volsam.session.prompts.length === 2")
    assert [prompt["positive"] for prompt in viewer.state("prompts")] == [True, False]
    viewer.press("Control+z")
    page.wait_for_function("volsam.session.prompts.length === 1")
    viewer.press("Control+Shift+z")
    page.wait_for_function("volsam.session.prompts.length === 2")
    viewer.press("Delete")
    page.wait_for_function("volsam.session.prompts.length === 1")

    # A box between two corners, in an object of its own with a name.
    viewer.press("n", "b")
    viewer.look_at((22, 20, 14))
    viewer.press("Enter", "Shift+ArrowLeft", "Shift+ArrowUp", "Enter")
    page.wait_for_function("volsam.session.prompts.length === 1")
    (box,) = viewer.state("prompts")
    assert box["type"] == "box"
    assert np.subtract(box["high"], box["low"]) == pytest.approx([10, 10, 0])
    page.keyboard.press("F2")
    page.keyboard.type("lesion")
    viewer.press("Enter")
    assert viewer.state("current.name") == "lesion"

    # Keys that type are left alone; those on the planes and the sheet are not.
    viewer.press("e")
    assert viewer.state("current.name") != "lesion"
    viewer.press("v")
    assert not viewer.state("current.visible")
    page.keyboard.press("?")
    assert page.is_visible("#help-sheet")
    page.keyboard.press("n")
    page.keyboard.press("Escape")
    assert not page.is_visible("#help-sheet")
    assert len(viewer.state("objects")) == 2, "a key went through the sheet"


def test_every_control_has_a_name_and_can_be_reached(viewer: Viewer) -> None:
    viewer.open()
    nameless = viewer.page.evaluate(
        """[...document.querySelectorAll("main button, main input, header button, header select, canvas")]
          .filter((one) => !one.hidden && !one.getAttribute("aria-label") && !one.title && !one.textContent.trim()
                           && !one.closest("label"))
          .map((one) => one.outerHTML.slice(0, 80))"""
    )
    assert nameless == []
    visited = set()
    for _ in range(60):
        viewer.page.keyboard.press("Tab")
        visited.add(viewer.page.evaluate("document.activeElement.id || document.activeElement.dataset?.tool || ''"))
    assert {"axial", "coronal", "sagittal", "space", "save", "sign", "point", "lasso", "doubt"} <= visited


def test_the_sheet_of_shortcuts_and_the_documentation_name_the_same_keys(viewer: Viewer) -> None:
    page = Path(__file__).parents[3] / "docs" / "reference" / "viewer.md"
    viewer.open()
    shown = viewer.page.evaluate(
        """import("./keys.js").then(({ SHEET }) => Object.values(SHEET).flat().map(([keys]) => keys))"""
    )
    text = page.read_text()
    missing = [keys for keys in shown if f"| {keys} |" not in text]
    assert missing == []
