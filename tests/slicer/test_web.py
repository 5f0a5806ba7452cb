"""The module in a browser: a real file, real clicks in Slicer's own views, and the masks that a session gives.

The page runs in the environment of Slicer's libraries and asks a `volsam serve` that it starts from this one.
VOLSAM_PICTURES=docs/images pytest tests/slicer/test_web.py makes the picture of the documentation.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import volsam
from volsam.data.io import read_volume, write_volume
from volsam.data.synthetic import sample_volume
from volsam.geometry import Grid, resample
from volsam.prompts import Click
from volsam.volume import Volume

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / ".venv-slicer" / "bin" / "python"
# WebGL without a GPU, and nothing that speaks with the network.
FLAGS = ["--no-sandbox", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
# The first is trame's own question whether it may speak by another way.
HARMLESS = ("405 (Method Not Allowed)", "favicon", "ReadPixels")
PATIENCE = 300.0  # seconds; a machine may be busy with other things
LIVER, BESIDE = (78, 57), (56, 28)
LARGEST = 400_000  # bytes

pytestmark = [pytest.mark.slow, pytest.mark.browser]


class Web:
    """The page, and the hand that points in it."""

    def __init__(self, page: Any, grid: Grid) -> None:
        self.page = page
        self.grid = grid
        self.axial = page.locator(".image-display-area").first
        self.complaints: list[str] = []
        page.on("console", lambda message: message.type == "error" and self.complaints.append(message.text))
        page.on("pageerror", lambda error: self.complaints.append(f"uncaught: {error}"))

    def state(self, name: str) -> Any:
        """What the page shows of the module, see slicer/VolSamWeb/panel.py."""
        return self.page.evaluate("name => window.trame?.state?.state?.['VolSamState__' + name]", name)

    def until(self, holds: Callable[[], bool], what: str) -> None:
        """Wait for something."""
        end = time.monotonic() + PATIENCE
        while not holds():
            if time.monotonic() > end:
                raise AssertionError(f"waited in vain for {what}; the page says {self.state('message')!r}")
            self.page.wait_for_timeout(200)

    def open(self, file: Path) -> None:
        """Give the page a file, as its button does, and wait until it is drawn."""
        self.page.locator("input[type=file]").first.set_input_files(file)
        self.until(lambda: self.state("has_volume") and not self.state("is_busy"), "the volume")
        self.until(lambda: bool((self.seen().mean(axis=-1) > 60).sum() > 1000), "a picture of it")

    def press(self, name: str) -> None:
        """A button of the drawer."""
        self.page.get_by_role("button", name=name, exact=True).click()

    def place(self, name: str) -> None:
        """Have clicks include or exclude; waits until the scene has heard of it."""
        self.press(name)
        self.until(lambda: "right mouse button" in self.state("message"), "clicks to be awaited")

    def click(self, place: tuple[float, float]) -> None:
        """Click at a voxel (i, j) of the axial slice that is shown, and wait for the answer."""
        said = len(self.state("points"))
        x, y = self.place_of(place)
        self.page.mouse.move(x - 3, y - 3)
        self.page.mouse.move(x, y)
        self.page.mouse.down()
        self.page.mouse.up()
        self.until(lambda: len(self.state("points")) == said + 1, "the point")
        self.until(lambda: not self.state("is_busy"), "the answer")

    def place_of(self, place: tuple[float, float]) -> tuple[float, float]:
        """Where a voxel (i, j) is on the page: the view shows the whole slice, right is left."""
        bounds = self.axial.bounding_box()
        middle = [
            self.grid.to_world(np.array((*place, 0)))[axis] - self.grid.to_world(self.middle)[axis] for axis in (0, 1)
        ]
        extent = np.array(self.grid.shape[:2]) * self.grid.spacing[:2]
        scale = max(extent[0] / bounds["width"], extent[1] / bounds["height"])
        x = bounds["x"] + bounds["width"] / 2 - middle[0] / scale
        y = bounds["y"] + bounds["height"] / 2 - middle[1] / scale
        return x, y

    @property
    def middle(self) -> np.ndarray:
        """The middle of the volume, in voxels."""
        return (np.array(self.grid.shape) - 1) / 2

    def seen(self) -> np.ndarray:
        """The axial view as it is: rows, columns, and red, green and blue from 0 to 255."""
        return np.asarray(Image.open(io.BytesIO(self.axial.screenshot())).convert("RGB")).astype(int)

    def changed(self, before: np.ndarray) -> int:
        """How many pixels of the axial view are clearly not what they were."""
        return int((np.abs(self.seen() - before).max(axis=-1) > 20).sum())

    def points(self) -> list[Click]:
        """What has been said about the segment."""
        clicks = []
        for point in self.state("points"):
            r, a, s = (float(value) for value in self.grid.to_world(np.array(point["voxel"])))
            clicks.append(Click((r, a, s), point["positive"]))
        return clicks

    def mask(self, folder: Path) -> np.ndarray:
        """The segment (i, j, k), from the file that the page gives out."""
        with self.page.expect_download() as waits:
            self.press("Save segments")
        waits.value.save_as(folder / "segments.nrrd")
        found = read_volume(folder / "segments.nrrd")
        return resample(found.data[0], found.grid, self.grid, mode="nearest") > 0

    def picture(self, name: str) -> None:
        """Keep a picture for the documentation, if a folder for them is given."""
        folder = os.environ.get("VOLSAM_PICTURES")
        if folder:
            solid = self.page.locator(".image-display-area").nth(1)
            plain = solid.screenshot()
            self.page.get_by_label("Surface in 3D").click()
            self.until(lambda: solid.screenshot() != plain, "a surface")
            self.page.wait_for_timeout(5000)  # for views that are compressed less
            file = Path(folder) / name
            Image.open(io.BytesIO(self.page.screenshot())).convert("RGB").save(file, optimize=True)
            assert file.stat().st_size < LARGEST, file


@pytest.fixture(scope="module")
def a_model() -> Any:
    return volsam.load_model(device="cpu")


@pytest.fixture
def browser() -> Iterator[Any]:
    """Chromium; skipped where something of it is missing."""
    if not PYTHON.is_file():
        pytest.skip("there is no environment with Slicer's libraries: make slicer-env")
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if not chromium:
        pytest.skip("no Chromium here: install the package chromium, or say in CHROMIUM where it is")
    tools = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with tools.sync_playwright() as running:
        opened = running.chromium.launch(executable_path=chromium, headless=True, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Starts the page, `serve("--server", address)`; returns where it is."""
    running: list[subprocess.Popen[str]] = []
    log = tmp_path / "page.log"

    def start(*words: str) -> str:
        variables = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "PYTHONPATH")}
        variables |= {"VOLSAM_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        command = [str(PYTHON), str(ROOT / "slicer" / "VolSamWeb"), "--port", "0", "--no-browser", *words]
        with log.open("w") as errors:
            process = subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=errors, text=True)
        running.append(process)
        assert process.stdout is not None
        for line in process.stdout:
            if found := re.search(r"at (http://\S+)", line):
                return found[1]
        raise AssertionError(f"the page did not start: {log.read_text()}")

    yield start
    for process in running:
        process.terminate()
        process.communicate(timeout=60)


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[[str, Grid], Web]]:
    """Opens the page; what it complains about fails the test."""
    opened: list[Web] = []

    def go(address: str, grid: Grid) -> Web:
        page = browser.new_context(viewport={"width": 1440, "height": 900}, accept_downloads=True).new_page()
        page.set_default_timeout(PATIENCE * 1000)
        opened.append(Web(page, grid))
        page.goto(address)
        opened[-1].until(lambda: bool(opened[-1].state("message")), "the page")
        return opened[-1]

    yield go
    bad = [text for web in opened for text in web.complaints if not any(word in text for word in HARMLESS)]
    assert not bad, bad


