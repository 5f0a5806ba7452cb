"""What a server does with those who err, and those who try."""

from __future__ import annotations

import gzip
import json
import zlib

import nibabel
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from volsam.errors import BadInput
from volsam.server import wire
from volsam.server.settings import Settings, read_key

pytestmark = pytest.mark.slow

KEY = "correct-horse-battery-staple"
A = (22, 20, 14)


# --- who may come ----------------------------------------------------------------------------------------------------


@pytest.fixture
def locked(serve):
    return serve(key=KEY)


def test_without_the_key_nothing_is_told(locked):
    for header in [None, "", "Bearer", "Bearer wrong", f"Basic {KEY}", f"Bearer {KEY}x", "Bearer ключ"]:
        for path in ["/api/v1/models", "/api/v1/lease", "/metrics", "/capabilities", "/nothing", "/api/v1/docs"]:
            headers = {} if header is None else {"Authorization": header.encode()}
            answer = locked.get(path, headers=headers)
            assert answer.status_code == 401
            assert answer.json()["code"] == "key"
            assert "WWW-Authenticate" in answer.headers


def test_with_the_key_everything_is(locked):
    assert locked.get("/api/v1/models", headers={"Authorization": f"Bearer {KEY}"}).status_code == 200
    for path in ("/health", "/api/v1/health", "/api/v1/version", "/healthz"):
        assert locked.get(path).status_code == 200
    assert locked.get("/api/v1/version").json()["key_needed"] is True


def test_other_machines_need_a_key(studies):
    with pytest.raises(BadInput, match="needs a key"):
        Settings(host="0.0.0.0", studies=studies)
    assert Settings(host="0.0.0.0", key=KEY).key is not None
    assert KEY not in repr(Settings(host="0.0.0.0", key=KEY))


@pytest.mark.parametrize(
    "content", [b"", b"short", b"two words are no good key", b"\xff\xfe" * 20, "schlüssel-schlüssel".encode()]
)
def test_a_bad_key_file_is_refused_and_not_shown(tmp_path, content):
    file = tmp_path / "key"
    file.write_bytes(content)
    with pytest.raises(BadInput) as refused:
        read_key(file)
    assert not content or content.decode("latin-1") not in str(refused.value)


def test_a_name_that_leads_here_from_elsewhere_is_not_served(http):
    for host in ["evil.example", "evil.example:1527", "127.0.0.1.evil.example"]:
        assert http.get("/api/v1/models", headers={"Host": host}).status_code == 403


def test_what_is_no_address_is_refused_in_one_line(http):
    for headers in ({"Host": "["}, {"Origin": "http://["}):
        answer = http.get("/api/v1/models", headers=headers)
        assert answer.status_code == 400
        assert "is not the address of a server" in answer.json()["detail"]


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:8000"])
def test_scripts_of_other_web_sites_are_not_served(http, serve, origin):
    assert http.post("/api/v1/lease", headers={"Origin": origin}).status_code == 403
    assert http.post("/api/v1/lease", headers={"Origin": "http://127.0.0.1"}).status_code == 201
    allowed = serve(origins=(origin,)).post("/api/v1/lease", headers={"Origin": origin})
    assert allowed.status_code == 201
    assert allowed.headers["Access-Control-Allow-Origin"] == origin


def test_an_unknown_path_is_told_what_is_spoken_here(http):
    body = http.get("/v3/segment").json()
    assert body["speaks"] == {"api": "/api/v1", "dialects": http.get("/api/v1/version").json()["dialects"]}
    assert "/api/v1" in body["detail"]


# --- paths -----------------------------------------------------------------------------------------------------------


