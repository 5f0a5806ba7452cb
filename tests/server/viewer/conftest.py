"""A server in this process, a scan, and Chromium with the viewer's page."""

from __future__ import annotations

import base64
import io
import os
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import volsam
from volsam.data.io import write_volume
from volsam.inference.session import Model
from volsam.server.app import create_app
from volsam.server.settings import Settings
from volsam.volume import Volume

# WebGL without a GPU, and nothing that speaks with the network.
FLAGS = [
    "--no-sandbox",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
]
HARMLESS = ("ReadPixels", "favicon", "username fields")
WAIT_MS = 60_000


@pytest.fixture(scope="session")
def chromium() -> str:
    """Where the browser is; tests that ask for it are skipped where there is none."""
    found = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if not found:
        pytest.skip("no Chromium here: install the package chromium, or say in CHROMIUM where it is")
    return found


@pytest.fixture(scope="session")
def the_model() -> Model:
    """The model that ships with the package, loaded once."""
    return volsam.load_model(device="cpu")


@pytest.fixture
def studies(tmp_path: Path, a_small_ct: Volume) -> Path:
    """A folder with the small CT as ct.nii.gz: oblique, left-handed, 48 × 44 × 30."""
    folder = tmp_path / "studies"
    folder.mkdir()
    write_volume(a_small_ct, folder / "ct.nii.gz")
    return folder


class Server:
    """A server that can be stopped and started again at the same port, with the same saved sessions."""

    def __init__(self, settings: Settings, model: Model) -> None:
        self.settings = settings
        self.model = model
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]

    @property
    def address(self) -> str:
        """Where the page is."""
        return f"http://127.0.0.1:{self.port}/"

    def start(self) -> None:
        import uvicorn

        app = create_app(self.settings, self.model)
        config = uvicorn.Config(app, host="127.0.0.1", port=self.port, log_level="error", timeout_graceful_shutdown=2)
        self.running = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.running.run, daemon=True)
        self.thread.start()
        while not self.running.started:
            assert self.thread.is_alive(), "the server ended before it took requests"
            self.thread.join(0.05)

    def stop(self) -> None:
        self.running.should_exit = True
        self.thread.join(30)
        assert not self.thread.is_alive(), "the server does not stop"


@pytest.fixture
def server(studies: Path, tmp_path: Path, the_model: Model) -> Iterator[Server]:
    """A running server over the studies."""
    made = Server(Settings(studies=studies, sessions=tmp_path / "sessions", dialects=()), the_model)
    made.start()
    yield made
    made.stop()


