"""MONAI Label: its messages, its datastore, and what it must not do."""

from __future__ import annotations

import io
import json
import sys
import zipfile
from email import message_from_bytes
from pathlib import Path

import numpy as np
import pytest
from pydantic import SecretStr

from volsam.data.io import read_volume, write_volume
from volsam.data.studies import write_dataset
from volsam.errors import BadInput
from volsam.inference.session import Session
from volsam.prompts import Box, Click
from volsam.server.dialects.monai_label import datastore, training
from volsam.server.dialects.monai_label.tasks import Task, Tasks
from volsam.server.problems import Problem

pytestmark = pytest.mark.slow

A, B, C = [20, 20, 14], [26, 22, 16], [22, 24, 14]
KEY = "a-key-of-some-length"


class Desk:
    """What a client does with requests and answers."""

    def __init__(self, http, folder: Path) -> None:
        self.http = http
        self.folder = folder

    def ask(self, method: str, path: str, status: int = 200, **options):
        answer = self.http.request(method, path, **options)
        assert answer.status_code == status, answer.text
        return answer

    def infer(self, model: str, params: dict, image: str = "ct", files: dict | None = None, **query):
        """The params of an answer and the volume in it."""
        answer = self.ask(
            "POST",
            f"/infer/{model}",
            params={"image": image, **query},
            data={"params": json.dumps({"result_extension": ".nii", **params})},
            files=files,
        )
        head = f"Content-Type: {answer.headers['content-type']}\r\n\r\n".encode()
        parts = {
            part.get_param("name", header="content-disposition"): part
            for part in message_from_bytes(head + answer.content).get_payload()
        }
        assert parts["params"].get_filename() is None
        assert parts["params"].get_content_type() == "application/json"
        said = json.loads(parts["params"].get_payload(decode=True))
        if "image" not in parts:
            return said, None
        path = self.folder / parts["image"].get_filename()
        path.write_bytes(parts["image"].get_payload(decode=True))
        return said, read_volume(path)

    def upload(self, path: Path) -> str:
        """The id of a session."""
        with path.open("rb") as file:
            return self.ask("PUT", "/session/", files={"files": (path.name, file)}).json()["session_id"]

    def save(self, image: str, path: Path, status: int = 200, tag: str | None = None, **info):
        query = {"image": image} if tag is None else {"image": image, "tag": tag}
        with path.open("rb") as file:
            files = {"label": (f"/elsewhere/x/{path.name}", file)}
            return self.ask(
                "PUT", "/datastore/label", status, params=query, files=files, data={"params": json.dumps(info)}
            ).json()


@pytest.fixture
def desk(http, tmp_path) -> Desk:
    return Desk(http, tmp_path)


@pytest.fixture
def alone(a_model, a_small_ct) -> Session:
    return Session(type(a_model)(), a_small_ct)


@pytest.fixture
def a_label(tmp_path, a_small_ct, a_ball) -> Path:
    path = tmp_path / "label.nii.gz"
    write_volume(a_small_ct.with_data(a_ball[None].astype(np.uint8)), path)
    return path


def click(session: Session, voxel, positive: bool = True) -> Click:
    return Click(tuple(session.volume.grid.to_world(voxel)), positive)


def same(volume, session: Session) -> bool:
    return np.array_equal(volume.data, session.mask.data)


# --- what is offered -------------------------------------------------------------------------------------------------


def test_the_info_has_what_clients_read(desk):
    info = desk.ask("GET", "/info/").json()
    about = ("name", "description", "version", "labels", "models", "datastore")
    assert set(info) >= {*about, "trainers", "strategies", "scoring", "train_stats"}
    assert info["labels"] == ["object", "background"]
    assert info["datastore"] == {"total": 2, "completed": 0, "label_tags": {}}
    for model in info["models"].values():
        assert set(model) == {"type", "labels", "dimension", "description", "config"}
    assert info["models"]["balls-labels"]["labels"] == {"background": 0, "object": 1}
    assert set(info["trainers"]["adapt"]["config"]) == {"max_steps", "batch_size", "learning_rate"}


def test_labels_are_those_of_dataset_json_and_those_that_were_saved(desk, studies, a_label):
    (studies / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "liver": 1, "spleen": 2}}))
    desk.save("ct", a_label, label_info=[{"name": "kidney", "idx": 1}])
    assert desk.ask("GET", "/info/").json()["labels"] == ["liver", "spleen", "kidney", "background"]


def test_without_studies_uploads_can_still_be_worked_on(serve, tmp_path, studies, alone):
    desk = Desk(serve(studies=None), tmp_path)
    info = desk.ask("GET", "/info/").json()
    assert (info["datastore"]["total"], info["trainers"], info["strategies"]) == (0, {}, {})
    sid = desk.upload(studies / "ct.nii.gz")
    alone.add(click(alone, A))
    assert same(desk.infer("balls", {"foreground": [A]}, "", session_id=sid)[1], alone)
    desk.ask("GET", "/datastore/", 404)
    desk.ask("POST", "/activelearning/first", 404)
    desk.ask("POST", "/train/adapt", 404)


# --- answers ---------------------------------------------------------------------------------------------------------


