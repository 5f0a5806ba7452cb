"""Leases end, servers stop, and nothing that was acknowledged is lost."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time

import numpy as np
import pytest

from volsam.data.io import write_volume
from volsam.server.leases import Leases
from volsam.server.problems import Problem
from volsam.server.store import Store

pytestmark = pytest.mark.slow

A, B, C = (20, 20, 14), (26, 20, 14), (34, 30, 20)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def leases(clock) -> Leases:
    return Leases(2, idle=100, liveness=10, waiting=2, clock=clock)


# --- leases ----------------------------------------------------------------------------------------------------------


def test_places_are_limited_and_given_back(leases):
    first = leases.claim()
    leases.claim()
    with pytest.raises(Problem, match="all 2 places"):
        leases.claim()
    leases.remove(first.token)
    leases.claim()


def test_a_lease_ends_when_nobody_acts(leases, clock):
    lease = leases.claim()
    clock.now = 99
    with leases.using(lease.token):
        pass
    clock.now = 198
    assert leases.look(lease.token)[1] == pytest.approx(1)
    clock.now = 200
    with pytest.raises(Problem, match="has ended"):
        leases.look(lease.token)
    assert leases.ended() == [lease]


def test_heartbeats_prove_life_but_are_no_actions(leases, clock):
    lease = leases.claim()
    for clock.now in range(9, 99, 9):
        assert leases.look(lease.token, beat=True)[1] == pytest.approx(100 - clock.now)
    clock.now = 101
    assert leases.ended() == [lease]


def test_a_client_that_sent_a_heartbeat_must_go_on_with_it(leases, clock):
    quiet, loud = leases.claim(), leases.claim()
    leases.look(loud.token, beat=True)
    clock.now = 11
    assert leases.ended() == [loud]
    leases.look(quiet.token)


def test_a_lease_does_not_end_during_a_request(leases, clock):
    lease = leases.claim()
    with leases.using(lease.token):
        clock.now = 1000
        assert leases.ended() == []
    clock.now = 1050
    assert leases.ended() == []


def test_only_so_many_requests_of_a_lease_wait(leases):
    lease = leases.claim()
    with leases.using(lease.token), leases.using(lease.token), pytest.raises(Problem, match="wait already"):
        leases.using(lease.token).__enter__()
    with leases.using(lease.token):
        pass


def test_release_may_be_said_twice(ana):
    assert ana.ask("DELETE", "/lease") == {"released": True}
    assert ana.ask("DELETE", "/lease") == {"released": True}
    assert ana.ask("GET", "/session", 410)["code"] == "lease"


def test_a_full_server_says_when_to_come_again(serve, client):
    http = serve(max_leases=1)
    client(http)
    refused = http.post("/api/v1/lease")
    assert refused.status_code == 503
    assert int(refused.headers["Retry-After"]) > 0
    assert http.get("/health").status_code == 200


def test_too_many_requests_of_one_client_are_refused_not_queued(serve, client, a_model):
    http = serve(max_waiting=2)
    eager = client(http)
    eager.open()
    a_model.stop = threading.Event()
    answers = []

    def click() -> None:
        prompt = {"prompt": {"type": "point", "position": list(A)}, "space": "voxel"}
        answers.append(eager("POST", "/session/prompts", json=prompt).status_code)

    threads = [threading.Thread(target=click) for _ in range(4)]
    for thread in threads:
        thread.start()
    while len(answers) < 2:
        time.sleep(0.01)
    assert http.get("/health").status_code == 200  # the event loop is free
    a_model.stop.set()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [200, 200, 429, 429]


# --- resuming --------------------------------------------------------------------------------------------------------


def test_a_session_goes_on_under_a_new_lease(http, ana, client):
    identity = ana.open(annotator="ana")["id"]
    ana.click(A)
    ana.click(B, positive=False)
    ana.ask("POST", "/session/undo", json={})
    ana.ask("DELETE", "/lease")
    ben = client(http)
    state = ben.resume(identity)
    assert (state["annotator"], state["objects"][0]["prompts"]) == ("ana", 1)
    assert np.array_equal(ben.mask(), ana.masks[1])
    ben.ask("POST", "/session/redo", json={})
    ben.click(C)


@pytest.mark.parametrize("policy", ["overlap", "keep", "overwrite"])
def test_another_server_finds_everything_as_it_was(serve, client, policy):
    ana = client(serve())
    identity = ana.open()["id"]
    ana.ask("PATCH", "/session", json={"policy": policy})
    ana.click(A)
    ana.ask("POST", "/session/objects", 201, json={"name": "other", "colour": "#010203"})
    ana.click(B)
    ana.click(C, object=1)
    ana.click(A, positive=False)
    ana.ask("PATCH", "/session/objects/2", json={"locked": True})
    before = ana.ask("GET", "/session")
    ben = client(serve())  # the first one still runs, as if it hung
    after = ben.resume(identity)
    for state in (before, after):
        del state["seconds"]
    assert after == before
    for number in (1, 2):
        assert np.array_equal(ben.mask(number), ana.masks[number])


@pytest.mark.parametrize("kind", ["file", "array"])
def test_an_upload_is_kept_with_its_session(serve, client, studies, a_small_ct, kind):
    ana = client(serve())
    if kind == "file":
        state = ana.ask("POST", "/session/file?name=ct.nii.gz", 201, content=(studies / "ct.nii.gz").read_bytes())
    else:
        head = {"shape": list(a_small_ct.grid.shape), "dtype": "int16", "affine": a_small_ct.grid.affine.tolist()}
        content = a_small_ct.data[0].tobytes(order="F")
        state = ana.ask("POST", "/session/array", 201, content=content, headers={"X-Meta": json.dumps(head)})
    ana.shape = tuple(state["shape"])
    ana.click(A)
    ben = client(serve())
    ben.resume(state["id"])
    assert np.array_equal(ben.mask(), ana.masks[1])


def test_a_session_is_not_offered_for_another_scan_of_its_name(serve, client, studies, tmp_path, a_small_ct):
    ana = client(serve())
    identity = ana.open()["id"]
    ana.click(A)
    elsewhere = tmp_path / "another patient"
    elsewhere.mkdir()
    write_volume(a_small_ct, elsewhere / "ct.nii.gz")
    ben = client(serve(studies=elsewhere))
    assert ben.ask("GET", "/sessions?study=ct.nii.gz")["sessions"] == []
    refused = ben.ask("POST", "/session", 409, json={"resume": identity})
    assert "another folder of studies" in refused["detail"]
    assert refused["code"] == "elsewhere"
    # A folder that was moved is the same one, with a link in its place or without.
    studies.rename(tmp_path / "moved")
    studies.symlink_to(tmp_path / "moved")
    assert client(serve()).ask("GET", "/sessions?study=ct.nii.gz")["sessions"]
    studies.unlink()
    eve = client(serve(studies=tmp_path / "moved"))
    assert [one["id"] for one in eve.ask("GET", "/sessions?study=ct.nii.gz")["sessions"]] == [identity]
    eve.resume(identity, take=True)
    assert np.array_equal(eve.mask(), ana.masks[1])


def test_a_session_is_not_gone_on_with_on_other_voxels(serve, client, studies, a_small_ct):
    ana = client(serve())
    identity = ana.open()["id"]
    ana.click(A)
    before = (studies / "ct.nii.gz").read_bytes()
    write_volume(a_small_ct.with_data(a_small_ct.data + 1), studies / "ct.nii.gz")
    refused = client(serve()).ask("POST", "/session", 400, json={"resume": identity})
    assert "another scan of the same size and place" in refused["detail"]
    (studies / "ct.nii.gz").write_bytes(before)
    client(serve()).resume(identity)


def test_a_session_keeps_its_model_or_is_asked(serve, client, a_model, monkeypatch, tmp_path):
    large = type(a_model)()
    large.name, large.radius = "a run", 7.0  # not the name that it is chosen by
    monkeypatch.setattr("volsam.recipes.recipe.load_model", lambda name, *, device: large)
    ana = client(serve(models=("balls", "runs/large")))
    identity = ana.open(model="runs/large")["id"]
    ana.click(A)
    assert ana.ask("GET", "/session")["model"] == "runs/large"
    ana.ask("DELETE", "/lease")
    again = client(serve(models=("balls", "runs/large")))
    assert again.resume(identity)["model"] == "runs/large"
    assert np.array_equal(again.mask(), ana.masks[1])
    again.ask("DELETE", "/lease")
    # By another path, or as sessions of before had it, by its own name, it is the same one.
    record = tmp_path / "sessions" / identity / "session.json"
    kept = json.loads(record.read_text())
    (tmp_path / "runs" / "large").mkdir(parents=True)
    for name in (str(tmp_path / "runs" / ".." / "runs" / "large"), "large"):
        kept["server"]["model"] = name
        record.write_text(json.dumps(kept))
        other = client(serve(models=("balls", str(tmp_path / "runs" / "large"))))
        assert other.resume(identity)["model"] == str(tmp_path / "runs" / "large")
        other.ask("DELETE", "/lease")
    kept["server"]["model"] = "runs/large"
    record.write_text(json.dumps(kept))
    ben = client(serve())
    refused = ben.ask("POST", "/session", 409, json={"resume": identity})
    assert (refused["code"], refused["model"], refused["default"]) == ("model", "runs/large", "balls")
    assert ben.resume(identity, model="balls")["model"] == "balls"
    assert 0 < ben.mask().sum() < ana.masks[1].sum()


def test_what_cannot_be_gone_on_with_does_not_end_what_is_open(http, ana, studies, client):
    other = client(http)
    gone = other.open("more/mr.nii")["id"]
    other.ask("DELETE", "/lease")
    (studies / "more" / "mr.nii").unlink()
    ana.click(A)
    for identity in (gone, "0" * 32):
        ana.ask("POST", "/session", 404, json={"resume": identity})
    ana.click(B)
    assert ana.ask("GET", "/session")["objects"][0]["prompts"] == 2


def test_an_upload_that_falls_silent_gives_its_place_back(serve, client, monkeypatch):
    monkeypatch.setattr("volsam.server.uploads.SILENCE", 0.05)

    async def body(limit=100):
        from volsam.server.uploads import pieces

        return [piece async for piece in pieces(Silent(), limit)]

    with pytest.raises(Problem, match="nothing came of the upload") as refused:
        asyncio.run(body())
    assert refused.value.status == 408


class Silent:
    """A client that sends one piece, and then nothing more."""

    async def stream(self):
        yield b"one"
        await asyncio.sleep(60)


def test_what_a_killed_server_left_of_an_upload_is_removed(tmp_path):
    store = Store(tmp_path / "sessions")
    for name in ("upload-old", "upload-new"):
        (store.folder / name).mkdir()
    os.utime(store.folder / "upload-old", (1e9, 1e9))
    store.prune(0)
    assert [place.name for place in store.folder.iterdir()] == ["upload-new"]


def test_a_session_is_open_under_one_lease_at_a_time(http, ana, client):
    identity = ana.ask("GET", "/session")["id"]
    ben = client(http)
    assert "another lease" in ben.ask("POST", "/session", 409, json={"resume": identity})["detail"]
    ana.click(A)
    ben.resume(identity, take=True)
    assert np.array_equal(ben.mask(), ana.masks[1])
    assert ana.ask("GET", "/session", 409)["code"] == "conflict"


def test_sessions_of_a_study_are_listed_and_uploads_are_nobodys_business(http, ana, studies):
    ana.click(A)
    identity = ana.ask("GET", "/session")["id"]
    ana.ask("POST", "/session/file?name=ct.nii.gz", 201, content=(studies / "ct.nii.gz").read_bytes())
    listed = http.get("/api/v1/sessions", params={"study": "ct.nii.gz"}).json()["sessions"]
    assert [(item["id"], item["prompts"], item["open"]) for item in listed] == [(identity, 1, False)]


def test_a_session_can_be_forgotten(http, ana, client):
    identity = ana.ask("GET", "/session")["id"]
    assert ana.ask("DELETE", "/session?forget=true") == {"closed": True, "id": identity}
    assert client(http).ask("POST", "/session", 404, json={"resume": identity})["code"] == "not_found"


def test_a_damaged_record_is_refused_in_one_line(http, ana, client, tmp_path):
    identity = ana.ask("GET", "/session")["id"]
    ana.ask("DELETE", "/lease")
    record = tmp_path / "sessions" / identity / "session.json"
    whole = record.read_text()
    for text in (whole[:200], "[]", whole.replace('"objects"', '"things"'), whole.replace('"ct.nii.gz"', "7")):
        record.write_text(text)
        answer = client(http)("POST", "/session", json={"resume": identity})
        assert answer.status_code in (400, 404), answer.text
        assert "unexpected" not in answer.text
    record.write_text(whole)
    client(http).resume(identity)


def test_every_acknowledged_prompt_is_on_disk_when_the_answer_comes(ana, tmp_path):
    identity = ana.ask("GET", "/session")["id"]
    record = tmp_path / "sessions" / identity / "session.json"
    for count, voxel in enumerate((A, B, C), 1):
        ana.click(voxel)
        assert len(json.loads(record.read_text())["objects"][0]["log"]) == count
    assert not list(record.parent.glob("*.part"))


def test_what_cannot_be_saved_is_not_acknowledged(ana, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.replace", full)
    prompt = {"prompt": {"type": "point", "position": list(A)}, "space": "voxel"}
    assert ana.ask("POST", "/session/prompts", 507, json=prompt)["code"] == "storage"


def test_old_uploads_are_removed_at_the_start_and_studies_are_not(serve, client, studies, tmp_path):
    import os

    ana = client(serve())
    kept = ana.open()["id"]
    gone = ana.ask("POST", "/session/file?name=ct.nii.gz", 201, content=(studies / "ct.nii.gz").read_bytes())["id"]
    old = time.time() - 40 * 24 * 3600
    for identity in (kept, gone):
        os.utime(tmp_path / "sessions" / identity / "session.json", (old, old))
    ben = client(serve(keep_days=30))
    assert ben("POST", "/session", json={"resume": gone}).status_code == 404
    ben.resume(kept)


# --- several at once -------------------------------------------------------------------------------------------------


def test_sessions_at_the_same_time_do_not_disturb_one_another(http, client):
    clients = [client(http) for _ in range(4)]
    alone = []
    for someone in clients:
        someone.open()

    def work(number: int) -> None:
        rng = np.random.default_rng(number)
        for _ in range(6):
            clients[number].click([int(v) for v in rng.integers((10, 10, 8), (38, 34, 22))], bool(rng.random() < 0.7))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(clients))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    together = [someone.mask() for someone in clients]
    for number, someone in enumerate(clients):
        someone.open()
        work(number)
        alone.append(someone.mask())
    for one, other in zip(together, alone, strict=True):
        assert np.array_equal(one, other)


def test_another_model_answers_the_same_prompts(serve, client, a_model, monkeypatch):
    large, boxes = type(a_model)(), type(a_model)()
    large.name, large.radius = "large", 7.0
    boxes.name, boxes.takes = "boxes", frozenset({"box"})
    others = {"large": large, "boxes": boxes}
    monkeypatch.setattr("volsam.recipes.recipe.load_model", lambda name, *, device: others[name])
    ana = client(serve(models=("balls", "large", "boxes")))
    ana.open()
    ana.click(A)
    small = ana.mask()
    answer = ana.ask("PUT", "/session/model", json={"model": "large"})
    assert answer["changes"]
    assert np.array_equal(ana.masks[1], ana.mask())
    assert ana.mask().sum() > small.sum()
    assert ana.ask("GET", "/session")["model"] == "large"
    ana.ask("PUT", "/session/model", json={"model": "balls"})
    refused = ana.ask("PUT", "/session/model", 400, json={"model": "boxes"})
    assert "boxes takes no click" in refused["detail"]
    assert np.array_equal(ana.mask(), small)
    assert "this server has no model" in ana.ask("PUT", "/session/model", 400, json={"model": "huge"})["detail"]


def test_a_server_that_shuts_down_finishes_what_goes_on(http, ana, a_model):
    a_model.stop = threading.Event()
    answers = []
    prompt = {"prompt": {"type": "point", "position": list(A)}, "space": "voxel"}
    clicking = threading.Thread(target=lambda: answers.append(ana("POST", "/session/prompts", json=prompt).status_code))
    clicking.start()
    while not a_model.asked:
        time.sleep(0.01)
    core = http.app.state.core
    ending = threading.Thread(target=core.shut_down)
    ending.start()
    while not core.closing:
        time.sleep(0.01)
    assert http.get("/health").status_code == 503
    assert http.post("/api/v1/lease").status_code == 503
    a_model.stop.set()
    clicking.join()
    ending.join()
    assert answers == [200]


def test_memory_of_closed_sessions_is_given_back_once(ana, http, monkeypatch):
    given = []
    monkeypatch.setattr("volsam.server.core.give_back", lambda: given.append(True))
    core = http.app.state.core
    core.tidy()
    assert not given
    ana.ask("DELETE", "/lease")
    core.tidy()
    core.tidy()
    assert given == [True]
