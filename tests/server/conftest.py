"""A server in the test's own process, with a model of a few lines, and clients of it."""

from __future__ import annotations

import base64
import re
import signal
import subprocess
import sys
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from volsam.data.io import write_volume
from volsam.geometry import Grid
from volsam.inference.model import EVERYTHING, Decoded
from volsam.prompts import GridPrompts
from volsam.server.app import create_app
from volsam.server.settings import Settings
from volsam.volume import Volume

with warnings.catch_warnings():  # newer ones say that they would like another client library than httpx
    warnings.simplefilter("ignore")
    from fastapi.testclient import TestClient

API = "/api/v1"


class BallModel:
    """Every click is a ball: positive ones are added to the mask so far, then negative ones cut out of it.

    `stop` may be set to an event that every step waits for.
    """

    name = "balls"
    edge = 32
    step = 2
    spacing = 2.0
    axes = "RAS"
    takes = EVERYTHING
    radius = 4.5  # voxels of the region

    def __init__(self) -> None:
        self.stop: Any = None
        self.asked: list[GridPrompts] = []

    def encode(self, volume: Volume, roi: Grid) -> float:
        return float(volume.data.mean())

    def decode(self, encoded: float, prompts: GridPrompts, previous: np.ndarray | None) -> Decoded:
        self.asked.append(prompts)
        if self.stop is not None:
            assert self.stop.wait(20)
        places = np.stack(np.indices((self.edge // 2,) * 3), axis=-1) * 2 + 0.5
        mask = np.zeros(places.shape[:3], bool) if previous is None else previous > 0
        for low, high in prompts.boxes:
            mask |= ((places >= low) & (places <= high)).all(axis=-1)
        for sign in (True, False):
            for point in prompts.points[prompts.labels == sign]:
                ball = np.linalg.norm(places - point, axis=-1) < self.radius
                mask = mask | ball if sign else mask & ~ball
        low_res = np.where(mask, 4, -4).astype(np.float32)
        whole = (0, self.edge)
        return Decoded(low_res, low_res.repeat(2, 0).repeat(2, 1).repeat(2, 2), (whole, whole, whole), 0.8)

    def decode_many(self, encoded: float, prompts: Sequence[GridPrompts], previous: np.ndarray | None) -> np.ndarray:
        return np.stack([self.decode(encoded, asked, None).low_res for asked in prompts])


class Client:
    """Someone at the server with a lease, and what they are shown."""

    def __init__(self, http: TestClient, claim: bool = True) -> None:
        self.http = http
        self.lease = http.post(f"{API}/lease").json()["lease"] if claim else ""
        self.masks: dict[int, np.ndarray] = {}

    def __call__(self, method: str, path: str, **options: Any) -> Any:
        headers = {"X-Lease-Token": self.lease, **options.pop("headers", {})}
        return self.http.request(method, f"{API}{path}", headers=headers, **options)

    def ask(self, method: str, path: str, status: int = 200, **options: Any) -> Any:
        """A request that must have a status; the JSON of its answer. Changes of masks are painted."""
        answer = self(method, path, **options)
        assert answer.status_code == status, answer.text
        body = answer.json()
        for change in body.get("changes", []) if isinstance(body, dict) else []:
            self.paint(change)
        return body

    def open(self, study: str = "ct.nii.gz", **more: Any) -> Any:
        state = self.ask("POST", "/session", 201, json={"study": study, **more})
        self.shape = tuple(state["shape"])
        self.masks = {}
        return state

    def resume(self, identity: str, **more: Any) -> Any:
        state = self.ask("POST", "/session", 201, json={"resume": identity, **more})
        self.shape = tuple(state["shape"])
        return state

    def click(self, voxel: Sequence[float], positive: bool = True, **more: Any) -> Any:
        prompt = {"type": "point", "position": list(voxel), "positive": positive}
        return self.ask("POST", "/session/prompts", json={"prompt": prompt, "space": "voxel", **more})

    def paint(self, change: dict[str, Any]) -> None:
        mask = self.masks.setdefault(change["object"], np.zeros(self.shape, bool))
        mask[box_of(change)] = decoded(change)

    def mask(self, number: int = 1) -> np.ndarray:
        """The whole mask, as the server tells it when asked."""
        part = self.ask("GET", f"/session/objects/{number}/mask")["mask"]
        whole = np.zeros(self.shape, bool)
        if part is not None:
            whole[box_of(part)] = decoded(part)
        return whole


def box_of(part: dict[str, Any]) -> tuple[slice, ...]:
    return tuple(slice(low, high) for low, high in zip(part["low"], part["high"], strict=True))


def decoded(part: dict[str, Any]) -> np.ndarray:
    shape = tuple(high - low for low, high in zip(part["low"], part["high"], strict=True))
    values = np.frombuffer(zlib.decompress(base64.b64decode(part["data"])), np.uint8)
    if part["encoding"] == "bits+deflate":
        values = np.unpackbits(values, count=int(np.prod(shape))).astype(bool)
    assert int(np.count_nonzero(values)) == part["voxels"]
    return values.reshape(shape, order="F")


@pytest.fixture
def a_model() -> BallModel:
    return BallModel()


@pytest.fixture
def studies(tmp_path: Path, a_small_ct: Volume) -> Path:
    """A folder with one study, and another in a folder of its own."""
    folder = tmp_path / "studies"
    (folder / "more").mkdir(parents=True)
    write_volume(a_small_ct, folder / "ct.nii.gz")
    write_volume(a_small_ct, folder / "more" / "mr.nii")
    return folder


@pytest.fixture
def serve(tmp_path: Path, studies: Path, a_model: BallModel) -> Iterator[Callable[..., TestClient]]:
    """Starts servers, `serve(max_leases=2)`; what they save survives them."""
    running: list[TestClient] = []

    def start(**values: Any) -> TestClient:
        settings = Settings(
            **{"models": ("balls",), "studies": studies, "sessions": tmp_path / "sessions", "port": 0, **values}
        )
        client = TestClient(
            create_app(settings, model=a_model), base_url="http://127.0.0.1", raise_server_exceptions=False
        )
        client.__enter__()
        running.append(client)
        return client

    yield start
    for client in running:
        client.__exit__(None, None, None)


@pytest.fixture
def http(serve: Callable[..., TestClient]) -> TestClient:
    return serve()


@pytest.fixture
def client() -> type[Client]:
    """Makes clients, `client(http)`."""
    return Client


@pytest.fixture
def ana(http: TestClient) -> Client:
    """A client with the study open."""
    client = Client(http)
    client.open()
    return client


class Process:
    """`volsam serve` in a process of its own, with the model that ships."""

    def __init__(self, sessions: Path, studies: Path, *options: str) -> None:
        words = ["serve", "--port", "0", "--sessions", str(sessions), "--studies", str(studies), "--device", "cpu"]
        run = "import sys; from volsam.cli import main; main()"
        self.process = subprocess.Popen(
            [sys.executable, "-c", run, *words, *options], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
        )
        assert self.process.stderr is not None
        said = self.process.stderr.readline()
        found = re.search(r"http://\S+", said)
        assert found is not None, said + self.process.stderr.read()
        self.address = found[0]

    def end(self, how: int) -> int:
        """Send a signal and wait for the end."""
        self.process.send_signal(how)
        _, self.said = self.process.communicate(timeout=60)
        return self.process.returncode


@pytest.fixture
def start(tmp_path: Path, studies: Path) -> Iterator[Callable[..., Process]]:
    """Starts servers as processes; all of them share the saved sessions."""
    running: list[Process] = []

    def begin(*options: str) -> Process:
        running.append(Process(tmp_path / "sessions", studies, *options))
        return running[-1]

    yield begin
    for one in running:
        if one.process.poll() is None:
            one.end(signal.SIGKILL)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Toy sizes run fastest on one thread, and share a busy machine best."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
