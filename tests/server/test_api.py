"""The contract of docs/reference/http.md, as a client sees it."""

from __future__ import annotations

import json
import logging
import threading
import zlib

import nibabel
import numpy as np
import pytest

from volsam.data.io import read_volume
from volsam.geometry import Grid
from volsam.inference.session import Session
from volsam.prompts import Box, Click, MaskHint, Scribble
from volsam.server.strokes import lasso
from volsam.server.volumes import warned
from volsam.volume import Volume

A, B, C = (22, 20, 14), (26, 22, 15), (34, 30, 20)


def world(grid: Grid, voxel) -> tuple[float, ...]:
    return tuple(grid.to_world(voxel).tolist())


@pytest.fixture
def alone(a_model, a_small_ct) -> Session:
    """A session of the same model and volume without any server."""
    return Session(type(a_model)(), a_small_ct)


# --- one annotator ---------------------------------------------------------------------------------------------------


def test_health_and_version_tell_what_is_served(http):
    assert http.get("/health").json()["ok"] is True
    assert http.get("/api/v1/version").json()["api"] == 1
    listed = http.get("/api/v1/models").json()
    assert listed["default"] == "balls"
    assert listed["models"][0]["loaded"] is True


def test_studies_are_listed_by_paths_that_can_be_opened(http, ana):
    found = http.get("/api/v1/studies").json()
    assert [study["path"] for study in found["studies"]] == ["ct.nii.gz", "more/mr.nii"]
    assert ana.open("more/mr.nii")["name"] == "mr"
    assert http.get("/api/v1/studies", params={"query": "MR"}).json()["total"] == 1


def test_the_state_describes_the_volume_as_the_file_does(ana, a_small_ct):
    state = ana.ask("GET", "/session")
    assert state["shape"] == list(a_small_ct.grid.shape)
    assert np.array_equal(state["affine"], a_small_ct.grid.affine)
    assert state["axes"] == a_small_ct.grid.axes
    assert state["intensity"]["low"] == a_small_ct.data.min()


def test_changes_painted_one_after_the_other_are_the_mask_of_a_session_alone(ana, alone, a_small_ct):
    grid = a_small_ct.grid

    def same() -> None:
        assert np.array_equal(ana.masks[1], alone.mask.data[0] > 0)
        assert np.array_equal(ana.mask(), ana.masks[1])

    for voxel, positive in ((A, True), (C, True), (B, False)):
        ana.click(voxel, positive)
        alone.add(Click(world(grid, voxel), positive))
        same()
    for path, step in (("undo", alone.undo), ("undo", alone.undo), ("redo", alone.redo), ("reset", alone.reset)):
        assert ana.ask("POST", f"/session/{path}", json={})["done"] is True
        step()
        same()
    ana.ask("POST", "/session/undo", json={})
    alone.undo()
    ana.ask("DELETE", "/session/prompts/1?object=1")
    alone.remove(1)
    same()


def test_undo_of_nothing_says_so(ana):
    assert ana.ask("POST", "/session/undo", json={})["done"] is False
    assert ana.ask("POST", "/session/redo", json={}) | {"seconds": 0} == {
        "object": 1,
        "added": [],
        "done": False,
        "quality": None,
        "can_undo": False,
        "can_redo": False,
        "prompts": 0,
        "voxels": 0,
        "volume_ml": 0.0,
        "changed": 0,
        "changes": [],
        "seconds": 0,
    }


@pytest.mark.parametrize("space", ["ras", "lps", "voxel"])
def test_every_kind_of_prompt_means_the_same_in_every_space(ana, alone, a_small_ct, space):
    grid = a_small_ct.grid

    def there(voxel):
        if space == "voxel":
            return list(voxel)
        return (grid.to_world(voxel) * ((1, 1, 1) if space == "ras" else (-1, -1, 1))).tolist()

    ring = [(18, 16, 14), (26, 16, 14), (26, 24, 14), (18, 24, 14)]
    sent = [
        {"type": "box", "low": there((16, 14, 10)), "high": there((28, 26, 18))},
        {"type": "point", "position": there(A)},
        {"type": "scribble", "points": [there(A), there(B)], "positive": False},
        {"type": "lasso", "points": [there(corner) for corner in ring]},
    ]
    prompts = [
        Box(world(grid, (16, 14, 10)), world(grid, (28, 26, 18))),
        Click(world(grid, A)),
        Scribble((world(grid, A), world(grid, B)), positive=False),
        lasso([world(grid, corner) for corner in ring], True, grid),
    ]
    for message, prompt in zip(sent, prompts, strict=True):
        ana.ask("POST", "/session/prompts", json={"prompt": message, "space": space})
        alone.add(prompt)
        assert np.array_equal(ana.masks[1], alone.mask.data[0] > 0)
    standing = ana.ask("GET", f"/session/prompts?space={space}")["prompts"]
    assert [item["id"] for item in standing] == [1, 2, 3, 4]
    assert np.allclose(standing[1]["position"], there(A))


