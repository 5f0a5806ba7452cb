"""The client of MONAI Label's extension for 3D Slicer, as it is released, against a running server."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import uvicorn

from volsam.data.io import read_volume, write_volume
from volsam.inference.session import Session
from volsam.prompts import Click
from volsam.server.app import create_app
from volsam.server.settings import Settings
from volsam.server.strokes import painted

pytestmark = pytest.mark.slow

RELEASE = "monailabel==0.8.5"
A, B, C = [20, 20, 14], [26, 22, 16], [22, 24, 14]
LABEL_INFO = [
    {"name": "liver", "id": 1},
    {"name": "background_scribbles", "id": 2},
    {"name": "foreground_scribbles", "id": 3},
]
KEY = "a-key-of-some-length"


@pytest.fixture(scope="module")
def peer(pytestconfig: pytest.Config) -> tuple[Path, Path]:
    """An interpreter that can run the client, and the client's folder; made once, and kept in pytest's cache."""
    folder = Path(pytestconfig.cache.mkdir("peers")) / RELEASE.replace("==", "-")
    python = folder / "bin" / "python"
    if not (folder / "whole").is_file():
        needed = ["requests"] + (["legacy-cgi"] if sys.version_info >= (3, 13) else [])
        steps = (
            [sys.executable, "-m", "venv", "--clear", str(folder)],
            [str(python), "-m", "pip", "install", "-q", "--no-deps", RELEASE],
            [str(python), "-m", "pip", "install", "-q", *needed],
        )
        for step in steps:
            done = subprocess.run(step, capture_output=True, text=True, check=False)
            if done.returncode:
                last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
                pytest.skip(f"{RELEASE} cannot be installed: {last}")
        (folder / "whole").touch()
    found = next(iter(folder.rglob("MONAILabelLib/client.py")), None)
    assert found is not None, f"{RELEASE} holds no client for 3D Slicer"
    return python, found.parent


@pytest.fixture
def live(tmp_path: Path, studies: Path, a_model) -> Iterator[object]:
    """Starts servers that listen, `live(key=...)`; the address of each."""
    running = []

    def start(**values) -> str:
        settings = Settings(models=("balls",), studies=studies, sessions=tmp_path / "sessions", port=0, **values)
        server = uvicorn.Server(uvicorn.Config(create_app(settings, model=a_model), port=0, log_level="error"))
        thread = threading.Thread(target=server.run)
        thread.start()
        running.append((server, thread))
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.02)
        return f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"

    yield start
    for server, thread in running:
        server.should_exit = True
        thread.join()


def carried_out(peer, task: dict, folder: Path) -> dict:
    python, client = peer
    folder.mkdir()
    script = Path(__file__).with_name("monai_label_script.py")
    words = [str(python), str(script), json.dumps({"client": str(client), "folder": str(folder), **task})]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "steps.json").read_text())


@pytest.mark.parametrize("key", [None, KEY])
def test_the_extensions_own_client_does_all_it_can_do(peer, live, studies, tmp_path, a_model, a_small_ct, a_ball, key):
    from pydantic import SecretStr

    (studies / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "liver": 1, "spleen": 2}}))
    scribbles = np.zeros(a_small_ct.grid.shape, np.uint8)
    scribbles[16:24, 16:24, 12:16] = 1
    scribbles[28, 20:26, 14] = 3
    scribbles[16, 16:20, 14] = 2
    label = a_small_ct.with_data(a_ball[None].astype(np.uint8))
    write_volume(label, tmp_path / "label.nii.gz")
    write_volume(a_small_ct.with_data(scribbles[None]), tmp_path / "scribbles.nii.gz")
    task = {
        "url": live(key=None if key is None else SecretStr(key)),
        "password": key,
        "image": str(studies / "ct.nii.gz"),
        "label": str(tmp_path / "label.nii.gz"),
        "scribbles": str(tmp_path / "scribbles.nii.gz"),
        "label_info": LABEL_INFO,
        "foreground": [A, B],
        "background": [C],
        "training": 5 if key is None else 0,
    }
    steps = carried_out(peer, task, tmp_path / "client")

    grid = a_small_ct.grid
    alone = Session(type(a_model)(), a_small_ct)
    fewer = Session(type(a_model)(), a_small_ct)
    for voxel, positive in ((A, True), (B, True), (C, False)):
        alone.add(Click(tuple(grid.to_world(voxel)), positive))
        if positive:
            fewer.add(Click(tuple(grid.to_world(voxel))))

    def same(step: str, session: Session) -> None:
        volume = read_volume(steps[step]["file"])
        assert volume.data.dtype == np.uint8
        assert np.allclose(volume.grid.affine, grid.affine, atol=1e-4)
        assert np.array_equal(volume.data, session.mask.data)
        assert steps[step]["said"]["label_names"] == {"liver": 1}
        assert set(steps[step]["said"]["latencies"]) == {"pre", "infer", "invert", "post", "write", "total"}

    assert steps["auth"] is (key is not None)
    for step in ("by session", "by id", "by file", "uploaded"):
        same(step, alone)
    same("one click fewer", fewer)
    same("labels", fewer)

    started = np.argwhere(scribbles == 1)
    low, high = started.min(axis=0), started.max(axis=0) + 1
    from volsam.prompts import MaskHint, PromptSet

    corrected = Session(type(a_model)(), a_small_ct)
    window = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    hint = MaskHint((scribbles == 1)[window], grid.crop(low, high))
    strokes = [painted(scribbles == value, (0, 0, 0), value == 3, grid) for value in (3, 2)]
    corrected.add_all(PromptSet([hint, *strokes]))
    same("scribbles", corrected)

    info = steps["info"]
    assert {name: item["type"] for name, item in info["models"].items()} == {
        "balls": "deepgrow",
        "balls-labels": "deepedit",
        "balls-scribbles": "scribbles",
    }
    assert info["datastore"]["total"] == 2
    assert info["labels"] == ["liver", "spleen", "background"]
    assert set(info["strategies"]) == {"first", "random", "uncertainty"}
    assert steps["session again"]["name"] == steps["session"]["session_id"] == steps["removed"]["name"]
    assert steps["upload"] == {"image": "2: fresh CT"}
    assert steps["save"] == {"image": "2: fresh CT", "label": "2: fresh CT"}
    assert np.array_equal(read_volume(steps["downloaded"]).data, label.data)
    objects = steps["datastore"]["objects"]
    assert set(objects) == {"ct", "more/mr", "2: fresh CT"}
    assert objects["2: fresh CT"]["labels"]["final"]["info"]["client_id"] == "ana"
    assert objects["ct"]["labels"]["original"]["ext"] == ".nii.gz"
    assert all(sample["id"] in ("ct", "more/mr") for sample in steps["next"].values())
    assert all(Path(sample["path"]).is_file() for sample in steps["next"].values())

    assert steps["idle"][0] is False
    assert "404" in steps["idle"][1]
    assert steps["train"]["status"] in ("SUBMITTED", "RUNNING")
    assert "429" in steps["busy"]
    assert steps["running"][0] is True
    assert steps["stopped"]["status"] == "STOPPED"
    assert steps["stopped"]["end_ts"]
    assert steps["after"][0] is False
    assert steps["after"][1]["status"] == "STOPPED"
    assert "404" in steps["no stop"]
    for step in ("gone", "no model"):
        assert "404" in steps[step]
    assert "400" in steps["outside"]