def test_answers_are_those_of_a_session_with_the_same_clicks(desk, alone):
    alone.add(click(alone, A))
    said, mask = desk.infer("balls", {"label": "liver", "foreground": [A]})
    assert same(mask, alone)
    assert said["label_names"] == {"liver": 1}
    alone.add(click(alone, B, False))
    assert same(desk.infer("balls", {"label": "liver", "foreground": [A], "background": [B]})[1], alone)
    alone.add(click(alone, C))
    assert same(desk.infer("balls", {"label": "liver", "foreground": [A, C], "background": [B]})[1], alone)
    alone.remove(2)
    assert same(desk.infer("balls", {"label": "liver", "foreground": [A, C]})[1], alone)
    assert said["quality"] == alone.quality


def test_only_new_points_are_decoded(desk, a_model):
    desk.infer("balls", {"foreground": [A]})
    before = len(a_model.asked)
    desk.infer("balls", {"foreground": [A]})
    assert len(a_model.asked) == before
    desk.infer("balls", {"foreground": [A, B]})
    assert len(a_model.asked) - before <= 2


def test_a_new_state_starts_the_object_anew(desk, alone):
    desk.infer("balls", {"foreground": [A, B], "label": "liver"})
    alone.add(click(alone, B))
    assert same(desk.infer("balls", {"foreground": [B], "label": "liver", "reset_state": True})[1], alone)


def test_clients_and_labels_do_not_disturb_each_other(desk, http, alone):
    desk.infer("balls", {"foreground": [A], "label": "liver", "client_id": "ana"})
    desk.infer("balls", {"foreground": [B], "label": "spleen", "client_id": "ana"})
    desk.infer("balls", {"foreground": [C], "label": "liver", "client_id": "ben"})
    alone.add(click(alone, A))
    assert same(desk.infer("balls", {"foreground": [A], "label": "liver", "client_id": "ana"})[1], alone)
    saved = {record["annotator"]: record["objects"] for record in http.app.state.core.saved("ct.nii.gz")}
    assert saved == {"ana": ["liver", "spleen"], "ben": ["liver"]}


def test_a_region_is_a_box_whichever_way_its_pairs_are_turned(desk, alone):
    grid = alone.volume.grid
    corners = grid.to_world([(12, 14, 8), (30, 28, 20)])
    alone.add(Box(tuple(corners[0]), tuple(corners[1])))
    alone.add(click(alone, A))
    assert same(desk.infer("balls", {"roi": [30, 12, 14, 28, 20, 8], "foreground": [A]})[1], alone)


def test_a_slice_is_answered_for_alone(desk, alone):
    alone.add(click(alone, A))
    _, mask = desk.infer("balls", {"foreground": [A, [20, 20, 20]], "slice": A[2]})
    assert np.array_equal(mask.data[0][:, :, A[2]], alone.mask.data[0][:, :, A[2]])
    assert mask.data.sum() == mask.data[0][:, :, A[2]].sum() > 0


def test_labels_are_answered_together_and_only_those_to_be_seen_are_named(desk, studies, a_model, a_small_ct):
    (studies / "dataset.json").write_text(json.dumps({"labels": {"liver": 1, "spleen": 2, "kidney": 3}}))
    parts = {"liver": [A], "kidney": [B], "spleen": [], "background": [C], "label": "liver"}
    said, labels = desk.infer("balls-labels", parts)
    assert said["label_names"] == {"liver": 1, "kidney": 3}
    masks = {}
    for name, voxel in (("liver", A), ("kidney", B)):
        session = Session(type(a_model)(), a_small_ct)
        session.add(click(session, voxel))
        session.add(click(session, C, False))
        masks[name] = session.mask.data > 0
    assert np.array_equal(labels.data == 1, masks["liver"])
    assert np.array_equal(labels.data == 3, masks["kidney"] & ~masks["liver"])


def test_a_client_without_a_model_gets_the_names_of_labels(desk):
    said, mask = desk.infer("", {})
    assert (said, mask) == ({"label_names": {"object": 1}}, None)


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".mha"])
def test_files_end_as_they_are_asked_for(desk, ending):
    _, mask = desk.infer("balls", {"foreground": [A], "result_extension": ending, "result_dtype": "uint16"})
    assert mask.data.dtype == np.uint16
    assert mask.data.any()


def test_outputs(desk, tmp_path, alone):
    form = {"data": {"params": json.dumps({"foreground": [A]})}}
    said = desk.ask("POST", "/infer/balls?image=ct&output=json", **form).json()
    assert said["label_names"] == {"object": 1}
    answer = desk.ask("POST", "/infer/balls?image=ct&output=image", **form)
    assert 'filename="' in answer.headers["content-disposition"]
    (tmp_path / "image.nii.gz").write_bytes(answer.content)
    alone.add(click(alone, A))
    assert same(read_volume(tmp_path / "image.nii.gz"), alone)
    desk.ask("POST", "/infer/balls?image=ct&output=pdf", 422, **form)