def test_a_click_in_the_browser_gives_the_mask_of_a_session(
    serve: Callable[..., str], visit: Callable[..., Web], a_model: Any, tmp_path: Path
) -> None:
    scan, labels = sample_volume()
    write_volume(scan, tmp_path / "scan.nii.gz")
    web = visit(serve("--environment", sys.prefix), scan.grid)
    web.until(lambda: "Connected" in web.state("message"), "the server")
    web.open(tmp_path / "scan.nii.gz")
    plain = web.seen()

    web.place("Include")
    web.click(LIVER)
    web.until(lambda: web.changed(plain) > 5000, "the segment in the view")
    (point,) = web.state("points")
    assert np.allclose(point["voxel"][:2], LIVER, atol=1)
    first = web.mask(tmp_path)
    session = volsam.Session(a_model, scan)
    session.add(web.points()[0])
    assert np.array_equal(first, session.mask.data[0] > 0)
    assert web.state("voxels") == first.sum()
    liver = labels.data[0] == 2
    assert 2 * (first & liver).sum() / (first.sum() + liver.sum()) > 0.7

    web.place("Exclude")
    web.click(BESIDE)
    second = web.mask(tmp_path)
    session.add(web.points()[1])
    assert np.array_equal(second, session.mask.data[0] > 0)
    assert not np.array_equal(second, first)
    web.picture("slicer-browser.png")

    web.press("Undo")
    web.until(lambda: len(web.state("points")) == 1, "one point less")
    assert np.array_equal(web.mask(tmp_path), first)
    web.press("Undo")
    web.until(lambda: web.state("voxels") == 0, "an empty segment")
    web.until(lambda: web.changed(plain) < 500, "a view without a segment")
    assert web.state("points") == []


