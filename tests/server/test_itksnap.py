"""ITK-SNAP's deep learning extension: its documented messages, in both forms of its paths."""

from __future__ import annotations

import base64
import gzip
import json

import numpy as np
import pytest

from volsam.geometry import Grid
from volsam.inference.session import Session
from volsam.prompts import Click
from volsam.server.strokes import painted
from volsam.volume import Volume

pytestmark = pytest.mark.slow

SHAPE = (40, 44, 36)  # x, y, z
A, B = (18, 20, 16), (24, 26, 18)
GEOMETRY = {"spacing": [1.0, 1.5, 2.0], "origin": [-10.0, 5.0, 30.0], "direction": [1, 0, 0, 0, 1, 0, 0, 0, -1]}
V1 = {"x": A[0], "y": A[1], "z": A[2], "foreground": "true"}


def form(values: np.ndarray, **more) -> dict:
    """An array (x y z) as ITK-SNAP sends it."""
    raw = values.astype(np.float32).ravel(order="F").tobytes()
    about = {"dimensions": list(values.shape), "components_per_pixel": 1, **more}
    return {
        "files": {"file": ("image.gz", gzip.compress(raw), "application/gzip")},
        "data": {"metadata": json.dumps(about)},
    }


def decoded(answer) -> np.ndarray:
    """The mask in an answer, as ITK-SNAP reads it."""
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body["status"] == "success"
    raw = gzip.decompress(base64.b64decode(body["result"]))
    return np.frombuffer(raw, np.int8).reshape(SHAPE, order="F")


@pytest.fixture
def an_image() -> np.ndarray:
    return np.random.default_rng(1).normal(50, 20, SHAPE).astype(np.float32)


@pytest.fixture
def sid(http, an_image) -> str:
    sid = http.get("/v2/start_session/balls").json()["session_id"]
    answer = http.post(f"/upload_raw/{sid}?filename=upload.nii.gz", **form(an_image))
    assert (answer.status_code, set(answer.json())) == (200, {"message"})
    return sid


@pytest.fixture
def alone(a_model, an_image) -> Session:
    return Session(type(a_model)(), Volume(an_image, Grid.at(SHAPE)))


def test_the_server_and_its_models_are_told(http):
    assert http.get("/status").json()["status"] == "ok"
    (model,) = http.get("/v2/models").json()["models"]
    assert model == {"id": "balls", "dimensions": 3, "channels": [1], "interactions": ["point", "scribble", "lasso"]}


def test_interactions_give_the_masks_of_a_session(http, sid, alone):
    def same(answer) -> None:
        assert np.array_equal(decoded(answer), alone.mask.data[0])

    grid = alone.volume.grid
    alone.add(Click(A))
    same(http.get(f"/v2/process_point_interaction/{sid}?point=18&point=20&point=16&foreground=true"))
    alone.add(Click(B, positive=False))
    same(http.get(f"/process_point_interaction/{sid}", params={"x": B[0], "y": B[1], "z": B[2], "foreground": "false"}))
    stroke = np.zeros(SHAPE)
    stroke[20, 18:24, 16] = 1
    alone.add(painted(stroke > 0, (0, 0, 0), True, grid))
    same(http.post(f"/process_scribble_interaction/{sid}?foreground=true", **form(stroke)))
    area = np.zeros(SHAPE)
    area[14:20, 16:24, 18] = 3
    alone.add(painted(area > 0, (0, 0, 0), False, grid))
    same(http.post(f"/process_lasso_interaction/{sid}?foreground=false", **form(area)))


def test_the_older_paths_do_the_same(http, an_image, alone):
    sid = http.get("/start_session").json()["session_id"]
    assert http.post(f"/v2/upload_raw/{sid}", **form(an_image)).status_code == 200
    alone.add(Click(A))
    assert np.array_equal(decoded(http.get(f"/process_point_interaction/{sid}", params=V1)), alone.mask.data[0])
    assert http.get(f"/reset_interactions/{sid}").json() == {"status": "success"}
    assert http.get(f"/end_session/{sid}").json() == {"message": "Session ended"}


def test_a_reset_starts_the_next_object(http, sid, alone):
    decoded(http.get(f"/process_point_interaction/{sid}", params=V1))
    assert http.get(f"/v2/reset_interactions/{sid}").json() == {"status": "success"}
    answer = http.get(f"/v2/process_point_interaction/{sid}?point=24&point=26&point=18&foreground=true")
    alone.add(Click(B))
    assert np.array_equal(decoded(answer), alone.mask.data[0])


def test_the_geometry_is_used_where_it_is_told(http, an_image, a_model):
    sid = http.get("/start_session").json()["session_id"]
    http.post(f"/upload_raw/{sid}", **form(an_image, component_type="float32", **GEOMETRY))
    affine = np.array([[-1.0, 0, 0, 10], [0, -1.5, 0, -5], [0, 0, -2, 30], [0, 0, 0, 1]])
    session = Session(type(a_model)(), Volume(an_image, Grid(SHAPE, affine)))
    session.add(Click(tuple(session.volume.grid.to_world(A))))
    assert np.array_equal(decoded(http.get(f"/process_point_interaction/{sid}", params=V1)), session.mask.data[0])


