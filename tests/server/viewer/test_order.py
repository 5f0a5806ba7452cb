"""Steps that are asked for before the answers to earlier ones are there."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import volsam
from volsam.data.io import write_volume
from volsam.volume import Volume

from .conftest import Server, Viewer

pytestmark = [pytest.mark.slow, pytest.mark.browser]

BALL = (22, 20, 14)
OTHER = (34, 30, 20)
SHAPE = (48, 44, 30)


@pytest.fixture
def other(studies: Path, a_small_ct: Volume) -> str:
    """The name of a second scan."""
    write_volume(a_small_ct, studies / "other.nii.gz")
    return "other.nii.gz"


def kept(viewer: Viewer, what: str = "objects") -> Any:
    """What the server has of the session."""
    return viewer.page.evaluate(f"volsam.api.call('GET', 'session/{what}')")


def prompts(viewer: Viewer, number: int) -> list[Any]:
    """Where the clicks of an object are, as the server has them."""
    found = kept(viewer, f"prompts?object={number}&space=voxel")["prompts"]
    return [[round(at) for at in prompt["position"]] for prompt in found]


def wait_opened(viewer: Viewer, study: str) -> None:
    viewer.page.wait_for_function(f"volsam.session.state.study === '{study}'")
    viewer.page.wait_for_selector("body[data-ready=true]")
    viewer.settle()


# --- actions ---------------------------------------------------------------------------------------------------------


def test_a_click_after_a_new_object_is_the_new_objects_though_an_earlier_click_waits(viewer: Viewer) -> None:
    viewer.open()
    viewer.hold("POST", "/session/prompts")
    viewer.point("axial", BALL)
    viewer.wait_held()
    viewer.page.keyboard.press("n")
    viewer.point("axial", OTHER)
    viewer.release()
    viewer.settle()
    assert prompts(viewer, 1) == [list(BALL)]
    assert prompts(viewer, 2) == [list(OTHER)]
    assert viewer.state("state.current") == 2


def test_delete_takes_the_click_away_that_still_waits(viewer: Viewer) -> None:
    viewer.open()
    viewer.click("axial", BALL)
    viewer.hold("POST", "/session/prompts")
    viewer.point("axial", OTHER)
    viewer.wait_held()
    viewer.page.keyboard.press("Delete")
    viewer.release()
    viewer.settle()
    assert prompts(viewer, 1) == [list(BALL)]
    assert len(viewer.state("prompts")) == 1


def test_keys_that_turn_something_over_count_though_an_earlier_click_waits(viewer: Viewer) -> None:
    viewer.open()
    viewer.press("n", "n")
    viewer.hold("POST", "/session/prompts")
    viewer.point("axial", BALL)
    viewer.wait_held()
    for key in ("v", "v", "v", "e", "e", "k"):
        viewer.page.keyboard.press(key)
    viewer.point("axial", OTHER)
    viewer.release()
    viewer.settle()
    assert [item["visible"] for item in kept(viewer)["objects"]] == [True, True, False]
    assert [item["locked"] for item in kept(viewer)["objects"]] == [False, True, False]
    assert viewer.state("state.current") == 2, "E goes round: 3, 1, 2"
    assert prompts(viewer, 2) == []
    assert "locked" in viewer.page.inner_text("#toast")


def test_clicks_in_one_scan_do_not_land_in_the_next(viewer: Viewer, other: str) -> None:
    viewer.open()
    first = viewer.state("state.id")
    viewer.hold("POST", "/session/prompts")
    viewer.point("axial", BALL)
    viewer.wait_held()
    viewer.point("axial", OTHER)
    viewer.choose(other)
    viewer.point("axial", (8, 8, 14))  # the first scan is still the one that is seen
    viewer.release()
    wait_opened(viewer, other)
    assert [item["prompts"] for item in kept(viewer)["objects"]] == [0]
    assert not viewer.mask(1, SHAPE).any()
    assert viewer.state("current.prompts") == 0
    assert viewer.state("prompts") == []

    viewer.page.evaluate("id => volsam.session.open({ resume: id })", first)
    wait_opened(viewer, "ct.nii.gz")
    assert prompts(viewer, 1) == [list(BALL), list(OTHER)], "what was asked for before belongs to the first"


# --- the server's other answers --------------------------------------------------------------------------------------


def test_another_rule_where_objects_meet_is_seen_at_once(viewer: Viewer) -> None:
    viewer.open()
    viewer.step(lambda: viewer.page.get_by_label("Overlap").check())
    viewer.click("axial", BALL)
    viewer.press("n")
    viewer.click("axial", BALL)
    assert (viewer.mask(1, SHAPE) & viewer.mask(2, SHAPE)).any()
    viewer.step(lambda: viewer.page.get_by_label("Keep").check())
    masks = [viewer.mask(number, SHAPE) for number in (1, 2)]
    assert not (masks[0] & masks[1]).any()
    assert viewer.state("state.policy") == "keep"
    counted = [np.count_nonzero(mask) for mask in masks]
    assert [item["voxels"] for item in kept(viewer)["objects"]] == counted
    assert [item["voxels"] for item in viewer.state("objects")] == counted


def test_another_model_stays_chosen_and_offers_what_it_takes(
    viewer: Viewer, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    narrow: Any = copy.copy(volsam.load_model("sam-mini", device="cpu"))
    narrow.takes = frozenset({"click", "negative click"})
    monkeypatch.setattr("volsam.recipes.recipe.load_model", lambda name, *, device: narrow)
    server.stop()
    server.settings = server.settings.model_copy(update={"models": ("volsam-s", "sam-mini")})
    server.start()
    viewer.open()
    titles = dict(
        viewer.page.evaluate("[...document.getElementById('model').options].map(({ value, title }) => [value, title])")
    )
    assert titles["volsam-s"] == "small promptable 3D model, made for a CPU; the default; licence: Apache-2.0"
    viewer.click("axial", BALL)
    before = viewer.mask(1, SHAPE)
    viewer.press("b")
    assert viewer.page.evaluate("volsam.tools.tool") == "box"
    viewer.step(lambda: viewer.page.select_option("#model", "sam-mini"))
    state = viewer.page.evaluate("volsam.api.call('GET', 'session')")
    assert "box" not in state["takes"]
    assert viewer.state("state.takes") == state["takes"]
    assert viewer.page.input_value("#model") == viewer.state("state.model") == "sam-mini"
    assert viewer.page.is_disabled("[data-tool=box]")
    assert viewer.page.evaluate("[volsam.tools.tool, volsam.tools.deep]") == ["point", True]
    mask = viewer.mask(1, SHAPE)
    assert (mask != before).any()
    assert np.count_nonzero(mask) == state["objects"][0]["voxels"] == viewer.state("current.voxels")
    viewer.press("n")
    assert viewer.page.input_value("#model") == "sam-mini"


# --- late answers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["click", "object", "scan"])
def test_late_doubt_is_not_shown_on_something_else(viewer: Viewer, other: str, what: str) -> None:
    viewer.open()
    viewer.click("axial", BALL)
    viewer.hold("GET", "/uncertainty", answers=True)
    viewer.page.keyboard.press("u")
    viewer.wait_held()
    if what == "click":
        viewer.click("axial", OTHER)
    elif what == "object":
        viewer.press("n")
    else:
        viewer.choose(other)
        wait_opened(viewer, other)
    viewer.release()
    viewer.page.wait_for_function("volsam.passed === 1")
    viewer.page.wait_for_timeout(300)
    assert viewer.state("heat") is None
    assert viewer.page.inner_text("#doubt-note") == ""
    assert viewer.page.get_attribute("#doubt", "aria-pressed") == "false"


def test_doubt_goes_away_with_the_object_that_it_is_about(viewer: Viewer) -> None:
    viewer.open()
    viewer.click("axial", BALL)
    viewer.page.keyboard.press("u")
    viewer.page.wait_for_function("volsam.session.heat !== null")
    viewer.press("v")  # changes nothing that it says
    assert viewer.state("heat") is not None
    viewer.press("n")
    assert viewer.state("heat") is None
    assert viewer.page.get_attribute("#doubt", "aria-pressed") == "false"


def test_late_measurements_are_not_shown_for_another_scan(viewer: Viewer, other: str) -> None:
    viewer.open()
    viewer.hold("GET", "/measurements", answers=True)
    viewer.click("axial", BALL)
    viewer.wait_held()
    viewer.choose(other)
    wait_opened(viewer, other)
    viewer.release()
    viewer.page.wait_for_function("volsam.passed === 1")
    viewer.page.wait_for_timeout(700)
    assert viewer.page.inner_text("#measurements") == "No mask yet."
