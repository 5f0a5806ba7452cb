"""What the page does when something goes wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from .conftest import Server, Viewer

pytestmark = [pytest.mark.slow, pytest.mark.browser]

BALL = (22, 20, 14)
SHAPE = (48, 44, 30)


def test_the_page_goes_on_after_the_server_was_started_again(viewer: Viewer, server: Server) -> None:
    viewer.open()
    viewer.click("axial", BALL)
    mask = viewer.mask(1, SHAPE)
    viewer.page.wait_for_selector("#measurements dt")  # nothing is asked for while it stops
    viewer.forgive("ERR_CONNECTION_REFUSED", "410", "ERR_EMPTY_RESPONSE", "ERR_CONNECTION_RESET")
    server.stop()
    viewer.page.mouse.click(*viewer.place_of("axial", (30, 20, 14)))
    viewer.page.wait_for_selector("#banner:not([hidden])")
    assert "does not answer" in viewer.page.inner_text("#banner")
    assert viewer.page.inner_text("#saved") == "Not connected"

    server.start()
    viewer.page.wait_for_selector("#banner", state="hidden")
    viewer.settle()
    np.testing.assert_array_equal(viewer.mask(1, SHAPE), mask)
    viewer.click("axial", (24, 22, 14))
    viewer.page.wait_for_function("volsam.session.prompts.length === 2")
    assert viewer.page.inner_text("#saved") == "All steps saved"


def test_an_ended_lease_is_claimed_again_and_the_click_is_not_lost(viewer: Viewer) -> None:
    viewer.open()
    viewer.click("axial", BALL)
    viewer.forgive("410")
    viewer.page.evaluate("fetch('api/v1/lease', { method: 'DELETE', headers: { 'X-Lease-Token': volsam.api.lease } })")
    viewer.click("axial", (24, 22, 14))
    viewer.page.wait_for_function("volsam.session.prompts.length === 2")
    viewer.settle()
    viewer.page.evaluate("volsam.api.lease = null")  # as after a heartbeat that came too late
    viewer.click("axial", (20, 18, 14))
    viewer.page.wait_for_function("volsam.session.prompts.length === 3")
    assert viewer.mask(1, SHAPE).any()


def test_masks_that_are_unpacked_late_after_an_ended_lease_do_not_undo_the_click(viewer: Viewer) -> None:
    viewer.open()
    viewer.click("axial", BALL)
    before = viewer.mask(1, SHAPE)
    viewer.forgive("410")
    # The first stream from now on unpacks the masks of the resumed session; it takes its time.
    viewer.page.evaluate("""() => {
        const Stream = DecompressionStream;
        window.DecompressionStream = function (format) {
            window.DecompressionStream = Stream;
            const late = new TransformStream({ start: () => new Promise((done) => setTimeout(done, 3000)) });
            const { readable, writable } = new Stream(format);
            readable.pipeTo(late.writable);
            return { readable: late.readable, writable };
        };
    }""")
    viewer.page.evaluate("volsam.api.lease = null")
    viewer.click("axial", (10, 8, 20))
    viewer.page.wait_for_timeout(4000)
    viewer.settle()
    assert (viewer.mask(1, SHAPE) != before).any()
    kept = viewer.page.evaluate("volsam.api.call('GET', 'session/objects').then(({ objects }) => objects[0].voxels)")
    assert np.count_nonzero(viewer.mask(1, SHAPE)) == kept


def test_a_reload_goes_on_with_the_same_session(viewer: Viewer) -> None:
    viewer.open()
    viewer.click("axial", BALL)
    number, mask = viewer.state("state.id"), viewer.mask(1, SHAPE)
    viewer.forgive("409")  # if the page comes back before its lease was given back
    viewer.page.reload()
    viewer.page.wait_for_selector("body[data-ready=true]")
    viewer.settle()
    assert viewer.state("state.id") == number
    np.testing.assert_array_equal(viewer.mask(1, SHAPE), mask)
    viewer.press("Control+z")
    assert not viewer.mask(1, SHAPE).any()


def test_a_later_visit_to_the_scan_offers_the_saved_session(viewer: Viewer) -> None:
    viewer.open()
    viewer.click("axial", BALL)
    number = viewer.state("state.id")
    viewer.forgive("409")
    viewer.page.goto(viewer.address + "?study=ct.nii.gz")
    viewer.page.get_by_role("button", name="Yes").click()
    viewer.page.wait_for_selector("body[data-ready=true]")
    assert viewer.state("state.id") == number
    assert viewer.mask(1, SHAPE).any()


def test_a_scan_that_is_not_there_and_a_file_that_is_none_are_told_in_one_sentence(
    viewer: Viewer, tmp_path: Path
) -> None:
    viewer.forgive("404", "400")
    viewer.page.goto(viewer.address + "?study=nothing.nii.gz")
    viewer.page.wait_for_selector("#start-error:not([hidden])")
    assert "nothing.nii.gz" in viewer.page.inner_text("#start-error")
    (tmp_path / "letter.nii.gz").write_text("Dear colleague")
    viewer.page.set_input_files("#file", tmp_path / "letter.nii.gz")
    viewer.page.wait_for_function("document.getElementById('start-error').textContent.includes('letter')")
    assert "\n" not in viewer.page.inner_text("#start-error")


def test_a_file_of_this_computer_is_opened(viewer: Viewer, studies: Path) -> None:
    viewer.page.goto(viewer.address)
    viewer.page.wait_for_selector("#start[open]")
    viewer.page.set_input_files("#file", studies / "ct.nii.gz")
    viewer.page.wait_for_selector("body[data-ready=true]")
    viewer.click("sagittal", BALL)
    assert viewer.state("current.voxels") > 0


def test_the_page_asks_for_the_key_of_a_server_that_wants_one(viewer: Viewer, server: Server) -> None:
    server.stop()
    server.settings = server.settings.model_copy(update={"key": _secret("open sesame, and more")})
    server.start()
    viewer.forgive("401")
    viewer.page.goto(viewer.address + "?study=ct.nii.gz")
    viewer.page.fill("#key", "wrong")
    viewer.page.get_by_role("button", name="Go on").click()
    viewer.page.wait_for_selector("#key-sheet[open]")
    viewer.page.fill("#key", "open sesame, and more")
    viewer.page.get_by_role("button", name="Go on").click()
    viewer.page.wait_for_selector("body[data-ready=true]")


def _secret(text: str) -> object:
    from pydantic import SecretStr

    return SecretStr(text)
