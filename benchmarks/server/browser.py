"""How long from the mouse to the mask in the browser. Prints the answer and writes browser.txt.

    python benchmarks/server/browser.py

Makes a volume of 512 × 512 × 300 voxels with objects in it, serves it with `volsam serve`, opens the page in Chromium
without a GPU, and clicks. A click counts from the event of the mouse button, as the browser dates it, until the first
moment after the frame with the new mask is out. The first click of an object looks for its zoom and encodes a region;
later ones mostly decode.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))

from measure import VOLSAM, busy, machine  # noqa: E402

FLAGS = (
    "--no-sandbox",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
)
# Whom the browser asks to draw in 3D.
RENDERER = """() => {
  const gl = new OffscreenCanvas(1, 1).getContext("webgl2");
  return gl ? gl.getParameter(gl.getExtension("WEBGL_debug_renderer_info").UNMASKED_RENDERER_WEBGL) : "nobody";
}"""
SHAPE = (512, 512, 300)
COARSE = 4  # the objects are made at a quarter of the resolution
CLICKS = 5  # of each object


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chromium", default=os.environ.get("CHROMIUM") or shutil.which("chromium"))
    parser.add_argument("--rounds", type=int, default=2, help="how often every object is clicked anew (2)")
    parser.add_argument("--output", type=Path, default=HERE / "browser.txt", help="where the table goes")
    options = parser.parse_args()
    if not options.chromium:
        parser.error("no Chromium here: install it, or name it with --chromium")
    with tempfile.TemporaryDirectory(prefix="volsam-browser-") as folder:
        objects = make(Path(folder) / "studies")
        opened, samples, renderer = drive(Path(folder), objects, options)
    report = describe(opened, samples, renderer)
    print(report)
    options.output.write_text(report, encoding="utf-8")


def make(folder: Path) -> list[list[tuple[int, int, int]]]:
    """Write the volume; gives five voxels deep inside each of its objects."""
    import numpy as np
    from scipy import ndimage

    from volsam.data.io import write_volume
    from volsam.data.synthetic import sample_volume
    from volsam.geometry import Grid
    from volsam.volume import Volume

    scan, labels = sample_volume(0, tuple(size // COARSE for size in SHAPE), 3.0)
    values = scan.data[0]
    for axis in range(3):
        values = values.repeat(COARSE, axis=axis)
    noise = np.random.default_rng(0).normal(0, 15, SHAPE).astype(np.int16)
    folder.mkdir()
    write_volume(Volume(values + noise, Grid.at(SHAPE, 0.75), "large"), folder / "large.nii")
    objects = []
    for label in (2, 3, 4, 5, 7):
        depth = ndimage.distance_transform_edt(labels.data[0] == label)
        order = np.argsort(depth, axis=None)[::-1]
        spread = order[: max(CLICKS, len(order) // 40000) * 4 : 4][:CLICKS]
        places = np.stack(np.unravel_index(spread, depth.shape), axis=1)
        objects.append([tuple(int(at) * COARSE + COARSE // 2 for at in place) for place in places])
    return objects


def drive(
    folder: Path, objects: list[list[tuple[int, int, int]]], options: argparse.Namespace
) -> tuple[float, list[tuple[int, float, float]], str]:
    """Click. Gives seconds until the volume was shown, and of each click its number, milliseconds and the server's."""
    from playwright.sync_api import sync_playwright

    command = [*VOLSAM, "serve", "--port", "0", "--studies", str(folder / "studies"), "--dialects", "none"]
    environment = {**os.environ, "VOLSAM_HOME": str(folder / "home"), "PYTHONUNBUFFERED": "1"}
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        address = None
        while address is None:
            line = server.stderr.readline()
            if not line:
                raise SystemExit("the server ended before it took requests")
            found = re.search(r"http://\S+", line)
            address = found and found.group()
        with sync_playwright() as tools:
            browser = tools.chromium.launch(executable_path=options.chromium, headless=True, args=list(FLAGS))
            page = browser.new_page(viewport={"width": 1440, "height": 900})
            page.set_default_timeout(120_000)
            begin = time.perf_counter()
            page.goto(f"{address}/?study=large.nii")
            page.wait_for_selector("body[data-ready=true]")
            opened = time.perf_counter() - begin
            print(f"volume shown after {opened:.1f} s", file=sys.stderr, flush=True)
            samples = [sample for _ in range(options.rounds) for sample in clicks(page, objects)]
            renderer = page.evaluate(RENDERER)
            browser.close()
    finally:
        server.terminate()
        try:
            server.wait(60)
        except subprocess.TimeoutExpired:
            server.kill()
    return opened, samples, renderer


def clicks(page, objects: list[list[tuple[int, int, int]]]):
    """Every object from nothing, click by click."""
    for voxels in objects:
        page.keyboard.press("n")
        page.wait_for_function("volsam.session.waiting === 0 && !volsam.session.current.voxels")
        for number, voxel in enumerate(voxels, 1):
            page.evaluate("voxel => volsam.view.moveTo(voxel)", list(voxel))
            x, y = page.evaluate("voxel => volsam.view.planes[0].clientOf(voxel)", list(voxel))
            page.evaluate("performance.clearMeasures()")
            page.mouse.click(x, y)
            page.wait_for_function("performance.getEntriesByName('prompt-to-mask').length === 1")
            # A person looks at the mask meanwhile: measurements come, and the third dimension.
            page.wait_for_function("volsam.view.measured !== null || !volsam.session.current.voxels")
            page.wait_for_timeout(500)
            whole, server = page.evaluate(
                "[performance.getEntriesByName('prompt-to-mask')[0].duration, volsam.lastServerMs]"
            )
            print(f"click {number} at {voxel}: {whole:.0f} ms, server {server:.0f} ms", file=sys.stderr, flush=True)
            yield number, whole, server


def describe(opened: float, samples: list[tuple[int, float, float]], renderer: str) -> str:
    lines = [
        machine(),
        *([notice] if (notice := busy()) else []),
        f"Volume {' × '.join(map(str, SHAPE))}, int16; server and Chromium on one machine, WebGL by {renderer}.",
        f"The page showed all of the volume {opened:.1f} s after its address was entered.",
        "",
        f"{'milliseconds from the mouse to the painted mask':50}{'n':>5}{'p50':>8}{'p95':>8}",
    ]
    groups = {
        "first click of an object": [s for s in samples if s[0] == 1],
        "later clicks": [s for s in samples if s[0] > 1],
    }
    for name, group in groups.items():
        whole = [ms for _, ms, _ in group]
        rest = [ms - server for _, ms, server in group]
        lines.append(f"{name:50}{len(group):>5}{median(whole):>8.0f}{high(whole):>8.0f}")
        lines.append(f"{'  of these outside the server':50}{'':>5}{median(rest):>8.0f}{high(rest):>8.0f}")
    return "\n".join(lines) + "\n"


def high(values: list[float]) -> float:
    """The value that 95 of 100 do not exceed."""
    ordered = sorted(values)
    return ordered[min(int(0.95 * len(ordered)), len(ordered) - 1)]


if __name__ == "__main__":
    main()