def test_a_starting_mask_is_sent_as_masks_are_received(ana, alone, a_small_ct):
    ana.click(A)
    part = ana.ask("GET", "/session/objects/1/mask")["mask"]
    del part["voxels"]
    ana.ask("POST", "/session/objects", 201, json={"name": "copy"})
    ana.ask("POST", "/session/prompts", json={"prompt": {"type": "mask", **part}})
    box = tuple(slice(low, high) for low, high in zip(part["low"], part["high"], strict=True))
    alone.add(MaskHint(ana.masks[1][box], a_small_ct.grid.crop(part["low"], part["high"])))
    assert ana.masks[2].any()
    assert np.array_equal(ana.masks[2], alone.mask.data[0] > 0)


def test_prompts_given_together_are_answered_once(ana, a_model):
    prompts = [{"type": "point", "position": list(voxel)} for voxel in (A, B)]
    answer = ana.ask("POST", "/session/prompts", json={"prompts": prompts, "space": "voxel"})
    assert answer["added"] == [1, 2]
    assert len(a_model.asked) == 1


def test_every_answer_tells_where_its_time_went(ana):
    answer = ana("POST", "/session/prompts", json={"prompt": {"type": "point", "position": list(A)}, "space": "voxel"})
    seconds = answer.json()["seconds"]
    assert {"wait", "encode", "decode", "paint", "pack", "save", "total"} == set(seconds)
    assert all(value >= 0 for value in seconds.values())
    assert sum(seconds.values()) <= 2 * seconds["total"] + 1e-3
    assert "decode;dur=" in answer.headers["Server-Timing"]


# --- results ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["nii.gz", "nii"])
def test_a_viewer_gets_the_volume_on_its_own_voxels(ana, tmp_path, a_small_ct, ending):
    (tmp_path / f"got.{ending}").write_bytes(ana("GET", f"/session/image.{ending}").content)
    got = read_volume(tmp_path / f"got.{ending}")
    assert np.array_equal(got.data, a_small_ct.data)
    assert np.array_equal(got.grid.affine, a_small_ct.grid.affine)


@pytest.mark.parametrize("ending", ["nii.gz", "nii", "nrrd", "mha"])
def test_masks_and_labels_are_files_on_the_grid_of_the_volume(ana, tmp_path, a_small_ct, ending):
    ana.click(A)
    ana.ask("POST", "/session/objects", 201, json={"name": "other: ä/b"})
    ana.click(C)
    for path, expected in (
        (f"/session/objects/2/mask.{ending}", ana.masks[2].astype(np.uint8)),
        (f"/session/labels.{ending}", np.where(ana.masks[2], 2, ana.masks[1])),
        (f"/session/labels.{ending}?objects=1", ana.masks[1].astype(np.uint8)),
    ):
        answer = ana("GET", path)
        assert "attachment" in answer.headers["Content-Disposition"]
        (tmp_path / f"got.{ending}").write_bytes(answer.content)
        got = read_volume(tmp_path / f"got.{ending}")
        assert np.array_equal(got.data[0], expected)
        assert np.array_equal(got.grid.affine, a_small_ct.grid.affine)


def test_uncertainty_comes_as_bands_and_as_the_next_click(ana, a_small_ct):
    assert ana.ask("GET", "/session/objects/1/uncertainty", 409)["code"] == "conflict"
    ana.click(A)
    found = ana.ask("GET", "/session/objects/1/uncertainty")
    assert found["bands"]["encoding"] == "uint8+deflate"
    assert found["worst_slice"]["axis"] == 2
    assert a_small_ct.grid.contains(found["next_click"]["position"])
    whole = nibabel.Nifti1Image.from_bytes(ana("GET", "/session/objects/1/uncertainty.nii").content)
    bands = np.asarray(whole.dataobj)
    assert bands.max() > 5
    assert np.count_nonzero(bands) == found["bands"]["voxels"]


def test_measurements_are_those_of_the_mask(ana, a_small_ct):
    assert ana.ask("GET", "/session/objects/1/measurements")["longest_diameter"] is None
    ana.click(A)
    found = ana.ask("GET", "/session/objects/1/measurements")
    mask = ana.masks[1]
    assert found["voxels"] == mask.sum()
    assert found["volume_ml"] == pytest.approx(mask.sum() * a_small_ct.grid.voxel_volume / 1000)
    assert found["intensity"]["mean"] == pytest.approx(a_small_ct.data[0][mask].mean())
    points = a_small_ct.grid.to_world(np.argwhere(mask))
    farthest = np.linalg.norm(points[:, None] - points[None], axis=-1).max()
    assert found["longest_diameter"]["mm"] == pytest.approx(farthest)
    assert found["longest_in_plane"]["mm"] <= farthest + 1e-9
    assert found["longest_in_plane"]["across"]["mm"] <= found["longest_in_plane"]["mm"]