def test_what_is_wrong_is_said_in_one_sentence_and_points_are_kept(
    serve: Callable[..., str], visit: Callable[..., Web], a_small_ct: Volume, tmp_path: Path
) -> None:
    write_volume(a_small_ct, tmp_path / "ct.nii.gz")
    web = visit(serve("--server", "http://127.0.0.1:9"), a_small_ct.grid)
    web.until(lambda: web.state("is_error"), "a word about the server")
    assert "http://127.0.0.1:9" in web.state("message")

    (tmp_path / "broken.nii.gz").write_bytes(b"not a volume")
    web.page.locator("input[type=file]").first.set_input_files(tmp_path / "broken.nii.gz")
    web.until(lambda: "broken.nii.gz cannot be read" in web.state("message"), "a word about the file")

    web.open(tmp_path / "ct.nii.gz")
    web.place("Include")
    web.click(tuple(web.middle[:2]))
    assert web.state("is_error")
    assert "start it or check the address" in web.state("message")
    assert len(web.state("points")) == 1
    assert web.state("voxels") == 0


@pytest.mark.data
def test_a_left_atrium_in_the_browser(
    serve: Callable[..., str], visit: Callable[..., Web], a_model: Any, shared_data: Path, tmp_path: Path
) -> None:
    image = min((shared_data / "left_atrium" / "imagesTr").glob("*.nii.gz"))
    scan = read_volume(image)
    truth = read_volume(shared_data / "left_atrium" / "labelsTr" / image.name.replace("_0000.", ".")).data[0] > 0
    web = visit(serve("--environment", sys.prefix), scan.grid)
    web.until(lambda: "Connected" in web.state("message"), "the server")
    web.open(image)
    inside = np.argwhere(truth[:, :, round(web.middle[2])])
    middle = inside[np.linalg.norm(inside - inside.mean(axis=0), axis=1).argmin()]
    web.place("Include")
    web.click((float(middle[0]), float(middle[1])))
    (point,) = web.state("points")
    assert truth[tuple(np.round(point["voxel"]).astype(int))], (json.dumps(point), middle)
    found = web.mask(tmp_path)
    session = volsam.Session(a_model, scan)
    session.add(web.points()[0])
    assert np.array_equal(found, session.mask.data[0] > 0)
