"""`volsam_client` against a server, beside `volsam.Session` alone: the same verbs, the same masks."""

from __future__ import annotations

import numpy as np
import pytest
from volsam_client import Box, Full, Lasso, LeaseEnded, MaskHint, Refused, Scribble, Server, ServerError, Unreachable
from volsam_client import Click as Sent

from volsam.data.io import read_volume
from volsam.inference.session import Session
from volsam.prompts import Click

A, B, C = (20, 20, 14), (26, 20, 14), (34, 30, 20)


@pytest.fixture
def server(http):
    with Server(http=http) as server:
        yield server


@pytest.fixture
def session(server):
    return server.open("ct.nii.gz")


@pytest.fixture
def alone(a_model, a_small_ct):
    return Session(type(a_model)(), a_small_ct)


def test_the_verbs_do_what_those_of_a_session_do(session, alone):
    def same(box, other) -> None:
        assert box == other
        assert np.array_equal(session.mask, alone.mask.data[0])
        assert (session.can_undo, session.can_redo) == (alone.can_undo, alone.can_redo)
        assert session.quality == alone.quality
        assert [item["id"] for item in session.prompts] == [number for number, _ in alone.prompts]

    for voxel, positive in ((A, True), (C, True), (B, False)):
        point = session.to_world(voxel)
        same(session.add(Sent(point, positive)), alone.add(Click(tuple(point), positive)))
    same(session.undo(), alone.undo())
    same(session.undo(), alone.undo())
    same(session.redo(), alone.redo())
    same(session.remove(1), alone.remove(1))
    same(session.reset(), alone.reset())
    same(session.undo(), alone.undo())
    assert set(session.seconds) >= {"total", "save"}


def test_other_prompts_are_understood(session):
    session.add(Box(session.to_world((16, 14, 10)), session.to_world((28, 26, 18))))
    session.add(Scribble([session.to_world(A), session.to_world(B)]))
    session.add(Lasso([session.to_world(corner) for corner in ((18, 16, 14), (26, 16, 14), (26, 24, 14))]))
    mask = session.mask.copy()
    session.select("copy")
    session.add(MaskHint(mask))
    assert [item["type"] for item in session.prompts] == ["mask"]
    overlap = 2 * (session.mask & mask).sum() / (session.mask.sum() + mask.sum())
    assert overlap > 0.8


def test_objects_and_what_happens_where_they_meet(session):
    session.set(policy="keep", neighbours=False)
    session.add(Sent(session.to_world(A)))
    session.rename("object", "left")
    session.alter("left", colour="#123456")
    session.select("right")
    session.add(Sent(session.to_world(B)))
    assert session.objects == ["left", "right"]
    assert not (session.mask_of("left") & session.mask_of("right")).any()
    before = session.mask.sum()
    session.set(policy="overlap")
    assert session.mask.sum() > before
    session.delete("left")
    assert (session.objects, session.current) == (["right"], "right")
    with pytest.raises(KeyError, match="no object is called 'left'"):
        session.mask_of("left")


def test_results_and_files(session, tmp_path, a_model, a_small_ct):
    session.add(Sent(session.to_world(A)))
    doubt = session.uncertainty()
    assert doubt.bands.shape == tuple(np.subtract(doubt.high, doubt.low))
    assert session.next_click() == doubt.next_click
    assert session.measurements()["voxels"] == session.mask.sum()
    session.write(tmp_path / "mask.nii.gz")
    session.write_labels(tmp_path / "labels.nrrd")
    session.save(tmp_path / "log.json")
    assert np.array_equal(read_volume(tmp_path / "mask.nii.gz").data[0], session.mask)
    assert np.array_equal(read_volume(tmp_path / "labels.nrrd").data[0], session.mask)
    again = Session.load(tmp_path / "log.json", a_model, a_small_ct)
    assert np.array_equal(again.mask.data[0], session.mask)
    assert session.save_labels() == "labels/final/ct.nii.gz"
    assert sorted(path.name for path in tmp_path.glob("*.*")) == ["labels.nrrd", "log.json", "mask.nii.gz"]


def test_volumes_can_be_sent(server, studies, a_small_ct):
    assert server.upload(studies / "ct.nii.gz").shape == a_small_ct.grid.shape
    session = server.send(a_small_ct.data[0], a_small_ct.grid.affine, name="mine")
    assert np.allclose(session.affine, a_small_ct.grid.affine)
    session.add(Sent(session.to_world(A)))
    assert session.mask.any()


def test_a_session_goes_on_when_its_lease_has_ended(server, session, http):
    session.add(Sent(session.to_world(A)))
    mask = session.mask.copy()
    http.app.state.core.release(server._lease)
    session.add(Sent(session.to_world(C)))
    assert [item["id"] for item in session.prompts] == [1, 2]
    session.undo()
    assert np.array_equal(session.mask, mask)


def test_of_two_sessions_each_keeps_its_own_prompts(server, session):
    other = server.open("more/mr.nii")
    session.add(Sent(session.to_world(A)))
    assert session.mask.any()
    assert not other.mask.any()
    other.add(Sent(session.to_world(C)))
    assert [len(one.prompts) for one in (session, other)] == [1, 1]
    other.add(Sent(other.to_world(A)))
    session.close()  # another one is open: that stays so
    assert len(other.prompts) == 2
    with pytest.raises(ServerError, match="the session is closed"):
        session.undo()


def test_a_session_that_was_worked_on_elsewhere_is_shown_as_it_is(server, session, http):
    session.add(Sent(session.to_world(A)))
    with Server(http=http) as other:
        again = other.resume(session.id, take=True)
        again.add(Sent(again.to_world(C)))
        http.app.state.core.release(server._lease)
        session.add(Sent(session.to_world(B)))
    assert session.mask[C]
    assert len(session.prompts) == 3


def test_an_answer_that_was_lost_is_asked_for_before_the_next_action(server, session, monkeypatch):
    request = server.request

    def lost(method, path, **options):
        request(method, path, **options)
        raise Unreachable("nobody answers")

    monkeypatch.setattr(server, "request", lost)
    with pytest.raises(Unreachable):
        session.add(Sent(session.to_world(A)))
    assert not session.mask.any()
    monkeypatch.setattr(server, "request", request)
    session.add(Sent(session.to_world(C)))
    assert len(session.prompts) == 2
    assert session.mask[A]
    assert session.mask[C]
    session.undo()
    assert session.mask[A]


def test_a_session_is_resumed_with_its_masks(session, http):
    session.add(Sent(session.to_world(A)))
    with Server(http=http) as other, pytest.raises(Refused, match="another lease"):
        other.resume(session.id)
    again = session.server.resume(session.id)
    assert np.array_equal(again.mask, session.mask)
    listed = session.server.sessions("ct.nii.gz")
    assert [item["id"] for item in listed] == [session.id]


def test_refusals_are_one_line_with_a_code(server, session, serve):
    with pytest.raises(Refused, match="lies outside ct") as refused:
        session.add(Sent((1000, 0, 0)))
    assert (refused.value.status, refused.value.code) == (400, "bad_input")
    with pytest.raises(Refused, match="no study"):
        server.open("none.nii")
    small = serve(max_leases=1)
    with Server(http=small) as first:
        first.open("ct.nii.gz")
        with pytest.raises(Full) as full:
            Server(http=small).open("ct.nii.gz")
    assert full.value.retry_after > 0
    with pytest.raises(Unreachable, match="does not answer"):
        Server("http://127.0.0.1:9").version()
    assert issubclass(LeaseEnded, Refused)