def test_labels_are_saved_beside_the_studies_with_all_prompts(ana, studies, http):
    ana.open("more/mr.nii", object="stone")
    ana.click(A)
    saved = ana.ask("POST", "/session/save", json={"tag": "draft"})
    assert saved["path"] == "labels/draft/more/mr.nii.gz"
    assert np.array_equal(read_volume(studies / saved["path"]).data[0] > 0, ana.masks[1])
    record = json.loads((studies / saved["record"]).read_text())
    assert record["labels"][0]["name"] == "stone"
    assert record["objects"][0]["log"][0]["op"] == "add"
    listed = {study["path"]: study["labels"] for study in http.get("/api/v1/studies").json()["studies"]}
    assert listed == {"ct.nii.gz": [], "more/mr.nii": ["draft"]}


def test_labels_that_are_there_are_replaced_unless_they_are_to_stay(ana, studies):
    ana.click(A)
    assert ana.ask("POST", "/session/save", json={"replace": False})["replaced"] is False
    before = (studies / "labels/final/ct.nii.gz").read_bytes()
    ana.click(B)
    answer = ana.ask("POST", "/session/save", 409, json={"replace": False})
    assert answer["code"] == "exists"
    assert "labels/final/ct.nii.gz is there already" in answer["detail"]
    assert (studies / "labels/final/ct.nii.gz").read_bytes() == before
    assert ana.ask("POST", "/session/save", json={})["replaced"] is True
    assert (studies / "labels/final/ct.nii.gz").read_bytes() != before


def test_a_tag_has_one_label_whatever_its_format(ana, studies):
    ana.click(A)
    ana.ask("POST", "/session/save", json={"format": "nrrd"})
    ana.click(B)
    assert ana.ask("POST", "/session/save", 409, json={"replace": False})["code"] == "exists"
    assert ana.ask("POST", "/session/save", json={})["replaced"]
    assert sorted(path.name for path in (studies / "labels" / "final").iterdir()) == ["ct.json", "ct.nii.gz"]


def test_labels_of_a_dicom_series_are_segments(ana, studies, a_dicom_series):
    import highdicom

    a_dicom_series.rename(studies / "series")
    ana.open("series", object="left")
    ana.click((5, 4, 2))
    ana.ask("POST", "/session/objects", 201, json={"name": "empty"})
    saved = ana.ask("POST", "/session/save", json={"format": "dicom_seg"})
    assert saved["path"] == "labels/final/series.dcm"
    (studies / "got.dcm").write_bytes(ana("GET", "/session/labels.dcm?objects=1").content)
    for file in (studies / saved["path"], studies / "got.dcm"):
        read = highdicom.seg.segread(file)
        assert [read.get_segment_description(1).segment_label] == ["left"]
        assert np.count_nonzero(read.pixel_array) == ana.masks[1].sum()


def test_labels_of_anything_else_are_no_segments(ana):
    ana.click(A)
    assert ana.ask("POST", "/session/save", 409, json={"format": "dicom_seg"})["code"] == "conflict"
    assert "DICOM series" in ana.ask("GET", "/session/labels.dcm", 409)["detail"]


def test_the_log_of_a_session_is_one_that_python_reads(ana, tmp_path, a_model, a_small_ct):
    ana.click(A)
    (tmp_path / "log.json").write_bytes(ana("GET", "/session/log.json").content)
    session = Session.load(tmp_path / "log.json", a_model, a_small_ct)
    assert np.array_equal(session.mask.data[0] > 0, ana.masks[1])


# --- what is said of a volume -----------------------------------------------------------------------------------------


def noise(file, shape=(16, 16, 16), affine=None):
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(values, affine), file)
    return values


def test_what_is_warned_of_while_a_volume_is_read_is_kept_with_its_session(ana, studies):
    assert ana.open()["notes"] == []
    noise(studies / "nowhere.nii.gz")
    said = "nowhere.nii.gz has neither qform nor sform: orientation and position are a guess"
    state = ana.open("nowhere.nii.gz")
    assert state["notes"] == [said]
    assert ana.ask("GET", "/session")["notes"] == [said]
    assert ana.resume(state["id"])["notes"] == [said]
    content = (studies / "nowhere.nii.gz").read_bytes()
    assert ana.ask("POST", "/session/file?name=nowhere.nii.gz", 201, content=content)["notes"] == [said]