def test_nothing_outside_the_studies_can_be_reached(ana, studies, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.nii").write_bytes((studies / "more" / "mr.nii").read_bytes())
    (tmp_path / "secret.nii").write_bytes((studies / "more" / "mr.nii").read_bytes())
    (studies / ".hidden.nii").write_bytes((studies / "more" / "mr.nii").read_bytes())
    (studies / "link.nii").symlink_to(outside / "secret.nii")
    (studies / "folder").symlink_to(outside)
    (studies / "series").mkdir()
    (studies / "series" / "slice.dcm").symlink_to(outside / "secret.nii")
    for path in [
        *("../secret.nii", "more/../../secret.nii", "/etc/passwd", "..", ".", "more/..", "..\\secret.nii", "a\0b"),
        *(".hidden.nii", "link.nii", "folder/secret.nii", "series", "/", "//etc/passwd", "~/x", "C:/x"),
    ]:
        before = ana.ask("GET", "/session")["id"]
        answer = ana("POST", "/session", json={"study": path})
        assert answer.status_code in (403, 404), answer.text
        assert str(tmp_path) not in answer.text
        assert ana.ask("GET", "/session")["id"] == before


def test_labels_are_not_written_through_a_link(ana, studies, tmp_path):
    (tmp_path / "outside").mkdir()
    (studies / "labels").symlink_to(tmp_path / "outside")
    assert ana.ask("POST", "/session/save", 403, json={})["code"] == "forbidden"
    assert not list((tmp_path / "outside").iterdir())


def test_a_tag_is_a_plain_word(ana):
    for tag in ["../x", "a/b", ".", "", "a" * 80, "a\0"]:
        assert ana.ask("POST", "/session/save", 422, json={"tag": tag})["code"] == "schema"


def test_an_uploads_name_leads_nowhere(ana, studies, tmp_path):
    for name in ["../../x.nii", "/etc/x.nii", "..\\x.nii", "a\nb.nii", "." * 300, "x" * 900 + ".nii"]:
        content = (studies / "more" / "mr.nii").read_bytes()
        state = ana.ask("POST", "/session/file", 201, content=content, params={"name": name})
        place = tmp_path / "sessions" / state["id"]
        assert sorted(path.parent for path in place.rglob("*") if path.is_file()) == [place, place / "upload"]


def test_a_header_that_names_another_file_is_refused(ana, studies):
    for text in (
        "ObjectType = Image\nNDims = 3\nDimSize = 4 4 4\nElementType = MET_CHAR\nElementDataFile = /etc/passwd\n",
        "NRRD0004\ntype: uchar\ndimension: 3\nsizes: 4 4 4\nencoding: raw\ndata file: ../../../etc/passwd\n\n",
    ):
        answer = ana.ask("POST", "/session/file?name=x.mha", 400, content=text.encode())
        assert answer["code"] == "bad_input"


# --- uploads ---------------------------------------------------------------------------------------------------------


def head(**changes) -> dict[str, str]:
    whole = {"shape": [4, 5, 6], "dtype": "int16", "affine": np.eye(4).tolist(), "order": "F", "compression": "none"}
    return {"X-Meta": json.dumps({**whole, **changes})}


def refused(client, path: str, statuses: tuple[int, ...], **options) -> str:
    """An upload that must be refused in one line, leaving the client where it was and nothing on disk."""
    before = client.ask("GET", "/session")["id"]
    store = client.http.app.state.core.store.folder
    there = sorted(store.iterdir())
    answer = client("POST", path, **options)
    assert answer.status_code in statuses, answer.text
    assert "\n" not in answer.json()["detail"]
    assert "unexpected" not in answer.json()["detail"]
    assert client.ask("GET", "/session")["id"] == before
    assert sorted(store.iterdir()) == there
    return answer.json()["detail"]


def test_an_array_is_as_long_as_it_says(ana):
    for compression in ["none", "deflate", "gzip"]:
        for size in [0, 1, 239, 241, 10_000]:
            data = bytes(size)
            packed = {"none": bytes, "deflate": zlib.compress, "gzip": gzip.compress}[compression](data)
            refused(ana, "/session/array", (400, 413), content=packed, headers=head(compression=compression))


def test_a_packed_array_that_is_cut_short_or_damaged_is_refused(ana):
    packed = bytearray(zlib.compress(bytes(240)))
    refused(ana, "/session/array", (400,), content=bytes(packed[:-5]), headers=head(compression="deflate"))
    packed[0] ^= 0xFF
    refused(ana, "/session/array", (400,), content=bytes(packed), headers=head(compression="deflate"))


def test_a_bomb_is_unpacked_no_further_than_its_promise(ana):
    bomb = zlib.compress(bytes(50_000_000), 9)
    assert "240" in refused(ana, "/session/array", (400,), content=bomb, headers=head(compression="deflate"))


def test_an_array_that_cannot_fit_is_refused_with_numbers_before_it_is_sent(ana):
    for shape in [[1 << 20] * 3, [100_000, 100_000, 4], [1 << 20, 1 << 20, 1 << 20, 3]]:
        assert "GB" in refused(ana, "/session/array", (413,), content=b"", headers=head(shape=shape))


def test_a_head_that_makes_no_sense_is_refused(ana):
    for changes in [
        {"shape": [0, 4, 4]},
        {"shape": [4, 4]},
        {"shape": "big"},
        {"dtype": "object"},
        {"dtype": "U10"},
        {"dtype": "complex64"},
        {"dtype": "int16,(100,100)"},
        {"affine": [[0] * 4] * 4},
        {"affine": [[1]]},
        {"affine": [[1e400] * 4] * 4},
        {"order": "A"},
        {"compression": "zip"},
        {"name": " "},
        {"more": 1},
        {"channel": 1},
        {"model": "other"},
    ]:
        refused(ana, "/session/array", (400, 413), content=bytes(240), headers=head(**changes))


def test_a_head_that_is_no_head_is_refused(ana):
    for text in ["", "{", "[]", "null", '{"shape": 1}']:
        refused(ana, "/session/array", (400,), content=bytes(240), headers={"X-Meta": text})
        assert ana("POST", "/session/array", content=bytes(240)).status_code == 422


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(data=st.data())
def test_whatever_is_said_of_an_array_the_answer_is_clear(ana, data):
    json_values = st.recursive(
        st.none() | st.booleans() | st.integers(-3, 1 << 40) | st.floats() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=4),
        max_leaves=8,
    )
    fields = ["shape", "dtype", "affine", "order", "compression", "name", "channel", "object"]
    changes = data.draw(st.dictionaries(st.sampled_from(fields), json_values, min_size=1, max_size=3))
    text = json.dumps({**json.loads(head()["X-Meta"]), **changes}).encode("ascii")
    answer = ana("POST", "/session/array", content=bytes(240), headers={"X-Meta": text})
    assert answer.status_code in (201, 400, 413), answer.text
    assert "unexpected" not in answer.text


