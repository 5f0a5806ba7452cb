"""The nnInteractive 2 protocol: what goes over the wire, and the real client against a real server."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from volsam.errors import BadInput
from volsam.geometry import Grid
from volsam.inference.session import Session
from volsam.prompts import Box, Click, MaskHint
from volsam.server.dialects.nninteractive import nnia
from volsam.server.strokes import painted
from volsam.volume import Volume

pytestmark = pytest.mark.slow

SHAPE, SPACING = (40, 44, 36), (2.0, 1.5, 1.5)
A, B = (18, 20, 16), (24, 26, 18)


class Desk:
    """A client that knows the protocol: one buffer, patched by answers."""

    def __init__(self, http) -> None:
        self.http = http
        self.token = http.post("/claim").json()["lease_token"]
        self.buffer = np.zeros(SHAPE, np.uint8)

    def post(self, path: str, body: object = None, meta: dict | None = None, status: int = 200):
        headers = {"X-Lease-Token": self.token}
        if isinstance(body, np.ndarray):
            headers |= {"X-Meta": json.dumps(meta or {}), "Content-Type": "application/octet-stream"}
            answer = self.http.post(path, content=nnia.pack(body), headers=headers)
        else:
            answer = self.http.post(path, json=body or {}, headers=headers)
        assert answer.status_code == status, answer.text
        return answer

    def predict(self, path: str, body: object = None, meta: dict | None = None) -> dict:
        answer = self.post(path, body, meta)
        said = json.loads(answer.headers["X-Meta"])
        if said["bbox"] is not None:
            part = nnia.unpack(answer.content, lambda _: None)
            assert list(part.shape) == said["shape"]
            assert part.dtype.name == said["dtype"]
            self.buffer[tuple(slice(*pair) for pair in said["bbox"])] = part
        return said


@pytest.fixture
def an_image() -> np.ndarray:
    return np.random.default_rng(1).normal(50, 20, SHAPE).astype(np.float32)


@pytest.fixture
def desk(http, an_image) -> Desk:
    desk = Desk(http)
    shape = desk.post("/set_image", an_image[None], {"image_properties": {"spacing": SPACING}}).json()
    assert shape == {"original_image_shape": [1, *SHAPE]}
    desk.post("/set_target_buffer", {"shape": SHAPE, "dtype": "uint8"})
    return desk


@pytest.fixture
def alone(a_model, an_image) -> Session:
    return Session(type(a_model)(), Volume(an_image, Grid.at(SHAPE, SPACING)))


def click(session: Session, voxel, positive: bool = True) -> Click:
    return Click(tuple(session.volume.grid.to_world(voxel)), positive)


def test_capabilities_are_those_that_front_ends_read(http):
    said = http.get("/capabilities").json()
    assert said["supported_interactions"] == dict.fromkeys(("points", "bbox2d", "bbox3d", "scribble", "lasso"), True)
    assert (2, 5, 1) <= tuple(map(int, said["inference_session_version"].split("."))) < (3,)
    assert http.get("/healthz").json() == {"ok": True}


def test_interactions_give_the_masks_of_a_session(desk, alone):
    def same() -> None:
        assert np.array_equal(desk.buffer, alone.mask.data[0])

    desk.predict("/add_point_interaction", {"coordinates": A, "include_interaction": True})
    alone.add(click(alone, A))
    same()
    desk.predict("/add_point_interaction", {"coordinates": B, "include_interaction": False})
    alone.add(click(alone, B, False))
    same()
    desk.predict("/add_bbox_interaction", {"bbox_coords": [[10, 26], [12, 30], [10, 24]], "include_interaction": True})
    corners = alone.volume.grid.to_world([(10, 12, 10), (25, 29, 23)])
    alone.add(Box(tuple(corners[0]), tuple(corners[1])))
    same()
    stroke = np.zeros((1, 6, 1), np.uint8)
    stroke[0, :, 0] = 1
    place = [[20, 21], [18, 24], [16, 17]]
    desk.predict("/add_scribble_interaction", stroke, {"include_interaction": True, "interaction_bbox": place})
    alone.add(painted(stroke > 0, (20, 18, 16), True, alone.volume.grid))
    same()
    whole = np.zeros(SHAPE, np.uint8)
    whole[18, 16:24, 14:20] = 1
    desk.predict("/add_lasso_interaction", whole, {"include_interaction": False})
    alone.add(painted(whole > 0, (0, 0, 0), False, alone.volume.grid))
    same()
    for _ in range(5):
        assert desk.predict("/undo")["ran_prediction"] is True
        alone.undo()
        same()
    assert desk.predict("/undo")["ran_prediction"] is False


def test_prompts_wait_until_a_prediction_is_wanted(desk, alone):
    later = {"include_interaction": True, "run_prediction": False}
    assert desk.predict("/add_point_interaction", {"coordinates": A, **later})["ran_prediction"] is False
    assert not desk.buffer.any()
    desk.predict("/add_point_interaction", {"coordinates": B, **later})
    assert desk.predict("/predict")["ran_prediction"] is True
    alone.add_all([click(alone, A), click(alone, B)])
    assert np.array_equal(desk.buffer, alone.mask.data[0])
    assert desk.predict("/predict")["ran_prediction"] is False


def test_a_bad_prompt_does_not_wait_with_the_good_ones(desk, an_image):
    later = {"include_interaction": True, "run_prediction": False}
    desk.post("/add_point_interaction", {"coordinates": [1, 2, 900], **later}, status=400)
    desk.predict("/add_point_interaction", {"coordinates": A, "include_interaction": True})
    assert desk.buffer.any()
    said = desk.post("/set_image", an_image[None], {"image_properties": [1]}, status=400).json()["detail"]
    assert "image_properties" in said


def test_a_starting_mask_is_painted_by_the_client_and_corrected_by_the_next_answer(desk, alone):
    start = np.zeros(SHAPE, np.uint8)
    start[12:22, 14:26, 12:22] = 1
    start[2, 2, 2] = 1  # a stray voxel, which the client paints too
    desk.buffer[:] = start
    assert desk.predict("/add_initial_seg_interaction", start)["ran_prediction"] is False
    desk.predict("/add_point_interaction", {"coordinates": A, "include_interaction": True})
    alone.add_all([MaskHint(start[2:22, 2:26, 2:22], alone.volume.grid.crop((2, 2, 2), (22, 26, 22))), click(alone, A)])
    assert np.array_equal(desk.buffer, alone.mask.data[0])


def test_undo_of_a_starting_mask_takes_it_from_the_clients_screen(desk):
    start = np.zeros(SHAPE, np.uint8)
    start[12:22, 14:26, 12:22] = 1
    desk.buffer[:] = start
    desk.predict("/add_initial_seg_interaction", start)
    assert desk.predict("/undo")["ran_prediction"] is True
    assert not desk.buffer.any()


def test_a_reset_starts_the_next_object_and_forgets_nothing(desk, http):
    desk.predict("/add_point_interaction", {"coordinates": A, "include_interaction": True})
    first = desk.buffer.copy()
    desk.post("/reset_interactions")
    desk.buffer[:] = 0
    assert desk.predict("/undo")["ran_prediction"] is False
    desk.predict("/add_point_interaction", {"coordinates": B, "include_interaction": True})
    state = http.get("/api/v1/session", headers={"X-Lease-Token": desk.token}).json()
    assert [item["prompts"] for item in state["objects"]] == [1, 1]
    assert state["objects"][0]["voxels"] == first.sum()
    assert state["objects"][1]["voxels"] == desk.buffer.sum()


def test_a_buffer_of_another_type_is_served(desk):
    desk.post("/set_target_buffer", {"shape": SHAPE, "dtype": "int32"})
    assert desk.predict("/add_point_interaction", {"coordinates": A, "include_interaction": True})["dtype"] == "int32"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/add_point_interaction", {"coordinates": [1, 2]}),
        ("/add_point_interaction", {"coordinates": [1, 2, "x"]}),
        ("/add_point_interaction", {"coordinates": [1, 2, 900]}),
        ("/add_point_interaction", {"coordinates": A, "include_interaction": "yes"}),
        ("/add_bbox_interaction", {"bbox_coords": [[1, 1], [2, 4], [3, 5]]}),
        ("/add_bbox_interaction", {"bbox_coords": [[1, 4], [2, 4]]}),
        ("/add_bbox_interaction", {"bbox_coords": [[90, 99], [2, 4], [3, 5]]}),
        ("/set_target_buffer", {"shape": [1, 2, 3], "dtype": "uint8"}),
        ("/set_target_buffer", {"shape": SHAPE, "dtype": "object"}),
        ("/add_scribble_interaction", np.zeros((3, 3, 3), np.uint8)),
        ("/add_lasso_interaction", np.zeros(SHAPE, np.uint8)),
        ("/add_initial_seg_interaction", np.zeros(SHAPE, np.uint8)),
        ("/set_image", np.zeros((1, *SHAPE), np.float32)),
        ("/set_image", np.ones(SHAPE, np.float32)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_nonsense_is_400_in_one_line(desk, path, body):
    assert "\n" not in desk.post(path, body, status=400).json()["detail"]


def test_a_lease_is_needed_and_ends(desk):
    assert desk.post("/heartbeat").json()["remaining_seconds"] > 0
    assert desk.post("/release").json() == {"released": True}
    assert desk.post("/release").json() == {"released": True}
    for path in ("/undo", "/heartbeat", "/predict", "/reset_interactions", "/add_point_interaction"):
        assert desk.post(path, {"coordinates": A}, status=410).json()["code"] == "lease"


@given(
    dtype=st.sampled_from(sorted(nnia.NUMBERS)),
    shape=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    value=st.integers(0, 1),
)
def test_arrays_come_back_as_they_were_packed(dtype, shape, value):
    values = np.full(shape, value, dtype)
    values.flat[0] = 1
    back = nnia.unpack(nnia.pack(values), lambda _: None)
    assert back.dtype == values.dtype
    assert np.array_equal(back, values)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(data=st.data())
def test_a_damaged_array_is_refused_and_never_larger_than_allowed(data):
    whole = bytearray(nnia.pack(np.arange(60, dtype=np.int16).reshape(3, 4, 5)))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    whole = whole[: data.draw(st.integers(0, len(whole)))]

    def allow(size: int) -> None:
        if size > 10_000:
            raise BadInput("too large")

    try:
        values = nnia.unpack(whole, allow)
    except BadInput:
        return
    assert values.nbytes <= 10_000