class Viewer:
    """The page, and the hand that points in it."""

    def __init__(self, page: Any, address: str) -> None:
        self.page = page
        self.address = address
        self.complaints: list[str] = []
        self.forgiven: list[str] = []
        self.refused: list[str] = []
        page.set_default_timeout(WAIT_MS)
        page.on("console", lambda message: message.type == "error" and self.complaints.append(message.text))
        page.on(
            "response", lambda answer: answer.status >= 400 and self.refused.append(f"{answer.status} {answer.url}")
        )
        page.on("pageerror", lambda error: self.complaints.append(f"uncaught: {error}"))

    def forgive(self, *words: str) -> None:
        """Errors that the test brings about itself, by words in them."""
        self.forgiven += words

    def open(self, query: str = "?study=ct.nii.gz") -> None:
        """Open the page and wait for the scan."""
        self.page.goto(self.address + query)
        self.page.wait_for_selector("body[data-ready=true]")

    def look_at(self, voxel: tuple[int, int, int]) -> None:
        """Move the crosshair."""
        self.page.evaluate("voxel => volsam.view.moveTo(voxel)", list(voxel))

    def place_of(self, plane: str, voxel: tuple[float, ...]) -> tuple[float, float]:
        """Where a voxel is on the page."""
        found = "([name, voxel]) => volsam.view.planes.find((plane) => plane.name === name).clientOf(voxel)"
        x, y = self.page.evaluate(found, [plane, list(voxel)])
        return x, y

    def click(self, plane: str, voxel: tuple[int, int, int], *, with_key: str | None = None) -> None:
        """Click a voxel in a plane that shows it, and wait for the answer."""
        self.look_at(voxel)
        x, y = self.place_of(plane, voxel)
        self.step(lambda: self.page.mouse.click(x, y), with_key)

    def drag(self, plane: str, *voxels: tuple[float, ...], with_key: str | None = None) -> None:
        """Drag from voxel to voxel with the left button, and wait for the answer."""

        def hand() -> None:
            places = [self.place_of(plane, voxel) for voxel in voxels]
            self.page.mouse.move(*places[0])
            self.page.mouse.down()
            for place in places[1:]:
                self.page.mouse.move(*place, steps=4)
            self.page.mouse.up()

        self.step(hand, with_key)

    def step(self, act: Callable[[], object], with_key: str | None = None) -> None:
        """Do something that changes the session, and wait until the page has it."""
        if with_key:
            self.page.keyboard.down(with_key)
        act()
        if with_key:
            self.page.keyboard.up(with_key)
        self.settle()

    def press(self, *keys: str) -> None:
        """Press keys one after the other, each when the one before has had its effect."""
        for key in keys:
            self.step(lambda key=key: self.page.keyboard.press(key))

    def settle(self) -> None:
        """Wait until no action is on its way, and the list of prompts is that of the last one."""
        idle = "volsam.session.waiting === 0 && volsam.session.listing === 0"
        self.page.wait_for_function(f"volsam.session.state && {idle}")

    def hold(self, method: str, path: str, *, answers: bool = False) -> None:
        """Requests whose path ends so wait in the page until `release`; with `answers`, what the server said waits."""
        self.page.evaluate(
            """([method, path, answers]) => {
              const real = window.fetch.bind(window);
              volsam.held = volsam.passed = 0;
              const gate = new Promise((done) => {
                volsam.release = () => {
                  window.fetch = real;
                  done();
                };
              });
              window.fetch = async (url, options) => {
                if (options?.method !== method || !new URL(url).pathname.endsWith(path)) return real(url, options);
                const answer = answers && (await real(url, options));
                volsam.held++;
                await gate;
                volsam.passed++;
                return answer || real(url, options);
              };
            }""",
            [method, path, answers],
        )

    def wait_held(self, count: int = 1) -> None:
        """Wait until so many requests are held."""
        self.page.wait_for_function(f"volsam.held === {count}")

    def release(self) -> None:
        """Let go of what is held."""
        self.page.evaluate("volsam.release()")

    def point(self, plane: str, voxel: tuple[int, int, int]) -> None:
        """Click a voxel without waiting for anything."""
        self.look_at(voxel)
        self.page.mouse.click(*self.place_of(plane, voxel))

    def choose(self, study: str) -> None:
        """Open another scan from the list, without waiting for it."""
        self.page.locator("#open").click()
        self.page.locator("#studies button:not(.resume)", has_text=study).click()

    def state(self, what: str) -> Any:
        """Something of the session's state."""
        return self.page.evaluate(f"volsam.session.{what}")

    def mask(self, number: int, shape: tuple[int, int, int]) -> np.ndarray:
        """The mask of an object as the page has it, bool."""
        whole = np.zeros(shape, bool)
        box = self.page.evaluate(
            """number => {
              const box = volsam.session.masks.boxes.get(number);
              if (!box) return null;
              let text = "";
              for (const value of box.values) text += String.fromCharCode(value);
              return { low: box.low, high: box.high, values: btoa(text) };
            }""",
            number,
        )
        if box:
            place = tuple(slice(low, high) for low, high in zip(box["low"], box["high"], strict=True))
            size = [high - low for low, high in zip(box["low"], box["high"], strict=True)]
            whole[place] = np.frombuffer(base64.b64decode(box["values"]), np.uint8).reshape(size, order="F") > 0
        return whole

    def colour_at(self, plane: str, voxel: tuple[int, int, int]) -> list[int]:
        """Red, green and blue of the page's own picture at a voxel."""
        found = """([name, voxel]) => {
          const plane = volsam.view.planes.find((plane) => plane.name === name);
          plane.paint();
          const [x, y] = plane.clientOf(voxel);
          const bounds = plane.canvas.getBoundingClientRect();
          const ratio = plane.canvas.width / bounds.width;
          const [left, top] = [(x - bounds.left) * ratio, (y - bounds.top) * ratio];
          return [...plane.context.getImageData(left, top, 1, 1).data.slice(0, 3)];
        }"""
        return self.page.evaluate(found, [plane, list(voxel)])

    def picture(self, name: str) -> None:
        """Keep a picture for the documentation, if a folder for them is given."""
        folder = os.environ.get("VOLSAM_PICTURES")
        if folder:
            Path(folder).mkdir(parents=True, exist_ok=True)
            self.page.wait_for_timeout(1500)  # for measurements and the third dimension
            taken = Image.open(io.BytesIO(self.page.screenshot()))
            # 256 colours are enough for a page in grey with a few hues, and a third of the bytes.
            taken.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(Path(folder) / name, optimize=True)


@pytest.fixture
def viewer(chromium: str, server: Server) -> Iterator[Viewer]:
    """A browser with the page; what the page complains about fails the test."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as tools:
        browser = tools.chromium.launch(executable_path=chromium, headless=True, args=FLAGS)
        context = browser.new_context(
            viewport={"width": 1440, "height": 900}, color_scheme="dark", accept_downloads=True
        )
        page = context.new_page()
        made = Viewer(page, server.address)
        yield made
        browser.close()
    bad = [text for text in made.complaints if not any(word in text for word in (*HARMLESS, *made.forgiven))]
    assert not bad, (bad, made.refused)