def nifti(shape=(12, 11, 10), **fields) -> bytes:
    image = nibabel.Nifti1Image(np.arange(np.prod(shape), dtype=np.int16).reshape(shape), np.eye(4))
    data = bytearray(image.to_bytes())
    header = np.frombuffer(data, image.header.template_dtype, count=1)
    for name, value in fields.items():
        header[name] = value
    return bytes(data)


def test_a_file_that_lies_is_refused_and_leaves_nothing(ana):
    for content in [
        b"",
        b"hello",
        nifti()[:200],
        nifti()[:-100],
        gzip.compress(nifti())[:-20],
        nifti(dim=[3, 30000, 30000, 30000, 1, 1, 1, 1]),
        gzip.compress(nifti(dim=[3, 30000, 30000, 3000, 1, 1, 1, 1])),
        nifti(dim=[5, 12, 11, 10, 1, 30000, 1, 1]),
        nifti(datatype=1792),
        nifti(dim=[3, -4, 4, 4, 1, 1, 1, 1]),
        nifti((4, 4, 4, 3)),
    ]:
        refused(ana, "/session/file?name=x.nii", (400, 413), content=content)


def test_a_body_that_is_too_long_is_refused(serve, client):
    ana = client(serve(max_upload=100_000))
    ana.open()
    refused(ana, "/session/file?name=x.nii", (413,), content=bytes(200_000))

    def endless():
        for _ in range(20):
            yield bytes(10_000)

    refused(ana, "/session/file?name=x.nii", (413,), content=endless())
    big = b'{"prompt": "' + b"x" * 70_000_000 + b'"}'
    answer = ana("POST", "/session/prompts", content=big, headers={"Content-Type": "application/json"})
    assert answer.status_code == 413


def test_memory_is_asked_before_a_volume_is_read(ana, monkeypatch):
    monkeypatch.setattr("volsam.data.memory.available_memory", lambda: 100_000_000)
    detail = ana.ask("POST", "/session", 413, json={"study": "ct.nii.gz"})["detail"]
    assert "0.1 GB are free" in detail


