"""Everything that goes wrong: one sentence, no crash, and no segment lost."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from VolSamLib import geometry
from VolSamLib.connection import Failed, failure, look
from VolSamLib.geometry import Refused
from worlds import MIDDLE, add_ball, mask_of

import slicer


@pytest.fixture
def at_work(logic):
    """One click was answered."""
    logic.choose(add_ball())
    click(logic)
    assert mask_of(logic).any()
    return logic


def click(logic, by=(0, 0, 0), positive=True, wait=True) -> None:
    logic.click(geometry.to_world(logic.volume, np.add(MIDDLE, by)), positive)
    assert not wait or logic.wait()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


@pytest.fixture
def a_wall() -> Iterator[str]:
    """A place that takes connections and never answers."""
    wall = socket.create_server(("127.0.0.1", 0))
    yield f"http://127.0.0.1:{wall.getsockname()[1]}"
    wall.close()


@pytest.fixture
def an_imposter() -> Iterator[tuple[str, dict[str, tuple[int, bytes]]]]:
    """A server of something else; what it answers to a path can be set."""
    answers: dict[str, tuple[int, bytes]] = {}

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, body = answers.get(self.path, (200, b"<html>welcome</html>"))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_DELETE = answer

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", answers
    server.shutdown()
    server.server_close()


def test_a_server_that_was_killed_loses_nothing(logic, said, serve, server):
    mortal = serve()
    logic.use_server(mortal.address)
    logic.choose(add_ball())
    click(logic)
    first = mask_of(logic)
    mortal.kill()
    click(logic, (7, 0, 0))
    assert len(said.errors) == 1
    assert "does not answer" in said.errors[0]
    assert "press Ask again" in said.errors[0]
    assert np.array_equal(mask_of(logic), first)
    assert len(logic.said.turns) == 2
    logic.use_server(server.address)
    logic.again()
    assert logic.wait()
    assert len(said.errors) == 1
    assert not np.array_equal(mask_of(logic), first)
    logic.undo()
    assert np.array_equal(mask_of(logic), first)


def test_a_server_that_was_restarted_goes_on(logic, said, serve):
    port = str(free_port())
    mortal = serve("--port", port)
    logic.use_server(mortal.address)
    logic.choose(add_ball())
    click(logic)
    click(logic, (7, 0, 0))
    second = mask_of(logic)
    mortal.kill()
    serve("--port", port)
    logic.again()
    assert logic.wait()
    assert not said.errors
    assert np.array_equal(mask_of(logic), second)


def test_nobody_at_the_address(logic, said):
    logic.use_server(f"http://127.0.0.1:{free_port()}")
    logic.choose(add_ball())
    click(logic)
    assert len(said.errors) == 1
    assert "start it or check the address" in said.errors[0]
    assert len(logic.said.turns) == 1


@pytest.mark.parametrize("address", ["", "somewhere", "ftp://127.0.0.1:5", "http://127.0.0.1:notaport", "http://"])
def test_an_address_that_is_none(logic, said, address):
    logic.use_server(address)
    logic.choose(add_ball())
    click(logic)
    assert len(said.errors) == 1
    assert "is not the address of a server" in said.errors[0]


def test_a_network_that_was_cut_can_be_waited_for_no_longer(at_work, said, a_wall, server):
    first = mask_of(at_work)
    at_work.use_server(a_wall)
    click(at_work, (7, 0, 0), wait=False)
    assert not at_work.wait(0.3)
    assert at_work.is_busy
    at_work.cancel()
    assert not at_work.is_busy
    assert np.array_equal(mask_of(at_work), first)
    at_work.use_server(server.address)
    at_work.again()
    assert at_work.wait()
    assert not said.errors
    assert not np.array_equal(mask_of(at_work), first)


def test_a_model_that_the_server_does_not_have(at_work, said):
    first = mask_of(at_work)
    at_work.use_model("nobody")
    click(at_work, (7, 0, 0))
    assert len(said.errors) == 1
    assert "no model 'nobody'; it has: volsam-s" in said.errors[0]
    assert np.array_equal(mask_of(at_work), first)
    at_work.use_model("volsam-s")
    at_work.again()
    assert at_work.wait()
    assert len(said.errors) == 1


def test_a_server_without_memory_for_it(logic, said, an_imposter):
    address, answers = an_imposter
    lease = b'{"lease": "x", "liveness_timeout_seconds": 60}'
    answers["/api/v1/lease"] = (201, lease)
    answers["/api/v1/session/array"] = (413, b'{"detail": "needs 9 GB, 2 GB are free", "code": "too_large"}')
    logic.use_server(address)
    logic.choose(add_ball())
    click(logic)
    assert said.errors == [
        "Needs 9 GB, 2 GB are free: crop the volume with the module Crop Volume, or use a larger server. "
        "Your points are kept."
    ]
    answers["/api/v1/session/array"] = (500, b'{"detail": "out of memory", "code": "internal"}')
    logic.again()
    assert logic.wait()
    assert said.errors[1].startswith("The server failed (out of memory): look into its log")
    assert len(logic.said.turns) == 1


def test_something_else_at_the_address(logic, said, an_imposter):
    logic.use_server(an_imposter[0])
    logic.choose(add_ball())
    click(logic)
    assert len(said.errors) == 1
    assert "not that of a volsam server" in said.errors[0]
    with pytest.raises(Failed, match="not that of a volsam server"):
        look(an_imposter[0], "")


def test_a_full_server_and_a_wrong_key(logic, said, an_imposter):
    address, answers = an_imposter
    answers["/api/v1/lease"] = (503, b'{"detail": "all 8 leases are taken", "code": "full"}')
    logic.use_server(address)
    logic.choose(add_ball())
    click(logic)
    answers["/api/v1/lease"] = (401, b'{"detail": "wrong key", "code": "key"}')
    logic.again()
    assert logic.wait()
    assert "is full (all 8 leases are taken)" in said.errors[0]
    assert "wants a key" in said.errors[1]


def test_a_volume_that_changes_while_it_is_asked_about(at_work, said):
    first = mask_of(at_work)
    click(at_work, (7, 0, 0), wait=False)
    slicer.util.arrayFromVolume(at_work.volume)[:] += 100
    slicer.util.arrayFromVolumeModified(at_work.volume)
    assert at_work.wait()
    assert said.errors == ["ball has changed meanwhile, so the answer was left out: press Ask again."]
    assert np.array_equal(mask_of(at_work), first)
    at_work.again()
    assert at_work.wait()
    assert len(said.errors) == 1


def test_a_volume_that_is_exchanged_while_it_is_asked_about(at_work, said):
    first, segments, segment = mask_of(at_work), at_work.segments, at_work.segment
    click(at_work, (7, 0, 0), wait=False)
    at_work.choose(add_ball("another"))
    assert at_work.wait()
    assert not said.errors
    assert segments.part(segment).voxels == first.sum()
    assert at_work.segments.part(at_work.segment).voxels == 0


def test_a_volume_or_segment_that_is_removed_while_it_is_asked_about(at_work, said):
    click(at_work, (7, 0, 0), wait=False)
    at_work.segments.node.GetSegmentation().RemoveSegment(at_work.segment)
    assert at_work.wait()
    assert said.errors == ["The volume or the segment is not there any more, so the answer was left out."]
    at_work.add_segment()
    click(at_work, wait=False)
    slicer.mrmlScene.RemoveNode(at_work.volume)
    assert at_work.wait()
    assert said.errors[1:] == said.errors[:1]


def test_a_scene_that_is_closed_while_it_is_asked_about(at_work, said):
    click(at_work, (7, 0, 0), wait=False)
    slicer.mrmlScene.Clear(0)
    assert at_work.wait()
    assert len(said.errors) == 1
    at_work.choose(add_ball("next"))
    click(at_work)
    assert mask_of(at_work).any()


def test_a_prompt_that_the_server_refuses_is_taken_back(at_work, said, monkeypatch):
    first = mask_of(at_work)
    monkeypatch.setattr(geometry, "is_inside", lambda *_: True)
    click(at_work, (500, 0, 0))
    assert len(said.errors) == 1
    assert len(at_work.said.turns) == 1
    click(at_work, (7, 0, 0))
    assert len(said.errors) == 1
    assert not np.array_equal(mask_of(at_work), first)


def test_nothing_can_be_asked_before_there_is_something(logic):
    for act in (logic.add_segment, logic.again, logic.ask_doubt, lambda: logic.click((0, 0, 0))):
        with pytest.raises(Refused, match="No volume is chosen"):
            act()
    logic.choose(add_ball())
    for act in (logic.again, logic.ask_doubt):
        with pytest.raises(Refused, match="Nothing has been said"):
            act()
    with pytest.raises(Refused, match="nothing yet to exclude"):
        click(logic, positive=False)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("odd"), KeyError("lease"), OSError("gone")])
def test_every_failure_is_one_sentence(error):
    text = failure(error).text
    assert "\n" not in text
    assert text.endswith("Your points are kept.")