def test_a_dicom_series_is_found_by_its_uid_and_answered_with_segments(desk, studies, tmp_path, a_dicom_series):
    import highdicom
    import pydicom

    a_dicom_series.rename(studies / "series")
    slices = sorted((studies / "series").glob("*.dcm"))
    uid = pydicom.dcmread(slices[0]).SeriesInstanceUID
    shape = read_volume(studies / "series").grid.shape
    middle = [size // 2 for size in shape]
    form = {"data": {"params": json.dumps({"foreground": [middle], "label": "liver"})}}
    _, mask = desk.infer("balls", {"foreground": [middle]}, uid)
    answer = desk.ask("POST", f"/infer/balls?image={uid}&output=dicom_seg", **form)
    assert answer.headers["content-type"] == "application/dicom"
    (tmp_path / "seg.dcm").write_bytes(answer.content)
    read = highdicom.seg.segread(tmp_path / "seg.dcm")
    assert [one.SegmentLabel for one in read.SegmentSequence] == ["liver"]
    assert np.count_nonzero(read.pixel_array) == np.count_nonzero(mask.data)
    sid = desk.ask("PUT", "/session/", files=[("files", (file.name, file.read_bytes())) for file in slices]).json()
    _, again = desk.infer("balls", {"foreground": [middle]}, "", session_id=sid["session_id"])
    assert np.array_equal(again.data, mask.data)
    desk.ask("POST", "/infer/balls?image=ct&output=dicom_seg", 409, data={"params": json.dumps({"foreground": [A]})})
    assert desk.ask("GET", f"/datastore/image?image={uid}").headers["content-disposition"].endswith("series.nii.gz")
    desk.ask("GET", "/datastore/image?image=1.2.3.4.5", 404)
    for path in (studies / "ct.nii.gz", studies / "more" / "mr.nii"):
        path.unlink()
    sample = desk.ask("POST", "/activelearning/first", json={}).json()
    assert (sample["id"], sample["SeriesInstanceUID"], sample["PatientID"]) == ("series", uid, "P7")


@pytest.mark.parametrize(
    ("model", "params", "status"),
    [
        ("none", {}, 404),
        ("balls", {}, 400),
        ("balls", {"foreground": [[1, 2]]}, 400),
        ("balls", {"foreground": [[1, 2, "x"]]}, 400),
        ("balls", {"foreground": "all"}, 400),
        ("balls", {"foreground": {"a": 1}}, 400),
        ("balls", {"foreground": [[1, 2, 900]]}, 400),
        ("balls", {"foreground": [A] * 1001}, 400),
        ("balls", {"roi": [1, 2, 3]}, 400),
        ("balls", {"roi": [100, 200, 100, 200, 100, 200]}, 400),
        ("balls", {"roi": [1, 2, 3, 4, 5, "x"]}, 400),
        ("balls", {"foreground": [A], "label": " "}, 400),
        ("balls", {"foreground": [A], "label": "x" * 300}, 400),
        ("balls", {"foreground": [A], "result_extension": ".exe"}, 400),
        ("balls", {"foreground": [A], "result_dtype": "object"}, 400),
        ("balls-labels", {"liver": []}, 400),
        ("balls-scribbles", {"label_info": [{"name": "foreground_scribbles", "id": 1}]}, 400),
    ],
)
def test_nonsense_is_refused_in_one_line(desk, model, params, status):
    form = {"params": json.dumps({"label": "liver", **params})}
    answer = desk.ask("POST", f"/infer/{model}?image=ct", status, data=form)
    assert "\n" not in answer.json()["detail"]


def test_what_is_not_named_or_not_there_is_refused(desk):
    form = {"data": {"params": json.dumps({"foreground": [A]})}}
    desk.ask("POST", "/infer/balls", 400, **form)
    desk.ask("POST", "/infer/balls?image=none", 404, **form)
    desk.ask("POST", "/infer/balls?image=../ct", 404, **form)
    desk.ask("POST", "/infer/balls?session_id=none", 404, **form)
    desk.ask("POST", "/infer/balls?image=ct", 400, data={"params": "[1]"})
    desk.ask("POST", "/infer/balls?image=ct", 400, data={"params": "[" * 100_000})


def test_places_are_shared_and_the_oldest_gives_way(serve, tmp_path, studies, alone):
    http = serve(max_leases=1)
    desk = Desk(http, tmp_path)
    alone.add(click(alone, A))
    for client in ("ana", "ben", "ana"):
        assert same(desk.infer("balls", {"foreground": [A], "client_id": client})[1], alone)
    assert len(http.app.state.core.leases) == 1
    token = next(iter(http.app.state.core.leases)).token
    http.app.state.core.release(token)
    http.app.state.core.claim()
    desk.ask("POST", "/infer/balls?image=ct", 503, data={"params": json.dumps({"foreground": [A]})})


# --- sessions --------------------------------------------------------------------------------------------------------


def test_a_session_is_kept_looked_at_and_removed(desk, studies, http):
    sid = desk.upload(studies / "ct.nii.gz")
    info = desk.ask("GET", f"/session/{sid}").json()
    assert set(info) == {"name", "path", "image", "meta", "create_ts", "last_access_ts", "expiry"}
    assert (info["image"], info["expiry"]) == ("ct.nii.gz", 3600)
    assert desk.ask("GET", f"/session/{sid}?image=true").content == (studies / "ct.nii.gz").read_bytes()
    desk.infer("balls", {"foreground": [A]}, "", session_id=sid)
    assert len(http.app.state.core.leases) == 1
    assert desk.ask("DELETE", f"/session/{sid}").json()["name"] == sid
    assert len(http.app.state.core.leases) == 0
    desk.ask("GET", f"/session/{sid}", 404)
    desk.ask("DELETE", f"/session/{sid}", 404)


def test_a_session_expires_an_hour_after_it_was_last_used(desk, studies, monkeypatch):
    from volsam.server.dialects.monai_label import uploads

    sid = desk.upload(studies / "ct.nii.gz")
    began = uploads.time.time()
    monkeypatch.setattr(uploads.time, "time", lambda: began + 3000)
    desk.ask("GET", f"/session/{sid}?update_ts=true")
    monkeypatch.setattr(uploads.time, "time", lambda: began + 6000)
    desk.ask("GET", f"/session/{sid}")
    monkeypatch.setattr(uploads.time, "time", lambda: began + 7000)
    desk.ask("GET", f"/session/{sid}", 404)


def test_an_archive_is_unpacked_when_asked(desk, studies, alone):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.write(studies / "ct.nii.gz", "../../folder/ct.nii.gz")
    files = {"files": ("scan.zip", packed.getvalue())}
    sid = desk.ask("PUT", "/session/?uncompress=true", files=files).json()["session_id"]
    alone.add(click(alone, A))
    assert same(desk.infer("balls", {"foreground": [A]}, "", session_id=sid)[1], alone)


def test_uploads_that_are_no_image_are_refused_and_leave_nothing(desk, tmp_path):
    kept = set((tmp_path / "sessions").rglob("*"))
    desk.ask("PUT", "/session/", 400, files={"files": ("ct.nii.gz", b"nothing")})
    desk.ask("PUT", "/session/?uncompress=true", 400, files={"files": ("ct.zip", b"nothing")})
    desk.ask("PUT", "/session/", 422)
    assert set((tmp_path / "sessions").rglob("*")) == kept


# --- the datastore ---------------------------------------------------------------------------------------------------


def test_labels_are_saved_beside_the_studies_and_come_back(desk, studies, a_label):
    assert desk.save("more/mr", a_label, label_info=[{"name": "liver", "idx": 1}], client_id="ana") == {
        "image": "more/mr",
        "label": "more/mr",
    }
    assert (studies / "labels" / "final" / "more" / "mr.nii.gz").read_bytes() == a_label.read_bytes()
    answer = desk.ask("GET", "/datastore/label?label=more/mr&tag=final")
    assert answer.content == a_label.read_bytes()
    assert "filename*=utf-8''mr.nii.gz" in answer.headers["content-disposition"].lower()
    index = json.loads((studies / "datastore_v2.json").read_text())
    entry = index["objects"]["more/mr"]
    assert entry["image"]["ext"] == ".nii"
    assert entry["labels"]["final"]["ext"] == ".nii.gz"
    assert entry["labels"]["final"]["info"]["client_id"] == "ana"
    assert desk.ask("GET", "/datastore/?output=all").json()["objects"]["more/mr"] == entry
    assert desk.ask("GET", "/datastore/").json() == {"total": 2, "completed": 1, "label_tags": {"final": 1}}
    assert desk.ask("GET", "/datastore/?output=train").json() == [
        {"image": "more/mr.nii", "label": "labels/final/more/mr.nii.gz"}
    ]
    desk.ask("HEAD", "/datastore/label?image=more/mr&tag=final")
    desk.ask("HEAD", "/datastore/label?image=ct&tag=final", 404)
    desk.ask("DELETE", "/datastore/label?id=more/mr&tag=final")
    assert not (studies / "labels" / "final" / "more" / "mr.nii.gz").exists()
    desk.ask("GET", "/datastore/label?label=more/mr&tag=final", 404)


def test_a_label_of_another_format_replaces_the_older_one(desk, studies, a_label, tmp_path):
    desk.save("ct", a_label)
    write_volume(read_volume(a_label), tmp_path / "label.nrrd")
    desk.save("ct", tmp_path / "label.nrrd")
    assert [path.name for path in (studies / "labels" / "final").iterdir()] == ["ct.nrrd"]


def test_the_names_of_a_label_are_those_of_who_saved_it_last(desk, studies, a_label):
    def names():
        (found,) = training.labelled(datastore.Datastore(studies), Task({}))
        return found.names

    desk.save("ct", a_label, label_info=[{"name": "spleen", "idx": 1}])
    assert names() == {"spleen": 1}
    # As the viewer saves: the label, and beside it what is in it.
    beside = studies / "labels" / "final" / "ct.json"
    beside.write_text(json.dumps({"labels": [{"name": "liver", "number": 1}]}))
    assert names() == {"liver": 1}
    desk.save("ct", a_label, label_info=[{"name": "kidney", "idx": 1}])
    assert names() == {"kidney": 1}
    assert not beside.exists()


def test_a_label_that_was_drawn_meanwhile_is_not_replaced_by_a_models(studies, a_label):
    store = datastore.Datastore(studies)
    store.save_label("ct", "final", a_label, ".nii.gz", {})
    with pytest.raises(BadInput, match="not replaced by a model's"):
        store.save_label("ct", "final", a_label, ".nii.gz", {}, replace=False)


def test_what_would_not_fit_into_memory_is_refused_before_it_is_unpacked(desk, studies, a_label, monkeypatch):
    monkeypatch.setattr("volsam.data.memory.available_memory", lambda: 10 << 20)
    unpacked = []
    monkeypatch.setattr("volsam.server.volumes.read_volume", lambda path, **how: unpacked.append(path))
    files = {"label": ("label.nii.gz", a_label.read_bytes())}
    said = desk.ask("PUT", "/datastore/label?image=ct&tag=final", 413, files=files).json()["detail"]
    assert "of memory" in said
    assert not unpacked


def test_people_keep_labels_of_their_own_under_tags(desk, a_label):
    for tag in ("final", "ana", "original"):
        desk.save("ct", a_label, tag=tag)
    assert desk.ask("GET", "/datastore/").json()["label_tags"] == {"ana": 1, "final": 1, "original": 1}


def test_labels_that_do_not_fit_are_refused_and_the_older_one_stays(desk, studies, a_label, a_small_ct, tmp_path):
    desk.save("ct", a_label)
    kept = (studies / "labels" / "final" / "ct.nii.gz").read_bytes()
    small = a_small_ct.grid.crop((0, 0, 0), (10, 10, 10))
    write_volume(type(a_small_ct)(np.zeros(small.shape, np.uint8), small, "small"), tmp_path / "small.nii.gz")
    (tmp_path / "cut.nii.gz").write_bytes(a_label.read_bytes()[:-200])
    (tmp_path / "label.seg.nrrd").write_bytes(b"NRRD0004")
    (tmp_path / "label.exe").write_bytes(b"MZ")
    for name in ("small.nii.gz", "cut.nii.gz", "label.seg.nrrd", "label.exe"):
        desk.save("ct", tmp_path / name, 400)
    for tag in ("..", "a/b", ".hidden", "x" * 100):
        desk.save("ct", a_label, 400, tag=tag)
    desk.save("none", a_label, 404)
    assert (studies / "labels" / "final" / "ct.nii.gz").read_bytes() == kept
    assert sorted(path.name for path in (studies / "labels").rglob("*")) == ["ct.nii.gz", "final"]


def test_bare_voxels_of_a_browser_become_a_label_of_the_image(desk, studies, a_ball):
    raw = a_ball.astype("<u2").ravel(order="F").tobytes()
    desk.ask("PUT", "/datastore/label?image=ct", files={"label": ("label.bin", raw)}, data={"params": "{}"})
    assert np.array_equal(read_volume(studies / "labels" / "final" / "ct.nii.gz").data[0], a_ball)
    desk.ask("PUT", "/datastore/label?image=ct", 400, files={"label": ("label.bin", raw[:-3])})


def test_images_are_fetched_and_checked(desk, studies):
    content = (studies / "ct.nii.gz").read_bytes()
    assert desk.ask("GET", "/datastore/image?image=ct").content == content
    sample = desk.ask("POST", "/activelearning/first", json={}).json()
    assert sample["checksum"].startswith("SHA256:")
    desk.ask("HEAD", f"/datastore/image?image=ct&check_sum={sample['checksum']}")
    desk.ask("HEAD", "/datastore/image?image=ct&check_sum=SHA256:00", 404)
    desk.ask("HEAD", "/datastore/image?image=none", 404)
    desk.ask("GET", "/datastore/image?image=../../etc/passwd", 404)


def test_an_image_is_taken_in_under_any_name_and_never_replaces_another(desk, studies, a_label, alone):
    content = (studies / "ct.nii.gz").read_bytes()

    def put(name: str, body: bytes, status: int = 200) -> None:
        files = {"file": ("/elsewhere/slicer/tmpx.nii.gz", body)}
        answer = desk.ask("PUT", "/datastore/", status, params={"image": name}, files=files, data={"params": "{}"})
        assert status != 200 or answer.json() == {"image": name}

    put("2: CT/THORAX", content)
    assert (studies / "THORAX.nii.gz").read_bytes() == content
    alone.add(click(alone, A))
    assert same(desk.infer("balls", {"foreground": [A]}, "2: CT/THORAX")[1], alone)
    desk.save("2: CT/THORAX", a_label)
    assert (studies / "labels" / "final" / "THORAX.nii.gz").is_file()
    put("2: CT/THORAX", content)
    put("2: CT/THORAX", a_label.read_bytes(), 409)
    put("ct", a_label.read_bytes(), 409)
    put("other/THORAX", a_label.read_bytes(), 409)
    put("new", b"nothing", 400)
    assert sorted(path.name for path in studies.glob("*.nii.gz")) == ["THORAX.nii.gz", "ct.nii.gz"]


def test_images_are_not_removed_over_the_network(desk, studies):
    desk.ask("DELETE", "/datastore/image?id=ct", 403)
    desk.ask("DELETE", "/datastore/?id=none", 404)
    assert (studies / "ct.nii.gz").is_file()


def test_what_is_known_of_images_and_labels_can_be_added_to(desk, a_label):
    desk.save("ct", a_label)
    desk.ask("PUT", "/datastore/image/info?image=ct", data={"info": '{"PatientID": "7"}'})
    assert desk.ask("GET", "/datastore/image/info?image=ct").json()["PatientID"] == "7"
    desk.ask("PUT", "/datastore/label/info?label=ct&tag=final", data={"info": '{"checked": true}'})
    desk.ask("PUT", "/datastore/updatelabelinfo?label=ct&tag=final", data={"params": '{"twice": true}'})
    info = desk.ask("GET", "/datastore/label/info?label=ct&tag=final").json()
    assert (info["checked"], info["twice"], info["name"]) == (True, True, "ct.nii.gz")
    desk.ask("PUT", "/datastore/image/info?image=ct", 400, data={"info": "[]"})


def test_an_index_that_monai_label_wrote_is_gone_on_with(desk, studies, a_label):
    (studies / "labels" / "original").mkdir(parents=True)
    (studies / "labels" / "original" / "ct.nii.gz").write_bytes(a_label.read_bytes())
    entry = {
        "image": {"ext": ".nii.gz", "info": {"ts": 1, "name": "ct.nii.gz", "PatientID": "7"}},
        "labels": {"original": {"ext": ".nii.gz", "info": {"params": {"label_names": {"liver": 1}}}}},
    }
    index = {"name": "mine", "description": "d", "images_dir": ".", "labels_dir": "labels", "objects": {"ct": entry}}
    (studies / "datastore_v2.json").write_text(json.dumps(index))
    found = desk.ask("GET", "/datastore/?output=all").json()
    assert found["name"] == "mine"
    assert found["objects"]["ct"]["labels"]["original"]["info"]["params"]["label_names"] == {"liver": 1}
    assert desk.ask("GET", "/info/").json()["labels"] == ["liver", "background"]
    assert desk.ask("POST", "/activelearning/first", json={}).json()["PatientID"] == "7"
    (studies / "datastore_v2.json").write_text("{")
    assert "damaged" in desk.ask("GET", "/datastore/", 400).json()["detail"]
    assert (studies / "datastore_v2.json").read_text() == "{"


def test_a_known_image_is_found_without_a_listing_of_all(desk, studies, a_label, monkeypatch):
    desk.ask("GET", "/datastore/")
    listed = []
    monkeypatch.setattr(datastore, "all_studies", lambda folder: listed.append(folder) or iter(()))
    desk.save("more/mr", a_label)
    assert desk.ask("GET", "/datastore/label?label=more/mr&tag=final").content == a_label.read_bytes()
    # What happens to the files meanwhile is seen.
    (studies / "labels" / "final" / "more" / "mr.nii.gz").rename(studies / "labels" / "final" / "more" / "mr2.nii.gz")
    desk.ask("GET", "/datastore/label?label=more/mr&tag=final", 404)
    assert not listed
    (studies / "more" / "mr.nii").unlink()
    desk.ask("GET", "/datastore/image?image=more/mr", 404)
    assert listed


def test_the_labelled_cases_come_as_an_archive(desk, a_label):
    desk.ask("GET", "/datastore/dataset", 404)
    desk.save("ct", a_label)
    answer = desk.ask("GET", "/datastore/dataset?limit_cases=5")
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert sorted(archive.namelist()) == ["image/ct.nii.gz", "label/final/ct.nii.gz", "metadata.json"]


# --- which image is next ---------------------------------------------------------------------------------------------


def test_images_without_a_final_label_are_handed_out_until_there_are_none(desk, a_label):
    sample = desk.ask("POST", "/activelearning/first", json={"client_id": "ana"}).json()
    assert (sample["id"], sample["name"]) == ("ct", "ct.nii.gz")
    assert desk.ask("POST", "/activelearning/first", json={"client_id": "ana"}).json()["id"] == "ct"
    assert desk.ask("POST", "/activelearning/first", json={"client_id": "ben"}).json()["id"] == "more/mr"
    desk.save("ct", a_label)
    assert desk.ask("POST", "/activelearning/random", json={"client_id": "ana"}).json()["id"] == "more/mr"
    desk.save("more/mr", a_label)
    assert desk.ask("POST", "/activelearning/first", json={}).json() == {}
    desk.ask("POST", "/activelearning/none", 404, json={})


def test_the_image_of_which_the_model_expects_least_comes_first(desk, studies, a_model, a_small_ct):
    """Of `more/mr`, which is the brighter, this model expects less."""
    write_volume(a_small_ct.with_data(a_small_ct.data + np.int16(500)), studies / "more" / "mr.nii")
    decode = type(a_model).decode

    def doubting(encoded, prompts, previous):
        found = decode(a_model, encoded, prompts, previous)
        found.quality = 0.3 if encoded > 300 else 0.8
        return found

    a_model.decode = doubting
    sample = desk.ask("POST", "/activelearning/uncertainty", json={}).json()
    assert (sample["id"], sample["quality"]) == ("more/mr", 0.3)
    asked = len(a_model.asked)
    assert desk.ask("POST", "/activelearning/uncertainty", json={}).json()["id"] == "more/mr"
    assert len(a_model.asked) == asked  # what was found out once is remembered


def test_the_first_guess_is_where_labels_lie_in_other_images(desk, a_model, a_small_ct, tmp_path):
    values = np.zeros(a_small_ct.grid.shape, np.uint8)
    values[34:44, 30:40, 20:28] = 1
    write_volume(a_small_ct.with_data(values[None]), tmp_path / "corner.nii.gz")
    desk.save("more/mr", tmp_path / "corner.nii.gz")
    regions = []
    encode = a_model.encode
    a_model.encode = lambda volume, roi: (regions.append(roi), encode(volume, roi))[1]
    desk.ask("POST", "/activelearning/uncertainty", json={})
    place = regions[-1].to_world(a_model.asked[-1].points[0])
    middle = a_small_ct.grid.to_world(np.argwhere(values).mean(axis=0))
    assert np.linalg.norm(place - middle) < 0.1


def test_saved_sessions_tell_what_is_expected(desk, client, http):
    someone = client(http)
    someone.open("more/mr.nii")
    someone.click(A)
    sample = desk.ask("POST", "/activelearning/uncertainty", json={}).json()
    assert sample["quality"] == 0.8


def test_a_damaged_image_comes_last(desk, studies):
    (studies / "a.nii.gz").write_bytes(b"nothing")
    assert desk.ask("POST", "/activelearning/uncertainty", json={}).json()["id"] != "a"


# --- work beside requests --------------------------------------------------------------------------------------------


@pytest.fixture
def a_trainer(monkeypatch):
    """In place of `volsam train`, a command that says two lines and waits for so many seconds."""

    def stand_in(seconds: float, status: int = 0) -> None:
        code = f"import sys, time; print('one'); print('two', flush=True); time.sleep({seconds}); sys.exit({status})"
        monkeypatch.setattr(training, "_command", lambda *_: [sys.executable, "-c", code])
        monkeypatch.setattr(training, "_require_extra", lambda: None)

    return stand_in


def test_training_is_started_looked_at_and_stopped(desk, a_label, a_trainer, studies):
    a_trainer(600)
    desk.ask("GET", "/train/", 404)
    desk.ask("POST", "/train/adapt", 400, json={"client_id": "ana"})  # nothing is labelled
    desk.save("ct", a_label, label_info=[{"name": "liver", "idx": 1}])
    task = desk.ask("POST", "/train/adapt", json={"client_id": "ana", "max_steps": "5"}).json()
    assert set(task) >= {"id", "status", "request", "start_ts", "details"}
    desk.ask("POST", "/train/adapt", 429, json={})
    desk.ask("POST", "/train/", 429, json={})
    assert desk.ask("GET", "/train/?check_if_running=true").json()["id"] == task["id"]
    stopped = desk.ask("DELETE", "/train/").json()
    assert stopped["status"] == "STOPPED"
    assert stopped["end_ts"] >= stopped["start_ts"]
    desk.ask("GET", "/train/?check_if_running=true", 404)
    desk.ask("DELETE", "/train/", 404)
    assert desk.ask("GET", "/train/").json()["status"] == "STOPPED"
    assert len(desk.ask("GET", "/train/?all=true").json()) == 1
    desk.ask("POST", "/train/none", 404, json={})
    desk.ask("POST", "/train/adapt", 400, json={"dropout": 0.5})
    desk.ask("POST", "/train/adapt", 400, json={"max_steps": "many"})
    assert list((studies / ".volsam" / "training").iterdir()) == []


def test_training_that_fails_says_why(desk, a_label, a_trainer):
    a_trainer(0, status=3)
    desk.save("ct", a_label)
    task = desk.ask("POST", "/train/adapt?run_sync=true", json={}).json()
    assert task["status"] == "ERROR"
    assert task["details"][-3:] == ["one", "two", "error: it ended with status 3"]


def test_a_dataset_goes_by_the_names_of_labels(desk, http, studies, a_label, a_small_ct, a_ball, tmp_path):
    two = a_ball.astype(np.uint8)
    two[:10] = 2
    write_volume(a_small_ct.with_data(two[None]), tmp_path / "two.nii.gz")
    desk.save("ct", a_label, label_info=[{"name": "liver", "idx": 3}])  # the third segment, saved as 1
    desk.save(
        "more/mr", tmp_path / "two.nii.gz", label_info=[{"name": "spleen", "idx": 1}, {"name": "liver", "idx": 2}]
    )
    from volsam.data.check import check
    from volsam.data.dataset import read_dataset
    from volsam.server.dialects.monai_label.datastore import Datastore

    folder = tmp_path / "dataset"
    count, _ = write_dataset(training.labelled(Datastore(studies), Task({})), folder, "studies", print)
    assert count == 2
    dataset = read_dataset(folder)
    assert dataset.labels == {"background": 0, "liver": 1, "spleen": 2}
    assert [problem for problem in check(dataset) if "same values" not in problem] == []
    first, second = (read_volume(case.label).data[0] for case in dataset.cases)
    assert np.array_equal(first, a_ball)
    assert np.array_equal(second == 2, two == 1)
    assert np.array_equal(second == 1, two == 2)


def test_work_of_a_kind_goes_on_one_at_a_time_and_ends_with_the_server():
    tasks = Tasks()

    def endless(task: Task) -> None:
        while True:
            task.say("on")
            task.stop_asked.wait(0.01)

    task = tasks.start("train", {}, endless, wait=False)
    with pytest.raises(Problem) as busy:
        tasks.start("train", {}, endless, wait=False)
    assert busy.value.status == 429
    tasks.start("batch_infer", {}, lambda task: task.say("done"), wait=True)
    tasks.shut_down()
    assert task.state == "STOPPED"
    assert len(task.record()["details"]) <= 20


def test_models_that_need_clicks_do_no_batches(desk):
    assert "clicks" in desk.ask("POST", "/batch/infer/balls", 400, json={}).json()["detail"]
    desk.ask("GET", "/batch/infer", 404)
    desk.ask("DELETE", "/batch/infer", 404)


class Halves:
    """A model that labels the lower half of a volume along its first axis 1."""

    name = "halves"

    def segment(self, volume):
        values = np.zeros(volume.grid.shape, np.uint8)
        values[: len(values) // 2] = 1
        return volume.with_data(values[None])


@pytest.fixture
def a_trained_model(monkeypatch):
    monkeypatch.setattr(training.Trainer, "newest", lambda _: Path("run"))
    monkeypatch.setattr(training.Trainer, "labels", lambda _: {"half": 1, "other": 2})
    monkeypatch.setattr(training.Trainer, "model", lambda _: Halves())


def test_a_trained_model_is_offered_first_and_labels_images_by_itself(desk, studies, a_trained_model, a_label):
    models = desk.ask("GET", "/info/").json()["models"]
    assert next(iter(models)) == "adapted"
    assert (models["adapted"]["type"], models["adapted"]["labels"]) == ("segmentation", {"half": 1, "other": 2})
    said, labels = desk.infer("adapted", {})
    assert said["label_names"] == {"half": 1}
    assert labels.data[0][0].all()
    assert not labels.data[0][-1].any()
    sid = desk.upload(studies / "ct.nii.gz")
    assert np.array_equal(desk.infer("adapted", {}, "", session_id=sid)[1].data, labels.data)
    desk.save("ct", a_label)
    task = desk.ask("POST", "/batch/infer/adapted?images=unlabeled&run_sync=true", json={}).json()
    assert (task["status"], task["result"]) == ("DONE", {"more/mr": "original"})
    assert np.array_equal(read_volume(studies / "labels" / "original" / "more" / "mr.nii.gz").data, labels.data)
    info = desk.ask("GET", "/datastore/label/info?label=more/mr&tag=original").json()
    assert info["params"]["label_names"] == {"half": 1}
    task = desk.ask("POST", "/batch/infer/adapted?run_sync=true", json={"label_tag": "final"}).json()
    assert task["result"] == {"more/mr": "final"}  # what a person has labelled stays
    assert (studies / "labels" / "final" / "ct.nii.gz").read_bytes() == a_label.read_bytes()


# --- keys and models -------------------------------------------------------------------------------------------------


def test_signing_in_is_there_with_a_key_only(desk, serve, tmp_path):
    desk.ask("GET", "/auth/", 404)
    guarded = Desk(serve(key=SecretStr(KEY)), tmp_path)
    assert guarded.ask("GET", "/auth/").json()["enabled"] is True
    guarded.ask("GET", "/info/", 401)
    guarded.ask("GET", "/auth/token/valid", 401)
    guarded.ask("POST", "/auth/token", 401, data={"username": "ana", "password": "no", "grant_type": "password"})
    token = guarded.ask("POST", "/auth/token", data={"username": "ana", "password": KEY, "grant_type": "password"})
    headers = {"Authorization": "{token_type} {access_token}".format(**token.json())}
    guarded.ask("GET", "/auth/token/valid", headers=headers)
    guarded.ask("GET", "/info/", headers=headers)


def test_weights_are_told_and_not_changed(serve, tmp_path):
    from volsam.recipes.recipe import EMBEDDED

    desk = Desk(serve(models=(EMBEDDED,)), tmp_path)
    info = desk.ask("GET", f"/model/info/{EMBEDDED}").json()
    answer = desk.ask("GET", f"/model/{EMBEDDED}")
    from hashlib import sha256

    assert info["checksum"] == f"SHA256:{sha256(answer.content).hexdigest()}"
    desk.ask("PUT", f"/model/{EMBEDDED}", 403, files={"file": ("x.pt", b"x")})
    desk.ask("DELETE", f"/model/{EMBEDDED}", 403)
    desk.ask("GET", "/model/none", 404)


def test_a_server_that_does_not_speak_it_says_what_it_speaks(serve):
    answer = serve(dialects=("itksnap",)).get("/info/")
    assert answer.status_code == 404
    assert answer.json()["speaks"]["dialects"] == ["itksnap"]


@pytest.mark.slow
def test_labels_become_a_model_that_labels_what_is_left(desk, studies, a_label, a_small_ct, a_ball):
    """The whole way, with `volsam train adapt` itself."""
    desk.save("ct", a_label, label_info=[{"name": "ball", "idx": 1}])
    task = desk.ask("POST", "/train/adapt?run_sync=true", json={"max_steps": 20, "client_id": "ana"}).json()
    assert task["status"] == "DONE", task
    assert task["result"]["cases"] == 1
    info = desk.ask("GET", "/info/").json()
    assert info["models"]["adapted"]["labels"] == {"ball": 1}
    assert info["train_stats"]["adapt"]["epoch"] == info["train_stats"]["adapt"]["total_epochs"] == 20
    (place,) = (studies / ".volsam" / "training").iterdir()
    assert sorted(path.name for path in place.iterdir()) == ["log.txt", "run"]
    task = desk.ask("POST", "/batch/infer/adapted?images=unlabeled&run_sync=true", json={}).json()
    assert (task["status"], list(task["result"])) == ("DONE", ["more/mr"])
    found = read_volume(studies / "labels" / "original" / "more" / "mr.nii.gz").data[0] > 0
    assert found.shape == a_ball.shape
    assert 2 * (found & a_ball).sum() / (found.sum() + a_ball.sum()) > 0.5
    assert desk.ask("GET", "/model/info/adapted").json()["checksum"].startswith("SHA256:")
