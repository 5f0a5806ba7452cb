"""Labels that are there already are opened as objects and corrected by clicks."""

from __future__ import annotations

import json

import numpy as np
import pytest

from volsam.data.io import read_volume, write_volume
from volsam.server import ready

from .conftest import decoded

pytestmark = pytest.mark.slow

FIRST, SECOND = (slice(10, 20), slice(10, 22), slice(8, 18)), (slice(28, 36), slice(20, 30), slice(12, 20))


@pytest.fixture
def drawn(a_small_ct) -> np.ndarray:
    """Labels of two objects, 2 and 5."""
    labels = np.zeros(a_small_ct.grid.shape, np.uint8)
    labels[FIRST], labels[SECOND] = 2, 5
    return labels


@pytest.fixture
def tagged(studies, a_small_ct, drawn):
    """The study's labels under the tag auto, with names, as a model leaves them."""
    place = studies / "labels" / "auto"
    place.mkdir(parents=True)
    write_volume(a_small_ct.with_data(drawn[None]), place / "ct.nii.gz")
    (place / "labels.json").write_text('{"background": 0, "liver": 2, "spleen": 5}')
    return place


def test_each_value_is_an_object_and_stays_as_it_is(http, client, tagged, drawn):
    ana = client(http)
    state = ana.open(labels="auto")
    assert [(one["id"], one["name"]) for one in state["objects"]] == [(2, "liver"), (5, "spleen")]
    assert state["current"] == 2
    assert [one["voxels"] for one in state["objects"]] == [(drawn == 2).sum(), (drawn == 5).sum()]
    assert [one["quality"] for one in state["objects"]] == [None, None]
    assert np.array_equal(ana.mask(2), drawn == 2)
    assert np.array_equal(ana.mask(5), drawn == 5)
    assert ana.ask("POST", "/session/objects", 201, json={})["id"] == 6


def test_a_click_changes_what_it_means_and_nothing_else(http, client, tagged, drawn):
    ana = client(http)
    ana.open(labels="auto")
    ana.click((11, 11, 9), positive=False)
    changed = ana.mask(2) != (drawn == 2)
    assert changed[11, 11, 9]
    assert 8 < changed.sum() < 0.5 * (drawn == 2).sum()
    assert not (ana.mask(2) & (drawn != 2)).any()
    assert np.array_equal(ana.mask(5), drawn == 5)
    ana.ask("POST", "/session/undo", json={})
    assert np.array_equal(ana.mask(2), drawn == 2)


def test_ready_masks_follow_the_rule_where_objects_meet(http, client, tagged, drawn):
    ana = client(http)
    ana.open(labels="auto")
    ana.ask("PATCH", "/session", json={"policy": "keep"})
    ana.ask("POST", "/session/objects", 201, json={"name": "new"})
    ana.click((19, 14, 12))
    assert np.array_equal(ana.mask(2), drawn == 2)
    assert not (ana.mask(6) & (drawn == 2)).any()


def test_corrected_labels_are_saved_and_gone_on_with(http, client, tagged, drawn, studies):
    ana = client(http)
    state = ana.open(labels="auto")
    ana.click((11, 11, 9), positive=False)
    mended = ana.mask(2)
    ana.ask("POST", "/session/save", json={"tag": "final"})
    saved = read_volume(studies / "labels" / "final" / "ct.nii.gz").data[0]
    assert np.array_equal(saved == 2, mended)
    assert np.array_equal(saved == 5, drawn == 5)
    record = json.loads((studies / "labels" / "final" / "ct.json").read_text())
    assert [one["name"] for one in record["labels"]] == ["liver", "spleen"]
    bob = client(http)
    bob.resume(state["id"], take=True)
    assert np.array_equal(bob.mask(2), mended)


def test_of_a_ready_mask_doubt_is_told_and_no_quality(http, client, tagged):
    ana = client(http)
    ana.open(labels="auto")
    told = ana.ask("GET", "/session/objects/2/uncertainty")
    assert told["quality"] is None
    assert decoded(told["bands"]).any()


def test_without_names_values_are_told(http, client, tagged):
    (tagged / "labels.json").unlink()
    assert [one["name"] for one in client(http).open(labels="auto")["objects"]] == ["label 2", "label 5"]
    (tagged / "labels.json").write_text('{"label 5": 2}')
    assert [one["name"] for one in client(http).open(labels="auto")["objects"]] == ["label 5", "label 5 (5)"]


def test_only_labels_that_can_be_opened_are_offered(http, client, tagged, studies):
    for place in ("final", "model v2"):
        (studies / "labels" / place).mkdir()
    (studies / "labels" / "final" / "ct.dcm").write_bytes(b"segments")
    (tagged / "ct.nii.gz").rename(studies / "labels" / "model v2" / "ct.nii.gz")
    write_volume(read_volume(studies / "ct.nii.gz"), tagged / "ct.nrrd")
    (study,) = client(http).ask("GET", "/studies?query=ct.nii")["studies"]
    assert study["labels"] == ["auto", "final", "model v2"]
    assert study["ready"] == ["auto"]


@pytest.mark.parametrize(
    ("asked", "status", "told"),
    [
        ({"study": "ct.nii.gz", "labels": "final"}, 404, "has no label of the tag 'final'"),
        ({"study": "more/mr.nii", "labels": "auto"}, 404, "more/mr.nii has no label of the tag 'auto'"),
        ({"study": "ct.nii.gz", "labels": "../auto"}, 422, "labels"),
        ({"resume": "0" * 32, "labels": "auto"}, 400, 'a "study"'),
    ],
)
def test_labels_that_are_not_there_are_refused(http, client, tagged, asked, status, told):
    assert told in str(client(http).ask("POST", "/session", status, json=asked))


def test_bad_labels_are_refused_and_leave_no_session(http, client, tagged, a_small_ct, monkeypatch):
    ana = client(http)
    grid = a_small_ct.grid
    for values, told in (
        (np.zeros(grid.shape, np.uint8), "nothing is labelled"),
        (np.full(grid.shape, 0.5, np.float32), "whole numbers"),
    ):
        write_volume(a_small_ct.with_data(values[None]), tagged / "ct.nii.gz")
        assert told in ana.ask("POST", "/session", 400, json={"study": "ct.nii.gz", "labels": "auto"})["detail"]
    other = grid.crop((0, 0, 0), (20, 20, 20))
    write_volume(type(a_small_ct)(np.ones((1, 20, 20, 20), np.uint8), other, "part"), tagged / "ct.nii.gz")
    assert (
        "lies on the grid" in ana.ask("POST", "/session", 400, json={"study": "ct.nii.gz", "labels": "auto"})["detail"]
    )
    monkeypatch.setattr(ready, "MOST", 1)
    values = np.zeros(grid.shape, np.uint8)
    values[2:4, 2:4, 2:4], values[6, 6, 6] = 1, 2
    write_volume(a_small_ct.with_data(values[None]), tagged / "ct.nii.gz")
    assert "holds 2 values" in ana.ask("POST", "/session", 400, json={"study": "ct.nii.gz", "labels": "auto"})["detail"]
    assert ana.ask("GET", "/sessions")["sessions"] == []


def test_a_link_out_of_the_folder_of_studies_is_refused(http, client, tagged, tmp_path):
    (tagged / "ct.nii.gz").rename(tmp_path / "elsewhere.nii.gz")
    (tagged / "ct.nii.gz").symlink_to(tmp_path / "elsewhere.nii.gz")
    told = client(http).ask("POST", "/session", 403, json={"study": "ct.nii.gz", "labels": "auto"})["detail"]
    assert "leads out of the folder" in told
