"""Several objects in one session: names, locks, and who has a voxel that two of them claim."""

from __future__ import annotations

import numpy as np
import pytest

pytestmark = pytest.mark.slow

A, B, NEAR = (20, 20, 14), (26, 20, 14), (23, 20, 14)


@pytest.fixture
def pair(ana):
    """Two objects whose masks meet: 1 around A, 2 around B."""

    def make(policy: str):
        ana.ask("PATCH", "/session", json={"policy": policy, "neighbours": False})
        ana.click(A)
        ana.ask("POST", "/session/objects", 201, json={"name": "right"})
        ana.click(B)
        return ana

    return make


@pytest.fixture
def claims(ana, pair):
    """What the two objects claim, whoever has it."""
    pair("overlap")
    found = {number: mask.copy() for number, mask in ana.masks.items()}
    assert (found[1] & found[2]).any()
    ana.open()
    return found


def shown(client) -> dict[int, np.ndarray]:
    """Masks as painted from changes, which must be those that the server tells when asked."""
    for number, mask in client.masks.items():
        assert np.array_equal(client.mask(number), mask), number
    return client.masks


def test_objects_are_made_renamed_recoloured_and_selected(ana):
    made = ana.ask("POST", "/session/objects", 201, json={"name": "spleen", "colour": "#123456", "select": False})
    assert (made["id"], made["name"], made["colour"]) == (2, "spleen", "#123456")
    assert ana.ask("GET", "/session")["current"] == 1
    changed = ana.ask("PATCH", "/session/objects/2", json={"name": "Milz", "visible": False, "select": True})
    assert (changed["name"], changed["visible"]) == ("Milz", False)
    listed = ana.ask("GET", "/session/objects")
    assert [item["name"] for item in listed["objects"]] == ["object", "Milz"]
    assert listed["current"] == 2
    assert ana.ask("POST", "/session/objects", 201, json={})["name"] == "object 3"


@pytest.mark.parametrize("body", [{"name": "object"}, {"name": " "}, {"colour": "red"}, {"colours": "#123456"}])
def test_bad_names_and_colours_are_refused(ana, body):
    assert ana("POST", "/session/objects", json=body).status_code in (400, 422)


def test_a_number_is_never_used_twice(ana):
    ana.ask("POST", "/session/objects", 201, json={})
    ana.ask("DELETE", "/session/objects/2")
    assert ana.ask("POST", "/session/objects", 201, json={})["id"] == 3


def test_the_last_object_leaves_an_empty_one(ana):
    ana.click(A)
    ana.ask("DELETE", "/session/objects/1")
    state = ana.ask("GET", "/session")
    assert [(item["id"], item["voxels"]) for item in state["objects"]] == [(2, 0)]


def test_an_unknown_object_is_404_with_those_that_there_are(ana):
    refused = ana("POST", "/session/undo", json={"object": 7})
    assert refused.status_code == 404
    assert "1 (object)" in refused.json()["detail"]


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/session/prompts", {"prompt": {"type": "point", "position": list(NEAR)}, "space": "voxel"}),
        ("POST", "/session/undo", {}),
        ("POST", "/session/redo", {}),
        ("POST", "/session/reset", {}),
        ("DELETE", "/session/prompts/1", None),
        ("DELETE", "/session/objects/1", None),
    ],
)
def test_a_locked_object_stays_as_it_is(ana, method, path, body):
    ana.click(A)
    ana.ask("PATCH", "/session/objects/1", json={"locked": True})
    before = ana.mask()
    assert ana.ask(method, path, 409, json=body)["code"] == "conflict"
    assert np.array_equal(ana.mask(), before)
    ana.ask("PATCH", "/session/objects/1", json={"locked": False})
    ana.ask(method, path, 200, json=body)


def test_with_overlap_objects_share_voxels(pair, claims):
    masks = shown(pair("overlap"))
    assert np.array_equal(masks[1], claims[1])
    assert np.array_equal(masks[2], claims[2])