def test_of_several_components_the_first_is_looked_at(http, an_image, alone):
    sid = http.get("/start_session").json()["session_id"]
    both = np.stack([an_image, np.zeros_like(an_image)])
    raw = gzip.compress(both.ravel(order="F").tobytes())
    data = {"metadata": json.dumps({"dimensions": SHAPE, "components_per_pixel": 2})}
    http.post(f"/upload_raw/{sid}", files={"file": ("image.gz", raw)}, data=data)
    alone.add(Click(A))
    assert np.array_equal(decoded(http.get(f"/process_point_interaction/{sid}", params=V1)), alone.mask.data[0])


@pytest.mark.parametrize(
    ("method", "path", "options"),
    [
        ("POST", "/upload_raw/x", form(np.ones((2, 2, 2)))),
        ("GET", "/v2/process_point_interaction/x?point=1&point=2&point=3&foreground=true", {}),
        ("GET", "/process_point_interaction/x?x=1&y=2&z=3&foreground=true", {}),
        ("POST", "/process_scribble_interaction/x?foreground=true", form(np.ones((2, 2, 2)))),
        ("GET", "/v2/reset_interactions/x", {}),
        ("GET", "/v2/end_session/x", {}),
    ],
)
def test_an_unknown_session_is_told_with_status_200(http, method, path, options):
    answer = http.request(method, path, **options)
    assert answer.status_code == 200
    assert answer.json()["error"] == "Invalid session"


def test_an_ended_session_is_unknown_and_stays_saved(http, sid):
    decoded(http.get(f"/process_point_interaction/{sid}", params=V1))
    http.get(f"/v2/end_session/{sid}")
    assert http.get(f"/process_point_interaction/{sid}", params=V1).json() == {"error": "Invalid session"}
    (saved,) = http.app.state.core.saved()
    assert saved["prompts"] == 1
    assert saved["open"] is False


def test_a_session_goes_on_after_its_lease_has_ended(http, sid, alone):
    decoded(http.get(f"/process_point_interaction/{sid}", params=V1))
    for lease in list(http.app.state.core.leases):
        http.app.state.core.release(lease.token)
    alone.add(Click(A))
    alone.add(Click(B, positive=False))
    answer = http.get(f"/v2/process_point_interaction/{sid}?point=24&point=26&point=18&foreground=false")
    assert np.array_equal(decoded(answer), alone.mask.data[0])


@pytest.mark.parametrize(
    ("data", "file"),
    [
        ({"metadata": "no JSON"}, b""),
        ({"metadata": "[1]"}, b""),
        ({"metadata": '{"dimensions": [2, 2]}'}, b""),
        ({"metadata": '{"dimensions": [2, 2, -2]}'}, b""),
        ({"metadata": '{"dimensions": [2, 2, "x"]}'}, b""),
        ({"metadata": '{"dimensions": [2, 2, 2], "component_type": "object"}'}, b""),
        ({"metadata": '{"dimensions": [2, 2, 2], "component_type": ["float32"]}'}, b""),
        ({"metadata": '{"dimensions": [2, 2, 2], "spacing": [0, 0, 0]}'}, gzip.compress(bytes(32))),
        ({"metadata": '{"dimensions": [2, 2, 2], "spacing": "x"}'}, gzip.compress(bytes(32))),
        ({"metadata": '{"dimensions": [2, 2, 2]}'}, bytes(32)),
        ({"metadata": '{"dimensions": [2, 2, 2]}'}, gzip.compress(bytes(31))),
        ({"metadata": '{"dimensions": [2, 2, 2]}'}, gzip.compress(bytes(33))),
        ({"metadata": '{"dimensions": [2, 2, 2]}'}, gzip.compress(bytes(32))[:-6]),
    ],
    ids=range(13),
)
def test_nonsense_is_400_in_one_line(http, data, file):
    sid = http.get("/start_session").json()["session_id"]
    answer = http.post(f"/upload_raw/{sid}", data=data, files={"file": ("image.gz", file or b"x")})
    assert answer.status_code == 400, answer.text
    assert "\n" not in answer.json()["detail"]


def test_what_does_not_fit_is_413_before_it_is_unpacked(http):
    sid = http.get("/start_session").json()["session_id"]
    about = {"metadata": json.dumps({"dimensions": [1_000_000] * 3})}
    answer = http.post(f"/upload_raw/{sid}", data=about, files={"file": ("image.gz", gzip.compress(b"x"))})
    assert answer.status_code == 413


def test_prompts_that_cannot_be_used_are_400(http, sid):
    assert http.get(f"/process_point_interaction/{sid}?x=1&y=2&z=900&foreground=true").status_code == 400
    assert http.get(f"/v2/process_point_interaction/{sid}?point=1&point=2&foreground=true").status_code == 400
    assert http.post(f"/process_lasso_interaction/{sid}", **form(np.zeros(SHAPE))).status_code == 400
    assert http.post(f"/process_lasso_interaction/{sid}", **form(np.ones((2, 2, 2)))).status_code == 400
    assert http.get("/v2/start_session/none").status_code == 400


def test_many_sessions_may_be_begun_but_places_are_as_many_as_the_server_has(serve, an_image):
    http = serve(max_leases=1)
    one, two = (http.get("/start_session").json()["session_id"] for _ in range(2))
    assert http.post(f"/upload_raw/{one}", **form(an_image)).status_code == 200
    assert http.post(f"/upload_raw/{two}", **form(an_image)).status_code == 503
    http.get(f"/v2/end_session/{one}")
    assert http.post(f"/upload_raw/{two}", **form(an_image)).status_code == 200
