"""SlicerNNInteractive 0.x: its documented messages, told apart from nnInteractive 2, and files that mean harm."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import tracemalloc

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from volsam.errors import BadInput
from volsam.geometry import Grid
from volsam.inference.session import Session
from volsam.prompts import Box, Click, MaskHint
from volsam.server.dialects.arrays import read_npy
from volsam.server.strokes import painted
from volsam.volume import Volume

pytestmark = pytest.mark.slow

SHAPE = (36, 44, 40)  # k, j, i
A, B = (16, 20, 18), (18, 26, 24)
MISFIT = np.ones((3, 3, 3), np.uint8)


def npy(values: np.ndarray, packed: bool = False) -> bytes:
    file = io.BytesIO()
    np.save(file, values)
    return gzip.compress(file.getvalue()) if packed else file.getvalue()


class Desk:
    """What the extension does with its requests and answers."""

    def __init__(self, http) -> None:
        self.http = http
        self.mask = np.zeros(SHAPE, bool)

    def post(self, path: str, **options) -> object:
        """The JSON of an answer, or the mask in it, which is kept."""
        answer = self.http.post(path, **options)
        assert answer.status_code == 200, answer.text
        if answer.headers["content-type"].startswith("application/json"):
            return answer.json()
        assert answer.headers["content-encoding"] == "gzip"
        bits = np.unpackbits(np.frombuffer(answer.content, np.uint8))
        assert len(bits) == -(-np.prod(SHAPE) // 8) * 8
        self.mask = bits[: np.prod(SHAPE)].reshape(SHAPE).astype(bool)
        return self.mask

    def image(self, values: np.ndarray) -> object:
        return self.post("/upload_image", files={"file": ("volume.npy", npy(values), "application/octet-stream")})

    def segment(self, mask: np.ndarray) -> object:
        return self.post("/upload_segment", files={"file": ("volume.npy.gz", npy(mask, packed=True))})

    def point(self, voxel, positive: bool = True) -> object:
        return self.post("/add_point_interaction", json={"voxel_coord": list(voxel), "positive_click": positive})

    def box(self, one, two, positive: bool = True) -> object:
        asked = {"outer_point_one": list(one), "outer_point_two": list(two), "positive_click": positive}
        return self.post("/add_bbox_interaction", json=asked)

    def stroke(self, kind: str, mask: np.ndarray, positive: bool = True) -> object:
        files = {"file": ("volume.npy.gz", npy(mask, packed=True))}
        return self.post(f"/add_{kind}_interaction", files=files, data={"positive_click": str(positive)})


@pytest.fixture
def an_image() -> np.ndarray:
    return np.random.default_rng(1).normal(50, 20, SHAPE).astype(np.int16)


@pytest.fixture
def desk(http, an_image) -> Desk:
    desk = Desk(http)
    assert desk.image(an_image) == {"status": "ok"}
    return desk


@pytest.fixture
def alone(a_model, an_image) -> Session:
    return Session(type(a_model)(), Volume(an_image, Grid.at(SHAPE)))


def test_interactions_give_the_masks_of_a_session(desk, alone):
    grid = alone.volume.grid

    def same() -> None:
        assert np.array_equal(desk.mask, alone.mask.data[0])

    desk.point(A)
    alone.add(Click(A))
    same()
    desk.point(B, positive=False)
    alone.add(Click(B, positive=False))
    same()
    desk.box((10, 30, 12), (24, 14, 26))
    alone.add(Box((10, 14, 12), (24, 30, 26)))
    same()
    stroke = np.zeros(SHAPE, np.uint8)
    stroke[16, 18:24, 20] = 1
    desk.stroke("scribble", stroke)
    alone.add(painted(stroke > 0, (0, 0, 0), True, grid))
    same()
    area = np.zeros(SHAPE, np.uint8)
    area[18, 16:24, 14:20] = 1
    desk.stroke("lasso", area, positive=False)
    alone.add(painted(area > 0, (0, 0, 0), False, grid))
    same()


def test_an_empty_segment_starts_the_next_object_and_another_is_a_start(desk, alone):
    desk.point(A)
    assert desk.segment(np.zeros(SHAPE, np.uint8)) == {"status": "ok"}
    desk.point(B)
    alone.add(Click(B))
    assert np.array_equal(desk.mask, alone.mask.data[0])
    start = np.zeros(SHAPE, np.uint8)
    start[12:22, 14:26, 12:22] = 1
    assert desk.segment(start) == {"status": "ok"}
    desk.point(A)
    alone.select("third")
    alone.add_all([MaskHint(start[12:22, 14:26, 12:22], alone.volume.grid.crop((12, 14, 12), (22, 26, 22))), Click(A)])
    assert np.array_equal(desk.mask, alone.mask.data[0])


def test_a_flat_box_is_one_on_a_slice_and_corners_outside_are_brought_in(desk, alone):
    desk.box((16, 10, 10), (16, 30, 60))
    alone.add(Box((16, 10, 10), (16, 30, SHAPE[2] - 1)))
    assert np.array_equal(desk.mask, alone.mask.data[0])


def test_without_an_image_the_extension_is_asked_to_send_it(http):
    desk = Desk(http)
    missing = {"status": "error", "message": "No image uploaded"}
    assert desk.point(A) == missing
    assert desk.box(A, B) == missing
    assert desk.segment(np.ones(SHAPE, np.uint8)) == missing
    assert desk.stroke("lasso", np.ones(SHAPE, np.uint8)) == missing


def test_the_session_goes_on_after_its_place_was_taken_away(desk, alone, http):
    desk.point(A)
    for lease in list(http.app.state.core.leases):
        http.app.state.core.release(lease.token)
    desk.point(B, positive=False)
    alone.add(Click(A))
    alone.add(Click(B, positive=False))
    assert np.array_equal(desk.mask, alone.mask.data[0])


@pytest.mark.parametrize(
    ("path", "options", "status"),
    [
        ("/add_point_interaction", {"json": {"voxel_coord": [1, 2], "positive_click": True}}, 400),
        ("/add_point_interaction", {"json": {"voxel_coord": [1, 2, 900], "positive_click": True}}, 400),
        ("/add_point_interaction", {"json": {"voxel_coord": ["x", 2, 3], "positive_click": True}}, 400),
        ("/add_point_interaction", {"json": {"voxel_coord": A, "positive_click": "yes"}}, 400),
        ("/add_point_interaction", {"content": b"[" * 100_000}, 400),
        ("/add_bbox_interaction", {"json": {"outer_point_one": [1, 2, 3], "positive_click": True}}, 400),
        ("/add_lasso_interaction", {"data": {"positive_click": "true"}}, 422),
        ("/upload_image", {}, 422),
        ("/upload_image", {"files": {"file": ("volume.npy", npy(np.ones((2, 3), np.uint8)))}}, 400),
        ("/upload_image", {"files": {"file": ("volume.npy", b"not an array")}}, 400),
        (
            "/upload_segment",
            {"files": {"file": ("volume.npy.gz", npy(MISFIT, packed=True))}},
            400,
        ),
        ("/upload_segment", {"files": {"file": ("volume.npy.gz", npy(np.ones(SHAPE, np.uint8)))}}, 400),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_nonsense_is_refused_in_one_line(desk, path, options, status):
    answer = desk.http.post(path, **options)
    assert answer.status_code == status, answer.text
    assert "\n" not in answer.json()["detail"]


def test_an_empty_stroke_is_refused(desk):
    files = {"file": ("volume.npy.gz", npy(np.zeros(SHAPE, np.uint8), packed=True))}
    answer = desk.http.post("/add_scribble_interaction", files=files, data={"positive_click": "true"})
    assert answer.status_code == 400


# --- beside nnInteractive 2 ------------------------------------------------------------------------------------------

NEWER = {"coordinates": A, "include_interaction": True}
OLDER = {"voxel_coord": A, "positive_click": True}


def test_both_protocols_share_their_paths(desk, http):
    token = http.post("/claim").json()["lease_token"]
    answer = http.post("/add_point_interaction", json=NEWER, headers={"X-Lease-Token": token})
    assert (answer.status_code, answer.json()["code"]) == (409, "conflict")  # its own lease has no image
    answer = http.post("/add_point_interaction", json=NEWER)
    assert (answer.status_code, answer.json()["code"]) == (410, "lease")
    answer = http.post("/add_lasso_interaction", content=b"NNIA", headers={"X-Meta": "{}"})
    assert answer.status_code in (410, 422)
    desk.point(A)
    assert desk.mask.any()


@pytest.mark.parametrize(
    ("spoken", "asked", "headers"),
    [("slicer-legacy", NEWER, {}), ("slicer-legacy", NEWER, {"X-Lease-Token": "x"}), ("nninteractive", OLDER, {})],
)
def test_a_protocol_that_is_not_spoken_is_404_and_told_what_is(serve, spoken, asked, headers):
    answer = serve(dialects=(spoken,)).post("/add_point_interaction", json=asked, headers=headers)
    assert answer.status_code == 404
    assert spoken in answer.json()["detail"]


def test_a_server_that_speaks_none_says_so(serve):
    http = serve(dialects=())
    for method, path in (("POST", "/upload_image"), ("POST", "/add_lasso_interaction"), ("PUT", "/session/")):
        answer = http.request(method, path)
        assert answer.status_code == 404, path
        assert answer.json()["speaks"] == {"api": "/api/v1", "dialects": []}


# --- files that mean harm --------------------------------------------------------------------------------------------


def refuse_large(size: int) -> None:
    if size > 10_000:
        raise BadInput("too large")


class Harm:
    """What would leave a trace if it were unpickled."""

    def __reduce__(self):
        return (exec, ("raise SystemExit('it ran')",))


def headed(head: str, body: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    text = head.encode("latin-1") + b"\n"
    size = len(text).to_bytes(2 if version == b"\x01\x00" else 4, "little")
    return b"\x93NUMPY" + version + size + text + body


def test_objects_in_an_array_are_never_unpickled():
    head = "{'descr': '|O', 'fortran_order': False, 'shape': (1,)}"
    with pytest.raises(BadInput, match="cannot be used"):
        read_npy(io.BytesIO(headed(head, pickle.dumps([Harm()]))), refuse_large, packed=False)


@pytest.mark.parametrize(
    "head",
    [
        "{'descr': '<f8', 'fortran_order': False, 'shape': (1000000, 1000000, 1000000)}",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (-3, 3, 3)}",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (True, 3, 3)}",
        "{'descr': '<f8', 'fortran_order': False, 'shape': ()}",
        "{'descr': '<f8', 'fortran_order': 1, 'shape': (3, 3, 3)}",
        "{'descr': '<c16', 'fortran_order': False, 'shape': (3, 3, 3)}",
        "{'descr': '|V100000000', 'fortran_order': False, 'shape': (3, 3, 3)}",
        "{'descr': [('a', '<f8')], 'fortran_order': False, 'shape': (3, 3, 3)}",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (3L, 3L, 3L)}",
        "__import__('os').getcwd()",
        "(" * 4000,
        "{" + "'a': 1, " * 2000 + "}",
        "[" * 200 + "]" * 200,
        "\x00",
    ],
    ids=range(14),
)
@pytest.mark.parametrize("version", [b"\x01\x00", b"\x02\x00", b"\x03\x00", b"\x09\x09"])
def test_hostile_headers_are_refused_before_anything_is_made(head, version):
    tracemalloc.start()
    try:
        with pytest.raises(BadInput):
            read_npy(io.BytesIO(headed(head, b"\0" * 100, version)), refuse_large, packed=False)
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()


def test_a_bomb_is_not_unpacked():
    bomb = gzip.compress(npy(np.ones((2, 2, 2), np.uint8)) + bytes(50 << 20))
    tracemalloc.start()
    try:
        with pytest.raises(BadInput, match="holds more than"):
            read_npy(io.BytesIO(bomb), refuse_large, packed=True)
        assert tracemalloc.get_traced_memory()[1] < 10 << 20
    finally:
        tracemalloc.stop()


def test_an_oversized_image_is_413(desk, monkeypatch):
    monkeypatch.setattr("volsam.data.memory.available_memory", lambda: (256 << 20) + 1000)
    files = {"file": ("volume.npy", npy(np.ones(SHAPE, np.int16)))}
    answer = desk.http.post("/upload_image", files=files)
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(data=st.data(), packed=st.booleans())
def test_a_damaged_file_is_an_array_no_larger_than_allowed_or_is_refused(data, packed):
    whole = bytearray(npy(np.arange(60, dtype=np.int16).reshape(3, 4, 5), packed))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    whole = whole[: data.draw(st.integers(0, len(whole)))]
    try:
        values = read_npy(io.BytesIO(bytes(whole)), refuse_large, packed=packed)
    except BadInput:
        return
    assert values.nbytes <= 10_000
    assert values.dtype.kind in "biuf"


@given(
    dtype=st.sampled_from(["bool", "uint8", "int16", "float32", "float64", ">i4"]),
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    fortran=st.booleans(),
    packed=st.booleans(),
)
def test_whole_files_come_back_as_they_were(dtype, shape, fortran, packed):
    values = np.arange(np.prod(shape)).astype(dtype).reshape(shape)
    values = np.asfortranarray(values) if fortran else values
    back = read_npy(io.BytesIO(npy(values, packed)), refuse_large, packed=packed)
    assert back.dtype == values.dtype
    assert np.array_equal(back, values)


def test_the_answer_without_an_image_is_what_clients_compare_with(http):
    assert json.loads(http.post("/add_point_interaction", json=OLDER).text)["message"] == "No image uploaded"