def test_with_keep_the_other_object_loses_nothing(pair, claims):
    masks = shown(pair("keep"))
    assert np.array_equal(masks[1], claims[1])
    assert np.array_equal(masks[2], claims[2] & ~claims[1])


def test_with_overwrite_the_object_at_work_takes_what_it_claims(pair, claims):
    masks = shown(pair("overwrite"))
    assert np.array_equal(masks[1], claims[1] & ~claims[2])
    assert np.array_equal(masks[2], claims[2])


def test_with_overwrite_a_locked_object_loses_nothing(ana, claims):
    ana.ask("PATCH", "/session", json={"policy": "overwrite", "neighbours": False})
    ana.click(A)
    ana.ask("PATCH", "/session/objects/1", json={"locked": True})
    ana.ask("POST", "/session/objects", 201, json={})
    ana.click(B)
    masks = shown(ana)
    assert np.array_equal(masks[1], claims[1])
    assert np.array_equal(masks[2], claims[2] & ~claims[1])


@pytest.mark.parametrize("policy", ["keep", "overwrite"])
def test_what_an_object_gives_up_goes_to_the_other_that_claims_it(pair, claims, policy):
    client = pair(policy)
    client.ask("POST", "/session/undo", json={"object": 2})
    assert np.array_equal(shown(client)[1], claims[1])
    client.ask("POST", "/session/redo", json={"object": 2})
    client.ask("DELETE", "/session/objects/2")
    del client.masks[2]
    assert np.array_equal(shown(client)[1], claims[1])


@pytest.mark.parametrize("policy", ["keep", "overwrite"])
def test_a_change_of_policy_shows_at_once(pair, claims, policy):
    client = pair("overlap")
    client.ask("PATCH", "/session", json={"policy": policy})
    masks = shown(client)
    assert not (masks[1] & masks[2]).any()
    assert np.array_equal(masks[1] | masks[2], claims[1] | claims[2])
    client.ask("PATCH", "/session", json={"policy": "overlap"})
    masks = shown(client)
    assert np.array_equal(masks[1], claims[1])
    assert np.array_equal(masks[2], claims[2])


@pytest.mark.parametrize("policy", ["keep", "overwrite"])
def test_whatever_happens_no_voxel_has_two_owners_and_every_claimed_one_has_one(ana, policy):
    ana.ask("PATCH", "/session", json={"policy": policy, "neighbours": False})
    for _ in range(2):
        ana.ask("POST", "/session/objects", 201, json={})
    rng = np.random.default_rng(3)
    for _ in range(30):
        number = int(rng.integers(1, 4))
        what = rng.choice(["click", "click", "not", "undo", "redo", "reset"], p=[0.4, 0.1, 0.2, 0.1, 0.1, 0.1])
        voxel = (rng.integers(14, 32), rng.integers(14, 28), rng.integers(8, 20))
        if what in ("click", "not"):
            ana.click([int(index) for index in voxel], what == "click", object=number)
        else:
            ana.ask("POST", f"/session/{what}", json={"object": number})
        masks = shown(ana)
        assert sum(mask.astype(int) for mask in masks.values()).max() <= 1
    together = sum(mask.astype(int) for mask in masks.values()) > 0
    ana.ask("PATCH", "/session", json={"policy": "overlap"})
    assert np.array_equal(sum(mask.astype(int) for mask in shown(ana).values()) > 0, together)


def test_clicks_in_neighbours_are_negative_ones_and_are_remembered_with_the_prompt(ana, a_model):
    ana.ask("PATCH", "/session", json={"policy": "keep", "neighbours": True})
    ana.click(A)
    ana.ask("POST", "/session/objects", 201, json={})
    ana.click(B)
    asked = a_model.asked[-1]
    assert asked.labels.tolist() == [False, True]
    log = ana.ask("GET", "/session/prompts?object=2")["log"]
    assert len(log[0]["beside"]) == 1
    ana.click(NEAR, object=1)
    assert a_model.asked[-1].labels.tolist() == [False, True, True]
    ana.ask("PATCH", "/session", json={"neighbours": False})
    ana.click(NEAR, object=2)
    assert a_model.asked[-1].labels.tolist() == [True, True]