# --- masks and prompts -----------------------------------------------------------------------------------------------


def a_mask(**changes) -> dict:
    whole = wire.packed(((4, 4, 4), (9, 8, 7)), np.ones((5, 4, 3), bool))
    del whole["voxels"]
    return {"type": "mask", **whole, **changes}


def test_a_mask_that_does_not_fit_its_box_is_refused(ana):
    for changes in [
        {"low": [9, 8, 7]},
        {"high": [999, 8, 7]},
        {"data": "!!!!"},
        {"data": ""},
        {"data": "eJw="},
        {"data": wire.packed(((0, 0, 0), (9, 9, 9)), np.ones((9, 9, 9), bool))["data"]},
    ]:
        ana.ask("POST", "/session/prompts", 400, json={"prompt": a_mask(**changes)})
        assert ana.ask("GET", "/session/prompts")["prompts"] == []


def test_a_prompt_that_makes_no_sense_is_refused_and_not_kept(ana):
    for body in [
        "{",
        "[]",
        "{}",
        '{"prompt": null}',
        '{"prompt": {"type": "point", "position": [1, 2]}}',
        '{"prompt": {"type": "point", "position": [NaN, 2, 3]}}',
        '{"prompt": {"type": "point", "position": [1e300, 2, 3]}}',
        '{"prompt": {"type": "point", "position": [1, 2, 3], "sign": 1}}',
        '{"prompt": {"type": "circle"}}',
        '{"prompts": []}',
        '{"prompt": {"type": "lasso", "points": [[0, 0, 0], [9, 9, 9], [20, 0, 5]]}}',
        '{"prompt": {"type": "point", "position": [1, 2, 3]}, "object": 99}',
        '{"prompt": {"type": "point", "position": [1, 2, 3]}, "object": 1e99}',
    ]:
        answer = ana("POST", "/session/prompts", content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code in (400, 404, 422), answer.text
        assert "\n" not in answer.json()["detail"]
        assert ana.ask("GET", "/session/prompts")["log"] == []


# --- others ----------------------------------------------------------------------------------------------------------


def test_a_lease_cannot_be_guessed(ana, http):
    for token in ["", "x", "../..", "a" * 5000, None]:
        headers = {} if token is None else {"X-Lease-Token": token}
        for method, path in (
            ("GET", "/session"),
            ("POST", "/session/undo"),
            ("GET", "/session/image.nii"),
            ("GET", "/lease"),
        ):
            answer = http.request(method, f"/api/v1{path}", headers=headers, json={} if method == "POST" else None)
            assert answer.status_code == 410, answer.text


def test_no_answer_is_kept_by_a_browser(ana, http):
    """Chromium keeps a 410 for ever, so a page would be told of a lost lease after it had another one."""
    lost = http.get("/api/v1/session/objects/1/measurements", headers={"X-Lease-Token": "lost"})
    assert lost.status_code == 410
    for answer in (lost, http.get("/api/v1/models"), http.get("/nothing")):
        assert answer.headers["Cache-Control"] == "no-store"
    assert http.get("/").headers["Cache-Control"] == "no-cache"


def test_a_session_is_its_leases_own(ana, http, client):
    ana.click(A)
    ben = client(http)
    ben.open("more/mr.nii")
    assert ben.ask("GET", "/session")["objects"][0]["prompts"] == 0
    assert ben.ask("GET", "/session/prompts")["log"] == []
    assert not ben.mask().any()
    ben.click((10, 10, 10))
    assert np.array_equal(ana.mask(), ana.masks[1])
    assert len(ana.ask("GET", "/session/prompts")["log"]) == 1


def test_what_nobody_foresaw_is_logged_and_not_told(ana, a_model, caplog):
    a_model.radius = "secret"
    answer = ana("POST", "/session/prompts", json={"prompt": {"type": "point", "position": list(A)}, "space": "voxel"})
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert "Traceback" not in answer.text
    assert "unexpected" in caplog.text


def test_saved_sessions_are_the_users_own(ana, tmp_path):
    assert (tmp_path / "sessions").stat().st_mode & 0o077 == 0