def test_of_several_channels_the_one_that_is_looked_at_is_told(ana, studies):
    noise(studies / "two.nii.gz", (16, 16, 16, 1, 2), np.eye(4))
    assert ana.open("two.nii.gz", channel=1)["notes"] == ["two.nii.gz has 2 channels; channel 1 is looked at"]


def test_numbers_of_an_uploaded_array_that_are_none_are_told(ana):
    values = np.random.default_rng(0).normal(size=(8, 8, 8)).astype(np.float32)
    values[1, 2, :3] = np.nan
    head = {"shape": [8, 8, 8], "dtype": "float32", "affine": np.eye(4).tolist(), "order": "C", "name": "mri"}
    state = ana.ask("POST", "/session/array", 201, content=values.tobytes(), headers={"X-Meta": json.dumps(head)})
    low = float(np.nanmin(values))
    assert state["notes"] == [f"mri: 3 voxels are NaN or infinite; NaN is read as {low:g}"]
    assert state["intensity"]["low"] == low


def test_another_thread_does_not_warn_of_this_volume():
    with warned() as notes:
        other = threading.Thread(target=lambda: logging.getLogger("volsam.data.io").warning("of another"))
        other.start()
        other.join()
        logging.getLogger("volsam.data.io").warning("of this")
    assert notes == ["of this"]


def test_of_several_frames_one_has_to_be_chosen(ana, studies):
    values = noise(studies / "perfusion.nii.gz", (16, 16, 16, 3), np.eye(4))
    answer = ana.ask("POST", "/session", 400, json={"study": "perfusion.nii.gz"})
    assert answer["code"] == "frames"
    assert answer["frames"] == 3
    assert '"frame"' in answer["detail"]
    assert ana.open("perfusion.nii.gz", frame=1)["intensity"]["low"] == pytest.approx(values[..., 1].min())


def test_a_run_that_is_served_tells_its_method_and_licence(serve, tmp_path, monkeypatch):
    from types import SimpleNamespace

    record = SimpleNamespace(method="unet", dataset="Dataset001", licence="CC BY 4.0")
    monkeypatch.setattr("volsam.recipes.trained.place_of", lambda name: tmp_path if name == "a/run" else None)
    monkeypatch.setattr("volsam.recipes.trained.record_of", lambda place: record)
    listed = serve(models=("balls", "a/run")).get("/api/v1/models").json()["models"]
    assert [(one["summary"], one["licence"]) for one in listed] == [
        ("balls", "unknown"),
        ("U-Net, trained on Dataset001", "CC BY 4.0"),
    ]


# --- uploads ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["studies/ct.nii.gz", "ct.nii.gz", "ct"])
def test_a_file_can_be_uploaded(ana, studies, name):
    content = (studies / "ct.nii.gz").read_bytes()
    state = ana.ask("POST", f"/session/file?name={name}&object=liver", 201, content=content)
    assert state["name"] == "ct"
    assert state["study"] is None
    assert state["objects"][0]["name"] == "liver"
    ana.click(A)
    assert ana.ask("POST", "/session/save", 409, json={})["code"] == "conflict"


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("compression", ["none", "deflate", "gzip"])
@pytest.mark.parametrize("dtype", ["int16", "float32", "float64", "uint8"])
def test_an_array_can_be_uploaded(ana, tmp_path, a_small_ct, order, compression, dtype):
    values = a_small_ct.data[0].clip(0, 255).astype(dtype)
    pack = {"none": bytes, "deflate": zlib.compress, "gzip": lambda data: zlib.compress(data, wbits=31)}[compression]
    head = {
        "shape": list(values.shape),
        "dtype": dtype,
        "affine": a_small_ct.grid.affine.tolist(),
        "order": order,
        "compression": compression,
    }
    ana.ask(
        "POST", "/session/array", 201, content=pack(values.tobytes(order=order)), headers={"X-Meta": json.dumps(head)}
    )
    (tmp_path / "got.nii").write_bytes(ana("GET", "/session/image.nii").content)
    got = read_volume(tmp_path / "got.nii")
    assert np.array_equal(got.data[0], values)
    assert got.grid.affine == pytest.approx(a_small_ct.grid.affine)


def test_a_channel_of_an_array_is_chosen(ana, a_small_ct):
    values = np.stack([a_small_ct.data[0], a_small_ct.data[0] + 1000])
    head = {"shape": list(values.shape), "dtype": "int16", "affine": np.eye(4).tolist(), "order": "C", "channel": 1}
    state = ana.ask("POST", "/session/array", 201, content=values.tobytes(), headers={"X-Meta": json.dumps(head)})
    assert state["intensity"]["low"] == a_small_ct.data.min() + 1000
    assert state["shape"] == list(Volume(values, a_small_ct.grid).grid.shape)
